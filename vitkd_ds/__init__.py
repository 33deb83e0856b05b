"""ViTKD and NKD distillation of vision transformers on DeepSpeed and FFCV.

The public surface. `Distiller` and `build_loader` are imported on first use, since timm and ffcv take seconds.
"""

from importlib import import_module
from typing import Any

from vitkd_ds.losses import ViTKDLoss, kd_loss, nkd_loss

__version__ = "0.2.0"
__all__ = ["Distiller", "ViTKDLoss", "build_loader", "kd_loss", "nkd_loss", "tap_features"]

_HOMES = {
    "Distiller": "vitkd_ds.distiller",
    "build_loader": "vitkd_ds.data.loader",
    "tap_features": "vitkd_ds.features",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vitkd_ds' has no attribute {name!r}")
