"""Kills a rank of a training run at random moments, starts it again each time, and compares the end with a run that
was left alone: every bit of the exported weights, and each step in metrics.jsonl once.

    python benchmarks/chaos.py [--kills 50] [--ranks 2] [--seed 0] [--slurm] [--fault NAME] [--json FILE]

The run is the demo at debug size with all that must be resumed switched on. A third of the kills come during the start,
imports included, a third during the training, and a third wait for a checkpoint that is being written. Of six, three
are SIGKILL, one is SIGSTOP and SIGKILL up to three seconds later, one is SIGTERM, which asks to save and end, and one
is the kernel's for want of memory (as root, where memory cgroups can be made; else SIGKILL). There is no launcher: once
the ranks have met, the others must notice by themselves, and what they took is reported. A rank that waits for one that
died before they met is killed, as a launcher would do.

Every second start also has a fault in what a run relies on (`benchmarks/chaos_trust.py`): streams, links, environment,
a stale teacher, namespaces. --fault takes one of them alone.

With --slurm the run is a job of a Slurm on this machine (as root, `sh .ci/test_programs` installs it), and what dies
may also be srun, a slurmstepd, the job script or a node; links are cut and disks full: `benchmarks/chaos_slurm.py`.
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
    """Start the ranks, pinned to one CPU each; a fault is one of the stream or the environment."""
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
    """Wait for all to end; returns seconds and exit codes. One that does not is killed; without `is_launcher` that is
    a failure of the test."""
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
    """The whole lines of metrics.jsonl; none before the first."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def last_step(workdir):
    """The last step in metrics.jsonl; 0 before the first."""
    return max((line["step"] for line in lines_of(workdir)), default=0)


def latest_step(workdir):
    """Step of the checkpoint that the next start will take; 0 without one."""
    path = workdir / "checkpoints" / "latest"
    return int(path.read_text().removeprefix("step")) if path.exists() else 0


def log_file(workdir):
    """Which file metrics.jsonl is."""
    path = workdir / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else None


def unpublished(workdir):
    """Checkpoints that are being written, or that a kill left behind: name, inode, last change."""
    found = set()
    for path in (workdir / "checkpoints").glob(".step*"):
        try:
            found.add((path.name, path.stat().st_ino, path.stat().st_mtime_ns))
        except FileNotFoundError:
            pass  # published meanwhile
    return found


def wait_for_moment(workdir, start_s, step_s, draw, is_over, *, is_new=True):
    """Wait for a random moment of a start, which if it is not new has trained for a while; returns what the run does
    then, None if it was over before."""
    kind = draw.choice(("starting", "training", "saving") if is_new else ("training", "saving"))
    moment_s = time.monotonic() + draw.uniform(0, start_s if is_new else STEPS_PER_KILL * step_s)
    is_begun, left_behind, before = not is_new or kind == "starting", unpublished(workdir), log_file(workdir)
    while True:
        if is_over():
            return None
        # A start rewrites the log without the steps that it repeats.
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
    """Kill a process in one of several ways; returns how."""
    how = draw.choice(HOW)
    if how == "out of memory" and end_memory(pid):
        return how
    if how == "suspended, then killed":
        os.kill(pid, signal.SIGSTOP)
        time.sleep(draw.uniform(0, SUSPENDED_S))
    os.kill(pid, signal.SIGTERM if how == "asked to end" else signal.SIGKILL)
    return how.replace("out of memory", "killed")


def calm_run(args, folder, steps, *options):
    """Run without kills; returns seconds of all of it, of its start and of a step."""
    with (folder / "calm.log").open("w") as log:
        calm_s, codes = wait(start(args.ranks, folder / "calm", steps, log, *options), 3600)
    assert not any(codes), f"the calm run failed, see {folder}/calm.log"
    times = [line["s_per_step"] for line in lines_of(folder / "calm") if "s_per_step" in line]
    step_s = sum(times) / len(times)
    return calm_s, calm_s - steps * step_s, step_s


def chaos(args, folder):
    """The run that is killed, after the one that is left alone."""
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
            assert codes == [2] * args.ranks, f"another teacher must be refused, found the exit codes {codes}"
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
            found = f"at step {last_step(workdir)}, whole checkpoint {latest_step(workdir)}"
            what = f"{how}, {fault or 'no fault'}"
            print(f"kill {len(seen)} while {phase}, {what}: others ended after {seconds:.1f} s, {found}", flush=True)
        assert phase or not any(codes), f"an undisturbed start failed, see {folder}/log"
    return {
        "kills": len(seen), "while": count(seen), "resumes": resumes, "how": count(hows), "faults": count(faults),
        "steps_repeated": repeated,
        "others_ended_s": {"mean": sum(ended_s) / max(1, len(ended_s)), "max": max(ended_s, default=0)},
        "ranks": args.ranks, "seed": args.seed, "calm_run_s": calm_s,
    } | compare(workdir, folder / "calm", steps)  # fmt: skip


def count(words):
    """How often each is there."""
    return {word: words.count(word) for word in sorted(set(words))}


def compare(workdir, calm, steps):
    """What a finished run lost against the calm one."""
    trained = [line for line in lines_of(workdir) if "total" in line]
    students = [(run / "student.safetensors").read_bytes() for run in (workdir, calm)]
    return {
        "steps": steps,
        "steps_lost": steps - len({line["step"] for line in trained}), "steps_twice": len(trained) - steps,
        "weights_equal": students[0] == students[1], "losses_equal": numerics(workdir) == numerics(calm),
    }  # fmt: skip


def numerics(workdir):
    """Everything in metrics.jsonl that does not depend on the machine's mood."""
    return [{key: value for key, value in line.items() if key not in OF_THE_MACHINE} for line in lines_of(workdir)]


def main():
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slurm", action="store_true", help="kill parts of a Slurm job, too")
    parser.add_argument("--fault", choices=(*FAULTS, "any"), help="cause this fault, or any, at every start")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked to end"))  # so that what was started is ended
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
