"""Kill ranks of a training run at random moments, and compare its result with that of an undisturbed run.

    python benchmarks/chaos.py [--kills 50] [--ranks 2] [--seed 0] [--slurm] [--fault NAME] [--json FILE]

The run is restarted after each kill. At the end its exported weights must equal those of the undisturbed run bit for
bit, and metrics.jsonl must contain every step exactly once.

The run is the demo at debug size, with every feature that a resumed run must restore. A third of the kills happen
during start-up (including imports), a third during training, and a third while a checkpoint is being written. Of six
kills on average, three are SIGKILL; one is SIGSTOP, followed by SIGKILL within three seconds; one is SIGTERM, which
asks the rank to save and stop; and one is an out-of-memory kill by the kernel. On machines where memory cgroups cannot
be created, SIGKILL replaces the last kind.

There is no launcher. If a rank is killed after the ranks have connected, the other ranks must notice its death
themselves, and the benchmark reports the time until they exit. If it is killed earlier, the benchmark kills the other
ranks, as a launcher would do.

About every second start also gets a fault in its surroundings (`benchmarks/chaos_trust.py`): streams, links,
environment, a stale teacher, or namespaces. --fault NAME causes this fault at every start, and --fault any causes a
random one at every start.

With --slurm the run is a job of a Slurm cluster on this machine (as root, `sh .ci/test_programs` installs Slurm). Then
srun, slurmstepd, the job script and whole nodes are killed, too, network links are cut, and the disk is full or fails
(`benchmarks/chaos_slurm.py`).
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.chaos_trust import FAULTS, FOREIGN, Trust, close_stderr, end_memory  # noqa: E402
from vitkd_ds.train.log import OF_THE_MACHINE  # noqa: E402

STEPS_PER_KILL = 16
HOW = ("killed", "killed", "killed", "suspended, then killed", "asked to end", "out of memory")
SUSPENDED_S = 3.0
OPTIONS = [
    "--recipe=demo", "--debug", "--global_batch_size=8", "--micro_batch_size_per_gpu=2", "--checkpoint.every_steps=3",
    "--optim.lr=0.002", "--optim.ema_decay=0.9", "--student.drop_path_rate=0.2", "--augment.mixup_alpha=0.8",
    "--augment.cutmix_alpha=1", "--losses.nkd.schedule=cosine", "--timeout_minutes=2", "--eval_every_epochs=0.02",
]  # fmt: skip


def start(ranks, workdir, steps, log, *options, fault=None):
    """Start the ranks, each pinned to one CPU; cause `fault` here if it is "closed stream" or "environment"."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    cpus = sorted(os.sched_getaffinity(0))
    processes = []
    for rank in range(ranks):
        env = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
            **(FOREIGN if fault == "environment" else {}),
        }  # fmt: skip
        command = [sys.executable, "train.py", *OPTIONS, f"--max_steps={steps}", f"--workdir={workdir}", *options]
        before = close_stderr if fault == "closed stream" else None
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, preexec_fn=before)
        os.sched_setaffinity(process.pid, {cpus[rank % len(cpus)]})
        processes.append(process)
    return processes


def wait(processes, limit_s, *, is_launcher=False):
    """Wait until all ranks have exited; return the seconds and the exit codes. Kill ranks that still run after
    `limit_s`. In this case, also raise `subprocess.TimeoutExpired` unless `is_launcher` is true."""
    started = time.monotonic()
    try:
        for process in processes:
            process.wait(max(0.1, limit_s - (time.monotonic() - started)))
    except subprocess.TimeoutExpired:
        if not is_launcher:
            raise
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return time.monotonic() - started, [process.returncode for process in processes]


