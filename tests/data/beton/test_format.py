"""An incomplete .beton is rejected before training, with the reason."""

import io
import json
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from vitkd_ds.data.beton import format as beton_format
from vitkd_ds.data.beton.ffcv import IntField, Reader, RGBImageField
from vitkd_ds.data.beton.format import check_beton, partial_path, read_beton, read_tables
from vitkd_ds.data.beton.side_file import side_path

HEADER_DTYPE, METADATA_START = beton_format.HEADER_DTYPE, beton_format.METADATA_START


@pytest.fixture
def copy(beton, tmp_path):
    """A copy of the .beton and its side file, for tests that damage it."""
    for path in (beton, side_path(beton)):
        shutil.copy(path, tmp_path)
    return tmp_path / beton.name


def test_a_whole_file_is_described_by_its_side_file(beton):
    info = check_beton(str(beton))
    assert info.path == beton and info.num_images == 22 and info.classes == ("a", "b")
    assert info.bytes == beton.stat().st_size and info.write_mode == "jpg"
    assert (info.max_height, info.max_width) == (90, 100)
    assert (info.max_resolution, info.short_side, info.passthrough, info.shuffled) == (500, 0, 0, False)


def test_our_layout_of_header_and_tables_equals_ffcvs(beton):
    from ffcv import types

    assert HEADER_DTYPE == types.HeaderType and beton_format.FIELD_DTYPE == types.FieldDescType
    assert [type_id for _, type_id in beton_format.FIELDS] == [
        number for field in (RGBImageField, IntField) for number, kind in types.TYPE_ID_HANDLER.items() if kind is field
    ]
    reader, tables = Reader(str(beton)), read_tables(beton)
    assert reader.metadata.dtype.itemsize == beton_format.METADATA_DTYPE.itemsize
    for key, theirs in {"mode": "mode", "width": "width", "height": "height", "offset": "data_ptr"}.items():
        assert tables.metadata[key].tolist() == reader.metadata["f0"][theirs].tolist()
    assert tables.metadata["label"].tolist() == reader.metadata["f1"].tolist()
    for key, theirs in (("sample", "sample_id"), ("offset", "ptr"), ("size", "size")):
        assert tables.allocations[key].tolist() == reader.alloc_table[theirs].tolist()
    # FFCV reads whole pages and computes an image's page by shifting its offset.
    last = tables.allocations["offset"] + tables.allocations["size"] - 1
    assert (tables.allocations["offset"] // reader.page_size == last // reader.page_size).all()


@pytest.mark.cold
def test_images_and_labels_are_found_without_ffcv_and_tables_survive_a_round_trip(beton):
    (_, images, labels), content = read_beton(beton), beton.read_bytes()
    assert labels.dtype == np.int64 and labels.tolist() == [0] * 11 + [1] * 11
    assert len(images) == 22 and images["has_crc"].all() and not images["checked"].any()
    for image in images:
        stored = content[image["offset"] : image["offset"] + image["size"]]
        assert zlib.crc32(stored) == image["crc32"]
        assert Image.open(io.BytesIO(stored)).size == (image["width"], image["height"])
    head, tail, end = beton_format.beton_tables(images, labels)
    assert content[: len(head)] == head and content[end:] == tail
    code = "import sys; from vitkd_ds.data.beton.format import read_beton; read_beton(sys.argv[1])"
    code += "; sys.exit('ffcv' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, beton], check=True, timeout=60)


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def zeroed(content, field):
    start = HEADER_DTYPE.fields[field][1]
    return content[:start] + bytes(8) + content[start + 8 :]


BAD_CRC, BAD_SIZE = "beton' must have tables of CRC32", "bytes according to its header"


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda content, end: flipped(content, 4), BAD_CRC),
        (lambda content, end: flipped(content, METADATA_START - 1), BAD_CRC),
        (lambda content, end: flipped(content, METADATA_START + 24 + 16), BAD_CRC),
        (lambda content, end: flipped(content, end + 40), BAD_CRC),
        (lambda content, end: content[: METADATA_START + 100], BAD_SIZE),
        (lambda content, end: content[:METADATA_START], BAD_SIZE),
        (lambda content, end: content[: HEADER_DTYPE.itemsize], "must be complete"),
        (lambda content, end: content[:end], BAD_SIZE),
        (lambda content, end: content[: end + 252], BAD_SIZE),
        (lambda content, end: content[: len(content) // 2], BAD_SIZE),
        (lambda content, end: content[:-1], BAD_SIZE),
        (lambda content, end: zeroed(content, "alloc_table_ptr"), BAD_SIZE),
        (lambda content, end: zeroed(content, "num_samples"), "is empty"),
        (lambda content, end: b"", "has only 0 bytes"),
        (lambda content, end: b"0123456789", "has only 10 bytes"),
        (lambda content, end: b"\x89PNG" * 5000, "must be an FFCV .beton"),
        (lambda content, end: b"\x02\x00\x02\x00" + bytes(60), "ends inside its header"),
    ],
)
def test_a_damaged_truncated_or_foreign_file_is_rejected(copy, damage, message):
    content = copy.read_bytes()
    copy.write_bytes(damage(content, int(np.frombuffer(content, HEADER_DTYPE, count=1)[0]["alloc_table_ptr"])))
    with pytest.raises(ValueError, match=message):
        check_beton(copy)


