"""Sharded and offloaded teachers, DeepSpeed's ZeRO-3 with gathered blocks, on the simulated device."""

from collections import deque
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from unittest import mock

import pytest
import timm
import torch
from deepspeed.runtime.zero import partition_parameters

from tests.engine import tiny
from tests.late.device import late_device
from tests.late.memory import Memory, size_of
from tests.late.orders import in_orders
from tests.late.streams import Stream
from tests.late.without import without
from vitkd_ds.config.run import TeacherConfig
from vitkd_ds.engine import ds_config, teacher
from vitkd_ds.engine.teacher import Teacher

pytestmark = pytest.mark.usefixtures("one_rank")
DEPTH = 4
MOST_BLOCKS = {"offload": 2, "shard": 3}


def block_bytes():
    """Return the bytes of a block in bf16 on the device."""
    numel = sum(p.numel() for p in tiny.make_models()[1].blocks[0].parameters())
    return size_of(torch.empty(numel, dtype=torch.bfloat16))


def make_teacher(placement, device, *, width=32, left=None):
    config = TeacherConfig(model="deit3_small_patch16_224", checkpoint="random", placement=placement)
    run = replace(tiny.RUN, teachers={"teacher": config})
    torch.manual_seed(0)
    options = {"embed_dim": width, "num_heads": 2, "init_values": 0.1, **tiny.SIZE, "depth": DEPTH}
    model = timm.create_model(config.model, **options).eval()
    return Teacher(model, run, device=torch.device(device), micro_batch_size=8, left=left)


def features(teacher, device, times=2):
    """Return the features of a few different batches, which were not read yet."""
    images_BCHW = tiny.make_batch(8)[0].to(device)
    return [value for i in range(times) for value in tiny.tensors(teacher(images_BCHW.roll(i, 0)))]


class GatheredLate:
    """As if a second rank had a part of each block: gathering copies it, and the host does not wait for the copy."""

    def __init__(self, params):
        self._params = params if isinstance(params, list) else [params]
        for p in self._params:
            p.data = p.ds_tensor.data.clone().view(p.ds_shape)

    def wait(self, **_options):
        """Mark the parameters as available."""
        for p in self._params:
            p.ds_status = partition_parameters.ZeroParamStatus.AVAILABLE


@contextmanager
def as_on_two_ranks(ahead_bytes):
    """Let a sharded teacher gather block by block on one rank, without DeepSpeed's prefetching."""
    resolve_auto = ds_config.resolve_auto

    def resolved(config, *, world_size):
        resolve_auto(config, world_size=2)
        config["zero_optimization"]["stage3_prefetch_bucket_size"] = 0

    with (
        mock.patch.multiple(partition_parameters, NoGatherHandle=GatheredLate, NoGatherCoalescedHandle=GatheredLate),
        mock.patch.multiple(teacher, resolve_auto=resolved, keeps_whole=lambda placement: False),
        mock.patch.object(ds_config, "AHEAD_BYTES", ahead_bytes),
    ):
        yield


def late_features(seed, placement):
    """Return features and the largest number of gathered blocks for which there was memory at once."""
    gathering = as_on_two_ranks(block_bytes()) if placement == "shard" else nullcontext()
    with late_device(seed) as device, gathering:
        found = features(make_teacher(placement, "cuda"), "cuda")
        reserved = device.memory.reserved.items()
        blocks = [number for (stream, size), number in reserved if stream is not device.order.default
                  and size == block_bytes()]  # fmt: skip
        return [device.read(values) for values in found], sum(blocks)


@pytest.fixture(scope="module")
def expected(one_rank):
    return features(make_teacher("replica", "cpu"), "cpu")


@pytest.mark.parametrize("placement", MOST_BLOCKS)
@in_orders(1, many=101)
def test_features_equal_the_replicas_with_few_blocks_on_the_device_in_every_order(orders, placement, expected):
    most = 0
    for seed in orders:
        found, num_blocks = late_features(seed, placement)
        assert all(map(torch.equal, found, expected)), seed
        most = max(most, num_blocks)
    assert most == MOST_BLOCKS[placement], "the limit is reached if the device is slow, but never exceeded"


def test_a_replica_gives_the_same_features(expected):
    with late_device(0) as device:
        found = features(make_teacher("replica", "cuda"), "cuda")
        assert all(torch.equal(device.read(values), other) for values, other in zip(found, expected))


@pytest.mark.parametrize(
    "placement, where, old, new",
    [
        ("offload", "Pace.wait", "self._left.popleft()[0].synchronize()", "self._left.popleft()"),
        ("offload", "Pace._leave", "get_accelerator().current_stream().record_event()", "get_accelerator().Event()"),
        ("shard", "Pace._leave", "self.wait()", ""),
        ("shard", "runs_ahead", "not get_accelerator().is_synchronized_device()", "False"),
    ],
)
def test_without_the_pace_more_blocks_are_on_the_device(placement, where, old, new, expected):
    with without(teacher, where, old, new):
        found, num_blocks = late_features(0, placement)
    assert all(map(torch.equal, found, expected)) and num_blocks > MOST_BLOCKS[placement]


@pytest.mark.parametrize("owner, name", [(Memory, "record_stream"), (Stream, "wait_stream")])
def test_without_deepspeeds_waits_features_are_wrong(owner, name, expected):
    with mock.patch.object(owner, name, lambda *_: None):
        assert not all(all(map(torch.equal, late_features(seed, "shard")[0], expected)) for seed in range(4))


def waiting_blocks_of_another(seed):
    """Return the blocks of a large teacher that still wait when a small teacher, which runs next, gathers its first."""
    with late_device(seed, eager=0), as_on_two_ranks(ahead_bytes=0):
        left = deque()
        large, small = (make_teacher("shard", "cuda", width=width, left=left) for width in (32, 8))
        found = []
        first = small.module.module.model.blocks[0]
        first.register_forward_pre_hook(lambda *_: found.append(sum(not event.query() for event, _ in left)))
        images_BCHW = tiny.make_batch(8)[0].to("cuda")
        for each in 3 * (large, small):  # at first, DeepSpeed compares the ranks' traces, and waits
            each(images_BCHW)
        return found[-1]


def test_a_teacher_waits_for_the_blocks_of_another_that_ran_before():
    assert waiting_blocks_of_another(0) == waiting_blocks_of_another(1) == 0
    with without(teacher, "Teacher.__call__", "self._pace.wait()"):
        assert any(waiting_blocks_of_another(seed) for seed in range(4))
