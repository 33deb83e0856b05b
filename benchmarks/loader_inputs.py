"""Prepare the input files of the loader benchmarks, once per working folder and before anything is timed."""

import io
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

PACKED = {
    "jpg500": ("ours-jpg500", "JPEG, longer side 500, quality 90 (default)", {}),
    "stock500": ("ffcv-jpg500", "the same, but encoded as by stock FFCV, without restart markers", {}),
    "jpg400": ("ours-jpg400", "JPEG, longer side 400, quality 90", {"max_resolution": 400}),
    "short256": ("ours-short256", "JPEG, shorter side 256, quality 90", {"short_side": 256}),
    "raw": ("ours-raw", "pixels, shorter side 256", {"write_mode": "raw", "short_side": 256}),
    "proportion": ("ours-proportion", "longer side 500, half of the images as pixels", {"write_mode": "proportion"}),
    "passthrough": ("ours-originals", "the original JPEGs", {"passthrough": True}),
    "restarts": (
        "ours-originals-restarts",
        "the same with restart markers",
        {"passthrough": True, "restart_markers": True},
    ),
}
"""For each .beton by name: a row that reads it, its description in the table, and the arguments for `pack`."""


def prepare(photos: Path | None, top: Path, *, copies: int, needed: Collection[str]) -> Path:
    """Create the inputs that do not exist yet, and return their folder. Other photos or copies have another folder.

    Args:
        photos: .npz file as described in `loader.py`; None for 24 generated pictures.
        top: Parent of the folder.
        copies: Number of copies of each photo, so that the files have a realistic size.
        needed: Inputs to create: names in `PACKED`, or "jpg500_files" for the JPEGs of jpg500.beton as separate files.
    """
    workdir = top / (f"{photos.name}_{photos.stat().st_size}_x{copies}" if photos else f"generated_x{copies}")
    workdir.mkdir(parents=True, exist_ok=True)
    numbered = enumerate(_read(photos) if photos else _generated())
    files = ((name, f"{i:04}_{copy}.JPEG", jpeg) for i, (name, jpeg) in numbered for copy in range(copies))
    _write(workdir / "originals", files)
    for name in PACKED.keys() & needed:
        pack_photos(workdir, name)
    if "jpg500_files" in needed:
        _write(workdir / "jpg500_files", _jpegs_of(pack_photos(workdir, "jpg500")))
    return workdir


def _generated() -> Iterator[tuple[str, bytes]]:
    from PIL import Image

    for number in range(24):
        size, file = (427, 320) if number % 2 else (300, 400), io.BytesIO()
        Image.effect_mandelbrot(size, (-3, -2.5, 2, 2.5), 9 + number).convert("RGB").save(file, "JPEG", quality=92)
        yield ("even", "odd")[number % 2], file.getvalue()


def _read(photos: Path) -> Iterator[tuple[str, bytes]]:
    with np.load(photos) as arrays:
        blob, offsets, labels, classes = (arrays[key] for key in ("blob", "offsets", "labels", "classes"))
    for label, start, end in zip(labels, offsets, offsets[1:]):
        yield str(classes[label]), blob[start:end].tobytes()


def _jpegs_of(beton: Path) -> Iterator[tuple[str, str, bytes]]:
    from vitkd_ds.data.beton.format import read_beton

    info, images, labels = read_beton(beton)
    with open(beton, "rb") as file:
        for number, (stored, label) in enumerate(zip(images, labels)):
            file.seek(int(stored["offset"]))
            yield info.classes[label], f"{number:06}.jpg", file.read(int(stored["size"]))


def _write(folder: Path, files: Iterable[tuple[str, str, bytes]]) -> None:
    """Write files, each given as class, name and content, unless the folder exists. It gets its name when complete."""
    if not folder.exists():
        print(f"writing {folder.name}", flush=True)
        partial = folder.with_name(f"{folder.name}.partial")
        for class_name, name, content in files:
            (partial / class_name).mkdir(parents=True, exist_ok=True)
            (partial / class_name / name).write_bytes(content)
        partial.rename(folder)


def pack_photos(workdir: Path, name: str) -> Path:
    """Pack the folder `originals` with the arguments in `PACKED`, unless the .beton exists; return its path."""
    from vitkd_ds.commands.pack import encode, pack

    beton = workdir / f"{name}.beton"
    if not beton.exists():
        print(f"packing {beton.name}", flush=True)
        ours = encode._jpeg
        if name == "stock500":
            import cv2  # the encoder and settings that FFCV uses

            encode._jpeg = lambda pixels_HWC, quality: cv2.imencode(
                ".jpg", np.ascontiguousarray(pixels_HWC[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality]
            )[1].tobytes()
        pack(workdir / "originals", beton, **PACKED[name][2])
        encode._jpeg = ours
    return beton


def write_black_beton(workdir: Path, num_images: int) -> Path:
    """Write a .beton of black images in 1,000 classes, unless it exists, and return its path.

    The images have 8 x 8 pixels. Only the first has 500 x 500, so that FFCV allocates buffers of a realistic size. The
    pixels need no disk space, because they are a hole in a sparse file.
    """
    from vitkd_ds.data.beton import format, side_file

    path = workdir / f"scale_{num_images}" / "black.beton"
    if path.exists():
        return path
    images = np.zeros(num_images, format.STORED_DTYPE)
    images["mode"], images["height"], images["height"][0] = format.RAW_MODE, 8, 500
    images["width"], images["size"] = images["height"], 3 * images["height"].astype(int) ** 2
    start = format.METADATA_START + num_images * format.METADATA_DTYPE.itemsize
    images["offset"] = start + np.cumsum(images["size"], dtype=np.int64) - images["size"]
    head, tail, end = format.beton_tables(images, np.arange(num_images) * 1000 // num_images)
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        file.write(head)
        file.seek(end)
        file.write(tail)
    packing = {"max_resolution": 500, "short_side": 0, "quality": 90, "passthrough": 0, "shuffled": False}
    names, largest = tuple(f"class{i:04}" for i in range(1000)), {"max_height": 500, "max_width": 500}
    info = side_file.BetonInfo(path, num_images, names, path.stat().st_size, "raw", **packing, **largest)
    crc32s = np.where(images["height"] == 8, zlib.crc32(bytes(3 * 8**2)), zlib.crc32(bytes(3 * 500**2)))
    checks = {"tables_crc32": zlib.crc32(tail, zlib.crc32(head)), "lengths": images["size"], "crc32s": crc32s}
    side_file.side_path(path).write_text(side_file.side_text(info, **checks))
    return path
