#!/bin/bash
# DeiT-Base from DeiT III-Large on Slurm: `sbatch slurm/vitkd_base.sh [train.py options]`, from the checkout.
# Every #SBATCH value can be set on the command line: sbatch --nodes=1 --ntasks-per-node=4 --gpus-per-node=4 slurm/vitkd_base.sh
#SBATCH --job-name=vitkd_base
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=48:00:00
#SBATCH --output=logs/%x-%j.log

set -euo pipefail
cd "$SLURM_SUBMIT_DIR" # $0 is a copy in Slurm's spool
PYTHON=${PYTHON:-$PWD/.venv/bin/python}

# Rank 0 runs on the first node; NodeAddr is what Slurm itself reaches it by, also where its name does not resolve.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$head" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
export MASTER_ADDR=${MASTER_ADDR:-${address:-$head}}
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 12000))}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}} SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# One task is one rank; train.py takes its rank from Slurm's variables. A run that was cut continues when the same
# command is given again, since the run folder is named by the recipe and --resume is auto.
echo "nodes $SLURM_JOB_NODELIST, $SLURM_NTASKS tasks, commit $(git rev-parse HEAD 2>/dev/null || echo unknown): train.py $*"
exec srun --kill-on-bad-exit=1 "$PYTHON" -u train.py --ds_config ds_configs/zero2.json \
  --recipe deit_base_from_deit3_large "$@"
