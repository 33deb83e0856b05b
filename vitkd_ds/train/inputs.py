"""Preprocess a micro-batch on the device: mix images, then normalise them per model."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vitkd_ds.config.run import Run
from vitkd_ds.engine.teacher import Teacher
from vitkd_ds.models.normalization import Normalization
from vitkd_ds.train.mixing import Mixing, blend, mix_step


class Inputs:
    """Preprocessor from uint8 images and labels to soft targets and normalised images for each model.

    Models with equal mean, std and dtype share one tensor. On a GPU with compiled models, one compiled function mixes
    and normalises the images. It reads each image twice and writes each result once. Its results differ in the last
    bits from those of separate operations, which are used in all other cases. On a CPU, separate operations are faster.
    """

    def __init__(
        self,
        run: Run,
        normalization: Normalization,
        dtype: torch.dtype,
        teachers: Mapping[str, Teacher],
        device: torch.device,
    ) -> None:
        self._run = run
        ways = {name: (teacher.normalization, teacher.dtype) for name, teacher in teachers.items()}
        self._ways = [*dict.fromkeys([(normalization, dtype), *ways.values()])]
        self._way_of = {name: self._ways.index(way) for name, way in ways.items()}
        self._mixed_BCHW: Tensor | None = None
        is_fused = run.is_compiled and device.type != "cpu"
        self._render = torch.compile(self.render, dynamic=False) if is_fused else None

    def __call__(
        self, images_BCHW: Tensor, labels_B: Tensor, *, step: int, place: int
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the student's images, each teacher's images by name, and the soft targets [B, K].

        Models with equal preprocessing get the same tensor. For `step` and `place`, see `mix_step`.
        """
        keys = {"step": step, "place": place}
        if self._render:
            inputs, targets_BK = mix_step(self._run, images_BCHW, labels_B, **keys, render=self._render)
        else:
            out_BCHW = None if images_BCHW.is_cuda else self._memory_for(images_BCHW)
            mixed_BCHW, targets_BK = mix_step(self._run, images_BCHW, labels_B, **keys, out=out_BCHW)
            inputs = self.normalize(mixed_BCHW)
        return *inputs, targets_BK

    def _memory_for(self, images_BCHW: Tensor) -> Tensor:
        """Return a buffer for the mixed images, which is reused while the shape of the images stays the same.

        Reuse is safe because normalising copies the content.
        """
        if self._mixed_BCHW is None or self._mixed_BCHW.shape != images_BCHW.shape:
            self._mixed_BCHW = torch.empty_like(images_BCHW, dtype=torch.float32)
        return self._mixed_BCHW

    def render(self, images_BCHW: Tensor, mixing: Mixing | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mix and normalise images, with operations that a compiler can fuse."""
        return self.normalize(images_BCHW if mixing is None else blend(images_BCHW, mixing))

    def normalize(self, images_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Normalise images (values 0 to 255). Return the student's images, and each teacher's images by name."""
        images = [normalization.apply(images_BCHW, dtype) for normalization, dtype in self._ways]
        return images[0], {name: images[way] for name, way in self._way_of.items()}
