"""The student's engine, DeepSpeed's ZeRO-2 with overlap and small buckets, on the simulated device."""

import math
from dataclasses import replace
from unittest import mock

import pytest
import torch

from tests.engine import tiny
from tests.late.device import late_device
from tests.late.orders import in_orders
from tests.late.rig import RUN, Rig
from tests.late.streams import Stream
from tests.late.without import without
from vitkd_ds.engine import student

pytestmark = pytest.mark.usefixtures("one_rank")


def late_results(seed, **options):
    with late_device(seed) as device:
        found = Rig("cuda").update(**options).read(device.read)
        assert device.memory.num_reused > 500 and len(device.order.streams) > 1
    return found


@pytest.fixture(scope="module")
def expected(one_rank):
    return Rig("cpu").update().read(torch.Tensor.detach)


@in_orders(2, many=302)
def test_updates_give_the_cpus_bits_in_every_order(orders, expected):
    assert len(expected[1][-1]) > 100 and len({outcome[0] for outcome in expected[0]}) == 2
    for seed in orders:
        assert late_results(seed) == expected, seed


@in_orders(1, many=31)
def test_a_skipped_update_is_known_late_and_changes_nothing(orders):
    expected = Rig("cpu").update(steps=3, bad_step=1).read(torch.Tensor.detach)
    assert [outcome[0] == outcome[0] for outcome in expected[0]] == [True, False, False]
    for seed in orders:
        assert repr(late_results(seed, steps=3, bad_step=1)) == repr(expected), seed


def test_the_host_queues_updates_without_waiting():
    with late_device(0, eager=0) as device:
        rig = Rig("cuda", run=replace(RUN, ds_config=tiny.RUN.ds_config)).update(steps=1)
        with mock.patch.object(device.order, "run_until", side_effect=AssertionError("the host waited")):
            rig.update(steps=1)
        assert all(math.isfinite(outcome.grad_norm) for outcome in rig.outcomes)


def is_caught(expected, seeds=range(4)):
    """Return whether an order gives other results."""
    return any(repr(late_results(seed)) != repr(expected) for seed in seeds)


def test_an_outcome_that_is_read_without_waiting_is_wrong(expected):
    with without(student, "Outcome._values", "self._event.synchronize()"):
        assert is_caught(expected)


def test_an_outcome_whose_event_comes_before_its_copy_is_wrong(expected):
    early = "self._event = get_accelerator().current_stream().record_event()\n"
    copy = "self._agreed = torch.empty_like(agreed, device='cpu', pin_memory=True).copy_(agreed, non_blocking=True)\n"
    with without(student, "Outcome.__init__", copy + early, early + copy):
        assert is_caught(expected)


def test_without_deepspeeds_waits_between_streams_updates_are_wrong(expected):
    with mock.patch.object(Stream, "wait_stream", lambda *_: None):
        assert is_caught(expected)


def test_an_outcome_that_waits_for_its_copy_is_noticed():
    blocking = without(student, "Outcome.__init__", "non_blocking=True", "non_blocking=False")
    with blocking, pytest.raises(AssertionError, match="the host waited"):
        test_the_host_queues_updates_without_waiting()
