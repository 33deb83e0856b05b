"""A run on two ranks in which rank 1's labels become nan at the third update.

An observation of tests/engine/observe.py.
"""

from vitkd_ds.cli import parse_run
from vitkd_ds.engine import ranks
from vitkd_ds.train import loop


def observe(seen, workdir):
    """What each rank was stopped with, and whether the run is marked as finished."""
    flags = {"recipe": "demo_plain", "debug": "true", "workdir": str(workdir), "checkpoint.every_steps": "2"}
    mix_step = loop.mix_step

    def poisoned(*args, step, place):
        images_BCHW, targets_BK = mix_step(*args, step=step, place=place)
        return images_BCHW, targets_BK * float("nan") if step == 2 and ranks.rank() == 1 else targets_BK

    loop.mix_step = poisoned
    try:
        loop.train(parse_run((), flags))
        told = "no rank noticed"
    except loop.NonFiniteError as error:
        told = str(error)
    seen["nonfinite"] = ranks.from_all(told)
    seen["nonfinite is done"] = (workdir / "done").exists()
