# shellcheck shell=bash
# The job: sourced by slurm/vitkd_*.sh with RECIPE set and train.py's options in "$@". slurm/README.md is its manual.
# No `set -e`: what the end of a step means is decided below.
set -uo pipefail

# ---- Site lines: what your cluster needs stands here and nowhere else. Each can also come from the environment, and
# partition and account from SBATCH_PARTITION, SBATCH_ACCOUNT or sbatch flags.
# module load cuda
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0 # the network between the nodes, where it is guessed wrong
STAGE_DIR=${STAGE_DIR:-}               # a folder on each node's own disk to copy the data to; empty: no copies
CONTAINER=${CONTAINER:-}               # FILE.sif: apptainer; another image: pyxis; empty: none
CONTAINER_MOUNTS=${CONTAINER_MOUNTS:-} # what the container needs besides the checkout: /datasets:/datasets,/models:/models
MAX_FAILURES=${MAX_FAILURES:-3}        # restarts of one job after failures; those after a saved stop are not counted
DOCTOR=${DOCTOR:-0}                    # 1: `vitkd-ds doctor` first; an error there ends the job
# ----

exec 3>&1 # the log, also for a trap that runs while a step's output goes to a file
say() { printf '[%s job %s] %s\n' "$(date '+%F %T')" "$SLURM_JOB_ID" "$*" >&3; }
give_up() { say "error: $*" && exit 1; }

: "${SLURM_JOB_ID:?start this with sbatch, from the checkout}"
restart=${SLURM_RESTART_COUNT:-0}
options=(--ds_config ds_configs/zero2.json --recipe "$RECIPE" "$@") # of two equal options train.py takes the later one
say "command: train.py$(printf ' %q' "${options[@]}")"
say "commit: $(git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || echo unknown)"
say "nodes: $SLURM_JOB_NODELIST, $SLURM_NTASKS ranks, start $((restart + 1))"

# ---- Python: the checkout's .venv, unless PYTHON or a container says otherwise.
pyxis=() apptainer=()
mounts=$PWD:$PWD${STAGE_DIR:+,$STAGE_DIR:$STAGE_DIR}${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}
case $CONTAINER in
"") PYTHON=${PYTHON:-$PWD/.venv/bin/python} ;;
*.sif) apptainer=(apptainer exec --nv --bind "$mounts" --pwd "$PWD" "$CONTAINER") ;;
*) pyxis=(--container-image="$CONTAINER" --container-mounts="$mounts" --container-workdir="$PWD") ;;
esac
# USR1 is ignored until Python has its handler: a signal that comes while it imports must not end it.
# shellcheck disable=SC2016 # "$@" is the node's
python=(bash -c 'trap "" USR1 && exec "$@"' rank "${apptainer[@]}" "${PYTHON:-python}" -u)
once=(srun --nodes=1 --ntasks=1 --ntasks-per-node=1 "${pyxis[@]}")
once_per_node=(srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=1)
# A rank that fails ends the others at once, and one that leaves without an error, within a minute.
every_rank=(srun --kill-on-bad-exit=1 --wait=60 --label "${pyxis[@]}")

# ---- Environment of the ranks.
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE   # a launcher's, where sbatch was typed; srun's are taken
export SLURM_EXPORT_ENV=ALL                         # also after `sbatch --export=NONE`
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from the job
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONFAULTHANDLER=1 NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# A rank killed while an op is compiled leaves a lock, on which every later start waits for ever. So the folder is on the
# node, and of this start alone.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-/tmp/vitkd_ds-$(id -u)/extensions-$SLURM_JOB_ID-$restart}

# Rank 0 runs on the first node, as this script does. NodeAddr is what Slurm itself reaches a node by, also where its
# name does not resolve.
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$first_node" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
export MASTER_ADDR=${MASTER_ADDR:-${address:-$first_node}}

# free_port PORT: the first one from PORT on that nobody on this node listens on. 20000 to 31999 lies below the ports
# that the kernel gives to clients.
free_port() {
  local port=$1
  while grep -qs "^ *[0-9]*: [0-9A-F]*:$(printf %04X "$port") [0-9A-F:]* 0A " /proc/net/tcp /proc/net/tcp6; do
    port=$((20000 + (port + 1 - 20000) % 12000))
  done
  echo "$port"
}
# Jobs start 16 apart, and each start of a job has its own: ranks that a lost node still runs do not meet the new ones.
export MASTER_PORT="${MASTER_PORT:-$(free_port $((20000 + (SLURM_JOB_ID * 16 + restart % 16) % 12000)))}"

