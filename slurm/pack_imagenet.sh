#!/bin/bash
# Packs ImageNet's train and val once, on one node: `sbatch slurm/pack_imagenet.sh SRC [DST] [pack options]`, from the
# checkout. SRC holds ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, or the folders
# train and val; DST is data if not given. Without options the photos' own bytes are kept, in random order (as large as the
# tars). Given again, the same command continues.
#SBATCH --job-name=pack_imagenet
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=32
#SBATCH --time=06:00:00
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.log
set -euo pipefail
cd "$SLURM_SUBMIT_DIR" # the script that Slurm runs is a copy in its spool
VITKD_DS=${VITKD_DS:-$PWD/.venv/bin/vitkd-ds}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not inherit it

src=${1:?the folder of ImageNet must be the first argument}
dst=data
shift
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then
    dst=$1
    shift
fi
if [ $# -eq 0 ]; then set -- --passthrough --shuffle; fi
mkdir -p "$dst"

# pack SPLIT SOURCE [OPTION ...]: unless it is there already.
pack() {
    split=$1
    shift
    if [ -e "$dst/imagenet_$split.beton" ]; then
        echo "$dst/imagenet_$split.beton is there already"
        return
    fi
    echo "vitkd-ds pack $1 $dst/imagenet_$split.beton ${*:2}"
    srun "$VITKD_DS" pack "$1" "$dst/imagenet_$split.beton" "${@:2}"
}

if [ -d "$src/train" ]; then
    pack train "$src/train" "$@"
    pack val "$src/val" "$@"
else
    pack train "$src/ILSVRC2012_img_train.tar" "$@"
    pack val "$src/ILSVRC2012_img_val.tar" --labels "${LABELS:-$src/ILSVRC2012_devkit_t12.tar.gz}" "$@"
fi
