"""What a run folder says about its run: config.json at the start, and whether it is finished."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitkd_ds.config.run import Run, as_dict
from vitkd_ds.engine import ranks
from vitkd_ds.train.log import git_commit, versions, write_json
from vitkd_ds.train.parts import Job


def is_finished(run: Run) -> bool:
    """Whether the run folder holds a finished run, which is then left alone."""
    return run.resume != "none" and (Path(run.workdir) / "done").exists()


def summary_of(run: Run) -> dict[str, Any]:
    """The summary of a finished run."""
    print(f"{run.workdir} is finished and left alone: give another --workdir to train again", file=sys.stderr)
    return json.loads((Path(run.workdir) / "summary.json").read_text())


def describe_run(job: Job, workdir: Path, resumed_step: int) -> None:
    """Write config.json; a continued run has the same settings, but may have moved and been updated."""
    workdir.mkdir(parents=True, exist_ok=True)
    content = {"run": as_dict(job.run), "plan": asdict(job.plan), "resumed_step": resumed_step}
    content |= {"world_size": ranks.world_size(), "device": job.device.type, "command": sys.argv}
    write_json(workdir / "config.json", content | {"git_commit": git_commit(), "versions": versions()})
