"""What does augmentation cost? Time of each recipe's augmentation on this machine.

    python benchmarks/augment.py [--device cpu] [--compile] [--json FILE]

On the CPU: ms and images per CPU-second of one thread, in micro-batches of 64, and the same for Pillow (timm's
RandAugment, torchvision's ColorJitter and so on, image by image). On CUDA: ms per micro-batch of 128 and 256. Images
are smooth with a little noise, 224 pixels; each repetition has new keys, and the median counts. Times include drawing,
which is on the CPU, and the copies to the device.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import ColorJitter

from vitkd_ds.config.run import AugmentConfig
from vitkd_ds.data.augment.augmenter import Augmenter
from vitkd_ds.data.draws import image_keys

SIZE = 224
RECIPES = {
    "RandAugment (m9, n2)": {"rand_augment": "rand-m9-mstd0.5-inc1"},
    "3-Augment": {"three_augment": True},
    "colour jitter 0.3": {"color_jitter": 0.3},
    "random erasing 0.25": {"random_erasing": 0.25},
    "DeiT, cls_KD": {"rand_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.25},
    "DeiT III": {"three_augment": True, "color_jitter": 0.3},
}


def smooth_images(count: int) -> torch.Tensor:
    """Blurred noise with a little noise on top: uint8 channels_last [count, 3, SIZE, SIZE]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 14, 14, generator=generator)
    images = 255 * torch.nn.functional.interpolate(coarse, size=SIZE, mode="bicubic", align_corners=False)
    images += 6 * torch.randn(images.shape, generator=generator)
    return images.clamp_(0, 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def median_ms(work: Callable[[int], object], *, warmup: int, repeats: int, is_cuda: bool) -> float:
    """Median time of `work(i)` over the repetitions after the first ones, in ms; on the CPU, of its own CPU time."""
    times, clock = [], time.perf_counter if is_cuda else time.process_time
    for i in range(warmup + repeats):
        if is_cuda:
            torch.cuda.synchronize()
        start = clock()
        work(i)
        if is_cuda:
            torch.cuda.synchronize()
        times.append(1e3 * (clock() - start))
    return statistics.median(times[warmup:])


def augment_ms(config: AugmentConfig, count: int, device: torch.device, args: argparse.Namespace) -> float:
    """Median time of one micro-batch of `count` images, in ms."""
    augmenter, images = Augmenter(config, compile=args.compile), smooth_images(count).to(device)
    keys = [image_keys(np.arange(count), np.zeros(count, np.int64), seed=0, epoch=i) for i in range(5 + args.repeats)]
    is_cuda = device.type == "cuda"
    return median_ms(lambda i: augmenter(images, keys[i]), warmup=5, repeats=args.repeats, is_cuda=is_cuda)


def pillow_functions() -> dict[str, Callable[[Image.Image], Image.Image]]:
    """The same on one Pillow image, where a library has it."""
    # Magnitude 10 is left out (mmax9), as Pillow 13 refuses timm's Posterize there.
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


def pillow_ms(function: Callable[[Image.Image], Image.Image], count: int, repeats: int) -> float:
    """Median time of `count` images one by one, in ms."""
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in smooth_images(count)]
    return median_ms(lambda _: [function(image) for image in images], warmup=2, repeats=repeats, is_cuda=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device, is_cuda = torch.device(args.device), args.device == "cuda"
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name() if is_cuda else "one CPU thread"
    mode = "compiled" if args.compile else "eager"
    print(f"{name}, torch {torch.__version__}, {mode}, {SIZE} px, median of {args.repeats}")
    print(f"{'':22}" + ("   ms / 128   ms / 256" if is_cuda else "ms / image   images / s   Pillow ms / image"))
    pillow, results = {} if is_cuda else pillow_functions(), {}
    for recipe, settings in RECIPES.items():
        config = AugmentConfig(**settings)
        if is_cuda:
            row = {f"ms_per_{count}": augment_ms(config, count, device, args) for count in (128, 256)}
            print(f"{recipe:22}{row['ms_per_128']:11.2f}{row['ms_per_256']:11.2f}", flush=True)
        else:
            ms = augment_ms(config, 64, device, args) / 64
            row = {"ms_per_image": ms, "images_per_cpu_s": 1e3 / ms}
            line = f"{recipe:22}{ms:10.3f}{1e3 / ms:13.0f}"
            if recipe in pillow:
                row["pillow_ms_per_image"] = pillow_ms(pillow[recipe], 64, args.repeats) / 64
                line += f"{row['pillow_ms_per_image']:20.3f}"
            print(line, flush=True)
        results[recipe] = row
    if args.json:
        report = {"device": name, "torch": torch.__version__, "mode": mode, "repeats": args.repeats, "results": results}
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
