"""The student's engine, DeepSpeed's ZeRO-2 with overlap and small buckets, on the simulated device."""

import math
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.engine import tiny
from tests.late.device import late_device
from tests.late.orders import in_orders
from tests.late.streams import Stream
from tests.late.without import without
from vitkd_ds.engine import student

pytestmark = pytest.mark.usefixtures("one_rank")
OPTIM = replace(tiny.RUN.optim, ema_decay=0.5)
RUN = replace(tiny.RUN, ds_config=str(Path(__file__).with_name("overlap.json")), optim=OPTIM)


class Rig:
    """An engine, a teacher and a batch of two micro-batches on a device. No result is read before `read`."""

    def __init__(self, device, run=RUN):
        self.engine, self.teacher = tiny.make_engine(run, accumulation=2)
        for group in self.engine.engine.basic_optimizer.param_groups:
            group["fused"] = True
        self.teacher.to(device)
        self.images_BCHW, self.targets_BK = (values.to(device) for values in tiny.make_batch())
        self.noise_BP = torch.rand(16, 16, generator=torch.Generator().manual_seed(5)).to(device)
        self.weights = {name: weight.to(device) for name, weight in tiny.weights_of_terms().items()}
        self.bad = torch.ones((), device=device)
        self.totals, self.outcomes = [], []

    def update(self, steps=3, bad_step=None):
        """Queue a few updates."""
        for step in range(steps):
            self.engine.set_lr(1e-3)
            for images in (slice(0, 8), slice(8, 16)):
                own = mock.patch.object(tiny, "weights_of_terms", lambda: self.weights)
                with own, mock.patch.object(torch, "rand", lambda *_, images=images, **__: self.noise_BP[images]):
                    batch = self.images_BCHW[images], self.targets_BK[images], self.engine.dtype
                    total = tiny.forward(self.engine, self.teacher, *batch)["total"]
                self.engine.backward(total)
                self.totals.append(total.detach())
            veto = self.bad * 2 if step == bad_step else None
            self.outcomes.append(self.engine.step(veto=veto, count=self.bad * step))
        return self

    def read(self, read):
        """Return outcomes, losses, weights and averages, with a function that reads a tensor."""
        # First what needs the least waiting.
        outcomes = [(each.grad_norm, each.num_vetoes, each.counted, *each.group_norms) for each in self.outcomes]
        masters = self.engine.engine.optimizer.single_partition_of_fp32_groups
        averages = [self.engine._optimizer.state[master]["ema"] for master in masters]
        return outcomes, [read(tensor).tolist() for tensor in (*self.totals, *masters, *averages)]


def late_results(seed, **options):
    with late_device(seed) as device:
        found = Rig("cuda").update(**options).read(device.read)
        assert device.memory.num_reused > 500 and len(device.order.streams) > 1
    return found


@pytest.fixture(scope="module")
def expected(one_rank):
    return Rig("cpu").update().read(torch.Tensor.detach)


@in_orders(2, many=300)
def test_updates_give_the_cpus_bits_in_every_order(orders, expected):
    assert len(expected[1][-1]) > 100 and len({outcome[0] for outcome in expected[0]}) == 3
    for seed in orders:
        assert late_results(seed) == expected, seed


@in_orders(1, many=30)
def test_a_skipped_update_is_known_late_and_changes_nothing(orders):
    expected = Rig("cpu").update(bad_step=1).read(torch.Tensor.detach)
    assert [outcome[0] == outcome[0] for outcome in expected[0]] == [True, False, False]
    for seed in orders:
        assert repr(late_results(seed, bad_step=1)) == repr(expected), seed


def test_the_host_queues_updates_without_waiting():
    with late_device(0, eager=0) as device:
        rig = Rig("cuda", run=replace(RUN, ds_config=tiny.RUN.ds_config)).update(steps=1)
        with mock.patch.object(device.order, "run_until", side_effect=AssertionError("the host waited")):
            rig.update(steps=2)
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
