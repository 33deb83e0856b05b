"""Compile the models for every size in data.image_sizes before the first update, instead of at the start of each phase.

Otherwise ranks would wait minutes in the middle of a run, and an error of the compiler would show only then.
"""

import logging
import time

import torch

from vitkd_ds.engine import ranks
from vitkd_ds.train import watchdog
from vitkd_ds.train.parts import Parts, split_of
from vitkd_ds.train.schedule import loss_weights_at
from vitkd_ds.train.step import student_arguments

logger = logging.getLogger(__name__)

GRAPHS_PER_SIZE = 8
"""Maximum number of graphs that torch compiles per function and size, which is torch's own limit per function."""


def compile_sizes(parts: Parts) -> None:
    """Run all models on black images of each size in data.image_sizes. Collective.

    Weights, buffers and the state of torch's random generators stay as they are.
    """
    sizes = parts.phases.sizes
    # Beyond this limit, torch would run a model uncompiled.
    torch._dynamo.config.recompile_limit = GRAPHS_PER_SIZE * len(sizes)
    micro = split_of(parts.run).micro_batch_size
    weights = {
        name: torch.full((), weight, device=parts.device)
        for name, weight in loss_weights_at(0, parts.run, parts.schedule.total_steps).items()
    }
    labels_B = torch.zeros(micro, dtype=torch.int64, device=parts.device)
    started = time.monotonic()
    for size in sizes:
        watchdog.enter("compile")
        with torch.random.fork_rng([parts.device] if parts.device.type == "cuda" else []):
            # channels-last as the loader's images
            images_BHWC = torch.zeros(micro, size, size, 3, dtype=torch.uint8, device=parts.device)
            images_BCHW = images_BHWC.permute(0, 3, 1, 2)
            arguments = student_arguments(parts, images_BCHW, labels_B, step=0, place=ranks.rank())
            parts.engine.rehearse(*arguments, weights)
    logger.info(f"compiled the models for {', '.join(map(str, sizes))} px ({time.monotonic() - started:.0f} s)")
