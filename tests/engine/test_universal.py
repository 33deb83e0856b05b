"""A checkpoint goes on with another number of ranks: exactly, whatever it holds."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import finish_ranks, start_ranks

WORKER = Path(__file__).with_name("universal.py")


@pytest.mark.slow
def test_weights_moments_and_average_survive_other_ranks_bit_for_bit(tmp_path):
    workdir = tmp_path / "run [1]+"  # characters that DeepSpeed takes for patterns
    before = None
    for i, world_size in enumerate((2, 3, 1, 2)):
        finish_ranks(start_ranks(world_size, WORKER, workdir, tmp_path / f"dump{i}"))
        if before:
            loaded = load_file(tmp_path / f"dump{i}-loaded")
            assert [name for name in before | loaded if not torch.equal(before[name], loaded[name])] == []
        before = load_file(tmp_path / f"dump{i}-saved")
        averages = {name: average for name, average in before.items() if name.startswith("ema")}
        assert len(averages) > 20
        for name, average in averages.items():
            assert not torch.equal(average, before[f"fp32{name[3:]}"]), "the average must differ, or nothing is shown"
    left = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert left == {"latest", "step00000006", "step00000008"}, "nothing temporary stays"
