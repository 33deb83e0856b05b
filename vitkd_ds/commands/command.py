"""Commands: a function, with its words and options checked and converted before it is called. Nothing here imports
torch."""

import inspect
from typing import Any, Callable

from vitkd_ds.commands.parse import check_words
from vitkd_ds.config.overrides import convert, nearest


def command(
    words: str = "", *, takes_run: bool = False, about: Callable[[dict[str, str]], str] | None = None, **options: type
) -> Callable[..., Any]:
    """Make a function a command.

    It is called with its `words`, of which those in brackets may be left out and "..." at the end is any number more,
    and with those of its `options`, given with their types, that it got; with `takes_run` also with all other `flags`,
    for `parse_run`. `about` makes the text of --help from the flags; without it the docstring is the text.
    """

    def make(function: Callable[..., None]) -> Callable[..., None]:
        def checked(*given: str, **flags: str) -> None:
            if "help" in flags:
                print(about(flags) if about else inspect.getdoc(function))
                return
            check_words(given, words)
            own = {key: convert(flags.pop(key), options[key], key) for key in options if key in flags}
            if flags and not takes_run:
                key = next(iter(flags))
                raise ValueError(f"--{key} is no option: {nearest(key, options) if options else 'there are none'}")
            function(*given, **own, **({"flags": flags} if takes_run else {}))

        checked.__doc__ = function.__doc__
        return checked

    return make
