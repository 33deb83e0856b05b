"""Decode, crop, resize, flip and augment stored images into square ones, a micro-batch per call.

The work is done by C++ in `csrc/`, which this file loads and hands arrays to. Python's lock is free during a call, so
decoding runs beside the training step. Nothing is random here: where to cut comes in the rows of `vitkd_ds.data.crops`,
and what comes after in a `vitkd_ds.data.augment.augmenter.Plan`. Pixels are those of Pillow's `crop` and `resize`, bit
for bit, on any CPU and for any number of threads. An image that cannot be decoded is reported and left black; it never
shows another image's pixels.

Only what a crop needs is decoded, so damage outside of it is found by the CRC alone. In a JPEG whose restart markers
divide its rows, as `vitkd-ds pack` writes them, that is the segments between markers that the crop meets; in others it
is all from the first pixel to the crop's last row. Two things differ from Pillow:
before version 13 it resized in width first even where the height shrinks far more, which rounds differently, and it
smooths progressive JPEGs that lack scans.
"""

import ctypes
import logging
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np

from vitkd_ds.data.augment.augmenter import Plan
from vitkd_ds.data.augment.noise import NUM_QUANTILES, RECTANGLE_DTYPE
from vitkd_ds.data.augment.operations import OPERATION_DTYPE
from vitkd_ds.data.beton.format import STORED_DTYPE
from vitkd_ds.data.crops import CROP_DTYPE

logger = logging.getLogger(__name__)

DECODED, BAD_JPEG, BAD_SIZE, SHORT_READ, BAD_CRC, BAD_COLOURS, BAD_ROW, NO_MEMORY = range(8)
MISSING_SCANS, UNKNOWN_KIND = 8, 9
"""Status of an image; the pixels of a `DECODED` one may be used. The same numbers as in `csrc/decode.h`."""
STATUS_TEXT = {
    BAD_JPEG: "is a damaged JPEG",
    BAD_SIZE: "has another height, width or number of bytes than the file's table says",
    SHORT_READ: "cannot be read whole (the file ends before it does, or the disk fails)",
    BAD_CRC: "has other bytes than when it was packed (its CRC-32 differs)",
    BAD_COLOURS: "is a JPEG that is neither RGB nor grey",
    BAD_ROW: "was asked for by a row that is out of range",
    NO_MEMORY: "needs more memory than there is",
    MISSING_SCANS: "is a JPEG that lacks some of its scans",
    UNKNOWN_KIND: "is a JPEG of a kind that libjpeg does not read, such as lossless or of 12 bits",
}
"""Ends of the sentence "image 7 ..."."""
IMAGE_FAULTS = frozenset({BAD_JPEG, BAD_SIZE, BAD_CRC, BAD_COLOURS, MISSING_SCANS, UNKNOWN_KIND})
"""What is wrong with the image; the others say that the disk, the memory or the caller failed."""


def _load_library() -> ctypes.CDLL:
    # VITKD_DS_DECODER is set in the images of slurm/: there the code is a checkout's, in which nothing was built.
    folders = [*filter(None, [os.environ.get("VITKD_DS_DECODER")]), str(Path(__file__).parent)]
    paths = [Path(folder, f"_decode{suffix}") for folder in folders for suffix in EXTENSION_SUFFIXES]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise ImportError(
            f"{paths[0].name!r} must be built before images can be decoded, found none in {' or '.join(folders)} "
            f"(VITKD_DS_DECODER and the package): run `make setup`"
        )
    library = ctypes.CDLL(str(found))
    if not hasattr(library, "vitkd_augment"):
        raise ImportError(f"{str(found)!r} must be this version's decoder, found an older one: run `make setup`")
    number, pointer, long = ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64
    table_and_rows = [pointer, long, pointer, long]
    library.vitkd_decode.argtypes = [number, *table_and_rows, number, number, pointer, pointer, pointer, number]
    library.vitkd_augment.argtypes = [pointer, long, number, number, pointer, number]
    library.vitkd_read_ahead.argtypes = [number, *table_and_rows, number, pointer]
    library.vitkd_resize.argtypes = [pointer, number, number, pointer, number, number, pointer]
    library.vitkd_restart_interval.argtypes = [number, number]
    library.vitkd_transcode.argtypes = [ctypes.c_char_p, ctypes.c_uint64, pointer, ctypes.c_uint64]
    library.vitkd_transcode.restype = ctypes.c_uint64
    return library


_library = _load_library()
WIDEST = 0
"""As the bytes of a vector: the widest that this CPU has; the fuzzer alone asks for others."""


def _check(name: str, array: np.ndarray, dtype: np.dtype, shape: tuple[int | None, ...], *, writeable: bool) -> None:
    """Raise ValueError unless `array` is what C may touch; None in `shape` stands for any length."""
    wanted = f"{name} must be a C-contiguous array of dtype {dtype} and shape {shape} (None: any)"
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        raise ValueError(f"{wanted}, found {getattr(array, 'dtype', type(array).__name__)}: convert it")
    if array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape)):
        raise ValueError(f"{wanted}, found shape {array.shape}: give one row, image and status per image")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(f"{wanted}, found strides {array.strides}: copy it with np.ascontiguousarray")
    if writeable and not array.flags.writeable:
        raise ValueError(f"{wanted}, which is written to, found it read-only: copy it")


def check_plan(plan: Plan, num_images: int) -> None:
    """Raise ValueError unless C may read the plan for so many images."""
    _check("plan.operations", plan.operations, OPERATION_DTYPE, (num_images, len(plan.layers)), writeable=False)
    _check("plan.rectangles", plan.rectangles, RECTANGLE_DTYPE, (num_images,), writeable=False)
    _check("plan.levels", plan.levels, np.dtype("u1"), (3, NUM_QUANTILES), writeable=False)


