"""CPU time of each recipe's augmentation on this machine, compared with Pillow.

    python benchmarks/augment.py [--operations] [--repeats 20] [--json FILE]

One thread augments micro-batches of 64 images, as each decoder thread does in training. For comparison, Pillow runs
timm's RandAugment, torchvision's ColorJitter and similar functions on one image at a time. The images have 224 px and
are smooth with a little noise. Each repetition makes new random draws, whose time is included. The table shows medians
over the repetitions. --operations also times each operation of RandAugment separately, at magnitude 9.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import ColorJitter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vitkd_ds.config.run import AugmentConfig  # noqa: E402
from vitkd_ds.data.augment.augmenter import Augmenter, Plan  # noqa: E402
from vitkd_ds.data.augment.operations import operations_of  # noqa: E402
from vitkd_ds.data.augment.policy import OPS, RAND_AUGMENT_OPS, SIGNED_RANGES, Layer, level_arguments  # noqa: E402
from vitkd_ds.data.beton import decode  # noqa: E402
from vitkd_ds.data.colours import IMAGENET  # noqa: E402
from vitkd_ds.data.order import SAMPLE_DTYPE  # noqa: E402

SIZE, COUNT = 224, 64
RECIPES = {
    "RandAugment (m9, n2)": {"rand_augment": "rand-m9-mstd0.5-inc1"},
    "3-Augment": {"three_augment": True},
    "colour jitter 0.3": {"color_jitter": 0.3},
    "random erasing 0.25": {"random_erasing": 0.25},
    "DeiT, cls_KD": {"rand_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.25},
    "DeiT III": {"three_augment": True, "color_jitter": 0.3},
}


def smooth_images() -> np.ndarray:
    """Return smooth random images with a little noise added, uint8 [COUNT, SIZE, SIZE, 3]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(COUNT, 3, 14, 14, generator=generator)
    images = 255 * torch.nn.functional.interpolate(coarse, size=SIZE, mode="bicubic", align_corners=False)
    images += 6 * torch.randn(images.shape, generator=generator)
    return np.ascontiguousarray(images.clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())


def median_ms(work: Callable[[int], object], *, repeats: int) -> float:
    """Return the median CPU time of `work(i)` per image, in ms, after two warm-up calls."""
    times = []
    for i in range(2 + repeats):
        start = time.process_time()
        work(i)
        times.append(1e3 * (time.process_time() - start) / COUNT)
    return statistics.median(times[2:])


def our_ms(config: AugmentConfig, repeats: int) -> float:
    """Return the CPU time of our augmentation, including its random draws, in ms per image."""
    augmenter, images = Augmenter(config, seed=0, statistics=IMAGENET), smooth_images()
    samples = np.zeros(COUNT, SAMPLE_DTYPE)

    def work(epoch: int) -> None:
        samples["index"], samples["epoch"] = np.arange(COUNT), epoch
        decode.augment(images.copy(), augmenter.plan(samples, height=SIZE, width=SIZE))

    return median_ms(work, repeats=repeats)


def operation_ms(op: str, is_cubic: bool, repeats: int) -> float:
    """Return the CPU time of one operation of RandAugment, without random draws, in ms per image."""
    images, empty = smooth_images(), Augmenter(AugmentConfig(), seed=0, statistics=IMAGENET)
    arguments_B = level_arguments(op, np.full(COUNT, 9.0), np.arange(COUNT) % 2 == 0, is_increasing=True)
    layer = Layer(np.full(COUNT, OPS.index(op)), arguments_B, np.full(COUNT, is_cubic))
    nothing = empty.plan(np.zeros(COUNT, SAMPLE_DTYPE), height=SIZE, width=SIZE)
    rows = operations_of([layer], COUNT, height=SIZE, width=SIZE)
    plan = Plan([layer], rows, nothing.rectangles, nothing.levels, nothing.fill)
    return median_ms(lambda _: decode.augment(images.copy(), plan), repeats=repeats)


def pillow_functions() -> dict[str, Callable[[Image.Image], Image.Image]]:
    """Map recipe names to equivalent functions of one Pillow image. Recipes that no library supports are left out."""
    # mmax9 excludes magnitude 10, at which Pillow 13 rejects timm's Posterize.
    rand_augment = rand_augment_transform("rand-m9-mstd0.5-inc1-mmax9", {"img_mean": (124, 116, 104)})
    jitter = ColorJitter(0.3, 0.3, 0.3, 0)

    def three_augment(image: Image.Image) -> Image.Image:
        choice = random.randrange(3)
        if choice == 0:
            return ImageOps.grayscale(image).convert("RGB")
        if choice == 1:
            return ImageOps.solarize(image)
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2)))

    functions = [rand_augment, three_augment, jitter, None, None, lambda image: jitter(three_augment(image))]
    return {name: function for name, function in zip(RECIPES, functions) if function}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", action="store_true")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pillow, images = pillow_functions(), [Image.fromarray(image) for image in smooth_images()]
    results = {}
    print(f"one CPU thread, {SIZE} px, median of {args.repeats}")
    print(f"{'':22}ms / image   images / s   Pillow ms / image")
    for recipe, settings in RECIPES.items():
        ms = our_ms(AugmentConfig(**settings), args.repeats)
        results[recipe] = {"ms_per_image": ms, "images_per_cpu_s": 1e3 / ms}
        line = f"{recipe:22}{ms:10.3f}{1e3 / ms:13.0f}"
        if function := pillow.get(recipe):
            theirs = median_ms(lambda _, function=function: [function(image) for image in images], repeats=args.repeats)
            results[recipe]["pillow_ms_per_image"] = theirs
            line += f"{theirs:20.3f}"
        print(line, flush=True)
    for op in RAND_AUGMENT_OPS if args.operations else ():
        filters = {"bilinear": False, "bicubic": True} if op in SIGNED_RANGES else {"": False}
        for name, is_cubic in filters.items():
            title = f"{op} {name}".strip()
            results[title] = {"ms_per_image": operation_ms(op, is_cubic, args.repeats)}
            print(f"{title:22}{results[title]['ms_per_image']:10.3f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"repeats": args.repeats, "results": results}, indent=1))


if __name__ == "__main__":
    main()
