"""One image at a time: every colour mode, size and damage, and what is stored of each."""

import io
import struct
import zipfile
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from vitkd_ds.commands.pack.encode import NO_JPEG, ORIGINAL, REFUSED, SCALED, TOO_LARGE, Encoding, encode
from vitkd_ds.data.beton.ffcv import RGBImageField
from vitkd_ds.data.beton.format import PAGE_BYTES
from vitkd_ds.data.demo import ARCHIVE
from vitkd_ds.data.image_file import load_rgb

GREY = np.arange(0, 250, dtype=np.uint8).reshape(10, 25)
SIXTEEN_BIT = GREY.astype(np.uint16) * 256 + 37
PHOTO = np.stack([np.add.outer(np.arange(60), np.arange(80)) + 30 * c for c in range(3)], axis=2).astype(np.uint8)


def file_of(image, kind, **options):
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(seed=0, kind="JPEG", **options):
    """A photograph of the demo, enlarged and made noisy so that all coefficients occur, as the bytes of a JPEG."""
    with zipfile.ZipFile(ARCHIVE) as archive, archive.open("train.beton") as beton:
        beton.seek(PAGE_BYTES + seed * 28 * 28 * 3)
        image = Image.frombytes("RGB", (28, 28), beton.read(28 * 28 * 3)).resize((256, 192))
    noise = np.random.default_rng(seed).normal(0, 12, (192, 256, 3))
    image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    if kind == "MPO":
        options |= {"append_images": [Image.new("RGB", (9, 9))]}
    return file_of(image, kind, **options)


def zeroed(content, count=512):
    """The file with `count` zeros in the middle of its scan."""
    middle = (content.index(b"\xff\xda") + len(content)) // 2
    return content[:middle] + bytes(count) + content[middle + count :]


def passthrough(**changes):
    return Encoding(**{"write_mode": "jpg", "max_resolution": 0, "short_side": 0, "quality": 90, "passthrough": True}
                    | changes)  # fmt: skip


def jpg(**changes):
    return passthrough(passthrough=False, **changes)


@pytest.mark.parametrize("kind, image", [
    ("PNG", Image.fromarray(GREY)),
    ("PNG", Image.fromarray(SIXTEEN_BIT)),
    ("TIFF", Image.fromarray(SIXTEEN_BIT)),
    ("TIFF", Image.fromarray(SIXTEEN_BIT.astype(np.int32))),
    ("PNG", Image.fromarray(GREY).convert("P")),
    ("PNG", Image.fromarray(GREY).convert("LA")),
    ("PNG", Image.fromarray(GREY).convert("RGBA")),
    ("TIFF", Image.fromarray(GREY).convert("RGB").convert("CMYK")),
    ("GIF", Image.fromarray(GREY)),
    ("BMP", Image.fromarray(GREY)),
    ("PPM", Image.fromarray(GREY)),
])  # fmt: skip
def test_every_colour_mode_becomes_rgb(kind, image):
    expected = np.repeat(GREY[:, :, None], 3, axis=2)
    found = load_rgb(file_of(image, kind))
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found.astype(int), expected, atol=1 if image.mode == "CMYK" else 0)


def test_sixteen_bit_colours_keep_their_upper_bits():
    content = cv2.imencode(".png", PHOTO[:, :, ::-1].astype(np.uint16) * 256 + 200)[1].tobytes()
    assert content[24] == 16 and np.array_equal(load_rgb(content), PHOTO)


def test_black_and_white_and_transparency_become_rgb():
    bits = load_rgb(file_of(Image.fromarray(GREY > 100), "PNG"))
    assert bits.shape == (10, 25, 3) and set(np.unique(bits)) == {0, 255}
    palette = file_of(Image.fromarray(GREY).convert("P"), "PNG", transparency=bytes([0, 128, 255]))
    grey = file_of(Image.fromarray(GREY), "PNG", transparency=7)
    rgb = file_of(Image.fromarray(PHOTO), "PNG", transparency=(1, 2, 3))
    for content, shape in ((palette, (10, 25, 3)), (grey, (10, 25, 3)), (rgb, (60, 80, 3))):
        assert load_rgb(content).shape == shape
    assert np.array_equal(load_rgb(rgb), PHOTO)


