"""The exported state of a student besides its trained weights, without an engine process."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.threaded import on_ranks
from vitkd_ds.engine import ranks, student
from vitkd_ds.engine.student import StudentEngine


def test_buffers_and_frozen_weights_are_exported_in_fp32_like_trained_weights():
    module = nn.BatchNorm1d(3).bfloat16()
    module.running_mean.copy_(torch.tensor([0.5, 1.0, 2.0]))
    module.weight.requires_grad_(False)
    trained = {"student.bias": torch.full((3,), 0.1)}
    engine = SimpleNamespace(
        _optimizer=SimpleNamespace(state={}),
        distiller=nn.ModuleDict({"student": module}),
        _flat=SimpleNamespace(flats=[], views=lambda flats: trained),
    )
    del module.bias  # stored in the flat parameters
    weights = StudentEngine.weights_of(engine, "student")["student"]
    assert weights.keys() == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert weights["running_mean"].tolist() == [0.5, 1.0, 2.0] and torch.equal(weights["bias"], trained["student.bias"])


def test_a_state_file_unreadable_on_one_rank_ends_the_start_on_all(tmp_path, monkeypatch):
    def read(checkpoint, shapes, sizes):
        if ranks.rank() == 1:
            raise OSError("the disk is away")
        return SimpleNamespace(groups=[], others={})

    monkeypatch.setattr(student, "read_partition", read)
    optimizer = SimpleNamespace(single_partition_of_fp32_groups=[], update_lp_params=lambda: None)
    engine = SimpleNamespace(
        engine=SimpleNamespace(optimizer=optimizer, basic_optimizer=SimpleNamespace(state={})),
        _flat=SimpleNamespace(places=[]), distiller=nn.Module(),
    )  # fmt: skip

    def on_rank(rank):
        with pytest.raises((OSError, RuntimeError), match="the disk is away") as raised:
            StudentEngine.load(engine, tmp_path)
        return type(raised.value)

    assert on_ranks(2, on_rank) == [ranks.FailedElsewhere, OSError]
