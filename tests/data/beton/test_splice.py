"""JPEGs with restart markers: a crop reads only the segments it needs, with the pixels of the full decode."""

import io
import math
import re
from itertools import product

import numpy as np
import pytest
from PIL import Image

from tests.data.beton.test_decode import ENCODINGS, crop_row, decode_rows, jpeg, photo, pixels_of, stored  # noqa: F401
from tests.data.test_image_file import TURNED, photograph, zeroed
from vitkd_ds.data.beton.decode import BAD_JPEG, DECODED, restart_interval, with_restart_markers

HEIGHT, WIDTH = 75, 130
KINDS = {"4:4:4": {"subsampling": 0}, "4:2:2": {"subsampling": 1}, "4:2:0": {"subsampling": 2}, "grey": {"mode": "L"}}
RESTARTS = [{"restart_marker_blocks": interval} for interval in (1, 3)] + [{"restart_marker_rows": 1}]


def segments_of(file):
    """Header, the segments between restart markers, and the marker that ends each of them."""
    scan = file.index(b"\xff\xda") + 2
    scan += int.from_bytes(file[scan : scan + 2], "big")
    parts = re.split(rb"(\xff[\xd0-\xd9])", file[scan:])
    return file[:scan], parts[0:-1:2], parts[1::2]


def joined(header, segments, markers):
    return header + b"".join(segment + marker for segment, marker in zip(segments, markers, strict=True))


@pytest.fixture
def decode_box(decode_rows):  # noqa: F811
    """A function that decodes the crop (top, left, height, width), resized to 16 x 16 pixels: (pixels, status)."""

    def run(file, box, *, thorough=False):
        table = stored([file], [(HEIGHT, WIDTH)])
        table["thorough"] = thorough
        images, status, _ = decode_rows([file], None, crop_row(box=box, resized=(16, 16)), 16, table=table)
        return images[0], status[0]

    return run


@pytest.mark.parametrize("options", RESTARTS, ids=str)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_crop_has_the_pixels_of_the_full_decode_at_any_position(kind, options, decode_rows):  # noqa: F811
    file = jpeg(photo(HEIGHT, WIDTH), **kind, **options)
    whole = pixels_of(file)
    for size in (1, 16, 33):
        # Around segment edges, where chroma is interpolated with samples beyond the edge.
        edges = [
            sorted({min(max(0, k), side - size) for k in near})
            for side, near in (
                (HEIGHT, (0, 7, 8, 9, 15, 16, 17, 31, 32, 33, 99)),
                (WIDTH, (0, 7, 8, 15, 16, 17, 47, 48, 49, 79, 96, 999)),
            )
        ]
        boxes = [(top, left, size, size) for top, left in product(*edges)]
        rows = np.concatenate([crop_row(box=box, resized=(size, size)) for box in boxes])
        images, status, _ = decode_rows([file], [(HEIGHT, WIDTH)], rows, size)
        assert (status == DECODED).all()
        for image, (top, left, *_) in zip(images, boxes):
            np.testing.assert_array_equal(image, whole[top : top + size, left : left + size], str((top, left)))


