"""Write RUN/nonfinite/stepN.json for an update whose loss or gradient is inf or nan.

Nothing is recorded for this during training. Every random draw depends only on the seed and the step, so the images of
the update can be determined afterwards.
"""

import json
import logging
import math
import shlex
from pathlib import Path
from typing import Any

from vitkd_ds.checkpoint.files import write_text
from vitkd_ds.config.run import Run
from vitkd_ds.config.run_folder import CHECKPOINTS, CONFIG, newest
from vitkd_ds.engine import ranks
from vitkd_ds.train.parts import Parts
from vitkd_ds.train.schedule import loss_weights_at
from vitkd_ds.train.step import Update

logger = logging.getLogger(__name__)

FOLDER = "nonfinite"


def report_nonfinite(parts: Parts, update: Update) -> None:
    """Write a report about a skipped update to RUN/nonfinite/stepN.json. Collective.

    N is the number of the update, counted from 1. The report contains the loss terms, the gradient norms, the images
    and a command that repeats the failure. If the file cannot be written, a warning is logged.
    """
    terms = ranks.from_all({name: value.item() for name, value in update.terms.items()})
    if ranks.rank():
        return
    run = parts.run
    schedule = parts.schedule
    epoch, step_in_epoch = divmod(update.step, schedule.steps_per_epoch)
    numbers = parts.train_loader.train_numbers(epoch, step_in_epoch)
    content = {
        "step": update.step + 1,
        "epoch": epoch,
        "lr": update.lr,
        "loss_weights": loss_weights_at(update.step, run, schedule.total_steps),
        "terms": [_readable(found) for found in terms],
        "gradient_norms": _readable(dict(zip(parts.engine.group_names, update.outcome.group_norms, strict=True))),
        "images": {"file": str(run.data.train), "ranks": [share.tolist() for share in numbers]},
        "checkpoint": newest(Path(run.workdir) / CHECKPOINTS),
        "replay": replay_command(run, update.step + 1),
    }
    file = Path(run.workdir) / FOLDER / f"step{update.step + 1:08d}.json"
    try:
        file.parent.mkdir(exist_ok=True)
        write_text(file, f"{json.dumps(content, indent=2)}\n")
    except OSError as error:  # the error that ends the run must still be raised
        logger.warning("diagnostics of update %d could not be written to %s: %s", update.step + 1, file, error)
        return
    logger.info("wrote terms, gradients, images and a replay command of update %d to %s", update.step + 1, file)


def replay_command(run: Run, step: int) -> str:
    """Return the command that repeats training from the last checkpoint to the failure at update `step`.

    The command trains in a new folder. It keeps all of the run's settings, including the number of steps, because a
    different number of steps would change the learning rates.
    """
    workdir = Path(run.workdir)
    tag = newest(Path(run.workdir) / CHECKPOINTS)
    launcher = ["torchrun", "--nproc_per_node", f"{ranks.world_size()}"] if ranks.world_size() > 1 else ["python"]
    start = str(workdir / CHECKPOINTS / tag) if tag else "none"
    options = {"recipe": workdir / CONFIG, "resume": start, "log_every_steps": 1, "trackers": ""}
    options |= {"workdir": workdir / FOLDER / f"replay{step:08d}"}
    return shlex.join([*launcher, "train.py", *(f"--{key}={value}" for key, value in options.items())])


def _readable(values: dict[str, float]) -> dict[str, Any]:
    """Return the values with inf and nan replaced by strings, because JSON has no numbers for them."""
    return {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