def augment(images_BHWC: np.ndarray, plan: Plan) -> None:
    """Augment decoded images, uint8 [B, H, W, 3], in place, as `Decoder.decode` does with a plan."""
    _check("images_BHWC", images_BHWC, np.dtype("u1"), (None, None, None, 3), writeable=True)
    check_plan(plan, len(images_BHWC))
    if _library.vitkd_augment(images_BHWC.ctypes.data, *images_BHWC.shape[:3], ctypes.byref(plan.as_struct()), WIDEST):
        raise ValueError(f"the plan must be one for images of shape {images_BHWC.shape}, found another: draw it anew")


def restart_interval(width: int, mcu_width: int) -> int:
    """Choose how many MCUs, the blocks of a JPEG that belong together, stand between two restart markers, so that
    crops are decoded fast: a divisor of those in a row. Both widths are in pixels."""
    return _library.vitkd_restart_interval(width, mcu_width)


def with_restart_markers(jpeg: bytes) -> bytes | None:
    """Write a JPEG once more with restart markers, as one baseline scan of the same coefficients, and without what does
    not matter for pixels, such as EXIF. None where it is damaged, or has no such form."""
    written = np.empty(2 * len(jpeg) + 2**16, np.uint8)
    size = _library.vitkd_transcode(jpeg, len(jpeg), written.ctypes.data, len(written))
    return written[:size].tobytes() if size else None


class Decoder:
    """An open file whose images are decoded by rows.

    Calls from several threads at once are safe, as long as each has its own outputs and none is under way at `close`.

    Args:
        path: the file; only its bytes are read, at the offsets in `table`.
        table: STORED_DTYPE [number of images]; kept, not copied, as `checked` is written to.
    """

    fd: int | None = None

    def __init__(self, path: str | os.PathLike, table: np.ndarray):
        _check("table", table, STORED_DTYPE, (None,), writeable=True)
        self._path = os.fspath(path)
        self.table = table
        self.fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        self._identity = self._look()

    def _look(self) -> list[tuple[int, ...]]:
        """What changes when the open file, or the one that has its path now, is written to or replaced."""
        stats = [os.fstat(self.fd)]
        if os.path.exists(self._path):  # a file may be removed while it is open
            stats.append(os.stat(self._path))
        # A time of modification can be set, the ctime cannot.
        return [(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats]

    def check_anew_if_changed(self) -> None:
        """Compare the CRC of every image again if the file was written to or replaced since the last look: one that was
        only touched is as good as before, and one that was changed shows it image by image."""
        identity = self._look()
        if identity != self._identity:
            logger.warning("%r was changed or replaced while it was open: all images are checked anew", self._path)
            self._identity = identity
            self.table["checked"] = 0

    def decode(
        self,
        rows: np.ndarray,
        images_BHWC: np.ndarray,
        status_B: np.ndarray,
        *,
        num_threads: int,
        plan: Plan | None = None,
    ) -> None:
        """Decode a micro-batch, and augment it if there is a plan.

        Args:
            rows: CROP_DTYPE [B], see `vitkd_ds.data.crops`.
            images_BHWC: uint8 [B, size, size, 3], filled with RGB pixels; black where the status is not `DECODED`.
            status_B: int32 [B], filled with `DECODED` or the reason of each image.
            num_threads: threads that share the rows, this one included; makes no difference to the result.
            plan: of the same images.

        Raises:
            ValueError: an array of another dtype, shape or strides, no thread, or a closed decoder.
        """
        _check("rows", rows, CROP_DTYPE, (None,), writeable=False)
        size = images_BHWC.shape[1] if isinstance(images_BHWC, np.ndarray) and images_BHWC.ndim == 4 else None
        _check("images_BHWC", images_BHWC, np.dtype("u1"), (len(rows), size, size, 3), writeable=True)
        _check("status_B", status_B, np.dtype("i4"), (len(rows),), writeable=True)
        if plan is not None:
            check_plan(plan, len(rows))
        self._check_open()
        arguments = (self.table.ctypes.data, len(self.table), rows.ctypes.data, len(rows), size, num_threads)
        struct = None if plan is None else ctypes.byref(plan.as_struct())
        if _library.vitkd_decode(self.fd, *arguments, struct, images_BHWC.ctypes.data, status_B.ctypes.data, WIDEST):
            raise ValueError(
                f"size must be in [1, 4096] and num_threads at least 1, found images_BHWC of size {size} and "
                f"num_threads {num_threads}: set data.image_size and data.num_workers"
            )

    def _check_open(self) -> None:
        if self.fd is None:
            raise ValueError(f"the decoder of {self._path!r} must be open, found it closed: make a new one")

    def read_ahead(self, indices: np.ndarray, *, num_threads: int) -> np.ndarray:
        """Read images and forget them, so that the operating system has their bytes when they are decoded; return how
        long each took, in seconds. What cannot be read is left to `decode`, which says so.

        Args:
            indices: int64 [N], rows of the table.
            num_threads: threads that read at the same time.
        """
        _check("indices", indices, np.dtype("i8"), (None,), writeable=False)
        self._check_open()
        seconds = np.zeros(len(indices))
        arguments = (self.table.ctypes.data, len(self.table), indices.ctypes.data, len(indices), num_threads)
        if _library.vitkd_read_ahead(self.fd, *arguments, seconds.ctypes.data):
            raise ValueError(
                f"images to read must be rows of a table of {len(self.table)}, by 1 or more threads, found rows "
                f"{indices.min(initial=0)} to {indices.max(initial=0)} and {num_threads} threads: give others"
            )
        return seconds

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def __del__(self):
        self.close()
