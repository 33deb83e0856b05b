"""Decode stored images and turn them into augmented square crops, one micro-batch per call.

This module loads the C++ library of `csrc/` and passes arrays to it. The GIL is released during a call, so decoding
overlaps with the training step. Nothing is random here: `vitkd_ds.data.crops` computes the boxes, and
`vitkd_ds.data.augment.augmenter.Plan` describes the augmentation. The pixels equal the results of Pillow's `crop`
and `resize` bit for bit, on any CPU and with any number of threads. If an image cannot be decoded, its status says why,
and its pixels are black. It never gets the pixels of another image.

Only the data that a crop needs is decoded. Damage elsewhere in the image is found only by its CRC-32. In a JPEG with
rows divided by restart markers, as in files from `vitkd-ds pack`, only the segments that intersect the crop are
decoded. In other JPEGs, everything from the first pixel to the last row of the crop is decoded.

There are two differences from Pillow. Pillow before version 13 always resizes the width first, even if the height
shrinks far more, so the rounding differs. Pillow also smooths progressive JPEGs that lack scans.
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
"""Status of an image, with the same numbers as in `csrc/decode.h`. Pixels are valid only if the status is `DECODED`."""
STATUS_TEXT = {
    BAD_JPEG: "is a damaged JPEG",
    BAD_SIZE: "differs in height, width or number of bytes from the file's table",
    SHORT_READ: "cannot be read completely (the file is cut short, or the disk fails)",
    BAD_CRC: "has changed since it was packed (its CRC-32 differs)",
    BAD_COLOURS: "is a JPEG that is neither RGB nor grey",
    BAD_ROW: "was requested by an index out of range",
    NO_MEMORY: "needs more memory than available",
    MISSING_SCANS: "is a JPEG with missing scans",
    UNKNOWN_KIND: "is a JPEG of a kind that libjpeg cannot read, such as lossless or 12-bit",
}
"""Description of each status, as the end of a sentence that starts with "image 7"."""
IMAGE_FAULTS = frozenset({BAD_JPEG, BAD_SIZE, BAD_CRC, BAD_COLOURS, MISSING_SCANS, UNKNOWN_KIND})
"""Statuses that mean a faulty image. The other statuses mean a fault of the disk, the memory or the caller."""


def _load_library() -> ctypes.CDLL:
    # The container images of slurm/ set VITKD_DS_DECODER, since they run a checkout without build outputs.
    folders = [*filter(None, [os.environ.get("VITKD_DS_DECODER")]), str(Path(__file__).parent)]
    paths = [Path(folder, f"_decode{suffix}") for folder in folders for suffix in EXTENSION_SUFFIXES]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise ImportError(
            f"the compiled decoder {paths[0].name!r} is not in {' or '.join(folders)} ($VITKD_DS_DECODER, if set, and "
            "the package's folder). Run `make setup` to build it."
        )
    library = ctypes.CDLL(str(found))
    if not hasattr(library, "vitkd_augment"):
        raise ImportError(f"{str(found)!r} was built by an older version. Run `make setup` to rebuild it.")
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
"""Vector size in bytes for the compiled code. 0 means the CPU's widest; only the fuzzer uses other values."""


def _check(name: str, array: np.ndarray, dtype: np.dtype, shape: tuple[int | None, ...], *, writeable: bool) -> None:
    """Raise ValueError unless C code may access `array`; None in `shape` matches any length."""
    wanted = f"{name} must be a C-contiguous array of dtype {dtype} and shape {shape} (None: any)"
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        raise ValueError(f"{wanted}, got {getattr(array, 'dtype', type(array).__name__)}. Convert it.")
    if array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape)):
        raise ValueError(f"{wanted}, got shape {array.shape}. Pass one row, image and status per image.")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(f"{wanted}, got strides {array.strides}. Copy it with np.ascontiguousarray.")
    if writeable and not array.flags.writeable:
        raise ValueError(f"{wanted} and writeable, got a read-only array. Copy it.")


def check_plan(plan: Plan, num_images: int) -> None:
    """Raise ValueError unless C code may read the plan for this number of images."""
    _check("plan.operations", plan.operations, OPERATION_DTYPE, (num_images, len(plan.layers)), writeable=False)
    _check("plan.rectangles", plan.rectangles, RECTANGLE_DTYPE, (num_images,), writeable=False)
    _check("plan.levels", plan.levels, np.dtype("u1"), (3, NUM_QUANTILES), writeable=False)


