"""Pack images into a .beton. Start reading at `images.py`, which defines `pack`.

`pack` is imported on first use, because importing FFCV and torch takes seconds. Most commands need only
`vitkd_ds.commands.pack.folders`, which does not import them.
"""

from importlib import import_module
from typing import Any

__all__ = ["pack"]


def __getattr__(name: str) -> Any:
    if name == "pack":
        return import_module("vitkd_ds.commands.pack.images").pack
    raise AttributeError(f"module 'vitkd_ds.commands.pack' has no attribute {name!r}")