def test_cmyk_and_ycck_jpegs_become_rgb():
    white = file_of(Image.new("CMYK", (20, 10), (0, 0, 0, 0)), "JPEG")
    assert load_rgb(white).min() > 250
    # Neutral chroma and no black, and the marker says YCCK: an even grey.
    ycck = bytearray(file_of(Image.new("CMYK", (20, 10), (55, 127, 127, 0)), "JPEG"))
    ycck[ycck.index(b"Adobe") + 11] = 2
    found = load_rgb(bytes(ycck))
    assert np.ptp(found) <= 2 and abs(int(found[0, 0, 0]) - 55) <= 2
    stored = encode(bytes(ycck), passthrough(), number=0)
    assert stored.origin == NO_JPEG and Image.open(io.BytesIO(stored.content)).mode == "RGB"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    content = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(content)).n_frames == 3
    found = load_rgb(content)
    assert found.shape == (6, 8, 3) and abs(found.astype(int) - [250, 0, 0]).max() < 8


def test_float_pixels_are_refused_since_their_white_is_unknown():
    with pytest.raises(ValueError, match="floats"):
        load_rgb(file_of(Image.fromarray(GREY.astype(np.float32)), "TIFF"))


def test_orientation_is_ignored_and_the_ending_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = file_of(Image.fromarray(PHOTO), "JPEG", exif=exif)
    assert load_rgb(turned).shape == (60, 80, 3)
    stored = encode(turned, passthrough(), number=0)
    assert stored.content == turned and (stored.height, stored.width) == (60, 80)


@pytest.mark.parametrize("content, reason", [
    (b"", "it is empty"),
    (b"not an image", "it is no image of the formats"),
    (file_of(Image.fromarray(PHOTO), "JPEG", quality=95)[:-400], "damaged JPEG"),
    (file_of(Image.fromarray(PHOTO), "PNG")[:100], "truncated"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is no image of the formats"),
])  # fmt: skip
@pytest.mark.parametrize("encoding", [passthrough(), jpg(max_resolution=50)])
def test_what_is_damaged_or_no_image_is_refused(content, reason, encoding):
    with pytest.raises((ValueError, OSError), match=reason):
        encode(content, encoding, number=0)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"kind": "MPO", "save_all": True}], ids=str)
@pytest.mark.parametrize("encoding", [passthrough(), jpg(), jpg(max_resolution=200), jpg(write_mode="raw")], ids=str)
def test_a_jpeg_damaged_in_its_scan_is_refused_although_pillow_shows_something(options, encoding):
    good = photograph(**options)
    content = zeroed(good)
    assert load_rgb(content).shape == (192, 256, 3)
    encode(good, encoding, number=0)
    with pytest.raises(ValueError, match="damaged JPEG"):
        encode(content, encoding, number=0)


def test_an_image_of_400_million_pixels_is_refused_and_half_of_pillows_limit_is_not(monkeypatch):
    row = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", row), (b"IDAT", zlib.compress(bytes(20_000 * 2501), 1)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        png += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    with pytest.raises(Image.DecompressionBombError, match="400000000 pixels"):
        encode(png, jpg(max_resolution=500), number=0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PHOTO[:, :, 0].size - 1)  # Pillow warns from here, errors from twice
    assert np.array_equal(load_rgb(file_of(Image.fromarray(PHOTO), "PNG")), PHOTO)


def test_sizes_at_the_limits():
    pixel, panorama = (file_of(Image.new("RGB", size, (9, 9, 9)), "JPEG") for size in ((1, 1), (20_000, 30)))
    for encoding in (passthrough(), jpg(), jpg(write_mode="raw"), jpg(short_side=20)):
        stored = [encode(content, encoding, number=0) for content in (pixel, panorama)]
        assert (stored[0].height, stored[0].width) == (1, 1)
        scaled = (20, 13333) if encoding.short_side else (30, 20_000)
        assert (stored[1].height, stored[1].width) == scaled
    with pytest.raises(ValueError, match="30 x 20000 pixels leave none when the longer side is scaled to 500"):
        encode(panorama, passthrough(max_resolution=500), number=0)
    with pytest.raises(ValueError, match="longer side of 65501 pixels is above 65500"):
        encode(file_of(Image.new("RGB", (65501, 1)), "PNG"), jpg(), number=0)