def test_a_missing_or_unfinished_file_a_folder_and_a_missing_side_file_are_rejected(tmp_path, copy):
    side_path(copy).unlink()
    partial = partial_path(tmp_path / "new.beton")
    partial.write_bytes(b"")
    for path, message in [
        (tmp_path / "no.beton", "does not exist"),
        (tmp_path, "is a folder"),
        (copy, "must have its side file"),
        (tmp_path / "new.beton", "still being packed, or its packing was interrupted"),
        (partial, "must be a finished .beton"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_beton(path)


@pytest.mark.parametrize("names", [("picture", "label"), ("label", "image"), ("image",), ("image", "label", "age")])
def test_other_fields_are_rejected(tmp_path, names):
    from ffcv.writer import DatasetWriter  # only after vitkd_ds has imported ffcv safely

    path, image = tmp_path / "other.beton", np.zeros((4, 4, 3), np.uint8)
    is_image = [name in ("image", "picture") for name in names]
    fields = {name: RGBImageField() if is_image[i] else IntField() for i, name in enumerate(names)}
    samples = [tuple(image if is_image[i] else number for i in range(len(names))) for number in range(2)]
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(samples)
    with pytest.raises(ValueError, match="must have the fields"):
        check_beton(path)


@pytest.mark.parametrize(
    "change, message",
    [
        *[(text, "must (be JSON|have format)") for text in ("", "[1]", "{", "7")],
        ({"bytes": 1}, "must have 1 bytes according to its side file"),
        ({"num_images": 3}, "must contain 3 images"),
        ({"format": 99}, "must have format 2"),
        ({"classes": None}, "classes is missing"),
        ({"lengths": None}, "lengths is missing"),
        ({"classes": 5}, "classes has another"),
        ({"classes": [1, 2]}, "classes has another"),
        ({"classes": ["a", "a"]}, "list each class once"),
        ({"shuffled": "no"}, "shuffled has another"),
        ({"num_images": "22"}, "num_images has another"),
        ({"source": 5}, "source has another"),
        ({"tables_crc32": 7}, "must have tables of CRC32 7 according to its side file"),
        ({"lengths": "AAAA"}, "must contain 32-bit numbers in base64 as 'lengths'"),
        ({"crc32s": "no base64!"}, "must contain 32-bit numbers in base64 as 'crc32s'"),
        ({"crc32s": 5}, "must contain 32-bit numbers in base64 as 'crc32s'"),
        ({"crc32s": "AAAAAA=="}, "must list the length and CRC32 of the 22 images"),
        ({"lengths": "AAAA" * 29 + "AA=="}, "must list the length and CRC32 of the 22 images"),
    ],
)
def test_a_side_file_that_disagrees_or_is_not_a_json_object_is_rejected(copy, change, message):
    if isinstance(change, dict):
        values = json.loads(side_path(copy).read_text()) | change
        change = json.dumps({key: value for key, value in values.items() if value is not None})
    side_path(copy).write_text(change)
    with pytest.raises(ValueError, match=message):
        check_beton(copy)


def forged(path, key, value):
    """The .beton with one changed value in the table row of image 3, and a matching side file."""
    content, tables = bytearray(path.read_bytes()), read_tables(path)
    table, start = tables.metadata.copy(), METADATA_START
    if key in ("sample", "size"):
        table, start = tables.allocations.copy(), len(content) - tables.allocations.nbytes
    table[key][3] = value
    content[start : start + table.nbytes] = table.tobytes()
    path.write_bytes(content)
    side = json.loads(side_path(path).read_text()) | {"tables_crc32": read_tables(path).crc32}
    side_path(path).write_text(json.dumps(side))


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("height", 0, "be at least 1 x 1 pixel, but image 3"),
        ("width", 0, "be at least 1 x 1 pixel, but image 3"),
        ("mode", 2, "have mode 0 .* or 1 .*, but image 3"),
        ("mode", 1, "three bytes per pixel .*, but image 3"),
        ("label", -1, r"labels in \[0, 2\), but image 3 has label -1"),
        ("label", 2, r"labels in \[0, 2\), but image 3 has label 2"),
        ("offset", 40, "have the same offset in both tables, but image 3"),
        ("sample", 5, "be listed once, but image 3"),
        ("size", 2**40, "lie between the tables, but image 3"),
        ("size", 2**64 - 1, "lie between the tables, but image 3"),
    ],
)
def test_impossible_table_values_are_rejected_even_with_matching_checksums(copy, key, value, message):
    forged(copy, key, value)
    with pytest.raises(ValueError, match=f"beton' must (contain only images that |have ).*{message}"):
        check_beton(copy)
