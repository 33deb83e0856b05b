"""DeepSpeed's part of a checkpoint: what it would write, what may be read, and the change to another number of ranks.

DeepSpeed's `save_checkpoint` has barriers between writes that can fail, so the full disk of one rank would hang the
others. So its checkpoint engine is replaced by one that only collects, and `vitkd_ds.checkpoint.save` writes. When it
loads, DeepSpeed unpickles whatever a file says; here only three harmless classes besides tensors are allowed.
"""

import contextlib
import io
import os
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

MODEL_FILES, OPTIMIZER_FILES = "*_model_states.pt", "*_optim_states.pt"
ALLOWED = [LossScaler, ZeroStageEnum, fragment_address]
"""All classes in DeepSpeed's files of ZeRO stages 1 and 2; making one of them has no effect."""


def load_file(path: str | Path, map_location: Any = "cpu") -> Any:
    """Read one of DeepSpeed's files. Raises pickle.UnpicklingError for anything that is not data of ours."""
    with torch.serialization.safe_globals(ALLOWED):
        return torch.load(path, map_location=map_location, weights_only=True)


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
        """Read a file through `load_file`."""
        return load_file(path, map_location)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Tell DeepSpeed that all is well."""
        return True


def convert(checkpoint: Path, target: Path) -> None:
    """Write the checkpoint in DeepSpeed's universal format, a whole file per parameter and state, to a new folder. One
    rank calls it.

    `ds_to_universal` knows the fp32 weights and Adam's moments. The moving average is put beside them in the same form,
    and DeepSpeed loads it as it loads every state that it finds there.
    """
    for path in checkpoint.glob(MODEL_FILES):
        load_file(path)  # ds_to_universal unpickles anything, so refuse first what `load_file` refuses
    averages = _averages(checkpoint)
    with tempfile.TemporaryDirectory() as links:  # it takes paths for patterns: "[" or "+" in them would break it
        source, destination = Path(links, "in"), Path(links, "out")
        source.symlink_to(checkpoint.resolve())
        target.mkdir(parents=True)
        destination.symlink_to(target.resolve())
        options = {"input_folder": str(source), "output_folder": str(destination), "keep_temp_folder": False}
        options |= {"strict": True, "inject_missing_state": True}
        # No processes: this one has threads, and a fork could hang.
        options |= {"num_extract_workers": 1, "num_merge_workers": 1}
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            ds_to_universal.main(SimpleNamespace(**options))
    for name, average in averages.items():
        torch.save({ds_to_universal.PARAM: average}, target / "zero" / name / "ema.pt")


def _averages(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The flat moving average of each parameter by name, joined from the ranks' parts; empty if none was kept."""
    parts: dict[str, list[torch.Tensor]] = {}
    by_rank = sorted(checkpoint.glob(OPTIMIZER_FILES), key=lambda path: int(re.search(r"_pp_rank_(\d+)", path.name)[1]))
    for path in by_rank:
        saved = load_file(path)["optimizer_state_dict"]
        states = saved[ds_to_universal.BASE_OPTIMIZER_STATE]["state"]
        for group, fragments in enumerate(saved[ds_to_universal.PARAM_SLICE_MAPPINGS]):
            if "ema" in states[group]:
                for name, at in fragments.items():
                    parts.setdefault(name, []).append(states[group]["ema"].narrow(0, at.start, at.numel))
    return {name: torch.cat(pieces) for name, pieces in parts.items()}
