"""What both models take of a micro-batch: mixed, normalised images, one tensor if mean, std and dtype are the same."""

import torch
from torch import Tensor

from vitkd_ds.config.run import Run
from vitkd_ds.engine.teacher import Teacher
from vitkd_ds.models.normalization import Normalization
from vitkd_ds.train.mixing import Mixing, blend, mix_step


class Inputs:
    """Uint8 images and labels in; normalised images of the student and of the teacher, and targets out.

    On a GPU whose models are compiled, mixing and normalising are one compiled function, which reads an image twice and
    writes each result once; its last bits differ from those of the plain operations. On a CPU it is slower.
    """

    def __init__(
        self, run: Run, normalization: Normalization, dtype: torch.dtype, teacher: Teacher | None, device: torch.device
    ) -> None:  # fmt: skip
        self._run = run
        self._student = (normalization, dtype)
        self._teacher = (teacher.normalization, teacher.dtype) if teacher else None
        self._mixed_BCHW: Tensor | None = None
        is_fused = run.is_compiled and device.type != "cpu"
        self._render = torch.compile(self.render, dynamic=False) if is_fused else None

    def __call__(
        self, images_BCHW: Tensor, labels_B: Tensor, *, step: int, place: int
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Student's images, teacher's (the same tensor if they are equal; None without a teacher), and targets_BK. For
        `step` and `place` see `mix_step`."""
        keys = {"step": step, "place": place}
        if self._render:
            inputs, targets_BK = mix_step(self._run, images_BCHW, labels_B, **keys, render=self._render)
        else:
            out_BCHW = None if images_BCHW.is_cuda else self._memory_for(images_BCHW)
            mixed_BCHW, targets_BK = mix_step(self._run, images_BCHW, labels_B, **keys, out=out_BCHW)
            inputs = self.normalize(mixed_BCHW)
        return *inputs, targets_BK

    def _memory_for(self, images_BCHW: Tensor) -> Tensor:
        """Where the mixed images go, which normalising copies: the same memory for each micro-batch of a shape."""
        if self._mixed_BCHW is None or self._mixed_BCHW.shape != images_BCHW.shape:
            self._mixed_BCHW = torch.empty_like(images_BCHW, dtype=torch.float32)
        return self._mixed_BCHW

    def render(self, images_BCHW: Tensor, mixing: Mixing | None) -> tuple[Tensor, Tensor | None]:
        """Mix and normalise, in operations that a compiler can fuse."""
        return self.normalize(images_BCHW if mixing is None else blend(images_BCHW, mixing))

    def normalize(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images of values 0 to 255 for the student, and for the teacher."""
        student_BCHW = self._student[0].apply(images_BCHW, self._student[1])
        if self._teacher in (None, self._student):
            return student_BCHW, student_BCHW if self._teacher else None
        return student_BCHW, self._teacher[0].apply(images_BCHW, self._teacher[1])
