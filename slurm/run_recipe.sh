# shellcheck shell=bash
# Train a recipe. slurm/vitkd_*.sh source this file with RECIPE set and train.py's options in "$@". slurm/sweep.sh
# sources it with SWEEP set and the options of a sweep. slurm/README.md is the manual. slurm/job.sh has the site settings,
# and code that is shared with other jobs.
# shellcheck source=slurm/job.sh
. slurm/job.sh

if [ -n "${SWEEP:-}" ]; then # find the options of this task's run in the sweep's list
  list=$(mktemp)
  # shellcheck disable=SC2329 # called by retry
  list_runs() {
    step "${once[@]}" "${python[@]}" -c 'from vitkd_ds.cli import main; main()' sweep "$@" --list >"$list"
    code=$?
    [ "$code" -le 128 ] || [ -n "$stop" ]
  }
  retry list_runs "$@"
  [ "$code" -le 128 ] || give_up "could not list the sweep's runs (exit code $code); the reason is above"
  run=$(sed -n "$((${SLURM_ARRAY_TASK_ID:?start this with sbatch --array=0-N} + 1))p" "$list")
  count=$(grep -c . "$list")
  rm -f "$list"
  [ "$code" = 0 ] || { say "error: the sweep was rejected (exit code $code); the reason is above" && exit 2; }
  [ -n "$run" ] || { say "error: no run for task $SLURM_ARRAY_TASK_ID; the sweep has $count runs, numbered from 0" && exit 2; }
  eval "set -- $run" # the list is quoted for a shell
  RECIPE=demo        # overridden by the run's own --recipe
fi

options=(--ds_config ds_configs/zero2.json --recipe "$RECIPE" "$@") # train.py uses the last of repeated options
introduce train.py "${options[@]}"

once_per_node=(srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=1)
# If a rank fails, srun ends the others at once; if a rank exits without an error, it ends them after a minute.
every_rank=(srun --kill-on-bad-exit=1 --wait=60 --label "${pyxis[@]}")

# ---- Environment of the ranks.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# A rank killed while compiling an op leaves a lock file, and later starts would wait for it forever. So each start has
# its own folder on the node, overriding the login shell's setting. The ranks make the folder private or fail.
export TORCH_EXTENSIONS_DIR=/tmp/vitkd_ds-$UID-extensions-$SLURM_JOB_ID-$restart

# Rank 0 runs on the first node, as does this script. NodeAddr is the address that Slurm uses, which works even if the
# node's name does not resolve.
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$first_node" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
[ "$SLURM_NNODES" != 1 ] || address=127.0.0.1 # not reachable from other machines
export MASTER_ADDR=${MASTER_ADDR:-${address:-$first_node}}

# free_port PORT: print the first port from PORT on without a listener on this node. Ports 20000 to 31999 are below those
# that the kernel assigns to clients.
free_port() {
  local port=$1
  while grep -qs "^ *[0-9]*: [0-9A-F]*:$(printf %04X "$port") [0-9A-F:]* 0A " /proc/net/tcp /proc/net/tcp6; do
    port=$((20000 + (port + 1 - 20000) % 12000))
  done
  echo "$port"
}
# Each job has 16 ports, and each start of the job uses the next one. So ranks that still run on a lost node cannot
# connect to the ranks of the new start.
export MASTER_PORT="${MASTER_PORT:-$(free_port $((20000 + (SLURM_JOB_ID * 16 + restart % 16) % 12000)))}"

# stage_everywhere KEY FILE ...: copy the files to every node and pass the copies to train.py. If any node fails, all
# ranks read the shared files, because every rank has the same command line.
stage_everywhere() {
  local pairs=() staged=() sums copy
  local -A copies=() # train and val may be the same file
  while [ $# -gt 0 ]; do
    copy=$STAGE_DIR/vitkd_ds-$(id -u)-$(printf %s "$2" | cksum | cut -d ' ' -f 1)/$(basename "$2")
    staged+=("--$1=$copy")
    [ -n "${copies[$copy]:-}" ] || pairs+=("$2" "$copy")
    copies[$copy]=1
    shift 2
  done
  sums=$(mktemp)
  if step "${once_per_node[@]}" bash slurm/stage.sh "${pairs[@]}" >"$sums" &&
    [ "$(sort -u "$sums" | wc -l)" = "${#copies[@]}" ]; then # all nodes read the same content
    options+=("${staged[@]}")
    say "staged on every node: ${staged[*]}"
  elif [ -z "$stop" ]; then
    say "WARNING: NOT STAGED (reasons above). All ranks read the shared files, which may be slower."
  fi
  rm -f "$sums"
}

# ---- Check the options. Invalid ones end the job here. If srun or the node failed, retry: exit code 164 means that the
# job step could not start, and any other code above 128 that a signal killed it.
description=$(mktemp)
# shellcheck disable=SC2329 # called by retry
describe() {
  step "${once[@]}" "${python[@]}" slurm/describe_run.py "${options[@]}" >"$description"
  code=$?
  [ "$code" -le 128 ] || [ -n "$stop" ]
}
retry describe
field() { sed -n "s/^$1=//p" "$description"; }
workdir=$(field workdir) resume=$(field resume) files=()
for key in data.train data.val; do
  [ ! -f "$(field $key)" ] || files+=("$key" "$(realpath "$(field $key)")")
done
rm -f "$description"
case $workdir:$code in
:0 | :2) say "error: train.py rejected these options; the reason is above" && exit 2 ;;
:*) give_up "could not get the run folder from train.py (exit code $code); the reason is above" ;;
esac
if [ "$resume" = none ] && [ "$restart" -gt 0 ]; then
  options+=(--resume=auto) # `none` applies only to the first start
elif [ "$resume" != none ] && [ -e "$workdir/done" ]; then
  say "already finished: $workdir" && exit 0
fi
progress() { echo "checkpoint $(cat "$workdir/checkpoints/latest" 2>/dev/null || echo none)"; }
before=$(progress)

if [ "$DOCTOR" = 1 ] && [ -z "$stop" ]; then
  step "${every_rank[@]}" "${python[@]}" -c 'from vitkd_ds.cli import main; main()' doctor "${options[@]}"
  code=$?
  [ "$code" != 143 ] || requeue_or_end "$code" "$before" "$workdir" # preempted
  [ "$code" = 0 ] || [ -n "$stop" ] || give_up "vitkd-ds doctor found the error above. Set DOCTOR=0 to train without this check."
fi
[ -z "$STAGE_DIR" ] || [ "${#files[@]}" = 0 ] || [ -n "$stop" ] || stage_everywhere "${files[@]}"

code=0
if [ -z "$stop" ]; then
  say "start: run folder $workdir, last $before, master $MASTER_ADDR:$MASTER_PORT"
  step "${every_rank[@]}" "${python[@]}" train.py "${options[@]}"
  code=$?
fi
[ ! -e "$workdir/done" ] || { say "finished: $workdir" && exit 0; }
requeue_or_end "$code" "$before" "$workdir"
