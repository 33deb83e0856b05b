"""Join what is drawn for each image (`policy`) with the batched operations on pixels.

In each layer the images are grouped by kind of operation, and a group is changed as a whole, so the number of kernels
does not grow with the micro-batch. The groups are known on the CPU: nothing waits for the device.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitkd_ds.config.run import AugmentConfig
from vitkd_ds.data.augment import affine, blends, blur, erasing, lut
from vitkd_ds.data.augment import policy as drawn
from vitkd_ds.data.augment.policy import Layer
from vitkd_ds.data.transfer import send

CPU_PIXELS = 1 << 17
"""Pixels that a kernel gets at once on the CPU, unless one image has more; Rotate, which holds up to 16 neighbours of
each, gets half."""
LEAST_COMPILED = 4
"""Images that a compiled kernel gets at least."""
CPU_RECTANGLES = 1
"""Rectangles that erasing gets at once on the CPU, for the cache."""


class Augmenter:
    """Augments uint8 micro-batches; what an image becomes depends on its pixels and its key only.

    Args:
        config: what is on; repeats and mixing do not belong here.
        compile: pass each kind of operation through torch.compile, for any micro-batch size: fewer kernels after a
            start that takes a minute or more. For GPUs; on the CPU the compiled code is slower.
    """

    def __init__(self, config: AugmentConfig, *, compile: bool = False):
        self.config = config
        self.rand_augment = drawn.parse_rand_augment(config.rand_augment) if config.rand_augment else None
        # Each operation is compiled once, when the first image needs it.
        compiled = functools.cache(lambda function: for_any_number(torch.compile(function, dynamic=True)))
        self._kernel: Callable[[Callable], Callable] = compiled if compile else lambda function: function

    @property
    def is_identity(self) -> bool:
        """Whether nothing is on; images are then returned as they are."""
        config = self.config
        return not (self.rand_augment or config.three_augment or config.color_jitter or config.random_erasing)

    def __call__(self, images_BCHW: Tensor, keys_B: np.ndarray) -> Tensor:
        """Augment RGB images, uint8 [B, 3, H, W] and best channels_last, into new ones of the same device and memory
        format, by `vitkd_ds.data.draws.image_keys`; into themselves if nothing is on."""
        assert images_BCHW.dtype == torch.uint8 and images_BCHW.shape[1] == 3, "images must be uint8 [B, 3, H, W]"
        assert keys_B.dtype == np.uint64 and keys_B.shape == images_BCHW.shape[:1], "keys must be uint64, one per image"
        if self.is_identity or not images_BCHW.numel():
            return images_BCHW
        pixels_BHWC = images_BCHW.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
        for layer in self.layers(keys_B):
            self._apply(pixels_BHWC, layer)
        if self.config.random_erasing:
            self._erase(pixels_BHWC, keys_B)
        result_BCHW = pixels_BHWC.permute(0, 3, 1, 2)
        is_channels_last = images_BCHW.is_contiguous(memory_format=torch.channels_last)
        return result_BCHW if is_channels_last else result_BCHW.contiguous()

    def layers(self, keys_B: np.ndarray) -> list[Layer]:
        """Draw what is done to the images before erasing, in order."""
        layers = []
        if self.rand_augment:
            layers += drawn.draw_rand_augment(keys_B, self.rand_augment, interpolation=self.config.interpolation)
        if self.config.three_augment:
            layers.append(drawn.draw_three_augment(keys_B))
        if self.config.color_jitter:
            layers += drawn.draw_color_jitter(keys_B, self.config.color_jitter)
        return layers

    def _apply(self, pixels_BHWC: Tensor, layer: Layer) -> None:
        """Apply one layer in place: each group's images are copied out, changed, and copied back."""
        for members, function, others, settings in self._groups(pixels_BHWC, layer):
            kernel = self._kernel(function)
            others = [send(other, pixels_BHWC.device) for other in others] if len(members) else []
            num_pixels = CPU_PIXELS // 2 if function is affine.rotate else CPU_PIXELS
            for few, images in portions(pixels_BHWC, members, num_pixels=num_pixels):
                put(pixels_BHWC, members[few], kernel(images, *(other[few] for other in others), **settings))

    def _groups(self, pixels_BHWC: Tensor, layer: Layer) -> Iterator[tuple]:
        """Yield members, function, its arguments (an entry per member) and its settings, for each kind of operation."""
        height, width = pixels_BHWC.shape[1:3]
        members = np.concatenate([layer.members(op) for op in lut.TABLE_OPS])
        yield members, lut.apply_tables, [self._tables(pixels_BHWC, layer)], {}
        for op, kernel in (("Color", blends.color), ("Sharpness", blends.sharpness)):
            yield layer.members(op), kernel, [layer.arguments(op).astype(np.float32)], {}
        yield layer.members("GaussianBlur"), blur.gaussian_blur, [blur.box_weights(layer.arguments("GaussianBlur"))], {}
        for its, is_cubic in ((layer.only(layer.is_cubic_B == is_cubic), is_cubic) for is_cubic in (False, True)):
            *positions, bits = affine.rotation_positions(its.arguments("Rotate"), height=height, width=width)
            yield its.members("Rotate"), affine.rotate, positions, {"bits": bits, "is_cubic": is_cubic}
            for shear, translate, kernel, lines, length in (
                ("ShearX", "TranslateXRel", affine.move_lines, height, width),
                ("ShearY", "TranslateYRel", affine.move_columns, width, height),
            ):
                members = np.concatenate([its.members(shear), its.members(translate)])
                shifts = its.arguments(shear)[:, None] * (np.arange(lines) + 0.5)
                shifts = np.concatenate([shifts, np.repeat(its.arguments(translate)[:, None] * length, lines, 1)])
                yield members, kernel, affine.line_positions(shifts, length=length), {"is_cubic": is_cubic}

    def _tables(self, pixels_BHWC: Tensor, layer: Layer) -> Tensor:
        """Make the tables of all images whose operation needs one, ordered by `lut.TABLE_OPS`: uint8 [N, 3, 256]."""
        device = pixels_BHWC.device
        fixed = np.concatenate([lut.fixed_tables(op, layer.arguments(op)) for op in lut.FIXED_OPS])
        tables = [send(fixed, device)[:, None].expand(-1, 3, -1)]
        for op, function in lut.MEASURED_OPS.items():
            kernel, members = self._kernel(function), layer.members(op)
            others = [send(layer.arguments(op).astype(np.float32), device)] if op == "Contrast" else []
            for few, images in portions(pixels_BHWC, members, num_pixels=CPU_PIXELS):
                tables.append(kernel(images, *(other[few] for other in others)))
        return torch.cat(tables)

    def _erase(self, pixels_BHWC: Tensor, keys_B: np.ndarray) -> None:
        """Erase rectangles in place."""
        (height, width), device = pixels_BHWC.shape[1:3], pixels_BHWC.device
        probability = self.config.random_erasing
        rectangles_R5 = drawn.draw_rectangles(keys_B, probability=probability, height=height, width=width)
        step = max(1, len(rectangles_R5)) if device.type == "cuda" else CPU_RECTANGLES
        for first in range(0, len(rectangles_R5), step):
            few_R5 = rectangles_R5[first : first + step]
            bytes_R = 3 * few_R5[:, 3] * few_R5[:, 4]
            owner = torch.repeat_interleave(send(bytes_R, device), output_size=int(bytes_R.sum()))
            several_R5 = np.repeat(few_R5, 2, axis=0) if len(few_R5) == 1 else few_R5  # see `for_any_number`
            table = send(erasing.rectangle_table(several_R5, height=height, width=width), device)
            keys = send(keys_B[several_R5[:, 0]].view(np.int64), device)
            place, noise = self._kernel(erasing.erased_bytes)(owner, table, keys, width=width)
            pixels_BHWC.view(-1).index_copy_(0, place, noise)


