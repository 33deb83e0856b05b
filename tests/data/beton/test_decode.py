"""The C++ decoder: Pillow's pixels bit for bit at any number of threads, and a reason for each image that fails."""

import io
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import product

import cv2
import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from tests.data.test_image_file import file_of
from vitkd_ds.data.beton import decode
from vitkd_ds.data.beton.decode import BAD_CRC, BAD_ROW, BAD_SIZE, DECODED, SHORT_READ, STATUS_TEXT, Decoder
from vitkd_ds.data.beton.format import RAW_MODE, STORED_DTYPE
from vitkd_ds.data.crops import BICUBIC, BILINEAR, CROP_DTYPE, CentreCrops
from vitkd_ds.data.order import SAMPLE_DTYPE

PILLOW_FILTERS = {BILINEAR: Image.Resampling.BILINEAR, BICUBIC: Image.Resampling.BICUBIC}


def photo(height, width, seed=0):
    """Smooth waves with noise, uint8 [height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 7 + y / 11), np.cos(x / 5), np.sin(y / 6 - x / 13)], axis=2)
    noise = np.random.default_rng(seed).normal(0, 25, waves.shape)
    return np.clip(128 + 110 * waves + noise, 0, 255).astype(np.uint8)


def pixels_of(file):
    return np.array(Image.open(io.BytesIO(file)).convert("RGB"))


def jpeg(pixels, *, mode="RGB", format="JPEG", **options):
    return file_of(Image.fromarray(pixels).convert(mode), format, **options)


def crop_row(*, box=(0, 0, 40, 50), resized=(8, 8), window=(0, 0), index=0, flip=0, filter=BICUBIC):
    return np.array([(index, 0, flip, filter, *box, *resized, *window)], CROP_DTYPE)


def stored(contents, sizes, *, mode=0, crc=False):
    """The table of files that are stored back to back."""
    table = np.zeros(len(contents), STORED_DTYPE)
    table["size"] = [len(content) for content in contents]
    table["offset"] = np.cumsum(table["size"]) - table["size"]
    table["height"], table["width"] = np.array(sizes).T
    table["mode"], table["has_crc"] = mode, crc
    table["crc32"] = [zlib.crc32(content) for content in contents]
    return table


@pytest.fixture
def decode_rows(tmp_path):
    """A function that writes files back to back and decodes rows of them: (images, status, table)."""

    def run(contents, sizes, rows, size, *, num_threads=1, table=None, **options):
        (tmp_path / "images").write_bytes(b"".join(contents))
        table = stored(contents, sizes, **options) if table is None else table
        images, status = np.full((len(rows), size, size, 3), 77, np.uint8), np.full(len(rows), -1, np.int32)
        with closing(Decoder(tmp_path / "images", table)) as decoder:
            decoder.decode(rows, images, status, num_threads=num_threads)
        return images, status, table

    return run


@pytest.fixture
def decoder(tmp_path):
    """The decoder of a file with GOOD as its only image."""
    (tmp_path / "images").write_bytes(GOOD)
    return Decoder(tmp_path / "images", stored([GOOD], [(40, 50)]))


def resized_by_pillow(pixels, row, size):
    """Pillow 13's order of the two resize passes, with any Pillow version: height first where it shrinks far more."""
    _, _, flip, kind, top, left, height, width, resized_height, resized_width, *window = row.tolist()
    image = Image.fromarray(pixels).crop((left, top, left + width, top + height))
    is_down_first = height - resized_height > max(0, 2 * (width - resized_width))
    between = (width, resized_height) if is_down_first else (resized_width, height)
    for target in (between, (resized_width, resized_height)):
        image = image.resize(target, PILLOW_FILTERS[kind])
    image = np.array(image)[window[0] :, window[1] :][:size, :size]
    return image[:, ::-1] if flip else image


def random_row(rng, height, width, size):
    box = rng.integers(1, (height + 1, width + 1))
    corner = rng.integers(0, np.array([height, width]) - box + 1)
    more = rng.integers(0, 40, 2) * rng.integers(0, 2)
    options = {"window": rng.integers(0, more + 1), "flip": rng.integers(0, 2), "filter": rng.integers(0, 2)}
    return crop_row(box=(*corner, *box), resized=size + more, **options)


