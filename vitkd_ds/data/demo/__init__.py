"""Demo images in the package: a balanced subset of Fashion-MNIST.

`demo_beton` unpacks the archive to a cache folder for both backends. The archive contains two .beton files (6,000
images of 28 x 28 pixels for training and 2,000 for validation) and their JSON files, all made by
`benchmarks/fashion_mnist.py`. Fashion-MNIST is by Zalando SE, under the MIT licence (`demo/LICENSE`). This folder also
contains the packaged teacher, which `vitkd_ds.models.build` reads.
"""

import fcntl
import hashlib
import io
import os
import zipfile
from pathlib import Path

from vitkd_ds.data.beton.format import check_beton, partial_path
from vitkd_ds.data.beton.side_file import side_path

CLASSES = (
    *"0_t_shirt_top 1_trouser 2_pullover 3_dress 4_coat".split(),
    *"5_sandal 6_shirt 7_sneaker 8_bag 9_ankle_boot".split(),
)
"""Class names in Fashion-MNIST's label order. They start with a number, so that sorting does not change the order."""
ARCHIVE = Path(__file__).with_name("fashion_mnist.zip")


def demo_beton(split: str) -> Path:
    """Return the path of the demo's .beton of a split in the cache folder; unpack the .beton if it is not there.

    Several processes may call this function at the same time: one unpacks, and the others wait. If the file in the
    cache is damaged, it is unpacked again.

    Raises:
        ValueError: `split` is neither "train" nor "val", or the cache folder cannot be written.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split must be one of train, val, got {split!r}")
    content = ARCHIVE.read_bytes()
    # The hash separates package versions, because their archives may differ in pixels, order or format.
    path = cache_dir() / f"fashion_mnist_{hashlib.sha256(content).hexdigest()[:12]}" / f"{split}.beton"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed or the process dies
            try:
                check_beton(path)
            except ValueError:  # missing or damaged
                _unpack(content, path)
    except OSError as error:
        raise ValueError(f"cannot write the cache folder: {error}. Set VITKD_DS_CACHE to another folder.") from error
    return path


def cache_dir() -> Path:
    """Return the cache folder: $VITKD_DS_CACHE, else $XDG_CACHE_HOME/vitkd_ds, else ~/.cache/vitkd_ds."""
    if os.environ.get("VITKD_DS_CACHE"):
        return Path(os.environ["VITKD_DS_CACHE"])
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "vitkd_ds"


def _unpack(archive: bytes, path: Path) -> None:
    """Unpack the .beton and its JSON file. Each is written and synced under a temporary name, then renamed."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        for target in (side_path(path), path):
            with open(partial_path(target), "wb") as file:
                file.write(opened.read(target.name))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial_path(target), target)
