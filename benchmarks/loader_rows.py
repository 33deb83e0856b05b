"""Loaders that `benchmarks/loader.py` compares; `ROWS` lists them by name.

Unless stated otherwise, a loader yields uint8 images with labels, in random order. The images are random crops (0.08 to
1 of the area), resized bicubically to 224 px and flipped with probability 0.5. A function that opens a loader returns
another function, which takes the number of an epoch and returns its micro-batches. Packages are imported inside the
functions, because a row's time includes its imports, and because rows must not affect each other.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # use the package of this checkout, even if another one is installed
SIZE = 224
WARM_UP = 8  # number of micro-batches before the timed epoch
CROP_LIMIT = "turbojpeg-crop-limit"


class Setting(NamedTuple):
    """Settings of all rows: folder of the inputs, number of decoder threads or workers, micro-batch size."""

    workdir: Path
    threads: int
    micro_batch_size: int

    @property
    def num_classes(self) -> int:
        return len(list(self.workdir.glob("originals/*"))) or 1000  # without photos, the file of black images is used


def our_data(setting: Setting, name: str, **options: Any):
    from vitkd_ds.config.run import DataConfig

    path, options = str(setting.workdir / f"{name}.beton"), {"num_workers": setting.threads} | options
    return DataConfig(train=path, val=path, image_size=SIZE, num_classes=setting.num_classes, **options)


def open_ours(setting: Setting, name: str, *, split: str = "train", backend: str = "ffcv", recipe: str = "demo_plain"):
    """Open our loader, with the augmentation and the Mixup or CutMix of a recipe."""
    from vitkd_ds.data.draws import keyed_rng
    from vitkd_ds.data.loader import build_loader
    from vitkd_ds.recipes import build_run
    from vitkd_ds.train.mixing import mix

    data, run = our_data(setting, name, backend=backend), build_run(recipe)
    loader = build_loader(data, split=split, augment=run.augment, micro_batch_size=setting.micro_batch_size, seed=0)
    if not run.augment.mixup_alpha:
        return loader.epoch
    mixing = {"mixup_alpha": run.augment.mixup_alpha, "cutmix_alpha": run.augment.cutmix_alpha}
    mixing |= {"num_classes": data.num_classes, "label_smoothing": run.losses.ce.label_smoothing}

    def mixed(epoch: int):
        out = None  # output tensor, reused for each micro-batch as in training
        for step, (images_BCHW, labels_B) in enumerate(loader.epoch(epoch)):
            if out is None or out.shape != images_BCHW.shape:
                out = torch.empty_like(images_BCHW, dtype=torch.float32)
            yield mix(images_BCHW, labels_B, rng=keyed_rng(0, epoch, step), out=out, **mixing)

    return mixed


def _crops(setting: Setting, name: str, epoch: int):
    """Return our loader's crops in an epoch (CROP_DTYPE), and the file's table of images (STORED_DTYPE)."""
    from vitkd_ds.data.beton.format import read_beton
    from vitkd_ds.data.images import crops_of
    from vitkd_ds.data.order import random_order

    data = our_data(setting, name)
    table = read_beton(data.train)[1]
    samples = random_order(len(table), seed=0, epoch=epoch, global_batch_size=setting.micro_batch_size)
    sizes = (table[key][samples["index"]] for key in ("height", "width"))
    return crops_of(data, split="train", seed=0).rows(samples, *sizes), table


def _decoder_alone(setting: Setting, name: str):
    """Open our decoder without the loader: the main thread calls the decoder with crops that were computed before."""
    from vitkd_ds.data.beton.decode import Decoder

    crops = [_crops(setting, name, epoch) for epoch in (0, 1)]
    decoder, size = Decoder(setting.workdir / f"{name}.beton", crops[0][1]), setting.micro_batch_size

    def passes(epoch: int):
        images_BHWC, status_B = np.zeros((size, SIZE, SIZE, 3), np.uint8), np.zeros(size, np.int32)
        for first in range(0, len(crops[epoch][0]), size):
            decoder.decode(crops[epoch][0][first : first + size], images_BHWC, status_B, num_threads=setting.threads)
            yield images_BHWC, status_B

    return passes


def open_ffcv(setting: Setting, name: str, *, split: str = "train"):
    """Open released FFCV, as FFCV's ImageNet example does. It resizes with OpenCV's INTER_AREA."""
    from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

    if split == "train":
        image, order = [RandomResizedCropRGBImageDecoder((SIZE, SIZE)), RandomHorizontalFlip()], OrderOption.RANDOM
    else:
        image, order = [CenterCropRGBImageDecoder((SIZE, SIZE), ratio=0.875)], OrderOption.SEQUENTIAL
    pipelines = {"image": [*image, ToTensor(), ToTorchImage()], "label": [IntDecoder(), ToTensor(), Squeeze(1)]}
    options = {"num_workers": setting.threads, "os_cache": True, "drop_last": split == "train", "pipelines": pipelines}
    options |= {"batch_size": setting.micro_batch_size, "order": order}
    loader = Loader(str(setting.workdir / f"{name}.beton"), **options)

    def passes(epoch: int):
        loader.next_epoch, iterator = epoch, iter(loader)
        try:
            yield from iterator
        finally:  # if the caller's loop ends early, FFCV's thread would otherwise keep running
            iterator.close()
            iterator.join()

    return passes


def _image_folder(setting: Setting, folder: str, transform: Any, **options: Any):
    from torchvision.datasets import ImageFolder

    images = ImageFolder(setting.workdir / folder, transform, **options)
    loader = DataLoader(images, setting.micro_batch_size, shuffle=True, num_workers=setting.threads, drop_last=True)
    return lambda epoch: iter(loader)


def _pillow(setting: Setting, folder: str):
    """Open torchvision's class-folder loader with its transforms on Pillow images."""
    from torchvision.transforms import Compose, InterpolationMode, PILToTensor, RandomHorizontalFlip, RandomResizedCrop

    crop = RandomResizedCrop(SIZE, interpolation=InterpolationMode.BICUBIC)
    return _image_folder(setting, folder, Compose([crop, RandomHorizontalFlip(), PILToTensor()]))


