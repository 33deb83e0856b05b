"""The limit on gathered blocks when several teachers run one after another."""

from collections import deque

import torch
from torch import nn

from tests.engine.observe_pace import LazyDevice
from vitkd_ds.engine import ds_config, teacher


def blocks_of(number, size):
    """Blocks of these sizes in bytes, with element counts as DeepSpeed keeps them for partitioned parameters."""
    blocks = [nn.Linear(size // 4, 1, bias=False) for _ in range(number)]
    for block in blocks:
        block.weight.ds_numel = block.weight.numel()
    return blocks


def test_teachers_that_run_in_turn_share_one_limit_on_blocks_gathered_ahead(monkeypatch):
    device = LazyDevice()
    monkeypatch.setattr(teacher, "get_accelerator", lambda: device)
    monkeypatch.setattr(ds_config, "AHEAD_BYTES", 400)
    left = deque()
    sizes = {"large": 400, "small": 100}
    blocks = {"large": blocks_of(4, 400), "small": blocks_of(9, 100)}
    paces = {name: teacher.Pace(each, left, placement="shard") for name, each in blocks.items()}
    ahead = {"large": [], "small": []}
    for name in ("large", "small", "large", "small"):
        paces[name].wait()
        for block in blocks[name]:
            ahead[name].append(sum(size for _, size in left) + sizes[name])
            block(torch.zeros(1, sizes[name] // 4))
    assert max(ahead["large"]) == 3 * 400, "two blocks, and a third that fits AHEAD_BYTES"
    assert max(ahead["small"]) == 6 * 100, "not together with the large block's remainder"
    assert min(ahead["small"][0], ahead["small"][9]) > 100, "waited for no longer than needed"
