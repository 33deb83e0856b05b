"""DeepSpeed's part of a checkpoint: what it would write, what may be read, and the cut for any number of ranks.

DeepSpeed's `save_checkpoint` has barriers between writes that can fail, so the full disk of one rank would hang the
others. So its checkpoint engine is replaced by one that only collects, and `vitkd_ds.checkpoint.save` writes. The files
are those of an engine without flat parameters, so DeepSpeed itself reads them, and earlier versions of this package do.

A rank's file holds, for each of the optimizer's groups, its partition of the group's row of fp32 weights, and of each
optimizer state and the moving average, and says which part of which weight lies where in it. So any number of ranks can
read the files, however it lays out its own rows.
"""

import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import torch
from deepspeed.checkpoint.constants import (
    BASE_OPTIMIZER_STATE,
    GROUP_PADDINGS,
    OPTIMIZER_STATE_DICT,
    PARAM_ALIGNMENT_PADDINGS,
    PARAM_SHAPES,
    PARAM_SLICE_MAPPINGS,
    SINGLE_PARTITION_OF_FP32_GROUPS,
)
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor

from vitkd_ds.config.reading import patiently
from vitkd_ds.engine import ranks
from vitkd_ds.engine.flat import FlatModule, Place

MODEL_FILES = "*_model_states.pt"
OPTIMIZER_FILES = "*_optim_states.pt"
ALLOWED: list[Any] = [LossScaler, ZeroStageEnum, fragment_address]
"""All classes in DeepSpeed's files of ZeRO stages 1 and 2; making one of them has no effect."""


def load_file(path: str | Path) -> Any:
    """Map one of DeepSpeed's files.

    Raises:
        ValueError: it holds anything that is not data of ours.
        Unreadable: the disk fails at once. Where it fails later, the system ends the process (SIGBUS).
    """
    if _first_bytes(Path(path)) != b"PK\x03\x04":  # torch's older form cannot be mapped
        raise ValueError(f"{path} must be a file as torch.save writes it, found another: put it back")
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:  # torch's text says how to switch the protection off
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        found = f"the Python object {wanted[1]}" if wanted else "what torch's restricted unpickler refuses"
        raise ValueError(
            f"{path} must hold tensors and plain data alone, found {found}: making it could run code from the file, so "
            "the checkpoint is refused; put the file back as it was, or give another --workdir"
        ) from None


@patiently
def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


class Collector(CheckpointEngine):
    """A checkpoint engine that keeps what DeepSpeed saves in `saved`, by file name, and loads through `load_file`."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: dict[str, Any] = {}

    def create(self, info: CheckpointCommitInfo) -> None:
        """Forget the files of the last checkpoint."""
        self.saved = {}

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing, as no file will follow."""

    def save(self, state_dict: Any, path: str) -> None:
        """Keep a reference to the live state, which must be written before the next update."""
        self.saved[os.path.basename(path)] = state_dict

    def load(self, path: str, map_location: Any = None) -> Any:
        """Map a file through `load_file`."""
        return load_file(path)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Tell DeepSpeed that all is well."""
        return True


def with_names(files: dict[str, Any], flat: FlatModule) -> dict[str, Any]:
    """Replace the flat parameters in this rank's collected files by the weights that they hold."""
    named = {}
    for file, content in files.items():
        if "module" in content:
            module = content["module"]
            weights = flat.views([module[f"flat{i}"] for i in range(len(flat.flats))])
            others = {k.removeprefix("module."): v for k, v in module.items() if k.startswith("module.")}
            shapes = [{name: place.shape for name, place in places.items()} for places in flat.places]
            content = content | {"module": weights | others, PARAM_SHAPES: shapes}
        if OPTIMIZER_STATE_DICT in content:
            state = content[OPTIMIZER_STATE_DICT]
            sizes = [len(p) + pad for p, pad in zip(state[SINGLE_PARTITION_OF_FP32_GROUPS], state[GROUP_PADDINGS])]
            mappings = [_fragments(places, size) for places, size in zip(flat.places, sizes)]
            paddings = [[0] * len(places) for places in flat.places]
            state = state | {PARAM_SLICE_MAPPINGS: mappings, PARAM_ALIGNMENT_PADDINGS: paddings}
            content = content | {OPTIMIZER_STATE_DICT: state}
        named[file] = content
    return named