def augment(images_BHWC: np.ndarray, plan: Plan) -> None:
    """Augment decoded images, uint8 [B, H, W, 3], in place, as `Decoder.decode` does with a plan."""
    _check("images_BHWC", images_BHWC, np.dtype("u1"), (None, None, None, 3), writeable=True)
    check_plan(plan, len(images_BHWC))
    if _library.vitkd_augment(images_BHWC.ctypes.data, *images_BHWC.shape[:3], ctypes.byref(plan.as_struct()), WIDEST):
        raise ValueError(f"the plan does not fit images of shape {images_BHWC.shape}. Draw a new one.")


def restart_interval(width: int, mcu_width: int) -> int:
    """Return how many MCUs should lie between two restart markers of a JPEG, so that crops are fast to decode.

    An MCU is a block of pixels that a JPEG codes as a unit. The returned number divides the number of MCUs per row.

    Args:
        width: width of the image in pixels.
        mcu_width: width of an MCU in pixels.
    """
    return _library.vitkd_restart_interval(width, mcu_width)


def with_restart_markers(jpeg: bytes) -> bytes | None:
    """Rewrite a JPEG as one baseline scan with restart markers; keep its coefficients, and drop its metadata.

    Returns:
        The new JPEG, or None if the original is damaged or cannot be written as a baseline JPEG.
    """
    written = np.empty(2 * len(jpeg) + 2**16, np.uint8)
    size = _library.vitkd_transcode(jpeg, len(jpeg), written.ctypes.data, len(written))
    return written[:size].tobytes() if size else None


class Decoder:
    """Decoder of the images in an open file.

    Several threads may call `decode` at the same time if each call has its own output arrays. No call may be running
    when `close` is called.

    Args:
        path: file that contains the bytes of each image at the offset given in `table`.
        table: STORED_DTYPE [number of images]. It is not copied, and its field `checked` is modified.
    """

    fd: int | None = None

    def __init__(self, path: str | os.PathLike, table: np.ndarray):
        _check("table", table, STORED_DTYPE, (None,), writeable=True)
        self._path = os.fspath(path)
        self.table = table
        self.fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        self._identity = self._look()

    def _look(self) -> list[tuple[int, ...]]:
        """Return values that change if the open file is modified, or if another file is moved to its path."""
        stats = [os.fstat(self.fd)]
        if os.path.exists(self._path):  # a file may be removed while it is open
            stats.append(os.stat(self._path))
        # Include the ctime, because the modification time can be set.
        return [(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats]

    def check_anew_if_changed(self) -> None:
        """If the file was modified or replaced since the last call, check the CRC-32 of every image again.

        Each image is checked when it is decoded next. An image whose bytes have not changed passes the check, so
        changing only the file's modification time does no harm.
        """
        identity = self._look()
        if identity != self._identity:
            logger.warning("%r was changed or replaced while it was open; checking all images again", self._path)
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
            images_BHWC: output, uint8 RGB [B, size, size, 3]. An image is black if its status is not `DECODED`.
            status_B: output, int32 [B]: the status of each image.
            num_threads: number of threads, including the calling thread. It does not affect the result.
            plan: augmentation of these images; None leaves them as they are.

        Raises:
            ValueError: an array has a wrong dtype, shape or memory layout, `size` or `num_threads` is out of range, or
                the decoder is closed.
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
                f"size must be in [1, 4096] and num_threads at least 1, got images_BHWC of size {size} and "
                f"num_threads {num_threads}. Set data.image_size and data.num_workers."
            )

    def _check_open(self) -> None:
        if self.fd is None:
            raise ValueError(f"the decoder of {self._path!r} is closed. Create a new one.")

    def read_ahead(self, indices: np.ndarray, *, num_threads: int) -> np.ndarray:
        """Read images into the page cache before they are decoded; return each read's duration in seconds, float64 [N].

        Read errors are ignored here, because `decode` will report them.

        Args:
            indices: rows of the table, int64 [N].
            num_threads: number of concurrent reads.
        """
        _check("indices", indices, np.dtype("i8"), (None,), writeable=False)
        self._check_open()
        seconds = np.zeros(len(indices))
        arguments = (self.table.ctypes.data, len(self.table), indices.ctypes.data, len(indices), num_threads)
        if _library.vitkd_read_ahead(self.fd, *arguments, seconds.ctypes.data):
            raise ValueError(
                f"indices must be in [0, {len(self.table)}) and num_threads at least 1, got indices "
                f"{indices.min(initial=0)} to {indices.max(initial=0)} and num_threads {num_threads}"
            )
        return seconds

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def __del__(self):
        self.close()
