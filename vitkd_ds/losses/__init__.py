"""The losses, one paper per file.

A loss takes tensors and returns an fp32 scalar (fp64 for fp64 input) or a dict of them. It knows no rank, device or
model. Beside it stands its `LossPart`, which hands it the features and settings that it needs; docs/losses.md says how
to add one.
"""

from vitkd_ds.losses.cross_entropy import soft_cross_entropy
from vitkd_ds.losses.dist import dist_loss
from vitkd_ds.losses.dkd import dkd_loss
from vitkd_ds.losses.kd import kd_loss
from vitkd_ds.losses.nkd import nkd_loss
from vitkd_ds.losses.relation import global_relation_loss, local_relation_loss
from vitkd_ds.losses.spectral import spectral_loss
from vitkd_ds.losses.vitkd import ViTKDLoss
from vitkd_ds.losses.vkd import vkd_loss
from vitkd_ds.losses.wttm import wttm_loss

__all__ = [
    "ViTKDLoss",
    "dist_loss",
    "dkd_loss",
    "global_relation_loss",
    "kd_loss",
    "local_relation_loss",
    "nkd_loss",
    "soft_cross_entropy",
    "spectral_loss",
    "vkd_loss",
    "wttm_loss",
]
