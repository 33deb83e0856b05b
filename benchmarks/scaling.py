"""Measure weak scaling of a training step on 1, 2 and 4 CPU ranks, over loopback and over rate-limited links.

    python benchmarks/scaling.py [--ranks 1 2 4] [--links loopback 1000 200] [--rounds 3] [--json FILE] [--debug]

A step trains DeiT-Tiny with a sharded teacher, DeiT III-Small, at full size, with the shipped ZeRO-2 settings, without
compilation and with a few images per rank. --debug uses toy models; their times mean nothing. A link is "loopback" or a
rate in Mbit/s. With a rate, each rank has its own network namespace, and a token bucket (`tc tbf`) limits the rate at
which it sends. This needs root. The table has medians over the rounds. Its columns are:

- step: seconds per step, as the median over the steps and the mean over the ranks.
- compute: seconds per step without communication. For this, the same number of processes runs on the same cores, each
  with a world size of 1. These seconds grow if ranks share cores (4 ranks on 2 cores), as they would not on a cluster.
- communication: step minus compute, in total and for each part: teacher (gathers), forward, backward (gradients) and
  update (norm, weights).
- sent: bytes per rank and step, counted by the network interface, including TCP headers.
- formula: bytes per rank and step according to `vitkd_ds.commands.plan.predict.bytes_per_step`, as in `vitkd-ds plan`.
- line: seconds in which the link can send the formula's bytes at its rate.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.network import HUB, INTERFACE, Network, why_not  # noqa: E402

PARTS = ("teacher", "forward", "backward", "update")
PARAMS = ("trained_params", "teacher_params")
LIMIT_S = 1200
"""Time limit for ranks that run together, in seconds."""


def measure(args: argparse.Namespace) -> None:
    """Run the steps on this rank, and write the measurements to args.worker. Collective if the ranks form one world."""
    from benchmarks.step_rounds import parts_of_step, step
    from benchmarks.step_variants import Engines, build_pair, make_micro_batch
    from vitkd_ds.engine import processes, ranks
    from vitkd_ds.models.cost import num_parameters

    device = processes.start_processes()
    pair = build_pair("tiny", ds_config="ds_configs/zero2.json", debug=args.debug)
    batch = make_micro_batch(pair, args.micro_batch, device)
    engines = Engines(pair, device, args.micro_batch, "shard", compile="off")
    for _ in range(args.warmup):
        step(engines, batch)
    ranks.barrier()
    sent = sent_bytes(args.interface)
    steps = [parts_of_step(engines, batch) for _ in range(args.steps)]
    ranks.barrier()
    found = {part: statistics.median(seconds[part] for seconds in steps) for part in PARTS}
    found["step"] = statistics.median(sum(seconds.values()) for seconds in steps)
    found["sent_bytes"] = (sent_bytes(args.interface) - sent) / args.steps
    found["trained_params"] = num_parameters(engines.engine.engine.module)
    found["teacher_params"] = num_parameters(pair.models.teachers["teacher"])
    args.worker.write_text(json.dumps(found))
    processes.leave()


def sent_bytes(interface: str) -> int:
    """Return the number of bytes that a network interface of this namespace has sent."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    (counters,) = (line.split(":")[1].split() for line in lines if line.strip().startswith(f"{interface}:"))
    return int(counters[8])


