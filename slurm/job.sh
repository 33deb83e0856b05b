# shellcheck shell=bash
# What every job of this folder needs: the site lines, Python or a container, steps that can be asked to stop, another
# start. Sourced by run_recipe.sh and pack_imagenet.sh, which know what is run. slurm/README.md is the manual.
# No `set -e`: what the end of a step means is decided below.
set -uo pipefail

# ---- Site lines: what your cluster needs stands here and nowhere else. Each can also come from the environment, and
# partition and account from SBATCH_PARTITION, SBATCH_ACCOUNT or sbatch flags.
# module load cuda
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0 # the network between the nodes, where it is guessed wrong
STAGE_DIR=${STAGE_DIR:-}               # a folder on each node's own disk to copy the data to; empty: no copies
CONTAINER=${CONTAINER:-}               # FILE.sif: apptainer; another image: pyxis; empty: none
CONTAINER_MOUNTS=${CONTAINER_MOUNTS:-} # what the container needs besides the checkout: /datasets:/datasets,/models:/models
MAX_FAILURES=${MAX_FAILURES:-3}        # restarts of one job after failures; those after a stop are not counted
DOCTOR=${DOCTOR:-0}                    # 1: `vitkd-ds doctor` before training; an error there ends the job
# ----
max_stops=10 # restarts in a row after stops that saved nothing new
spare_s=60   # seconds before the time limit at which a step that does not stop is ended, so that there is time to requeue

exec 3>&1 # the log, also for a trap that runs while a step's output goes to a file
say() { printf '[%s job %s] %s\n' "$(date '+%F %T')" "$SLURM_JOB_ID" "$*" >&3; }
give_up() { say "error: $*" && exit 1; }

: "${SLURM_JOB_ID:?start this with sbatch, from the checkout}"

# retry COMMAND...: until it succeeds, for about a minute.
retry() {
  local wait_s
  for wait_s in 1 2 4 8 16 32; do
    "$@" && return
    sleep "$wait_s"
  done
  "$@"
}

# ---- Who this job is. sbatch inherits every SLURM_* variable of the job that it is called in, and Slurm replaces only
# those that this job has too. So Slurm is asked, and the ranks, whose container may lack scontrol, get its answer.
# record: a line about this job and no other task of its array; fails if Slurm is silent. said KEY: its value there.
record() { scontrol show job -o "$SLURM_JOB_ID" | grep "^JobId=$SLURM_JOB_ID "; }
said() { sed -n "s/^\(.* \)\?$1=\([^ ]*\).*/\2/p"; }
told=$(retry record) || give_up "Slurm does not say what job $SLURM_JOB_ID is. Submit it again."
restart=$(said Restarts <<<"$told") array=$(said ArrayJobId <<<"$told") task=$(said ArrayTaskId <<<"$told")
# To scontrol a task of an array is ARRAY_TASK: the number of one of the tasks is also that of the whole array.
job=${array:+${array}_$task}
job=${job:-$SLURM_JOB_ID}
export SLURM_ARRAY_JOB_ID=$array SLURM_ARRAY_TASK_ID=$task SLURM_RESTART_COUNT=$restart
[ -n "$array" ] || unset SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID
case $told in *gres/gpu* | *gres:gpu*) ;; *) unset SLURM_JOB_GPUS SLURM_STEP_GPUS SLURM_GPUS_PER_TASK ;; esac
# Called by a rank of another job, sbatch also inherits where those ranks meet and which CPUs that one has.
[ -z "${VITKD_DS_START:-}" ] || unset MASTER_ADDR MASTER_PORT SLURM_CPU_BIND SLURM_DISTRIBUTION
export VITKD_DS_START=$SLURM_JOB_ID.$restart # a later start of this job may take the run folder from an earlier one

# introduce COMMAND...: the first lines of a start.
introduce() {
  say "command:$(printf ' %q' "$@")"
  say "commit: $(git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || echo unknown)"
  say "nodes: $SLURM_JOB_NODELIST, $SLURM_NTASKS ranks, start $((restart + 1))"
}

# ---- Python: the checkout's .venv, unless PYTHON or a container says otherwise.
pyxis=() apptainer=()
mounts=$PWD:$PWD${STAGE_DIR:+,$STAGE_DIR:$STAGE_DIR}${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}
case $CONTAINER in
"") PYTHON=${PYTHON:-$PWD/.venv/bin/python} ;;
*.sif) apptainer=(apptainer exec --nv --bind "$mounts" --pwd "$PWD" "$CONTAINER") ;;
*) pyxis=(--container-image="$CONTAINER" --container-mounts="$mounts" --container-workdir="$PWD") ;;
esac
# USR1 is ignored until Python has its handler: a signal that comes while it imports must not end it.
# shellcheck disable=SC2016,SC2034 # "$@" is the node's; the array is for the scripts that source this
python=(bash -c 'trap "" USR1 && exec "$@"' rank "${apptainer[@]}" "${PYTHON:-python}" -u)
# shellcheck disable=SC2034
once=(srun --nodes=1 --ntasks=1 --ntasks-per-node=1 "${pyxis[@]}")

# ---- Environment of the tasks.
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE   # a launcher's, where sbatch was typed; srun's are taken
export SLURM_EXPORT_ENV=ALL                         # also after `sbatch --export=NONE`
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from the job
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONFAULTHANDLER=1