@pytest.mark.parametrize("vector_bytes", [16, 32, 64])
@pytest.mark.parametrize("make", [photo, lambda h, w: photo(h, w) // 128 * 255], ids=["photo", "clipping"])
def test_resizing_up_and_down_equals_pillow_bit_for_bit_on_every_kind_of_cpu(make, vector_bytes):
    if vector_bytes > decode._library.vitkd_widest_vector():
        pytest.skip(f"VECTORS OF {vector_bytes} BYTES NOT TESTED: this CPU has no instructions for them")
    rng = np.random.default_rng(0)
    sizes = [(*rng.integers(1, 300, 2), int(rng.integers(1, 100))) for _ in range(150)]
    # One pixel from so many that partial sums of their weights exceed 32 bits.
    for height, width, size in [*sizes, (3000, 64, 3), (64, 3000, 3)]:
        pixels, row = make(height, width), random_row(rng, height, width, size)
        expected = resized_by_pillow(pixels, row[0], size)
        image = np.full((size, size, 3), 77, np.uint8)
        arguments = (pixels.ctypes.data, height, width, row.ctypes.data, size, vector_bytes, image.ctypes.data)
        assert decode._library.vitkd_resize(*arguments) == DECODED
        np.testing.assert_array_equal(image, expected, str(row))


ENCODINGS = {
    "4:4:4": lambda p: jpeg(p, subsampling=0),
    "4:2:2": lambda p: jpeg(p, subsampling=1),
    "4:2:0": lambda p: jpeg(p, subsampling=2),
    "4:4:0": lambda p: cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x121111])[1].tobytes(),
    "4:1:1": lambda p: cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x411111])[1].tobytes(),
    "grey": lambda p: jpeg(p, mode="L"),
    "rgb": lambda p: jpeg(p, keep_rgb=True),
    "restarts": lambda p: jpeg(p, subsampling=2, restart_marker_blocks=2),
    "progressive": lambda p: jpeg(p, subsampling=2, progressive=True),
}


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
@pytest.mark.parametrize("height, width", [(51, 77), (64, 48), (9, 100), (100, 3)])
def test_a_crop_has_the_pixels_of_pillows_full_decode(encode, height, width, decode_rows):
    file = encode(photo(height, width))
    whole = pixels_of(file)
    for size in (size for size in (1, 3, 16, 33) if size <= min(height, width)):
        down, across = height - size, width - size
        inner = np.random.default_rng(size).integers(0, (down + 1, across + 1), (60, 2))
        boxes = [(int(top), int(left), size, size) for top, left in [*product((0, down), (0, across)), *inner]]
        rows = np.concatenate([crop_row(box=box, resized=(size, size)) for box in boxes])
        images, status, _ = decode_rows([file], [(height, width)], rows, size)
        assert (status == DECODED).all()
        for image, (top, left, *_) in zip(images, boxes):
            np.testing.assert_array_equal(image, whole[top : top + size, left : left + size], str((top, left)))


@pytest.mark.parametrize("mode", ["jpeg", "raw"])
def test_threads_flips_and_modes_do_not_change_the_pixels(mode, decode_rows):
    rng, size = np.random.default_rng(1), 32
    sizes = [tuple(rng.integers(20, 150, 2)) for _ in range(12)]
    files = [jpeg(photo(*shape, seed=i)) for i, shape in enumerate(sizes)]
    whole = [pixels_of(file) for file in files]
    rows = np.concatenate([random_row(rng, *sizes[i % 12], size) for i in range(36)])
    rows["index"] = np.arange(36) % 12
    contents, code = (files, 0) if mode == "jpeg" else ([pixels.tobytes() for pixels in whole], RAW_MODE)
    for num_threads in (1, 2, 50):
        images, status, table = decode_rows(contents, sizes, rows, size, num_threads=num_threads, mode=code, crc=True)
        assert (status == DECODED).all() and (table["checked"] == 1).all()
        for image, row in zip(images, rows):
            np.testing.assert_array_equal(image, resized_by_pillow(whole[row["index"]], row, size))


