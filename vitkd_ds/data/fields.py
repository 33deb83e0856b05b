"""What a .beton of ours looks like, the side file beside it, and the check of both before training.

A ``<name>.beton`` holds two FFCV fields, ``image`` (RGB) and ``label`` (integer). FFCV's format stores neither class
names nor anything that would betray a file cut short: a .beton that lacks its last byte trains without a message, on a
wrong image. So ``<name>.beton.json`` lies beside it with the classes and the size in bytes, and `check_beton` refuses
what does not agree. FFCV itself is not imported here, so the check costs milliseconds.
"""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

SIDE_FORMAT = 1
"""Version of the side file; raised when a key changes its meaning."""
FFCV_FORMAT = 2
"""Version in the header of every .beton that FFCV 1.0 writes and reads."""
FIELDS = (("image", 2), ("label", 1))
"""Name and FFCV type number of each field, in file order: RGBImageField and IntField."""

HEADER_DTYPE = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD_DTYPE = np.dtype([("type_id", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)], align=True)
ALLOCATION_BYTES = 24
"""Size of one row of the allocation table at the end of the file: sample, position, size; one row per image."""


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
    quality: int
    """JPEG quality."""
    max_height: int
    """Height of the tallest stored image, in pixels."""
    max_width: int


SIDE_KEYS = tuple(f.name for f in fields(BetonInfo) if f.name != "path")


def side_path(path: Path) -> Path:
    """Where the side file of the .beton `path` lies."""
    return path.with_name(path.name + ".json")


def side_text(info: BetonInfo) -> str:
    """The contents of the side file."""
    values = asdict(info)
    return json.dumps({"format": SIDE_FORMAT} | {key: values[key] for key in SIDE_KEYS}, indent=1) + "\n"


def _refuse(path: Path, must: str, found: str, remedy: str = "pack the images again") -> ValueError:
    return ValueError(f"{str(path)!r} must {must}, but {found}: {remedy}")


def _read_side(path: Path) -> BetonInfo:
    """Read the side file of the .beton `path`; raises ValueError unless it is whole."""
    side = side_path(path)
    if not side.is_file():
        raise _refuse(
            path,
            f"have its side file {side.name!r} in the same folder",
            "there is none",
            "copy it along, or pack the images again (an interrupted job leaves none)",
        )
    try:
        values = json.loads(side.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _refuse(side, "be JSON", str(error)) from error
    found = values.get("format") if isinstance(values, dict) else values
    if found != SIDE_FORMAT:
        raise _refuse(side, f"have format {SIDE_FORMAT}", f"has {found!r}")
    missing = [key for key in SIDE_KEYS if key not in values]
    if missing:
        raise _refuse(side, f"have the keys {', '.join(SIDE_KEYS)}", f"{', '.join(missing)} is missing")
    values["classes"] = tuple(values["classes"])
    return BetonInfo(path=path, **{key: values[key] for key in SIDE_KEYS})


def _field_name(descriptor: np.void) -> str:
    return descriptor["name"].tobytes().split(b"\0")[0].decode("ascii", "replace")


def read_num_images(path: Path) -> int:
    """Read the header of a .beton and check it against the fields and the size of the file.

    Returns:
        The number of images.

    Raises:
        ValueError: not a .beton, other fields, empty, or cut short.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        head = file.read(HEADER_DTYPE.itemsize + len(FIELDS) * FIELD_DTYPE.itemsize)
    if len(head) < HEADER_DTYPE.itemsize:
        raise _refuse(path, "be an FFCV .beton", f"has only {size} bytes")
    header = np.frombuffer(head, HEADER_DTYPE, count=1)[0]
    if header["version"] != FFCV_FORMAT:
        raise _refuse(
            path,
            f"be an FFCV .beton (format {FFCV_FORMAT})",
            f"its first bytes say {header['version']}",
            "give a file that was packed by this package",
        )
    num_fields = min(int(header["num_fields"]), len(FIELDS))
    if len(head) < HEADER_DTYPE.itemsize + num_fields * FIELD_DTYPE.itemsize:
        raise _refuse(path, "be whole", f"ends inside its header, at {size} bytes", "copy it again, or pack it again")
    descriptors = np.frombuffer(head, FIELD_DTYPE, offset=HEADER_DTYPE.itemsize, count=num_fields)
    found = tuple((_field_name(d), int(d["type_id"])) for d in descriptors)
    if header["num_fields"] != len(FIELDS) or found != FIELDS:
        raise _refuse(path, f"have the fields (name, FFCV type) {FIELDS}", f"has {header['num_fields']}: {found}, ...")
    num_images = int(header["num_samples"])
    if num_images == 0:
        raise _refuse(path, "hold images", "is empty")
    end = int(header["alloc_table_ptr"]) + num_images * ALLOCATION_BYTES
    if header["alloc_table_ptr"] == 0 or size != end:
        raise _refuse(path, f"be {end} bytes long by its own header", f"is {size}", "copy it again, or pack it again")
    return num_images


def check_beton(path: str | Path) -> BetonInfo:
    """Check a .beton and its side file without reading the images.

    Raises:
        ValueError: the file is missing, no .beton, empty, cut short, of other fields, or without its side file.
    """
    path = Path(path)
    if not path.is_file():
        raise _refuse(
            path,
            "be a .beton file",
            "is a folder" if path.is_dir() else "does not exist",
            "give the path of a packed file, or pack one",
        )
    num_images = read_num_images(path)
    info = _read_side(path)
    size = path.stat().st_size
    if info.bytes != size:
        raise _refuse(path, f"be {info.bytes} bytes long by its side file", f"is {size}", "copy both files again")
    if info.num_images != num_images:
        raise _refuse(path, f"hold {info.num_images} images by its side file", f"holds {num_images}", "copy both again")
    return info
