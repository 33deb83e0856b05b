"""The losses, one paper per file.

A loss takes tensors and returns an fp32 scalar (fp64 for fp64 input) or a dict of them. It knows no rank, device,
configuration or model. `vitkd_ds.models.distiller` makes each a term of the total; CONTRIBUTING.md says how to add one.
"""

from vitkd_ds.losses.cross_entropy import soft_cross_entropy
from vitkd_ds.losses.kd import kd_loss
from vitkd_ds.losses.nkd import nkd_loss
from vitkd_ds.losses.vitkd import ViTKDLoss

__all__ = ["ViTKDLoss", "kd_loss", "nkd_loss", "soft_cross_entropy"]
