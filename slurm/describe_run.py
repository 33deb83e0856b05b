"""Print a run's folder, --resume and data paths for slurm/run_recipe.sh, given train.py's command line.

Invalid options raise the same errors as in train.py, but before any rank starts.
"""

import sys

import fire
from fire.decorators import SetParseFn

from vitkd_ds.cli import parse_run
from vitkd_ds.config.check import check_workdir
from vitkd_ds.config.reading import Unreadable

UNREADABLE = 164
"""Exit code for a disk error; srun's code if it cannot start a job step. run_recipe.sh retries after either."""


@SetParseFn(str)
def describe(*words: str, **flags: str) -> None:
    """Print a KEY=VALUE line for the run folder, --resume and both data paths."""
    run = parse_run(words, flags)
    check_workdir(run)
    for key, value in {
        "workdir": run.workdir,
        "resume": run.resume,
        "data.train": run.data.train,
        "data.val": run.data.val,
    }.items():
        print(f"{key}={value}")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="surrogateescape")  # a path may be any bytes
    try:
        fire.Fire(describe, name="train.py")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Unreadable as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(UNREADABLE)
