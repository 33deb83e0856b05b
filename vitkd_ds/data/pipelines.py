"""The FFCV operation that turns stored bytes into a square image: decode, crop, resize, flip.

One operation serves training and validation, because where to cut is not decided here: FFCV hands an operation the
slice of the epoch's order that makes a micro-batch, and the order we give it has a whole crop row per image
(`vitkd_ds.data.crops`) in place of the bare image number. So the compiled code is free of randomness, needs no
recompilation per epoch, and two iterators of different epochs may live side by side.

Unlike FFCV's own decoders it reports an image that cannot be decoded (theirs leave the previous image's pixels in place
and say nothing), and it decodes into a buffer per image in work, not per image in the ring, which saves
``(batches_ahead + 2) * micro-batch * largest image`` bytes.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from vitkd_ds.data.backend import IMAGE_MODES, AllocationQuery, Compiler, Operation, imdecode, resize_crop
from vitkd_ds.data.crops import FLIP, HEIGHT, INDEX, LEFT, TOP, WIDTH

DECODED = 0
"""Status of an image whose pixels may be used."""
BAD_JPEG = 1
BAD_SIZE = 2
STATUS_TEXT = {BAD_JPEG: "is a damaged JPEG", BAD_SIZE: "has another number of bytes than its height and width need"}


class CropDecoder(Operation):
    """Decoder of the image field: each row of the order names an image, a box in it and a flip.

    Gives a pair: uint8 images [micro-batch, size, size, 3], RGB, and an int32 status per image, `DECODED` or a reason.
    The box is resized with OpenCV's INTER_AREA (a box filter down, bilinear up), the only one FFCV has.

    Args:
        size: height and width of the result, in pixels.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def declare_state_and_memory(self, previous_state):
        """Ask FFCV for the two output buffers, per image."""
        image, status = AllocationQuery((self.size, self.size, 3), np.dtype("u1")), AllocationQuery((), np.dtype("i4"))
        return replace(previous_state, jit_mode=True, shape=image.shape, dtype=image.dtype), (image, status)

    def generate_code(self) -> Callable:
        """Give FFCV the function to compile: called once per micro-batch, images in parallel."""
        jpg, raw = IMAGE_MODES["jpg"], IMAGE_MODES["raw"]
        read, images_range = self.memory_read, Compiler.get_iterator()
        decode_jpeg, resize_box = Compiler.compile(imdecode), Compiler.compile(resize_crop)
        mirror = Compiler.compile(_mirror)

        def decode(rows, buffers, metadata, storage_state):
            images, status = buffers
            for i in images_range(len(rows)):
                row = rows[i]
                stored = metadata[row[INDEX]]
                content = read(stored["data_ptr"], storage_state)
                height, width = np.int64(stored["height"]), np.int64(stored["width"])
                pixels = content[:0].reshape(0, 0, 3)
                status[i] = BAD_SIZE
                if stored["mode"] == jpg:
                    pixels = np.empty((height, width, 3), np.uint8)
                    failed = decode_jpeg(content, pixels, height, width, height, width, 0, 0, 1, 1, False, False)
                    status[i] = BAD_JPEG if failed else DECODED
                elif stored["mode"] == raw and content.size == height * width * 3:
                    pixels = content.reshape(height, width, 3)
                    status[i] = DECODED
                if status[i] == DECODED:
                    top, left = row[TOP], row[LEFT]
                    resize_box(pixels, top, top + row[HEIGHT], left, left + row[WIDTH], images[i])
                    if row[FLIP]:
                        mirror(images[i])
            return images[: len(rows)], status[: len(rows)]

        decode.is_parallel = True
        return decode


def _mirror(image_HWC: np.ndarray) -> None:
    """Flip left and right in place; compiled by FFCV."""
    width = image_HWC.shape[1]
    for y in range(image_HWC.shape[0]):
        for x in range(width // 2):
            for c in range(3):
                left = image_HWC[y, x, c]
                image_HWC[y, x, c] = image_HWC[y, width - 1 - x, c]
                image_HWC[y, width - 1 - x, c] = left
