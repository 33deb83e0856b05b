"""Run on each of two ranks by test_nonfinite.py: rank 1's labels become nan at the third update."""

import sys

from vitkd_ds.cli import parse_run
from vitkd_ds.engine import processes, ranks
from vitkd_ds.train import loop

run = parse_run((), {"recipe": "demo_plain", "debug": "true", "workdir": sys.argv[1], "checkpoint.every_steps": "2"})
mix_step = loop.mix_step


def poisoned(*args, step, place):
    images_BCHW, targets_BK = mix_step(*args, step=step, place=place)
    if step == 2 and ranks.rank() == 1:
        targets_BK = targets_BK * float("nan")
    return images_BCHW, targets_BK


loop.mix_step = poisoned
try:
    loop.train(run)
except loop.NonFiniteError as error:
    print(f"rank {ranks.rank()} stopped: {error}")
    processes.leave()
sys.exit("no rank noticed")
