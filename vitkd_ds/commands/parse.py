"""From the words and flags of a command line to checked arguments and one checked run. Nothing here imports torch."""

import inspect
import logging
from collections.abc import Callable
from dataclasses import replace

from vitkd_ds.commands.manual import PAGES
from vitkd_ds.commands.usage import columns, page_text
from vitkd_ds.config.check import check_classes, check_run
from vitkd_ds.config.help import field_help
from vitkd_ds.config.options import apply_options
from vitkd_ds.config.overrides import convert, nearest_option
from vitkd_ds.config.run import Run
from vitkd_ds.data.augment.policy import parse_rand_augment
from vitkd_ds.data.classes import count_classes
from vitkd_ds.recipes import build_run

logger = logging.getLogger(__name__)

OF_RUN = ("recipe", "teacher", "workdir", "help", "grid.KEY")
"""Options on a command's page that are not its own but the run's, or that the command reads from `flags`."""


def command(
    name: str, *, about: Callable[[dict[str, str], str], str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command, checked and explained as its page of the manual says.

    It is called with its words, with those of its options that it got, and where it takes a run with all other `flags`,
    for `parse_run`. `about` makes the text of --help from the flags and the summary; without it that is the page.
    """
    page = PAGES[name]

    def make(function: Callable[..., None]) -> Callable[..., None]:
        summary = (inspect.getdoc(function) or "").splitlines()[0]

        def checked(*given: str, **flags: str) -> None:
            if "help" in flags:
                print(about(flags, summary) if about else page_text(name, summary))
                return
            check_words(given, " ".join(page.words))
            own = {key: convert(flags.pop(key), kind, key) for key, kind in own_options(name).items() if key in flags}
            if flags and not page.takes_run:
                key = next(iter(flags))
                help = nearest_option(key, page.options) if page.options else "there are none"
                raise ValueError(f"--{key} is no option: {help}")
            function(*given, **own, **({"flags": flags} if page.takes_run else {}))

        checked.__doc__ = function.__doc__
        return checked

    return make


def own_options(name: str) -> dict[str, type]:
    """Return the options that a command itself takes, with their types: all but those that reach the run."""
    page = PAGES[name]
    return {key: option.kind for key, option in page.options.items() if not (page.takes_run and key in OF_RUN)}


def check_words(given: tuple[str, ...], names: str) -> None:
    """Raise ValueError unless the words that are no flags are as many as `names` asks for: those in brackets may be
    left out, and "..." at the end is any number more."""
    if given and not names:
        raise ValueError(f"every argument must be a --flag, found {given[0]!r}: put -- before its name")
    least = len([name for name in names.split() if name[0] not in "[."])
    if len(given) < least or (len(given) > len(names.split()) and not names.endswith("...]")):
        raise ValueError(f"the command needs {names}, found {' '.join(given) or 'nothing'}")


def parse_run(words: tuple[str, ...], flags: dict[str, str]) -> Run:
    """The run that a command line asks for; raises ValueError for a word that is no flag, and for an unknown flag,
    recipe or value, with the nearest valid name."""
    check_words(words, "")
    own = [flags[key] for key in ("data.train", "data.val") if flags.get(key, "demo") != "demo"]
    if own and "recipe" not in flags:
        logger.info(
            "no --recipe given, so %s gets the settings of the demo, which are for 28-px images. "
            "Pass --recipe images for your own images.",
            own[0],
        )
    debug = convert(flags.pop("debug", "false"), bool, "debug")
    return checked(apply_options(build_run(flags.pop("recipe", "demo"), debug=debug), flags))


def checked(run: Run) -> Run:
    """Check a run before anything heavy loads, and count the classes of its data where it does not say them.

    Every run that is trained comes from here, once: those of a command line by `parse_run`, those of Python directly.

    Raises:
        ValueError: its settings or data do not fit together.
    """
    check_run(run)
    if not run.data.num_classes:
        run = replace(run, data=replace(run.data, num_classes=count_classes(run.data)))
    check_classes(run)
    if run.augment.rand_augment:
        parse_rand_augment(run.augment.rand_augment)
    return run


def train_help(flags: dict[str, str], summary: str) -> str:
    """Describe train and every field of a run, or only the group or field that --help names."""
    recipe = flags.get("recipe", "demo")
    topic = flags["help"]
    topic = "" if topic == "True" else topic  # what fire makes of a flag without a value
    fields = field_help(build_run(recipe), topic, width=columns())
    about = "" if topic else f"{page_text('train', summary)}\n\n"
    return f"{about}Defaults are those of --recipe {recipe}.\n\n{fields}"
