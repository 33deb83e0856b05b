"""Subsets of a split: data.fraction, data.classes, data.indices; and class-balanced sampling."""

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.data.conftest import write_images
from vitkd_ds.commands.pack import pack
from vitkd_ds.config.run import DataConfig
from vitkd_ds.data import order
from vitkd_ds.data.beton.format import beton_fingerprint, read_beton
from vitkd_ds.data.classes import count_classes
from vitkd_ds.data.images import fingerprint_of
from vitkd_ds.data.loader import build_loader
from vitkd_ds.data.subset import choose

NAMES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """30 images, 10 from each of three classes in turn."""
    root = tmp_path_factory.mktemp("three")
    return pack(write_images(root / "images", 30, classes=NAMES), root / "x.beton", workers=1).path


def config(path, *, num_classes=3, **options):
    return DataConfig(train=str(path), val=str(path), image_size=24, num_classes=num_classes, **options)


def seen(data, *, split="train", epoch=0):
    """The epoch's image numbers, and the label that came with each; micro-batches of one."""
    loader = build_loader(data, split=split, micro_batch_size=1)
    samples = loader._train_order(epoch) if split == "train" else loader._val_samples()[0]
    labels = [int(labels_B) for _, labels_B in loader.epoch(epoch)]
    return samples["index"].tolist(), labels


def test_a_fraction_is_per_class_independent_of_the_seed_and_inside_a_larger_one(three):
    labels, parts = read_beton(three)[2], []
    for fraction, count in ((0.01, 1), (0.3, 3), (0.35, 4), (1.0, 10)):
        found, given = seen(config(three, fraction=fraction))
        assert np.bincount(labels[found]).tolist() == [count] * 3 and given == labels[found].tolist()
        assert len(set(found)) == 3 * count and set(parts[-1] if parts else ()) <= set(found)
        parts.append(found)
        assert sorted(seen(config(three, fraction=fraction), epoch=1)[0]) == sorted(found)
    assert len(seen(config(three, fraction=0.3), split="val")[0]) == 30


def test_a_fraction_of_two_decimals_takes_the_exact_number_of_images_rounded_up():
    sizes = np.array([600, 100, 50, 7])
    labels = np.repeat(np.arange(4), sizes)
    for percent in range(1, 100):
        expected = [math.ceil(Fraction(percent, 100) * size) for size in sizes.tolist()]
        chosen = choose(config("x", fraction=percent / 100), labels, split="train")
        assert np.bincount(labels[chosen]).tolist() == expected, percent
    chosen = choose(config("x", fraction=1e-5), labels, split="train")
    assert np.bincount(labels[chosen]).tolist() == [1, 1, 1, 1]


def test_classes_are_numbered_by_their_list_in_both_splits(three, tmp_path):
    (tmp_path / "names.txt").write_text("cat\nant\n")
    data, labels = config(three, num_classes=2, classes=str(tmp_path / "names.txt")), read_beton(three)[2]
    assert count_classes(data) == 2
    for split in ("train", "val"):
        found, given = seen(data, split=split)
        assert sorted(found) == [*range(10), *range(20, 30)]
        assert given == [{0: 1, 2: 0}[label] for label in labels[found].tolist()]
    (tmp_path / "names.txt").write_text("cat\nants\n")
    with pytest.raises(
        ValueError, match=r"class 'ants' in .*names.txt' \(data.classes\) is not a class of .*x.beton' \(did you mean"
    ):
        build_loader(data, split="train", micro_batch_size=1)
    assert build_loader(data, split="val", micro_batch_size=1).num_batches == 10, "validation may lack classes"


