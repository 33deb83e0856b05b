"""The demo data: a balanced part of Fashion-MNIST inside the package, and the tool that made it.

The archive holds 28 x 28 grey PNGs, 6,000 for training and 2,000 for validation, so the demo needs no network; FFCV
reads it as a .beton that `demo_beton` packs once into a cache folder. `write_image_folders` and `write_subset` read
the original idx files, as Debian's package dataset-fashion-mnist installs them:

    python -m vitkd_ds.data.demo folders DST
    python -m vitkd_ds.data.demo subset

Fashion-MNIST is by Zalando SE, under the MIT licence (`demo/LICENSE`).
"""

import fcntl
import gzip
import hashlib
import io
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from vitkd_ds.data.beton.format import check_beton
from vitkd_ds.data.beton.side_file import SIDE_FORMAT, side_path
from vitkd_ds.data.draws import keyed_rng

CLASSES = (
    "0_t_shirt_top", "1_trouser", "2_pullover", "3_dress", "4_coat",
    "5_sandal", "6_shirt", "7_sneaker", "8_bag", "9_ankle_boot",
)  # fmt: skip
"""Folder names; the number keeps the original labels when they are sorted."""
IDX_DIR = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's dataset-fashion-mnist puts the idx files."""
IDX_PREFIX = {"train": "train", "val": "t10k"}
SUBSET_PER_CLASS = {"train": 600, "val": 200}
SUBSET_SEED = 0
DEMO_DIR = "demo"
ARCHIVE = "fashion_mnist_subset.zip"
LICENSE = "LICENSE"
ZIP_DATE = (2017, 8, 25, 0, 0, 0)
"""Fixed, so that the same images give the same bytes."""


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped idx file of bytes, the format of MNIST: a magic number, the shape, the values."""
    with gzip.open(path, "rb") as file:
        content = file.read()
    zeros, kind, num_axes = int.from_bytes(content[:2], "big"), content[2], content[3]
    shape = tuple(np.frombuffer(content, ">u4", count=num_axes, offset=4).astype(int))
    if zeros or kind != 8 or len(content) != 4 + 4 * num_axes + int(np.prod(shape)):
        raise ValueError(f"{str(path)!r} must be an idx file of bytes, found magic {content[:4].hex()}: fetch it again")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape)


def _read_split(idx_dir: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 28, 28] and labels [N] of a split."""
    prefix = IDX_PREFIX[split]
    images, labels = idx_dir / f"{prefix}-images-idx3-ubyte.gz", idx_dir / f"{prefix}-labels-idx1-ubyte.gz"
    if not images.is_file() or not labels.is_file():
        raise ValueError(
            f"Fashion-MNIST's idx files must be in {str(idx_dir)!r}, found no {images.name} and "
            f"{labels.name}: install Debian's dataset-fashion-mnist"
        )
    return read_idx(images), read_idx(labels)


def _png(image_HW: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HW).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_image_folders(idx_dir: Path, dst: Path) -> None:
    """Write all 60,000 + 10,000 images as PNGs to dst/train and dst/val, a folder per class."""
    if dst.exists():
        raise ValueError(f"dst must not exist yet, found {str(dst)!r}: remove it, or choose another name")
    for split in IDX_PREFIX:
        images, labels = _read_split(idx_dir, split)
        for name in CLASSES:
            (dst / split / name).mkdir(parents=True)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            (dst / split / CLASSES[label] / f"{index:05d}.png").write_bytes(_png(image))


def _subset_members(idx_dir: Path) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of each image of the archive, a random but fixed choice per class."""
    for split_number, (split, per_class) in enumerate(SUBSET_PER_CLASS.items()):
        images, labels = _read_split(idx_dir, split)
        for label, name in enumerate(CLASSES):
            of_class = np.flatnonzero(labels == label)
            chosen = keyed_rng(SUBSET_SEED, split_number, label).choice(of_class, per_class, replace=False)
            for index in np.sort(chosen):
                yield f"{split}/{name}/{index:05d}.png", _png(images[index])


def write_subset(idx_dir: Path, dst: Path, license_text: str) -> None:
    """Write the archive that the package carries; the same input gives the same bytes."""
    with zipfile.ZipFile(dst, "w") as archive:
        for name, content in [(LICENSE, license_text.encode()), *_subset_members(idx_dir)]:
            info = zipfile.ZipInfo(name, date_time=ZIP_DATE)
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)


def cache_dir() -> Path:
    """Where packed demo data is kept: $VITKD_DS_CACHE, else $XDG_CACHE_HOME/vitkd_ds, else ~/.cache/vitkd_ds."""
    if os.environ.get("VITKD_DS_CACHE"):
        return Path(os.environ["VITKD_DS_CACHE"])
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "vitkd_ds"


def demo_beton(split: str) -> Path:
    """The .beton of the demo's train or val images, packed into the cache folder at first use.

    Any number of processes may call this at once: one packs, the others wait for it. A file in the cache that is not
    whole is packed again.
    """
    from vitkd_ds.commands.pack import pack  # needs FFCV, which the folders do not

    with _cached(split) as (archive, folder):
        path = folder / f"{split}.beton"
        if not _is_whole(path):
            side_path(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            with tempfile.TemporaryDirectory() as unpacked:
                pack(_unpack(archive, split, Path(unpacked)), path, write_mode="raw", max_resolution=0)
    return path


def demo_folder(split: str) -> Path:
    """The demo's train or val images as class folders of PNGs in the cache folder, for machines without FFCV."""
    with _cached(split) as (archive, folder):
        path = folder / split
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=folder) as unpacked:
                os.replace(_unpack(archive, split, Path(unpacked)), path)
    return path


@contextmanager
def _cached(split: str) -> Iterator[tuple[bytes, Path]]:
    """The package's archive and its cache folder, for one process at a time."""
    if split not in SUBSET_PER_CLASS:
        raise ValueError(f"split must be one of {', '.join(SUBSET_PER_CLASS)}, found {split!r}")
    content = (resources.files("vitkd_ds.data") / DEMO_DIR / ARCHIVE).read_bytes()
    folder = cache_dir() / f"fashion_mnist_{hashlib.sha256(content).hexdigest()[:12]}_{SIDE_FORMAT}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / f"{split}.lock", "w")
    except OSError as error:
        raise ValueError(f"the cache folder must be writable, found {error}: set VITKD_DS_CACHE to another") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed, or the process dies
        yield content, folder


def _is_whole(path: Path) -> bool:
    try:
        check_beton(path)
    except ValueError:
        return False
    return True


def _unpack(archive: bytes, split: str, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        opened.extractall(folder, [name for name in opened.namelist() if name.startswith(f"{split}/")])
    return folder / split


def main(arguments: list[str]) -> None:
    """Run ``folders DST`` or ``subset``."""
    match arguments:
        case ["folders", dst]:
            write_image_folders(IDX_DIR, Path(dst))
        case ["subset"]:
            demo = Path(__file__).parent
            write_subset(IDX_DIR, demo / ARCHIVE, (demo / LICENSE).read_text(encoding="utf-8"))
        case _:
            raise SystemExit(f"usage: python -m vitkd_ds.data.demo folders DST | subset, found {arguments}")


if __name__ == "__main__":
    main(sys.argv[1:])
