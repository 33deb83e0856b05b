"""Label-free feature distillation from foundation models: class and patch tokens through adapters."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitkd_ds.losses.part import Features, LossPart, PairInfo
from vitkd_ds.losses.precision import at_least_fp32

FLOOR = 1e-4
"""Smallest channel variance used by `standardize`, relative to the mean over channels."""
SMOOTH = 0.1
"""Weight of the smooth L1 distance in the patch-token loss; the rest weighs 1 - cosine."""


class Feature(LossPart):
    """Loss term `feature`: `feature_class` for pooled features and `feature_patches` for final patch tokens.

    The targets are the teacher's features: raw, LayerNormed, or transformed with statistics. `calibrate` computes these
    statistics once, from a run's first micro-batches, and checkpoints store them. `standardize` gives each channel mean
    0 and variance 1. `phi_s` gives all channels equal variance with one rotation and one scale.

    **Source**: EUPE (arXiv 2603.22387) for the losses and the adapter; PHI-S from arXiv 2410.01680 and NVlabs/RADIO.

    **Differs**: statistics are computed from the first batches before training, not from 500 iterations of another run;
    the adapter's hidden width is the teacher's, not 3,072.
    """

    _keep_in_fp32_modules_strict = ["mean_D", "transform_DD"]  # DeepSpeed rounds all other buffers to bf16

    def __init__(self, term: Any, pair: PairInfo, *others: Any) -> None:
        super().__init__(term, pair, *others)
        self.adapters = nn.ModuleDict(
            {kind: adapter(pair.student_dim, pair.teacher_dim) for kind in ("pooled", "patches")}
        )
        self.targets = nn.ModuleDict({kind: Target(term.target, pair.teacher_dim) for kind in ("pooled", "patches")})

    def forward(self, student: Features, teacher: Features | None, targets_BK: Tensor) -> dict[str, Tensor]:
        """See `cosine_distance` and `patch_distance`."""
        pooled, patches = self._compared(student, teacher)
        return {"feature_class": cosine_distance(*pooled), "feature_patches": patch_distance(*patches)}

    def metrics(self, student: Features, teacher: Features) -> dict[str, Tensor]:
        """Return student-teacher cosine similarities, fp32 [B]: `cosine` of the pooled features, and `cosine_patches`,
        the mean over each image's patch tokens."""
        pooled, patches = (map(at_least_fp32, pair) for pair in self._compared(student, teacher))
        cosine_BP = F.cosine_similarity(*patches, dim=-1)
        return {"cosine": F.cosine_similarity(*pooled, dim=-1), "cosine_patches": cosine_BP.mean(1)}

    def _compared(self, student: Features, teacher: Features) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the pairs to compare, student first: pooled features [B, Dt], patch tokens on one grid [B, P, Dt]."""
        pooled_BD = self.adapters["pooled"](student.pooled_BD)
        patches_BPD = self.adapters["patches"](student.final_BPD)
        target_BD = self.targets["pooled"](teacher.pooled_BD.detach())
        target_BPD = self.targets["patches"](teacher.final_BPD.detach())
        on_grids = at_larger_grid(patches_BPD, target_BPD, self.pair.student_grid, self.pair.teacher_grid)
        return (pooled_BD, target_BD), on_grids

    @property
    def num_calibrating(self) -> int:
        """Micro-batches per rank used to compute the statistics; 0 if the targets need none."""
        return self.term.calibration_batches if self.term.target in STATISTICS else 0

    def features_to_calibrate(self, teacher: Features) -> dict[str, Tensor]:
        """Return the features [..., Dt] to compute statistics from, keyed by the path of their `Target` in this
        module."""
        return {"targets.pooled": teacher.pooled_BD, "targets.patches": teacher.final_BPD}


STATISTICS = ("standardize", "phi_s")
"""Kinds of target that are transformed with statistics."""


class Target(nn.Module):
    """Transform from a teacher feature to the student's target, in at least fp32."""

    def __init__(self, kind: str, dim: int) -> None:
        super().__init__()
        self.kind = kind
        if kind in STATISTICS:
            self.register_buffer("mean_D", torch.zeros(dim))
            self.register_buffer("transform_DD", torch.eye(dim))
        self.least_samples = dim if kind == "phi_s" else 0
        """Fewest samples (images or patches) that can give a covariance of full rank; 0 if any number will do."""

    def forward(self, features: Tensor) -> Tensor:
        """Transform the last axis of [..., D]."""
        features = at_least_fp32(features)
        if self.kind == "layer_norm":
            return F.layer_norm(features, features.shape[-1:])
        if self.kind not in STATISTICS:
            return features
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features - self.mean_D, self.transform_DD)

    def fix(self, mean_D: Tensor, covariance_DD: Tensor) -> None:
        """Set the transform from the features' fp64 mean and covariance over all ranks.

        If the features are the same for all images (for example, an untrained teacher), only the mean is subtracted.
        """
        if not (covariance_DD.diagonal() > 0).any():
            transform_DD = torch.eye(len(mean_D))
        elif self.kind == "standardize":
            variance_D = covariance_DD.diagonal()
            # Without a floor, a nearly constant channel would be scaled up to pure noise.
            transform_DD = torch.diag(variance_D.clamp_min(FLOOR * variance_D.mean()).rsqrt())
        else:
            transform_DD = phi_s(covariance_DD)
        self.mean_D.copy_(mean_D)
        self.transform_DD.copy_(transform_DD)


