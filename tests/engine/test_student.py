"""What is exported of a student besides its trained weights, without an engine's process."""

from types import SimpleNamespace

import torch
from torch import nn

from vitkd_ds.engine.student import StudentEngine


def test_buffers_and_frozen_weights_are_exported_in_fp32_as_trained_weights_are():
    student = nn.BatchNorm1d(3).bfloat16()
    student.running_mean.copy_(torch.tensor([0.5, 1.0, 2.0]))
    student.weight.requires_grad_(False)
    trained = {"student.bias": torch.full((3,), 0.1)}
    engine = SimpleNamespace(
        _optimizer=SimpleNamespace(state={}),
        distiller=nn.ModuleDict({"student": student}),
        _flat=SimpleNamespace(flats=[], views=lambda flats: trained),
    )
    del student.bias  # the flat parameters have it
    weights = StudentEngine.weights_of(engine, "student")["student"]
    assert weights.keys() == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert weights["running_mean"].tolist() == [0.5, 1.0, 2.0] and torch.equal(weights["bias"], trained["student.bias"])
