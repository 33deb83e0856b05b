"""Packing: every colour mode, bad files by name, nothing half-written, workers that cannot hang the job."""

import os
import signal
import threading
import time

import numpy as np
import pytest
from PIL import Image

from vitkd_ds.data import writer
from vitkd_ds.data.backend import FFCVLoader
from vitkd_ds.data.fields import check_beton, side_path
from vitkd_ds.data.images import load_rgb
from vitkd_ds.data.pack import pack


def stored(path, index):
    """The raw pixels of an image, read without FFCV's decoder."""
    reader = FFCVLoader(str(path), batch_size=1, num_workers=1, pipelines={"image": None}).reader
    row = reader.metadata["f0"][index]
    shape = int(row["height"]), int(row["width"]), 3
    return np.fromfile(path, np.uint8, count=np.prod(shape), offset=int(row["data_ptr"])).reshape(shape)


def names_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


def one_class(tmp_path, files):
    """A folder with the class "only" and the files given as name -> PIL image or bytes."""
    (tmp_path / "images" / "only").mkdir(parents=True)
    for name, content in files.items():
        path = tmp_path / "images" / "only" / name
        path.write_bytes(content) if isinstance(content, bytes) else content.save(path)
    return tmp_path / "images"


GREY = np.arange(0, 250, dtype=np.uint8).reshape(10, 25)
SIXTEEN_BIT = GREY.astype(np.uint16) * 256 + 37


@pytest.mark.parametrize("name, image", [
    ("grey.png", Image.fromarray(GREY)),
    ("sixteen.png", Image.fromarray(SIXTEEN_BIT)),
    ("sixteen.tif", Image.fromarray(SIXTEEN_BIT)),
    ("thirty_two.tif", Image.fromarray(SIXTEEN_BIT.astype(np.int32))),
    ("palette.png", Image.fromarray(GREY).convert("P")),
    ("grey_alpha.png", Image.fromarray(GREY).convert("LA")),
    ("alpha.png", Image.fromarray(GREY).convert("RGBA")),
    ("cmyk.tif", Image.fromarray(GREY).convert("RGB").convert("CMYK")),
    ("UPPER.PNG", Image.fromarray(GREY)),
])  # fmt: skip
def test_every_colour_mode_becomes_rgb(tmp_path, name, image):
    image.save(tmp_path / name)
    expected = np.repeat(GREY[:, :, None], 3, axis=2)
    found = load_rgb(str(tmp_path / name))
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found.astype(int), expected, atol=1 if "cmyk" in name else 0)


def test_black_and_white_and_transparent_palettes_become_rgb(tmp_path):
    Image.fromarray(GREY > 100).save(tmp_path / "bits.png")
    assert set(np.unique(load_rgb(str(tmp_path / "bits.png")))) == {0, 255}
    Image.fromarray(GREY).convert("P").save(tmp_path / "p.png", transparency=bytes([0, 128, 255]))
    assert load_rgb(str(tmp_path / "p.png")).shape == (10, 25, 3)


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    Image.new("CMYK", (20, 10), (0, 0, 0, 0)).save(tmp_path / "white.jpg")
    assert load_rgb(str(tmp_path / "white.jpg")).min() > 250


def test_float_pixels_are_refused_since_their_white_is_unknown(tmp_path):
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="floats"):
        load_rgb(str(tmp_path / "f.tif"))


def test_raw_images_come_back_pixel_for_pixel_with_labels_in_name_order(tmp_path, make_folder):
    src = make_folder(tmp_path / "images", 9, classes=("b b", "ä", "a\n'\"", "0"))
    info = pack(src, tmp_path / "x.beton", write_mode="raw", workers=2)
    assert info == check_beton(tmp_path / "x.beton")
    assert info.classes == ("0", "a\n'\"", "b b", "ä") and info.num_images == 9
    paths = sorted(src.rglob("*.png"), key=lambda p: (p.parent.name, p.name))
    for index, path in enumerate(paths):
        np.testing.assert_array_equal(stored(info.path, index), np.array(Image.open(path)))
    reader = FFCVLoader(str(info.path), batch_size=1, num_workers=1, pipelines={"image": None}).reader
    assert reader.metadata["f1"].tolist() == [info.classes.index(path.parent.name) for path in paths]


