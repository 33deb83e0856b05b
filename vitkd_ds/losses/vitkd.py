"""ViTKD: mimic the teacher's shallow blocks, and regenerate its last block from masked tokens.

The paper gives two reasons for this design. Tokens of shallow blocks attend mostly to themselves and cannot be
regenerated from one another, so linear layers map the student's tokens directly to the teacher's. Directly matching
tokens of deep blocks hurts the student. Therefore some of the student's deep tokens are masked, and a small
convolutional projector generates the teacher's tokens at the masked positions.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitkd_ds.losses.part import Features, PairInfo, grid_of
from vitkd_ds.losses.precision import at_least_fp32

Grid = tuple[int, int]
PAPER_SUMMANDS = 196 * 384
"""Number of tokens times teacher width, for the smallest pair of models in the paper."""


class ViTKDLoss(nn.Module):
    """ViTKD loss, alpha * mimic + (beta / mask_ratio) * generate.

    Both terms are sums of squares, divided by the number of images:
    mimic = sum over two shallow blocks, tokens and channels of (fc_l(student) - teacher)^2;
    generate = sum over masked tokens and channels of (G(masked fc(student)) - teacher)^2.
    fc_l and fc are linear layers, and G is conv3x3, ReLU, conv3x3.

    The parameters have the names of the official code, so that a state dict of the official loss loads with
    strict=True: `align2.{0,1}` (fc_l), `align` (fc), `mask_token` [1, 1, Dt], `generation.{0,2}` (the convolutions of
    G). If both models have the same width, there are no linear layers. All parameters are trained with the student and
    left out of the exported student.

    If the grids differ (for example, 16 x 16 teacher tokens and 14 x 14 student tokens), the teacher's features are
    resized to the student's grid, by bilinear interpolation with antialiasing in at least fp32. Mask, G and the sums
    use the student's grid.

    The features of smaller images have fewer tokens. Their grids then have the proportions of `student_grid` and
    `teacher_grid`, and without `scaled`, both terms are multiplied by full tokens / tokens of the student.

    Args:
        student_dim: Ds, width of the student.
        teacher_dim: Dt, width of the teacher.
        alpha: weight of the shallow term, mimic.
        beta: weight of the deep term, generate.
        mask_ratio: lambda, the fraction of masked tokens. Of P tokens, exactly P - int(P (1 - lambda)) are masked.
        scaled: multiply alpha and beta by 196 x 384 / (student tokens x Dt). The paper's values suit sums over 196
            tokens of width 384. With `scaled`, they suit models with any number of tokens and any width.
        student_grid: rows and columns of the student's tokens of a full-size image; None assumes a square grid.
        teacher_grid: rows and columns of the teacher's tokens of a full-size image; None assumes a square grid.

    Raises:
        ValueError: a width, the ratio or a grid is invalid. `forward` raises it for features of other shapes.

    **Source**: arXiv 2209.02432, equations of L_lr and L_gen; cls_KD `vitkd.py`.

    **Differs**: like the official code, this class differs from the paper. Both sums are divided by the number of
    images, and the deep sum is also divided by the mask ratio. The number of masked tokens is fixed. Deep features are
    taken after the final norm.

    **Differs**: this class also differs from the official code. The option `scaled` is new. Grids need not be square or
    equal. Differences, squares and sums are computed in at least fp32. Images may be smaller than
    full size.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        *,
        alpha: float = 3e-5,
        beta: float = 3e-6,
        mask_ratio: float = 0.5,
        scaled: bool = False,
        student_grid: Grid | None = None,
        teacher_grid: Grid | None = None,
    ) -> None:
        super().__init__()
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio must be between 0 and 1, got {mask_ratio}")
        if min(student_dim, teacher_dim) < 1:
            raise ValueError(f"widths must be positive, got student_dim={student_dim}, teacher_dim={teacher_dim}")
        self.student_dim, self.teacher_dim = student_dim, teacher_dim
        self.alpha, self.beta, self.mask_ratio, self.scaled = alpha, beta, mask_ratio, scaled
        self.student_grid, self.teacher_grid = student_grid, teacher_grid
        if student_dim != teacher_dim:
            self.align2 = nn.ModuleList(nn.Linear(student_dim, teacher_dim) for _ in range(2))
            self.align = nn.Linear(student_dim, teacher_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, teacher_dim))
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_dim, teacher_dim, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(teacher_dim, teacher_dim, kernel_size=3, padding=1),
        )

    def forward(
        self,
        student_shallow_BLPD: Tensor,
        student_deep_BPD: Tensor,
        teacher_shallow_BLPD: Tensor,
        teacher_deep_BPD: Tensor,
        *,
        noise_BP: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the two weighted terms and their sum.

        Args:
            student_shallow_BLPD: student's patch tokens after two shallow blocks, not normalised, [B, 2, P, Ds]; they
                receive gradients.
            student_deep_BPD: student's patch tokens after the last block and the final norm, [B, P, Ds]; they receive
                gradients.
            teacher_shallow_BLPD: teacher's shallow tokens, [B, 2, P', Dt]; they are detached.
            teacher_deep_BPD: teacher's deep tokens, [B, P', Dt]; they are detached.
            noise_BP: random numbers that determine the mask. In each image, the int(P (1 - lambda)) tokens with the
                smallest numbers are not masked. If None, the numbers are drawn with torch.rand.

        Returns:
            fp32 scalars `mimic` and `generate`, already weighted, and their sum `total`.
        """
        _check("student", self.student_dim, student_shallow_BLPD, student_deep_BPD, images=len(student_deep_BPD))
        _check("teacher", self.teacher_dim, teacher_shallow_BLPD, teacher_deep_BPD, images=len(student_deep_BPD))
        num_tokens = student_deep_BPD.shape[1]
        whole_grid = self.student_grid or _square(num_tokens, "student")
        student_grid = grid_of(num_tokens, whole_grid)
        teacher_tokens = teacher_deep_BPD.shape[1]
        teacher_grid = grid_of(teacher_tokens, self.teacher_grid or _square(teacher_tokens, "teacher"))
        teacher_shallow_BLPD = _resize(teacher_shallow_BLPD.detach(), teacher_grid, student_grid)
        teacher_deep_BPD = _resize(teacher_deep_BPD.detach(), teacher_grid, student_grid)
        if self.student_dim != self.teacher_dim:
            aligned = [align(student_shallow_BLPD[:, i]) for i, align in enumerate(self.align2)]
            student_shallow_BLPD = torch.stack(aligned, dim=1)
        error_BLPD = at_least_fp32(student_shallow_BLPD) - at_least_fp32(teacher_shallow_BLPD)
        scale = math.prod(whole_grid) / num_tokens
        if self.scaled:
            scale = PAPER_SUMMANDS / (num_tokens * self.teacher_dim)
        mimic = scale * self.alpha / len(error_BLPD) * error_BLPD.square().sum()
        generate = self._generate(student_deep_BPD, teacher_deep_BPD, student_grid, noise_BP, beta=scale * self.beta)
        return {"mimic": mimic, "generate": generate, "total": mimic + generate}

    def _generate(
        self, student_BPD: Tensor, teacher_BPD: Tensor, grid: Grid, noise_BP: Tensor | None, *, beta: float
    ) -> Tensor:
        if self.student_dim != self.teacher_dim:
            student_BPD = self.align(student_BPD)
        B, P, D = student_BPD.shape
        if noise_BP is None:
            noise_BP = torch.rand(B, P, device=student_BPD.device)
        rank_BP = noise_BP.argsort(dim=1).argsort(dim=1)
        is_masked_BP1 = (rank_BP >= int(P * (1 - self.mask_ratio)))[:, :, None]
        masked_BPD = torch.where(is_masked_BP1, self.mask_token.to(student_BPD.dtype), student_BPD)
        generated_BPD = self.generation(masked_BPD.transpose(1, 2).reshape(B, D, *grid)).flatten(2).transpose(1, 2)
        error_BPD = (at_least_fp32(generated_BPD) - at_least_fp32(teacher_BPD)) * is_masked_BP1
        # Dividing by the mask ratio makes the sum over masked tokens comparable to a sum over all tokens.
        return beta / self.mask_ratio / B * error_BPD.square().sum()


class ViTKD(ViTKDLoss):
    """Loss term `vitkd`: `ViTKDLoss` with the interface of `LossPart` and unchanged parameter names."""

    def __init__(self, term: Any, pair: PairInfo, gather: Any = None) -> None:
        numbers = {name: getattr(term, name) for name in ("alpha", "beta", "mask_ratio", "scaled")}
        super().__init__(**vars(pair), **numbers)
        self.tapped = term.blocks

    def forward(self, student: Features, teacher: Features, targets_BK: Tensor) -> dict[str, Tensor]:
        """Compute `vitkd_mimic` and `vitkd_generate`; see `ViTKDLoss`."""
        shallow = [torch.stack([each.blocks[block] for block in self.tapped], dim=1) for each in (student, teacher)]
        halves = super().forward(shallow[0], student.final_BPD, shallow[1], teacher.final_BPD)
        return {"vitkd_mimic": halves["mimic"], "vitkd_generate": halves["generate"]}


def _check(side: str, dim: int, shallow_BLPD: Tensor, deep_BPD: Tensor, *, images: int) -> None:
    tokens = deep_BPD.shape[1]
    if shallow_BLPD.shape != (images, 2, tokens, dim) or deep_BPD.shape != (images, tokens, dim):
        raise ValueError(
            f"{side} features must be [{images}, 2, tokens, {dim}] and [{images}, tokens, {dim}], got "
            f"{tuple(shallow_BLPD.shape)} and {tuple(deep_BPD.shape)}. Check {side}_dim and the tapped blocks."
        )


def _square(num_tokens: int, side: str) -> Grid:
    rows = math.isqrt(num_tokens)
    if rows * rows != num_tokens:
        raise ValueError(f"{num_tokens} {side} tokens do not form a square grid. Pass {side}_grid=(rows, columns).")
    return rows, rows


def _resize(tokens: Tensor, old: Grid, new: Grid) -> Tensor:
    """Resize [..., P, D] tokens from one grid to another; return them unchanged if the grids are equal."""
    if old == new:
        return tokens
    *lead, _, D = tokens.shape
    image = at_least_fp32(tokens).reshape(-1, *old, D).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new, mode="bilinear", antialias=True, align_corners=False)
    return image.permute(0, 2, 3, 1).reshape(*lead, new[0] * new[1], D)
