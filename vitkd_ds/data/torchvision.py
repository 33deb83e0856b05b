"""Backend with Pillow, torchvision and DataLoader; needs neither FFCV nor the decoder.

From a .beton, this backend makes the same epochs as the FFCV backend: order, crops, flips, augmentation and pixels are
equal. This backend also reads unpacked sources: every source that `vitkd-ds pack` can pack without options. It numbers
their images as `pack` does without --shuffle and --skip_bad. Their crops are drawn for the original sizes, even if
`pack` would scale the images.

Pillow ignores damage inside a JPEG. If the compiled decoder was built, it checks the JPEGs of unpacked sources.
A .beton needs no such check: it was checked when it was packed, and stores a CRC32 of each image.
"""

import logging
import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from vitkd_ds.config.reading import NOT_THERE
from vitkd_ds.data.augment import pillow
from vitkd_ds.data.augment.augmenter import Augmenter
from vitkd_ds.data.beton.format import JPEG_MODE, SUFFIX, beton_fingerprint, read_beton
from vitkd_ds.data.crops import BICUBIC, BILINEAR, CentreCrops, TrainCrops
from vitkd_ds.data.image_file import ended, load_rgb
from vitkd_ds.data.sources import Source, open_source

logger = logging.getLogger(__name__)

INTERPOLATION = {BILINEAR: InterpolationMode.BILINEAR, BICUBIC: InterpolationMode.BICUBIC}
DECODED, NOT_DECODED, NOT_READ = range(3)


