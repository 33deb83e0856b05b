"""Read, write and check a .beton's header and tables; compare them with its side file.

A ``<name>.beton`` has two FFCV fields, ``image`` (RGB) and ``label`` (integer). FFCV's format stores neither class
names nor checksums. If a .beton lacks its last byte, for example, training with FFCV silently uses a wrong image.
Therefore, each .beton has a side file: the JSON file ``<name>.beton.json`` in the same folder. It stores the class
names, the size of the .beton in bytes, the CRC32 of its tables, and the length and CRC32 of every image. `check_beton`
raises an error if the two files do not match. It takes milliseconds (a tenth of a second for ImageNet), because it
neither imports FFCV nor reads the images.
"""

import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitkd_ds.config.reading import patiently
from vitkd_ds.data.beton.side_file import SIDE_KEYS, BetonInfo, read_side, refuse, side_path

SUFFIX = ".beton"
FFCV_FORMAT = 2
"""Version number in the header of every .beton that FFCV 1.0 writes and reads."""
FIELDS = (("image", 2), ("label", 1))
"""Name and FFCV type number of each field, in file order: RGBImageField and IntField."""
PAGE_BYTES = 8 * 2**20
"""FFCV's default page size in bytes.

An image lies within one page, so an image above this size makes all pages larger.
"""
JPEG_MODE, RAW_MODE = 0, 1
"""FFCV's numbers for images stored as JPEG and for images stored as raw pixels."""

HEADER_DTYPE = np.dtype(
    {
        "names": "version num_fields page_size num_samples alloc_table_ptr".split(),
        "formats": "<u2 <u2 <u4 <u8 <u8".split(),
    },
    align=True,
)
FIELD_DTYPE = np.dtype([("type_id", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)], align=True)
METADATA_DTYPE = np.dtype(
    {
        "names": "mode width height offset label".split(),
        "formats": "u1 <u2 <u2 <u8 <i8".split(),
        "offsets": [0, 1, 3, 5, 16],
        "itemsize": 24,
    }
)
"""Row of the table that follows the field descriptors: one image's two FFCV fields. The label is 8-byte aligned."""
ALLOCATION_DTYPE = np.dtype([("sample", "<u8"), ("offset", "<u8"), ("size", "<u8")])
"""Row of the table at the end of the file, one per image."""
STORED_DTYPE = np.dtype(
    {
        "names": "offset size crc32 height width mode has_crc checked thorough".split(),
        "formats": "<u8 <u4 <u4 <u2 <u2 u1 u1 u1 u1".split(),
    },
    align=True,
)
"""One stored image, for the compiled decoder. Offset and size are in bytes, height and width in pixels.

`mode` is JPEG_MODE or RAW_MODE. If `has_crc` is 1 and `checked` is 0, the decoder compares `crc32` with the image's
bytes. If they match, it sets `checked` to 1. If `thorough` is 1, the decoder reads a JPEG completely up to the end of
the crop, even if restart markers would allow it to skip parts.
"""
METADATA_START = HEADER_DTYPE.itemsize + len(FIELDS) * FIELD_DTYPE.itemsize
COPY_AGAIN = "copy it again, or pack it again"


class Tables(NamedTuple):
    """Tables of a .beton: METADATA_DTYPE [num_images] and ALLOCATION_DTYPE [num_images].

    The CRC32 covers the bytes of header, field descriptors and both tables.
    """

    metadata: np.ndarray
    allocations: np.ndarray
    crc32: int


def partial_path(path: Path) -> Path:
    """Return the temporary path of a .beton while it is being written."""
    return path.with_name(f".{path.name}.partial")


