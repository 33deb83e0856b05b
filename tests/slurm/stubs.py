"""Stubs of srun, scontrol, sleep and the ranks' Python, to test a job script without a cluster."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

# Runs the command once, as if on one node, and records its own arguments.
SRUN = """#!PYTHON_HERE
import json, os, sys
words = sys.argv[1:]
flags = [words.pop(0) for _ in words[:] if words and words[0].startswith("--")]
with open(os.environ["STUB_NOTES"], "a") as notes:
    notes.write(json.dumps({"srun": flags, "command": words}) + "\\n")
os.execvp(words[0], words)
"""

# After its first answer, fails as many times as the file `silent` says, like an unreachable slurmctld.
SCONTROL = """#!/bin/sh
case "$1 $2" in
"show hostnames") echo n1; echo n2; exit ;;
"show node") echo "NodeName=$3 NodeAddr=10.0.0.1 Port=6818"; exit ;;
esac
left=$(cat "$STUB_NOTES.silent")
[ -e "$STUB_NOTES.asked" ] || [ -n "$STUB_SILENT_AT_FIRST" ] || left=0
[ "$left" = 0 ] || { echo $((left - 1)) >"$STUB_NOTES.silent"; exit 1; }
restarts=$STUB_RESTARTS
[ -e "$STUB_NOTES.asked" ] || { touch "$STUB_NOTES.asked"; restarts=$STUB_BEGAN; }
case "$1 $2" in
"show job") echo "JobId=$SLURM_JOB_ID $STUB_ARRAY JobState=$STUB_STATE Reason=None Restarts=$restarts BatchFlag=1" \\
    "RunTime=00:00:05 TimeLimit=$STUB_LIMIT TimeMin=N/A" \\
    "StartTime=$(date -d '-10 sec' +%FT%T) EndTime=Unknown Deadline=N/A" ;;
requeue*) echo '{"requeue": "'$2'"}' >>"$STUB_NOTES"; [ -z "$STUB_REFUSES" ] ;;
esac
"""

# Records the waits for Slurm and skips them.
SLEEP = """#!/bin/sh
[ "$1" = 10 ] && exec /bin/sleep 10
echo '{"sleep": '$1'}' >>"$STUB_NOTES"
"""

# Imitates train.py, doctor and pack. describe_run.py is imitated too unless a test sets `asks`.
PYTHON = """#!/bin/bash
if [ "$2" = slurm/describe_run.py ]; then
  left=$(cat "$STUB_NOTES.unstarted")
  [ "$left" = 0 ] || { echo $((left - 1)) >"$STUB_NOTES.unstarted"; exit 164; }
  [ -z "$STUB_DESCRIPTION" ] && exec PYTHON_HERE "$@"
  echo "$STUB_DESCRIPTION" && exit
fi
PYTHON_HERE -c 'import json, os, sys
names = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SLURM_GPUS_PER_TASK", "MASTER_ADDR",
         "MASTER_PORT", "TORCH_EXTENSIONS_DIR", "OMP_NUM_THREADS", "SRUN_CPUS_PER_TASK", "RANK")
print(json.dumps({"python": sys.argv[2:], "environ": {n: os.environ.get(n) for n in names}}))' "$@" >>"$STUB_NOTES"
case "$*" in *doctor*) exit "$STUB_DOCTOR" ;; esac
if [ "$4" = pack ]; then
  parts="$(dirname "$6")/.$(basename "$6").partial"
  [ -z "$STUB_CHECKPOINT" ] || { mkdir -p "$parts" && touch "$parts/$(ls "$parts" | wc -l).json"; }
  [ -z "$STUB_DONE" ] || touch "$6"
