"""`Augmenter`: joins what is drawn for each image (`policy`) with the batched operations on pixels.

In each layer the images are grouped by kind of operation, and each group is copied out, changed and copied back, so the
number of kernels does not grow with the micro-batch. The groups are known on the CPU: nothing waits for the device.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vitkd_ds.config import AugmentConfig
from vitkd_ds.data.augment import affine, blends, blur, erasing, lut
from vitkd_ds.data.augment import policy as drawn
from vitkd_ds.data.augment.policy import OPS, Layer


class Augmenter:
    """Augments uint8 micro-batches; what an image becomes depends on its pixels and its key only.

    Args:
        config: what is on; repeats and mixing are others' work.
        compile: pass each kind of operation through torch.compile, for any micro-batch size: fewer and faster kernels
            after a start that takes a minute or two.
    """

    def __init__(self, config: AugmentConfig, *, compile: bool = False):
        self.config = config
        self.rand_augment = drawn.parse_rand_augment(config.rand_augment) if config.rand_augment else None
        self._compiled: dict[Callable, Callable] = {}
        self._compile = compile

    @property
    def is_identity(self) -> bool:
        """Whether nothing is on; images are then returned as they are."""
        config = self.config
        return not (self.rand_augment or config.three_augment or config.color_jitter or config.random_erasing)

    def __call__(self, images_BCHW: Tensor, keys_B: np.ndarray) -> Tensor:
        """Augment a micro-batch.

        Args:
            images_BCHW: uint8, RGB, on any device, best channels_last; not altered.
            keys_B: uint64, `vitkd_ds.data.draws.image_keys`.

        Returns:
            A new uint8 [B, 3, H, W] on the same device, in the same memory format; the input if nothing is on.
        """
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
        """What is done to the images before erasing, in order."""
        layers = []
        if self.rand_augment:
            layers += drawn.draw_rand_augment(keys_B, self.rand_augment, interpolation=self.config.interpolation)
        if self.config.three_augment:
            layers.append(drawn.draw_three_augment(keys_B))
        if self.config.color_jitter:
            layers += drawn.draw_color_jitter(keys_B, self.config.color_jitter)
        return layers

    def _run(self, function: Callable, *args, **kwargs) -> Tensor:
        """Call a kernel, compiled if that is on."""
        if not self._compile:
            return function(*args, **kwargs)
        if function not in self._compiled:
            self._compiled[function] = torch.compile(function, dynamic=True)
        return self._compiled[function](*args, **kwargs)

    def _apply(self, pixels_BHWC: Tensor, layer: Layer) -> None:
        """Apply one layer in place."""
        device = pixels_BHWC.device
        members = {op: np.flatnonzero(layer.op_B == number) for number, op in enumerate(OPS)}
        self._look_up(pixels_BHWC, members, layer)
        for op, kernel, prepare in (
            ("Color", blends.color, np.float32),
            ("Sharpness", blends.sharpness, np.float32),
            ("GaussianBlur", blur.gaussian_blur, blur.box_weights),
        ):
            if len(members[op]):
                index = send(members[op], device)
                argument = send(prepare(layer.argument_B[members[op]]), device)
                images = self._run(kernel, pixels_BHWC.index_select(0, index), argument)
                pixels_BHWC.index_copy_(0, index, images)
        for is_cubic in (False, True):
            its = {op: chosen[layer.is_cubic_B[chosen] == is_cubic] for op, chosen in members.items()}
            self._move(pixels_BHWC, its, layer, ("ShearX", "TranslateXRel"), is_cubic=is_cubic)
            self._move(pixels_BHWC.transpose(1, 2), its, layer, ("ShearY", "TranslateYRel"), is_cubic=is_cubic)
            self._rotate(pixels_BHWC, its["Rotate"], layer, is_cubic=is_cubic)

    def _look_up(self, pixels_BHWC: Tensor, members: dict[str, np.ndarray], layer: Layer) -> None:
        """All operations by table, as one look-up."""
        index = np.concatenate([members[op] for op in lut.TABLE_OPS])
        if not len(index):
            return
        device = pixels_BHWC.device
        index = send(index, device)
        images = pixels_BHWC.index_select(0, index)
        fixed = np.concatenate([lut.fixed_tables(op, layer.argument_B[members[op]]) for op in lut.FIXED_OPS])
        tables, first = [send(fixed, device)[:, None].expand(-1, 3, -1)], len(fixed)
        for op in ("Contrast", "AutoContrast", "Equalize"):
            last = first + len(members[op])
            if last > first and op == "Contrast":
                factors = send(layer.argument_B[members[op]].astype(np.float32), device)
                own = self._run(lut.contrast_tables, images[first:last], factors)
                tables.append(own[:, None].expand(-1, 3, -1))
            elif last > first:
                kernel = lut.autocontrast_tables if op == "AutoContrast" else lut.equalize_tables
                tables.append(self._run(kernel, images[first:last]))
            first = last
        pixels_BHWC.index_copy_(0, index, self._run(lut.apply_tables, images, torch.cat(tables)))

    def _move(
        self, pixels_BHWC: Tensor, members: dict[str, np.ndarray], layer: Layer, ops: tuple[str, str], *, is_cubic: bool
    ) -> None:
        """Shear and translate along the rows; for columns the pixels come transposed."""
        shear, translate = (members[op] for op in ops)
        index = np.concatenate([shear, translate])
        if not len(index):
            return
        height, width, device = *pixels_BHWC.shape[1:3], pixels_BHWC.device
        across = np.arange(height) + 0.5
        shifts = [layer.argument_B[shear][:, None] * across, layer.argument_B[translate][:, None] * width + 0 * across]
        positions = affine.line_positions(np.concatenate(shifts), length=width)
        positions = {name: send(array, device) for name, array in positions.items()}
        index = send(index, device)
        images = pixels_BHWC.index_select(0, index).contiguous()
        pixels_BHWC.index_copy_(0, index, self._run(affine.move_lines, images, **positions, is_cubic=is_cubic))

    def _rotate(self, pixels_BHWC: Tensor, members: np.ndarray, layer: Layer, *, is_cubic: bool) -> None:
        if not len(members):
            return
        height, width, device = *pixels_BHWC.shape[1:3], pixels_BHWC.device
        columns, rows, bits = affine.rotation_positions(layer.argument_B[members], height=height, width=width)
        index = send(members, device)
        images = pixels_BHWC.index_select(0, index)
        images = self._run(
            affine.rotate, images, send(columns, device), send(rows, device), bits=bits, is_cubic=is_cubic
        )
        pixels_BHWC.index_copy_(0, index, images)

    def _erase(self, pixels_BHWC: Tensor, keys_B: np.ndarray) -> None:
        """Random erasing in place."""
        height, width, device = *pixels_BHWC.shape[1:3], pixels_BHWC.device
        probability = self.config.random_erasing
        rectangles = drawn.draw_rectangles(keys_B, probability=probability, height=height, width=width)
        rows, num_bytes = erasing.rectangle_rows(rectangles)
        if num_bytes:
            counts = send(3 * rectangles.height_R * rectangles.width_R, device)
            owner = torch.repeat_interleave(counts, output_size=num_bytes)
            keys = send(keys_B[rectangles.members_R].view(np.int64), device)
            place, noise = self._run(
                erasing.erased_bytes, send(rows, device)[owner], keys[owner], height=height, width=width
            )
            pixels_BHWC.view(-1).index_copy_(0, place, noise)


def send(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy a small array to the device without waiting for it: from pinned memory, if it is a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
