"""A flat module compared with the original, without an engine: offsets, order, and parameters left out."""

import copy

import pytest
import torch
from torch import nn

from vitkd_ds.engine import ranks
from vitkd_ds.engine.flat import FlatBlock, FlatModule, Group, Place


class Tied(nn.Module):
    """Two layers that share a weight, and a frozen one."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.frozen = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.frozen(self.second(self.first(x).relu()))


def flat_and_plain(max_numel=1000):
    plain = Tied()
    module = copy.deepcopy(plain)
    weights, biases = [module.first.weight], [module.first.bias, module.second.bias]
    groups = [Group("weights", weights, weight_decay=0.1), Group("biases", biases)]
    return FlatModule(module, groups, max_numel=max_numel), plain


def test_a_shared_weight_is_stored_once_and_gets_the_gradients_of_both_uses():
    torch.manual_seed(0)
    flat, plain = flat_and_plain()
    x = torch.randn(8, 3)
    for model in (flat, plain):
        model(x).square().sum().backward()
    assert torch.equal(flat(x), plain(x)) and all(p.grad.count_nonzero() for p in flat.flats)
    weight, biases = flat.flats
    assert torch.equal(weight.grad, plain.first.weight.grad.flatten())
    assert torch.equal(biases.grad, torch.cat([plain.first.bias.grad, plain.second.bias.grad]))
    assert not flat.module.frozen.weight.requires_grad and flat.module.frozen.weight.grad is None


def test_groups_keep_their_settings_and_a_long_one_is_split_between_weights():
    for max_numel, lengths in ((1000, [9, 6]), (5, [9, 3, 3])):
        flat, _ = flat_and_plain(max_numel)
        assert [p.numel() for p in flat.flats] == lengths
        assert [group["weight_decay"] for group in flat.parameter_groups] == [0.1, 0.0]
        places = [{name: place.start for name, place in group.items()} for group in flat.places]
        assert places == [{"first.weight": 0}, {"first.bias": 0, "second.bias": 3}]


@pytest.mark.parametrize("rank, own", [(0, [(1, 5)]), (1, [(1, 2), (1, 1)])])
def test_whole_weights_are_distributed_and_all_ranks_have_shards_of_one_even_length(monkeypatch, rank, own):
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: rank)
    plain = nn.ModuleList([nn.Linear(size, 1, bias=False) for size in (1, 5, 2)])
    module = copy.deepcopy(plain)
    flat = FlatModule(module, [Group("matrices", list(module.parameters()), cost=nn.Parameter.numel)], max_numel=1)
    (group,) = flat.parameter_groups
    assert group["shapes"] == own and [len(p) for p in group["params"]] == [6, 6]
    (places,) = flat.places
    starts = {name: place.start for name, place in places.items()}
    assert starts == {"1.weight": 0, "2.weight": 6, "0.weight": 8} and places["2.weight"] == Place(6, (1, 2))
    for name, weight in flat.views(flat.flats).items():
        assert torch.equal(weight, plain.get_parameter(name))


def test_views_stay_until_released_but_views_of_one_call_do_not():
    flat, plain = flat_and_plain()
    x = torch.randn(2, 3)
    flat(x)
    assert flat.module.first.weight is flat.module.second.weight is not None
    flat.release()
    assert flat.module.first.weight is None and flat.module.second.weight is None
    assert torch.equal(flat.call(flat.flats, x), plain(x)) and flat.module.first.weight is None


def test_a_block_is_frozen_in_eval_mode_and_has_one_parameter():
    block = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    flat = FlatBlock(copy.deepcopy(block), compile="off").train()
    (only,) = flat.parameters()
    assert only.numel() == 12 and not only.requires_grad
    assert torch.equal(flat(x := torch.randn(2, 3)), block[0](x)) and not list(flat.children())


@pytest.mark.parametrize("rank, own", [(0, [(4, 1)]), (1, [(1, 1), (2, 1), (2, 1), (2, 1)])])
def test_ranks_get_equal_work_and_a_weight_in_blocks_of_rows_is_several_matrices(monkeypatch, rank, own):
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: rank)
    module = nn.ModuleList([nn.Linear(1, size, bias=False) for size in (6, 4, 1)])
    six, four, one = module.parameters()
    work = {six: 1, four: 5, one: 3}
    flat = FlatModule(module, [Group("matrices", [*work], cost=work.get, row_blocks={six: 3})], max_numel=1)
    assert flat.parameter_groups[0]["shapes"] == own
