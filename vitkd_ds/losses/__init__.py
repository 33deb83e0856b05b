"""Distillation losses, one paper per file.

Each file contains the formula, as a function or a module, and a `LossPart` class that applies the formula to features
and settings. The formula takes tensors and returns an fp32 scalar (fp64 if its inputs are fp64) or a dict of such
scalars. It does not depend on ranks, devices or models. Start with `part.py`, which defines the interface, and `kd.py`,
which is the smallest loss. docs/losses.md explains how to add a loss.
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