def beton_tables(images: np.ndarray, labels: np.ndarray) -> tuple[bytes, bytes, int]:
    """Build the header and tables; the image bytes are already written.

    Args:
        images: array with the fields offset, size, height, width and mode of each image, such as STORED_DTYPE [N].
        labels: label of each image, integers [N].

    Returns:
        The first bytes of the file (header, field descriptors, metadata), its last bytes (allocations), and the offset
        of the last bytes.
    """
    descriptors = np.zeros(len(FIELDS), FIELD_DTYPE)
    for descriptor, (name, type_id) in zip(descriptors, FIELDS):
        descriptor["type_id"] = type_id
        descriptor["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
    metadata = np.zeros(len(images), METADATA_DTYPE)
    allocations = np.zeros(len(images), ALLOCATION_DTYPE)
    metadata["label"] = labels
    allocations["sample"] = np.arange(len(images))
    for table, keys in ((metadata, ("mode", "width", "height", "offset")), (allocations, ("offset", "size"))):
        for key in keys:
            table[key] = images[key]
    # FFCV finds an image's page by shifting its offset, so the page size is a power of two that fits every image.
    page_bytes = 1 << (max(int(images["size"].max()), PAGE_BYTES) - 1).bit_length()
    end = int((allocations["offset"] + allocations["size"]).max())
    end += -end % ALLOCATION_DTYPE["offset"].itemsize  # aligned
    header = np.array([(FFCV_FORMAT, len(FIELDS), page_bytes, len(images), end)], HEADER_DTYPE)
    return header.tobytes() + descriptors.tobytes() + metadata.tobytes(), allocations.tobytes(), end


def _read_header(path: Path, head: bytes, size: int) -> np.void:
    """Return the header in the first bytes of a .beton; raise ValueError if its fields or the file's size are wrong.

    Args:
        head: first bytes of the file.
        size: size of the whole file in bytes.
    """
    if len(head) < HEADER_DTYPE.itemsize:
        raise refuse(path, "be an FFCV .beton", f"has only {size} bytes")
    header = np.frombuffer(head, HEADER_DTYPE, count=1)[0]
    if header["version"] != FFCV_FORMAT:
        must, found = f"be an FFCV .beton (format {FFCV_FORMAT})", f"its first bytes say {header['version']}"
        raise refuse(path, must, found, "pass a file packed by this package")
    num_fields = min(int(header["num_fields"]), len(FIELDS))
    if len(head) < HEADER_DTYPE.itemsize + num_fields * FIELD_DTYPE.itemsize:
        raise refuse(path, "be complete", f"ends inside its header, at {size} bytes", COPY_AGAIN)
    descriptors = np.frombuffer(head, FIELD_DTYPE, offset=HEADER_DTYPE.itemsize, count=num_fields)
    names = [d["name"].tobytes().split(b"\0")[0].decode("ascii", "replace") for d in descriptors]
    found = tuple(zip(names, descriptors["type_id"].tolist()))
    if header["num_fields"] != len(FIELDS) or found != FIELDS:
        raise refuse(path, f"have the fields (name, FFCV type) {FIELDS}", f"has {header['num_fields']}: {found}, ...")
    if header["num_samples"] == 0:
        raise refuse(path, "contain images", "is empty")
    start = int(header["alloc_table_ptr"])
    num_images = int(header["num_samples"])
    end = start + num_images * ALLOCATION_DTYPE.itemsize
    if start < METADATA_START + num_images * METADATA_DTYPE.itemsize or size != end:
        raise refuse(path, f"have {end} bytes according to its header", f"has {size}", COPY_AGAIN)
    return header


@patiently
def read_tables(path: Path) -> Tables:
    """Read header and tables of a .beton.

    Raises:
        ValueError: the file is not an FFCV file, has other fields, contains no images, or is truncated.
        Unreadable: the disk failed.
    """
    with open(path, "rb") as file:
        head = file.read(METADATA_START)
        header = _read_header(path, head, os.fstat(file.fileno()).st_size)
        num_images = int(header["num_samples"])
        metadata_bytes = file.read(num_images * METADATA_DTYPE.itemsize)
        file.seek(int(header["alloc_table_ptr"]))
        allocation_bytes = file.read()
    crc32 = zlib.crc32(allocation_bytes, zlib.crc32(metadata_bytes, zlib.crc32(head)))
    metadata = np.frombuffer(metadata_bytes, METADATA_DTYPE, count=num_images)
    allocations = np.frombuffer(allocation_bytes, ALLOCATION_DTYPE, count=num_images)
    return Tables(metadata, allocations, crc32)


def check_beton(path: str | Path) -> BetonInfo:
    """Check a .beton and its side file as `read_beton` does, and return only the file's description."""
    return read_beton(path)[0]


def read_beton(path: str | Path) -> tuple[BetonInfo, np.ndarray, np.ndarray]:
    """Check a .beton and its side file without reading the images, and locate the images.

    Returns:
        The file's description; the location and checksum of each image, STORED_DTYPE [num_images]; and the label of
        each image, int64 [num_images].

    Raises:
        ValueError: the .beton is missing, unfinished, empty, truncated or of another format, or its side file is
            missing or does not match it.
        Unreadable: the disk failed.
    """
    path = Path(path)
    check_is_finished(path)
    tables = read_tables(path)
    values = read_side(path)
    values["classes"] = tuple(values["classes"])
    info = BetonInfo(path=path, **{key: values[key] for key in SIDE_KEYS})
    for key, found, must in (
        ("bytes", path.stat().st_size, "have {} bytes"),
        ("num_images", len(tables.metadata), "contain {} images"),
        ("tables_crc32", tables.crc32, "have tables of CRC32 {}"),
    ):
        if values[key] != found:
            side_says = must.format(values[key])
            raise refuse(path, f"{side_says} according to its side file", f"has {found}", "copy both files again")
    images = stored_images(path, tables)
    labels = tables.metadata["label"].astype(np.int64)
    check_labels(path, labels, num_classes=len(info.classes))
    lengths = values["lengths"]
    crc32s = values["crc32s"]
    if not (len(lengths) == len(crc32s) == info.num_images and (lengths == images["size"]).all()):
        must = f"list the length and CRC32 of the {info.num_images} images of the .beton"
        raise refuse(side_path(path), must, "its numbers differ", "copy both files again")
    images["crc32"] = crc32s
    images["has_crc"] = 1
    return info, images, labels


def stored_images(path: Path, tables: Tables) -> np.ndarray:
    """Return the location of each image from the tables of a .beton: STORED_DTYPE [num_images], without CRC32s.

    Raises:
        ValueError: an image has an invalid mode or size, or is not stored between the tables.
    """
    # FFCV's writer lists allocations as its processes finish them, so in no fixed order.
    places = tables.allocations[np.argsort(tables.allocations["sample"], kind="stable")]
    images = np.zeros(len(places), STORED_DTYPE)
    for key in ("offset", "height", "width", "mode"):
        images[key] = tables.metadata[key]
    images["size"] = np.minimum(places["size"], np.iinfo(np.uint32).max)
    start = METADATA_START + tables.metadata.nbytes
    end = np.uint64(path.stat().st_size - tables.allocations.nbytes)
    height, width, mode = (images[key].astype(np.int64) for key in ("height", "width", "mode"))
    size = images["size"].astype(np.int64)
    offset = images["offset"]
    for is_right, must in (
        (places["sample"] == np.arange(len(places)), "be listed once"),
        (places["offset"] == offset, "have the same offset in both tables"),
        ((offset >= start) & (offset <= end) & (places["size"] <= end - offset), "lie between the tables"),
        ((mode == JPEG_MODE) | (mode == RAW_MODE), f"have mode {JPEG_MODE} (JPEG) or {RAW_MODE} (pixels)"),
        ((height > 0) & (width > 0), "be at least 1 x 1 pixel"),
        ((mode == JPEG_MODE) | (size == 3 * height * width), "have three bytes per pixel if stored as pixels"),
    ):
        if not is_right.all():
            raise refuse(path, f"contain only images that {must}", f"image {np.argmin(is_right)} does not")
    return images


def check_labels(path: Path, labels: np.ndarray, *, num_classes: int) -> None:
    """Raise ValueError if a label of a .beton is not an index of a class. Without classes, all labels must be 0."""
    wrong = np.flatnonzero((labels < 0) | (labels >= max(1, num_classes)))
    if len(wrong):
        found = f"image {wrong[0]} has label {labels[wrong[0]]}"
        raise refuse(path, f"have labels in [0, {max(1, num_classes)})", found)


def beton_fingerprint(images: np.ndarray, labels: np.ndarray) -> int:
    """Return a hash of the labels and offsets of all images, in order."""
    return zlib.crc32(labels.tobytes(), zlib.crc32(images["offset"].tobytes()))


def check_is_finished(path: Path) -> None:
    """Raise ValueError if a .beton does not exist or is not completely packed."""
    if path.name.startswith(".") and path.name.endswith(".partial"):
        found, remedy = "is pack's temporary file", "rerun the same pack command"
        raise refuse(path, "be a finished .beton", found, remedy)
    if path.is_file():
        return
    if path.suffix != SUFFIX and not path.exists():
        raise ValueError(f"no file or folder at {str(path)!r}. Check the path.")
    found, remedy = "does not exist", "pass the path of a packed file, or pack one"
    if path.is_dir():
        found = "is a folder"
    elif partial_path(path).exists():
        found = "is still being packed, or its packing was interrupted"
        remedy = "wait, or rerun the same pack command, which continues"
    raise refuse(path, "be a .beton file", found, remedy)
