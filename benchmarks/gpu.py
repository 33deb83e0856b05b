"""`make gpu`: check correctness and speed on a GPU, in at most 25 minutes.

    python benchmarks/gpu.py [--out gpu] [--only PART ...] [--minutes N] [--backend torchvision] [--debug]

This command runs several parts, one after another, each in its own process. `gpu_checks.py` checks correctness.
`step.py` times a training step for each pair of models and each placement of the teacher; then Base with 512 images, to
measure its memory; and then CUDA graphs and fp8. `host.py` times the host. Tuned kernels come last, because tuning
takes minutes. Each part writes its output and its rows (JSON) to the folder --out. There, rows.json has all rows, and
rows.md has lines for benchmarks/RESULTS.md. If a part fails, this is reported, and the other parts still run. --debug
runs everything at toy size without a GPU. --only runs some parts and keeps the rows of the others, so that a machine
with a limit per command can run them one by one. --backend torchvision is for machines without FFCV.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.rows import write_rows  # noqa: E402

LOOP, SHARD = 1.0, 1.05
"""Targets: minimum speed of a replica relative to the compiled loop; maximum time of a shard relative to a replica."""
MINUTES, PART_MINUTES = 25, 8
"""Time limits for all parts together and for one part. A part that has not started by then is skipped and reported."""


def parts(out: Path, *, debug: bool, backend: str = "ffcv") -> dict[str, list[str]]:
    """Return the parts as a dict from name to Python's arguments, the most important part first."""

    def benchmark(file: str, name: str, *args: str) -> list[str]:
        return [f"benchmarks/{file}.py", *args, "--json", str(out / f"{name}.json")]

    toy = ["--debug"] if debug else []
    if debug:
        steps = {"step tiny": benchmark("step", "step tiny", "--pairs", "tiny", *toy)}
        short = ["--rounds", "1", "--steps", "1", "--warmup", "1"]
        return {
            "checks": benchmark("gpu_checks", "checks", "--backend", backend),
            **steps,
            "host": benchmark("host", "host", *toy, *short),
        }
    micro_batches = {"tiny": ["64", "256"], "small": ["256"], "base": ["128"]}
    steps = {
        f"step {pair}": benchmark("step", f"step {pair}", "--pairs", pair, "--micro_batches", *sizes, "--repeats", "3")
        for pair, sizes in micro_batches.items()
    }
    memory = ["--pairs", "base", "--micro_batches", "512", "--variants", "replica", "shard", "--repeats", "2"]
    choices = [
        "--pairs",
        "tiny",
        "base",
        "--micro_batches",
        "128",
        "--repeats",
        "3",
        "--variants",
        "compiled",
        "replica",
    ]
    return {
        "checks": benchmark("gpu_checks", "checks", "--backend", backend),
        **steps,
        "step base 512": benchmark("step", "step base 512", *memory),
        "step choices": benchmark("step", "step choices", *choices, "reduce-overhead", "fp8"),
        "host": benchmark("host", "host", "--rounds", "20"),
        "step tuned": benchmark("step", "step tuned", *choices, "max-autotune"),  # compiles for minutes
    }


def run(name: str, arguments: list[str], out: Path, *, deadline: float) -> dict[str, Any]:
    """Run one part. Return its exit code (None if it did not finish in time), its seconds and its rows."""
    start = time.monotonic()
    if start >= deadline:
        return {"part": name, "code": None, "seconds": 0.0, "rows": []}
    with (out / f"{name}.txt").open("w") as text:
        command = [sys.executable, *arguments]
        text.write(f"$ {' '.join(command)}\n")
        text.flush()
        options = {"cwd": ROOT, "stdout": text, "stderr": subprocess.STDOUT, "start_new_session": True}
        process = subprocess.Popen(command, **options)
        try:
            code = process.wait(timeout=min(deadline - start, 60 * PART_MINUTES))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # also its children, which would otherwise occupy the GPU
            code = process.wait() and None
    rows = out / f"{name}.json"
    found = json.loads(rows.read_text()) if rows.exists() else []
    return {"part": name, "code": code, "seconds": time.monotonic() - start, "rows": found}


