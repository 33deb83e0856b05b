"""ViTKD and NKD distillation of vision transformers on DeepSpeed and FFCV.

The public surface. Each name is imported on first use: torch, timm and ffcv take seconds, and a command must listen to
signals before that.
"""

from importlib import import_module
from typing import Any

__version__ = "0.10.0"
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
