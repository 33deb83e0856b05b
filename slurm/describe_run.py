"""What slurm/run_recipe.sh must know of a run, from train.py's own command line: folder, --resume and data.

Options that train.py would refuse are refused here with the same message, before a rank starts.
"""

import sys

import fire
from fire.decorators import SetParseFn

from vitkd_ds.cli import parse_run
from vitkd_ds.config.check import check_workdir
from vitkd_ds.config.reading import Unreadable

UNREADABLE = 164
"""Exit code where a disk fails: as srun's where it starts no step, after which run_recipe.sh asks again."""


@SetParseFn(str)
def describe(*words: str, **flags: str) -> None:
    """Print one KEY=VALUE line each."""
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
