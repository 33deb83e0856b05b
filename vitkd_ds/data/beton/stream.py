"""The images of a .beton as a stream of square micro-batches: FFCV's loader with our decoder.

FFCV hands an operation the slice of the order that makes a micro-batch, and the order that we give it has a row per
image (`vitkd_ds.data.order.SAMPLE_DTYPE`) in place of the bare number. Our operation cuts (`vitkd_ds.data.crops`),
decodes (`vitkd_ds.data.beton.decode`) and augments in one call of compiled code, without the interpreter's lock. FFCV
gives the thread that works ahead, the ring of pinned buffers, and CUDA's streams.
"""

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitkd_ds.data.augment.augmenter import Augmenter
from vitkd_ds.data.beton.decode import IMAGE_FAULTS, SHORT_READ, STATUS_TEXT, Decoder
from vitkd_ds.data.beton.ffcv import AllocationQuery, Operation, TamedLoader
from vitkd_ds.data.beton.format import beton_fingerprint, read_beton
from vitkd_ds.data.beton.read_ahead import ReadAhead
from vitkd_ds.data.crops import CentreCrops, TrainCrops

READ_AHEAD = 8
"""Micro-batches before an image is due that the page it lies on is asked for, in a quasi-random order."""


class CropDecoder(Operation):
    """FFCV's operation that turns samples into uint8 images [micro-batch, size, size, 3], RGB, and an int32 status per
    image, one of `vitkd_ds.data.beton.decode`'s. An image with a status other than DECODED is black."""

    def __init__(
        self, crops: TrainCrops | CentreCrops, augmenter: Augmenter | None, decoder: Decoder, *, num_threads: int
    ) -> None:
        super().__init__()
        self.crops = crops
        self.augmenter = augmenter
        self.decoder = decoder
        self.num_threads = num_threads

    def declare_state_and_memory(self, previous_state):
        """Ask FFCV for the two output buffers, per image."""
        size = self.crops.size
        image = AllocationQuery((size, size, 3), np.dtype("u1"))
        status = AllocationQuery((), np.dtype("i4"))
        return replace(previous_state, jit_mode=True, shape=image.shape, dtype=image.dtype), (image, status)

    def generate_code(self) -> Callable:
        """Give FFCV the function that it calls once per micro-batch."""
        return lambda samples, buffers, metadata, storage_state: self.decode(samples, *buffers)

    def decode(self, samples: np.ndarray, images_BHWC: np.ndarray, status_B: np.ndarray) -> tuple[np.ndarray, ...]:
        """Decode samples into the arrays given, and return these."""
        stored = self.decoder.table[samples["index"]]
        rows = self.crops.rows(samples, stored["height"], stored["width"])
        size = self.crops.size
        plan = self.augmenter.plan(samples, height=size, width=size) if self.augmenter else None
        self.decoder.decode(rows, images_BHWC, status_B, num_threads=self.num_threads, plan=plan)
        return images_BHWC, status_B


class CropLoader(TamedLoader):
    """The images of a .beton, through FFCV's loader with one `CropDecoder`: `vitkd_ds.data.images.Images`.

    Memory per rank: ``5 x micro-batch x size x size x 3`` bytes of ring, 161 MiB where the file has 1.28 million images
    (measured), and a scratch of a few crops per thread.
    """

    skippable = IMAGE_FAULTS
    unread = frozenset({SHORT_READ})

    def __init__(
        self,
        path: Path,
        crops: TrainCrops | CentreCrops,
        augmenter: Augmenter | None,
        *,
        micro_batch_size: int,
        num_workers: int,
        is_quasi_random: bool,
    ):
        info, table, self.labels = read_beton(path)
        if is_quasi_random and not info.shuffled:
            raise ValueError(
                f"data.train must be packed with --shuffle for data.order=quasi_random, found {str(path)!r} in the "
                f"order of its classes: pack it again, or use data.order=random"
            )
        self.path = str(path)
        self.classes = info.classes
        self._is_quasi_random = is_quasi_random
        self.fingerprint = beton_fingerprint(table, self.labels)
        self.content = zlib.crc32(table["crc32"].tobytes())
        self.decoder = Decoder(path, table)
        self.operation = CropDecoder(crops, augmenter, self.decoder, num_threads=num_workers)
        super().__init__(path, self.operation, micro_batch_size=micro_batch_size, num_workers=num_workers)
        self._page_bytes = int(self.reader.page_size)

    def close(self) -> None:
        """Close the file."""
        self.decoder.close()

    def pages(self) -> dict[str, Any]:
        """Places of the images, for `vitkd_ds.data.order.quasi_random_order`."""
        offsets_N = self.decoder.table["offset"]
        return {"offsets_N": offsets_N, "file_bytes": os.stat(self.fname).st_size, "page_bytes": self._page_bytes}

    def is_there(self, index: int) -> bool:
        """Whether the file is long enough to hold an image."""
        image = self.decoder.table[index]
        return int(image["offset"]) + int(image["size"]) <= os.fstat(self.decoder.fd).st_size

    def reason(self, index: int, status: int) -> str:
        """Name an image's fault."""
        return STATUS_TEXT[status]

    def decode(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode samples at once, in the calling thread."""
        size = self.operation.crops.size
        images_BHWC = np.zeros((len(samples), size, size, 3), np.uint8)
        status_B = np.zeros(len(samples), np.int32)
        return self.operation.decode(samples, images_BHWC, status_B)

    def decoded(self, samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Decode samples in order, some micro-batches ahead; each is valid until the next is asked for."""
        self.decoder.check_anew_if_changed()
        source = self.results(samples)
        return (
            self._asking_for_pages(source, samples) if self._is_quasi_random else self._reading_ahead(source, samples)
        )

    def _reading_ahead(self, source: Iterator, samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Read the images of the next micro-batches before they are due, where the disk is slow."""
        with closing(source), ReadAhead(self.decoder, samples["index"], micro_batch_size=self.batch_size) as ahead:
            for micro_batch in source:
                ahead.taken()
                yield micro_batch

    def _asking_for_pages(self, source: Iterator, samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ask the operating system for whole pages of the file before their images are due; it reads them meanwhile."""
        asked: set[int] = set()
        with closing(source):
            for first in range(0, len(samples), self.batch_size):
                soon = samples[first : first + READ_AHEAD * self.batch_size]
                pages = set((self.decoder.table["offset"][soon["index"]] // self._page_bytes).tolist())
                for page in sorted(pages - asked):
                    os.posix_fadvise(self.decoder.fd, page * self._page_bytes, self._page_bytes, os.POSIX_FADV_WILLNEED)
                asked |= pages
                yield next(source)
