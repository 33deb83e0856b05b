"""Find the least computing time that reaches an accuracy on the demo: initial weights, optimizer and length of the run.

    python benchmarks/speedrun.py search CELL [CELL ...] [--folder runs/speedrun]
    python benchmarks/speedrun.py run CELL[@EPOCHS[,EPOCHS ...]] [...] --seeds 0 1 2 [--folder runs/speedrun]
    python benchmarks/speedrun.py table [--folder runs/speedrun]

Each run is a complete schedule (warm-up and cosine decay) of EPOCHS epochs on one CPU core. Its student is evaluated
once, after the last step, on all 10,000 test images of Fashion-MNIST (Debian's package dataset-fashion-mnist); the
recipe of the demo uses 2,000 of them. `cpu_s` is the CPU time of the whole process in seconds, including its start and
the evaluation. `search` trains each cell for SEARCH_EPOCHS epochs with each learning rate in FACTORS, evaluates on
training images that it holds out, and writes the best factor to rates.json; `run` uses it. Runs are appended to
rows.jsonl as they finish. Rerun an interrupted command to resume it. `table` prints means over seeds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from scipy.stats import t

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.demo_methods import held_out_data  # noqa: E402
from benchmarks.fashion_mnist import write_folders  # noqa: E402
from vitkd_ds.commands.pack import pack  # noqa: E402
from vitkd_ds.config.run_folder import SUMMARY  # noqa: E402

PLAIN = {"recipe": "demo_plain"}
DISTILLED = {"recipe": "demo"}
MUON = {"optim.name": "muon"}
SELECTED = {"student.init": "select:demo"}
CELLS: dict[str, dict[str, str]] = {
    "plain": PLAIN,
    "plain+muon": PLAIN | MUON,
    "plain+select": PLAIN | SELECTED,
    "plain+select+muon": PLAIN | SELECTED | MUON,
    "distilled": DISTILLED,
    "distilled+muon": DISTILLED | MUON,
    "distilled+select": DISTILLED | SELECTED,
    "distilled+select+muon": DISTILLED | SELECTED | MUON,
}
"""Options of each cell."""
FACTORS, SEARCH_EPOCHS, LR = (1.0, 2.0, 4.0), 6, 1.5e-3
"""The search multiplies LR, the learning rate of the demo, by FACTORS."""
EPOCHS = (4, 6, 8, 10, 14, 20)
WARMUP = 0.1
"""Warm-up as a fraction of the run: 2 of the demo's 20 epochs."""


def test_images(folder: Path) -> dict[str, str]:
    """Pack all 10,000 test images; return the option that evaluates on them."""
    path = folder / "test.beton"
    if not path.exists():
        write_folders(folder / "images")
        pack(str(folder / "images" / "val"), str(path), write_mode="raw")
    return {"data.val": str(path)}


def train(folder: Path, cell: str, epochs: int, seed: int, factor: float, data: dict[str, str]) -> dict[str, Any]:
    """Train and evaluate one student in a process of its own; return its row."""
    options = (
        CELLS[cell]
        | data
        | {
            "epochs": str(epochs),
            "optim.lr": f"{LR * factor:g}",
            "optim.warmup_epochs": "0",
            "optim.warmup_fraction": str(WARMUP),
            "eval_every_epochs": "0",
            "seed": str(seed),
            "workdir": str(folder / f"{cell}@{epochs}x{factor:g}" / f"seed{seed}"),
        }
    )
    command = [sys.executable, "-m", "vitkd_ds", "train", *(f"--{key}={value}" for key, value in options.items())]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "DS_ACCELERATOR": "cpu"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the run failed: {' '.join(command)}")
    summary = json.loads((Path(options["workdir"]) / SUMMARY).read_text())
    cpu_s = round(usage.ru_utime + usage.ru_stime, 1)
    row = {
        "cell": cell,
        "epochs": epochs,
        "factor": factor,
        "seed": seed,
        "top1": summary["student_top1"],
        "cpu_s": cpu_s,
    }
    print(json.dumps(row), flush=True)
    return row


def finished(path: Path) -> list[dict[str, Any]]:
    """Return the rows of finished runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def train_missing(folder: Path, runs: list[tuple[str, int, int, float]], data: dict[str, str]) -> list[dict[str, Any]]:
    """Train the runs (cell, epochs, seed, factor) that have no row in the folder; return the rows of all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    rows = {(row["cell"], row["epochs"], row["seed"], row["factor"]): row for row in finished(path)}
    for run in runs:
        if run not in rows:
            cell, epochs, seed, factor = run
            rows[run] = train(folder, cell, epochs, seed, factor, data)
            with path.open("a") as file:
                file.write(json.dumps(rows[run]) + "\n")
    return [rows[run] for run in runs]


def search(folder: Path, cells: list[str]) -> None:
    """Write the best factor of the learning rate of each cell to rates.json."""
    data = held_out_data(folder / "held_out")
    runs = [(cell, SEARCH_EPOCHS, 0, factor) for cell in cells for factor in FACTORS]
    rows = train_missing(folder / "search", runs, data)
    path = folder / "rates.json"
    rates = json.loads(path.read_text()) if path.exists() else {}
    for cell in cells:
        best = max((row for row in rows if row["cell"] == cell), key=lambda row: row["top1"])
        rates[cell] = best["factor"]
    path.write_text(json.dumps(rates, indent=1))
    print(path.read_text())


def run(folder: Path, cells: list[str], seeds: list[int]) -> None:
    """Train the cells with their best learning rate, one seed after the other."""
    rates = json.loads((folder / "rates.json").read_text())
    data = test_images(folder / "test")
    runs = []
    for seed in seeds:
        for text in cells:
            cell, _, lengths = text.partition("@")
            runs += [(cell, int(epochs), seed, rates[cell]) for epochs in lengths.split(",") if epochs]
            runs += [(cell, epochs, seed, rates[cell]) for epochs in EPOCHS if not lengths]
    train_missing(folder / "runs", runs, data)


def table(folder: Path) -> None:
    """Print mean top-1, the 95 % interval of the mean and CPU seconds for each cell and number of epochs."""
    groups = defaultdict(list)
    for row in finished(folder / "runs" / "rows.jsonl"):
        groups[row["cell"], row["epochs"], row["factor"]].append(row)
    print("| cell | epochs | learning rate | top-1 | 95 % interval | CPU-s | images | n |")
    print("|---|---|---|---|---|---|---|---|")
    for (cell, epochs, factor), rows in sorted(groups.items()):
        top1 = [row["top1"] for row in rows]
        seconds = statistics.mean(row["cpu_s"] for row in rows)
        mean = statistics.mean(top1)
        interval = ""
        if len(rows) > 1:
            half = t.ppf(0.975, len(rows) - 1) * statistics.stdev(top1) / len(rows) ** 0.5
            interval = f"{mean - half:.2f} to {mean + half:.2f}"
        print(
            f"| {cell} | {epochs} | {LR * factor:g} | {mean:.2f} | {interval} | {seconds:.0f} "
            f"| {6000 * epochs:,} | {len(rows)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["search", "run", "table"])
    parser.add_argument("cells", nargs="*", default=list(CELLS))
    parser.add_argument("--folder", type=Path, default=Path("runs/speedrun"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    folder = args.folder.resolve()
    if args.what == "search":
        search(folder, args.cells)
    elif args.what == "run":
        run(folder, args.cells, args.seeds)
    else:
        table(folder)


if __name__ == "__main__":
    main()