@pytest.mark.parametrize("kind, row_mcus", [({"subsampling": 2}, 9), ({"mode": "L"}, 17)], ids=str)
def test_segments_outside_a_crop_are_read_only_in_thorough_mode(kind, row_mcus, decode_box):
    header, segments, markers = segments_of(jpeg(photo(HEIGHT, WIDTH), **kind, restart_marker_blocks=1))
    whole, num_rows = pixels_of(joined(header, segments, markers)), -(-len(segments) // row_mcus)
    mcu = -(-HEIGHT // num_rows // 8) * 8
    # Inside four MCUs: interpolation needs nothing beyond them except one pixel of margin.
    row, column = 1, 2
    box = (row * mcu + 1, column * mcu + 1, 2 * mcu - 2, 2 * mcu - 2)
    right = max(-(-(box[1] + box[3] + 1) // mcu), -(-(box[1] + 31) // mcu))
    needed = {y * row_mcus + x for y in (row, row + 1) for x in range(column, right)}
    damaged = [segment if i in needed else b"\x5a" * 9 for i, segment in enumerate(segments)]
    file = joined(header, damaged, markers)
    (image, status), (_, thorough) = decode_box(file, box), decode_box(file, box, thorough=True)
    assert (status, thorough) == (DECODED, BAD_JPEG)
    expected = Image.fromarray(whole).crop((box[1], box[0], box[1] + box[3], box[0] + box[2]))
    np.testing.assert_array_equal(image, np.array(expected.resize((16, 16), Image.Resampling.BICUBIC)))
    for index in needed:
        lacking = [b"" if i == index else segment for i, segment in enumerate(segments)]
        assert decode_box(joined(header, lacking, markers), box)[1] == BAD_JPEG


@pytest.mark.parametrize(
    "change", [lambda s, n=n: s + b"\x5a" * n for n in range(1, 12)] + [lambda s, n=n: s[:-n] for n in range(1, 6)]
)
def test_a_segment_with_an_extra_or_missing_byte_counts_as_damaged(change, decode_box):
    header, segments, markers = segments_of(jpeg(photo(HEIGHT, WIDTH), subsampling=2, restart_marker_blocks=3))
    assert decode_box(joined(header, segments, markers), (0, 0, HEIGHT, WIDTH))[1] == DECODED
    for index in (0, 4, len(segments) - 2):
        changed = [change(segment) if i == index else segment for i, segment in enumerate(segments)]
        assert decode_box(joined(header, changed, markers), (0, 0, HEIGHT, WIDTH))[1] == BAD_JPEG


def test_markers_out_of_order_are_left_to_libjpeg(decode_box):
    file = jpeg(photo(HEIGHT, WIDTH), subsampling=2, restart_marker_blocks=3)
    header, segments, markers = segments_of(file)
    box, early = (HEIGHT - 16, WIDTH - 16, 16, 16), (0, 0, 14, 16)
    expected, _ = decode_box(file, box)
    interval = file.index(b"\xff\xdd") + 5
    harmless = [
        joined(
            header, segments, [b"\xff" + marker if i == 3 else marker for i, marker in enumerate(markers)]
        ),  # a fill byte
        header[:2] + b"\1\2\3" + header[2:] + file[len(header) :],
    ]
    for content in harmless:
        image, status = decode_box(content, box)
        assert status == DECODED
        np.testing.assert_array_equal(image, expected)
    broken = [
        joined(header, segments, markers[:4] + [markers[5], markers[4]] + markers[6:]),
        joined(header, segments[:4] + segments[5:], markers[:4] + markers[5:]),
        file[:interval] + bytes([2]) + file[interval + 1 :],
    ]
    for content in broken[:2]:
        assert decode_box(content, early)[1] == DECODED
    assert [decode_box(content, box)[1] for content in broken] == [BAD_JPEG] * 3


def test_the_end_of_a_scan_is_checked_if_the_crop_reaches_it(decode_box):
    last, before = (HEIGHT - 16, 20, 16, 16), (HEIGHT - 17, 20, 16, 16)
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 3}):
        file = jpeg(photo(HEIGHT, WIDTH), subsampling=0, **options)
        expected, status = decode_box(file, last)
        image, without_end = decode_box(file[:-2], last)
        assert status == without_end == DECODED
        np.testing.assert_array_equal(image, expected)
        left_over = file[:-2] + bytes(20) + file[-2:]
        # A progressive JPEG is read completely for any crop.
        assert decode_box(left_over, before)[1] == (BAD_JPEG if "progressive" in options else DECODED)
        found = [decode_box(content, last)[1] for content in (left_over, file[:-3], file[:-3] + file[-2:])]
        assert found == [BAD_JPEG] * 3 or "restart_marker_blocks" in options
        found = [decode_box(content, last, thorough=True)[1] for content in (left_over, file[:-3])]
        assert found == [BAD_JPEG] * 2


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_restart_markers_are_added_to_any_jpeg_without_a_change_of_pixels(encode, decode_box):
    file = encode(photo(HEIGHT, WIDTH))
    marked = with_restart_markers(file)
    np.testing.assert_array_equal(pixels_of(marked), pixels_of(file))
    header, segments, _ = segments_of(marked)
    assert b"\xff\xc0" in header and marked.count(b"\xff\xda") == 1  # one baseline scan
    interval = int.from_bytes(header[header.index(b"\xff\xdd") + 4 :][:2], "big")
    assert len(segments) > 1 and not -(-WIDTH // restart_pixels(marked)) % interval
    assert decode_box(marked, (20, 30, 16, 16))[1] == DECODED


def restart_pixels(file):
    """Width of one MCU, from the frame header of a baseline JPEG."""
    frame = file.index(b"\xff\xc0")
    factors = [file[frame + 11 + 3 * i] >> 4 for i in range(file[frame + 9])]
    return 8 * max(factors) if len(factors) > 1 else 8


def test_jpegs_without_an_equivalent_are_not_transcoded_and_metadata_is_dropped():
    assert with_restart_markers(jpeg(photo(40, 50), format="PNG")) is None
    assert with_restart_markers(b"") is None
    good = photograph()
    assert with_restart_markers(zeroed(good)) is None and with_restart_markers(good[:-400]) is None
    turned = with_restart_markers(jpeg(photo(40, 50), exif=TURNED, comment=b"secret"))
    assert not Image.open(io.BytesIO(turned)).getexif() and b"secret" not in turned


def test_restart_intervals_divide_the_row_and_are_near_32_pixels():
    for mcu_width, row_mcus in product((8, 16, 32), range(1, 200)):
        divisors = [interval for interval in range(1, row_mcus + 1) if row_mcus % interval == 0]
        expected = min(divisors, key=lambda interval: (abs(math.log2(interval * mcu_width / 32)), interval))
        for width in (mcu_width * row_mcus, mcu_width * (row_mcus - 1) + 1):
            assert restart_interval(width, mcu_width) == expected