class TorchvisionImages:
    """Images of a .beton or another source, read with Pillow; implements `vitkd_ds.data.images.Images`.

    The pixels are the same as in the FFCV backend, bit for bit, if Pillow's libjpeg-turbo and the system's
    libjpeg-turbo decode alike.

    Args:
        num_workers: number of decoding processes; they are started for each pass over the images.
        source: already opened source to use instead of opening `path`.
    """

    skippable = frozenset({NOT_DECODED})
    unread = frozenset({NOT_READ})

    def __init__(
        self,
        path: str | Path,
        crops: TrainCrops | CentreCrops,
        augmenter: Augmenter | None,
        *,
        micro_batch_size: int,
        num_workers: int,
        source: Source | None = None,
    ):
        self.path = str(path)
        self._crops = crops
        self._augmenter = augmenter
        self._micro_batch_size = micro_batch_size
        self._num_workers = num_workers
        self._check = None
        if source is None and Path(path).suffix == SUFFIX:
            self._source, (self.fingerprint, self.content) = open_beton(Path(path))
        else:
            self._source = source or open_source(path)
            self.fingerprint = self.content = zlib.crc32(self._source.fingerprint().encode())
            self._check = damage_check(self.path)
        self.classes = self._source.classes
        self.labels = np.asarray(self._source.labels, np.int64)

    def decoded(self, samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield micro-batches of samples in order, decoded in worker processes that end with the iterator."""
        if len(samples) == 0:
            return
        dataset = CroppedImages(self._source, self._crops, self._augmenter, samples, self._check)
        # Fork, because sources hold open files, which cannot be sent to a new interpreter.
        how = {"num_workers": self._num_workers, "multiprocessing_context": "fork"}
        loader = DataLoader(dataset, self._micro_batch_size, **how)
        with _deaths_show_when_waiting():
            micro_batches = iter(loader)
        for first in range(0, len(samples), self._micro_batch_size):
            try:
                images_BHWC, status_B = next(micro_batches)
            except RuntimeError as error:
                awaited = samples["index"][first : first + self._micro_batch_size].tolist()
                raise RuntimeError(
                    f"one of the {self._num_workers} processes that decode {self.path!r} died while images "
                    f"{', '.join(map(str, awaited))} were awaited ({error}). Provide more memory, or lower "
                    "--data.num_workers."
                ) from error
            yield images_BHWC.numpy(), status_B.numpy()

    def decode(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode a few samples at once, in this process."""
        dataset = CroppedImages(self._source, self._crops, self._augmenter, samples, self._check)
        images, status = zip(*(dataset[i] for i in range(len(samples))))
        return torch.stack(images).numpy(), np.array(status)

    def is_there(self, index: int) -> bool:
        """Read an image again; return False if further attempts cannot succeed, for example for a missing file."""
        try:
            self._source.read(index)
        except OSError as error:
            return error.errno not in (*NOT_THERE, None)  # None: the error of `open_beton` for a truncated file
        except ValueError:
            return False  # reading works, but the content is invalid
        return True

    def close(self) -> None:
        """Do nothing: workers close their files after each pass, and this process keeps its own open."""

    def reason(self, index: int, status: int) -> str:
        """Read and decode an image again; return the error, as the end of a sentence that starts with "image 7"."""
        try:
            load_rgb(self._source.read(index), self._check)
        except Exception as error:  # Pillow's plugins raise many error types
            verb = "read" if status == NOT_READ else "decoded"
            return f"cannot be {verb}: {self._source.names[index]}: {type(error).__name__}: {error}"
        return f"could not be read at first, but can be now: {self._source.names[index]}"


@contextmanager
def _deaths_show_when_waiting() -> Iterator[None]:
    """Remove the SIGCHLD handler that torch installs within the `with` block.

    If a decoding process is killed, this handler raises an error at an arbitrary point in the main thread. Without it,
    the death is noticed within 5 s while waiting for the next micro-batch, and the error can name the images.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread() and before is not None:
        signal.signal(signal.SIGCHLD, before)


def damage_check(path: str) -> Callable | None:
    """Return `vitkd_ds.data.beton.verify.check_jpeg`; warn and return None if the compiled decoder is missing."""
    try:
        from vitkd_ds.data.beton.verify import check_jpeg
    except ImportError:
        why = "the compiled decoder, which detects it, was not built"
        logger.warning("cannot detect damage inside the JPEGs of %r, except a missing end marker: %s", path, why)
        return None
    return check_jpeg


def open_beton(path: Path) -> tuple[Source, tuple[int, int]]:
    """Open a .beton as a source of JPEG files, or of PPM files for images that are stored as pixels.

    Returns:
        The source, and a pair of hashes: its `beton_fingerprint`, and a CRC32 of the checksums of its images.

    Raises:
        ValueError, Unreadable: as in `read_beton`.
    """
    info, stored, labels = read_beton(path)
    descriptors: dict[int, int] = {}  # by process, since workers must not share one

    def read(index: int) -> bytes:
        image = stored[index]
        process = os.getpid()
        if process not in descriptors:
            descriptors[process] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        content = os.pread(descriptors[process], int(image["size"]), int(image["offset"]))
        if len(content) != image["size"]:
            raise OSError("the file ends inside this image")
        if zlib.crc32(content) != image["crc32"]:
            raise ValueError("the image has changed since it was packed (its CRC-32 differs)")
        is_jpeg = image["mode"] == JPEG_MODE
        return ended(content) if is_jpeg else b"P6 %d %d 255\n" % (image["width"], image["height"]) + content

    names = [f"image {i}" for i in range(info.num_images)]
    sizes = stored["size"].astype(np.int64)
    content = zlib.crc32(stored["crc32"].tobytes())
    return Source(".beton", info.classes, labels, names, sizes, read), (beton_fingerprint(stored, labels), content)


@dataclass(eq=False)
class CroppedImages(Dataset):
    """Data set of samples. An item is an augmented image, uint8 [size, size, 3], and its status."""

    source: Source
    crops: TrainCrops | CentreCrops
    augmenter: Augmenter | None
    samples: np.ndarray
    check: Callable | None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        sample = self.samples[number : number + 1]
        size = self.crops.size_of(sample)
        black = torch.zeros(size, size, 3, dtype=torch.uint8)
        try:
            content = self.source.read(int(sample["index"][0]))
        except Exception as error:  # the loader asks for the reason and reports it
            return black, NOT_READ if isinstance(error, OSError) else NOT_DECODED
        try:
            image = Image.fromarray(load_rgb(content, self.check))
        except Exception:  # Pillow's plugins raise many error types
            return black, NOT_DECODED
        (row,) = self.crops.rows(sample, np.array([image.height]), np.array([image.width]))
        result_HWC = cut(image, row, size)
        if self.augmenter:
            result_HWC = pillow.augment(result_HWC, self.augmenter.plan(sample, height=size, width=size), 0)
        return torch.from_numpy(result_HWC), DECODED


def cut(image: Image.Image, row: np.void, size: int) -> np.ndarray:
    """Crop, resize and flip an image with Pillow, as described by a `CROP_DTYPE` row: uint8 [size, size, 3]."""
    box = (int(row[name]) for name in ("top", "left", "height", "width"))
    resized = [int(row["resized_height"]), int(row["resized_width"])]
    image = F.resized_crop(image, *box, resized, INTERPOLATION[int(row["filter"])])
    image = F.crop(image, int(row["window_top"]), int(row["window_left"]), size, size)
    return np.array(F.hflip(image) if row["flip"] else image)
