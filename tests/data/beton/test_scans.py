"""Missing scans in multi-scan JPEGs, detected as by a parser of the scan headers and by Pillow's pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.data.beton.test_decode import crop_row, decode_rows, jpeg, photo, pixels_of  # noqa: F401
from vitkd_ds.data.beton.decode import DECODED, MISSING_SCANS
from vitkd_ds.data.beton.verify import jpeg_status

SIZE = (48, 64)
END = b"\xff\xd9"
SOF0, SOF2, SOS = 0xC0, 0xC2, 0xDA
INSIDE = (0, *range(0xD0, 0xD8))
"""The byte after 0xFF inside a scan: a stuffed 0, or a restart marker."""


def segments_of(file):
    """Marker code, position and content of each segment of a JPEG, by the segments' stated lengths."""
    at = 2
    while file[at : at + 2] != END:
        code, length = file[at + 1], int.from_bytes(file[at + 2 : at + 4], "big")
        yield code, at, file[at + 4 : at + 2 + length]
        at += 2 + length
        while code == SOS and (file[at] != 0xFF or file[at + 1] in INSIDE):
            at += 1


def is_complete(file):
    """Whether every coefficient of each component is sent to its last bit, judged by scan headers only."""
    bits_left = {}
    for code, _, content in segments_of(file):
        if code in (SOF0, SOF2):
            bits_left = {content[6 + 3 * i]: [None] * 64 for i in range(content[5])}
        if code == SOS:
            first, last, before, low = *content[-3:-1], content[-1] >> 4 or None, content[-1] & 15
            for number in content[1 : 1 + 2 * content[0] : 2]:
                for k in range(first, last + 1):
                    bits_left[number][k] = low if bits_left[number][k] == before else None
    return all(bits == 0 for component in bits_left.values() for bits in component)


def scan_ends(file):
    """End position of each scan."""
    places = [(code, at) for code, at, _ in segments_of(file)]
    scans = [i for i, (code, _) in enumerate(places) if code == SOS]
    return [places[i + 1][1] for i in scans[:-1]] + [len(file) - 2]


def one_scan_per_component(pixels):
    """A sequential 4:4:4 JPEG with a separate scan per component."""
    files = [jpeg(pixels[:, :, i], mode="L") for i in range(3)]
    parts = [{code: at for code, at, _ in segments_of(file)} for file in files]
    frame, scan = parts[0][SOF0], parts[0][SOS]
    height_and_width = files[0][frame + 5 : frame + 9]
    components = bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    head = files[0][:frame] + b"\xff\xc0\0\x11\x08" + height_and_width + b"\3" + components
    content = head + files[0][frame + 13 : scan]
    for i, file in enumerate(files):
        start = parts[i][SOS]
        content += file[start : start + 5] + bytes([i + 1]) + file[start + 6 : -2]
    return content + END


KINDS = {
    "4:4:4": lambda: jpeg(photo(*SIZE), progressive=True, subsampling=0),
    "4:2:0": lambda: jpeg(photo(*SIZE), progressive=True, subsampling=2),
    "grey": lambda: jpeg(photo(*SIZE), progressive=True, mode="L"),
    "rgb": lambda: jpeg(photo(*SIZE), progressive=True, keep_rgb=True),
    "restarts": lambda: jpeg(photo(*SIZE), progressive=True, restart_marker_rows=1),
    "sequential": lambda: one_scan_per_component(photo(*SIZE)),
}


def status_of(file):
    return jpeg_status(file, height=SIZE[0], width=SIZE[1])


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_jpeg_is_whole_only_with_all_of_its_scans(make, decode_rows):  # noqa: F811
    file = make()
    ends = scan_ends(file)
    assert len(ends) >= 3
    for end in ends:
        cut = file[:end] + END
        assert is_complete(cut) == (end == ends[-1])
        expected = DECODED if is_complete(cut) else MISSING_SCANS
        assert [status_of(content) for content in (cut, cut[:-2])] == [expected] * 2, end
    rows = crop_row(box=(0, 0, *SIZE), resized=SIZE, filter=0)
    rows["window_left"] = SIZE[1] - SIZE[0]
    (image,), _, _ = decode_rows([file], [SIZE], rows, SIZE[0])
    np.testing.assert_array_equal(image, pixels_of(file)[:, SIZE[1] - SIZE[0] :])


def test_a_scan_missing_in_the_middle_is_detected_although_libjpeg_reports_nothing(decode_rows):  # noqa: F811
    file = jpeg(photo(*SIZE), progressive=True, subsampling=2)
    ends = scan_ends(file)
    for first, end in zip(ends, ends[1:]):
        lacking = file[:first] + file[end:]
        assert not is_complete(lacking) and Image.open(io.BytesIO(lacking)).convert("RGB").size == SIZE[::-1]
        assert status_of(lacking) != DECODED


def test_an_incomplete_jpeg_packed_by_an_earlier_version_has_the_same_pixels_in_any_crop(
    decode_rows,  # noqa: F811
):
    file = jpeg(photo(64, 64), progressive=True)
    file = b"\xff\xda".join(file.split(b"\xff\xda")[:3]) + END
    rows = crop_row(box=(0, 0, 64, 64), resized=(64, 64))
    (black,), status, _ = decode_rows([file], [(64, 64)], rows, 64)
    assert status[0] == MISSING_SCANS and not black.any()
    (whole,), status, _ = decode_rows([file], [(64, 64)], rows, 64, crc=True)
    (part,), _, _ = decode_rows([file], [(64, 64)], crop_row(box=(21, 30, 9, 9), resized=(9, 9)), 9, crc=True)
    assert status[0] == DECODED
    np.testing.assert_array_equal(part, whole[21:30, 30:39])
