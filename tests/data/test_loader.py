"""The loader: bit-exact at any number of threads and ranks and after a resume; exact validation; no hang or leak."""

import gc
import threading
import time
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from tests.conftest import wait_until
from tests.data.conftest import write_beton
from vitkd_ds.config.run import AugmentConfig, DataConfig
from vitkd_ds.data.augment.augmenter import Augmenter
from vitkd_ds.data.beton.ffcv import Compiler, DecodingThread
from vitkd_ds.data.loader import build_loader

SIZE = 16


def config(path, **changes):
    values = dict(train=str(path), val=str(path), image_size=SIZE, num_classes=2, num_workers=1)
    return DataConfig(**values | changes)


def another(data, *, split="train", seed=0, **shard):
    """A loader for another rank or seed."""
    whole = dict(rank=0, world_size=1, micro_batch_size=2, global_batch_size=4)
    return build_loader(data, split=split, seed=seed, **whole | shard)


@pytest.fixture(scope="module")
def train(beton):
    """One decoding thread, micro-batches of 2, two micro-batches per step."""
    return another(config(beton))


def epoch_of(loader, epoch=0, **options):
    micro_batches = list(loader.epoch(epoch, **options))
    return [images for images, _ in micro_batches], [labels for _, labels in micro_batches]


def same(first, second):
    """Whether two tensors, or two lists of comparable items, are equal."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return len(first) == len(second) and all(map(same, first, second))


def test_any_threads_ranks_device_name_or_resumed_epoch_give_the_same_bits(beton, train):
    two = another(config(beton, num_workers=2), device="cpu")
    for epoch in (0, 1):
        assert same(epoch_of(train, epoch), epoch_of(two, epoch))
    for rank in (0, 1):
        of_rank = epoch_of(another(config(beton), rank=rank, world_size=2), 1)
        assert same([part[rank::2] for part in epoch_of(train, 1)], of_rank)
    for start_step in (1, 4, 5):
        assert same([part[2 * start_step :] for part in epoch_of(train, 3)], epoch_of(train, 3, start_step=start_step))


def test_epochs_and_neighbouring_seeds_differ_and_two_epochs_may_be_open_at_once(beton, train):
    base = torch.cat(epoch_of(another(config(beton), seed=7), 1)[0])
    for seed, epoch in [(7, 0), (7, 2), (8, 0), (8, 1)]:
        assert not torch.equal(base, torch.cat(epoch_of(another(config(beton), seed=seed), epoch)[0]))
    pairs = list(zip(train.epoch(0), train.epoch(1), strict=True))
    for epoch in (0, 1):
        assert same([pair[epoch][0] for pair in pairs], epoch_of(train, epoch)[0])


def test_micro_batches_are_uint8_copies_in_memory_reused_once_released(train):
    kept = [(images[:, :, :2], images[:, :, :2].clone()) for images, _ in train.epoch(0)]
    addresses = [images.data_ptr() for images, _ in train.epoch(0)]
    assert len(set(addresses)) < len(addresses) == len({corner.data_ptr() for corner, _ in kept})
    assert all(torch.equal(corner, copy) for corner, copy in kept)
    images, labels = epoch_of(train)
    assert train.steps_per_epoch == 5 and train.num_batches == len(images) == 10
    assert images[0].shape == (2, 3, SIZE, SIZE) and images[0].dtype == torch.uint8
    assert images[0].is_contiguous(memory_format=torch.channels_last)
    assert labels[0].shape == (2,) and labels[0].dtype == torch.int64


def rows_of(loader, epoch=0):
    """The epoch's crop rows."""
    samples, operation = loader._train_order(epoch), loader._images.operation
    stored = operation.decoder.table[samples["index"]]
    return operation.crops.rows(samples, stored["height"], stored["width"])


@pytest.mark.parametrize("write_mode", ["raw", "jpg", "proportion"])
def test_pixels_equal_the_crop_resized_and_flipped_by_pillow(tmp_path, write_mode):
    path = write_beton(tmp_path, 10, write_mode=write_mode, quality=100)
    loader = build_loader(config(path), split="train", micro_batch_size=5)
    files = sorted(tmp_path.rglob("*.png"), key=lambda p: (p.parent.name, p.name))
    rows, (images, labels) = rows_of(loader), map(torch.cat, epoch_of(loader))
    assert 0 < rows["flip"].sum() < 10
    for row, label, image_CHW in zip(rows, labels, images, strict=True):
        assert label == (files[row["index"]].parent.name == "b")
        top, left, height, width = row[["top", "left", "height", "width"]].item()
        crop = Image.open(files[row["index"]]).crop((left, top, left + width, top + height))
        expected = np.array(crop.resize((SIZE, SIZE), Image.Resampling.BICUBIC))[:, :: -1 if row["flip"] else 1]
        difference = image_CHW.permute(1, 2, 0).numpy().astype(int) - expected
        assert np.abs(difference).max() == 0 if write_mode == "raw" else np.abs(difference).mean() < 6


