"""What all models take of a micro-batch: mixed, normalised images, one tensor if mean, std and dtype are the same."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vitkd_ds.config.run import Run
from vitkd_ds.engine.teacher import Teacher
from vitkd_ds.models.normalization import Normalization
from vitkd_ds.train.mixing import Mixing, blend, mix_step


class Inputs:
    """Uint8 images and labels in; normalised images of the student and of each teacher, and targets out.

    On a GPU whose models are compiled, mixing and normalising are one compiled function, which reads an image twice and
    writes each result once; its last bits differ from those of the plain operations. On a CPU it is slower.
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
        """Student's images, each teacher's by its name (the same tensor where they are equal), and targets_BK. For
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

    def render(self, images_BCHW: Tensor, mixing: Mixing | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mix and normalise, in operations that a compiler can fuse."""
        return self.normalize(images_BCHW if mixing is None else blend(images_BCHW, mixing))

    def normalize(self, images_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Images of values 0 to 255 for the student, and for each teacher."""
        images = [normalization.apply(images_BCHW, dtype) for normalization, dtype in self._ways]
        return images[0], {name: images[way] for name, way in self._way_of.items()}
