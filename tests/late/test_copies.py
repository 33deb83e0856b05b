"""The loader's copies to the device, from a ring of pinned buffers that decoding overwrites."""

from textwrap import indent
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.late.device import late_device
from tests.late.orders import in_orders
from tests.late.without import without
from vitkd_ds.data import epochs, transfer
from vitkd_ds.data.transfer import CopyStream, send

NUM_BATCHES, BATCH = 8, 4
PIXELS = np.arange(NUM_BATCHES * BATCH, dtype=np.uint8) + 1
LABELS = np.arange(NUM_BATCHES * BATCH)[::-1] % 10


class RingOfImages:
    """Images that are decoded into two pinned buffers in turn, as FFCV does."""

    labels = LABELS
    unread: tuple[int, ...] = ()

    def __init__(self, device):
        self.buffers = [device.pinned(np.zeros((BATCH, 2, 2, 3), np.uint8)) for _ in range(2)]

    def decoded(self, samples):
        """Yield images with one pixel value each, and their status."""
        for number, first in enumerate(range(0, len(samples), BATCH)):
            buffer_BHWC = self.buffers[number % 2]
            buffer_BHWC[:] = PIXELS[first : first + BATCH, None, None, None]
            yield buffer_BHWC, np.zeros(BATCH, np.int32)


def loader_on(device):
    """Return a loader with only what its loop needs."""
    loader = object.__new__(epochs.Loader)
    loader._images = RingOfImages(device)
    loader._device = torch.device("cuda")
    loader._copies = CopyStream(loader._device)
    loader._normalize = None
    loader._data = SimpleNamespace(on_bad="error")
    loader._is_train = True
    loader.num_skipped = 0
    return loader


def micro_batches(loader):
    return loader._micro_batches(np.zeros(NUM_BATCHES * BATCH, [("index", np.int64)]), LABELS)


def seen(seed):
    """Return pixels and labels that a training loop reads late, while it drops the micro-batches."""
    found = []
    with late_device(seed) as device:
        weights_DD = torch.ones(8, 8, device="cuda")
        for images_BCHW, labels_B in micro_batches(loader_on(device)):
            for _ in range(3):  # keeps the device busy
                weights_DD = (weights_DD @ weights_DD).clamp(-1, 1)
            found.append((images_BCHW.float().mean((1, 2, 3)), labels_B * 1))
            del images_BCHW, labels_B
        return [device.read(torch.cat(values)).tolist() for values in zip(*found)]


EXPECTED = [PIXELS.astype(float).tolist(), LABELS.tolist()]


@in_orders(20, many=1020, each=500)
def test_a_training_loop_sees_every_image_in_every_order(orders):
    for seed in orders:
        assert seen(seed) == EXPECTED, seed


def first_micro_batch(seed):
    """Return the first images of a loop that ends at once, after the ring's buffers were overwritten."""
    with late_device(seed) as device:
        loader = loader_on(device)
        running = micro_batches(loader)
        images_BCHW, _ = next(running)
        running.close()
        for buffer_BHWC in loader._images.buffers:
            buffer_BHWC[:] = 0
        return device.read(images_BCHW)[:, 0, 0, 0].tolist()


@in_orders(20, many=520, each=500)
def test_a_loop_that_ends_early_leaves_no_copy_behind(orders):
    assert all(first_micro_batch(seed) == EXPECTED[0][:BATCH] for seed in orders)


LOOP = "Loader._micro_batches"
WAIT = "if copied is not None:\n    copied.synchronize()\n"


@pytest.mark.parametrize(
    "module, where, old, new",
    [
        (epochs, LOOP, f"{WAIT}first = chunk.stop", "first = chunk.stop"),
        (transfer, "CopyStream.copy", "current.wait_event(copied)", ""),
        (transfer, "CopyStream.copy", "tensor.record_stream(current)", ""),
    ],
)
def test_without_one_of_its_waits_a_loop_sees_other_images(module, where, old, new):
    with without(module, where, old, new):
        assert any(seen(seed) != EXPECTED for seed in range(30))


def test_without_the_wait_at_its_end_a_loop_leaves_a_copy_behind():
    last = f"try:\n    ...\nfinally:\n{indent(WAIT, '    ')}"
    with without(epochs, LOOP, last, "try:\n    ...\nfinally:\n    pass"):
        assert any(first_micro_batch(seed) != EXPECTED[0][:BATCH] for seed in range(30))


def test_copies_do_not_make_the_host_wait():
    with late_device(0, eager=0) as device:
        torch.ones(3, device="cuda")
        tensor, copied = CopyStream(torch.device("cuda")).copy(device.pinned(np.ones(3)))
        labels_B = send(np.arange(3), torch.device("cuda"))
        assert not copied.query() and not device.order.default.num_done
        assert (tensor.tolist(), labels_B.tolist()) == ([1, 1, 1], [0, 1, 2])


@pytest.mark.parametrize("where", ["send", "CopyStream.copy"])
def test_a_copy_that_waits_is_noticed(where):
    with without(transfer, where, "non_blocking=True", "non_blocking=False"), pytest.raises(AssertionError):
        test_copies_do_not_make_the_host_wait()


def test_an_event_that_does_not_follow_its_copy_is_noticed():
    with without(transfer, "CopyStream.copy", "self._stream.record_event()", "current.record_event()"):
        assert any(seen(seed) != EXPECTED for seed in range(30))
