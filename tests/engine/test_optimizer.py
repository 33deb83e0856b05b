"""Clipping against torch's own; AdamWithEMA against torch's AdamW and a slow average. One process."""

import math

import pytest
import torch

from vitkd_ds.engine.optimizer import AdamWithEMA, clip_gradients


def clip(groups, max_norm, veto=0.0, count=0.0):
    return clip_gradients(groups, max_norm, veto=torch.tensor(veto), count=torch.tensor(count))


def gradients(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return [[scale * torch.randn(n, generator=generator) for n in group] for group in ((5, 70), (3,))]


def flat(groups):
    return torch.cat([part for group in groups for part in group])


@pytest.mark.parametrize("max_norm", [0.5, 5.0, 1e6])
def test_it_is_torchs_clipping(max_norm):
    groups = gradients()
    parameters = [torch.nn.Parameter(part.clone()) for group in groups for part in group]
    for p in parameters:
        p.grad = p.detach().clone()
    expected = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    assert clip(groups, max_norm)[0].item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(flat(groups), torch.cat([p.grad for p in parameters]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale, max_norm", [(1.0, 0.0), (1e-3, 5.0)], ids=["zero is no clipping", "a small gradient"])
def test_where_nothing_is_clipped_every_bit_stays_and_the_norm_is_known(scale, max_norm):
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


def test_the_norm_of_each_group_comes_back_as_it_was_found():
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


def test_veto_and_count_come_back_beside_the_norm_and_a_veto_is_a_gradient_of_nan():
    plain = clip(gradients(), 5.0)
    assert torch.equal(clip(gradients(), 5.0, count=2.0), plain + torch.tensor([0.0, 0.0, 2.0, 0.0, 0.0]))
    groups = gradients()
    norm, vetoes, count = clip(groups, 5.0, veto=1.0)[:3].tolist()
    assert math.isnan(norm) and (vetoes, count) == (1, 0) and torch.isnan(flat(groups)).all()


def run(optimizer_class, **options):
    """The optimizer's state and the weights after each of five updates."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(7))
    optimizer = optimizer_class([p], lr=0.1, **options)
    seen = [p.detach().clone()]
    for _ in range(5):
        p.grad = torch.randn(7)
        optimizer.step()
        seen.append(p.detach().clone())
    return optimizer.state[p], seen


def test_updates_are_adamws_and_an_average_starts_from_the_first_weights_and_follows_the_formula():
    (_, expected), (without, plain) = run(torch.optim.AdamW), run(AdamWithEMA, ema_decay=0.0)
    state, seen = run(AdamWithEMA, ema_decay=0.9)
    assert torch.equal(seen[-1], expected[-1]) and torch.equal(plain[-1], expected[-1])
    average = seen[0].double()
    for weights in seen[1:]:
        average = 0.9 * average + 0.1 * weights.double()
    torch.testing.assert_close(state["ema"].double(), average, rtol=1e-6, atol=1e-7)
    assert "ema" not in without, "without an average there is no state for one"


@pytest.mark.parametrize("fused", [True, False])
def test_an_update_that_is_not_wanted_changes_neither_weights_nor_moments_nor_average(fused):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(7))
    optimizer = AdamWithEMA([{"params": [p]}], ema_decay=0.9, lr=0.1, fused=fused)
    seen = []
    for leave_out in (0.0, 1.0, 0.0):
        p.grad = torch.full((7,), torch.nan) if leave_out else torch.randn(7)
        optimizer.leave_out = torch.tensor(leave_out)
        optimizer.step()
        state = optimizer.state[p]
        seen.append([p.detach().clone(), *(state[key].clone() for key in ("ema", "exp_avg", "exp_avg_sq", "step"))])
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[1]))
    assert not any(torch.equal(a, b) for a, b in zip(seen[1], seen[2])) and torch.isfinite(seen[2][1]).all()