@pytest.mark.parametrize(
    "backend, num_images",
    [
        *product(["ffcv"], [1, 2, 7, 22]),
        *product(["torchvision"], [1, 7, 22]),
    ],
)
def test_validation_sees_each_image_exactly_once_at_any_number_of_ranks_in_both_backends(beton, backend, num_images):
    images, labels = map(torch.cat, epoch_of(another(config(beton), split="val")))
    assert len(torch.unique(images, dim=0)) == 22 and labels.tolist() == [0] * 11 + [1] * 11
    chosen = torch.arange(num_images) * 22 // num_images
    data = config(beton, max_val_images=num_images, backend=backend)
    for world_size in (1, 2, 3, 4):
        options = {"split": "val", "world_size": world_size, "micro_batch_size": 3}
        loaders = [another(data, rank=rank, **options) for rank in range(world_size)]
        per_rank = [epoch_of(loader) for loader in loaders]
        assert {len(labels) for _, labels in per_rank} == {loaders[0].num_batches}
        assert len({tuple(map(len, labels)) for _, labels in per_rank}) == 1
        # The images alternate between the ranks.
        dealt = [torch.stack([torch.cat(of_rank[i]) for of_rank in per_rank], 1).flatten(0, 1) for i in (0, 1)]
        is_real = dealt[1] >= 0
        assert same([part[is_real] for part in dealt], [images[chosen], labels[chosen]])


@pytest.mark.parametrize("backend", ["ffcv", "torchvision"])
def test_an_epoch_reports_each_micro_batchs_images_and_closes_with_its_with_block(beton, backend):
    data = config(beton, backend=backend)
    with another(data, split="val", micro_batch_size=3) as loader:
        whole = dict(zip(range(len(loader._images.labels)), torch.cat(epoch_of(loader)[0])))
        training = another(data, rank=1, world_size=2)
        seen, expected = [], training._take_share(training._train_order(1))["index"]
        for _ in training.epoch(1):
            assert len(training.indices_B) == 2
            seen += training.indices_B.tolist()
        assert seen == expected.tolist()
        for images, labels in loader.epoch(0):
            found = loader.indices_B.tolist()
            assert all(torch.equal(whole[i], image) for i, image in zip(found, images))
            assert loader._images.labels[found].tolist()[: int((labels >= 0).sum())] == labels[labels >= 0].tolist()
        running, threads = loader.epoch(0), threading.active_count()
        next(running)
    assert next(running, None) is None
    wait_until(lambda: threading.active_count() <= threads, [])
    loader.close()
    training.close()
    for closed in (loader, training):
        with pytest.raises(ValueError, match="is closed. Build a new one"):
            next(iter(closed))


def test_augmentation_follows_the_image_and_not_its_micro_batch(beton):
    augment = AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1", color_jitter=0.3, random_erasing=0.5)
    data, both = config(beton), (None, augment)
    plain, augmented = (torch.cat(epoch_of(another(data, augment=a, micro_batch_size=4))[0]) for a in both)
    assert (plain != augmented).flatten(1).any(1).float().mean() > 0.7
    ranks = [epoch_of(another(data, augment=augment, rank=rank, world_size=2))[0] for rank in (0, 1)]
    assert torch.equal(augmented, torch.cat([images for pair in zip(*ranks, strict=True) for images in pair]))
    assert same(*(epoch_of(another(data, split="val", augment=a))[0] for a in both))


def test_seed_and_statistics_reach_the_augmenter(beton):
    options = {"seed": 3, "statistics": ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))}
    augment = AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5)
    loader = another(config(beton), augment=augment, **options)
    samples = loader._train_order(1)
    found, expected = (
        augmenter.plan(samples, height=SIZE, width=SIZE)
        for augmenter in (loader._images.operation.augmenter, Augmenter(augment, **options))
    )
    assert found.fill == expected.fill == (26, 51, 76) and np.array_equal(found.levels, expected.levels)
    assert np.array_equal(found.operations, expected.operations) and found.operations["op"].any()
    assert np.array_equal(found.rectangles, expected.rectangles)


def test_repeated_augmentation_shows_an_image_again_with_another_crop(beton):
    rows = rows_of(another(config(beton), augment=AugmentConfig(repeats=2)))
    twice = [rows[rows["index"] == i] for i in set(rows["index"])]
    assert len(twice) == 10 and all(pair["repeat"].tolist() == [0, 1] for pair in twice)
    assert len({tuple(row)[2:8] for pair in twice for row in pair}) == 20


def test_the_order_follows_the_seed(beton, train):
    orders = [loader._train_order(0)["index"].tolist() for loader in (train, another(config(beton), seed=1))]
    assert orders[0] != orders[1]


