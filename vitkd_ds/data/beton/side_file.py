"""Read and write the side file ``<name>.beton.json``, a JSON file next to a .beton.

It stores the class names, the settings of packing, and checksums, because FFCV's format stores none of these.
`vitkd_ds.data.beton.format` compares the side file with the tables in the .beton.
"""

import base64
import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from vitkd_ds.config.reading import load_json

SIDE_FORMAT = 2
"""Version of the side file's format. It is incremented when the meaning of a key changes."""


@dataclass(frozen=True)
class BetonInfo:
    """Description of a checked .beton, from its side file."""

    path: Path
    num_images: int
    classes: tuple[str, ...]
    """Class names in label order."""
    bytes: int
    """Size of the .beton in bytes."""
    write_mode: str
    """How images are stored: jpg, raw (pixels), or proportion (half of the images as JPEG, half as pixels)."""
    max_resolution: int
    """Limit that packing set on the longer side of an image, in pixels; 0 means no limit."""
    short_side: int
    """Length in pixels to which packing scaled the shorter side of larger images; 0 means no scaling."""
    quality: int
    """JPEG quality of images encoded during packing; 0 for a file written by stock FFCV (`vitkd-ds adopt`)."""
    passthrough: int
    """Number of images stored as the original JPEG, perhaps with added restart markers. All others were encoded."""
    shuffled: bool
    """True if images are in random order, False if sorted by class."""
    max_height: int
    """Height of the tallest stored image, in pixels."""
    max_width: int


SIDE_KEYS = tuple(f.name for f in fields(BetonInfo) if f.name != "path")
TABLE_KEYS = ("tables_crc32", "lengths", "crc32s")
"""Keys of three values: the CRC32 of the .beton's tables, the images' lengths, and the images' CRC32s.

The lengths and the images' CRC32s are little-endian 32-bit integers in the order of the images, encoded as base64.
"""
SOURCE_KEY = "source"
"""Key of the fingerprint of the source that was packed. The source's path does not affect the fingerprint.

The key is missing in files from versions before 0.4 and in the demo's files.
"""


def side_path(path: Path) -> Path:
    """Return the path of the side file of a .beton."""
    return path.with_name(path.name + ".json")


def side_text(info: BetonInfo, *, tables_crc32: int, lengths: np.ndarray, crc32s: np.ndarray, source: str = "") -> str:
    """Return the content of the side file as text; an empty `source` is omitted."""
    rows = {"format": SIDE_FORMAT} | {key: getattr(info, key) for key in SIDE_KEYS} | {"tables_crc32": tables_crc32}
    rows |= {SOURCE_KEY: source} if source else {}
    for key, numbers in (("lengths", lengths), ("crc32s", crc32s)):
        rows[key] = base64.b64encode(numbers.astype("<u4").tobytes()).decode("ascii")
    return json.dumps(rows, indent=1) + "\n"


def refuse(path: Path, must: str, found: str, remedy: str = "pack the images again") -> ValueError:
    """Return the ValueError "PATH must MUST, but FOUND: REMEDY" for an invalid file."""
    return ValueError(f"{str(path)!r} must {must}, but {found}: {remedy}")


def read_side(path: Path) -> dict:
    """Read and check the side file of a .beton; return its values by key.

    Raises:
        ValueError: the side file is missing or damaged, or its format has another version.
        Unreadable: the disk failed at every attempt.
    """
    side = side_path(path)
    if not side.is_file():
        must = f"have its side file {side.name!r} in the same folder"
        remedy = "copy it too, or create it for a file written by FFCV (vitkd-ds adopt)"
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
    # These values are compared and shown in messages, so their types must be correct.
    wrong = [f.name for f in fields(BetonInfo) if f.type in (int, bool, str) and type(values.get(f.name)) is not f.type]
    wrong += [SOURCE_KEY] if not isinstance(values.get(SOURCE_KEY, ""), str) else []
    names = values["classes"]
    if wrong or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise refuse(side, "have values of the right types", f"{', '.join(wrong) or 'classes'} has another type")
    if len(set(names)) != len(names):
        raise refuse(side, "list each class once", "lists one twice")
    for key in ("lengths", "crc32s"):
        try:
            values[key] = np.frombuffer(base64.b64decode(values[key], validate=True), "<u4")
        except (TypeError, ValueError) as error:
            raise refuse(side, f"contain 32-bit numbers in base64 as {key!r}", str(error), "copy it again") from error
    return values
