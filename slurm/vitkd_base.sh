#!/bin/bash
# Train DeiT-Base from DeiT III-Large. From the checkout: `sbatch slurm/vitkd_base.sh [train.py options]`. See slurm/README.md.
# sbatch flags override the lines below: sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 slurm/vitkd_base.sh
#SBATCH --job-name=vitkd_base
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=48:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.log

RECIPE=deit_base_from_deit3_large
# shellcheck source=slurm/run_recipe.sh
. slurm/run_recipe.sh # relative to the checkout: Slurm runs a copy of this script from another folder