def lines_for_results(done: list[dict[str, Any]]) -> list[str]:
    """Format the rows of `step.py` as lines for the first table of benchmarks/RESULTS.md, without names such as S1."""
    lines = []
    for row in (row for each in done if each["part"].startswith("step") for row in each["rows"]):
        values = [("ratio", "{:.2f}"), ("peak_gib", "{:.1f}"), ("mfu", "{:.1%}")]
        cells = ["–" if row[key] is None else form.format(row[key]) for key, form in values]
        who = f"{row['pair'].capitalize()}, {row['micro_batch']} | {row['variant']}"
        lines.append(f"| {who} | {row['images_per_s']:,.0f} | {' | '.join(cells)} |")
    return lines


def judge(done: list[dict[str, Any]]) -> list[str]:
    """Return a line per target that says whether it was reached or missed. Missed targets do not affect the exit code.

    A replica must be at least LOOP times as fast as the compiled loop, and a shard may take at most SHARD times as long
    as a replica.
    """
    rows = [row for each in done if each["part"].startswith("step") for row in each["rows"]]
    lines = []
    for pair, micro_batch in dict.fromkeys((row["pair"], row["micro_batch"]) for row in rows):
        here = [row for row in rows if (row["pair"], row["micro_batch"]) == (pair, micro_batch)]
        found = {row["variant"]: row for row in reversed(here)}
        replica, shard = found.get("replica"), found.get("shard")
        if replica and replica["ratio"] is not None:
            ratio = replica["ratio"]
            state = "reached" if ratio >= LOOP else "MISSED"
            lines.append(
                f"{state}: {pair}, {micro_batch}: a replica at {ratio:.2f} x the compiled loop, target {LOOP:g}"
            )
        if replica and shard:
            longer = replica["images_per_s"] / shard["images_per_s"]
            state = "reached" if longer <= SHARD else "MISSED"
            lines.append(
                f"{state}: {pair}, {micro_batch}: a shard takes {longer:.2f} x a replica's time, target {SHARD:g}"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--only", nargs="+", metavar="PART", help="names such as checks, 'step tiny' or host")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time limit of all parts together")
    parser.add_argument("--backend", default="ffcv", choices=["ffcv", "torchvision"])
    parser.add_argument("--debug", action="store_true")
    args = parser.parse_args()
    out = args.out.resolve()
    chosen = parts(out, debug=args.debug, backend=args.backend)
    if unknown := [name for name in args.only or () if name not in chosen]:
        parser.error(f"--only {unknown[0]!r} is unknown; the parts are {', '.join(chosen)}")
    out.mkdir(parents=True, exist_ok=True)
    import torch  # imported here so that --help is fast

    if not args.debug and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no usable GPU; run `vitkd-ds doctor`, or pass --debug")
    deadline = time.monotonic() + 60 * args.minutes
    rows = out / "rows.json"
    done = json.loads(rows.read_text()) if args.only and rows.exists() else []
    for name in args.only or chosen:
        done = [part for part in done if part["part"] != name]
        done.append(run(name, chosen[name], out, deadline=deadline))
        state = {0: "ok", None: "not finished in time"}.get(done[-1]["code"], "FAILED")
        print(f"{name:18} {done[-1]['seconds']:6.0f} s  {state}  {out / name}.txt", flush=True)
        write_rows(rows, done)  # now, so that an interruption loses nothing
        (out / "rows.md").write_text("\n".join(lines_for_results(done)) + "\n")
    print(*judge(done), sep="\n")
    sys.exit(any(part["code"] != 0 for part in done if part["part"] in (args.only or chosen)))


if __name__ == "__main__":
    main()
