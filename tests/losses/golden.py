"""Results of official implementations on small inputs, from tests/golden."""

from pathlib import Path

import numpy as np
import pytest
import torch

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
GOLDEN = {
    key: torch.as_tensor(value)
    for file in ("official_losses.npz", "official_methods.npz")
    for key, value in np.load(Path(__file__).parents[1] / "golden" / file).items()
}


def case(name):
    return {key.removeprefix(f"{name}/"): value.clone() for key, value in GOLDEN.items() if key.startswith(f"{name}/")}


def assert_close(found, expected, tolerance):
    """Assert a small maximum error relative to the largest expected magnitude, as gradients have entries near 0."""
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"relative error {error:.2e}"
