#!/bin/bash
# Packs ImageNet's train and val once, on one node: `sbatch slurm/pack_imagenet.sh SRC [DST] [pack options]`, from the
# checkout. SRC holds ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, or the folders
# train and val; DST is data if not given. Without options the photos' own bytes are kept, in random order (as large as the
# tars). Options that change pixels or order are for train alone: val keeps the photos' own bytes in any case, so that it
# can be evaluated exactly. Given again, the same command continues; slurm/README.md has more.
#SBATCH --job-name=pack_imagenet
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=32
#SBATCH --time=06:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.log

# shellcheck source=slurm/job.sh
. slurm/job.sh # in the checkout: the file that Slurm runs is a copy of this one, somewhere else

src=${1:?the folder of ImageNet must be the first argument} dst=data words=() val_words=(--passthrough)
introduce vitkd-ds pack "$@"
shift
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then
  dst=$1
  shift
fi
[ $# -gt 0 ] || set -- --passthrough --shuffle
for_val=yes # whether the words up to the next option are for val, too
for word in "$@"; do
  case ${word%%=*} in
  --restart) [ "$restart" -eq 0 ] || continue ;;& # it was meant for the first start
  --max_resolution | --short_side | --quality | --write_mode | --shuffle | --passthrough) for_val= ;;
  --*) for_val=yes ;;
  esac
  words+=("$word")
  [ -z "$for_val" ] || val_words+=("$word")
done
mkdir -p "$dst" || give_up "$dst must be a folder that can be written to; the reason stands above"

# pack knows TERM: it brings what is written to the disk. So USR1, the one signal that srun passes on, is made that.
pack=(-c 'import signal; signal.signal(signal.SIGUSR1, lambda *_: signal.raise_signal(signal.SIGTERM))
from vitkd_ds.cli import main; main()' pack)

progress() {
  local split
  for split in train val; do
    if [ -e "$dst/imagenet_$split.beton" ]; then
      echo "$dst/imagenet_$split.beton is packed"
    else
      echo "$split has $(find "$dst/.imagenet_$split.beton.partial" -name '[0-9]*.json' 2>/dev/null | wc -l) finished parts"
    fi
  done | paste -sd ,
}

# pack_split SPLIT SOURCE [OPTION ...]: unless it is there already. Ends the job where it fails.
pack_split() {
  local beton=$dst/imagenet_$1.beton code=0
  if [ -e "$beton" ]; then
    say "$beton is there already"
    return
  fi
  [ -n "$stop" ] || { step "${once[@]}" "${python[@]}" "${pack[@]}" "$2" "$beton" "${@:3}" || code=$?; }
  [ ! -e "$beton" ] || return 0
  [ -z "$stop" ] || [ "$code" = 2 ] || code=0 # it was asked to stop, whatever it ended with
  if [ "$code" != 0 ] && [ "$code" != 143 ] && [ "$(progress)" = "$before" ]; then
    say "error: exit code $code, and nothing new is packed; the reason stands above"
    exit "$code"
  fi
  requeue_or_end "$code" "$before" "$dst"
}

before=$(progress)
if [ -d "$src/train" ]; then
  pack_split train "$src/train" "${words[@]}"
  pack_split val "$src/val" "${val_words[@]}"
else
  pack_split train "$src/ILSVRC2012_img_train.tar" "${words[@]}"
  pack_split val "$src/ILSVRC2012_img_val.tar" --labels "$src/ILSVRC2012_devkit_t12.tar.gz" "${val_words[@]}"
fi
say "finished: $(progress)"
