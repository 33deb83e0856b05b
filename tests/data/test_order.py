"""Invariants of the order: each image once, equal steps at any number of ranks, every validation image once."""

import numpy as np
import pytest

from vitkd_ds.data.order import SAMPLE_DTYPE, quasi_random_order, random_order, rank_slice, val_share


def order_of(num_images, *, kind="random", seed=0, epoch=0, repeats=1, global_batch_size=12):
    key = dict(seed=seed, epoch=epoch, repeats=repeats, global_batch_size=global_batch_size)
    if kind == "random":
        return random_order(num_images, **key)
    offsets = 20 * np.arange(num_images, dtype=np.uint64)  # five images per page
    return quasi_random_order(offsets, file_bytes=20 * num_images, page_bytes=100, **key)


def shares_of(samples, world_size, micro_batch_size):
    sizes = dict(world_size=world_size, micro_batch_size=micro_batch_size)
    return [rank_slice(samples, rank=rank, **sizes) for rank in range(world_size)]


@pytest.mark.parametrize("kind", ["random", "quasi_random"])
def test_an_epoch_shows_images_at_most_once_in_a_new_order_and_whole_global_batches(kind):
    order = order_of(103, kind=kind, global_batch_size=10, epoch=3)
    assert order.dtype == SAMPLE_DTYPE and order.shape == (100,) and (order["epoch"] == 3).all()
    assert len(set(order["index"])) == 100 and 0 <= order["index"].min() and order["index"].max() < 103
    assert not order["repeat"].any()
    orders = [tuple(order_of(48, kind=kind, seed=s, epoch=e)["index"]) for s in (7, 8) for e in (0, 1)]
    assert len(set(orders)) == 4
    assert orders[0] == tuple(order_of(48, kind=kind, seed=7, epoch=0)["index"])


@pytest.mark.parametrize("kind", ["random", "quasi_random"])
@pytest.mark.parametrize("repeats", [2, 3, 5])
def test_repeated_augmentation_shows_some_images_several_times_and_keeps_the_length(kind, repeats):
    order = order_of(100, kind=kind, repeats=repeats)
    assert len(order) == 96 and len(set(order.tolist())) == 96
    counts = np.bincount(order["index"])
    assert len(counts[counts > 0]) >= 96 / repeats and counts.max() == repeats
    assert (counts == repeats).sum() * repeats >= 96 - 12 * repeats
    if kind == "random":  # copies share a global batch, far from each other
        places = [np.flatnonzero(order["index"] == i) for i in np.flatnonzero(counts == repeats)]
        same_step = [p for p in places if len(set(p // 12)) == 1]
        assert len(same_step) > len(places) / 2 and all(np.diff(p).min() >= 12 // repeats - 1 for p in same_step)


@pytest.mark.parametrize("kind", ["random", "quasi_random"])
@pytest.mark.parametrize("world_size, micro_batch_size", [(1, 12), (1, 3), (2, 6), (2, 3), (3, 4), (3, 2), (3, 1)])
def test_a_step_has_the_same_set_of_images_at_any_number_of_ranks(kind, world_size, micro_batch_size):
    order = order_of(50, kind=kind, seed=3, epoch=2)["index"]
    shares = shares_of(order, world_size, micro_batch_size)
    steps = np.stack([share.reshape(4, -1) for share in shares], axis=1).reshape(4, 12)
    np.testing.assert_array_equal(np.sort(steps, axis=1), np.sort(order.reshape(4, 12), axis=1))


def test_a_quasi_random_order_reads_few_pages_at_a_time_in_each_lane(monkeypatch):
    monkeypatch.setattr("vitkd_ds.data.order.WINDOW_BYTES", 4 * 10 * 20)  # ten images of 20 bytes in each of 4 lanes
    order = order_of(4000, kind="quasi_random", global_batch_size=20)["index"].reshape(-1, 4, 5)
    for lane in range(4):
        pages = order[:, lane] // 5
        per_window = [len(set(pages[first : first + 2].ravel())) for first in range(0, len(pages), 2)]
        assert max(per_window) <= 4  # two whole pages, or parts of up to four
    steps = order.reshape(-1, 20)
    assert np.abs(np.corrcoef(steps[:, 0], np.arange(len(steps)))[0, 1]) < 0.2  # pages themselves are shuffled
    assert len({tuple(sorted(page % 5)) for page in order[:, 0]}) > 1


@pytest.mark.parametrize("num_images", [1, 2, 7, 10])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_validation_image_is_real_on_exactly_one_rank(num_images, world_size):
    shares = [val_share(num_images, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(indices) for indices, _ in shares} == {-(-num_images // world_size)}
    real = np.concatenate([indices[is_real] for indices, is_real in shares])
    assert sorted(real) == list(range(num_images))
    assert all(0 <= indices.min() and indices.max() < num_images for indices, _ in shares)


@pytest.mark.parametrize(
    "function, arguments, options, message",
    [
        (order_of, [9], {"global_batch_size": 10}, "9 training images are fewer than one global batch"),
        (order_of, [9], {"global_batch_size": 10, "kind": "quasi_random"}, "9 training images .*global_batch_size=10"),
        (shares_of, [np.arange(10), 2, 4], {}, r"has 10 images left, .* \(4 x 2\)"),
        (val_share, [0], {"rank": 0, "world_size": 1}, "at least one image, got 0"),
        (val_share, [5], {"rank": 2, "world_size": 2}, "got rank 2 of 2"),
    ],
)
def test_an_indivisible_batch_is_rejected_with_its_numbers(function, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments, **options)
