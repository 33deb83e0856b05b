"""Packing one image file of every kind, size and damage: the stored bytes."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.data.beton.test_scans import scan_ends
from tests.data.test_image_file import GREY, PHOTO, TURNED, file_of, photograph, ycck, zeroed
from vitkd_ds.commands.pack.encode import NO_JPEG, ORIGINAL, REFUSED, SCALED, TOO_LARGE, Encoding, encode
from vitkd_ds.data.beton.decode import restart_interval
from vitkd_ds.data.beton.ffcv import RGBImageField
from vitkd_ds.data.image_file import load_rgb


def jpg(**changes):
    return Encoding(**dict(write_mode="jpg", max_resolution=0, short_side=0, quality=90, passthrough=False) | changes)


def passthrough(**changes):
    return jpg(passthrough=True, **changes)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "it is empty"),
        (b"not an image", "it is not an image"),
        (file_of(Image.fromarray(PHOTO), "JPEG", quality=95)[:-400], "damaged JPEG"),
        (file_of(Image.fromarray(PHOTO), "PNG")[:100], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is not an image"),
    ],
)
@pytest.mark.parametrize("encoding", [passthrough(), jpg(max_resolution=50)])
def test_damaged_files_and_files_that_are_not_images_are_rejected(content, reason, encoding):
    with pytest.raises((ValueError, OSError), match=reason):
        encode(content, encoding, number=0)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"kind": "MPO", "save_all": True}], ids=str)
@pytest.mark.parametrize("encoding", [passthrough(), jpg(), jpg(max_resolution=200), jpg(write_mode="raw")], ids=str)
def test_a_jpeg_with_a_damaged_scan_is_rejected_although_pillow_decodes_it(options, encoding):
    good = photograph(**options)
    content = zeroed(good)
    assert load_rgb(content).shape == (192, 256, 3)
    encode(good, encoding, number=0)
    with pytest.raises(ValueError, match="damaged JPEG"):
        encode(content, encoding, number=0)
    if "progressive" in options:
        lacking = good[: scan_ends(good)[2]] + b"\xff\xd9"
        assert load_rgb(lacking).shape == (192, 256, 3)
        with pytest.raises(ValueError, match="with missing scans"):
            encode(lacking, encoding, number=0)


@pytest.mark.parametrize("number", [0, 3, -1])
def test_a_damaged_segment_between_restart_markers_is_rejected_at_any_position(number):
    good = photograph(restart_marker_rows=1)
    ends = [at for at in range(len(good) - 1) if good[at] == 0xFF and 0xD0 <= good[at + 1] <= 0xD7]
    first, last = list(zip(ends, ends[1:]))[number]
    content = good[: first + 2] + bytes(last - first - 2) + good[last:]
    encode(good, passthrough(), number=0)
    with pytest.raises(ValueError, match="damaged JPEG"):
        encode(content, passthrough(), number=0)


@pytest.mark.parametrize("encoding", [passthrough(), jpg()], ids=str)
def test_a_lossless_jpeg_is_not_called_damaged(encoding):
    frame = b"\xff\xc3" + bytes([0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0])
    codes = b"\xff\xc4" + bytes([0, 20, 0, 1, *[0] * 15, 0])  # code "0": equal to the previous pixel
    scan = b"\xff\xda" + bytes([0, 8, 1, 1, 0, 1, 0, 0]) + bytes(8)
    content = b"\xff\xd8" + frame + codes + scan + b"\xff\xd9"
    assert (load_rgb(content) == np.full((8, 8, 3), 128)).all(), "Pillow's libjpeg knows the kind"
    with pytest.raises(ValueError, match="it is a JPEG of a kind that libjpeg cannot read, such as lossless"):
        encode(content, encoding, number=0)


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
@pytest.mark.parametrize(
    "encoding",
    [
        passthrough(),
        passthrough(restart_markers=True),
        jpg(),
        jpg(max_resolution=200),
        jpg(short_side=99),
        jpg(write_mode="raw"),
    ],
    ids=str,
)
def test_a_jpeg_that_lacks_only_its_end_marker_is_stored_with_the_pixels_of_the_whole_one(options, encoding):
    good = photograph(**options)
    whole = encode(good, encoding, number=0)
    for end in (-1, -2):
        stored = encode(good[:end], encoding, number=0)
        is_as_it_was = encoding.passthrough and not encoding.restart_markers
        assert stored == (replace(whole, content=good[:end]) if is_as_it_was else whole)
    with pytest.raises((ValueError, OSError)):
        encode(good[:-9], encoding, number=0)


def test_sizes_at_the_limits():
    pixel, panorama = (file_of(Image.new("RGB", size, (9, 9, 9)), "JPEG") for size in ((1, 1), (20_000, 30)))
    for encoding in (passthrough(), jpg(), jpg(write_mode="raw"), jpg(short_side=20)):
        stored = [encode(content, encoding, number=0) for content in (pixel, panorama)]
        assert (stored[0].height, stored[0].width) == (1, 1)
        assert (stored[1].height, stored[1].width) == ((20, 13333) if encoding.short_side else (30, 20_000))
    with pytest.raises(ValueError, match="30 x 20000 pixels cannot be scaled to 500 on the longer side, because"):
        encode(panorama, passthrough(max_resolution=500), number=0)
    with pytest.raises(ValueError, match="longer side has 65501 pixels; the format allows at most 65500"):
        encode(file_of(Image.new("RGB", (65501, 1)), "PNG"), jpg(), number=0)


@pytest.mark.parametrize("write_mode", ["jpg", "raw"])
@pytest.mark.parametrize("max_resolution", [0, 33, 500])
def test_encoding_equals_ffcvs(write_mode, max_resolution):
    encoding = jpg(write_mode=write_mode, max_resolution=max_resolution)
    stored = encode(file_of(Image.fromarray(PHOTO), "PNG"), encoding, number=3)
    field, kept = RGBImageField(write_mode, max_resolution or None, jpeg_quality=90), []
    row = np.zeros(1, field.metadata_type)
    field.encode(row, PHOTO, lambda size: (0, kept.append(np.zeros(size, np.uint8)) or kept[-1]))
    if write_mode == "raw":
        assert stored.content == kept[0].tobytes()
    else:  # with custom tables, and restart markers that divide the row
        np.testing.assert_array_equal(load_rgb(stored.content), load_rgb(kept[0].tobytes()))
        assert b"\xff\xdd\0\4" + restart_interval(stored.width, 16).to_bytes(2, "big") in stored.content
    assert (stored.mode, stored.height, stored.width) == tuple(row[0][["mode", "height", "width"]])


def test_the_shorter_side_is_scaled_down_by_pillow_and_never_up():
    content = file_of(Image.fromarray(PHOTO), "PNG")
    stored = encode(content, jpg(write_mode="raw", short_side=45), number=0)
    expected = Image.fromarray(PHOTO).resize((60, 45), Image.Resampling.BICUBIC)
    assert (stored.height, stored.width) == (45, 60) and stored.content == np.array(expected).tobytes()
    turned = encode(file_of(Image.fromarray(PHOTO).rotate(90, expand=True), "PNG"), jpg(short_side=45), number=0)
    assert (turned.height, turned.width) == (60, 45)
    assert encode(content, jpg(write_mode="raw", short_side=61), number=0).content == PHOTO.tobytes()


def test_plain_and_grey_jpegs_pass_through_and_others_are_encoded_with_a_reason():
    grey, photo = (file_of(Image.fromarray(pixels), "JPEG") for pixels in (GREY, PHOTO))
    assert encode(grey, passthrough(), number=0).content == grey
    fine = {"quality": 100, "subsampling": 0}
    for options in ({}, {"progressive": True}, fine, {"keep_rgb": True}, {"exif": TURNED}):
        content = file_of(Image.fromarray(PHOTO), "JPEG", **options)
        stored = encode(content, passthrough(), number=0)
        assert (stored.content, stored.origin) == (content, ORIGINAL)
        assert (stored.mode, stored.height, stored.width) == (0, 60, 80)
    png, cmyk = file_of(Image.fromarray(PHOTO), "PNG"), file_of(Image.new("CMYK", (20, 10)), "JPEG")
    with_more_behind = file_of(Image.fromarray(PHOTO), "MPO", save_all=True, append_images=[Image.fromarray(PHOTO)])
    for content in (png, cmyk, ycck(), with_more_behind):
        stored = encode(content, passthrough(), number=0)
        assert stored.origin == NO_JPEG and Image.open(io.BytesIO(stored.content)).mode == "RGB"
        assert stored.content[:2] == b"\xff\xd8"
    for larger in ({"max_resolution": 79}, {"short_side": 59}):
        assert encode(photo, passthrough(**larger), number=0).origin == SCALED
    for as_large in ({"max_resolution": 80}, {"short_side": 60}):
        assert encode(photo, passthrough(**as_large), number=0).origin == ORIGINAL
    too_long = photo + bytes(8 * 2**20)
    assert encode(too_long, passthrough(), number=0).origin == TOO_LARGE


def test_originals_get_restart_markers_on_request_and_keep_their_pixels():
    for options in ({}, {"progressive": True}, {"keep_rgb": True}, {"exif": TURNED}):
        content = file_of(Image.fromarray(PHOTO), "JPEG", **options)
        stored = encode(content, passthrough(restart_markers=True), number=0)
        assert stored.origin == ORIGINAL and b"\xff\xdd\0\4" in stored.content and b"\xff\xc0" in stored.content
        np.testing.assert_array_equal(load_rgb(stored.content), load_rgb(content))
    with pytest.raises(ValueError, match="restart_markers needs passthrough"):
        jpg(restart_markers=True)


def test_an_original_stays_unchanged_if_markers_would_change_a_pixel_or_cannot_be_added(monkeypatch):
    content, other = (file_of(Image.fromarray(pixels), "JPEG") for pixels in (PHOTO, PHOTO // 2))
    for marked in (other, None):
        monkeypatch.setattr("vitkd_ds.commands.pack.encode.with_restart_markers", lambda jpeg, marked=marked: marked)
        assert encode(content, passthrough(restart_markers=True), number=0).content == content


@pytest.mark.slow
def test_a_progressive_jpeg_that_libjpeg_cannot_hold_is_encoded_instead():
    huge = file_of(Image.new("L", (9500, 9500)).convert("RGB"), "JPEG", progressive=True, subsampling=0)
    assert encode(huge, passthrough(), number=0).origin == REFUSED
