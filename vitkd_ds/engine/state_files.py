"""DeepSpeed's part of a checkpoint: what it would write, what may be read, and the cut for any number of ranks.

DeepSpeed's `save_checkpoint` has barriers between writes that can fail, so the full disk of one rank would hang the
others. So its checkpoint engine is replaced by one that only collects, and `vitkd_ds.checkpoint.save` writes. The files
are those of an engine without flat parameters, so DeepSpeed itself reads them, and earlier versions of this package do.

A rank's file holds, for each of the optimizer's groups, its partition of the fp32 weights in one row, and of Adam's
moments and the moving average. The partitions of all ranks, one after the other and without the last one's padding, are
the row of the group, however many ranks there were; so another number of ranks only cuts it elsewhere.
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
from vitkd_ds.engine.flat import FlatModule

MODEL_FILES, OPTIMIZER_FILES = "*_model_states.pt", "*_optim_states.pt"
ALLOWED = [LossScaler, ZeroStageEnum, fragment_address]
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
            content = content | {"module": weights | others, PARAM_SHAPES: flat.group_shapes()}
        if OPTIMIZER_STATE_DICT in content:
            state = content[OPTIMIZER_STATE_DICT]
            sizes = [len(p) + pad for p, pad in zip(state[SINGLE_PARTITION_OF_FP32_GROUPS], state[GROUP_PADDINGS])]
            mappings = [_fragments(shapes, size) for shapes, size in zip(flat.group_shapes(), sizes)]
            paddings = [[0] * len(shapes) for shapes in flat.group_shapes()]
            state = state | {PARAM_SLICE_MAPPINGS: mappings, PARAM_ALIGNMENT_PADDINGS: paddings}
            content = content | {OPTIMIZER_STATE_DICT: state}
        named[file] = content
    return named


def _fragments(shapes: dict[str, torch.Size], size: int) -> dict[str, fragment_address]:
    """Where the weights of a group lie in this rank's partition, of `size` elements; those outside are left out."""
    fragments, start = {}, -ranks.rank() * size
    for name, shape in shapes.items():
        first, last = max(start, 0), min(start + shape.numel(), size)
        if first < last:
            fragments[name] = fragment_address(start=first, numel=last - first)
        start += shape.numel()
    return fragments


@dataclass(frozen=True)
class Partition:
    """What one rank needs of a checkpoint."""

    groups: list[dict[str, Tensor]]
    """For each of the optimizer's groups `fp32`, the weights, and each of its states by name: this rank's partitions,
    padded with zeros, and scalars such as Adam's `step` in fp32. No states where no update was made yet."""
    others: dict[str, Tensor]
    """What the module holds besides trained weights, by name."""


def read_partition(checkpoint: Path, shapes: Sequence[dict[str, torch.Size]], sizes: Sequence[int]) -> Partition:
    """Read this rank's partitions, of `sizes` elements, from a checkpoint of any number of ranks.

    Files are mapped, so of another rank's file only what is needed comes into memory.

    Args:
        shapes: for each group of the optimizer name -> shape of its weights.

    Raises:
        ValueError: the checkpoint holds other weights, or a file what is not data of ours.
    """
    by_rank = sorted(checkpoint.glob(OPTIMIZER_FILES), key=lambda path: int(re.search(r"_pp_rank_(\d+)", path.name)[1]))
    saved = [load_file(path)[OPTIMIZER_STATE_DICT] for path in by_rank]
    (model_file,) = checkpoint.glob(MODEL_FILES)
    model = load_file(model_file)
    if [list(group.items()) for group in model[PARAM_SHAPES]] != [list(group.items()) for group in shapes]:
        found, asked = ({name for group in groups for name in group} for groups in (model[PARAM_SHAPES], shapes))
        differing = ", ".join(sorted(found ^ asked)[:3]) or "the shapes or the order"
        raise ValueError(f"{checkpoint} must hold the weights of this student and its losses, found {differing} differ")
    groups = []
    for i, size in enumerate(sizes):
        rows = [{"fp32": state[SINGLE_PARTITION_OF_FP32_GROUPS][i]} for state in saved]
        for row, state in zip(rows, saved):
            row |= state[BASE_OPTIMIZER_STATE]["state"].get(i, {})
        if any(row.keys() != rows[0].keys() for row in rows):
            raise ValueError(f"{checkpoint} must hold the same states of each rank, found others: it is damaged")
        groups.append(
            {key: _cut([row[key] for row in rows], [len(row["fp32"]) for row in rows], size) for key in rows[0]}
        )
    trained = {name for group in shapes for name in group}
    return Partition(groups, {name: value for name, value in model["module"].items() if name not in trained})


def _cut(pieces: Sequence[Tensor], lengths: Sequence[int], size: int) -> Tensor:
    """This rank's partition of a row that lies in `pieces`, each perhaps padded beyond its length."""
    if torch.as_tensor(pieces[0]).ndim == 0:
        return torch.as_tensor(pieces[0], dtype=torch.float32).clone()  # or the file would stay mapped
    partition, start = torch.zeros(size), -ranks.rank() * size
    for piece, length in zip(pieces, lengths):
        first, last = max(start, 0), min(start + length, size)
        if first < last:
            partition[first:last] = piece[first - start : last - start]
        start += length
    return partition
