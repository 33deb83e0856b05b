"""Reused memory: never overwritten while someone holds it, and not kept for ever."""

import gc
import threading
from queue import SimpleQueue

import numpy as np
import torch

from vitkd_ds.data.transfer import MAX_FREE, RecycledMemory


def values(number, shape=(4, 5)):
    return np.full(shape, number, np.uint8)


def test_held_memory_is_left_alone_and_free_memory_is_reused():
    memory = RecycledMemory()
    held = [memory.copy(values(number)) for number in range(5)]
    assert [int(tensor[0, 0]) for tensor in held] == list(range(5))
    address = held.pop().data_ptr()
    view = memory.copy(values(7))[1:]
    assert view.data_ptr() == address + 5
    assert memory.copy(values(8)).data_ptr() not in {address, *(tensor.data_ptr() for tensor in held)}
    assert torch.equal(view, torch.full((3, 5), 7, dtype=torch.uint8))


def test_only_a_few_arrays_are_kept_and_other_shapes_or_types_are_freed_in_the_end():
    memory = RecycledMemory()
    held = [memory.copy(values(number)) for number in range(50)]
    assert not memory._free
    del held
    assert len(memory._free) == MAX_FREE and int(memory.copy(values(50))[0, 0]) == 50
    memory = RecycledMemory()
    for shape in [(2, 2), (3, 3), (4, 4), (5, 5), (6, 6)]:
        assert memory.copy(values(1, shape)).shape == shape
    assert memory.copy(np.full((6, 6), 300, np.int64)).max() == 300
    assert [array.shape for array in memory._free] == [(6, 6), (6, 6)]


def test_any_reference_to_a_tensor_keeps_its_memory_and_threads_may_drop_tensors():
    memory = RecycledMemory()
    held = memory.copy(values(1))
    address, shared = held.data_ptr(), held.numpy()[1:]
    del held
    assert memory.copy(values(2)).data_ptr() != address and (shared == 1).all()
    del shared
    cycle = [memory.copy(values(3))]
    cycle.append(cycle)
    del cycle
    gc.collect()
    queue = SimpleQueue()
    dropping = threading.Thread(target=lambda: [None for _ in iter(queue.get, None)])
    dropping.start()
    for number in range(2000):
        tensor = memory.copy(values(number % 251))
        queue.put(tensor)
        assert (tensor == number % 251).all()
    queue.put(None)
    dropping.join()
