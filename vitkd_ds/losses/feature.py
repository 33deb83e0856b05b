"""Label-free feature distillation: class and patch tokens, compared through adapters."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitkd_ds.losses.part import Features, LossPart, PairInfo, grid_of
from vitkd_ds.losses.precision import at_least_fp32

FLOOR = 1e-4
"""Lower bound of a channel's variance in `standardize`, as a fraction of the mean variance over channels."""
SMOOTH = 0.1
"""Weight of the smooth L1 distance in the patch-token loss; the cosine distance has the weight 1 - SMOOTH."""


class Feature(LossPart):
    """Loss term `feature`: the sum of `feature_class` for pooled features and `feature_patches` for final patch tokens.

    The setting `target` selects how the teacher's features are transformed before the comparison: not at all (`raw`),
    with LayerNorm, or with a fixed matrix (`standardize` or `phi_s`). The matrix is computed once per run, from the
    mean and covariance of the teacher's features in the first training micro-batches (see `vitkd_ds.train.calibrate`),
    and stored in checkpoints. `standardize` gives each channel mean 0 and variance 1. `phi_s` gives all channels mean 0
    and equal variance with one rotation and one scale.

    **Source**: EUPE (arXiv 2603.22387) for the losses and the adapter; arXiv 2410.01680 and NVlabs/RADIO for PHI-S.

    **Differs**: mean and covariance are computed from the first micro-batches before training, while the source takes
    them from 500 iterations of another run. The adapter's hidden width is the teacher's width, while the source's is
    3,072.
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
        """Return two cosine similarities between student and teacher per image, fp32 [B].

        `cosine` compares the pooled features. `cosine_patches` is the mean over the image's patch tokens.
        """
        pooled, patches = (map(at_least_fp32, pair) for pair in self._compared(student, teacher))
        cosine_BP = F.cosine_similarity(*patches, dim=-1)
        return {"cosine": F.cosine_similarity(*pooled, dim=-1), "cosine_patches": cosine_BP.mean(1)}

    def _compared(self, student: Features, teacher: Features) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return two pairs to compare; in each pair, the student's tensor comes first.

        The first pair contains pooled features [B, Dt], the second patch tokens on the same grid [B, P, Dt].
        """
        pooled_BD = self.adapters["pooled"](student.pooled_BD)
        patches_BPD = self.adapters["patches"](student.final_BPD)
        target_BD = self.targets["pooled"](teacher.pooled_BD.detach())
        target_BPD = self.targets["patches"](teacher.final_BPD.detach())
        student_grid = grid_of(patches_BPD.shape[1], self.pair.student_grid)
        teacher_grid = grid_of(target_BPD.shape[1], self.pair.teacher_grid)
        on_grids = at_larger_grid(patches_BPD, target_BPD, student_grid, teacher_grid)
        return (pooled_BD, target_BD), on_grids

    @property
    def num_calibrating(self) -> int:
        """Micro-batches per rank for computing mean and covariance; 0 if the targets do not need them."""
        return self.term.calibration_batches if self.term.target in STATISTICS else 0

    def features_to_calibrate(self, teacher: Features) -> dict[str, Tensor]:
        """Return the teacher's features [..., Dt] whose mean and covariance are needed.

        Each key is the path, within this module, of the `Target` that needs them.
        """
        return {"targets.pooled": teacher.pooled_BD, "targets.patches": teacher.final_BPD}


STATISTICS = ("standardize", "phi_s")
"""Kinds of target whose transform is computed from the features' mean and covariance."""


class Target(nn.Module):
    """Transform from a teacher feature to the student's target, in at least fp32."""

    def __init__(self, kind: str, dim: int) -> None:
        super().__init__()
        self.kind = kind
        if kind in STATISTICS:
            self.register_buffer("mean_D", torch.zeros(dim))
            self.register_buffer("transform_DD", torch.eye(dim))
        self.least_samples = dim if kind == "phi_s" else 0
        """Minimum number of samples (images or patches) for a covariance of full rank; 0 if the rank is irrelevant."""

    def forward(self, features: Tensor) -> Tensor:
        """Transform features [..., D] along their last axis."""
        features = at_least_fp32(features)
        if self.kind == "layer_norm":
            return F.layer_norm(features, features.shape[-1:])
        if self.kind not in STATISTICS:
            return features
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features - self.mean_D, self.transform_DD)

    def fix(self, mean_D: Tensor, covariance_DD: Tensor) -> None:
        """Compute and store the transform, given the features' mean and covariance over all ranks in fp64.

        If the features are equal for all images (as for an untrained teacher), the transform only subtracts the mean.
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
    """Build an adapter from the student's to the teacher's width: Linear, LayerNorm, GELU, Linear.

    The linear layers have no bias. The hidden width equals the teacher's width.
    """
    first, last = (nn.Linear(dim, teacher_dim, bias=False) for dim in (student_dim, teacher_dim))
    return nn.Sequential(first, nn.LayerNorm(teacher_dim), nn.GELU(), last)


def cosine_distance(student: Tensor, target: Tensor) -> Tensor:
    """Compute 1 - cosine along the last axis of [..., D], averaged over the other axes, in at least fp32."""
    return (1 - F.cosine_similarity(at_least_fp32(student), at_least_fp32(target), dim=-1)).mean()


def patch_distance(student_BPD: Tensor, target_BPD: Tensor) -> Tensor:
    """Compute 0.9 (1 - cosine) + 0.1 smooth L1, averaged over tokens and images, in at least fp32."""
    smooth = F.smooth_l1_loss(at_least_fp32(student_BPD), at_least_fp32(target_BPD))
    return (1 - SMOOTH) * cosine_distance(student_BPD, target_BPD) + SMOOTH * smooth


def at_larger_grid(
    student_BPD: Tensor, teacher_BPD: Tensor, student_grid: tuple[int, int], teacher_grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return student and teacher tokens on the larger of their two grids (rows, columns).

    The tokens on the smaller grid are resized by bicubic interpolation in at least fp32. If both grids are equal, both
    tensors are returned unchanged.
    """
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
        W = a H U^T. The columns of U are the eigenvectors of the covariance. H is the orthogonal matrix that makes the
        variances equal; see `equal_variances`. 1 / a^2 is the mean eigenvalue.

    **Source**: arXiv 2410.01680; NVlabs/RADIO `phi_s.py`.

    **Differs**: for widths that are neither 2^k nor 12 x 2^k, H is a product of rotations of pairs of channels.
    """
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    values_D = values_D.clamp_min(0)
    rotation_DD = equal_variances(values_D) @ vectors_DD.T
    return values_D.mean().rsqrt() * rotation_DD


def equal_variances(values_D: Tensor) -> Tensor:
    """Return an orthogonal R such that R diag(values) R^T has a constant diagonal.

    R is a scaled Hadamard matrix if the width is 2^k or 12 x 2^k. Otherwise R is a product of rotations, each of
    which rotates two axes and sets one diagonal entry to the mean.
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
    """Return a square Hadamard matrix (entries 1 and -1, orthogonal rows) with order * doublings rows.

    The construction starts with [1] (order 1) or Paley's matrix (order 12). Sylvester's construction then doubles the
    matrix until it has `doublings` times as many rows; `doublings` is a power of two.
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
