"""The host waits for the device at most once per update, and only for the previous update."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from tests.conftest import finish_ranks, start_ranks
from vitkd_ds.cli import parse_run
from vitkd_ds.engine.optimizers.adamw import Choice
from vitkd_ds.engine.processes import leave
from vitkd_ds.train import inputs, loop

WAITS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero")
STEPS = 6


def watch(owner, name, note):
    """Call `note` with a method's name before each call of it."""
    original = getattr(owner, name)

    def watched(*args, **kwargs):
        note(name)
        return original(*args, **kwargs)

    setattr(owner, name, watched)


def main(workdir, placement):
    """Train a few updates of two micro-batches each, and write the order of events."""
    seen = []
    for name in WAITS:
        watch(torch.Tensor, name, seen.append)
    watch(get_accelerator(), "synchronize", seen.append)
    for owner, name in ((loop, "train_step"), (loop, "settle"), (inputs, "mix_step")):
        watch(owner, name, seen.append)
    fused = Choice.step

    def step_as_on_a_gpu(self, *args):
        for group in self.param_groups:
            group["fused"] = True
        return fused(self, *args)

    Choice.step = step_as_on_a_gpu
    flags = {"recipe": "demo", "workdir": workdir, "debug": "true", "max_steps": f"{STEPS}", "log_every_steps": "100"}
    flags |= {"global_batch_size": "8", "micro_batch_size_per_gpu": "2", "teacher.placement": placement}
    flags |= {"checkpoint.every_steps": "100", "eval_every_epochs": "100", "optim.ema_decay": "0.9"}
    loop.train(parse_run((), flags))
    Path(workdir, f"seen-{torch.distributed.get_rank()}.json").write_text(json.dumps(seen))
    leave()


@pytest.mark.parametrize("placement", ["replica", "shard"])
def test_an_update_waits_only_for_the_outcome_of_the_previous_one(tmp_path, placement):
    finish_ranks(start_ranks(2, "-m", __name__, tmp_path, placement))
    for file in sorted(tmp_path.glob("seen-*.json")):
        seen = json.loads(file.read_text())
        starts = [i for i, name in enumerate(seen) if name == "train_step"]
        assert len(starts) == STEPS
        # From the third update (the first warms up) to the last but one, after which the log is written.
        for start, end in zip(starts[2:-1], starts[3:]):
            assert seen[start:end] == ["train_step", "mix_step", "mix_step", "tolist", "settle"], Counter(
                seen[start:end]
            )
        assert "settle" not in seen[: starts[1]], "the first outcome was read before the second update was queued"
        assert seen[starts[-1] :].count("settle") == 2, "the last update's outcome is read before it is evaluated"


if __name__ == "__main__":
    main(*sys.argv[1:])
