#!/bin/bash
# Pack ImageNet's train and val on one node. From the checkout: `sbatch slurm/pack_imagenet.sh SRC [DST] [pack options]`.
# SRC is a folder with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, or with the
# folders train and val. DST is data if omitted. Without options, the original JPEGs are stored in random order, so the
# .betons are as large as the tars. Options that change pixels or the order apply only to train. val keeps the original
# JPEGs, for exact evaluation.
# Rerun the same command to resume an interrupted job. See slurm/README.md.
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
. slurm/job.sh # relative to the checkout: Slurm runs a copy of this script from another folder

src=${1:?pass the folder of ImageNet as the first argument} dst=data words=() val_words=(--passthrough)
introduce vitkd-ds pack "$@"
shift
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then
  dst=$1
  shift
fi
[ $# -gt 0 ] || set -- --passthrough --shuffle
for_val=yes # whether the words up to the next option also apply to val
for word in "$@"; do
  case ${word%%=*} in
  --restart) [ "$restart" -eq 0 ] || continue ;;& # applies only to the first start
  --max_resolution | --short_side | --quality | --write_mode | --shuffle | --passthrough) for_val= ;;
  --*) for_val=yes ;;
  esac
  words+=("$word")
  [ -z "$for_val" ] || val_words+=("$word")
done
mkdir -p "$dst" || give_up "cannot create the folder $dst; the reason is above"

# pack handles TERM: it flushes finished data to the disk. srun forwards only USR1, so this turns USR1 into TERM.
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

# pack_split SPLIT SOURCE [OPTION ...]: pack a split unless its .beton exists. Ends the job on failure.
pack_split() {
  local beton=$dst/imagenet_$1.beton code=0
  if [ -e "$beton" ]; then
    say "$beton already exists"
    return
  fi
  [ -n "$stop" ] || { step "${once[@]}" "${python[@]}" "${pack[@]}" "$2" "$beton" "${@:3}" || code=$?; }
  [ ! -e "$beton" ] || return 0
  [ -z "$stop" ] || [ "$code" = 2 ] || code=0 # after a request to stop, any exit code but 2 counts as a stop
  if [ "$code" != 0 ] && [ "$code" != 143 ] && [ "$(progress)" = "$before" ]; then
    say "error: exit code $code and nothing new packed; the reason is above"
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
