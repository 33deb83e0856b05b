#!/bin/bash
# A sweep as a job array, a run a task: `sbatch --array=0-24%4 slurm/sweep.sh --recipes demo_plain demo --seeds 5 ...`, with
# the options of `vitkd-ds sweep`, from the checkout. `vitkd-ds sweep ... --list` prints the runs, numbered from 0, and
# without --list, once they are finished, the table. slurm/README.md has more.
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
. slurm/run_recipe.sh # in the checkout: the file that Slurm runs is a copy of this one, somewhere else
