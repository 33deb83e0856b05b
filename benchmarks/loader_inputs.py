"""The files that the loader benchmarks read, prepared once per working folder from a file of photographs.

Each photo is written several times, so that a short list of photos gives a file of realistic size. Separate from the
timing, so that nothing here runs while a clock does.
"""

import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

PACKED = {
    "jpg500": {},
    "jpg400": {"max_resolution": 400},
    "short256": {"short_side": 256},
    "raw": {"write_mode": "raw", "short_side": 256},
    "proportion": {"write_mode": "proportion"},
    "passthrough": {"passthrough": True},
}
"""Name of each .beton -> arguments of `vitkd_ds.commands.pack.pack`; quality 90 throughout, its default."""
FOLDERS = ("originals", "jpg500_files")
"""Trees with a folder per class: the photos as they are, and the JPEGs of jpg500.beton."""
NOTE = "prepared.json"


def write_generated_photos(path: Path, *, num_photos: int) -> None:
    """Write a file with the layout of --photos: smooth colours and noise, two classes; for debug runs."""
    from PIL import Image

    rng, files = np.random.default_rng(0), []
    for number in range(num_photos):
        height, width = (320, 427) if number % 2 else (400, 300)
        smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((width, height), Image.BICUBIC)
        noisy = np.asarray(smooth, np.int16) + rng.integers(-12, 13, (height, width, 3))
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=92)
        files.append(file.getvalue())
    np.savez(
        path,
        blob=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0] + [len(file) for file in files]),
        labels=np.arange(num_photos) % 2,
        split=np.zeros(num_photos, np.uint8),
        classes=np.array(["even", "odd"]),
    )


def prepare(photos: Path, workdir: Path, *, copies: int, needed: Iterable[str]) -> None:
    """Make what is missing of the inputs named in `needed` (of `PACKED` and `FOLDERS`).

    Raises:
        ValueError: the folder was prepared from other photos or with another number of copies.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    wanted = {"photos": photos.name, "photos_bytes": photos.stat().st_size, "copies": copies}
    note = workdir / NOTE
    if note.exists() and (found := json.loads(note.read_text())) != wanted:
        raise ValueError(f"--workdir must be prepared from {wanted}, found {found} in {str(note)!r}: give a new folder")
    note.write_text(json.dumps(wanted))
    _make(workdir / "originals", lambda folder: write_photos(photos, folder, copies=copies))
    for name in sorted(set(needed) - {"originals"} | ({"jpg500"} if "jpg500_files" in needed else set())):
        if name in PACKED:
            pack_folder(workdir / "originals", workdir / f"{name}.beton", name)
    if "jpg500_files" in needed:
        _make(workdir / "jpg500_files", lambda folder: _unpack(workdir / "jpg500.beton", folder))


def write_photos(photos: Path, folder: Path, *, copies: int = 1, limit: int | None = None) -> None:
    """Write the first `limit` photos (None is all) as JPEG files in a folder per class."""
    with np.load(photos) as arrays:
        blob, offsets, labels, classes = (arrays[key] for key in ("blob", "offsets", "labels", "classes"))
    for number, label in enumerate(labels[:limit]):
        parent = folder / str(classes[label])
        parent.mkdir(parents=True, exist_ok=True)
        for copy in range(copies):
            file = parent / f"{number:04}_{copy}.JPEG"
            file.write_bytes(blob[offsets[number] : offsets[number + 1]].tobytes())


def pack_folder(folder: Path, beton: Path, name: str) -> None:
    """Pack a folder as `PACKED` says, unless the .beton is there."""
    if beton.exists():
        return
    from vitkd_ds.commands.pack import pack

    print(f"packing {beton.name}", flush=True)
    pack(folder, beton, **PACKED[name])


def _make(folder: Path, write) -> None:
    """Write a folder unless it is there; it gets its name when it is complete."""
    if folder.exists():
        return
    print(f"writing {folder.name}", flush=True)
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    write(partial)
    partial.rename(folder)


def _unpack(beton: Path, folder: Path) -> None:
    """Write the JPEGs of a .beton as files, in a folder per class."""
    from vitkd_ds.data.beton.format import read_beton

    info, images, labels = read_beton(beton)
    with open(beton, "rb") as file:
        for number, (stored, label) in enumerate(zip(images, labels)):
            parent = folder / info.classes[label]
            parent.mkdir(exist_ok=True)
            file.seek(int(stored["offset"]))
            (parent / f"{number:06}.jpg").write_bytes(file.read(int(stored["size"])))