# ---- Steps, and the signals that ask the job to save and stop: USR1 before the time limit (--signal), USR1 or TERM
# before a preemption. Slurm itself gives TERM to the ranks at a preemption, requeue or scancel.
step_pid="" stop="" nag_pid=""
trap 'stop=1; say "USR1: the ranks are asked to save and stop"; ask_to_stop' USR1
trap 'stop=1; say "TERM: the ranks are asked to save and stop"; ask_to_stop' TERM
# srun passes USR1 on to its tasks. Again every 10 s, as the first may come before they listen.
ask_to_stop() {
  [ -n "$step_pid" ] && [ -z "$nag_pid" ] || return 0
  (while kill -USR1 "$step_pid" 2>/dev/null; do sleep 10; done) &
  nag_pid=$!
}
# step COMMAND...: its exit code. In the background, since bash runs no trap while it waits for a foreground command.
step() {
  local code again
  (trap '' USR1 && exec "$@") & # srun would die of a USR1 that comes before it listens
  step_pid=$!
  [ -z "$stop" ] || ask_to_stop
  while wait "$step_pid"; code=$?; kill -0 "$step_pid" 2>/dev/null; do :; done # a trap ends a wait too
  wait "$step_pid" 2>/dev/null
  again=$?
  [ "$again" = 127 ] || code=$again # it ended just after a trap: the code above was the trap's
  [ -z "$nag_pid" ] || kill "$nag_pid" 2>/dev/null
  step_pid="" nag_pid=""
  return "$code"
}

checkpoint() { cat "$workdir/checkpoints/latest" 2>/dev/null || echo none; }

# requeue_or_end CODE: what becomes of a job whose ranks have ended and whose run is not finished.
requeue_or_end() {
  local code=$1 state failures
  state=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p')
  if [ "$state" != RUNNING ]; then # scancel, or a requeue that Slurm does itself
    say "the job is $state, which Slurm goes on from; last checkpoint: $(checkpoint)"
    exit "$code"
  fi
  if [ "$code" != 0 ] || [ "$(checkpoint)" = "$checkpoint_before" ]; then # stops without progress could go on for ever
    failures=$(($(cat "$workdir/failures-$SLURM_JOB_ID" 2>/dev/null || echo 0) + 1))
    { mkdir -p "$workdir" && echo "$failures" >"$workdir/failures-$SLURM_JOB_ID"; } ||
      give_up "exit code $code, and failures cannot be counted in $workdir: not requeued"
    say "exit code $code, last checkpoint $checkpoint_before -> $(checkpoint): failure $failures, MAX_FAILURES=$MAX_FAILURES"
    [ "$failures" -le "$MAX_FAILURES" ] || exit "$((code > 0 ? code : 1))"
  fi
  trap '' USR1 TERM # a requeue ends this script
  say "requeue: the next start continues from checkpoint $(checkpoint)"
  scontrol requeue "$SLURM_JOB_ID" || give_up "not requeued: give the same sbatch command again, it continues the run"
  exit 0
}

# stage_everywhere KEY FILE ...: copy the files to every node, and give train.py the copies. Either all nodes have all
# of them or all ranks read the shared files: every rank has the same command line.
stage_everywhere() {
  local pairs=() staged=() sums copy
  while [ $# -gt 0 ]; do
    copy=$STAGE_DIR/vitkd_ds-$(id -u)/$(printf %s "$2" | cksum | cut -d ' ' -f 1)/$(basename "$2")
    pairs+=("$2" "$copy") staged+=("--$1=$copy")
    shift 2
  done
  sums=$(mktemp)
  if step "${once_per_node[@]}" bash slurm/stage.sh "${pairs[@]}" >"$sums" &&
    [ "$(sort -u "$sums" | wc -l)" = "${#staged[@]}" ]; then # all nodes read the same bytes
    options+=("${staged[@]}")
    say "staged on every node: ${staged[*]}"
  elif [ -z "$stop" ]; then
    say "WARNING: NOT STAGED, the reasons stand above. All ranks read the shared files, which may be slower."
  fi
  rm -f "$sums"
}

# ---- What the options ask for. Refused ones end the job here.
description=$(mktemp)
step "${once[@]}" "${python[@]}" slurm/describe_run.py "${options[@]}" >"$description"
field() { sed -n "s/^$1=//p" "$description"; }
workdir=$(field workdir) resume=$(field resume) files=()
for key in data.train data.val; do
  [ ! -f "$(field $key)" ] || files+=("$key" "$(realpath "$(field $key)")")
done
rm -f "$description"
[ -n "$workdir" ] || give_up "train.py cannot run with these options; the reason stands above"
if [ "$resume" = none ] && [ "$restart" -gt 0 ]; then
  options+=(--resume=auto) # `none` was meant for the first start
elif [ "$resume" != none ] && [ -e "$workdir/done" ]; then
  say "finished before: $workdir" && exit 0
fi
checkpoint_before=$(checkpoint)

if [ "$DOCTOR" = 1 ] && [ -z "$stop" ]; then
  step "${every_rank[@]}" "${python[@]}" -c 'from vitkd_ds.cli import main; main()' doctor "${options[@]}" ||
    [ -n "$stop" ] || give_up "vitkd-ds doctor found the error above; DOCTOR=0 starts all the same"
fi
[ -z "$STAGE_DIR" ] || [ "${#files[@]}" = 0 ] || [ -n "$stop" ] || stage_everywhere "${files[@]}"

code=0
if [ -z "$stop" ]; then
  say "start: run folder $workdir, last checkpoint $checkpoint_before, master $MASTER_ADDR:$MASTER_PORT"
  step "${every_rank[@]}" "${python[@]}" train.py "${options[@]}"
  code=$?
fi
[ ! -e "$workdir/done" ] || { say "finished: $workdir" && exit 0; }
requeue_or_end "$code"