fi
mkdir -p "$STUB_WORKDIR/checkpoints"
[ -z "$STUB_CHECKPOINT" ] || echo "$STUB_CHECKPOINT" >"$STUB_WORKDIR/checkpoints/latest"
[ -z "$STUB_DONE" ] || touch "$STUB_WORKDIR/done"
[ -z "$STUB_SIGNAL" ] || { kill -"$STUB_SIGNAL" "$PPID"; /bin/sleep 1; }
[ -z "$STUB_DEAF" ] || { trap '' USR1 TERM; for _ in $(seq 35); do /bin/sleep 1; done; }
exit "$STUB_CODE"
"""


@dataclass
class Ended:
    """Result of a job script: its exit code, its log, and the stubs' records."""

    code: int
    log: str
    notes: list[dict]

    def of(self, kind: str) -> list:
        return [note for note in self.notes if kind in note]

    @property
    def train(self) -> list[str] | None:
        """Options of train.py, or None if it was not started."""
        calls = [note["python"][1:] for note in self.of("python") if note["python"][0] == "train.py"]
        return calls[-1] if calls else None

    @property
    def is_requeued(self) -> bool:
        return bool(self.of("requeue"))


def run_script(
    folder: Path, *options: object, script: str = "vitkd_tiny.sh", checkout: Path = ROOT, done: bool = False,
    code: int = 0, checkpoint: str = "", state: str = "RUNNING", doctor: int = 0, asks: bool = False, silent: int = 0,
    unstarted: int = 0, signal: str = "", **environ: str,
) -> Ended:  # fmt: skip
    """Run slurm/SCRIPT with stubs, as a start of job 7 with the run folder `folder/run`.

    The ranks exit with `code`, save `checkpoint`, and finish the run if `done`. `asks` runs the real describe_run.py.
    Slurm fails to answer `silent` times, and fails to start the describe_run.py step `unstarted` times. The script
    receives `signal`.
    """
    binaries, workdir, notes = folder / "bin", folder / "run", folder / "notes"
    binaries.mkdir(exist_ok=True)
    for name, text in {"srun": SRUN, "python-stub": PYTHON, "scontrol": SCONTROL, "sleep": SLEEP}.items():
        (binaries / name).write_text(text.replace("PYTHON_HERE", sys.executable))
        (binaries / name).chmod(0o755)
    notes.with_suffix(".silent").write_text(f"{silent}")
    notes.with_suffix(".asked").unlink(missing_ok=True)
    notes.with_suffix(".unstarted").write_text(f"{unstarted}")
    notes.write_text("")
    described = {"workdir": workdir, "resume": "auto", "data.train": "demo", "data.val": "demo"}
    given = (str(word).removeprefix("--").partition("=") for word in options)
    described |= {key: text for key, _, text in given if text}
    restarts = environ.get("SLURM_RESTART_COUNT", "0")
    env = os.environ | {
        "PATH": f"{binaries}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "3", "PYTHON": str(binaries / "python-stub"),
        "STUB_NOTES": str(notes), "STUB_STATE": state, "STUB_CODE": str(code), "STUB_CHECKPOINT": checkpoint,
        "STUB_WORKDIR": str(workdir), "STUB_DONE": "1" if done else "", "STUB_DOCTOR": str(doctor), "STUB_REFUSES": "",
        "STUB_LIMIT": "UNLIMITED", "STUB_DEAF": "",
        "STUB_SIGNAL": signal, "STUB_BEGAN": restarts, "STUB_RESTARTS": restarts,
        "STUB_ARRAY": "", "STUB_SILENT_AT_FIRST": "",
        "STUB_DESCRIPTION": "" if asks else "\n".join(f"{key}={text}" for key, text in described.items()),
    } | environ  # fmt: skip
    env = {name: text for name, text in env.items() if text or name.startswith("STUB")}
    own = [] if script == "pack_imagenet.sh" else [f"--workdir={workdir}"]
    command = ["bash", f"slurm/{script}", *own, *map(str, options)]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    ended = subprocess.run(command, cwd=checkout, env=env, text=True, timeout=120, **both)
    return Ended(ended.returncode, ended.stdout, [json.loads(line) for line in notes.read_text().splitlines()])
