"""FFCV's pipeline with our decoder: one operation that turns samples of an epoch's order into square images.

FFCV hands an operation the slice of the order that makes a micro-batch, and the order we give it is a row per image
(`vitkd_ds.data.order.SAMPLE_DTYPE`) in place of the bare number. The operation cuts (`vitkd_ds.data.crops`) and decodes
(`vitkd_ds.data.beton.decode`) in one call of compiled code, without the interpreter's lock. FFCV gives the thread that works
ahead, the ring of pinned buffers, and CUDA's streams.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitkd_ds.data.beton.decode import IMAGE_FAULTS, STATUS_TEXT, Decoder
from vitkd_ds.data.beton.ffcv import (
    AllocationQuery,
    Compiler,
    FFCVLoader,
    Graph,
    MemoryContext,
    MemoryManager,
    Operation,
    PipelineSpec,
    Reader,
)
from vitkd_ds.data.beton.format import beton_fingerprint, read_beton
from vitkd_ds.data.beton.iterate import decoded
from vitkd_ds.data.crops import CentreCrops, TrainCrops

BATCHES_AHEAD = 3
"""Micro-batches decoded ahead; FFCV's ring holds two more."""
READ_AHEAD = 8
"""Micro-batches before an image is due that the page it lies on is asked for, in a quasi-random order."""


class CropDecoder(Operation):
    """Decoder of the image field.

    Gives a pair: uint8 images [micro-batch, size, size, 3], RGB, and an int32 status per image, one of
    `vitkd_ds.data.beton.decode`'s. An image with a status other than DECODED is black.
    """

    def __init__(self, crops: TrainCrops | CentreCrops, decoder: Decoder, *, num_threads: int):
        super().__init__()
        self.crops, self.decoder, self.num_threads = crops, decoder, num_threads

    def declare_state_and_memory(self, previous_state):
        """Ask FFCV for the two output buffers, per image."""
        size = self.crops.size
        image, status = AllocationQuery((size, size, 3), np.dtype("u1")), AllocationQuery((), np.dtype("i4"))
        return replace(previous_state, jit_mode=True, shape=image.shape, dtype=image.dtype), (image, status)

    def generate_code(self) -> Callable:
        """Give FFCV the function that it calls once per micro-batch."""
        return self._decode

    def _decode(self, samples: np.ndarray, buffers: tuple, metadata, storage_state) -> tuple[np.ndarray, np.ndarray]:
        images_BHWC, status_B = buffers
        self.decode(samples, images_BHWC, status_B)
        return images_BHWC, status_B

    def decode(self, samples: np.ndarray, images_BHWC: np.ndarray, status_B: np.ndarray) -> None:
        """Decode samples into the arrays given."""
        stored = self.decoder.table[samples["index"]]
        rows = self.crops.rows(samples, stored["height"], stored["width"])
        self.decoder.decode(rows, images_BHWC, status_B, num_threads=self.num_threads)


class _NoMemory(MemoryManager, MemoryContext):
    """FFCV's memory manager, for a pipeline that reads by itself. FFCV's own holds a set per image in Python's memory,
    700 MB for ImageNet, and maps the file, which ends the process when another one shortens it."""

    state_type, state = None, None

    def __init__(self):
        pass

    def compile_reader(self):
        """Nothing reads through FFCV."""

    def schedule_epoch(self, batches):
        """Nothing has to be loaded for an epoch."""
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None


class CropLoader(FFCVLoader):
    """The images of a .beton, through FFCV's loader with one `CropDecoder`: `vitkd_ds.data.images.Images`.

    Memory per rank: ``5 x micro-batch x size x size x 3`` bytes of ring, 161 MiB where the file has 1.28 million images
    (measured), and a scratch of a few crops per thread.
    """

    def __init__(self, path: Path, crops: TrainCrops | CentreCrops, *, micro_batch_size: int, num_threads: int,
                 is_quasi_random: bool):  # fmt: skip
        # Not super().__init__: it builds the original of the memory manager above, and nothing in it can be declined.
        info, table, self.labels = read_beton(path)
        if is_quasi_random and not info.shuffled:
            raise ValueError(
                f"data.train must be packed with --shuffle for data.order=quasi_random, found {str(path)!r} in the "
                f"order of its classes: pack it again, or use data.order=random"
            )
        self.path, self.fname, self.classes = str(path), str(path), info.classes
        self.batch_size, self.batches_ahead, self.num_workers = micro_batch_size, BATCHES_AHEAD, num_threads
        self.traversal_order, self.recompile, self.memory_manager = None, False, _NoMemory()
        self.reader = Reader(self.fname)
        self.decoder = Decoder(path, table)
        self.operation = CropDecoder(crops, self.decoder, num_threads=num_threads)
        self.field_name_to_f_ix = {name: i for i, name in enumerate(self.reader.field_names)}
        self.graph = Graph(
            {"image": PipelineSpec("image", decoder=self.operation)},
            self.reader.handlers,
            self.field_name_to_f_ix,
            self.reader.metadata,
            memory_read=None,
        )
        self.generate_code()
        self._page_bytes, self._is_quasi_random = int(self.reader.page_size), is_quasi_random
        self.reader.alloc_table = None  # 24 bytes per image, which the decoder's table holds already

    skippable = IMAGE_FAULTS

    def generate_code(self) -> None:
        """Let FFCV join the operations, in Python: our only one is compiled already."""
        was_enabled = Compiler.is_enabled
        Compiler.set_enabled(False)
        try:
            super().generate_code()
        finally:
            Compiler.set_enabled(was_enabled)

    def fingerprint(self) -> int:
        """A number that is another one where images have other numbers, labels or places."""
        return beton_fingerprint(self.decoder.table, self.labels)

    def layout(self) -> dict[str, Any]:
        """Where the images lie, for `vitkd_ds.data.order.quasi_random_order`."""
        offsets_N = self.decoder.table["offset"]
        return {"offsets_N": offsets_N, "file_bytes": os.stat(self.fname).st_size, "page_bytes": self._page_bytes}

    def reason(self, index: int, status: int) -> str:
        """What is wrong with an image, by its status."""
        return STATUS_TEXT[status]

    def decode(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode samples at once, in the calling thread: images and status as `CropDecoder` gives them."""
        size = self.operation.crops.size
        images_BHWC, status_B = np.zeros((len(samples), size, size, 3), np.uint8), np.zeros(len(samples), np.int32)
        self.operation.decode(samples, images_BHWC, status_B)
        return images_BHWC, status_B

    def decoded(self, samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Decode samples in order, a micro-batch at a time, some ahead; see `vitkd_ds.data.beton.iterate.decoded`."""
        self.decoder.check_anew_if_changed()
        source = decoded(self, samples)
        if not self._is_quasi_random:
            return source
        return self._reading_ahead(source, samples)

    def _reading_ahead(self, source: Iterator, samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
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
