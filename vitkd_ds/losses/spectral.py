"""SpectralKD without parameters: match 2-D Fourier spectra of token maps after some blocks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkd_ds.losses.part import Features, LossPart, PairInfo, check_same_grid, grid_of
from vitkd_ds.losses.precision import at_least_fp32


class Spectral(LossPart):
    """Loss term `spectral`."""

    def __init__(self, term: Any, pair: PairInfo, *others: Any) -> None:
        super().__init__(term, pair, *others)
        check_same_grid(pair, "spectral")
        if pair.teacher_dim < pair.student_dim:
            raise ValueError(
                f"losses.spectral needs a teacher at least as wide as the student, got a teacher of width "
                f"{pair.teacher_dim} and a student of width {pair.student_dim}. Use a wider teacher, or set "
                "--losses.spectral.weight=0."
            )

    def forward(self, student: Features, teacher: Features | None, targets_BK: Tensor) -> dict[str, Tensor]:
        """See `spectral_loss`."""
        blocks = zip(self.term.student_blocks, self.term.teacher_blocks, strict=True)
        maps = [(student.blocks[own], teacher.blocks[other]) for own, other in blocks]
        grid = grid_of(maps[0][0].shape[1], self.pair.student_grid)
        losses = [spectral_loss(own, other, grid=grid) for own, other in maps]
        return {"spectral": torch.stack(losses).mean()}


def spectral_loss(student_BPD: Tensor, teacher_BPD: Tensor, *, grid: tuple[int, int]) -> Tensor:
    """Compute the mean squared difference between the real 2-D Fourier transforms of two token maps.

    The mean is taken over real and imaginary parts, frequencies, channels and images.

    Args:
        student_BPD: student patch tokens [B, P, Ds] after a block; they receive gradients.
        teacher_BPD: teacher patch tokens [B, P, Dt]; they are detached. If Dt > Ds, neighbouring channels are averaged,
            so that Ds channels remain.
        grid: rows and columns of the token grid.

    Returns:
        fp32 scalar.

    Raises:
        ValueError: the tokens do not fill the grid, or the teacher is narrower than the student.

    **Source**: SpectralKD (arXiv 2412.19055) and its code, `losses.py`.

    **Differs**: the computation is in at least fp32. The default blocks here are the first two. The source uses blocks
    0, 1 and 6 to 11 of DeiT, and blocks 0, 1 and 18 to 23 of CaiT-S24.
    """
    (B, P, D), width = student_BPD.shape, teacher_BPD.shape[2]
    if P != grid[0] * grid[1] or teacher_BPD.shape[:2] != (B, P) or width < D:
        raise ValueError(
            f"tokens must fill a {grid[0]} x {grid[1]} grid in both models, and the teacher must be at least as wide "
            f"as the student, got {tuple(student_BPD.shape)} (student) and {tuple(teacher_BPD.shape)} (teacher)"
        )
    spectra = []
    for tokens_BPD in (student_BPD, teacher_BPD.detach()):
        tokens_BPD = at_least_fp32(tokens_BPD)
        if tokens_BPD.shape[2] != D:
            tokens_BPD = F.adaptive_avg_pool1d(tokens_BPD, D)
        spectra.append(torch.fft.rfft2(tokens_BPD.view(B, *grid, D), dim=(1, 2), norm="ortho"))
    return torch.view_as_real(spectra[0] - spectra[1]).square().mean()
