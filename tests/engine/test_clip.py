"""Gradient clipping against torch's own, in one process."""

import math

import pytest
import torch

from vitkd_ds.engine.clip import clip_gradients


def clip(groups, max_norm, veto=0.0, count=0.0):
    return clip_gradients(groups, max_norm, veto=torch.tensor(veto), count=torch.tensor(count))


def gradients(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return [[scale * torch.randn(n, generator=generator) for n in group] for group in ((5, 70), (3,))]


def flat(groups):
    return torch.cat([part for group in groups for part in group])


@pytest.mark.parametrize("max_norm", [0.5, 5.0, 1e6])
def test_clipping_equals_torchs(max_norm):
    groups = gradients()
    parameters = [torch.nn.Parameter(part.clone()) for group in groups for part in group]
    for p in parameters:
        p.grad = p.detach().clone()
    expected = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    assert clip(groups, max_norm)[0].item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(flat(groups), torch.cat([p.grad for p in parameters]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale, max_norm", [(1.0, 0.0), (1e-3, 5.0)], ids=["zero is no clipping", "a small gradient"])
def test_without_clipping_every_bit_stays_and_the_norm_is_known(scale, max_norm):
    groups = gradients(scale)
    assert clip(groups, max_norm)[0].item() == pytest.approx(flat(groups).norm().item(), rel=1e-6)
    assert torch.equal(flat(groups), flat(gradients(scale)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("max_norm", [0.0, 5.0])
def test_a_gradient_whose_norm_is_not_finite_becomes_nan_everywhere(bad, max_norm):
    groups = gradients()
    groups[1][0][1] = bad
    assert math.isnan(clip(groups, max_norm)[0].item())
    assert torch.isnan(flat(groups)).all()


def test_each_groups_norm_before_clipping_is_returned():
    groups = gradients()
    expected = [torch.cat(group).norm().item() for group in groups]
    assert clip(groups, 0.5)[3:].tolist() == pytest.approx(expected, rel=1e-6)
    groups = gradients()
    groups[1][0][1] = math.inf
    assert clip(groups, 0.5)[3:].tolist() == pytest.approx([expected[0], math.inf], rel=1e-6)
    assert clip(gradients(), 0.5, veto=1.0)[3:].tolist() == pytest.approx(expected, rel=1e-6)


def test_squares_are_summed_in_fp64():
    groups = [[torch.cat([torch.full((1,), 4096.0), torch.full((1_000_000,), 0.5)])]]
    exact = math.sqrt(4096.0**2 + 1_000_000 * 0.25)
    assert clip(groups, 0.0)[0].item() == pytest.approx(exact, rel=1e-7)


def test_veto_and_count_are_returned_with_the_norm_and_a_veto_acts_like_a_nan_gradient():
    plain = clip(gradients(), 5.0)
    assert torch.equal(clip(gradients(), 5.0, count=2.0), plain + torch.tensor([0.0, 0.0, 2.0, 0.0, 0.0]))
    groups = gradients()
    norm, vetoes, count = clip(groups, 5.0, veto=1.0)[:3].tolist()
    assert math.isnan(norm) and (vetoes, count) == (1, 0) and torch.isnan(flat(groups)).all()