def test_names_that_are_not_utf8_are_kept(tmp_path, make_folder):
    src = make_folder(tmp_path / "images", 2, classes=("a", "b"))
    os.rename(src / "a", os.fsencode(src) + b"/\xff\xfe")
    info = pack(src, tmp_path / "x.beton", workers=1)
    assert os.fsencode(check_beton(info.path).classes[1]) == b"\xff\xfe"


def test_longer_sides_are_scaled_down_and_shorter_ones_left(tmp_path):
    images = {"big.png": Image.new("RGB", (200, 100)), "small.png": Image.new("RGB", (30, 20))}
    info = pack(one_class(tmp_path, images), tmp_path / "x.beton", write_mode="raw", max_resolution=50, workers=1)
    assert stored(info.path, 0).shape == (25, 50, 3) and stored(info.path, 1).shape == (20, 30, 3)
    assert (info.max_height, info.max_width) == (25, 50)


def test_a_raw_image_larger_than_ffcvs_page_gets_a_larger_page(tmp_path):
    images = {"wide.png": Image.new("RGB", (3000, 1000), (1, 2, 3)), "small.png": Image.new("RGB", (4, 4), (7, 8, 9))}
    info = pack(one_class(tmp_path, images), tmp_path / "x.beton", write_mode="raw", max_resolution=0, workers=1)
    assert stored(info.path, 0)[0, 0].tolist() == [7, 8, 9]
    assert stored(info.path, 1).shape == (1000, 3000, 3) and (stored(info.path, 1) == [1, 2, 3]).all()


def test_proportion_stores_both_kinds_and_the_same_ones_each_time(tmp_path, make_folder):
    src = make_folder(tmp_path / "images", 40)
    modes = []
    for name, workers in (("x.beton", 1), ("y.beton", 2)):
        path = pack(src, tmp_path / name, write_mode="proportion", workers=workers).path
        reader = FFCVLoader(str(path), batch_size=1, num_workers=1, pipelines={"image": None}).reader
        modes.append(reader.metadata["f0"]["mode"].tolist())
    assert set(modes[0]) == {0, 1} and modes[0] == modes[1]


BAD = {
    "text.jpg": b"not an image",
    "empty.png": b"",
    "cut.png": None,
    "thin.png": Image.new("RGB", (2000, 1)),
}


def with_bad_files(tmp_path, names):
    good = {"good_a.png": Image.new("RGB", (8, 8), (1, 1, 1)), "good_z.png": Image.new("RGB", (8, 8))}
    src = one_class(tmp_path, good)
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    for name in names:
        path, content = src / "only" / name, BAD[name]
        if content is None:
            content = (tmp_path / "whole.png").read_bytes()[:3000]
        path.write_bytes(content) if isinstance(content, bytes) else content.save(path)
    (tmp_path / "whole.png").unlink()
    return src


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_stops_the_job_by_name_and_leaves_nothing(tmp_path, name):
    src = with_bad_files(tmp_path, [name])
    with pytest.raises(ValueError, match=f"only/{name}"):
        pack(src, tmp_path / "x.beton", workers=2)
    assert names_in(tmp_path) == ["images"]


def test_bad_files_are_left_out_and_named_when_asked(tmp_path, caplog):
    src = with_bad_files(tmp_path, BAD)
    info = pack(src, tmp_path / "x.beton", write_mode="raw", workers=1, skip_bad=True)
    assert info.num_images == 2 and check_beton(info.path) == info
    assert stored(info.path, 0)[0, 0, 0] == 1 and stored(info.path, 1)[0, 0, 0] == 0
    assert all(name in caplog.text for name in BAD)


