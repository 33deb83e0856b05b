"""The same recipe without FFCV and without our decoder: Pillow, torchvision and torch's DataLoader.

Order, crops, flips and augmentation draws are those of the FFCV backend. It reads .betons, and also directly whatever
`vitkd-ds pack` reads, where the pixels differ from the packed ones by what packing did to them (scaling to 500 pixels
and JPEG quality 90, by default).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from vitkd_ds.data.crops import BICUBIC, BILINEAR, CentreCrops, TrainCrops
from vitkd_ds.data.images import load_rgb
from vitkd_ds.data.sources import Source, open_source

INTERPOLATION = {BILINEAR: InterpolationMode.BILINEAR, BICUBIC: InterpolationMode.BICUBIC}
DECODED, NOT_DECODED = 0, 1


class TorchvisionImages:
    """A .beton or another source of images, read by Pillow: `vitkd_ds.data.loader.Images`.

    Args:
        path: see `vitkd_ds.data.sources.open_source`.
        crops: where the images are cut.
        micro_batch_size: images at a time.
        num_workers: processes that decode; they live for one pass.
    """

    def __init__(
        self, path: str | Path, crops: TrainCrops | CentreCrops, *, micro_batch_size: int, num_workers: int
    ):
        self.path, self._source, self._crops = str(path), open_source(path), crops
        self.classes, self.labels = self._source.classes, np.asarray(self._source.labels, np.int64)
        self._micro_batch_size, self._num_workers = micro_batch_size, num_workers

    def decoded(self, samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Decode samples in order, a micro-batch at a time, in worker processes; they end with the iterator."""
        if len(samples) == 0:
            return
        dataset = CroppedImages(self._source, self._crops, samples)
        for images_BHWC, status_B in DataLoader(dataset, self._micro_batch_size, num_workers=self._num_workers):
            yield images_BHWC.numpy(), status_B.numpy()

    def decode(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode samples at once, in this process."""
        dataset = CroppedImages(self._source, self._crops, samples)
        images, status = zip(*(dataset[i] for i in range(len(samples))))
        return torch.stack(images).numpy(), np.array(status)

    def reason(self, sample: np.void, status: int) -> str:
        """What is wrong with an image: reads it again to hear why."""
        index = int(sample["index"])
        try:
            load_rgb(self._source.read(index))
        except Exception as error:  # Pillow's plugins raise whatever comes
            return f"cannot be decoded: {self._source.names[index]}: {type(error).__name__}: {error}"
        return f"could not be decoded at first, but can be now: {self._source.names[index]}"


class CroppedImages(Dataset):
    """Samples of an order as uint8 images [size, size, 3] with a status each."""

    def __init__(self, source: Source, crops: TrainCrops | CentreCrops, samples: np.ndarray):
        self.source, self.crops, self.samples = source, crops, samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        sample = self.samples[number : number + 1]
        try:
            image = Image.fromarray(load_rgb(self.source.read(int(sample["index"][0]))))
        except Exception:  # reported by the loader, which asks for the reason
            return torch.zeros(self.crops.size, self.crops.size, 3, dtype=torch.uint8), NOT_DECODED
        (row,) = self.crops.rows(sample, np.array([image.height]), np.array([image.width]))
        return torch.from_numpy(cut(image, row, self.crops.size)), DECODED


def cut(image: Image.Image, row: np.void, size: int) -> np.ndarray:
    """Do with Pillow what a `CROP_DTYPE` row says: uint8 [size, size, 3]."""
    box = (int(row[name]) for name in ("top", "left", "height", "width"))
    resized = [int(row["resized_height"]), int(row["resized_width"])]
    image = F.resized_crop(image, *box, resized, INTERPOLATION[int(row["filter"])])
    image = F.crop(image, int(row["window_top"]), int(row["window_left"]), size, size)
    return np.array(F.hflip(image) if row["flip"] else image)
