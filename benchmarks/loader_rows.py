"""The loaders that benchmarks/loader.py compares: `ROWS`, a name for each.

All give random resized crops (area 0.08 to 1) of 224 pixels, bicubic, flipped at even odds, uint8, with labels, in
random order; where one cannot, it says so. Opening one returns a function from the number of an epoch to its
micro-batches. Every package is imported inside, as a row's clock starts before its imports, and as rows must not touch
each other.
"""

import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

SIZE = 224
WARM_UP = 8
"""Micro-batches before the timed epoch."""
CROP_LIMIT = "turbojpeg-crop-limit"


@dataclass(frozen=True)
class Setting:
    """What all rows share."""

    workdir: Path
    threads: int
    """Decoder threads, or worker processes; with 1 the whole process tree has one core."""
    micro_batch_size: int


@dataclass(frozen=True)
class Row:
    """A loader and what it reads."""

    open: Callable[[Setting], Callable[[int], Iterator[tuple[Any, Any]]]]
    input: str
    """Of `loader_inputs`."""
    needs: str = ""
    """Package that may be missing."""


def _num_classes(setting: Setting) -> int:
    return sum(1 for _ in (setting.workdir / "originals").iterdir())


def _ours(setting: Setting, *, name: str, backend: str = "ffcv", recipe: str = ""):
    """Our `build_loader`; with a recipe, its augmentation and mixing too."""
    from vitkd_ds.config.run import DataConfig
    from vitkd_ds.data.draws import keyed_rng
    from vitkd_ds.data.loader import build_loader
    from vitkd_ds.data.mixing import mix

    path, num_classes = str(setting.workdir / f"{name}.beton"), _num_classes(setting)
    data = DataConfig(
        train=path, val=path, image_size=SIZE, num_classes=num_classes, backend=backend, num_workers=setting.threads
    )
    sizes = {"micro_batch_size": setting.micro_batch_size, "seed": 0}
    if not recipe:
        return build_loader(data, split="train", **sizes).epoch
    from vitkd_ds import recipes

    run = getattr(recipes.imagenet, recipe)()
    loader = build_loader(data, split="train", augment=run.augment, **sizes)
    mixing = {key: getattr(run.augment, key) for key in ("mixup_alpha", "cutmix_alpha")}
    mixing |= {"num_classes": num_classes, "label_smoothing": run.losses.ce.label_smoothing}

    def passes(epoch: int):
        for step, (images_BCHW, labels_B) in enumerate(loader.epoch(epoch)):
            yield mix(images_BCHW, labels_B, rng=keyed_rng(0, epoch, step), **mixing)

    return passes


def _crops(setting: Setting, epoch: int):
    """The crops that our loader makes of jpg500 in an epoch, CROP_DTYPE, and where the images lie, STORED_DTYPE."""
    from vitkd_ds.config.run import DataConfig
    from vitkd_ds.data.beton.format import read_beton
    from vitkd_ds.data.images import crops_of
    from vitkd_ds.data.order import random_order

    path = str(setting.workdir / "jpg500.beton")
    data = DataConfig(train=path, val=path, image_size=SIZE, num_classes=_num_classes(setting))
    table = read_beton(path)[1]
    samples = random_order(len(table), seed=0, epoch=epoch, global_batch_size=setting.micro_batch_size)
    stored = table[samples["index"]]
    return crops_of(data, split="train", seed=0).rows(samples, stored["height"], stored["width"]), table


def _decoder_alone(setting: Setting):
    """Our decoder, called in the main thread with crops that are known beforehand: what the loader adds is missing."""
    import numpy as np

    from vitkd_ds.data.beton.decode import Decoder

    crops = [_crops(setting, epoch) for epoch in (0, 1)]
    decoder, size = Decoder(setting.workdir / "jpg500.beton", crops[0][1]), setting.micro_batch_size

    def passes(epoch: int):
        images_BHWC, status_B = np.zeros((size, SIZE, SIZE, 3), np.uint8), np.zeros(size, np.int32)
        for first in range(0, len(crops[epoch][0]), size):
            rows = crops[epoch][0][first : first + size]
            decoder.decode(rows, images_BHWC, status_B, num_threads=setting.threads)
            yield images_BHWC, status_B

    return passes


