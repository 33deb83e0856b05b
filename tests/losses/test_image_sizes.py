"""Losses on the features of smaller images than the models were built for."""

import pytest
import torch

from tests.losses.test_losses import call, features
from tests.losses.test_methods import random
from tests.losses.test_parts import features as pooled_and_final
from tests.reference import losses as reference
from vitkd_ds import ViTKDLoss
from vitkd_ds.config.losses import FeatureTerm, SpectralTerm
from vitkd_ds.losses.feature import Feature, at_larger_grid
from vitkd_ds.losses.part import Features, PairInfo, grid_of
from vitkd_ds.losses.spectral import Spectral


@pytest.mark.parametrize("num_patches, whole, grid", [
    (196, (14, 14), (14, 14)), (36, (14, 14), (6, 6)), (18, (12, 8), None), (24, (12, 8), (6, 4)),
    (24, (8, 12), (4, 6)), (8, (4, 2), (4, 2)), (35, (14, 14), None),
])  # fmt: skip
def test_a_smaller_grid_has_the_proportions_of_the_whole_one(num_patches, whole, grid):
    if grid:
        assert grid_of(num_patches, whole) == grid
        return
    with pytest.raises(ValueError, match=f"{num_patches} patches do not form a grid in the proportions of"):
        grid_of(num_patches, whole)


@pytest.mark.parametrize("small, whole", [((3, 3), (7, 7)), ((2, 4), (4, 8)), ((4, 4), (4, 4))])
def test_vitkds_sums_are_scaled_by_full_patches_over_patches(small, whole):
    loss = ViTKDLoss(4, 6, alpha=0.1, beta=0.2, student_grid=whole, teacher_grid=whole).double()
    inputs = features(small, 4, 6)
    times = whole[0] * whole[1] / (small[0] * small[1])
    mimic, generate = reference.vitkd(loss.state_dict(), inputs, small, 0.1, 0.2, 0.5)
    found = call(loss, inputs)
    assert found["mimic"].item() == pytest.approx(times * mimic, rel=1e-9)
    assert found["generate"].item() == pytest.approx(times * generate, rel=1e-9)


def test_scaled_vitkd_divides_by_the_actual_number_of_tokens_once():
    losses = [ViTKDLoss(4, 6, scaled=True, student_grid=grid, teacher_grid=grid).double() for grid in ((6, 6), (3, 3))]
    losses[1].load_state_dict(losses[0].state_dict())
    found, expected = (call(loss, features((3, 3), 4, 6)) for loss in losses)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_teacher_of_another_grid_is_resized_from_its_smaller_grid():
    whole = ViTKDLoss(4, 6, student_grid=(4, 4), teacher_grid=(8, 8)).double()
    small = ViTKDLoss(4, 6, student_grid=(2, 2), teacher_grid=(4, 4)).double()
    small.load_state_dict(whole.state_dict())
    student, teacher = features((2, 2), 4, 6), features((4, 4), 4, 6)
    mixed = student | {name: teacher[name] for name in ("teacher_shallow", "teacher_deep")}
    found, expected = call(whole, mixed), call(small, mixed)
    for name in ("mimic", "generate"):
        assert found[name].item() == pytest.approx(4 * expected[name].item(), rel=1e-12)


def test_spectral_uses_the_grid_of_the_actual_tokens():
    part = Spectral(SpectralTerm(weight=1, student_blocks=(0,), teacher_blocks=(0,)), PairInfo(4, 6, (6, 4), (6, 4)))
    tokens = [random(2, 6, width, seed=i) for i, width in enumerate((4, 6))]
    found = part(*(Features(None, blocks={0: each}) for each in tokens), None)["spectral"]
    assert found.item() == pytest.approx(reference.spectral(*tokens, (3, 2)), rel=1e-10)


def test_feature_resizes_between_the_grids_of_the_actual_tokens():
    torch.manual_seed(0)
    part = Feature(FeatureTerm(weight=1, target="raw"), PairInfo(6, 8, (8, 4), (4, 2))).double()
    own, other = pooled_and_final(6, tokens=8), pooled_and_final(8, tokens=2, seed=5)
    _, (found, target) = part._compared(own, other)
    expected = at_larger_grid(part.adapters["patches"](own.final_BPD), other.final_BPD, (4, 2), (2, 1))
    assert torch.equal(found, expected[0]) and torch.equal(target, expected[1]) and target.shape[1] == 8
