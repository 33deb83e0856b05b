"""AdamWithEMA against torch's AdamW and a slow average."""

import torch

from vitkd_ds.engine.optimizer import AdamWithEMA


def run(ema_decay, steps=5):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(7))
    optimizer = AdamWithEMA([{"params": [p]}], ema_decay=ema_decay, lr=0.1)
    seen = [p.detach().clone()]
    for _ in range(steps):
        p.grad = torch.randn(7)
        optimizer.step()
        seen.append(p.detach().clone())
    return optimizer.state[p], seen


def test_updates_are_adamws_with_and_without_an_average():
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(7))
    adamw = torch.optim.AdamW([p], lr=0.1)
    for _ in range(5):
        p.grad = torch.randn(7)
        adamw.step()
    for decay in (0.0, 0.9):
        assert torch.equal(run(decay)[1][-1], p.detach())


def test_the_average_starts_from_the_first_weights_and_follows_the_formula():
    state, seen = run(0.9)
    average = seen[0].double()
    for weights in seen[1:]:
        average = 0.9 * average + 0.1 * weights.double()
    torch.testing.assert_close(state["ema"].double(), average, rtol=1e-6, atol=1e-7)


def test_without_an_average_there_is_no_state_for_one():
    assert "ema" not in run(0.0)[0]


def test_a_fused_update_that_is_not_wanted_changes_neither_weights_nor_average():
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(7))
    optimizer = AdamWithEMA([{"params": [p]}], ema_decay=0.9, lr=0.1, fused=True)
    seen = []
    for found_inf in (0.0, 1.0, 0.0):
        p.grad = torch.randn(7) if found_inf == 0 else torch.full((7,), torch.nan)
        optimizer.found_inf = torch.tensor(found_inf)
        optimizer.step()
        state = optimizer.state[p]
        seen.append([p.detach().clone(), *(state[key].clone() for key in ("ema", "exp_avg", "exp_avg_sq", "step"))])
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[1]))
    assert not any(torch.equal(a, b) for a, b in zip(seen[1], seen[2])) and torch.isfinite(seen[2][1]).all()
