"""Memory that is used again: never under somebody's hands, and not kept for ever."""

import weakref

import numpy as np
import torch

from vitkd_ds.data.transfer import MAX_FREE, RecycledMemory


def values(number, shape=(4, 5)):
    return np.full(shape, number, np.uint8)


def test_what_is_held_is_left_alone_and_what_is_free_is_used_again():
    memory = RecycledMemory()
    held = [memory.copy(values(number)) for number in range(5)]
    assert [int(tensor[0, 0]) for tensor in held] == list(range(5))
    address = held.pop().data_ptr()
    view = memory.copy(values(7))[1:]
    assert view.data_ptr() == address + 5
    assert memory.copy(values(8)).data_ptr() not in {address, *(tensor.data_ptr() for tensor in held)}
    assert torch.equal(view, torch.full((3, 5), 7, dtype=torch.uint8))


def test_after_many_micro_batches_were_held_only_a_few_arrays_stay_and_those_of_another_shape_or_type_go_in_the_end():
    memory = RecycledMemory()
    held = [memory.copy(values(number)) for number in range(50)]
    arrays = [weakref.ref(array) for array in memory._arrays]
    del held
    last = memory.copy(values(50))
    assert sum(array() is not None for array in arrays) == MAX_FREE + 1 and int(last[0, 0]) == 50
    memory = RecycledMemory()
    for shape in [(2, 2), (3, 3), (4, 4), (5, 5), (6, 6)]:
        assert memory.copy(values(1, shape)).shape == shape
    assert memory.copy(np.full((6, 6), 300, np.int64)).max() == 300
    assert len(memory._arrays) == MAX_FREE + 1