def _torchvision(setting: Setting, folder: str, *, more: Sequence[Any] = ()):
    """Open torchvision's class-folder loader with its JPEG decoder and its transforms on tensors."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import InterpolationMode, v2

    crop = v2.RandomResizedCrop(SIZE, interpolation=InterpolationMode.BICUBIC, antialias=True)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip(), *more])
    return _image_folder(
        setting, folder, transform, loader=lambda path: decode_jpeg(read_file(path), ImageReadMode.RGB)
    )


def _timm(setting: Setting, folder: str, *, label_smoothing: float = 0.1, **recipe: Any):
    """Open timm's loader for DeiT or DeiT III: Pillow, normalisation to float32, erasing, and Mixup or CutMix."""
    from PIL import ImageOps
    from timm.data import Mixup, auto_augment, create_transform

    # timm 1.0.31 sometimes calls Posterize with 0 bits, which Pillow 13 rejects.
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **_: ImageOps.posterize(image, max(1, bits))
    transform = create_transform(SIZE, is_training=True, interpolation="bicubic", **recipe)
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=label_smoothing, num_classes=setting.num_classes)
    passes = _image_folder(setting, folder, transform)
    return lambda epoch: (mixup(*micro_batch) for micro_batch in passes(epoch))


def _torchvision_3augment(setting: Setting, folder: str):
    """Open torchvision's decoder with a 3-Augment of torchvision's transforms; its blur is a 9-pixel convolution.

    There is no row for torchvision's RandAugment, because it differs from timm's: it has other operations and levels,
    and it does not skip operations at random.
    """
    from torchvision.transforms import v2

    choice = [v2.RandomGrayscale(p=1), v2.RandomSolarize(128, p=1), v2.GaussianBlur(9, (0.1, 2.0))]
    more = [v2.RandomChoice(choice), v2.ColorJitter(0.3, 0.3, 0.3), v2.ToDtype(torch.float32, scale=True)]
    more.append(v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    passes, num_classes = _torchvision(setting, folder, more=more), setting.num_classes
    mixing = [v2.MixUp(alpha=0.8, num_classes=num_classes), v2.CutMix(alpha=1.0, num_classes=num_classes)]
    return lambda epoch: map(v2.RandomChoice(mixing), passes(epoch))


def _dali(setting: Setting, folder: str):
    """Open DALI on the CPU, with its decoder for random crops, cubic resizing with antialiasing, and flips."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=setting.micro_batch_size, num_threads=setting.threads, device_id=None, seed=0)
    def pipeline():
        files, labels = fn.readers.file(file_root=str(setting.workdir / folder), random_shuffle=True, name="files")
        crops = {"random_area": [0.08, 1.0], "random_aspect_ratio": [3 / 4, 4 / 3]}
        images = fn.decoders.image_random_crop(files, device="cpu", output_type=types.RGB, **crops)
        images = fn.resize(images, size=(SIZE, SIZE), interp_type=types.INTERP_CUBIC, antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    built = pipeline()
    built.build()
    num_micro_batches = built.epoch_size("files") // setting.micro_batch_size
    return lambda epoch: ([part.as_array() for part in built.run()] for _ in range(num_micro_batches))


def crop_limit(setting: Setting) -> dict[str, float]:
    """Compile crop_limit.cpp, and run it on stock500.beton with the crops that our loader makes in epoch 1."""
    program, path = setting.workdir / "crop_limit", setting.workdir / "crops.bin"
    subprocess.run(["g++", "-O3", HERE / "crop_limit.cpp", "-o", program, "-ljpeg"], check=True)
    rows, table = _crops(setting, "stock500", 1)
    names = ["offset", "size", "top", "left", "height", "width", "unused"]  # struct Crop of crop_limit.cpp
    crops = np.zeros(len(rows), {"names": names, "formats": ["<u8", "<u4", *["<i4"] * 4, "<u4"]})
    for key in names[:-1]:
        crops[key] = table[key][rows["index"]] if key in ("offset", "size") else rows[key]
    crops.tofile(path)
    command = [program, setting.workdir / "stock500.beton", path, str(WARM_UP * setting.micro_batch_size)]
    cpu_s, wall_s, num_images, _ = map(float, subprocess.check_output(command, text=True).split())
    return {"images_per_cpu_s": num_images / cpu_s, "wall_images_per_s": num_images / wall_s}


TIMM_DEIT = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel", "color_jitter": None}
TIMM_DEIT3 = {"auto_augment": "3a", "color_jitter": 0.3, "label_smoothing": 0.0}
DEIT, DEIT3 = {"recipe": "deit_tiny_from_deit3_small"}, {"recipe": "deit_small_from_deit3_base_3augment"}
ROWS = {
    "ours-jpg500": (open_ours, "jpg500", {}),
    "ffcv-jpg500": (open_ffcv, "stock500", {}),
    "pillow-originals": (_pillow, "originals", {}),
    CROP_LIMIT: (crop_limit, "stock500", {}),
    "ours-decoder-alone": (_decoder_alone, "jpg500", {}),
    "ours-decoder-alone-stock-file": (_decoder_alone, "stock500", {}),
    "ours-stock-file": (open_ours, "stock500", {}),
    "ffcv-our-file": (open_ffcv, "jpg500", {}),
    "ours-jpg400": (open_ours, "jpg400", {}),
    "ours-short256": (open_ours, "short256", {}),
    "ours-raw": (open_ours, "raw", {}),
    "ours-proportion": (open_ours, "proportion", {}),
    "ours-originals": (open_ours, "passthrough", {}),
    "ours-originals-restarts": (open_ours, "restarts", {}),
    "ours-torchvision-backend": (open_ours, "jpg500", {"backend": "torchvision"}),
    "ours-jpg500-randaugment-erasing": (open_ours, "jpg500", DEIT),
    "ours-jpg500-3augment": (open_ours, "jpg500", DEIT3),
    "ours-raw-randaugment-erasing": (open_ours, "raw", DEIT),
    "ours-raw-3augment": (open_ours, "raw", DEIT3),
    "ffcv-raw": (open_ffcv, "raw", {}),
    "tv2-jpg500": (_torchvision, "jpg500_files", {}),
    "tv2-originals": (_torchvision, "originals", {}),
    "pillow-jpg500": (_pillow, "jpg500_files", {}),
    "pillow-originals-randaugment": (_timm, "originals", TIMM_DEIT),
    "pillow-originals-3augment": (_timm, "originals", TIMM_DEIT3),
    "tv2-originals-3augment": (_torchvision_3augment, "originals", {}),
    "dali-jpg500": (_dali, "jpg500_files", {}),
}
"""For each row by name: the function that opens it, its input in `loader_inputs`, and its options. `loader.py` uses the
names of the first four."""
