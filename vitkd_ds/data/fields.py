"""What a .beton of ours looks like, the side file beside it, and the check of both before training.

A ``<name>.beton`` holds two FFCV fields, ``image`` (RGB) and ``label`` (integer). FFCV's format stores neither class
names nor anything that would betray a damaged file: a .beton that lacks its last byte trains without a message, on a
wrong image. So ``<name>.beton.json`` lies beside it with the classes, the size in bytes, the CRC32 of all tables, and
length and CRC32 of every image; `check_beton` refuses what does not agree. FFCV itself is not imported here, and the
images are not read, so the check costs milliseconds (a tenth of a second at ImageNet's size).
"""

import base64
import json
import os
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

SUFFIX = ".beton"
SIDE_FORMAT = 2
"""Version of the side file; raised when a key changes its meaning."""
FFCV_FORMAT = 2
"""Version in the header of every .beton that FFCV 1.0 writes and reads."""
FIELDS = (("image", 2), ("label", 1))
"""Name and FFCV type number of each field, in file order: RGBImageField and IntField."""
JPEG_MODE, RAW_MODE = 0, 1
"""How FFCV marks an image: as a JPEG, or as pixels."""

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
METADATA_DTYPE = np.dtype(
    {
        "names": ["mode", "width", "height", "offset", "label"],
        "formats": ["u1", "<u2", "<u2", "<u8", "<i8"],
        "offsets": [0, 1, 3, 5, 16],
        "itemsize": 24,
    }
)
"""A row of the table behind the field descriptors: FFCV's two fields side by side, the label aligned to 8 bytes."""
ALLOCATION_DTYPE = np.dtype([("sample", "<u8"), ("offset", "<u8"), ("size", "<u8")])
"""A row of the table at the end of the file; one row per image."""
STORED_DTYPE = np.dtype(
    [
        ("offset", "<u8"),
        ("size", "<u4"),
        ("crc32", "<u4"),
        ("height", "<u2"),
        ("width", "<u2"),
        ("mode", "u1"),
        ("has_crc", "u1"),
        ("checked", "u1"),
        ("pad", "u1"),
    ],
    align=True,
)
"""One image of a file: where its bytes are, height and width in pixels, and mode (FFCV's: 0 is a JPEG, 1 is raw RGB).
If `has_crc`, `crc32` is that of the bytes; it is compared the first time the image is read, then `checked` is 1."""
METADATA_START = HEADER_DTYPE.itemsize + len(FIELDS) * FIELD_DTYPE.itemsize


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
    """JPEG quality of the images that were encoded here."""
    passthrough: int
    """Number of images whose original JPEG bytes are stored; the others were encoded."""
    shuffled: bool
    """Whether the images lie in a random order, not by class."""
    max_height: int
    """Height of the tallest stored image, in pixels."""
    max_width: int


SIDE_KEYS = tuple(f.name for f in fields(BetonInfo) if f.name != "path")
TABLE_KEYS = ("tables_crc32", "lengths", "crc32s")
"""What the side file says of the .beton's tables, and of each image in order (base64 of little-endian 32-bit)."""


@dataclass(frozen=True)
class Tables:
    """What a .beton says of its images besides their bytes."""

    metadata: np.ndarray
    """METADATA_DTYPE [num_images]."""
    allocations: np.ndarray
    """ALLOCATION_DTYPE [num_images]."""
    crc32: int
    """Of header, field descriptors and both tables, as they stand in the file."""


def side_path(path: Path) -> Path:
    """Where the side file of the .beton `path` lies."""
    return path.with_name(path.name + ".json")


def partial_path(path: Path) -> Path:
    """Where the .beton `path` is written until it is complete."""
    return path.with_name(f".{path.name}.partial")


def side_text(info: BetonInfo, *, tables_crc32: int, lengths: np.ndarray, crc32s: np.ndarray) -> str:
    """The contents of the side file."""
    values = asdict(info)
    checks = (tables_crc32, _base64_of(lengths), _base64_of(crc32s))
    rows = {"format": SIDE_FORMAT} | {key: values[key] for key in SIDE_KEYS} | dict(zip(TABLE_KEYS, checks))
    return json.dumps(rows, indent=1) + "\n"


def _base64_of(numbers: np.ndarray) -> str:
    return base64.b64encode(numbers.astype("<u4").tobytes()).decode("ascii")


def _refuse(path: Path, must: str, found: str, remedy: str = "pack the images again") -> ValueError:
    return ValueError(f"{str(path)!r} must {must}, but {found}: {remedy}")


