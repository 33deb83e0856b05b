"""Shell completion of commands, options and values for bash, zsh and fish."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, get_args, get_origin

from vitkd_ds.commands.manual import PAGES, Option, Page
from vitkd_ds.config.help import docstring
from vitkd_ds.config.overrides import Setting, settings_of
from vitkd_ds.config.run import Run
from vitkd_ds.recipes import RECIPES, build_run

BASH = """_vitkd_ds() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    if [ "$current" = "=" ]; then current=""
    elif [ "$previous" = "=" ]; then previous="${{COMP_WORDS[COMP_CWORD-2]}}"; fi
    if [ "$COMP_CWORD" = 1 ]; then words="{commands}"
    elif [ "${{current#-}}" = "$current" ]; then
        case "$previous" in
{values}
        esac
    else
        case "${{COMP_WORDS[1]}}" in
{options}
        esac
    fi
    COMPREPLY=( $(compgen -W "$words" -- "$current") )
}}
complete -o default -F _vitkd_ds vitkd-ds"""
ZSH = "autoload -U +X compinit bashcompinit && compinit -C && bashcompinit"


def script(shell: str, summaries: Mapping[str, str]) -> str:
    """Return the completion script for a shell.

    Args:
        shell: bash, zsh or fish.
        summaries: one-line description of each command, by the command's name.

    Raises:
        ValueError: the shell is unknown.
    """
    if shell not in ("bash", "zsh", "fish"):
        raise ValueError(f"SHELL must be bash, zsh or fish, got {shell!r}")
    settings = {setting.key: setting for setting in settings_of(Run, build_run("demo"))}
    if shell == "fish":
        return "\n".join(_fish_lines(settings, summaries))
    options = {name: [*_options(page), "help", *(settings if page.takes_run else [])] for name, page in PAGES.items()}
    text = BASH.format(
        commands=" ".join([*summaries, "help", "--version"]),
        values="\n".join(
            [_case("help", [*summaries]), *(_case(f"--{key}", words) for key, words in _values(settings).items())]
        ),
        options="\n".join(_case(name, dict.fromkeys(f"--{key}" for key in keys)) for name, keys in options.items()),
    )
    return f"{ZSH}\n{text}" if shell == "zsh" else text


def _options(page: Page) -> dict[str, Option]:
    """Return the options on a command's help page, leaving out placeholders such as --grid.KEY."""
    return {key: option for key, option in page.options.items() if key.islower()}


def _case(pattern: str, words: Iterable[str]) -> str:
    """Return a branch of a bash `case` statement that sets the variable `words` if `pattern` matches."""
    return f"        {pattern}) words={shlex.quote(' '.join(words))} ;;"


def _values(settings: Mapping[str, Setting]) -> dict[str, tuple[str, ...]]:
    """Return the possible values of --recipe and of every option with a fixed set of values, by the option's name."""
    values = {key: get_args(setting.field.annotation) for key, setting in settings.items() if _is_choice(setting)}
    for page in PAGES.values():
        choices = {key: tuple(option.value.split("|")) for key, option in page.options.items()}
        values |= {key: words for key, words in choices.items() if all(words) and "".join(words).islower()}
    return values | {"recipe": tuple(RECIPES)}


def _is_choice(setting: Setting) -> bool:
    return get_origin(setting.field.annotation) is Literal


def _fish_lines(settings: Mapping[str, Setting], summaries: Mapping[str, str]) -> Iterator[str]:
    values = _values(settings)
    for name, summary in summaries.items():
        yield f"complete -c vitkd-ds -n __fish_use_subcommand -f -a {name} -d {_fish_quoted(summary)}"
    seen = "__fish_seen_subcommand_from"
    for name, page in PAGES.items():
        for key, option in _options(page).items():
            yield _fish_option(f"{seen} {name}", key, option.about, values.get(key), takes_value=bool(option.value))
    runs = " ".join(name for name, page in PAGES.items() if page.takes_run)
    for key, setting in settings.items():
        yield _fish_option(f"{seen} {runs}", key, docstring(setting), values.get(key), takes_value=True)


def _fish_option(condition: str, key: str, about: str, values: Sequence[str] | None, *, takes_value: bool) -> str:
    """Return the fish command that completes --`key` if fish's test `condition` holds.

    The option is described by the first sentence of `about`.
    """
    parts = ["complete -c vitkd-ds", "-n", shlex.quote(condition), "-l", key, "-d", _fish_quoted(about)]
    if values:
        parts += ["-x", "-a", shlex.quote(" ".join(values))]
    elif takes_value:
        parts.append("-r")
    return " ".join(parts)


def _fish_quoted(text: str) -> str:
    """Return a text's first sentence, quoted for fish. Unlike sh, fish allows escaped apostrophes in single quotes."""
    sentence = re.split(r"[.;] ", text)[0].rstrip(".")
    return "'" + sentence.replace("\\", "\\\\").replace("'", "\\'") + "'"
