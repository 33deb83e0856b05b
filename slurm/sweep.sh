#!/bin/bash
# Run a sweep as a job array, one run per task. From the checkout, with the options of `vitkd-ds sweep`:
# `sbatch --array=0-24%4 slurm/sweep.sh --recipes demo_plain demo --seeds 5 ...`. `vitkd-ds sweep ... --list` prints the
# runs, numbered from 0. After all runs are finished, the command without --list prints the table. See slurm/README.md.
#SBATCH --job-name=sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%A_%a.log

SWEEP=1
# shellcheck source=slurm/run_recipe.sh
. slurm/run_recipe.sh # relative to the checkout: Slurm runs a copy of this script from another folder
