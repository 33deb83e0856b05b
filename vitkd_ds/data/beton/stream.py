"""Training backend for .betons: FFCV's loader with our decoder as its only operation.

FFCV calls our operation once per micro-batch, with a slice of the order. In FFCV, an order consists of image numbers;
here it consists of SAMPLE_DTYPE rows (`vitkd_ds.data.order`). Our operation first draws the crops
(`vitkd_ds.data.crops`). One call of compiled code then decodes (`vitkd_ds.data.beton.decode`) and augments the images,
without the GIL. FFCV provides the ring of pinned buffers, CUDA streams, and the thread that works ahead of the training
loop.
"""

import math
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
"""Number of micro-batches whose file pages are prefetched if the order is quasi-random."""


class CropDecoder(Operation):
    """FFCV operation that maps samples to uint8 RGB images [micro-batch, size, size, 3] and their int32 statuses.

    FFCV's buffers have the largest size of the crops. Smaller images fill the first bytes of a buffer.
    `vitkd_ds.data.beton.decode` defines the statuses. An image is black if its status is not DECODED.
    """

    def __init__(
        self, crops: TrainCrops | CentreCrops, augmenter: Augmenter | None, decoder: Decoder, *, num_threads: int
    ) -> None:
        super().__init__()
        self.crops = crops
        self.augmenter = augmenter
        self.decoder = decoder
        self.num_threads = num_threads

    def declare_state_and_memory(self, previous_state):
        """Request two output buffers from FFCV, each by its shape and dtype for one image."""
        size = self.crops.size
        image = AllocationQuery((size, size, 3), np.dtype("u1"))
        status = AllocationQuery((), np.dtype("i4"))
        return replace(previous_state, jit_mode=True, shape=image.shape, dtype=image.dtype), (image, status)

    def generate_code(self) -> Callable:
        """Return the function that FFCV calls once per micro-batch."""
        return lambda samples, buffers, metadata, storage_state: self.decode(samples, *buffers)

    def decode(self, samples: np.ndarray, images_BHWC: np.ndarray, status_B: np.ndarray) -> tuple[np.ndarray, ...]:
        """Decode samples into the given arrays, and return views of these arrays."""
        stored = self.decoder.table[samples["index"]]
        rows = self.crops.rows(samples, stored["height"], stored["width"])
        size = self.crops.size_of(samples)
        shape = (len(samples), size, size, 3)
        images_BHWC = images_BHWC.reshape(-1)[: math.prod(shape)].reshape(shape)
        plan = self.augmenter.plan(samples, height=size, width=size) if self.augmenter else None
        self.decoder.decode(rows, images_BHWC, status_B, num_threads=self.num_threads, plan=plan)
        return images_BHWC, status_B


class CropLoader(TamedLoader):
    """Loader of a .beton that uses FFCV's loader with one `CropDecoder`; implements `vitkd_ds.data.images.Images`.

    Memory per rank: the ring of buffers takes ``5 x micro-batch x size x size x 3`` bytes. A file with 1.28 million
    images takes a further 161 MiB (measured). Each thread also needs scratch space for a few crops.
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
                f"data.order=quasi_random needs a shuffled file, but {str(path)!r} is sorted by class. Pack it again "
                "with --shuffle, or use data.order=random."
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
        """Return the layout of the file: the first three arguments of `vitkd_ds.data.order.quasi_random_order`."""
        offsets_N = self.decoder.table["offset"]
        return {"offsets_N": offsets_N, "file_bytes": os.stat(self.fname).st_size, "page_bytes": self._page_bytes}

    def is_there(self, index: int) -> bool:
        """Return whether the file is long enough to contain image `index`."""
        image = self.decoder.table[index]
        return int(image["offset"]) + int(image["size"]) <= os.fstat(self.decoder.fd).st_size

    def reason(self, index: int, status: int) -> str:
        """Return why an image was not decoded, as the end of a sentence that starts with "image 7"."""
        return STATUS_TEXT[status]

    def decode(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode a few samples at once, in the calling thread."""
        size = self.operation.crops.size
        images_BHWC = np.zeros((len(samples), size, size, 3), np.uint8)
        status_B = np.zeros(len(samples), np.int32)
        return self.operation.decode(samples, images_BHWC, status_B)

    def decoded(self, samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield micro-batches of samples in order, decoded ahead; each is valid until the next one is requested."""
        self.decoder.check_anew_if_changed()
        source = self.results(samples)
        return (
            self._asking_for_pages(source, samples) if self._is_quasi_random else self._reading_ahead(source, samples)
        )

    def _reading_ahead(self, source: Iterator, samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the micro-batches of `source`, while a thread reads the images of later ones if the disk is slow."""
        with closing(source), ReadAhead(self.decoder, samples["index"], micro_batch_size=self.batch_size) as ahead:
            for micro_batch in source:
                ahead.taken()
                yield micro_batch

    def _asking_for_pages(self, source: Iterator, samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the micro-batches of `source`; ask the operating system to prefetch the file pages of later ones."""
        asked: set[int] = set()
        with closing(source):
            for first in range(0, len(samples), self.batch_size):
                soon = samples[first : first + READ_AHEAD * self.batch_size]
                pages = set((self.decoder.table["offset"][soon["index"]] // self._page_bytes).tolist())
                for page in sorted(pages - asked):
                    os.posix_fadvise(self.decoder.fd, page * self._page_bytes, self._page_bytes, os.POSIX_FADV_WILLNEED)
                asked |= pages
                yield next(source)
