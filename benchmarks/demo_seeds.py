"""Does distillation help? The demo's student with and without its teacher, paired over seeds.

    python benchmarks/demo_seeds.py --seeds 5 [--folder runs/seeds]

Seed s gives both runs the same initial student, image order, crops and flips. Prints what `vitkd-ds compare` says of
the runs: each of them, and the mean difference with its 95 % interval (Student's t over the pairs). A finished run in
the folder is kept, so an interrupted benchmark continues: after a change of the recipe, give a new folder.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from vitkd_ds.commands.compare import compare

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ("demo_plain", "demo")


def train(recipe: str, seed: int, folder: Path) -> None:
    """Train one run, unless it is finished."""
    workdir = folder / f"{recipe}_seed{seed}"
    command = [sys.executable, "train.py", "--recipe", recipe, "--seed", str(seed), "--workdir", str(workdir)]
    log = folder / f"{workdir.name}.log"
    with log.open("a") as file:
        if subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, check=False).returncode:
            sys.exit(f"{' '.join(command)} failed, see {log}")


def main() -> None:
    """Run the pairs and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "seeds")
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        for recipe in RECIPES:
            train(recipe, seed, folder)
    runs = [str(folder / f"{recipe}_seed{seed}") for recipe in RECIPES for seed in range(args.seeds)]
    print(compare(*runs, speed=False))


if __name__ == "__main__":
    main()
