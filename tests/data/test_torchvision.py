"""The torchvision backend: FFCV's order, crops, flips and pixels, also directly from a folder."""

import multiprocessing
import os
import signal
import subprocess
import sys
from itertools import product

import pytest
import torch

from tests.data.conftest import write_beton, write_images
from tests.data.sources.test_sources import tree
from tests.data.test_bad_images import overwrite
from tests.data.test_image_file import photograph, zeroed
from tests.data.test_loader import another, config, epoch_of, same
from vitkd_ds.commands.pack import pack
from vitkd_ds.config.run import AugmentConfig


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A folder of 22 images and a .beton of its pixels, half of them as JPEG."""
    root = tmp_path_factory.mktemp("packed")
    src = write_images(root / "images", 22)
    return src, {mode: pack(src, root / f"{mode}.beton", write_mode=mode, workers=1).path for mode in ("raw", "jpg")}


def assert_both_give_the_same(path, other, **options):
    """Both backends: FFCV reads the .beton `path`, and torchvision reads `other`."""
    data = [config(path, backend="ffcv"), config(other, backend="torchvision")]
    assert same(*(epoch_of(another(each, **options)) for each in data))


def test_both_backends_give_the_same_augmented_bits_from_a_beton_and_its_folder_on_any_rank(packed):
    src, betons = packed
    for mode, split in product(("raw", "jpg"), ("train", "val")):
        assert_both_give_the_same(betons[mode], betons[mode], split=split)
    augment = AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25)
    for rank in (0, 1):
        assert_both_give_the_same(betons["raw"], src, augment=augment, rank=rank, world_size=2)


def test_an_undecodable_file_is_named_or_skipped_even_if_pillow_decodes_part_of_it(tmp_path):
    src = write_images(tmp_path / "images", 8)
    (src / "b" / "zz.jpg").write_bytes(zeroed(photograph()))
    loader = another(config(src, backend="torchvision"), split="val", micro_batch_size=3)
    with pytest.raises(ValueError, match="image 8 .*cannot be decoded: .*zz.jpg: ValueError: it is a damaged JPEG"):
        epoch_of(loader)
    assert [status.tolist() for _, status in loader._images.decoded(loader._val_samples()[0])][-1] == [0, 0, 1]
    (src / "b" / "zz.jpg").unlink()
    (src / "a" / "002.png").write_bytes(b"no image")
    found = r"image 1 \(class 'a'\) cannot be decoded: .*002.png: ValueError: it is not an image"
    with pytest.raises(ValueError, match=found):
        epoch_of(another(config(src, backend="torchvision")))
    loader = another(config(src, backend="torchvision", on_bad="skip"))
    assert len(torch.cat(epoch_of(loader)[1])) == 8 and loader.num_skipped == 1


def test_a_killed_process_gives_an_error_that_names_file_and_images(packed):
    loader = another(config(packed[0], backend="torchvision"), split="val", micro_batch_size=2)
    before = signal.getsignal(signal.SIGCHLD)
    micro_batches = loader.epoch(0)
    next(micro_batches)
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    found = r"decode '.*images' died while images \d+, \d+ were awaited .*num_workers"
    with pytest.raises(RuntimeError, match=found):
        list(micro_batches)
    assert signal.getsignal(signal.SIGCHLD) == before


def test_a_changed_byte_in_a_beton_is_an_error(tmp_path):
    path = write_beton(tmp_path, 8, write_mode="raw")
    loader = another(config(path, backend="torchvision"))
    overwrite(path, 1, b"\xff")
    with pytest.raises(ValueError, match="cannot be decoded: image .*its CRC-32 differs"):
        epoch_of(loader)


def test_unsupported_settings_are_rejected(packed):
    with pytest.raises(ValueError, match="data.order=quasi_random needs data.backend=ffcv"):
        another(config(packed[0], backend="torchvision", order="quasi_random"))
    with pytest.raises(ValueError, match="'/nowhere' does not exist"):
        another(config("/nowhere", backend="torchvision"))


@pytest.mark.cold
def test_neither_ffcv_nor_the_compiled_decoder_is_needed(packed):
    program = f"""
import sys
sys.modules["ffcv"] = sys.modules["numba"] = sys.modules["cv2"] = None  # an import of these fails
sys.modules["vitkd_ds.data.beton.decode"] = None
from vitkd_ds.config.run import DataConfig
from vitkd_ds.data.loader import build_loader
for path in ({str(packed[0])!r}, {str(packed[1]["jpg"])!r}, "demo"):
    classes = 10 if path == "demo" else 2
    data = DataConfig(train=path, val=path, image_size=16, num_classes=classes, backend="torchvision", num_workers=1)
    loader = build_loader(data, split="train", micro_batch_size=4)
    micro_batches = loader.epoch(0)
    print(next(micro_batches)[0].shape)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.stdout.split("\n")[:3] == ["torch.Size([4, 3, 16, 16])"] * 3, run.stderr
    assert run.stderr.count("cannot detect damage inside the JPEGs of") == 1  # only for the folder


def test_a_jpeg_that_lacks_only_its_end_marker_has_the_pixels_of_the_whole_one_in_both_backends(tmp_path):
    for name, end in (("whole", None), ("endless", -2)):
        files = {f"{'ab'[i]}/0.jpg": photograph(i, progressive=bool(i))[:end] for i in range(2)}
        tree(tmp_path / name, **files)
    path = pack(tmp_path / "endless", tmp_path / "x.beton", passthrough=True, workers=1).path
    ways = [(name, "torchvision") for name in ("whole", "endless", path.name)] + [(path.name, "ffcv")]
    found = [epoch_of(another(config(tmp_path / name, backend=backend), split="val")) for name, backend in ways]
    assert all(same(found[0], other) for other in found[1:])