def adapter(student_dim: int, teacher_dim: int) -> nn.Sequential:
    """Build Linear, LayerNorm, GELU, Linear: linear layers without bias, hidden width equal to the teacher's."""
    first, last = (nn.Linear(dim, teacher_dim, bias=False) for dim in (student_dim, teacher_dim))
    return nn.Sequential(first, nn.LayerNorm(teacher_dim), nn.GELU(), last)


def cosine_distance(student: Tensor, target: Tensor) -> Tensor:
    """Compute 1 - cosine along the last axis of [..., D], mean over the other axes, in at least fp32."""
    return (1 - F.cosine_similarity(at_least_fp32(student), at_least_fp32(target), dim=-1)).mean()


def patch_distance(student_BPD: Tensor, target_BPD: Tensor) -> Tensor:
    """Compute 0.9 (1 - cosine) + 0.1 smooth L1, mean over tokens and images, in at least fp32."""
    smooth = F.smooth_l1_loss(at_least_fp32(student_BPD), at_least_fp32(target_BPD))
    return (1 - SMOOTH) * cosine_distance(student_BPD, target_BPD) + SMOOTH * smooth


def at_larger_grid(
    student_BPD: Tensor, teacher_BPD: Tensor, student_grid: tuple[int, int], teacher_grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Interpolate the tokens on the smaller of two grids (rows, columns) to the larger one: bicubic, at least fp32."""
    if student_grid == teacher_grid:
        return student_BPD, teacher_BPD
    if student_grid[0] * student_grid[1] < teacher_grid[0] * teacher_grid[1]:
        return _resized(student_BPD, student_grid, teacher_grid), teacher_BPD
    return student_BPD, _resized(teacher_BPD, teacher_grid, student_grid)


def _resized(tokens_BPD: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    B, _, D = tokens_BPD.shape
    image_BDHW = at_least_fp32(tokens_BPD).transpose(1, 2).reshape(B, D, *old)
    return F.interpolate(image_BDHW, size=new, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)


def phi_s(covariance_DD: Tensor) -> Tensor:
    """Compute the PHI-S matrix W: every channel of W (x - mean) has variance 1.

    W is a rotation times a scale, so it preserves ratios of distances.

    Args:
        covariance_DD: fp64 covariance of the features.

    Returns:
        a H U^T: U has the eigenvectors as columns, H is an orthogonal matrix with entries of (nearly) equal magnitude,
        as in a Hadamard matrix, and 1 / a^2 is the mean eigenvalue.

    **Source**: arXiv 2410.01680; NVlabs/RADIO `phi_s.py`.

    **Differs**: for widths that are neither 2^k nor 12 x 2^k, rotations of pairs of channels make the variances equal.
    """
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    values_D = values_D.clamp_min(0)
    rotation_DD = equal_variances(values_D) @ vectors_DD.T
    return values_D.mean().rsqrt() * rotation_DD


def equal_variances(values_D: Tensor) -> Tensor:
    """Return an orthogonal R such that R diag(values) R^T has a constant diagonal.

    R is a scaled Hadamard matrix if the width is 2^k or 12 x 2^k. Otherwise it is a product of rotations of two axes;
    each rotation sets one diagonal entry to the mean.
    """
    dim, mean = len(values_D), values_D.mean()
    for order in (1, 12):
        doublings = dim // order
        if dim % order == 0 and doublings & (doublings - 1) == 0:
            matrix = hadamard(order, doublings).to(values_D)
            return matrix / dim**0.5
    rotation_DD, current_DD = torch.eye(dim, dtype=values_D.dtype, device="cpu"), torch.diag(values_D.cpu())
    for _ in range(dim - 1):
        offset_D = current_DD.diagonal() - mean.cpu()
        low, high = int(offset_D.argmin()), int(offset_D.argmax())
        if offset_D[high] - offset_D[low] <= 1e-12 * mean.abs():  # both are 0 for constant features
            break
        # Rotate so that entry `low` becomes the mean: the tangent t of the angle solves a t^2 + 2 b t + c = 0.
        a, b, c = offset_D[high], current_DD[low, high], offset_D[low]
        tangent = (-b + (b * b - a * c).clamp_min(0).sqrt()) / a
        cosine = (1 + tangent * tangent).rsqrt()
        turn = torch.stack([torch.stack([cosine, cosine * tangent]), torch.stack([-cosine * tangent, cosine])])
        pair = [low, high]
        rotation_DD[pair] = turn @ rotation_DD[pair]
        current_DD[pair] = turn @ current_DD[pair]
        current_DD[:, pair] = current_DD[:, pair] @ turn.T
    return rotation_DD.to(values_D.device)


def hadamard(order: int, doublings: int) -> Tensor:
    """Return a Hadamard matrix (entries 1 and -1, orthogonal rows) of size order x doublings.

    It starts as [1] (order 1) or Paley's matrix (order 12). Sylvester's construction then doubles its size until it is
    `doublings` times as large; `doublings` is a power of two.
    """
    matrix = torch.ones(1, 1, dtype=torch.float64)
    if order == 12:
        squares = {i * i % 11 for i in range(1, 11)}
        character = torch.tensor([[0 if i == j else 1 if (i - j) % 11 in squares else -1 for j in range(11)]
                                  for i in range(11)], dtype=torch.float64)  # fmt: skip
        matrix = torch.ones(12, 12, dtype=torch.float64)
        matrix[1:, 0], matrix[1:, 1:] = -1, character
        matrix[1:, 1:] += torch.eye(11, dtype=torch.float64)
    while doublings > 1:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        doublings //= 2
    return matrix
