"""Optimizers against torch's own and a slow weight average, and other code's knowledge of them. One process."""

import ast

import pytest
import torch

from tests.conftest import ROOT
from tests.engine.tiny import make_distiller
from vitkd_ds.config.optim import OptimConfig
from vitkd_ds.engine.optimizers.base import optimizer_class, state_bytes

AdamW = optimizer_class("adamw")


def run(make):
    """The optimizer's state and the weights after each of five updates."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(7))
    optimizer = make([{"params": [p], "weight_decay": 0.3}])
    seen = [p.detach().clone()]
    for _ in range(5):
        p.grad = torch.randn(7)
        optimizer.step()
        seen.append(p.detach().clone())
    return optimizer.state[p], seen


def adamw(**options):
    return lambda groups: AdamW(groups, OptimConfig(lr=0.1, **options), is_fused=False)


def test_updates_equal_adamws_and_an_average_starts_at_the_first_weights():
    _, expected = run(lambda groups: torch.optim.AdamW(groups, lr=0.1))
    without, plain = run(adamw())
    state, seen = run(adamw(ema_decay=0.9))
    assert torch.equal(seen[-1], expected[-1]) and torch.equal(plain[-1], expected[-1])
    average = seen[0].double()
    for weights in seen[1:]:
        average = 0.9 * average + 0.1 * weights.double()
    torch.testing.assert_close(state["ema"].double(), average, rtol=1e-6, atol=1e-7)
    assert "ema" not in without, "without an average there is no state for one"


@pytest.mark.parametrize("fused", [True, False])
def test_a_skipped_update_changes_neither_weights_nor_moments_nor_average(fused):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(7))
    optimizer = AdamW([{"params": [p]}], OptimConfig(ema_decay=0.9, lr=0.1), is_fused=fused)
    seen = []
    for leave_out in (0.0, 1.0, 0.0):
        p.grad = torch.full((7,), torch.nan) if leave_out else torch.randn(7)
        optimizer.leave_out = torch.tensor(leave_out)
        optimizer.step()
        state = optimizer.state[p]
        seen.append([p.detach().clone(), *(state[key].clone() for key in ("ema", "exp_avg", "exp_avg_sq", "step"))])
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[1]))
    assert not any(torch.equal(a, b) for a, b in zip(seen[1], seen[2])) and torch.isfinite(seen[2][1]).all()


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_an_optimizer_creates_exactly_the_state_it_declares(ema_decay):
    distiller, _ = make_distiller()
    optim = OptimConfig(ema_decay=ema_decay)
    groups = AdamW.groups(distiller, optim)
    optimizer = AdamW([{"params": group.params} for group in groups], optim, is_fused=False)
    for group in groups:
        for p in group.params:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    made = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    assert state_bytes(distiller, optim) == sum(value.nbytes for value in made)


def test_weights_decay_by_the_setting_except_those_the_distiller_exempts():
    distiller, _ = make_distiller()
    decayed, undecayed = AdamW.groups(distiller, OptimConfig(weight_decay=0.3))
    assert (decayed.weight_decay, undecayed.weight_decay) == (0.3, 0)
    assert [decayed.params, undecayed.params] == [*distiller.split_by_decay()]


def test_no_other_code_depends_on_the_optimizers_name():
    own = ROOT / "vitkd_ds" / "engine" / "optimizers"
    names = {file.stem for file in own.glob("*.py")} - {"__init__", "base"}
    for file in (ROOT / "vitkd_ds").rglob("*.py"):
        if file.parent in (own, ROOT / "vitkd_ds" / "recipes") or file.name == "optim.py":  # recipes choose one
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            is_asked = isinstance(node, ast.Constant) and node.value in names
            is_known = isinstance(node, ast.ImportFrom) and (node.module or "").rpartition(".")[2] in names
            assert not is_asked and not is_known, f"{file}:{node.lineno}"
