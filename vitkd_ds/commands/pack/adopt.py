"""Commands `adopt` and `check` for existing .betons. torch and the decoder are imported only when they are needed."""

import os
from pathlib import Path
from typing import Any

MOST_NAMED = 10
"""Maximum number of damaged images named in an error message."""


def adopt(file: str, *, classes: str = "", shuffled: bool = False) -> None:
    """Check a .beton written by FFCV itself, and write its JSON file.

    The JSON file (side file) is next to the .beton, and contains classes and checksums.

    Args:
        file: path of the .beton.
        classes: file with one class name per line, in label order. It is required.
        shuffled: whether the images are in random order; recorded in the side file.

    Raises:
        ValueError: `classes` is missing or invalid, the .beton is damaged or already has a side file, or the side file
            cannot be written.
    """
    from vitkd_ds.checkpoint.files import sync_folder, write_text
    from vitkd_ds.data.beton.format import check_labels, read_tables, stored_images
    from vitkd_ds.data.beton.side_file import BetonInfo, side_path, side_text
    from vitkd_ds.data.beton.verify import checksums
    from vitkd_ds.data.sources.class_list import read_classes

    path = Path(file)
    if not classes:
        raise ValueError("adopt needs --classes. Pass a file with one class name per line, in label order.")
    if not path.is_file():
        raise ValueError(f"no file at {file!r}. Check the path.")
    if os.path.lexists(side_path(path)):
        raise ValueError(f"{file!r} already has a side file ({str(side_path(path))!r}). Run `vitkd-ds check` instead.")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(
            f"cannot write the side file: no write permission in {str(path.parent)!r}. Make the folder writable."
        )
    names = read_classes(classes)
    tables = read_tables(path)
    images = stored_images(path, tables)
    labels = tables.metadata["label"]
    check_labels(path, labels, num_classes=len(names))
    # FFCV stores no checksums, so an image counts as intact if it decodes.
    num_threads = len(os.sched_getaffinity(0))
    _, images["crc32"] = checksums(path, images, num_threads=num_threads)
    images["has_crc"] = images["thorough"] = 1
    _check(path, images, num_threads=num_threads)
    modes = {(True, False): "jpg", (False, True): "raw"}
    info = BetonInfo(
        path=path,
        num_images=len(images),
        classes=names,
        bytes=path.stat().st_size,
        shuffled=shuffled,
        write_mode=modes.get((0 in images["mode"], 1 in images["mode"]), "proportion"),
        max_resolution=0,
        short_side=0,
        quality=0,
        passthrough=0,
        max_height=int(images["height"].max()),
        max_width=int(images["width"].max()),
    )
    checks = {"tables_crc32": tables.crc32, "lengths": images["size"], "crc32s": images["crc32"]}
    write_text(side_path(path), side_text(info, **checks))
    sync_folder(path.parent)
    print(f"{path}: {len(images)} images in {len(names)} classes; wrote {side_path(path)}")


def check(file: str) -> None:
    """Read and decode every image of a .beton, and verify its CRC32.

    Print a line on success.

    Raises:
        ValueError: the file is invalid, or images are damaged.
    """
    from vitkd_ds.data.beton.format import read_beton

    info, images, _ = read_beton(file)
    _check(info.path, images, num_threads=len(os.sched_getaffinity(0)))
    print(f"{info.path}: all {info.num_images} images are intact")


def _check(path: Path, images: Any, *, num_threads: int) -> None:
    """Raise ValueError if images are damaged. The message names the first MOST_NAMED of them."""
    from vitkd_ds.data.beton.verify import damaged_images

    found = [f"image {row} {reason}" for row, reason in damaged_images(path, images, num_threads=num_threads)]
    if found:
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise ValueError(
            f"{len(found)} of {len(images)} images in {str(path)!r} are damaged: {'; '.join(found[:MOST_NAMED])}{more}."
            " Copy the file again or pack the images again."
        )