@pytest.mark.parametrize("write_mode", ["jpg", "raw"])
@pytest.mark.parametrize("max_resolution", [0, 33, 500])
def test_encoding_is_ffcvs_own(write_mode, max_resolution):
    stored = encode(file_of(Image.fromarray(PHOTO), "PNG"), jpg(write_mode=write_mode, max_resolution=max_resolution),
                    number=3)  # fmt: skip
    field, kept = RGBImageField(write_mode, max_resolution or None, jpeg_quality=90), []
    row = np.zeros(1, field.metadata_type)
    field.encode(row, PHOTO, lambda size: (0, kept.append(np.zeros(size, np.uint8)) or kept[-1]))
    assert stored.content == kept[0].tobytes()
    assert (stored.mode, stored.height, stored.width) == tuple(row[0][["mode", "height", "width"]])


def test_the_shorter_side_is_scaled_down_by_pillow_and_never_up():
    content = file_of(Image.fromarray(PHOTO), "PNG")
    stored = encode(content, jpg(write_mode="raw", short_side=45), number=0)
    expected = Image.fromarray(PHOTO).resize((60, 45), Image.Resampling.BICUBIC)
    assert (stored.height, stored.width) == (45, 60) and stored.content == np.array(expected).tobytes()
    turned = encode(file_of(Image.fromarray(PHOTO).rotate(90, expand=True), "PNG"), jpg(short_side=45), number=0)
    assert (turned.height, turned.width) == (60, 45)
    assert encode(content, jpg(write_mode="raw", short_side=61), number=0).content == PHOTO.tobytes()


@pytest.mark.parametrize("options", [
    {}, {"progressive": True}, {"quality": 100, "subsampling": 0}, {"keep_rgb": True},
])  # fmt: skip
def test_plain_jpegs_pass_through(options):
    content = file_of(Image.fromarray(PHOTO), "JPEG", **options)
    stored = encode(content, passthrough(), number=0)
    assert (stored.content, stored.origin, stored.crc32) == (content, ORIGINAL, zlib.crc32(content))
    assert (stored.mode, stored.height, stored.width) == (0, 60, 80)


def test_grey_jpegs_pass_through_and_others_are_encoded_for_a_reason():
    grey, photo = (file_of(Image.fromarray(pixels), "JPEG") for pixels in (GREY, PHOTO))
    assert encode(grey, passthrough(), number=0).content == grey
    png, cmyk = file_of(Image.fromarray(PHOTO), "PNG"), file_of(Image.new("CMYK", (20, 10)), "JPEG")
    with_more_behind = file_of(Image.fromarray(PHOTO), "MPO", save_all=True, append_images=[Image.fromarray(PHOTO)])
    for content in (png, cmyk, with_more_behind):
        stored = encode(content, passthrough(), number=0)
        assert stored.origin == NO_JPEG and stored.content[:2] == b"\xff\xd8"
    for larger in ({"max_resolution": 79}, {"short_side": 59}):
        assert encode(photo, passthrough(**larger), number=0).origin == SCALED
    for as_large in ({"max_resolution": 80}, {"short_side": 60}):
        assert encode(photo, passthrough(**as_large), number=0).origin == ORIGINAL
    too_long = photo[:-2] + bytes(8 * 2**20) + photo[-2:]
    assert encode(too_long, passthrough(), number=0).origin == TOO_LARGE


@pytest.mark.slow
def test_a_progressive_jpeg_that_libjpeg_cannot_hold_is_encoded_instead():
    huge = file_of(Image.new("L", (9500, 9500)).convert("RGB"), "JPEG", progressive=True, subsampling=0)
    assert encode(huge, passthrough(), number=0).origin == REFUSED
