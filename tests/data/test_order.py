"""Laws of the order: each image once, the same images per step at any number of ranks, every validation image once."""

import numpy as np
import pytest

from vitkd_ds.data.order import keyed_rng, rank_slice, train_order, val_shard


def test_an_epoch_shows_each_image_at_most_once_and_only_whole_global_batches():
    order = train_order(103, seed=0, epoch=0, global_batch_size=10)
    assert order.dtype == np.int64 and order.shape == (100,)
    assert len(set(order)) == 100 and 0 <= order.min() and order.max() < 103


@pytest.mark.parametrize("world_size, micro_batch_size", [(1, 12), (1, 3), (2, 6), (2, 3), (3, 4), (3, 2), (3, 1)])
def test_a_step_has_the_same_set_of_images_at_any_number_of_ranks(world_size, micro_batch_size):
    order = train_order(50, seed=3, epoch=2, global_batch_size=12)
    shards = [
        rank_slice(order, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size, global_batch_size=12)
        for rank in range(world_size)
    ]
    steps = np.stack([shard.reshape(4, -1) for shard in shards], axis=1).reshape(4, 12)
    np.testing.assert_array_equal(np.sort(steps, axis=1), np.sort(order.reshape(4, 12), axis=1))


def test_a_micro_batch_holds_the_same_images_at_one_and_two_ranks():
    order = train_order(24, seed=0, epoch=0, global_batch_size=12)
    one = rank_slice(order, rank=0, world_size=1, micro_batch_size=3, global_batch_size=12).reshape(-1, 3)
    two = [
        rank_slice(order, rank=r, world_size=2, micro_batch_size=3, global_batch_size=12).reshape(-1, 3) for r in (0, 1)
    ]
    assert {tuple(m) for m in one} == {tuple(m) for rank in two for m in rank}


def test_neighbouring_seeds_and_epochs_give_different_orders():
    orders = [tuple(train_order(40, seed=s, epoch=e, global_batch_size=40)) for s in (7, 8) for e in (0, 1)]
    assert len(set(orders)) == 4
    assert orders[0] == tuple(train_order(40, seed=7, epoch=0, global_batch_size=40))


def test_the_whole_key_decides_what_a_generator_draws():
    draws = [keyed_rng(*key).random() for key in [(8, 0), (7, 1), (8,), (8, 0, 0), (0, 8)]]
    assert len(set(draws)) == 5
    assert keyed_rng(8, 0).random() == draws[0]


def test_too_few_images_for_a_global_batch_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="found 9 training images and global_batch_size 10"):
        train_order(9, seed=0, epoch=0, global_batch_size=10)


def test_a_global_batch_that_the_ranks_cannot_share_is_refused():
    with pytest.raises(ValueError, match="found 10 and 4 x 2 = 8"):
        rank_slice(np.arange(10), rank=0, world_size=2, micro_batch_size=4, global_batch_size=10)


@pytest.mark.parametrize("num_images", [1, 2, 7, 10])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_validation_image_is_real_on_exactly_one_rank(num_images, world_size):
    shards = [val_shard(num_images, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(indices) for indices, _ in shards} == {-(-num_images // world_size)}
    real = np.concatenate([indices[is_real] for indices, is_real in shards])
    assert sorted(real) == list(range(num_images))
    assert all(0 <= indices.min() and indices.max() < num_images for indices, _ in shards)


def test_no_validation_image_and_no_such_rank_are_refused():
    with pytest.raises(ValueError, match="at least one image, found 0"):
        val_shard(0, rank=0, world_size=1)
    with pytest.raises(ValueError, match="found rank 2 of 2"):
        val_shard(5, rank=2, world_size=2)
