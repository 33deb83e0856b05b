"""Peak memory includes memory that waits for the device, and excludes memory of earlier work."""

from types import SimpleNamespace

import pytest
import torch
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

from benchmarks import gpu_checks, step_rounds
from tests.benchmarks.fake_memory import FakeMemory
from vitkd_ds.engine import processes

GIB = 2**30


@pytest.fixture
def memory(monkeypatch):
    memory = FakeMemory()
    memory.install(monkeypatch)
    accelerator = CUDA_Accelerator()
    monkeypatch.setattr(processes, "get_accelerator", lambda: accelerator)
    return memory


def test_the_logged_peak_includes_memory_that_waits_for_the_device(memory):
    memory.use(lasting=2 * GIB, passing=GIB)
    assert processes.peak_memory_gib() == 3


def test_the_peak_of_a_check_excludes_memory_of_the_forward_before(memory):
    found = [gpu_checks.with_peak(lambda: memory.use(0, passing=5), is_gpu=True)[1] for _ in range(3)]
    memory.allocated += 100  # another model
    found.append(gpu_checks.with_peak(lambda: memory.use(0, passing=7), is_gpu=True)[1])
    assert found == [5, 5, 5, 7]
    assert gpu_checks.with_peak(lambda: "done", is_gpu=False) == ("done", 0)


def test_the_peak_of_a_variant_excludes_the_other_variants_tensors_and_memory(monkeypatch, memory):
    sizes = {"small": (GIB, GIB), "large": (3 * GIB, 2 * GIB)}  # resting, and waiting in a step
    everyone = {name: step_rounds.Timed(name, name, resting, first_total=0.0) for name, (resting, _) in sizes.items()}
    memory.use(sum(resting for resting, _ in sizes.values()))
    monkeypatch.setattr(step_rounds, "step", lambda variant, batch: memory.use(0, passing=sizes[variant][1]))
    batch = SimpleNamespace(images_BCHW=range(4))
    for name in ("small", "large", "small"):
        step_rounds.time_round(everyone[name], batch, 1, torch.device("cuda"))
    assert {name: timed.peak_gib for name, timed in everyone.items()} == {"small": 2, "large": 5}
