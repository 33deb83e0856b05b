"""Pack images into a .beton: `pack`.

It is imported on first use: FFCV takes torch along, which takes seconds, and whether a run has folders to pack
(`vitkd_ds.commands.pack.folders`) is found out without.
"""

from importlib import import_module
from typing import Any

__all__ = ["pack"]


def __getattr__(name: str) -> Any:
    if name == "pack":
        return import_module("vitkd_ds.commands.pack.images").pack
    raise AttributeError(f"module 'vitkd_ds.commands.pack' has no attribute {name!r}")