def test_only_bad_files_are_an_error_even_when_skipped(tmp_path):
    src = with_bad_files(tmp_path, ["text.jpg"])
    for good in src.rglob("good*"):
        good.unlink()
    with pytest.raises(ValueError, match="at least one image must decode"):
        pack(src, tmp_path / "x.beton", workers=1, skip_bad=True)
    assert names_in(tmp_path) == ["images"]


def test_an_existing_file_is_not_overwritten(tmp_path, make_folder):
    src = make_folder(tmp_path / "images", 2)
    (tmp_path / "x.beton").write_text("precious")
    with pytest.raises(ValueError, match="must not exist yet"):
        pack(src, tmp_path / "x.beton")
    assert (tmp_path / "x.beton").read_text() == "precious" and names_in(tmp_path) == ["images", "x.beton"]


def test_a_file_that_appears_while_packing_is_not_overwritten(tmp_path, make_folder, monkeypatch):
    src, dst = make_folder(tmp_path / "images", 2), tmp_path / "x.beton"
    finish = writer.BetonWriter._finish

    def finish_late(self, *args):
        dst.write_text("precious")
        return finish(self, *args)

    monkeypatch.setattr(writer.BetonWriter, "_finish", finish_late)
    with pytest.raises(ValueError, match="appeared meanwhile"):
        pack(src, dst, workers=1)
    assert dst.read_text() == "precious" and names_in(tmp_path) == ["images", "x.beton"]


def test_a_killed_worker_is_noticed_and_nothing_is_left(tmp_path, make_folder, monkeypatch):
    src = make_folder(tmp_path / "images", 4)
    monkeypatch.setattr(writer.BetonWriter, "_load", lambda self, path: time.sleep(60))

    def kill_one():
        while not (pids := writer.multiprocessing.active_children()):
            time.sleep(0.02)
        os.kill(pids[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(RuntimeError, match="exit code -9"):
        pack(src, tmp_path / "x.beton", workers=2)
    killer.join()
    assert names_in(tmp_path) == ["images"] and not writer.multiprocessing.active_children()


def test_a_worker_that_fails_names_the_file(tmp_path, make_folder, monkeypatch):
    src = make_folder(tmp_path / "images", 2)
    monkeypatch.setattr(writer.BetonWriter, "_load", lambda self, path: (np.zeros((4, 4), np.float32), ""))
    with pytest.raises(RuntimeError, match="000.png' could not be written: Image type has to be uint8"):
        pack(src, tmp_path / "x.beton", workers=2)
    assert names_in(tmp_path) == ["images"]


def test_unfit_arguments_and_folders_are_refused(tmp_path, make_folder):
    src = make_folder(tmp_path / "images", 2)
    (tmp_path / "none").mkdir()
    (tmp_path / "hollow" / "a").mkdir(parents=True)
    dst = tmp_path / "x.beton"
    for args, options, message in [
        ((tmp_path / "no", dst), {}, "found nothing at"),
        ((src / "a" / "000.png", dst), {}, "found a file at"),
        ((tmp_path / "none", dst), {}, "must have a folder per class"),
        ((tmp_path / "hollow", dst), {}, "each class folder must have images"),
        ((src, tmp_path / "x.bin"), {}, "must end in .beton"),
        ((src, tmp_path / "no" / "x.beton"), {}, "folder of dst must exist"),
        ((src, dst), {"write_mode": "smart"}, "one of jpg, raw, proportion"),
        ((src, dst), {"quality": 0}, "quality must be"),
        ((src, dst), {"max_resolution": 70000}, "max_resolution must be"),
        ((src, dst), {"workers": -1}, "workers must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            pack(*args, **options)
    assert names_in(tmp_path) == ["hollow", "images", "none"]


def test_other_files_are_left_out_with_a_word(tmp_path, caplog):
    src = one_class(tmp_path, {"a.png": Image.new("RGB", (4, 4)), "notes.txt": b"x", ".DS_Store": b"x"})
    assert pack(src, tmp_path / "x.beton", workers=1).num_images == 1
    assert "notes.txt" in caplog.text and side_path(tmp_path / "x.beton").exists()
