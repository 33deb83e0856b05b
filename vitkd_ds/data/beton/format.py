"""A .beton's header and tables, written and read, and the check of them and of the side file before training.

A ``<name>.beton`` holds two FFCV fields, ``image`` (RGB) and ``label`` (integer). FFCV's format stores neither class
names nor anything that would betray a damaged file: a .beton that lacks its last byte trains without a message, on a
wrong image. So ``<name>.beton.json`` lies beside it with the classes, the size in bytes, the CRC32 of all tables, and
length and CRC32 of every image; `check_beton` refuses what does not agree. FFCV itself is not imported here, and the
images are not read, so the check costs milliseconds (a tenth of a second at ImageNet's size).
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
"""Version in the header of every .beton that FFCV 1.0 writes and reads."""
FIELDS = (("image", 2), ("label", 1))
"""Name and FFCV type number of each field, in file order: RGBImageField and IntField."""
PAGE_BYTES = 8 * 2**20
"""FFCV's usual page, in bytes. No image crosses the end of its page, so one larger image makes all pages larger."""
JPEG_MODE, RAW_MODE = 0, 1
"""FFCV's marks of an image that is a JPEG, and of one that is pixels."""

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
"""A row of the table behind the field descriptors: FFCV's two fields side by side, the label aligned to 8 bytes."""
ALLOCATION_DTYPE = np.dtype([("sample", "<u8"), ("offset", "<u8"), ("size", "<u8")])
"""A row of the table at the end of the file; one row per image."""
STORED_DTYPE = np.dtype(
    {
        "names": "offset size crc32 height width mode has_crc checked thorough".split(),
        "formats": "<u8 <u4 <u4 <u2 <u2 u1 u1 u1 u1".split(),
    },
    align=True,
)
"""One image of a file, for our decoder: where its bytes are, height and width in pixels, and JPEG_MODE or RAW_MODE. If
`has_crc`, `crc32` is that of the bytes, compared when the image is read while `checked` is 0, which is then 1. If
`thorough`, all of a JPEG up to the end of the crop is read, though restart markers may allow to leave some out."""
METADATA_START = HEADER_DTYPE.itemsize + len(FIELDS) * FIELD_DTYPE.itemsize
COPY_AGAIN = "copy it again, or pack it again"


class Tables(NamedTuple):
    """METADATA_DTYPE [num_images], ALLOCATION_DTYPE [num_images], and the CRC32 of header, field descriptors and both
    tables as they stand in the file."""

    metadata: np.ndarray
    allocations: np.ndarray
    crc32: int


def partial_path(path: Path) -> Path:
    """Path at which the .beton `path` is written until it is complete."""
    return path.with_name(f".{path.name}.partial")


def beton_tables(images: np.ndarray, labels: np.ndarray) -> tuple[bytes, bytes, int]:
    """Make what a .beton holds besides its images' bytes, which are in place already.

    Args:
        images: an array with the fields offset, size, height, width and mode of each image, such as STORED_DTYPE [N].
        labels: integers [N], positions in the classes.

    Returns:
        The bytes that the file begins with (header, field descriptors, metadata), the bytes that it ends with
        (allocations), and the position at which the latter begin.
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
    # FFCV finds an image's page by shifting its position, so pages have a power of two and hold the largest image.
    page_bytes = 1 << (max(int(images["size"].max()), PAGE_BYTES) - 1).bit_length()
    end = int((allocations["offset"] + allocations["size"]).max())
    end += -end % ALLOCATION_DTYPE["offset"].itemsize  # aligned
    header = np.array([(FFCV_FORMAT, len(FIELDS), page_bytes, len(images), end)], HEADER_DTYPE)
    return header.tobytes() + descriptors.tobytes() + metadata.tobytes(), allocations.tobytes(), end


def _read_header(path: Path, head: bytes, size: int) -> np.void:
    """Read the header in the first bytes of a .beton of `size` bytes; check it against the fields and the size."""
    if len(head) < HEADER_DTYPE.itemsize:
        raise refuse(path, "be an FFCV .beton", f"has only {size} bytes")
    header = np.frombuffer(head, HEADER_DTYPE, count=1)[0]
    if header["version"] != FFCV_FORMAT:
        must, found = f"be an FFCV .beton (format {FFCV_FORMAT})", f"its first bytes say {header['version']}"
        raise refuse(path, must, found, "give a file that was packed by this package")
    num_fields = min(int(header["num_fields"]), len(FIELDS))
    if len(head) < HEADER_DTYPE.itemsize + num_fields * FIELD_DTYPE.itemsize:
        raise refuse(path, "be whole", f"ends inside its header, at {size} bytes", COPY_AGAIN)
    descriptors = np.frombuffer(head, FIELD_DTYPE, offset=HEADER_DTYPE.itemsize, count=num_fields)
    names = [d["name"].tobytes().split(b"\0")[0].decode("ascii", "replace") for d in descriptors]
    found = tuple(zip(names, descriptors["type_id"].tolist()))
    if header["num_fields"] != len(FIELDS) or found != FIELDS:
        raise refuse(path, f"have the fields (name, FFCV type) {FIELDS}", f"has {header['num_fields']}: {found}, ...")
    if header["num_samples"] == 0:
        raise refuse(path, "hold images", "is empty")
    start = int(header["alloc_table_ptr"])
    num_images = int(header["num_samples"])
    end = start + num_images * ALLOCATION_DTYPE.itemsize
    if start < METADATA_START + num_images * METADATA_DTYPE.itemsize or size != end:
        raise refuse(path, f"be {end} bytes long by its own header", f"is {size}", COPY_AGAIN)
    return header


@patiently
def read_tables(path: Path) -> Tables:
    """Read header and tables of a .beton.

    Raises:
        ValueError: another kind of file or fields, an empty one, or one that is cut short.
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
    """Check a .beton and its side file as `read_beton` does, and return its description."""
    return read_beton(path)[0]


