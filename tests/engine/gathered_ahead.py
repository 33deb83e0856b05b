"""Run by test_gathered_ahead.py on two ranks: how much of a sharded toy is gathered when its first block starts.

    gathered_ahead.py PREFETCH,LIVE ...

Both are DeepSpeed's limits, in blocks: how much a module gathers ahead, and how much may be there at all. Each pair
gives a line of JSON.
"""

import json
import sys

import deepspeed
import timm
import torch

from vitkd_ds.engine import processes
from vitkd_ds.engine.teacher import FeatureModule


def observe(prefetch, live):
    """Sizes of a block, its largest tensor, and what comes before, and how much is gathered."""
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 40, "num_heads": 2, "num_classes": 10}
    model = timm.create_model("deit_tiny_patch16_224", **size).requires_grad_(False)
    sizes = [p.numel() for p in model.blocks[0].parameters()]
    embedding = sum(p.numel() for p in [*model.patch_embed.parameters(), model.cls_token, model.pos_embed])
    zero = {
        "stage": 3,
        "memory_efficient_linear": False,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": prefetch * sum(sizes),
        "stage3_max_live_parameters": live * sum(sizes),
        "leaf_module": {"classes": ["timm.models.vision_transformer.Block"]},
    }
    config = {"train_micro_batch_size_per_gpu": 2, "bf16": {"enabled": True}, "zero_optimization": zero}
    engine, *_ = deepspeed.initialize(model=FeatureModule(model, (0, 1)), config=config | {"steps_per_print": None})
    gathered = []

    def count(*_):
        gathered.append(sum(p.ds_numel for p in model.parameters() if p.ds_status.name != "NOT_AVAILABLE"))

    model.blocks[0].register_forward_pre_hook(count)
    engine.eval()
    with torch.no_grad():
        for _ in range(3):  # it gathers ahead when it has seen the order of the modules
            engine(torch.zeros(2, 3, 32, 32, dtype=torch.bfloat16))
    return {"block": sum(sizes), "largest": max(sizes), "embedding": embedding, "gathered": gathered[-1]}


if __name__ == "__main__":
    processes.start_processes()
    for pair in sys.argv[1:]:
        print(json.dumps(observe(*map(int, pair.split(",")))), flush=True)
    processes.leave()
