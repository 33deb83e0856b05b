"""Muon against torch's own class, and equal updates on one and two ranks. One process."""

import pytest
import torch
from torch import nn

from tests.engine.tiny import make_distiller
from vitkd_ds.config.optim import OptimConfig
from vitkd_ds.engine import ranks
from vitkd_ds.engine.flat import FlatModule
from vitkd_ds.engine.optimizers.base import optimizer_class, state_bytes
from vitkd_ds.engine.optimizers.muon import iteration_flops

Muon = optimizer_class("muon")
LR = 0.01


def trained(monkeypatch, optim, world_size, gradients):
    """Return the weights by name after one update per dict of gradients, made by each rank for its partitions."""
    monkeypatch.setattr(ranks, "world_size", lambda: world_size)
    weights = {}
    for rank in range(world_size):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        distiller, _ = make_distiller()
        groups = Muon.groups(distiller, optim)
        flat = FlatModule(distiller, groups, max_numel=10**9)
        own = [group | {"params": [_partition(group, rank)]} for group in flat.parameter_groups]
        optimizer = Muon(own, optim, is_fused=False)
        for named in gradients:
            for group, shared, places in zip(own, flat.parameter_groups, flat.places):
                rows = [torch.zeros_like(p) for p in shared["params"]]
                row = torch.cat(rows)
                for name, place in places.items():
                    row.narrow(0, place.start, place.shape.numel()).copy_(named[name].reshape(-1))
                start = sum(map(len, rows[:rank])) if "shapes" in group else 0
                group["params"][0].grad = row.narrow(0, start, len(group["params"][0])).clone()
            optimizer.step()
        for group, places in zip(own, flat.places):
            start = rank * len(group["params"][0]) if "shapes" in group else 0
            for name, place in places.items():
                here = place.start - start
                if 0 <= here < len(group["params"][0]):
                    piece = group["params"][0].detach().narrow(0, here, place.shape.numel())
                    weights[name] = piece.view(place.shape).clone()
    return weights


def _partition(group, rank):
    """Return what a rank updates: its own matrices, and for the test all of the other groups."""
    flats = group["params"]
    return nn.Parameter((flats[rank] if "shapes" in group else torch.cat([*flats])).detach().clone())


def random_gradients(number=3):
    torch.manual_seed(1)
    distiller, _ = make_distiller()
    return [{name: torch.randn_like(p) for name, p in distiller.named_parameters()} for _ in range(number)]


def by_torch(optim, gradients):
    """Train with torch.optim.Muon and AdamW on the weights as they are."""
    distiller, _ = make_distiller()
    named = dict(distiller.named_parameters())
    inner = {name for name, p in named.items() if name.startswith("student.blocks.") and p.ndim == 2}
    pieces = {}
    for name in inner:
        number = 3 if optim.qkv == "thirds" and "qkv" in name else 1
        pieces[name] = [nn.Parameter(piece.detach().clone()) for piece in named[name].chunk(number)]
    matrices = [piece for piece_list in pieces.values() for piece in piece_list]
    decayed, undecayed = distiller.split_by_decay()
    others = [p for p in decayed if not any(p is named[name] for name in inner)]
    first = torch.optim.Muon(matrices, lr=LR, weight_decay=optim.weight_decay, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": others, "weight_decay": optim.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    second = torch.optim.AdamW(groups, lr=LR, betas=optim.betas, eps=optim.eps)
    for gradient in gradients:
        for name, p in named.items():
            p.grad = gradient[name]
        for name in inner:
            for piece, part in zip(pieces[name], gradient[name].chunk(len(pieces[name]))):
                piece.grad = part.clone()
        first.step()
        second.step()
    return {name: p.detach() for name, p in named.items()} | {
        name: torch.cat([*map(torch.Tensor.detach, piece)]) for name, piece in pieces.items()
    }


@pytest.mark.parametrize("qkv", ["whole", "thirds"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_number_of_ranks_makes_the_updates_of_torchs_muon_and_adamw(monkeypatch, qkv, world_size):
    optim = OptimConfig(name="muon", qkv=qkv, lr=LR, weight_decay=0.3, betas=(0.8, 0.95), eps=1e-6)
    gradients = random_gradients()
    own = trained(monkeypatch, optim, world_size, gradients)
    expected = by_torch(optim, gradients)
    assert own.keys() == expected.keys()
    for name, weight in own.items():
        assert torch.equal(weight, expected[name]), name


def test_a_skipped_update_changes_nothing():
    distiller, _ = make_distiller()
    optim = OptimConfig(name="muon", lr=LR)
    (group,) = FlatModule(distiller, Muon.groups(distiller, optim)[:1], max_numel=1).parameter_groups
    (p,) = group["params"]
    optimizer = Muon([group], optim, is_fused=True)
    seen = []
    for leave_out in (0.0, 1.0, 0.0):
        p.grad = torch.full_like(p, torch.nan) if leave_out else torch.randn_like(p)
        optimizer.leave_out = torch.tensor(leave_out)
        optimizer.step()
        seen.append([p.detach().clone(), optimizer.state[p]["momentum"].clone()])
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[1]))
    assert not any(torch.equal(a, b) for a, b in zip(seen[1], seen[2])) and torch.isfinite(seen[2][0]).all()


def test_the_declared_state_is_the_state_that_muon_makes():
    distiller, _ = make_distiller()
    optim = OptimConfig(name="muon", ema_decay=0.9)
    declared = state_bytes(distiller, optim)
    flat = FlatModule(distiller, Muon.groups(distiller, optim), max_numel=10**9)
    optimizer = Muon(flat.parameter_groups, optim, is_fused=False)
    for p in flat.flats:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    made = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    assert declared == sum(value.nbytes for value in made)


def test_a_student_without_linear_layers_in_blocks_is_rejected():
    distiller, _ = make_distiller()
    distiller.student.blocks = nn.Sequential()
    with pytest.raises(ValueError, match="optim.name=muon needs a student with linear layers in blocks"):
        Muon.groups(distiller, OptimConfig(name="muon"))


def test_the_work_of_an_iteration_is_that_of_its_three_products():
    rows, columns = 3, 5
    gram = 2 * rows * rows * columns
    square = 2 * rows**3
    assert iteration_flops(rows, columns) == iteration_flops(columns, rows) == gram + square + gram