def _read_side(path: Path) -> dict:
    """Read the side file of the .beton `path`; raises ValueError unless it is whole."""
    side = side_path(path)
    if not side.is_file():
        raise _refuse(
            path,
            f"have its side file {side.name!r} in the same folder",
            "there is none",
            "copy it along, or pack the images again",
        )
    try:
        values = json.loads(side.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _refuse(side, "be JSON", str(error), "copy it again, or pack the images again") from error
    found = values.get("format") if isinstance(values, dict) else values
    if found != SIDE_FORMAT:
        raise _refuse(side, f"have format {SIDE_FORMAT}", f"has {found!r}")
    missing = [key for key in (*SIDE_KEYS, *TABLE_KEYS) if key not in values]
    if missing:
        raise _refuse(side, f"have the keys {', '.join(SIDE_KEYS + TABLE_KEYS)}", f"{', '.join(missing)} is missing")
    for key in ("lengths", "crc32s"):
        try:
            values[key] = np.frombuffer(base64.b64decode(values[key], validate=True), "<u4")
        except (TypeError, ValueError) as error:
            raise _refuse(side, f"hold 32-bit numbers in base64 as {key!r}", str(error), "copy it again") from error
    return values


def _field_name(descriptor: np.void) -> str:
    return descriptor["name"].tobytes().split(b"\0")[0].decode("ascii", "replace")


def _read_header(path: Path, head: bytes, size: int) -> np.void:
    """The header in the first bytes of a .beton of `size` bytes, checked against the fields and the size."""
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
    if header["num_samples"] == 0:
        raise _refuse(path, "hold images", "is empty")
    start, num_images = int(header["alloc_table_ptr"]), int(header["num_samples"])
    end = start + num_images * ALLOCATION_DTYPE.itemsize
    if start < METADATA_START + num_images * METADATA_DTYPE.itemsize or size != end:
        raise _refuse(path, f"be {end} bytes long by its own header", f"is {size}", "copy it again, or pack it again")
    return header


def read_tables(path: Path) -> Tables:
    """Read header and tables of a .beton and check them against each other, the fields and the size of the file.

    Raises:
        ValueError: not a .beton, other fields, empty, or cut short.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        head = file.read(METADATA_START)
        header = _read_header(path, head, size)
        num_images = int(header["num_samples"])
        metadata_bytes = file.read(num_images * METADATA_DTYPE.itemsize)
        file.seek(int(header["alloc_table_ptr"]))
        allocation_bytes = file.read()
    crc32 = zlib.crc32(allocation_bytes, zlib.crc32(metadata_bytes, zlib.crc32(head)))
    metadata = np.frombuffer(metadata_bytes, METADATA_DTYPE, count=num_images)
    allocations = np.frombuffer(allocation_bytes, ALLOCATION_DTYPE, count=num_images)
    return Tables(metadata, allocations, crc32)


def check_beton(path: str | Path) -> BetonInfo:
    """Check a .beton and its side file without reading the images.

    Raises:
        ValueError: the file is missing, still being written, no .beton, empty, cut short, of other fields, without its
            side file, or other than that says.
    """
    return _checked(Path(path))[0]


def stored_images(info: BetonInfo) -> np.ndarray:
    """Where each image of a checked .beton lies, and what it must be: STORED_DTYPE [num_images].

    Raises:
        ValueError: the file has changed since it was checked.
    """
    _, tables, crc32s = _checked(info.path)
    images = np.zeros(len(tables.metadata), STORED_DTYPE)
    for key in ("offset", "height", "width", "mode"):
        images[key] = tables.metadata[key]
    images["size"], images["crc32"], images["has_crc"] = tables.allocations["size"], crc32s, 1
    return images


def labels_of(info: BetonInfo) -> np.ndarray:
    """The label of each image of a checked .beton: int64 [num_images], positions in `info.classes`."""
    return read_tables(info.path).metadata["label"].astype(np.int64)


def _checked(path: Path) -> tuple[BetonInfo, Tables, np.ndarray]:
    """The file's description, its tables and the CRC32 of each image."""
    _check_is_finished(path)
    tables, values = read_tables(path), _read_side(path)
    values["classes"] = tuple(values["classes"])
    info = BetonInfo(path=path, **{key: values[key] for key in SIDE_KEYS})
    for key, found, must in (
        ("bytes", path.stat().st_size, "be {} bytes long"),
        ("num_images", len(tables.metadata), "hold {} images"),
        ("tables_crc32", tables.crc32, "have tables of CRC32 {}"),
    ):
        if values[key] != found:
            side_says = must.format(values[key])
            raise _refuse(path, f"{side_says} by its side file", f"the file says {found}", "copy both files again")
    lengths, crc32s = values["lengths"], values["crc32s"]
    if not (len(lengths) == len(crc32s) == info.num_images and (lengths == tables.allocations["size"]).all()):
        raise _refuse(
            side_path(path),
            f"give the length and CRC32 of the {info.num_images} images of the .beton",
            "its numbers are other ones",
            "copy both files again",
        )
    return info, tables, crc32s


def _check_is_finished(path: Path) -> None:
    if path.name.startswith(".") and path.name.endswith(".partial"):
        raise _refuse(
            path, "be a finished .beton", "it is what pack writes until then", "give pack the same command again"
        )
    if path.is_file():
        return
    found, remedy = "does not exist", "give the path of a packed file, or pack one"
    if path.is_dir():
        found = "is a folder"
    elif partial_path(path).exists():
        found = "is still being packed, or its packing was interrupted"
        remedy = "wait, or give pack the same command again, which continues"
    raise _refuse(path, "be a .beton file", found, remedy)
