"""Mixing and normalising micro-batches on the simulated device."""

from dataclasses import replace
from unittest import mock

import pytest
import torch

from tests.engine import tiny
from tests.late.device import late_device
from tests.late.orders import in_orders
from tests.late.without import without
from vitkd_ds.data import transfer
from vitkd_ds.train.inputs import Inputs

AUGMENT = replace(tiny.RUN.augment, mixup_alpha=0.8, cutmix_alpha=1.0)
DATA = replace(tiny.RUN.data, num_classes=10)
MODES = ("batch", "element")


def render(mode, device):
    """Return a function that mixes and normalises the micro-batch of a step."""
    run = replace(tiny.RUN, augment=replace(AUGMENT, mix_mode=mode), data=DATA)
    inputs = Inputs(run, tiny.NORMALIZATION, torch.bfloat16, {}, torch.device(device))
    images_BCHW, targets_BK = (values.to(device) for values in tiny.make_batch(8))
    labels_B = targets_BK.argmax(1)
    return lambda step: inputs(images_BCHW, labels_B, step=step, place=0)


def mixed(mode, device):
    """Return images and targets of a few steps, which were not read yet."""
    rendered = render(mode, device)
    found = [rendered(step) for step in range(4)]
    return [value for images_BCHW, _, targets_BK in found for value in (images_BCHW, targets_BK)]


@pytest.mark.parametrize("mode", MODES)
@in_orders(4, many=504, each=500)
def test_mixed_images_and_targets_have_the_cpus_bits_in_every_order(orders, mode):
    expected = mixed(mode, "cpu")
    assert len({values.double().sum().item() for values in expected[::2]}) == 4
    for seed in orders:
        with late_device(seed) as device:
            found = mixed(mode, "cuda")
            assert all(torch.equal(device.read(one), two) for one, two in zip(found, expected)), seed


def mix_without_waiting(mode):
    with late_device(0, eager=0) as device:
        rendered = render(mode, "cuda")
        rendered(0)  # the normalisation's constants are copied once
        with mock.patch.object(device.order, "run_until", side_effect=AssertionError("the host waited")):
            for step in range(1, 4):
                rendered(step)


@pytest.mark.parametrize("mode", MODES)
def test_mixing_does_not_make_the_host_wait(mode):
    mix_without_waiting(mode)
    blocking = without(transfer, "send", "non_blocking=True", "non_blocking=False")
    with blocking, pytest.raises(AssertionError, match="the host waited"):
        mix_without_waiting(mode)
