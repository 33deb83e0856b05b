#!/bin/bash
# Train DeiT-Small from DeiT III-Base. From the checkout: `sbatch slurm/vitkd_small.sh [train.py options]`. See slurm/README.md.
# sbatch flags override the lines below: sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 slurm/vitkd_small.sh
#SBATCH --job-name=vitkd_small
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=48:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.log

RECIPE=deit_small_from_deit3_base
# shellcheck source=slurm/run_recipe.sh
. slurm/run_recipe.sh # relative to the checkout: Slurm runs a copy of this script from another folder