def _fragments(places: dict[str, Place], size: int) -> dict[str, fragment_address]:
    """Where the weights of a group lie in this rank's partition, of `size` elements; those outside are left out."""
    fragments = {}
    for name, place in places.items():
        start = place.start - ranks.rank() * size
        first = max(start, 0)
        last = min(start + place.shape.numel(), size)
        if first < last:
            fragments[name] = fragment_address(start=first, numel=last - first)
    return fragments


@dataclass(frozen=True)
class Partition:
    """What one rank needs of a checkpoint."""

    groups: list[dict[str, Tensor]]
    """For each of the optimizer's groups `fp32`, the weights, and each of its states by name: this rank's partitions,
    padded with zeros, and scalars such as Adam's `step` in fp32. No states where no update was made yet."""
    others: dict[str, Tensor]
    """What the module holds besides trained weights, by name."""


def read_partition(checkpoint: Path, groups: Sequence[dict[str, Place]], sizes: Sequence[int]) -> Partition:
    """Read this rank's partitions, of `sizes` elements, from a checkpoint of any number of ranks.

    Files are mapped, so of another rank's file only what is needed comes into memory.

    Args:
        groups: for each group of the optimizer name -> place of its weights.

    Raises:
        ValueError: the checkpoint holds other weights, or a file what is not data of ours.
    """
    by_rank = {int(re.findall(r"_pp_rank_(\d+)", path.name)[0]): path for path in checkpoint.glob(OPTIMIZER_FILES)}
    saved = [load_file(by_rank[rank])[OPTIMIZER_STATE_DICT] for rank in sorted(by_rank)]
    (model_file,) = checkpoint.glob(MODEL_FILES)
    model = load_file(model_file)
    found = [dict(group) for group in model[PARAM_SHAPES]]
    asked = [{name: place.shape for name, place in places.items()} for places in groups]
    if found != asked:
        differing = {name for group in found for name in group} ^ {name for group in asked for name in group}
        listed = ", ".join(sorted(differing)[:3]) or "the shapes"
        raise ValueError(f"{checkpoint} must hold the weights of this student and its losses, found {listed} differ")
    partitions = []
    for i, (places, size) in enumerate(zip(groups, sizes)):
        mappings = [state[PARAM_SLICE_MAPPINGS][i] for state in saved]
        rows = [{"fp32": state[SINGLE_PARTITION_OF_FP32_GROUPS][i]} for state in saved]
        for row, state in zip(rows, saved):
            row |= state[BASE_OPTIMIZER_STATE]["state"].get(i, {})
        if any(row.keys() != rows[0].keys() for row in rows):
            raise ValueError(f"{checkpoint} must hold the same states of each rank, found others: it is damaged")
        partitions.append({key: _cut([row[key] for row in rows], mappings, places, size) for key in rows[0]})
    trained = {name for group in asked for name in group}
    return Partition(partitions, {name: value for name, value in model["module"].items() if name not in trained})


def _cut(
    rows: Sequence[Tensor], mappings: Sequence[dict[str, fragment_address]], places: dict[str, Place], size: int
) -> Tensor:
    """This rank's partition of a group, whose fragments lie in the partitions `rows` of the ranks that saved it."""
    if torch.as_tensor(rows[0]).ndim == 0:
        return torch.as_tensor(rows[0], dtype=torch.float32).clone()  # or the file would stay mapped
    partition = torch.zeros(size)
    for name, own in _fragments(places, size).items():
        saved = [(row, mapping[name]) for row, mapping in zip(rows, mappings) if name in mapping]
        weight = torch.cat([row.narrow(0, there.start, there.numel) for row, there in saved])
        skipped = max(0, ranks.rank() * size - places[name].start)
        partition.narrow(0, own.start, own.numel).copy_(weight.narrow(0, skipped, own.numel))
    return partition
