"""Run on each of two ranks by test_nonfinite.py: rank 1's labels become nan at the third update."""

import sys

from vitkd_ds import dist, loop
from vitkd_ds.cli import parse_run

run = parse_run((), {"recipe": "demo_plain", "debug": "true", "workdir": sys.argv[1], "checkpoint.every_steps": "2"})
mixed = loop.mixed


def poisoned(job, images_BCHW, labels_B, *, step, micro):
    images_BCHW, targets_BK = mixed(job, images_BCHW, labels_B, step=step, micro=micro)
    if step == 2 and dist.rank() == 1:
        targets_BK = targets_BK * float("nan")
    return images_BCHW, targets_BK


loop.mixed = poisoned
try:
    loop.train(run)
except loop.NonFiniteError as error:
    print(f"rank {dist.rank()} stopped: {error}")
    dist.leave()
sys.exit("no rank noticed")
