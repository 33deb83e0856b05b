# shellcheck shell=bash
# Sourced by the job scripts with RECIPE set: one srun, one task per rank, no ssh and no hostfile.
set -euo pipefail
cd "$SLURM_SUBMIT_DIR" # the script that Slurm runs is a copy in its spool
PYTHON=${PYTHON:-$PWD/.venv/bin/python}

# Rank 0 runs on the first node; NodeAddr is what Slurm itself reaches it by, also where its name does not resolve.
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$first_node" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
export MASTER_ADDR=${MASTER_ADDR:-${address:-$first_node}}
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 12000))}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not inherit it

# train.py takes its rank from Slurm's variables. Given again, the same command continues the run: the run folder is
# named by the recipe, and --resume is auto. Later options win, so "$@" may name another recipe.
echo "nodes $SLURM_JOB_NODELIST, $SLURM_NTASKS ranks, commit $(git rev-parse HEAD 2>/dev/null || echo unknown)"
echo "train.py --ds_config ds_configs/zero2.json --recipe $RECIPE $*"
exec srun --kill-on-bad-exit=1 "$PYTHON" -u train.py --ds_config ds_configs/zero2.json --recipe "$RECIPE" "$@"