def test_an_image_gets_a_new_crop_in_each_epoch(train):
    first, second = ({row["index"]: row.tolist() for row in rows_of(train, epoch)} for epoch in (0, 1))
    both = first.keys() & second.keys()
    assert len(both) > 10 and not any(first[index] == second[index] for index in both)


@pytest.mark.parametrize("taken", [0, 1, 3, 7, 9, 10])
def test_leaving_an_epoch_early_leaves_no_thread(train, taken):
    threads = threading.active_count()
    closed, dropped = train.epoch(0), train.epoch(0)
    for _ in range(taken):
        next(closed)
        next(dropped)
    if taken == 1:
        assert threading.active_count() == threads + 4, "one thread decodes and one reads ahead for each"
    closed.close()
    del dropped
    gc.collect()
    assert threading.active_count() == threads


def test_a_decoding_thread_that_dies_raises_and_does_not_hang(train, monkeypatch):
    decode = DecodingThread.run_pipeline

    def die_at_two(self, number, *args):
        if number == 2:
            raise OSError("disk gone")
        return decode(self, number, *args)

    monkeypatch.setattr(DecodingThread, "run_pipeline", die_at_two)
    threads, seen = threading.active_count(), 0
    with pytest.raises(RuntimeError, match="died: OSError.'disk gone'"):
        for _ in train.epoch(0):
            seen += 1
    assert seen == 2 and threading.active_count() == threads


def test_an_epoch_garbage_collected_in_its_own_decoding_thread_ends(train, monkeypatch):
    decode, dropped, collected = DecodingThread.run_pipeline, threading.Event(), threading.Event()

    def collect(self, number, *args):
        if number == 3:
            dropped.wait(20)
            gc.collect()
            collected.set()
        return decode(self, number, *args)

    monkeypatch.setattr(DecodingThread, "run_pipeline", collect)
    gc.disable()
    try:
        threads, cycle = threading.active_count(), [train.epoch(0)]
        next(cycle[0])
        cycle.append(cycle)
        del cycle
        dropped.set()
        assert collected.wait(20)
    finally:
        gc.enable()
    deadline = time.monotonic() + 20
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() == threads, threading.enumerate()


@pytest.mark.parametrize("is_enabled", [False, True])
def test_torchs_thread_number_and_ffcvs_compiler_are_left_as_they_were(beton, train, is_enabled):
    num_threads, was_enabled = torch.get_num_threads(), Compiler.is_enabled
    torch.set_num_threads(num_threads + 1)
    Compiler.set_enabled(is_enabled)
    try:
        epoch_of(train)
        build_loader(config(beton), split="val", micro_batch_size=2)
        assert torch.get_num_threads() == num_threads + 1 and Compiler.is_enabled == is_enabled
    finally:
        torch.set_num_threads(num_threads)
        Compiler.set_enabled(was_enabled)


def test_invalid_settings_are_rejected_before_the_first_step(beton, train):
    ok = dict(split="train", micro_batch_size=2)
    for data, options, message in [
        (config(beton), ok | {"micro_batch_size": 23}, "22 training images are fewer than one global batch"),
        (config(beton), ok | {"global_batch_size": 5}, "global_batch_size must be a multiple"),
        (config(beton), ok | {"global_batch_size": 0}, "global_batch_size must be at least 1, got 0"),
        (config(beton), ok | {"device": "gpu"}, "device must be a torch device .* got 'gpu'"),
        (config(beton), ok | {"micro_batch_size": 0}, "micro_batch_size must be at least 1"),
        (config(beton), ok | {"split": "test"}, "split must be one of train, val"),
        (config(beton), ok | {"rank": 1}, "got rank 1 of 1"),
        (config(beton, num_classes=10), ok, "data.train must have data.num_classes=10 classes, but .* has 2"),
        (config(beton, num_classes=9), ok | {"split": "val"}, "has 2: use images of all classes, or"),
        (config(beton, order="quasi_random"), ok, "data.order=quasi_random needs a shuffled file"),
        (config("no.beton"), ok, "'no.beton' must be a .beton file"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_loader(data, **options)
    for start_step in (-1, 6):
        with pytest.raises(ValueError, match=r"start_step must be in \[0, 5\]"):
            train.epoch(0, start_step=start_step)


@pytest.mark.parametrize("fraction, shorter", [(1.0, 16), (0.5, 32)])
def test_validation_crops_by_its_settings_like_torchvision(tmp_path, fraction, shorter):
    path = write_beton(tmp_path, 2, write_mode="raw")
    ((images, _),) = another(config(path, val_crop_fraction=fraction), split="val").epoch(0)
    for image, file in zip(images, sorted(tmp_path.rglob("*.png")), strict=True):
        expected = CenterCrop(SIZE)(Resize(shorter, InterpolationMode.BICUBIC)(Image.open(file)))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(expected))
