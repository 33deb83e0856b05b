"""The side file ``<name>.beton.json``: what FFCV's format does not store, and what betrays a damaged file.

Separate from the .beton's own tables (`vitkd_ds.data.beton.format`), which it is compared with.
"""

import base64
import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from vitkd_ds.config.reading import load_json

SIDE_FORMAT = 2
"""Version of the side file; raised when a key changes its meaning."""


@dataclass(frozen=True)
class BetonInfo:
    """A checked .beton and what its side file says."""

    path: Path
    num_images: int
    classes: tuple[str, ...]
    """Names in label order."""
    bytes: int
    """Size of the .beton."""
    write_mode: str
    """jpg, raw or proportion (half of the images each)."""
    max_resolution: int
    """Longest side allowed when it was packed, in pixels; 0 kept the original size."""
    short_side: int
    """Shorter side to which larger images were scaled down, in pixels; 0 did not."""
    quality: int
    """JPEG quality of the images that were encoded here; 0 in a file that stock FFCV wrote (`vitkd-ds adopt`)."""
    passthrough: int
    """Number of images whose original JPEG is stored, as it is or with restart markers; the others were encoded."""
    shuffled: bool
    """Whether the images lie in a random order, not by class."""
    max_height: int
    """Height of the tallest stored image, in pixels."""
    max_width: int


SIDE_KEYS = tuple(f.name for f in fields(BetonInfo) if f.name != "path")
TABLE_KEYS = ("tables_crc32", "lengths", "crc32s")
"""What the side file says of the .beton's tables, and of each image in order (base64 of little-endian 32-bit)."""
SOURCE_KEY = "source"
"""Fingerprint of the source that the images were packed from, without its path. Files of versions before 0.4, and the
demo's, lack it."""


def side_path(path: Path) -> Path:
    """Path of the side file of the .beton `path`."""
    return path.with_name(path.name + ".json")


def side_text(info: BetonInfo, *, tables_crc32: int, lengths: np.ndarray, crc32s: np.ndarray, source: str = "") -> str:
    """Write the contents of the side file; "" as `source` is left out."""
    rows = {"format": SIDE_FORMAT} | {key: getattr(info, key) for key in SIDE_KEYS} | {"tables_crc32": tables_crc32}
    rows |= {SOURCE_KEY: source} if source else {}
    for key, numbers in (("lengths", lengths), ("crc32s", crc32s)):
        rows[key] = base64.b64encode(numbers.astype("<u4").tobytes()).decode("ascii")
    return json.dumps(rows, indent=1) + "\n"


def refuse(path: Path, must: str, found: str, remedy: str = "pack the images again") -> ValueError:
    """Make the error for a file that is not as it must be."""
    return ValueError(f"{str(path)!r} must {must}, but {found}: {remedy}")


def read_side(path: Path) -> dict:
    """Read the side file of the .beton `path`; raises ValueError unless it is whole, Unreadable where the
    disk fails."""
    side = side_path(path)
    if not side.is_file():
        must = f"have its side file {side.name!r} in the same folder"
        remedy = "copy it along, or give a file that FFCV wrote one (vitkd-ds adopt)"
        raise refuse(path, must, "there is none", remedy)
    try:
        values = load_json(side)
    except ValueError as error:
        raise refuse(side, "be JSON", str(error), "copy it again, or pack the images again") from error
    found = values.get("format") if isinstance(values, dict) else values
    if found != SIDE_FORMAT:
        raise refuse(side, f"have format {SIDE_FORMAT}", f"has {found!r}")
    missing = [key for key in (*SIDE_KEYS, *TABLE_KEYS) if key not in values]
    if missing:
        raise refuse(side, f"have the keys {', '.join(SIDE_KEYS + TABLE_KEYS)}", f"{', '.join(missing)} is missing")
    # What is read here ends up in messages and in comparisons, so each value must be of the type that was written.
    wrong = [f.name for f in fields(BetonInfo) if f.type in (int, bool, str) and type(values.get(f.name)) is not f.type]
    wrong += [SOURCE_KEY] if not isinstance(values.get(SOURCE_KEY, ""), str) else []
    names = values["classes"]
    if wrong or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise refuse(side, "have values of the right types", f"{', '.join(wrong) or 'classes'} is of another")
    if len(set(names)) != len(names):
        raise refuse(side, "name each class once", "some name stands there twice")
    for key in ("lengths", "crc32s"):
        try:
            values[key] = np.frombuffer(base64.b64decode(values[key], validate=True), "<u4")
        except (TypeError, ValueError) as error:
            raise refuse(side, f"hold 32-bit numbers in base64 as {key!r}", str(error), "copy it again") from error
    return values
