# shellcheck shell=bash
# Trains a recipe: sourced by slurm/vitkd_*.sh with RECIPE set and train.py's options in "$@", or by slurm/sweep.sh with
# those of a sweep. slurm/README.md is its manual, slurm/job.sh what it has in common with other jobs, site lines included.
# shellcheck source=slurm/job.sh
. slurm/job.sh

if [ -n "${SWEEP:-}" ]; then # the options of this task's run: its line of the list
  list=$(mktemp)
  # shellcheck disable=SC2329 # called by retry
  list_runs() {
    step "${once[@]}" "${python[@]}" -c 'from vitkd_ds.cli import main; main()' sweep "$@" --list >"$list"
    code=$?
    [ "$code" -le 128 ] || [ -n "$stop" ]
  }
  retry list_runs "$@"
  [ "$code" -le 128 ] || give_up "the sweep's runs could not be listed (exit code $code); the reason stands above"
  run=$(sed -n "$((${SLURM_ARRAY_TASK_ID:?start this with sbatch --array=0-N} + 1))p" "$list")
  count=$(grep -c . "$list")
  rm -f "$list"
  [ "$code" = 0 ] || { say "error: there can be no such sweep (exit code $code); the reason stands above" && exit 2; }
  [ -n "$run" ] || { say "error: task $SLURM_ARRAY_TASK_ID must be below the sweep's $count runs" && exit 2; }
  eval "set -- $run" # quoted for a shell
  RECIPE=demo        # the run's own --recipe comes later
fi

options=(--ds_config ds_configs/zero2.json --recipe "$RECIPE" "$@") # of two equal options train.py takes the later one
introduce train.py "${options[@]}"

once_per_node=(srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=1)
# A rank that fails ends the others at once, and one that leaves without an error, within a minute.
every_rank=(srun --kill-on-bad-exit=1 --wait=60 --label "${pyxis[@]}")

# ---- Environment of the ranks.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# A rank killed while an op is compiled leaves a lock, on which every later start waits for ever. So the folder is on the
# node, and of this start alone, whatever the login shell has set. The ranks make it private, or refuse to start.
export TORCH_EXTENSIONS_DIR=/tmp/vitkd_ds-$UID-extensions-$SLURM_JOB_ID-$restart

# Rank 0 runs on the first node, as this script does. NodeAddr is what Slurm itself reaches a node by, also where its
# name does not resolve.
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$first_node" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
[ "$SLURM_NNODES" != 1 ] || address=127.0.0.1 # which nobody outside the node can reach
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

# stage_everywhere KEY FILE ...: copy the files to every node, and give train.py the copies. Either all nodes have all
# of them or all ranks read the shared files: every rank has the same command line.
stage_everywhere() {
  local pairs=() staged=() sums copy
  local -A copies=() # one file may be both train and val
  while [ $# -gt 0 ]; do
    copy=$STAGE_DIR/vitkd_ds-$(id -u)-$(printf %s "$2" | cksum | cut -d ' ' -f 1)/$(basename "$2")
    staged+=("--$1=$copy")
    [ -n "${copies[$copy]:-}" ] || pairs+=("$2" "$copy")
    copies[$copy]=1
    shift 2
  done
  sums=$(mktemp)
  if step "${once_per_node[@]}" bash slurm/stage.sh "${pairs[@]}" >"$sums" &&
    [ "$(sort -u "$sums" | wc -l)" = "${#copies[@]}" ]; then # all nodes read the same bytes
    options+=("${staged[@]}")
    say "staged on every node: ${staged[*]}"
  elif [ -z "$stop" ]; then
    say "WARNING: NOT STAGED, the reasons stand above. All ranks read the shared files, which may be slower."
  fi
  rm -f "$sums"
}

# ---- What the options ask for. Refused ones end the job here; where srun or the node failed (164: the step was not
# started; 128 and a signal), Slurm is asked again.
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
:0 | :2) say "error: train.py cannot run with these options; the reason stands above" && exit 2 ;;
:*) give_up "train.py could not be asked for its run folder (exit code $code); the reason stands above" ;;
esac
if [ "$resume" = none ] && [ "$restart" -gt 0 ]; then
  options+=(--resume=auto) # `none` was meant for the first start
elif [ "$resume" != none ] && [ -e "$workdir/done" ]; then
  say "finished before: $workdir" && exit 0
fi
progress() { echo "checkpoint $(cat "$workdir/checkpoints/latest" 2>/dev/null || echo none)"; }
before=$(progress)

if [ "$DOCTOR" = 1 ] && [ -z "$stop" ]; then
  step "${every_rank[@]}" "${python[@]}" -c 'from vitkd_ds.cli import main; main()' doctor "${options[@]}"
  code=$?
  [ "$code" != 143 ] || requeue_or_end "$code" "$before" "$workdir" # preempted
  [ "$code" = 0 ] || [ -n "$stop" ] || give_up "vitkd-ds doctor found the error above; DOCTOR=0 starts all the same"
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