def for_any_number(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a compiled kernel take a few images as it takes many: dynamo makes a graph of its own for a size of 1, and
    for one that equals another, such as 3 colours; in the middle of training, when a group first has as many images."""

    def call(images_NHWC: Tensor, *others: Tensor, **settings: Any) -> Tensor:
        count = len(images_NHWC)
        if count >= LEAST_COMPILED:
            return kernel(images_NHWC, *others, **settings)
        repeated = (torch.cat([tensor] * LEAST_COMPILED) for tensor in (images_NHWC, *others))
        return kernel(*repeated, **settings)[:count]

    return call


def portions(pixels_BHWC: Tensor, members_N: np.ndarray, *, num_pixels: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield copies of the members' images: all at once on a GPU, and on the CPU as many at a time as have `num_pixels`,
    so that what a kernel holds stays in the cache, and the allocator keeps the memory instead of asking the system for
    it each time: recipes were 1.5 to 4 times faster."""
    size = len(members_N) if pixels_BHWC.is_cuda else max(1, num_pixels // pixels_BHWC[0, :, :, 0].numel())
    for start in range(0, len(members_N), max(1, size)):
        few = slice(start, start + size)
        yield few, pixels_BHWC.index_select(0, send(members_N[few], pixels_BHWC.device))


def put(pixels_BHWC: Tensor, members_N: np.ndarray, images_NHWC: Tensor) -> None:
    """Copy the images to the members' places."""
    if pixels_BHWC.is_cuda:
        pixels_BHWC.index_copy_(0, send(members_N, pixels_BHWC.device), images_NHWC)
        return
    for member, image in zip(members_N.tolist(), images_NHWC):  # on the CPU index_copy_ goes byte by byte
        pixels_BHWC[member].copy_(image)
