"""Parse and check a command line's arguments, options and run settings, without importing torch."""

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
from vitkd_ds.config.part import locate, what
from vitkd_ds.config.run import Run
from vitkd_ds.config.run_folder import check_paths
from vitkd_ds.config.teachers import path_of
from vitkd_ds.data.augment.policy import parse_rand_augment
from vitkd_ds.data.classes import count_classes
from vitkd_ds.recipes import build_run

logger = logging.getLogger(__name__)

NO_VALUE = "True"
"""Text that fire passes for an option without a value."""
OF_RUN = ("recipe", "teacher", "workdir", "help", "grid.KEY")
"""Options on a help page that belong to the run, or that the command's function reads from `flags`."""


def command(
    name: str, *, about: Callable[[dict[str, str], str], str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that makes a function the command `name`.

    The command checks its arguments against its help page, `PAGES[name]`. Then it calls the function with the
    positional arguments and the options that were given. If the command takes the settings of a run, the function also
    gets all other options as the dict `flags`, for `parse_run`.

    Args:
        name: name of the command.
        about: function that returns the text of --help, given the flags and the summary. None: show the help page.
    """
    page = PAGES[name]

    def make(function: Callable[..., None]) -> Callable[..., None]:
        summary = (inspect.getdoc(function) or "").splitlines()[0]

        def checked(*given: str, **flags: str) -> None:
            if "help" in flags:
                print(about(flags, summary) if about else page_text(name, summary))
                return
            unknown = [] if page.takes_run else [key for key in flags if key not in page.options]
            if unknown:
                help = nearest_option(unknown[0], page.options) if page.options else "there are none"
                raise ValueError(f"--{unknown[0]} is not an option: {help}")
            check_values(name, flags)
            check_words(given, " ".join(page.words))
            own = {key: convert(flags.pop(key), kind, key) for key, kind in own_options(name).items() if key in flags}
            function(*given, **own, **({"flags": flags} if page.takes_run else {}))

        checked.__doc__ = function.__doc__
        return checked

    return make


def check_values(name: str, flags: dict[str, str]) -> None:
    """Raise ValueError if an option of the command `name` was given without the value that it needs."""
    for key in [key for key, text in flags.items() if text == NO_VALUE]:
        option = PAGES[name].options.get(key)
        if option and option.kind is not bool:
            raise ValueError(f"--{key} has no value. Pass --{key} {option.value}. {option.about}")
        field = None if option else locate(Run, path_of(key.removeprefix("grid.")))[1]
        if field and field.annotation is not bool and key != "compile":  # compile=true means its default mode
            kind = what(field) if what(field) != "text" else "one"
            has_example = isinstance(field.default, str | int | float) and field.default != ""
            example = f", such as --{key}={field.default}" if has_example else ""
            about = " ".join((field.description or "").split())
            raise ValueError(f"--{key} has no value. Pass {kind}{example}. {about}")


def own_options(name: str) -> dict[str, type]:
    """Return the type of each option that is an argument of the command's function; leave out options in OF_RUN."""
    page = PAGES[name]
    return {key: option.kind for key, option in page.options.items() if not (page.takes_run and key in OF_RUN)}


def check_words(given: tuple[str, ...], names: str) -> None:
    """Raise ValueError if there are too few or too many positional arguments.

    `names` lists the command's positional arguments. A name in brackets is optional, and "..." at the end of `names`
    allows any number.
    """
    if given and not names:
        raise ValueError(f"unexpected argument {given[0]!r}. Options start with --.")
    least = len([name for name in names.split() if name[0] not in "[."])
    if len(given) < least or (len(given) > len(names.split()) and not names.endswith("...]")):
        raise ValueError(f"the command needs {names}, got {' '.join(given) or 'nothing'}")


def parse_run(words: tuple[str, ...], flags: dict[str, str], *, trains: bool = True) -> Run:
    """Build the run from a command line. `trains` is an argument of `checked`.

    Raises:
        ValueError: there are positional words; a flag, recipe or value is unknown (the message names the nearest valid
            one); or `checked` rejects the settings.
    """
    check_words(words, "")
    own = [flags[key] for key in ("data.train", "data.val") if flags.get(key, "demo") != "demo"]
    if own and "recipe" not in flags:
        logger.info(
            "no --recipe given, so %s gets the settings of the demo, which are for 28-px images. "
            "Pass --recipe images for your own images.",
            own[0],
        )
    debug = convert(flags.pop("debug", "false"), bool, "debug")
    return checked(apply_options(build_run(flags.pop("recipe", "demo"), debug=debug), flags), trains=trains)


def checked(run: Run, *, trains: bool = True) -> Run:
    """Check a run's settings, and return the run. If data.num_classes is 0, set it by counting the classes of the data.

    Every run must be checked once before it is trained. `parse_run` checks runs from the command line. Python code that
    builds a run must call this function. The check does not import torch.

    Args:
        run: the run.
        trains: whether to check also what only training needs, such as teachers and losses.

    Raises:
        ValueError: settings contradict each other or do not fit the data.
    """
    if trains:
        check_run(run)
    check_paths(run)
    if not run.data.num_classes:
        run = replace(run, data=replace(run.data, num_classes=count_classes(run.data)))
    if trains:
        check_classes(run)
    if run.augment.rand_augment:
        parse_rand_augment(run.augment.rand_augment)
    return run


def train_help(flags: dict[str, str], summary: str) -> str:
    """Return the help text of train: the help page and all settings, or only the group or setting that --help names."""
    recipe = flags.get("recipe", "demo")
    topic = flags["help"]
    topic = "" if topic == NO_VALUE else topic
    fields = field_help(build_run(recipe), topic, width=columns())
    about = "" if topic else f"{page_text('train', summary)}\n\n"
    return f"{about}Defaults are those of --recipe {recipe}.\n\n{fields}"