def lines_of(workdir):
    """Return the complete lines of metrics.jsonl as dicts, or [] if the file does not exist yet."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def last_step(workdir):
    """Return the last step in metrics.jsonl, or 0 if it has no step yet."""
    return max((line["step"] for line in lines_of(workdir)), default=0)


def latest_step(workdir):
    """Return the step of the checkpoint that the next start resumes from, or 0 if there is no checkpoint."""
    path = workdir / "checkpoints" / "latest"
    return int(path.read_text().removeprefix("step")) if path.exists() else 0


def log_file(workdir):
    """Return the inode of metrics.jsonl, or None if it does not exist."""
    path = workdir / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else None


def unpublished(workdir):
    """Return name, inode and mtime of each incomplete checkpoint: the one that is being written and those of killed
    starts."""
    found = set()
    for path in (workdir / "checkpoints").glob(".step*"):
        try:
            found.add((path.name, path.stat().st_ino, path.stat().st_mtime_ns))
        except FileNotFoundError:
            pass  # it was completed and renamed meanwhile
    return found


def wait_for_moment(workdir, start_s, step_s, draw, is_over, *, is_new=True):
    """Wait for a random moment of a start. Return the run's phase at that moment, or None if the start ended before.

    With `is_new`, the start has just begun; otherwise it is already training.
    """
    kind = draw.choice(("starting", "training", "saving") if is_new else ("training", "saving"))
    moment_s = time.monotonic() + draw.uniform(0, start_s if is_new else STEPS_PER_KILL * step_s)
    is_begun, left_behind, before = not is_new or kind == "starting", unpublished(workdir), log_file(workdir)
    while True:
        if is_over():
            return None
        # A resuming start rewrites metrics.jsonl without the steps that it will repeat.
        if not is_begun and log_file(workdir) != before and last_step(workdir) > latest_step(workdir):
            is_begun, moment_s = True, time.monotonic() + draw.uniform(0, STEPS_PER_KILL * step_s)
        if kind == "starting" and log_file(workdir) != before:
            break
        if is_begun and time.monotonic() > moment_s and (kind != "saving" or unpublished(workdir) - left_behind):
            break
        time.sleep(0.0005 if is_begun and kind == "saving" else 0.02)
    time.sleep(draw.uniform(0, 0.01))
    return "starting" if kind == "starting" else "saving" if unpublished(workdir) - left_behind else "training"


def kill_one(pid, draw):
    """Kill a process in one of the ways in HOW, chosen at random; return this way."""
    how = draw.choice(HOW)
    if how == "out of memory" and end_memory(pid):
        return how
    if how == "suspended, then killed":
        os.kill(pid, signal.SIGSTOP)
        time.sleep(draw.uniform(0, SUSPENDED_S))
    os.kill(pid, signal.SIGTERM if how == "asked to end" else signal.SIGKILL)
    return how.replace("out of memory", "killed")


def calm_run(args, folder, steps, *options):
    """Train without kills; return the seconds of the whole run, those of its start-up, and those of one step."""
    with (folder / "calm.log").open("w") as log:
        calm_s, codes = wait(start(args.ranks, folder / "calm", steps, log, *options), 3600)
    assert not any(codes), f"the undisturbed run failed; see {folder}/calm.log"
    times = [line["s_per_step"] for line in lines_of(folder / "calm") if "s_per_step" in line]
    step_s = sum(times) / len(times)
    return calm_s, calm_s - steps * step_s, step_s


def chaos(args, folder):
    """Make the undisturbed run and then the run with kills; return the report as a dict."""
    draw, steps = random.Random(args.seed), STEPS_PER_KILL * args.kills
    trust = Trust(folder, folder / "chaos")
    options = [trust.option]
    calm_s, start_s, step_s = calm_run(args, folder, steps, *options)
    trust.copy_other(folder / "calm")
    log = (folder / "log").open("w")
    workdir, repeated, resumes = folder / "chaos", 0, 0
    seen, hows, faults, ended_s = [], [], [], []
    while not (workdir / "done").exists():
        resumes += latest_step(workdir) > 0
        fault = draw.choice(FAULTS) if args.fault == "any" else args.fault
        fault = fault or draw.choice((*FAULTS, *[None] * len(FAULTS)))
        fault = fault if len(seen) < args.kills else None
        if fault == "stale teacher" and latest_step(workdir):
            with trust.changed_teacher():
                codes = wait(start(args.ranks, workdir, steps, log, *options), 300)[1]
            assert codes == [2] * args.ranks, f"a changed teacher was not rejected: exit codes {codes}, expected 2"
        with trust.stream(fault, log) as stream:
            processes = start(args.ranks, trust.place(fault), steps, stream, *options, fault=fault)
        is_over = lambda: any(process.poll() is not None for process in processes)  # noqa: B023, E731
        phase = None if len(seen) >= args.kills else wait_for_moment(workdir, start_s, step_s, draw, is_over)
        if phase:
            trust.strike(fault, lambda: (workdir / "lock").exists() and not is_over())  # noqa: B023
        trust.check()
        how = kill_one(draw.choice(processes).pid, draw) if phase else None
        is_early = phase == "starting"
        seconds, codes = wait(processes, 5 if is_early else 900, is_launcher=is_early)
        trust.check()
        is_asked = how == "asked to end" and phase in ("training", "saving")
        assert not is_asked or not any(codes), f"a start that was asked to end failed: {fault}"
        if phase:
            seen.append(phase)
            hows.append(how)
            faults.append(fault or "none")
            ended_s += [seconds] if not is_early and how != "asked to end" else []
            repeated += max(0, last_step(workdir) - latest_step(workdir))
            found = f"last step {last_step(workdir)}, last complete checkpoint {latest_step(workdir)}"
            what = f"{how}, {fault or 'no fault'}"
            print(f"kill {len(seen)} while {phase}, {what}: others exited after {seconds:.1f} s, {found}", flush=True)
        assert phase or not any(codes), f"an undisturbed start failed; see {folder}/log"
    return {
        "kills": len(seen), "while": count(seen), "resumes": resumes, "how": count(hows), "faults": count(faults),
        "steps_repeated": repeated,
        "others_ended_s": {"mean": sum(ended_s) / max(1, len(ended_s)), "max": max(ended_s, default=0)},
        "ranks": args.ranks, "seed": args.seed, "calm_run_s": calm_s,
    } | compare(workdir, folder / "calm", steps)  # fmt: skip


def count(words):
    """Return how often each word occurs."""
    return {word: words.count(word) for word in sorted(set(words))}


def compare(workdir, calm, steps):
    """Return how many steps were lost or logged twice, and whether weights and losses equal the undisturbed run's."""
    trained = [line for line in lines_of(workdir) if "total" in line]
    students = [(run / "student.safetensors").read_bytes() for run in (workdir, calm)]
    return {
        "steps": steps,
        "steps_lost": steps - len({line["step"] for line in trained}), "steps_twice": len(trained) - steps,
        "weights_equal": students[0] == students[1], "losses_equal": numerics(workdir) == numerics(calm),
    }  # fmt: skip


def numerics(workdir):
    """Return metrics.jsonl without timings and other values that depend on the machine."""
    return [{key: value for key, value in line.items() if key not in OF_THE_MACHINE} for line in lines_of(workdir)]


def main():
    """Run the benchmark, print its report, and exit with 1 if weights or losses differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slurm", action="store_true", help="train in a Slurm job, and kill its parts, too")
    parser.add_argument("--fault", choices=(*FAULTS, "any"), help="cause this fault (any: a random one) at every start")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked to end"))  # so that `finally` blocks stop the ranks
    folder = Path(tempfile.mkdtemp(prefix="chaos."))
    print(f"in {folder}", flush=True)
    if args.slurm:
        from benchmarks import chaos_slurm

        numbers = chaos_slurm.chaos(args, folder)
    else:
        numbers = chaos(args, folder)
    print(json.dumps(numbers, indent=2))
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")
    sys.exit(not (numbers["weights_equal"] and numbers["losses_equal"]))


if __name__ == "__main__":
    main()
