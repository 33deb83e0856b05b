"""Draw the random augmentation of a micro-batch, which is applied after crop and flip."""

import ctypes
from dataclasses import dataclass, replace

import numpy as np

from vitkd_ds.config.image_sizes import Phases
from vitkd_ds.config.part import require
from vitkd_ds.config.run import AugmentConfig
from vitkd_ds.data.augment import policy as drawn
from vitkd_ds.data.augment.noise import RECTANGLE_DTYPE, noise_levels
from vitkd_ds.data.augment.operations import operations_of
from vitkd_ds.data.augment.policy import Layer
from vitkd_ds.data.colours import Statistics
from vitkd_ds.data.draws import epoch_of, sample_keys


class _Plan(ctypes.Structure):
    """C struct AugmentPlan of `csrc/augment.h`."""

    _fields_ = [
        ("operations", ctypes.c_void_p),
        ("num_layers", ctypes.c_int64),
        ("rectangles", ctypes.c_void_p),
        ("levels", ctypes.c_void_p),
        ("fill", ctypes.c_uint8 * 8),
    ]


@dataclass(frozen=True)
class Plan:
    """Augmentation of a micro-batch's images: first the operations of all layers in order, then random erasing."""

    layers: list[Layer]
    operations: np.ndarray
    """The layers in the format of the compiled code: OPERATION_DTYPE [B, layers]."""
    rectangles: np.ndarray
    """Rectangle to erase in each image: RECTANGLE_DTYPE [B]."""
    levels: np.ndarray
    """Pixel values of the noise of random erasing, see `vitkd_ds.data.augment.noise.noise_levels`."""
    fill: tuple[int, int, int]
    """RGB colour of the pixels that a rotation, shear or translation leaves uncovered."""

    def as_struct(self) -> _Plan:
        """Return a C struct with pointers to the plan's arrays; the struct is valid as long as this object exists."""
        places = (array.ctypes.data for array in (self.operations, self.rectangles, self.levels))
        operations, rectangles, levels = places
        fill = (ctypes.c_uint8 * 8)(*self.fill)
        return _Plan(operations, len(self.layers), rectangles, levels, fill)


class Augmenter:
    """Generator of augmentation plans that depend only on seed, epoch, image and repeat.

    Args:
        config: augmentation settings. The settings of repeated augmentation, Mixup and CutMix are not used here.
        statistics: the model's mean and standard deviation. As in timm, they determine the colour of uncovered pixels
            and the noise of random erasing.
        phases: factor of RandAugment's magnitude in each epoch; None always uses the full magnitude.

    Raises:
        ValueError: RandAugment's settings are invalid, or their operations do not all get weaker with the magnitude.
    """

    def __init__(
        self, config: AugmentConfig, *, seed: int, statistics: Statistics, phases: Phases | None = None
    ) -> None:
        self._config = config
        self._seed = seed
        self._rand_augment = drawn.parse_rand_augment(config.rand_augment) if config.rand_augment else None
        self._phases = phases
        if phases and self._rand_augment:
            must = "have the part inc1 with data.image_sizes, because otherwise low magnitudes distort the image most"
            require(self._rand_augment.is_increasing, "augment.rand_augment", config.rand_augment, must)
        self._levels = noise_levels(statistics)
        self._fill = tuple(min(255, round(255 * value)) for value in statistics[0])

    @staticmethod
    def has_work(config: AugmentConfig) -> bool:
        """Return whether the settings enable any augmentation that this class performs."""
        return bool(config.rand_augment or config.three_augment or config.color_jitter or config.random_erasing)

    def plan(self, samples: np.ndarray, *, height: int, width: int) -> Plan:
        """Draw the augmentation of a micro-batch.

        Args:
            samples: `vitkd_ds.data.order.SAMPLE_DTYPE` [B], all of the same epoch.
            height, width: size of the cropped images in pixels.
        """
        keys_B = sample_keys(samples, seed=self._seed)
        layers = self._layers(keys_B, strength=self._phases.strength_at(epoch_of(samples)) if self._phases else 1)
        rectangles = np.zeros(len(samples), RECTANGLE_DTYPE)
        if probability := self._config.random_erasing:
            rectangles["key"] = keys_B
            boxes_B4 = drawn.draw_rectangles(keys_B, probability=probability, height=height, width=width)
            for name, values_B in zip(("top", "left", "height", "width"), boxes_B4.T, strict=True):
                rectangles[name] = values_B
        operations = operations_of(layers, len(samples), height=height, width=width)
        return Plan(layers, operations, rectangles, self._levels, self._fill)

    def _layers(self, keys_B: np.ndarray, *, strength: float) -> list[Layer]:
        layers = []
        if self._rand_augment:
            policy = replace(self._rand_augment, magnitude=strength * self._rand_augment.magnitude)
            layers += drawn.draw_rand_augment(keys_B, policy, interpolation=self._config.interpolation)
        if self._config.three_augment:
            layers.append(drawn.draw_three_augment(keys_B))
        if self._config.color_jitter:
            layers += drawn.draw_color_jitter(keys_B, self._config.color_jitter)
        return layers