def run_ranks(args: argparse.Namespace, network: Network, num_ranks: int, *, together: bool) -> list[dict[str, Any]]:
    """Run one rank on each node, or all ranks on the hub if there are no nodes; return the measurements of each rank.

    With `together`, the ranks form one world. Otherwise each rank is a world of its own.
    """
    cpus = sorted(os.sched_getaffinity(0))
    hosts, interface = network.nodes or [HUB] * num_ranks, INTERFACE if network.nodes else "lo"
    address = network.addresses[hosts[0]] if network.nodes else "127.0.0.1"
    size = ["--micro_batch", args.micro_batch, "--steps", args.steps, "--warmup", args.warmup]
    with tempfile.TemporaryDirectory() as folder:
        processes, files = [], [Path(folder, f"{rank}.json") for rank in range(num_ranks)]
        for rank, file in enumerate(files):
            command = ["taskset", "-c", cpus[rank % len(cpus)], sys.executable, __file__, "--worker", file]
            command += ["--interface", interface, *size, *(["--debug"] if args.debug else [])]
            env = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": interface}
            if together:
                env |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": "1"}
                env |= {"MASTER_ADDR": address, "MASTER_PORT": "29500"}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            words = [*network.on(hosts[rank]), *map(str, command)]
            processes.append(subprocess.Popen(words, cwd=ROOT, env=env, **pipes))
        try:
            told = [process.communicate(timeout=LIMIT_S)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        for process, text in zip(processes, told):
            if process.returncode:
                raise RuntimeError(f"a rank failed with exit code {process.returncode}:\n{text.decode()[-3000:]}")
        return [json.loads(file.read_text()) for file in files]


def row_of(link: str, together: list[dict[str, Any]], alone: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a row from the measurements of ranks that form one world (`together`) and that do not (`alone`)."""
    from vitkd_ds.commands.plan.predict import Layout, bytes_per_step

    def mean(found: list[dict[str, Any]], key: str) -> float:
        return statistics.fmean(rank[key] for rank in found)

    ranks = len(together)
    layout = Layout(nodes=ranks, gpus_per_node=1, micro_batch=1, accumulation=1, placement="shard")
    formula = sum(bytes_per_step(layout, **{key: together[0][key] for key in PARAMS}).values())
    row: dict[str, Any] = {"link": link, "ranks": ranks, "step_s": mean(together, "step")}
    row |= {"compute_s": mean(alone, "step"), "communication_s": mean(together, "step") - mean(alone, "step")}
    row |= {f"{part}_s": mean(together, part) - mean(alone, part) for part in PARTS}
    # On loopback, one interface counts the bytes of all ranks.
    row["sent_bytes"] = mean(together, "sent_bytes") / (ranks if link == "loopback" else 1)
    row["formula_bytes"] = formula
    row["line_s"] = None if link == "loopback" else 8 * formula / (int(link) * 1e6)
    return row


def one_round(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every combination of link and number of ranks once; return the rows."""
    rows = []
    for ranks in args.ranks:
        with Network(0) as network:
            alone = run_ranks(args, network, ranks, together=False)
        for link in args.links if ranks > 1 else ["loopback"]:
            with Network(0) if link == "loopback" else Network(ranks, int(link)) as network:
                rows.append(row_of(link, run_ranks(args, network, ranks, together=True), alone))
                print(json.dumps(rows[-1]), flush=True)
    return rows


def table(rounds: list[list[dict[str, Any]]]) -> tuple[list[dict[str, Any]], str]:
    """Return the medians over the rounds, both as rows and as a Markdown table."""
    rows = []
    for same in zip(*rounds):
        keys = [key for key in same[0] if key not in ("link", "ranks") and same[0][key] is not None]
        rows.append(same[0] | {key: statistics.median(one[key] for one in same) for key in keys})
    lines = [
        "| link, Mbit/s | ranks | step, s | compute | communication | teacher / forward / backward / update | line | "
        "sent, MB | formula, MB | sent / formula |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        parts = " / ".join(f"{row[f'{part}_s']:.2f}" for part in PARTS)
        line_s = "–" if row["line_s"] is None else f"{row['line_s']:.2f}"
        ratio = f"{row['sent_bytes'] / row['formula_bytes']:.3f}" if row["formula_bytes"] else "–"
        lines.append(
            f"| {row['link']} | {row['ranks']} | {row['step_s']:.2f} | {row['compute_s']:.2f} | "
            f"{row['communication_s']:.2f} | {parts} | {line_s} | {row['sent_bytes'] / 1e6:.1f} | "
            f"{row['formula_bytes'] / 1e6:.1f} | {ratio} |"
        )
    return rows, "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--links", nargs="+", default=["loopback", "1000", "200"], help="loopback, or Mbit/s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--micro_batch", type=int, default=4, help="images per rank and step")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--interface", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        measure(args)
    if reason := why_not("tc", "taskset"):
        parser.error(f"cannot create virtual hosts on this machine: {reason}")
    rows, text = table([one_round(args) for _ in range(args.rounds)])
    print(text)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
