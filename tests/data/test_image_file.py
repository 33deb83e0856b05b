"""Single image files: every colour mode and kind becomes RGB or is rejected."""

import io
import struct
import zipfile
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from vitkd_ds.commands.pack import pack
from vitkd_ds.data.beton.format import PAGE_BYTES
from vitkd_ds.data.demo import ARCHIVE
from vitkd_ds.data.image_file import load_rgb

GREY = np.arange(0, 250, dtype=np.uint8).reshape(10, 25)
SIXTEEN_BIT = GREY.astype(np.uint16) * 256 + 37
PHOTO = np.stack([np.add.outer(np.arange(60), np.arange(80)) + 30 * c for c in range(3)], axis=2).astype(np.uint8)
TURNED = Image.Exif()
TURNED[0x0112] = 6


def file_of(image, kind, **options):
    """The image's file bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(seed=0, kind="JPEG", **options):
    """A demo photograph as JPEG bytes, enlarged and noisy so that all coefficients occur."""
    with zipfile.ZipFile(ARCHIVE) as archive, archive.open("train.beton") as beton:
        beton.seek(PAGE_BYTES + seed * 28 * 28 * 3)
        image = Image.frombytes("RGB", (28, 28), beton.read(28 * 28 * 3)).resize((256, 192))
    noise = np.random.default_rng(seed).normal(0, 12, (192, 256, 3))
    image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    return file_of(image, kind, **options | ({"append_images": [Image.new("RGB", (9, 9))]} if kind == "MPO" else {}))


def zeroed(content, count=512):
    """The file with `count` zero bytes in the middle of its scan."""
    middle = (content.index(b"\xff\xda") + len(content)) // 2
    return content[:middle] + bytes(count) + content[middle + count :]


def ycck():
    """A JPEG with a YCCK marker, neutral chroma and no black: a uniform grey."""
    content = bytearray(file_of(Image.new("CMYK", (20, 10), (55, 127, 127, 0)), "JPEG"))
    content[content.index(b"Adobe") + 11] = 2
    return bytes(content)


@pytest.mark.parametrize(
    "kind, image",
    [
        *[("PNG", Image.fromarray(GREY).convert(mode)) for mode in ("L", "P", "LA", "RGBA")],
        *[(kind, Image.fromarray(SIXTEEN_BIT)) for kind in ("PNG", "TIFF")],
        *[(kind, Image.fromarray(GREY)) for kind in ("GIF", "BMP", "PPM")],
        ("TIFF", Image.fromarray(SIXTEEN_BIT.astype(np.int32))),
        ("TIFF", Image.fromarray(GREY).convert("RGB").convert("CMYK")),
    ],
)
def test_every_colour_mode_becomes_rgb(kind, image):
    found = load_rgb(file_of(image, kind))
    assert found.dtype == np.uint8 and found.shape == (10, 25, 3)
    np.testing.assert_allclose(found.astype(int) - GREY[:, :, None], 0, atol=1 if image.mode == "CMYK" else 0)


def test_bilevel_and_transparent_images_become_rgb_and_16_bit_images_keep_the_upper_byte():
    bits = load_rgb(file_of(Image.fromarray(GREY > 100), "PNG"))
    assert bits.shape == (10, 25, 3) and set(np.unique(bits)) == {0, 255}
    palette = file_of(Image.fromarray(GREY).convert("P"), "PNG", transparency=bytes([0, 128, 255]))
    for content in (palette, file_of(Image.fromarray(GREY), "PNG", transparency=7)):
        assert load_rgb(content).shape == (10, 25, 3)
    deep = cv2.imencode(".png", PHOTO[:, :, ::-1].astype(np.uint16) * 256 + 200)[1].tobytes()
    assert deep[24] == 16
    for content in (deep, file_of(Image.fromarray(PHOTO), "PNG", transparency=(1, 2, 3))):
        assert np.array_equal(load_rgb(content), PHOTO)


def test_cmyk_and_ycck_jpegs_become_rgb_orientation_is_ignored_and_floats_are_rejected():
    assert load_rgb(file_of(Image.new("CMYK", (20, 10), (0, 0, 0, 0)), "JPEG")).min() > 250
    found = load_rgb(ycck())
    assert np.ptp(found) <= 2 and abs(int(found[0, 0, 0]) - 55) <= 2
    assert load_rgb(file_of(Image.fromarray(PHOTO), "JPEG", exif=TURNED)).shape == (60, 80, 3)
    with pytest.raises(ValueError, match="floats"):  # their white level is unknown
        load_rgb(file_of(Image.fromarray(GREY.astype(np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    content = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(content)).n_frames == 3
    found = load_rgb(content)
    assert found.shape == (6, 8, 3) and abs(found.astype(int) - [250, 0, 0]).max() < 8


def test_an_image_of_400_million_pixels_is_rejected_and_one_above_pillows_warning_is_not(monkeypatch):
    row = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for name, body in [(b"IHDR", row), (b"IDAT", zlib.compress(bytes(20_000 * 2501), 1)), (b"IEND", b"")]:
        png += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    with pytest.raises(Image.DecompressionBombError, match="400000000 pixels"):
        load_rgb(png)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PHOTO[:, :, 0].size - 1)  # warns above this, raises above twice this
    assert np.array_equal(load_rgb(file_of(Image.fromarray(PHOTO), "PNG")), PHOTO)


@pytest.mark.parametrize(
    "compression, message",
    [
        ("tiff_lzw", "OSError: decoder error -2; "),
        ("tiff_adobe_deflate", "OSError: decoder error -2; Decoding error "),
        ("jpeg", "ValueError: it is a damaged TIFF: Invalid JPEG file structure: two SOI markers"),
    ],
)
def test_libtiffs_messages_are_in_our_errors_and_not_on_stderr(compression, message, tmp_path, capfd):
    content = file_of(Image.fromarray(PHOTO), "TIFF", compression=compression)
    expected = load_rgb(content)
    damaged = content[:300] + b"\xff\xd8" + content[302:]
    for _ in range(2):
        with pytest.raises((OSError, ValueError)) as found:
            load_rgb(damaged)
        assert f"{found.typename}: {found.value}".startswith(message)
        np.testing.assert_array_equal(load_rgb(content), expected)
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "0.tif").write_bytes(damaged)
    with pytest.raises(ValueError, match=f"a/0.tif' does not .*{message[-9:]}"):
        pack(tmp_path / "images", tmp_path / "x.beton", workers=1)
    assert "tif" not in capfd.readouterr().err
