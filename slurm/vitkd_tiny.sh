#!/bin/bash
# DeiT-Tiny from DeiT III-Small: `sbatch slurm/vitkd_tiny.sh [train.py options]`, from the checkout; slurm/README.md has more.
# sbatch flags override what stands here: sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 slurm/vitkd_tiny.sh
#SBATCH --job-name=vitkd_tiny
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.log

RECIPE=deit_tiny_from_deit3_small
# shellcheck source=slurm/run_recipe.sh
. slurm/run_recipe.sh # in the checkout: the file that Slurm runs is a copy of this one, somewhere else