def open_ffcv(setting: Setting, *, name: str):
    """FFCV as released, as its own ImageNet example uses it; it resizes with OpenCV's INTER_AREA."""
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

    loader = Loader(
        str(setting.workdir / f"{name}.beton"),
        batch_size=setting.micro_batch_size,
        num_workers=setting.threads,
        os_cache=True,
        order=OrderOption.RANDOM,
        drop_last=True,
        pipelines={
            "image": [
                RandomResizedCropRGBImageDecoder((SIZE, SIZE)), RandomHorizontalFlip(), ToTensor(), ToTorchImage(),
            ],
            "label": [IntDecoder(), ToTensor(), Squeeze(1)],
        },
    )  # fmt: skip

    def passes(epoch: int):
        loader.next_epoch, iterator = epoch, iter(loader)
        try:
            for images_BCHW, labels_B in iterator:
                yield images_BCHW, labels_B
        finally:  # its thread outlives a loop that is left early
            iterator.close()
            iterator.join()

    return passes


def _data_loader(setting: Setting, dataset: Any):
    from torch.utils.data import DataLoader

    loader = DataLoader(dataset, setting.micro_batch_size, shuffle=True, num_workers=setting.threads, drop_last=True)
    return lambda epoch: iter(loader)


def _pillow(setting: Setting, *, folder: str):
    """torchvision's ImageFolder with Pillow."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, InterpolationMode, PILToTensor, RandomHorizontalFlip
    from torchvision.transforms import RandomResizedCrop as Crop

    crop = Crop(SIZE, interpolation=InterpolationMode.BICUBIC)
    transform = Compose([crop, RandomHorizontalFlip(), PILToTensor()])
    return _data_loader(setting, ImageFolder(setting.workdir / folder, transform))


def _torchvision(setting: Setting, *, folder: str, more: Sequence[Any] = ()):
    """torchvision's own JPEG decoder and its transforms on tensors."""
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import InterpolationMode, v2

    crop = v2.RandomResizedCrop(SIZE, interpolation=InterpolationMode.BICUBIC, antialias=True)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip(), *more])
    decode = partial(decode_jpeg, mode=ImageReadMode.RGB)
    return _data_loader(
        setting, ImageFolder(setting.workdir / folder, transform, loader=lambda path: decode(read_file(path)))
    )


TIMM_RECIPES = {
    "randaugment": {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel", "color_jitter": None},
    "3augment": {"auto_augment": "3a", "color_jitter": 0.3},
}


def _timm(setting: Setting, *, folder: str, recipe: str):
    """timm's DeiT or DeiT III recipe: Pillow throughout, normalisation to float32, erasing, then Mixup or CutMix."""
    from PIL import ImageOps
    from timm.data import Mixup, auto_augment, create_transform
    from torchvision.datasets import ImageFolder

    # timm 1.0.31 draws 0 bits now and then, which Pillow 13 refuses.
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **_: ImageOps.posterize(image, max(1, bits))

    transform = create_transform(SIZE, is_training=True, interpolation="bicubic", **TIMM_RECIPES[recipe])
    smoothing = 0.1 if recipe == "randaugment" else 0.0
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=smoothing, num_classes=_num_classes(setting))
    passes = _data_loader(setting, ImageFolder(setting.workdir / folder, transform))
    return lambda epoch: (mixup(images_BCHW, labels_B) for images_BCHW, labels_B in passes(epoch))


