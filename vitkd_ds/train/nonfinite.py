"""What a run leaves of an update whose loss or gradient is inf or nan: RUN/nonfinite, for whoever seeks the cause.

Nothing is carried for it through training: the images of a step follow from its number, as every draw is keyed by it.
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
    """Write what is known of an update that was left out to RUN/nonfinite/stepN.json, N counting from 1. Collective."""
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
    except OSError as error:  # the message that ends the run must come nevertheless
        logger.warning("what is known of update %d could not be written to %s: %s", update.step + 1, file, error)
        return
    logger.info("the terms, gradients and images of update %d, and how to replay it: %s", update.step + 1, file)


def replay_command(run: Run, step: int) -> str:
    """The command that trains from the last checkpoint to update `step`, where it must end as the run did, into a
    folder of its own and with the settings of the run: another number of steps would be another schedule."""
    workdir = Path(run.workdir)
    tag = newest(Path(run.workdir) / CHECKPOINTS)
    launcher = ["torchrun", "--nproc_per_node", f"{ranks.world_size()}"] if ranks.world_size() > 1 else ["python"]
    start = str(workdir / CHECKPOINTS / tag) if tag else "none"
    options = {"recipe": workdir / CONFIG, "resume": start, "log_every_steps": 1, "trackers": ""}
    options |= {"workdir": workdir / FOLDER / f"replay{step:08d}"}
    return shlex.join([*launcher, "train.py", *(f"--{key}={value}" for key, value in options.items())])


def _readable(values: dict[str, float]) -> dict[str, Any]:
    """As JSON knows neither inf nor nan, they are texts."""
    return {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
