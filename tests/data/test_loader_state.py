"""state_dict: resuming at the very next image on the same or another world size; quasi-random order."""

from contextlib import closing

import pytest
import torch

from tests.data.conftest import write_beton
from tests.data.test_loader import another, config, same
from vitkd_ds.config.run import AugmentConfig


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory):
    """50 images in a random order."""
    return write_beton(tmp_path_factory.mktemp("shuffled"), 50, write_mode="raw", shuffle=True)


def loader_of(path, *, order="random", **changes):
    return another(config(path, order=order), **{"micro_batch_size": 2, "global_batch_size": 12} | changes)


@pytest.mark.parametrize("order", ["random", "quasi_random"])
def test_a_loaded_state_continues_with_the_very_next_micro_batch_and_the_next_epochs(shuffled, order):
    whole = loader_of(shuffled, order=order)
    expected = [images for _ in range(2) for images, _ in whole]
    first = loader_of(shuffled, order=order)
    micro_batches = iter(first)
    taken = [next(micro_batches)[0] for _ in range(7)]
    state = first.state_dict()
    micro_batches.close()
    assert state["epoch"] == 0 and state["images"] == 14 and same(taken, expected[:7])
    second = loader_of(shuffled, order=order)
    second.load_state_dict(state)
    assert same([images for _ in range(2) for images, _ in second], expected[7:])
    assert second.state_dict()["epoch"] == 2 and second.state_dict()["images"] == 0


@pytest.mark.parametrize("order", ["random", "quasi_random"])
@pytest.mark.parametrize("world_size, micro_batch_size", [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_another_number_of_ranks_sees_each_image_of_the_epoch_once(shuffled, order, world_size, micro_batch_size):
    options = {"order": order, "augment": AugmentConfig(random_erasing=0.5)}
    two = [loader_of(shuffled, rank=rank, world_size=2, micro_batch_size=3, **options) for rank in (0, 1)]
    expected = torch.cat([i for pair in zip(*[list(loader.epoch(0)) for loader in two]) for i, _ in pair])
    iterators = [iter(loader) for loader in two]
    done = torch.cat([next(iterator)[0] for _ in range(3) for iterator in iterators])
    assert two[0].state_dict() == two[1].state_dict()
    options |= {"world_size": world_size, "micro_batch_size": micro_batch_size}
    others = [loader_of(shuffled, rank=rank, **options) for rank in range(world_size)]
    for other in others:
        other.load_state_dict(two[0].state_dict())
    rest = torch.cat([images for dealt in zip(*others, strict=True) for images, _ in dealt])
    assert torch.equal(torch.cat([done, rest]), expected)
    for iterator in iterators:
        iterator.close()


def test_a_state_after_the_last_micro_batch_resumes_at_the_next_epoch(shuffled):
    first, second = loader_of(shuffled), loader_of(shuffled)
    with closing(iter(first)) as micro_batches:
        for _ in range(first.num_batches):
            next(micro_batches)
        state = first.state_dict()
    assert (state["epoch"], state["images"]) == (1, 0)
    for of_old_time in (state, state | {"epoch": 0, "images": 48}):
        second.load_state_dict(of_old_time)
        assert same([images for images, _ in second], [images for images, _ in first.epoch(1)])


def test_an_older_iterator_does_not_move_the_state_of_a_newer_one_or_of_a_loaded_state(shuffled):
    loader = loader_of(shuffled)
    older = iter(loader)
    next(older)
    newer = iter(loader)
    expected = [images for images, _ in loader.epoch(0)]
    with pytest.raises(ValueError, match="is outdated, because a newer one was started"):
        next(older)
    assert same([next(newer)[0]], expected[1:2]) and loader.state_dict()["images"] == 4
    loader.load_state_dict(loader.state_dict() | {"images": 10})
    with pytest.raises(ValueError, match="a newer one was started or a state was loaded"):
        next(newer)
    assert same([images for images, _ in loader], expected[5:])
    with pytest.raises(ValueError, match="is outdated, because a newer one was started"):
        list(zip(loader, loader))


def test_iterating_over_a_validation_loader_gives_each_image_once_each_time(shuffled):
    loader = loader_of(shuffled, split="val", micro_batch_size=8)
    first, again, epoch = ([images for images, _ in pass_] for pass_ in (loader, loader, loader.epoch(0)))
    assert sum(map(len, first)) == 50 and same(first, again) and same(first, epoch)


def test_an_incompatible_state_is_rejected(shuffled, beton, tmp_path):
    loader = loader_of(shuffled)
    state = loader.state_dict()
    for other, wrong, message in [
        (loader_of(shuffled, seed=1), state, "saved with seed 0, but the loader has 1"),
        (loader_of(shuffled, global_batch_size=24), state, "global_batch_size 12, but the loader has 24"),
        (loader_of(beton), state, "num_images 50, but the loader has 22"),
        (loader_of(shuffled, order="quasi_random"), state, "order random, but the loader has quasi_random"),
        (loader_of(shuffled, augment=AugmentConfig(repeats=3)), state, "repeats 1, but the loader has 3"),
        (loader_of(write_beton(tmp_path, 50, write_mode="raw")), state, "saved with fingerprint"),
        (loader_of(shuffled, micro_batch_size=12), state | {"images": 2}, "has 46 images left, .*12 x 1"),
        (loader, state | {"images": -4}, "image -4 of epoch 0 is out of range"),
        (loader, state | {"images": 49}, "image 49 of epoch 0 .* has 48 images"),
        (loader, state | {"epoch": -1}, "epoch -1"),
        (loader, state | {"epoch": "1"}, "epoch must be an integer, got '1'"),
        (loader, state | {"images": 2.0}, "images must be an integer, got 2.0"),
        (loader, state | {"images": None}, "images must be an integer, got None"),
        (loader, {"epoch": 0}, "must come from its state_dict"),
    ]:
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(wrong)
    with pytest.raises(ValueError, match="only a training loader has a state"):
        loader_of(shuffled, split="val").state_dict()