def _torchvision_3augment(setting: Setting, *, folder: str):
    """3-Augment on tensors, by torchvision alone: its blur is a convolution of 9 pixels. Its RandAugment is another one
    than timm's (other operations and levels, none left out at random), so there is no such row."""
    import torch
    from torchvision.transforms import v2

    choice = [v2.RandomGrayscale(p=1), v2.RandomSolarize(128, p=1), v2.GaussianBlur(9, (0.1, 2.0))]
    more = [v2.RandomChoice(choice), v2.ColorJitter(0.3, 0.3, 0.3), v2.ToDtype(torch.float32, scale=True)]
    more.append(v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    passes = _torchvision(setting, folder=folder, more=more)
    options = {"num_classes": _num_classes(setting)}
    mixing = v2.RandomChoice([v2.MixUp(alpha=0.8, **options), v2.CutMix(alpha=1.0, **options)])
    return lambda epoch: (mixing(images_BCHW, labels_B) for images_BCHW, labels_B in passes(epoch))


def _dali(setting: Setting, *, folder: str):
    """DALI on the CPU: its crop-aware decoder, cubic with antialiasing, flip."""
    from nvidia.dali import fn, pipeline_def, types

    path = str(setting.workdir / folder)

    @pipeline_def(batch_size=setting.micro_batch_size, num_threads=setting.threads, device_id=None, seed=0)
    def pipeline():
        files, labels = fn.readers.file(file_root=path, random_shuffle=True, name="files")
        images = fn.decoders.image_random_crop(
            files, device="cpu", output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        images = fn.resize(images, size=(SIZE, SIZE), interp_type=types.INTERP_CUBIC, antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    built = pipeline()
    built.build()

    def passes(epoch: int):
        for _ in range(built.epoch_size("files") // setting.micro_batch_size):
            images, labels = built.run()
            yield images.as_array(), labels.as_array()

    return passes


def crop_limit(setting: Setting) -> dict[str, float | None]:
    """Run crop_limit.cpp on jpg500 with the crops of our loader's epoch 1."""
    import numpy as np

    rows, table = _crops(setting, 1)
    crops = np.zeros(len(rows), CROP_LIMIT_DTYPE)
    for key in ("offset", "size"):
        crops[key] = table[key][rows["index"]]
    for key in ("top", "left", "height", "width"):
        crops[key] = rows[key]
    path = setting.workdir / "crops.bin"
    crops.tofile(path)
    command = [setting.workdir / "crop_limit", setting.workdir / "jpg500.beton", path]
    command.append(str(WARM_UP * setting.micro_batch_size))
    cpu_s, wall_s, num_images, _ = map(float, subprocess.check_output(command, text=True).split())
    return {"images_per_cpu_s": num_images / cpu_s, "wall_images_per_s": num_images / wall_s}


CROP_LIMIT_DTYPE = [
    ("offset", "<u8"), ("size", "<u4"), ("top", "<i4"), ("left", "<i4"), ("height", "<i4"), ("width", "<i4"),
    ("unused", "<u4"),
]  # fmt: skip
"""struct Crop of crop_limit.cpp."""


OUR_RECIPES = {
    "randaugment-erasing": "deit_tiny_from_deit3_small",
    "3augment": "deit_small_from_deit3_base_3augment",
}
ROWS = {
    "ours-jpg500": Row(partial(_ours, name="jpg500"), "jpg500"),
    "ffcv-jpg500": Row(partial(open_ffcv, name="jpg500"), "jpg500", needs="ffcv"),
    "pillow-originals": Row(partial(_pillow, folder="originals"), "originals", needs="torchvision"),
    CROP_LIMIT: Row(crop_limit, "jpg500"),
    "ours-decoder-alone": Row(_decoder_alone, "jpg500"),
    "ours-jpg400": Row(partial(_ours, name="jpg400"), "jpg400"),
    "ours-short256": Row(partial(_ours, name="short256"), "short256"),
    "ours-raw": Row(partial(_ours, name="raw"), "raw"),
    "ours-proportion": Row(partial(_ours, name="proportion"), "proportion"),
    "ours-originals": Row(partial(_ours, name="passthrough"), "passthrough"),
    "ours-torchvision-backend": Row(
        partial(_ours, name="jpg500", backend="torchvision"), "jpg500", needs="torchvision"
    ),
    **{
        f"ours-{name}-{recipe}": Row(partial(_ours, name=name, recipe=run), name)
        for name in ("jpg500", "raw")
        for recipe, run in OUR_RECIPES.items()
    },
    "ffcv-raw": Row(partial(open_ffcv, name="raw"), "raw", needs="ffcv"),
    "tv2-jpg500": Row(partial(_torchvision, folder="jpg500_files"), "jpg500_files", needs="torchvision"),
    "tv2-originals": Row(partial(_torchvision, folder="originals"), "originals", needs="torchvision"),
    "pillow-jpg500": Row(partial(_pillow, folder="jpg500_files"), "jpg500_files", needs="torchvision"),
    "pillow-originals-randaugment": Row(
        partial(_timm, folder="originals", recipe="randaugment"), "originals", needs="timm"
    ),
    "pillow-originals-3augment": Row(partial(_timm, folder="originals", recipe="3augment"), "originals", needs="timm"),
    "tv2-originals-3augment": Row(partial(_torchvision_3augment, folder="originals"), "originals", needs="torchvision"),
    "dali-jpg500": Row(partial(_dali, folder="jpg500_files"), "jpg500_files", needs="nvidia.dali"),
}
"""Name -> loader; the first four names are fixed."""
