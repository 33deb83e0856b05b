"""Does distillation help? The demo's student with and without its teacher, paired over seeds.

    python benchmarks/demo_seeds.py --seeds 5 [--folder runs/seeds]

Seed s gives both runs the same initial student, image order, crops and flips. Prints each pair and the mean difference
with its 95 % interval (Student's t over the pairs). A finished run in the folder is kept, so an interrupted benchmark
continues: after a change of the recipe, give a new folder.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Two-sided 95 % quantile of Student's t for n pairs, n - 1 degrees of freedom."""


def top1(recipe: str, seed: int, folder: Path) -> float:
    """Train one run unless it is finished; its validation top-1 in percent."""
    workdir = folder / f"{recipe}_seed{seed}"
    command = [sys.executable, "train.py", "--recipe", recipe, "--seed", str(seed), "--workdir", str(workdir)]
    log = folder / f"{workdir.name}.log"
    with log.open("a") as file:
        if subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, check=False).returncode:
            sys.exit(f"{' '.join(command)} failed, see {log}")
    return json.loads((workdir / "summary.json").read_text())["student_top1"]


def main() -> None:
    """Run the pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(T_95))
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "seeds")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    differences = []
    print("seed  plain  distilled  difference")
    for seed in range(args.seeds):
        plain, distilled = (top1(recipe, seed, args.folder.resolve()) for recipe in ("demo_plain", "demo"))
        differences.append(distilled - plain)
        print(f"{seed:4}  {plain:5.2f}  {distilled:9.2f}  {differences[-1]:+10.2f}", flush=True)
    mean, n = statistics.mean(differences), len(differences)
    half = T_95[n] * statistics.stdev(differences) / math.sqrt(n)
    print(f"mean difference {mean:+.2f}, 95 % interval [{mean - half:+.2f}, {mean + half:+.2f}], n = {n} pairs")


if __name__ == "__main__":
    main()
