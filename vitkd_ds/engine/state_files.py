"""Collect DeepSpeed's state files for writing, read them safely, and repartition them.

DeepSpeed's `save_checkpoint` has barriers between writes that can fail, so a full disk on one rank would hang the
others. Therefore `Collector` replaces DeepSpeed's checkpoint engine. It only collects the state, and
`vitkd_ds.checkpoint.save` writes it. The files have the format of an engine without flat parameters, so DeepSpeed and
earlier versions of this package can read them.

For each optimizer group, the file of a rank contains its partition of the group's row (`vitkd_ds.engine.flat.Place`):
fp32 weights, optimizer states and moving average. The file also has the position of each weight's fragment in the
partition. Therefore any number of ranks can read the files, even if they partition the weights differently.
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
"""Classes of objects in DeepSpeed's ZeRO stage 1 and 2 files. Creating such objects has no side effects."""


def load_file(path: str | Path) -> Any:
    """Return the memory-mapped content of one of DeepSpeed's files: tensors, plain data and objects of `ALLOWED`.

    Raises:
        ValueError: the file contains other objects, or is not in torch.save's zip format.
        Unreadable: the first bytes cannot be read. If the disk fails later, the system kills the process (SIGBUS).
    """
    if _first_bytes(Path(path)) != b"PK\x03\x04":  # torch's legacy format cannot be memory-mapped
        raise ValueError(f"{path} is not in torch.save's zip format. Restore the original file.")
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:  # torch's own message explains how to disable this protection
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        found = f"the Python object {wanted[1]}" if wanted else "an object rejected by torch's restricted unpickler"
        raise ValueError(
            f"{path} contains {found}, but only tensors and plain data are allowed, because other objects can run "
            "code from the file. Restore the original file, or pass another --workdir."
        ) from None


@patiently
def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


class Collector(CheckpointEngine):
    """Checkpoint engine that stores file contents by name in the dict `saved`, and loads files with `load_file`."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: dict[str, Any] = {}

    def create(self, info: CheckpointCommitInfo) -> None:
        """Start a new checkpoint: drop the contents that were collected for the previous checkpoint."""
        self.saved = {}

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing, because `save` writes no files."""

    def save(self, state_dict: Any, path: str) -> None:
        """Collect a reference to the engine's state. The state must be written to disk before the next update."""
        self.saved[os.path.basename(path)] = state_dict

    def load(self, path: str, map_location: Any = None) -> Any:
        """Memory-map a file with `load_file`."""
        return load_file(path)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Report success to DeepSpeed."""
        return True


def with_names(files: dict[str, Any], flat: FlatModule) -> dict[str, Any]:
    """Replace the flat parameters in this rank's collected files with the module's own weights."""
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
    """Return, by name, the fragments of a group's weights that are in this rank's partition of `size` elements."""
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
    """One rank's partition of a checkpoint."""

    groups: list[dict[str, Tensor]]
    """For each optimizer group, a dict of fp32 tensors: the weights under the key `fp32`, and each optimizer state
    under its name. A tensor is this rank's partition, padded with zeros, or a scalar such as Adam's `step`. A
    checkpoint from before the first update has no optimizer states."""
    others: dict[str, Tensor]
    """Buffers and frozen weights of the module, by name."""


def read_partition(checkpoint: Path, groups: Sequence[dict[str, Place]], sizes: Sequence[int]) -> Partition:
    """Read this rank's partitions from a checkpoint written by any number of ranks.

    All ranks' files are memory-mapped, so only the parts that this rank needs are read.

    Args:
        checkpoint: folder of the checkpoint.
        groups: for each optimizer group, the places of its weights by name.
        sizes: for each optimizer group, the number of elements in the partition of a rank.

    Raises:
        ValueError: the checkpoint is damaged or belongs to other weights, or `load_file` rejects a file.
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
        raise ValueError(f"{checkpoint} does not fit this student and its losses: {listed} differ")
    partitions = []
    for i, (places, size) in enumerate(zip(groups, sizes)):
        mappings = [state[PARAM_SLICE_MAPPINGS][i] for state in saved]
        rows = [{"fp32": state[SINGLE_PARTITION_OF_FP32_GROUPS][i]} for state in saved]
        for row, state in zip(rows, saved):
            row |= state[BASE_OPTIMIZER_STATE]["state"].get(i, {})
        if any(row.keys() != rows[0].keys() for row in rows):
            raise ValueError(
                f"{checkpoint} is damaged: the ranks' files do not contain the same kinds of optimizer state. Pass "
                "another checkpoint."
            )
        partitions.append({key: _cut([row[key] for row in rows], mappings, places, size) for key in rows[0]})
    trained = {name for group in asked for name in group}
    return Partition(partitions, {name: value for name, value in model["module"].items() if name not in trained})


def _cut(
    rows: Sequence[Tensor], mappings: Sequence[dict[str, fragment_address]], places: dict[str, Place], size: int
) -> Tensor:
    """Return this rank's partition of a group, assembled from `rows`, the partitions in the files of all ranks."""
    if torch.as_tensor(rows[0]).ndim == 0:
        return torch.as_tensor(rows[0], dtype=torch.float32).clone()  # the clone releases the mapped file
    partition = torch.zeros(size)
    for name, own in _fragments(places, size).items():
        saved = [(row, mapping[name]) for row, mapping in zip(rows, mappings) if name in mapping]
        weight = torch.cat([row.narrow(0, there.start, there.numel) for row, there in saved])
        skipped = max(0, ranks.rank() * size - places[name].start)
        partition.narrow(0, own.start, own.numel).copy_(weight.narrow(0, skipped, own.numel))
    return partition
