"""Whole runs on the simulated device: loader, mixing, teacher, student, moving average, evaluation and checkpoints."""

from contextlib import ExitStack
from unittest import mock

import pytest
import timm
import torch

from tests.conftest import numerics_of
from tests.late.device import late_device
from tests.late.orders import in_orders
from vitkd_ds.cli import parse_run
from vitkd_ds.data import transfer
from vitkd_ds.engine import processes
from vitkd_ds.engine.optimizers.adamw import Choice
from vitkd_ds.train import loop

pytestmark = pytest.mark.usefixtures("one_rank")
FLAGS = {
    "recipe": "demo",
    "debug": "true",
    "max_steps": "2",
    "global_batch_size": "4",
    "micro_batch_size_per_gpu": "2",
    "checkpoint.every_steps": "1",
    "log_every_steps": "1",
    "optim.ema_decay": "0.9",
    "augment.mixup_alpha": "0.8",
    "augment.cutmix_alpha": "1",
    "student.drop_path_rate": "0.2",
    "data.max_val_images": "4",
    "eval_every_epochs": "1",
}


def trained(workdir, data):
    """Train, and return the logged numbers, the predictions and the exported student."""
    flags = FLAGS | {"workdir": str(workdir), "data.train": str(data), "data.val": str(data)}
    with mock.patch.multiple(loop.watchdog, watch=mock.DEFAULT, leave_with=mock.DEFAULT):
        loop.train(parse_run((), flags))
    return numerics_of(workdir), (workdir / "student.safetensors").read_bytes()


@pytest.fixture(scope="module")
def expected(one_rank, tmp_path_factory, small_beton):
    step = Choice.step

    def step_as_on_a_gpu(self, *args):
        for group in self.param_groups:
            group["fused"] = True
        return step(self, *args)

    with mock.patch.object(Choice, "step", step_as_on_a_gpu):
        return trained(tmp_path_factory.mktemp("cpu") / "run", small_beton)


def trained_late(seed, workdir, data):
    copy = transfer.CopyStream.copy
    with ExitStack() as stack:
        device = stack.enter_context(late_device(seed))

        def from_pinned(self, values):
            return copy(self, device.pinned(values))  # as FFCV's buffers are with a GPU

        stack.enter_context(mock.patch.object(transfer.CopyStream, "copy", from_pinned))
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_name", lambda *_: "simulated"))
        stack.enter_context(mock.patch.object(processes, "read_memory_with_torch", lambda *_: None))
        stack.enter_context(mock.patch.object(timm.layers.config, "_USE_FUSED_ATTN", 0))  # as on a CPU
        found = trained(workdir, data)
        assert device.kernels.num_kernels > 1000 and len(device.order.streams) > 1
        return found


@in_orders(1, many=51, each=10, marks=pytest.mark.slow)
def test_a_run_logs_the_cpus_numbers_and_exports_its_student_in_every_order(orders, expected, tmp_path, small_beton):
    for seed in orders:
        numbers, student = trained_late(seed, tmp_path / f"{seed}", small_beton)
        assert numbers == expected[0]
        assert student == expected[1]
