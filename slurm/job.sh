# shellcheck shell=bash
# Shared code of all jobs in this folder: site settings, Python or a container, job steps that stop on request, requeueing.
# run_recipe.sh and pack_imagenet.sh source this file. slurm/README.md is the manual.
# No `set -e`: the code below handles the exit codes of job steps.
set -uo pipefail

# ---- Site settings: edit these lines for your cluster, or set the same variables in the environment. Set partition and
# account with sbatch flags, or with SBATCH_PARTITION and SBATCH_ACCOUNT.
# module load cuda
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0 # the network between nodes, if NCCL and Gloo choose a wrong one
STAGE_DIR=${STAGE_DIR:-}               # folder on each node's own disk for copies of the data; empty for no copies
CONTAINER=${CONTAINER:-}               # FILE.sif for apptainer, another image for pyxis, empty for none
CONTAINER_MOUNTS=${CONTAINER_MOUNTS:-} # mounts in addition to the checkout: /datasets:/datasets,/models:/models
MAX_FAILURES=${MAX_FAILURES:-3}        # maximum restarts of a job after failures; restarts after a stop do not count
DOCTOR=${DOCTOR:-0}                    # 1 runs `vitkd-ds doctor` before training; an error there ends the job
# ----
max_stops=10 # maximum restarts in a row after stops that saved nothing new
spare_s=60   # srun is killed this many seconds before the time limit if it is still running; leaves time to requeue

exec 3>&1 # the log: keeps messages of a trap out of a step's redirected output
say() { printf '[%s job %s] %s\n' "$(date '+%F %T')" "$SLURM_JOB_ID" "$*" >&3; }
give_up() { say "error: $*" && exit 1; }

: "${SLURM_JOB_ID:?start this with sbatch, from the checkout}"

# retry COMMAND...: repeat it until it succeeds, for about a minute.
retry() {
  local wait_s
  for wait_s in 1 2 4 8 16 32; do
    "$@" && return
    sleep "$wait_s"
  done
  "$@"
}

# ---- Identity of this job. A job submitted from inside another job inherits its SLURM_* variables, and Slurm replaces
# only those that the new job also has. So this script asks Slurm and exports the answers; a container may lack scontrol.
# record: print Slurm's line about this job, without other tasks of its array; fail if Slurm does not answer.
# said KEY: print the value of KEY in that line.
record() { scontrol show job -o "$SLURM_JOB_ID" | grep "^JobId=$SLURM_JOB_ID "; }
said() { sed -n "s/^\(.* \)\?$1=\([^ ]*\).*/\2/p"; }
told=$(retry record) || give_up "Slurm does not say what job $SLURM_JOB_ID is. Submit the job again."
restart=$(said Restarts <<<"$told") array=$(said ArrayJobId <<<"$told") task=$(said ArrayTaskId <<<"$told")
# scontrol must get ARRAY_TASK for a task of an array: one task's plain job number also means the whole array.
job=${array:+${array}_$task}
job=${job:-$SLURM_JOB_ID}
export SLURM_ARRAY_JOB_ID=$array SLURM_ARRAY_TASK_ID=$task SLURM_RESTART_COUNT=$restart
[ -n "$array" ] || unset SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID
case $told in *gres/gpu* | *gres:gpu*) ;; *) unset SLURM_JOB_GPUS SLURM_STEP_GPUS SLURM_GPUS_PER_TASK ;; esac
# If sbatch was called inside another job of this kind, its rendezvous address and CPU binding are inherited too.
[ -z "${VITKD_DS_START:-}" ] || unset MASTER_ADDR MASTER_PORT SLURM_CPU_BIND SLURM_DISTRIBUTION
export VITKD_DS_START=$SLURM_JOB_ID.$restart # lets a later start take the lock from an earlier one

# introduce COMMAND...: log the command, the commit and the nodes.
introduce() {
  say "command:$(printf ' %q' "$@")"
  say "commit: $(git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || echo unknown)"
  say "nodes: $SLURM_JOB_NODELIST, $SLURM_NTASKS ranks, start $((restart + 1))"
}

# ---- Python: the checkout's .venv unless PYTHON or CONTAINER is set.
pyxis=() apptainer=()
mounts=$PWD:$PWD${STAGE_DIR:+,$STAGE_DIR:$STAGE_DIR}${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}
case $CONTAINER in
"") PYTHON=${PYTHON:-$PWD/.venv/bin/python} ;;
*.sif) apptainer=(apptainer exec --nv --bind "$mounts" --pwd "$PWD" "$CONTAINER") ;;
*) pyxis=(--container-image="$CONTAINER" --container-mounts="$mounts" --container-workdir="$PWD") ;;
esac
# USR1 is ignored until Python installs its handler; otherwise a signal during imports would kill the rank.
# shellcheck disable=SC2016,SC2034 # "$@" expands on the node; the scripts that source this file use the array
python=(bash -c 'trap "" USR1 && exec "$@"' rank "${apptainer[@]}" "${PYTHON:-python}" -u)
# shellcheck disable=SC2034
once=(srun --nodes=1 --ntasks=1 --ntasks-per-node=1 "${pyxis[@]}")

# ---- Environment of the tasks.
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE   # may be set by a launcher around sbatch; ranks use srun's
export SLURM_EXPORT_ENV=ALL                         # even after `sbatch --export=NONE`
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not inherit the job's value
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONFAULTHANDLER=1