def test_an_index_file_gives_the_training_images(three, tmp_path, caplog):
    file = tmp_path / "indices.txt"
    file.write_text("3\n29\n\n11\n3\n")
    data = config(three, indices=str(file))
    assert sorted(seen(data)[0]) == [3, 11, 29]
    assert f"1 image numbers occur more than once in {str(file)!r} and count once; the first is 3" in caplog.text
    caplog.clear()
    file.write_text("3 29 11")
    assert sorted(seen(data)[0]) == [3, 11, 29] and not caplog.text
    assert len(seen(data, split="val")[0]) == 30
    states = []
    for text in ("3 29 11", "3 29 12"):
        file.write_text(text)
        states.append(build_loader(data, split="train", micro_batch_size=1).state_dict())
    with pytest.raises(ValueError, match="the state was saved with fingerprint"):
        build_loader(data, split="train", micro_batch_size=1).load_state_dict(states[0])
    for text, message in (
        ("30", "must be numbers from 0 to 29, got 30"),
        ("-1", "got -1"),
        ("x", "a number per line: .*'x'"),
        ("9" * 40, "a number per line"),
        ("", "indices.txt' select none of the 30 images"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            build_loader(data, split="train", micro_batch_size=1)
    with pytest.raises(ValueError, match="No such file"):
        build_loader(config(three, indices="/no"), split="train", micro_batch_size=1)


def test_the_subset_is_the_intersection_of_all_three_settings(tmp_path):
    (tmp_path / "i").write_text(" ".join(map(str, range(40))))
    labels = np.array([0, -1] * 40)
    data = config("x", indices=str(tmp_path / "i"), fraction=0.5)
    chosen = choose(data, labels, split="train")
    assert len(chosen) == 10 and (chosen % 2 == 0).all() and chosen.max() < 40 and (np.diff(chosen) > 0).all()


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_balanced_epoch_has_equal_classes_and_no_image_and_repeat_twice(repeats):
    labels = np.array([0] * 50 + [1] * 3 + [2] * 7)[np.random.default_rng(0).permutation(60)]
    key = {"seed": 1, "global_batch_size": 8, "repeats": repeats}
    samples = order.class_balanced_order(labels, epoch=4, **key)
    assert len(samples) == 56 and set(samples["epoch"]) == {4}
    drawn = np.bincount(labels[samples["index"]])
    assert drawn.max() - drawn.min() < 2 * repeats, "the last copies of the epoch may be cut off"
    assert len(set(zip(samples["index"].tolist(), samples["repeat"].tolist()))) == 56
    rare = np.bincount(samples["index"][labels[samples["index"]] == 1], minlength=60)[labels == 1]
    assert rare.max() - rare.min() < 2 * repeats and rare.min() > 1, "every image of a class appears before one repeats"
    again = order.class_balanced_order(labels, epoch=4, **key)
    other = order.class_balanced_order(labels, epoch=5, **key)
    assert (again == samples).all() and (other["index"] != samples["index"]).any()
    assert len(set(labels[samples["index"][:12]])) > 1, "and not class by class"


def test_a_balanced_run_sees_rare_classes_equally_often_with_new_crops(three, tmp_path):
    file = tmp_path / "indices.txt"
    file.write_text(" ".join(map(str, [*range(10), 10, 20])))  # ten ants, one bee, one cat
    data = config(three, indices=str(file), order="class_balanced")
    loader = build_loader(data, split="train", micro_batch_size=12)
    ((images, labels),) = loader.epoch(0)
    assert np.bincount(labels).tolist() == [4, 4, 4]
    assert len({image.numpy().tobytes() for image in images[labels == 1]}) > 1


@pytest.mark.parametrize("backend", ["ffcv", "torchvision"])
def test_the_fingerprint_is_that_of_the_images_used_with_and_without_opening_them(three, tmp_path, backend):
    files = {"order": "cat\nant\nbee\n", "other": "ant\ncat\nbee\n", "few": "0\n4\n8\n", "as many": "1\n4\n8\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    parts = [{}, {"fraction": 0.5}, {"fraction": 0.3}]
    parts += [{"classes": str(tmp_path / name)} for name in ("order", "other")]
    parts += [{"indices": str(tmp_path / name)} for name in ("few", "as many")]
    found = []
    for options in parts:
        data = config(three, backend=backend, **options)
        loader = build_loader(data, split="train", micro_batch_size=1)
        assert fingerprint_of(data, "train") == loader.fingerprint == loader.state_dict()["fingerprint"]
        found.append(loader.fingerprint)
    assert len(set(found)) == len(parts)
    info, stored, labels = read_beton(three)
    assert found[0] == beton_fingerprint(stored, labels), "as before subsets existed"