SHAPES = [(90, 120), (121, 80), (64, 64), (40, 300), (30, 33), (1, 300), (400, 1), (1, 1), (30, 20_000), (20_000, 30)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_evaluation_crops_and_whole_images_are_resized_like_torchvision_and_pillow(shape, decode_rows):
    file, whole = jpeg(photo(*shape)), crop_row(box=(0, 0, *shape), resized=(16, 16))
    row = CentreCrops(56, 0.875, "bicubic").rows(np.zeros(1, SAMPLE_DTYPE), *np.array(shape)[:, None])
    images, _, _ = decode_rows([file], [shape], row, 56)
    theirs = CenterCrop(56)(Resize(64, InterpolationMode.BICUBIC)(Image.fromarray(pixels_of(file))))
    np.testing.assert_array_equal(images[0], np.array(theirs))
    images, _, _ = decode_rows([file], [shape], whole, 16)
    np.testing.assert_array_equal(images[0], resized_by_pillow(pixels_of(file), whole[0], 16))


GOOD = jpeg(photo(40, 50))
HALF = GOOD[: len(GOOD) // 2]
DAMAGES = {
    "cut short": (HALF, "is a damaged JPEG"),
    "cut short, with an end": (HALF + b"\xff\xd9", "is a damaged JPEG"),
    "without its last byte": (GOOD[:-3] + GOOD[-2:], "is a damaged JPEG"),
    "without an end": (GOOD[:-2], ""),
    "without an end and its last byte": (GOOD[:-3], "is a damaged JPEG"),
    "left-over bytes": (GOOD[:-2] + bytes(20) + GOOD[-2:], "is a damaged JPEG"),
    "bytes after the end": (GOOD + bytes(20), ""),
    "random bytes": (np.random.default_rng(0).bytes(500), "is a damaged JPEG"),
    "no tables of its own": (GOOD[: GOOD.find(b"\xff\xdb")] + GOOD[GOOD.find(b"\xff\xc0") :], "is a damaged JPEG"),
    "empty": (b"", "is a damaged JPEG"),
    "png": (jpeg(photo(40, 50), format="PNG"), "is a damaged JPEG"),
    "12 bits": (GOOD.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"), "of a kind that libjpeg cannot"),
    "lossless": (GOOD.replace(b"\xff\xc0", b"\xff\xc3"), "of a kind that libjpeg cannot"),
    "cmyk": (jpeg(photo(40, 50), mode="CMYK"), "neither RGB nor grey"),
    "huge": (GOOD.replace(b"\x08\x00\x28\x00\x32", b"\x08\xff\xdc\xff\xdc"), "differs in height, width"),
    "harmless bytes": (GOOD.replace(b"\xff\xdb", b"\1\2\3\xff\xdb", 1), ""),
}


@pytest.mark.parametrize("content, reason", DAMAGES.values(), ids=DAMAGES)
def test_a_bad_image_is_reported_and_black_and_its_neighbours_are_intact(content, reason, decode_rows, capfd):
    rows = np.concatenate([crop_row(index=index) for index in (0, 1, 0)])
    images, status, _ = decode_rows([GOOD, content], [(40, 50)] * 2, rows, 8)
    assert status[0] == status[2] == DECODED and reason in ({DECODED: ""} | STATUS_TEXT)[status[1]]
    np.testing.assert_array_equal(images[1], 0 * images[0] if reason else images[0])
    np.testing.assert_array_equal(images[0], images[2])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mode", [0, RAW_MODE])
def test_the_crc_detects_a_flipped_bit_when_the_image_is_first_read(mode, decode_rows):
    good = GOOD if mode == 0 else photo(40, 50).tobytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    table = stored([good], [(40, 50)], mode=mode, crc=True)
    for content, is_found, checked in ((bytes(bad), True, 0), (good, False, 1), (bytes(bad), False, 1)):
        _, status, _ = decode_rows([content], None, crop_row(), 8, table=table)
        assert (status[0] == BAD_CRC) == is_found and table["checked"][0] == checked


@pytest.mark.parametrize("mode", [0, RAW_MODE])
def test_a_file_truncated_under_an_open_decoder_gives_a_short_read(mode, decoder, tmp_path):
    size = 40 * 50 * 3 if mode == RAW_MODE else len(GOOD)
    decoder.table["mode"], decoder.table["size"] = mode, size
    images, status = np.full((1, 8, 8, 3), 77, np.uint8), np.zeros(1, np.int32)
    for length in (size - 1, 0):
        os.truncate(tmp_path / "images", length)
        decoder.decode(crop_row(), images, status, num_threads=1)
        assert status[0] == SHORT_READ and not images.any()


WRONG = {
    ("row", BAD_ROW, "index flip filter"): [-1, 2],
    ("row", BAD_ROW, "top left"): [-1, 1, 2**31 - 1],
    ("row", BAD_ROW, "height width"): [0, 51, 2**31 - 1],
    ("row", BAD_ROW, "resized_height resized_width"): [7, 0, 2**31 - 1],
    ("row", BAD_ROW, "window_top window_left"): [1, -1, 2**31 - 1],
    ("table", BAD_ROW, "height width"): [0, 39],
    ("table", BAD_ROW, "mode"): [2],
    ("table", BAD_SIZE, "mode"): [RAW_MODE],
    ("table", BAD_SIZE, "height width"): [51, 65535],
    ("table", SHORT_READ, "offset"): [2**63, 2**64 - 1],
    ("table", SHORT_READ, "size"): [2**32 - 1],
}


@pytest.mark.parametrize("which, reason, names, values", [(*key, values) for key, values in WRONG.items()], ids=str)
def test_an_invalid_row_or_table_is_detected(which, reason, names, values, decode_rows):
    for name, value in product(names.split(), values):
        arrays = {"row": crop_row(), "table": stored([GOOD], [(40, 50)])}
        arrays[which][name] = value
        images, status, _ = decode_rows([GOOD], None, arrays["row"], 8, table=arrays["table"])
        assert status[0] == reason and not images.any(), (name, value)


def test_several_python_threads_may_share_a_decoder(decoder):
    rows = np.concatenate([random_row(np.random.default_rng(i), 40, 50, 16) for i in range(64)])
    images, status = np.zeros((12, 64, 16, 16, 3), np.uint8), np.full((12, 64), -1, np.int32)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda i: decoder.decode(rows, images[i], status[i], num_threads=2), range(12)))
    assert (status == DECODED).all() and (images == images[0]).all() and images[0].any()


@pytest.mark.parametrize(
    "name, array",
    [
        ("rows", np.zeros(2, np.int32)),
        ("rows", np.zeros(3, CROP_DTYPE)),
        ("rows", None),
        ("images", np.zeros((2, 8, 9, 3), np.uint8)),
        ("images", np.zeros((2, 8, 8, 6), np.uint8)[..., ::2]),
        ("images", np.zeros((2, 8, 8, 3), np.float32)),
        ("images", np.broadcast_to(np.uint8(0), (2, 8, 8, 3))),
        ("images", np.zeros((2, 0, 0, 3), np.uint8)),
        ("status", np.zeros(2, np.int64)),
        ("num_threads", 0),
    ],
)
def test_arrays_unsafe_for_c_code_are_rejected(name, array, decoder):
    values = {"rows": np.zeros(2, CROP_DTYPE), "images": np.zeros((2, 8, 8, 3), np.uint8)}
    values |= {"status": np.zeros(2, np.int32), "num_threads": 1} | {name: array}
    *arrays, num_threads = values.values()
    with pytest.raises(ValueError, match="must be.*got"):
        decoder.decode(*arrays, num_threads=num_threads)


def test_a_closed_decoder_is_not_used_and_a_missing_library_says_how_to_build_it(decoder, monkeypatch):
    decoder.close()
    decoder.close()
    with pytest.raises(ValueError, match="is closed"):
        decoder.decode(np.zeros(0, CROP_DTYPE), np.zeros((0, 8, 8, 3), "u1"), np.zeros(0, "i4"), num_threads=1)
    monkeypatch.setattr(decode, "EXTENSION_SUFFIXES", [".of-another-python.so"])
    with pytest.raises(ImportError, match="make setup"):
        decode._load_library()
