"""A checkpoint goes on with another number of ranks, and in another ZeRO stage: exactly, whatever it holds."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, finish_ranks, start_ranks

WORKER = Path(__file__).with_name("universal.py")
STAGE_2 = "ds_configs/zero2.json"


def equal(first, second):
    first, second = load_file(first), load_file(second)
    assert first.keys() == second.keys() and sum(name.startswith("ema") for name in first) > 20
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    assert not differing, differing
    moved = [name for name in first if name.startswith("fp32") and torch.equal(first[name], first[f"ema{name[4:]}"])]
    assert not moved, "the average must differ from the weights, or nothing is shown"
    return True


@pytest.mark.slow
def test_weights_moments_and_average_survive_other_ranks_and_stages_bit_for_bit(tmp_path):
    config = json.loads((ROOT / STAGE_2).read_text())
    stage_1 = tmp_path / "zero1.json"
    stage_1.write_text(json.dumps(config | {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}))
    workdir = tmp_path / "run [1]+"  # characters that DeepSpeed takes for patterns
    steps = [(2, STAGE_2), (3, STAGE_2), (1, stage_1), (2, STAGE_2)]
    for i, (world_size, ds_config) in enumerate(steps):
        outputs = finish_ranks(start_ranks(world_size, WORKER, workdir, ds_config, tmp_path / f"dump{i}"))
        kind = "BF16_Optimizer" if ds_config == stage_1 else "DeepSpeedZeroOptimizer"
        assert f"optimizer {kind} step {2 * i + 2}" in outputs[0]
        assert i == 0 or equal(tmp_path / f"dump{i - 1}-saved", tmp_path / f"dump{i}-loaded")
    left = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert left == {"latest", "step00000006", "step00000008"}, "nothing temporary stays"
