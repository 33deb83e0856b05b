"""Checkpoint files of two ranks, read by ranks with another layout."""

import pytest
import torch
from deepspeed.checkpoint.constants import (
    BASE_OPTIMIZER_STATE,
    OPTIMIZER_STATE_DICT,
    PARAM_SHAPES,
    PARAM_SLICE_MAPPINGS,
    SINGLE_PARTITION_OF_FP32_GROUPS,
)
from deepspeed.utils.tensor_fragment import fragment_address

from vitkd_ds.engine import ranks
from vitkd_ds.engine.flat import Place
from vitkd_ds.engine.state_files import read_partition

ROWS = [[1.0, 2.0, 3.0, 11.0], [12.0, 13.0]]
"""Weight a is 1, 2, 3 and b is 11, 12, 13; the second rank's file omits its padding."""
FRAGMENTS = [{"a": fragment_address(3, 0), "b": fragment_address(1, 3)}, {"b": fragment_address(2, 0)}]
B_FIRST = [{"b": Place(0, torch.Size([3])), "a": Place(4, torch.Size([3]))}]


@pytest.fixture
def checkpoint(tmp_path):
    for rank, (row, fragments) in enumerate(zip(ROWS, FRAGMENTS)):
        kept = {"ema": torch.tensor(row) + 100, "step": torch.tensor(7.0)}
        state = {
            SINGLE_PARTITION_OF_FP32_GROUPS: [torch.tensor(row)],
            PARAM_SLICE_MAPPINGS: [fragments],
            BASE_OPTIMIZER_STATE: {"state": {0: kept}},
        }
        torch.save({OPTIMIZER_STATE_DICT: state}, tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    shapes = {name: torch.Size([3]) for name in "ab"}
    module = {name: torch.zeros(3) for name in ("a", "b", "mean")}
    torch.save({PARAM_SHAPES: [shapes], "module": module}, tmp_path / "mp_rank_00_model_states.pt")
    return tmp_path


@pytest.mark.parametrize(
    "rank, size, expected",
    [
        (0, 8, [11, 12, 13, 0, 1, 2, 3, 0]),
        (0, 4, [11, 12, 13, 0]),
        (1, 4, [1, 2, 3, 0]),
        (1, 2, [13, 0]),
        (2, 2, [1, 2]),
    ],
)
def test_a_rank_finds_its_shard_by_weight_name(monkeypatch, checkpoint, rank, size, expected):
    monkeypatch.setattr(ranks, "rank", lambda: rank)
    found = read_partition(checkpoint, B_FIRST, [size])
    (group,) = found.groups
    assert group["fp32"].tolist() == expected
    assert group["ema"].tolist() == [value and value + 100 for value in expected] and group["step"] == 7
    assert list(found.others) == ["mean"]


def test_weights_of_other_names_or_shapes_are_rejected(checkpoint):
    for name, shape, differing in (("c", [3], "b, c"), ("b", [2], "the shapes")):
        places = [{"a": Place(0, torch.Size([3])), name: Place(3, torch.Size(shape))}]
        with pytest.raises(ValueError, match=f"its losses: {differing} differ"):
            read_partition(checkpoint, places, [6])