# ---- Steps, and the signals that ask the job to save and stop: USR1 before the time limit (--signal), USR1 or TERM
# before a preemption. Slurm itself gives TERM to the tasks at a preemption, requeue or scancel.
step_pid="" stop="" nag_pid=""
trap 'stop=1; say "USR1: the ranks are asked to save and stop"; ask_to_stop' USR1
trap 'stop=1; say "TERM: the ranks are asked to save and stop"; ask_to_stop' TERM
# srun passes USR1 on to its tasks. Again every 10 s, as the first may come before they listen. Where the tasks are gone
# and srun waits all the same, as after the death of a slurmstepd, or where they stop too slowly, srun is ended.
ask_to_stop() {
  [ -n "$step_pid" ] && [ -z "$nag_pid" ] || return 0
  (
    nap=""
    trap 'kill $nap 2>/dev/null; exit' TERM
    nap_10_s() {
      sleep 10 &
      nap=$!
      wait
    }
    while kill -USR1 "$step_pid" 2>/dev/null; do
      nap_10_s
      if is_limit_near; then
        say "WARNING: the ranks have not stopped $spare_s s before the time limit: srun is ended"
        kill -TERM "$step_pid" 2>/dev/null && nap_10_s
        kill -KILL "$step_pid" 2>/dev/null
      fi
    done
  ) &
  nag_pid=$!
}
# is_limit_near: whether the time limit ends the job in at most spare_s seconds; not where Slurm does not say. Its EndTime
# would not do, which a preemption sets.
is_limit_near() {
  local told start limit days=0 h m s
  told=$(record 2>/dev/null) || return 1
  start=$(said StartTime <<<"$told") limit=$(said TimeLimit <<<"$told")
  case $start:$limit in [0-9]*:[0-9]*) start=$(date -d "$start" +%s) || return 1 ;; *) return 1 ;; esac
  case $limit in *-*) days=${limit%%-*} limit=${limit#*-} ;; esac
  IFS=: read -r h m s <<<"$limit"
  [ $((start + ((10#$days * 24 + 10#$h) * 60 + 10#$m) * 60 + 10#$s - $(date +%s))) -le "$spare_s" ]
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

# ---- Another start. `progress`, of the script that sources this, says what is saved.

# job_state: what Slurm says of this start; fails if it says nothing. After a cut network this script may live on beside
# the next start, with which it must not meddle.
job_state() {
  local told
  told=$(record) || return 1
  if [ "$(said Restarts <<<"$told")" = "$restart" ]; then said JobState <<<"$told"; else echo REQUEUED; fi
}
# Asked anew each time: a job that is cancelled meanwhile must stay so.
requeue_if_running() {
  local state
  state=$(job_state) || return 1
  [ "$state" != RUNNING ] || scontrol requeue "$job"
}
# add_one FILE: counts one more in it; prints how many there are. Anything but a number counts as none, because arithmetic
# would run commands that stand in the file.
add_one() {
  local count
  count=$(head -c 9 "$1" 2>/dev/null)
  case $count in "" | *[!0-9]*) count=0 ;; esac
  count=$((10#$count + 1))
  mkdir -p "$(dirname "$1")" && echo "$count" >"$1" && echo "$count"
}

# requeue_or_end CODE BEFORE FOLDER: what becomes of a job whose step has ended, its work not finished. BEFORE is what
# `progress` said at the start, FOLDER is where this job's failures and stops are counted.
requeue_or_end() {
  local code=$1 before=$2 folder=$3 saved state count
  local again="give the same sbatch command again, it continues the work"
  saved=$(progress)
  if [ "$code" = 2 ]; then
    say "error: refused (exit code 2), which another start would not change; the reason stands above"
    exit 2
  fi
  state=$(retry job_state) || give_up "Slurm does not say whether this job was cancelled, $saved: not requeued: $again"
  if [ "$state" != RUNNING ]; then # scancel, or a requeue that Slurm does itself
    say "the job is $state, which Slurm goes on from; $saved"
    exit "$code"
  fi
  [ "$saved" = "$before" ] || rm -f "$folder/stops-$SLURM_JOB_ID"
  case $code in
  0 | 143) # a stop; 143: TERM came before Python listened
    if [ "$saved" = "$before" ]; then # stops without progress could go on for ever
      count=$(add_one "$folder/stops-$SLURM_JOB_ID") || give_up "stops cannot be counted in $folder: not requeued: $again"
      say "stop $count in a row at $saved; at most $max_stops are followed by another start"
      [ "$count" -le "$max_stops" ] || exit 1
    fi ;;
  *)
    count=$(add_one "$folder/failures-$SLURM_JOB_ID") ||
      give_up "exit code $code, and failures cannot be counted in $folder: not requeued: $again"
    say "exit code $code, $before -> $saved: failure $count, MAX_FAILURES=$MAX_FAILURES"
    [ "$count" -le "$MAX_FAILURES" ] || exit "$code" ;;
  esac
  trap '' USR1 TERM # a requeue ends this script
  say "requeue: the next start continues from $saved"
  retry requeue_if_running || give_up "not requeued: $again"
  exit 0
}
