"""Distillation losses, one paper per file.

Each file has a function or module with the formula, and its `LossPart`, which passes it features and settings. A loss
takes tensors and returns an fp32 scalar (fp64 for fp64 input) or a dict of such scalars; it does not depend on ranks,
devices or models. Start with `part.py`, the interface, and `kd.py`, the smallest loss. docs/losses.md explains how to
add one.
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
