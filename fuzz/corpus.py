"""Write the corpus for decode_fuzz: photographs as JPEGs of every kind.

    python fuzz/corpus.py DST [PHOTO...]

The photographs are packaged Fashion-MNIST images in several sizes, with noise, so that all coefficients occur. Further
JPEGs given as PHOTO are copied unchanged.
"""

import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vitkd_ds.data.beton.format import read_beton
from vitkd_ds.data.demo import demo_beton

SIZES = ((1, 1), (28, 28), (17, 40), (100, 33), (160, 120))
"""Width and height, in pixels."""
SUBSAMPLINGS = {"444": 0, "422": 1, "420": 2}
KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "optimised": {"optimize": True},
    "restarts": {"restart_marker_blocks": 1, "optimize": True},
    "restart_rows": {"restart_marker_rows": 1},
    "restarts_across_rows": {"restart_marker_blocks": 3},
    "coarse": {"quality": 5},
    "fine": {"quality": 100},
}
OPENCV_SUBSAMPLINGS = {"411": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411, "440": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440}


def photographs() -> list[Image.Image]:
    """Return a colourful, noisy photograph for each size in `SIZES`."""
    path = demo_beton("train")
    content, (_, stored, _), grey = path.read_bytes(), read_beton(path), []
    for image in stored[:: len(stored) // 15][:15]:
        pixels = content[image["offset"] : image["offset"] + image["size"]]
        grey.append(Image.frombytes("RGB", (image["width"], image["height"]), pixels).convert("L"))
    rng = np.random.default_rng(0)
    images = []
    for i, size in enumerate(SIZES):
        channels = [np.asarray(image.resize(size), np.float64) for image in grey[3 * i : 3 * i + 3]]
        noisy = np.stack(channels, axis=2) + rng.normal(0, 10, (size[1], size[0], 3))
        images.append(Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)))
    return images


def write_corpus(dst: Path, photos: list[Path]) -> int:
    """Write the corpus to the folder `dst`; return the number of files."""
    dst.mkdir(parents=True, exist_ok=True)
    for image in photographs():
        stem = f"{image.width}x{image.height}"
        for kind, options in KINDS.items():
            for name, subsampling in SUBSAMPLINGS.items():
                path = dst / f"{stem}_{name}_{kind}.jpg"
                image.save(path, **{"quality": 85, "subsampling": subsampling} | options)
            image.convert("L").save(dst / f"{stem}_grey_{kind}.jpg", **options)
        image.convert("CMYK").save(dst / f"{stem}_cmyk.jpg")
        image.save(dst / f"{stem}_rgb.jpg", keep_rgb=True)
        for name, factor in OPENCV_SUBSAMPLINGS.items():
            cv2.imwrite(str(dst / f"{stem}_{name}.jpg"), np.asarray(image), [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor])
    for photo in photos:
        shutil.copy(photo, dst / f"photo_{photo.name}")
    return len(list(dst.iterdir()))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(write_corpus(Path(sys.argv[1]), [Path(arg) for arg in sys.argv[2:]]), "files")
