"""Hugging Face image data sets on disk: a save_to_disk folder, or parquet files.

They are read with the `datasets` library (`pip install 'vitkd_ds[hf]'`). It converts parquet files once to Arrow files
in its cache (HF_DATASETS_CACHE). Its image decoding is disabled, so that the original bytes are read. Nothing is
downloaded, and no code from a data set is run.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from vitkd_ds.data.sources.source import Source

logger = logging.getLogger(__name__)

ARROW_SIGNS = ("dataset_info.json", "dataset_dict.json")
"""Files in a folder written by save_to_disk: the first for a single split, the second for several splits."""
PART_NAME = re.compile(r"(.+?)([-_.](\d+)[-_]of[-_](\d+).*)?\.parquet$")
"""Pattern of parquet file names such as train-00000-of-00294.parquet, train_0_of_3.parquet or train.parquet."""


def has_arrow(src: Path) -> bool:
    """Return whether `src` is a folder written by save_to_disk."""
    return src.is_dir() and any((src / name).is_file() for name in ARROW_SIGNS)


def has_parquet(src: Path) -> bool:
    """Return whether `src` or `src`/data contains parquet files, and `src` was not written by save_to_disk."""
    return bool(_parquet_files(src)) and not has_arrow(src)


def open_hugging_face(src: Path, split: str) -> Source:
    """List the images of a data set with one image column and one class label column.

    Raises:
        ValueError: the library is missing, the folder is invalid, or it has several splits and `split` is not one of
            them.
    """
    try:
        import datasets
    except ImportError as error:
        found = f"reading {str(src)!r} needs the package datasets, which is not installed"
        raise ValueError(f"{found}. Run pip install 'vitkd_ds[hf]'.") from error
    dataset = _arrow(datasets, src, split) if has_arrow(src) else _parquet(datasets, src, split)
    image_key = _only_column(src, dataset, datasets.Image, "image")
    label_key = _only_column(src, dataset, datasets.ClassLabel, "class label")
    if not len(dataset):
        raise ValueError(f"{str(src)!r} has no rows. Choose another split.")
    classes = tuple(dataset.features[label_key].names)
    images = dataset.select_columns([image_key]).cast_column(image_key, datasets.Image(decode=False))
    folder = src.resolve()
    labels = np.array(dataset.select_columns([label_key]).with_format("numpy")[:][label_key], np.int64)
    unlabelled = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(unlabelled):
        raise ValueError(
            f"row {unlabelled[0]} of {str(src)!r} has class {labels[unlabelled[0]]}, not one from 0 to "
            f"{len(classes) - 1}. Test splits have no labels; choose another split."
        )

    def read(index: int) -> bytes:
        value = images[index][image_key] or {}
        if (content := value.get("bytes")) is None:
            path = value.get("path")  # without bytes and path, there is no image
            content = _file_inside(folder, path, row=index).read_bytes() if path else b""
        return content

    prefix = f"{src.name}/{split}" if split else src.name
    names, sizes = _names_and_sizes(images, image_key, prefix, folder)
    return Source("Hugging Face", classes, labels, names, sizes, read)


def _choose(src: Path, found: list[str], split: str) -> str:
    """Return the split to read: `split`, or if it is empty, the only split in `found`."""
    if split not in found and (split or len(found) != 1):
        splits = f"{str(src)!r} ({', '.join(found)})"
        raise ValueError(f"--split must be one of the splits in {splits}, got {split!r}")
    return split or found[0]


def _arrow(datasets: Any, src: Path, split: str) -> Any:
    try:
        dataset = datasets.load_from_disk(str(src))
    except Exception as error:  # the library and Arrow raise many error types
        found = f"{type(error).__name__} {error}"
        raise ValueError(f"{str(src)!r} is not a valid save_to_disk folder: {found}. Save it again.") from error
    if isinstance(dataset, datasets.DatasetDict):
        return dataset[_choose(src, sorted(dataset), split)]
    if split and str(dataset.split) != split:
        raise ValueError(f"{str(src)!r} is the single split {dataset.split}, not {split!r}. Omit --split.")
    return dataset


def _parquet_files(src: Path) -> list[Path]:
    return sorted([*src.glob("*.parquet"), *src.glob("data/*.parquet")])


def _parquet(datasets: Any, src: Path, split: str) -> Any:
    files: dict[str, list[str]] = {}
    for path in _parquet_files(src):
        files.setdefault(PART_NAME.match(path.name)[1], []).append(str(path))
    chosen = files[_choose(src, sorted(files), split)]
    _check_parts(src, [Path(file).name for file in chosen])
    try:
        return datasets.load_dataset("parquet", data_files=chosen, split="train")  # datasets' name for a single split
    except Exception as error:  # the library and Arrow raise many error types
        raise ValueError(
            f"{chosen[0]!r} and {len(chosen) - 1} more files cannot be read as parquet files: "
            f"{type(error).__name__} {error.__cause__ or error}. Download them again."
        ) from error


def _check_parts(src: Path, names: list[str]) -> None:
    """Raise ValueError unless `names` are all parts of one export, each exactly once, or have no part numbers."""
    parts = [PART_NAME.match(name).group(3, 4) for name in names]
    total = parts[0][1]
    other = next((name for name, part in zip(names, parts) if part[1] != total), None)
    if other:
        raise ValueError(f"{str(src)!r} mixes parts of two exports, {names[0]!r} and {other!r}. Remove one export.")
    if total is None:
        return
    numbers = [int(number) for number, _ in parts]
    absent = sorted(set(range(int(total))).difference(numbers))
    if absent:
        raise ValueError(
            f"{str(src)!r} lacks {len(absent)} of the {int(total)} parts of the export with {names[0]!r}; the first is "
            f"number {absent[0]:05d}. Download them, or number the files as the parts of an export of {len(names)}."
        )
    if len(numbers) > int(total):
        extra = next(name for name, number in zip(names, numbers) if numbers.count(number) > 1 or number >= int(total))
        raise ValueError(
            f"{str(src)!r} has {len(numbers)} files, but its export has {int(total)} parts. Remove surplus files such "
            f"as {extra!r}."
        )


def _only_column(src: Path, dataset: Any, kind: type, what: str) -> str:
    found = [name for name, feature in dataset.features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        raise ValueError(
            f"{str(src)!r} must have one column of type {kind.__name__} ({what}), but has {len(found)} among "
            f"{dataset.features}. Cast or remove columns, and save it again."
        )
    return found[0]


def _names_and_sizes(images: Any, key: str, prefix: str, folder: Path) -> tuple[list[str], np.ndarray]:
    """Return the name and the size in bytes of each image, without decoding the images.

    A name consists of `prefix`, the row number and, if the row has one, the path. A warning gives the number of rows
    that have neither bytes nor a path.

    Raises:
        ValueError: a row has no bytes, and its path does not name a regular file in the folder.
    """
    import pyarrow.compute

    names, sizes, hollow = [], [], []
    for batch in images.with_format("arrow").iter(batch_size=10_000):
        for chunk in batch[key].chunks if hasattr(batch[key], "chunks") else [batch[key]]:
            content, paths = (chunk.field(name) for name in ("bytes", "path"))
            for path, length in zip(paths.to_pylist(), pyarrow.compute.binary_length(content).to_pylist()):
                if length is None:
                    hollow += [] if path else [len(names)]
                    length = _file_inside(folder, path, row=len(names)).stat().st_size if path else 0
                names.append(f"{prefix}[{len(names)}]" + (f" {path}" if path else ""))
                sizes.append(length)
    if hollow:
        what = "have neither bytes nor a path and count as damaged images"
        logger.warning("%d rows of %r %s; the first is row %d", len(hollow), prefix, what, hollow[0])
    return names, np.array(sizes, np.int64)


def _file_inside(folder: Path, path: str, *, row: int) -> Path:
    """Return the file that a row names; raise ValueError if it is not a regular file in the data set's folder.

    A downloaded table must not be able to make this machine read other files. Reading a pipe or a device may never end.
    """
    if "\0" not in path:
        file = Path(os.path.realpath(folder / path))
        if file.is_relative_to(folder) and os.path.isfile(file):
            return file
    raise ValueError(
        f"row {row} of {str(folder)!r} has no bytes and names {path!r}, which is not a regular file in that folder. "
        "Copy the images into the folder, or save the data set with save_to_disk, which stores their bytes."
    )