def read_beton(path: str | Path) -> tuple[BetonInfo, np.ndarray, np.ndarray]:
    """Check a .beton and its side file without reading the images, and find where these are.

    Returns:
        The file's description; STORED_DTYPE [num_images]; labels int64 [num_images], positions in its classes.

    Raises:
        ValueError: the file is missing, still being written, no .beton, empty, cut short, of other fields, without its
            side file, or other than that says.
        Unreadable: the disk failed.
    """
    path = Path(path)
    _check_is_finished(path)
    tables = read_tables(path)
    values = read_side(path)
    values["classes"] = tuple(values["classes"])
    info = BetonInfo(path=path, **{key: values[key] for key in SIDE_KEYS})
    for key, found, must in (
        ("bytes", path.stat().st_size, "be {} bytes long"),
        ("num_images", len(tables.metadata), "hold {} images"),
        ("tables_crc32", tables.crc32, "have tables of CRC32 {}"),
    ):
        if values[key] != found:
            side_says = must.format(values[key])
            raise refuse(path, f"{side_says} by its side file", f"the file says {found}", "copy both files again")
    images = stored_images(path, tables)
    labels = tables.metadata["label"].astype(np.int64)
    check_labels(path, labels, num_classes=len(info.classes))
    lengths = values["lengths"]
    crc32s = values["crc32s"]
    if not (len(lengths) == len(crc32s) == info.num_images and (lengths == images["size"]).all()):
        must = f"give the length and CRC32 of the {info.num_images} images of the .beton"
        raise refuse(side_path(path), must, "its numbers are other ones", "copy both files again")
    images["crc32"] = crc32s
    images["has_crc"] = 1
    return info, images, labels


def stored_images(path: Path, tables: Tables) -> np.ndarray:
    """Find each image by the tables of the .beton `path`: STORED_DTYPE [num_images], without CRC32s. Raises ValueError
    if one is of no mode or size, or does not lie between the tables."""
    # FFCV's own writer lists the places in the order in which its processes finished.
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
        (places["offset"] == offset, "lie where both tables say"),
        ((offset >= start) & (offset <= end) & (places["size"] <= end - offset), "lie between the tables"),
        ((mode == JPEG_MODE) | (mode == RAW_MODE), f"have mode {JPEG_MODE} (JPEG) or {RAW_MODE} (pixels)"),
        ((height > 0) & (width > 0), "be at least 1 x 1 pixel"),
        ((mode == JPEG_MODE) | (size == 3 * height * width), "have three bytes per pixel where it is stored as pixels"),
    ):
        if not is_right.all():
            raise refuse(path, f"hold images that each {must}", f"image {np.argmin(is_right)} does not")
    return images


def check_labels(path: Path, labels: np.ndarray, *, num_classes: int) -> None:
    """Raise ValueError unless all labels of the .beton `path` are below the number of its classes, or 0 without any."""
    wrong = np.flatnonzero((labels < 0) | (labels >= max(1, num_classes)))
    if len(wrong):
        found = f"that of image {wrong[0]} is {labels[wrong[0]]}"
        raise refuse(path, f"have labels in [0, {max(1, num_classes)})", found)


def beton_fingerprint(images: np.ndarray, labels: np.ndarray) -> int:
    """A number that changes when images have other numbers, labels or places in the file."""
    return zlib.crc32(labels.tobytes(), zlib.crc32(images["offset"].tobytes()))


def _check_is_finished(path: Path) -> None:
    if path.name.startswith(".") and path.name.endswith(".partial"):
        found, remedy = "it is what pack writes until then", "give pack the same command again"
        raise refuse(path, "be a finished .beton", found, remedy)
    if path.is_file():
        return
    found, remedy = "does not exist", "give the path of a packed file, or pack one"
    if path.is_dir():
        found = "is a folder"
    elif partial_path(path).exists():
        found = "is still being packed, or its packing was interrupted"
        remedy = "wait, or give pack the same command again, which continues"
    raise refuse(path, "be a .beton file", found, remedy)
