"""Convert the files of Debian's package dataset-fashion-mnist to the images of the demo.

python benchmarks/fashion_mnist.py folders DST   write all images as PNGs in class folders, for the recipe demo_teacher
python benchmarks/fashion_mnist.py archive       write the subset in vitkd_ds/data/demo: a zip file with .beton files
"""

import gzip
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from vitkd_ds.commands.pack import pack
from vitkd_ds.data.beton.side_file import side_path
from vitkd_ds.data.demo import ARCHIVE, CLASSES
from vitkd_ds.data.draws import keyed_rng

IDX_DIR = Path("/usr/share/datasets/fashion-mnist")
IDX_PREFIX = {"train": "train", "val": "t10k"}
PER_CLASS = {"train": 600, "val": 200}
"""Number of images per class in the archive."""
CHOICE_SEED = 0
ZIP_DATE = (2017, 8, 25, 0, 0, 0)
"""Date of all files in the archive; it is fixed, so that the same images give the same bytes."""


def read_idx(path: Path) -> np.ndarray:
    """Read an array of bytes from a gzipped idx file (MNIST's format: a magic number, the shape, the values)."""
    content = gzip.decompress(path.read_bytes())
    zeros, kind, num_axes = int.from_bytes(content[:2], "big"), content[2], content[3]
    shape = tuple(np.frombuffer(content, ">u4", count=num_axes, offset=4).astype(int))
    if zeros or kind != 8 or len(content) != 4 + 4 * num_axes + int(np.prod(shape)):
        raise ValueError(f"{path} is not a valid idx file of bytes (magic {content[:4].hex()}); download it again")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape)


def write_folders(dst: Path, *, idx_dir: Path = IDX_DIR, per_class: dict[str, int] | None = None) -> None:
    """Write the images as PNGs to dst/train and dst/val, in one folder per class.

    Args:
        per_class: Number of images per class for each split, chosen at random with a fixed seed; None for all images.
    """
    for split_number, (split, prefix) in enumerate(IDX_PREFIX.items()):
        paths = [idx_dir / f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
        if not all(path.is_file() for path in paths):
            raise ValueError(f"{paths[0]} or {paths[1].name} is missing; install Debian's dataset-fashion-mnist")
        images, labels = map(read_idx, paths)
        for label, name in enumerate(CLASSES):
            (dst / split / name).mkdir(parents=True)
            chosen = np.flatnonzero(labels == label)
            if per_class is not None:
                rng = keyed_rng(CHOICE_SEED, split_number, label)
                chosen = rng.choice(chosen, per_class[split], replace=False)
            for index in chosen:
                Image.fromarray(images[index]).save(dst / split / name / f"{index:05d}.png")


def write_archive(dst: Path, *, idx_dir: Path = IDX_DIR) -> None:
    """Write the zip file of vitkd_ds/data/demo to `dst`. The same images give the same bytes."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(dst, "w") as archive:
        write_folders(Path(folder), idx_dir=idx_dir, per_class=PER_CLASS)
        files = [ARCHIVE.with_name("LICENSE")]
        for split in IDX_PREFIX:
            path = Path(folder, f"{split}.beton")
            # With several workers the order of the images in the file would vary.
            pack(Path(folder, split), path, write_mode="raw", max_resolution=0, workers=1)
            files += [path, side_path(path)]
        for file in files:
            info = zipfile.ZipInfo(file.name, date_time=ZIP_DATE)
            info.external_attr, info.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(info, file.read_bytes(), compresslevel=9)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["folders", dst]:
            write_folders(Path(dst))
        case ["archive"]:
            write_archive(ARCHIVE)
        case _:
            sys.exit(__doc__)
