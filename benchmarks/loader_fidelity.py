"""What each way of storing images costs and keeps: bytes, speed, closeness to the originals, cores that a node needs.

Run by `python benchmarks/loader.py --table`. Closeness is the PSNR of the evaluation crop (shorter side to 256, central
224 pixels) against Pillow's bicubic crop of the original JPEG, in dB, mean over photos; crops that are equal to the
last bit are counted apart.
"""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from loader_inputs import PACKED, pack_folder, write_photos

NUM_TRAIN_IMAGES = 1_281_167
SIZE, CROP_FRACTION = 224, 0.875
ROW_OF = {"jpg500": "ours-jpg500", "jpg400": "ours-jpg400", "short256": "ours-short256", "raw": "ours-raw",
          "proportion": "ours-proportion", "passthrough": "ours-originals"}  # fmt: skip
MEANING = {
    "jpg500": "JPEG, longer side 500, quality 90 (default)",
    "jpg400": "JPEG, longer side 400, quality 90",
    "short256": "JPEG, shorter side 256, quality 90",
    "raw": "pixels, shorter side 256",
    "proportion": "longer side 500, half of them as pixels",
    "passthrough": "the original JPEGs",
}
NODE_IMAGES_PER_S = {"Tiny": 8 * 7_000, "Small": 8 * 3_800, "Base": 8 * 1_500}
"""Assumed: 8 GPUs at the speed of one H100 that distils the paper's pair with everything compiled and images already on
the device (a plain loop: 6,898 to 7,926, 3,833, and 1,486 to 1,528 images/s)."""


def reference_crops(folder: Path) -> np.ndarray:
    """Pillow's evaluation crops of the photos, in the order in which `pack` stores them."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

    shorter = int(SIZE / CROP_FRACTION)
    transform = Compose([Resize(shorter, InterpolationMode.BICUBIC), CenterCrop(SIZE), PILToTensor()])
    return np.stack([image.permute(1, 2, 0).numpy() for image, _ in ImageFolder(folder, transform)])


def our_crops(beton: Path) -> np.ndarray:
    """The same of a .beton, by our loader."""
    from vitkd_ds.config.run import DataConfig
    from vitkd_ds.data.beton.format import check_beton
    from vitkd_ds.data.loader import build_loader

    num_classes = len(check_beton(beton).classes)
    data = DataConfig(train=str(beton), val=str(beton), image_size=SIZE, num_classes=num_classes, num_workers=1)
    micro_batches = build_loader(data, split="val", micro_batch_size=50).epoch(0)
    return _joined(images_BCHW.permute(0, 2, 3, 1).numpy() for images_BCHW, _ in micro_batches)


def stock_crops(beton: Path) -> np.ndarray:
    """The same by FFCV as released, with the decoder that its ImageNet example evaluates with."""
    from ffcv.fields.decoders import CenterCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    decoder = CenterCropRGBImageDecoder((SIZE, SIZE), ratio=CROP_FRACTION)
    loader = Loader(
        str(beton), batch_size=50, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False,
        pipelines={"image": [decoder], "label": None},
    )  # fmt: skip
    return _joined(images_BHWC.copy() for (images_BHWC,) in loader)


def _joined(micro_batches: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(micro_batches))


def psnr(images: np.ndarray, references: np.ndarray) -> dict[str, Any]:
    """Mean PSNR of the images that differ from their references, None if all are equal, and how many are equal."""
    errors = ((images.astype(np.float64) - references) ** 2).mean(axis=(1, 2, 3))
    differing = errors[errors > 0]
    mean_db = float((10 * np.log10(255**2 / differing)).mean()) if len(differing) else None
    return {"mean_db": mean_db, "num_equal": int((errors == 0).sum()), "num_images": len(errors)}


def fidelity(which: str, folder: Path) -> dict[str, Any]:
    """PSNR of one way of storing, or of stock FFCV on jpg500; in a process of its own, as both change FFCV."""
    crops = stock_crops(folder / "jpg500.beton") if which == "stock" else our_crops(folder / f"{which}.beton")
    return psnr(crops, reference_crops(folder / "originals"))


def _closeness(figures: dict[str, Any]) -> str:
    if figures["mean_db"] is None:
        return "equal"
    equal = f", {figures['num_equal']} equal" if figures["num_equal"] else ""
    return f"{figures['mean_db']:.1f} dB{equal}"


def print_storage_table(photos: Path, workdir: Path, results: list[dict[str, Any]], *, num_photos: int) -> None:
    """Pack the photos in each way and print the table; speeds are those of the rows that ran."""
    from loader import run_json

    folder = workdir / f"fidelity_{num_photos}"
    if not (folder / "originals").exists():
        write_photos(photos, folder / "originals", limit=num_photos)
    speeds = {row["name"]: row["images_per_cpu_s"] for row in results}
    header = [
        "stored as",
        "bytes/image",
        "ImageNet-1k train, GB",
        "images/s per core",
        "evaluation crop against Pillow's",
    ]
    header += [f"cores for 8 GPUs, {size}" for size in NODE_IMAGES_PER_S]
    print(f"\n{num_photos} photos for the crops\n\n| {' | '.join(header)} |\n{'|---' * len(header)}|")
    for name in PACKED:
        pack_folder(folder / "originals", folder / f"{name}.beton", name)
        pack_folder(workdir / "originals", workdir / f"{name}.beton", name)
        num_bytes = _bytes_per_image(workdir / f"{name}.beton")
        speed = speeds.get(ROW_OF[name])
        cells = [MEANING[name], f"{num_bytes:,.0f}", f"{num_bytes * NUM_TRAIN_IMAGES / 1e9:.0f}"]
        cells += [f"{speed:,.0f}" if speed else "–", _closeness(run_json([sys.executable, __file__, name, folder]))]
        cells += [f"{needed / speed:.0f}" if speed else "–" for needed in NODE_IMAGES_PER_S.values()]
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"stock FFCV on the first: {_closeness(run_json([sys.executable, __file__, 'stock', folder]))}")
    print(
        "cores are for decoding alone, from assumed speeds of the training step: "
        + ", ".join(f"{size} {needed // 8:,} images/s per GPU" for size, needed in NODE_IMAGES_PER_S.items())
    )


def _bytes_per_image(beton: Path) -> float:
    from vitkd_ds.data.beton.format import check_beton

    info = check_beton(beton)
    return info.bytes / info.num_images


if __name__ == "__main__":
    print(json.dumps(fidelity(sys.argv[1], Path(sys.argv[2]))), flush=True)
    os._exit(0)
