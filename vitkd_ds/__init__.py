"""ViTKD and NKD distillation of vision transformers on DeepSpeed and FFCV.

This module exports the public Python names. Each is imported on first use, because importing torch, timm and ffcv takes
seconds, and commands must be able to handle signals before these imports. Packages, by topic:

- `cli`: entry point of all commands. Start reading here.
- `commands`: one module or folder per command.
- `train`: the training loop.
- `engine`: DeepSpeed engines of student and teacher.
- `models`, `losses`: student and teacher models, and the distillation losses.
- `data`: packing, decoding and loading images.
- `checkpoint`: checkpoints and the run folder's lock.
- `config`, `recipes`: settings and their presets.
"""

from importlib import import_module
from typing import Any

__version__ = "1.0.0"
__all__ = ["Distiller", "ViTKDLoss", "build_loader", "kd_loss", "load_student", "nkd_loss", "tap_features"]

_HOMES = {
    "Distiller": "vitkd_ds.models.distiller",
    "ViTKDLoss": "vitkd_ds.losses",
    "build_loader": "vitkd_ds.data.loader",
    "kd_loss": "vitkd_ds.losses",
    "load_student": "vitkd_ds.commands.predict",
    "nkd_loss": "vitkd_ds.losses",
    "tap_features": "vitkd_ds.models.features",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vitkd_ds' has no attribute {name!r}")