# ---- Job steps, and the signals that request a save and a stop: USR1 before the time limit (--signal), USR1 or TERM
# before a preemption. At a preemption, requeue or scancel Slurm also sends TERM directly to the tasks.
step_pid="" stop="" nag_pid=""
trap 'stop=1; say "USR1: asking the ranks to save and stop"; ask_to_stop' USR1
trap 'stop=1; say "TERM: asking the ranks to save and stop"; ask_to_stop' TERM
# ask_to_stop: send USR1 to srun, which forwards it to its tasks. Repeat this every 10 s, as the tasks may not have a
# handler yet. Near the time limit, kill srun. By then, the tasks are too slow, or they have exited and srun has not
# noticed, for example because a slurmstepd has died.
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
        say "WARNING: the ranks have not stopped $spare_s s before the time limit; killing srun"
        kill -TERM "$step_pid" 2>/dev/null && nap_10_s
        kill -KILL "$step_pid" 2>/dev/null
      fi
    done
  ) &
  nag_pid=$!
}
# is_limit_near: succeed if the time limit is at most spare_s seconds away; fail if Slurm does not answer. Slurm's EndTime
# is no substitute, because a preemption changes it.
is_limit_near() {
  local told start limit days=0 h m s
  told=$(record 2>/dev/null) || return 1
  start=$(said StartTime <<<"$told") limit=$(said TimeLimit <<<"$told")
  case $start:$limit in [0-9]*:[0-9]*) start=$(date -d "$start" +%s) || return 1 ;; *) return 1 ;; esac
  case $limit in *-*) days=${limit%%-*} limit=${limit#*-} ;; esac
  IFS=: read -r h m s <<<"$limit"
  [ $((start + ((10#$days * 24 + 10#$h) * 60 + 10#$m) * 60 + 10#$s - $(date +%s))) -le "$spare_s" ]
}
# step COMMAND...: run a job step and return its exit code. It runs in the background, because bash delays traps while a
# foreground command runs.
step() {
  local code again
  (trap '' USR1 && exec "$@") & # a USR1 before srun installs its handler would kill srun
  step_pid=$!
  [ -z "$stop" ] || ask_to_stop
  while wait "$step_pid"; code=$?; kill -0 "$step_pid" 2>/dev/null; do :; done # a trap also ends `wait`
  wait "$step_pid" 2>/dev/null
  again=$?
  [ "$again" = 127 ] || code=$again # the step ended just after a trap, so $code was the trap's
  [ -z "$nag_pid" ] || kill "$nag_pid" 2>/dev/null
  step_pid="" nag_pid=""
  return "$code"
}

# ---- Requeueing. The sourcing script defines `progress`, which prints the saved progress.

# job_state: print the job's state; fail if Slurm does not answer. After a network failure, this script may still run
# when the job has been started again. Then print REQUEUED, so that this script does not interfere with the new start.
job_state() {
  local told
  told=$(record) || return 1
  if [ "$(said Restarts <<<"$told")" = "$restart" ]; then said JobState <<<"$told"; else echo REQUEUED; fi
}
# requeue_if_running: requeue the job if it is running, because a job that was cancelled meanwhile must stay cancelled.
requeue_if_running() {
  local state
  state=$(job_state) || return 1
  [ "$state" != RUNNING ] || scontrol requeue "$job"
}
# add_one FILE: increment the count in FILE and print it. Content other than digits counts as 0, because bash arithmetic
# could execute commands from the file.
add_one() {
  local count
  count=$(head -c 9 "$1" 2>/dev/null)
  case $count in "" | *[!0-9]*) count=0 ;; esac
  count=$((10#$count + 1))
  mkdir -p "$(dirname "$1")" && echo "$count" >"$1" && echo "$count"
}

# requeue_or_end CODE BEFORE FOLDER: requeue or end a job after a job step that did not finish the work. CODE is the
# step's exit code, and BEFORE the output of `progress` at the start of the job. The files that count the job's failures
# and stops are in FOLDER.
requeue_or_end() {
  local code=$1 before=$2 folder=$3 saved state count
  local again="rerun the same sbatch command to continue"
  saved=$(progress)
  if [ "$code" = 2 ]; then
    say "error: rejected (exit code 2); the reason is above. Another start would not help"
    exit 2
  fi
  state=$(retry job_state) || give_up "not requeued, as Slurm does not say whether this job was cancelled; $saved; $again"
  if [ "$state" != RUNNING ]; then # cancelled with scancel, or requeued by Slurm
    say "the job is $state, so this script does not requeue it; $saved"
    exit "$code"
  fi
  [ "$saved" = "$before" ] || rm -f "$folder/stops-$SLURM_JOB_ID"
  case $code in
  0 | 143) # a stop; 143 if TERM came before Python installed its handler
    if [ "$saved" = "$before" ]; then # stops without progress could repeat forever
      count=$(add_one "$folder/stops-$SLURM_JOB_ID") || give_up "not requeued, because stops cannot be counted in $folder; $again"
      say "stop $count in a row at $saved; the limit is $max_stops"
      [ "$count" -le "$max_stops" ] || exit 1
    fi ;;
  *)
    count=$(add_one "$folder/failures-$SLURM_JOB_ID") ||
      give_up "exit code $code; not requeued, because failures cannot be counted in $folder; $again"
    say "exit code $code, $before -> $saved: failure $count, MAX_FAILURES=$MAX_FAILURES"
    [ "$count" -le "$MAX_FAILURES" ] || exit "$code" ;;
  esac
  trap '' USR1 TERM # a requeue ends this script
  say "requeue: the next start continues from $saved"
  retry requeue_if_running || give_up "Slurm did not requeue the job; $again"
  exit 0
}
