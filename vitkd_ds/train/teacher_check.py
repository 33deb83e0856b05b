"""Does the teacher know the classes? A wrong file, class order, crop or normalisation shows here in seconds, and in a
student only after days. Every new run looks, and so does `vitkd-ds doctor`."""

import logging
import time
from contextlib import closing
from dataclasses import replace
from typing import Any, Callable, Literal

import torch
from torch import Tensor

from vitkd_ds.config.run import Run, TeacherConfig
from vitkd_ds.config.run_folder import description_beside
from vitkd_ds.config.teachers import called, role_of
from vitkd_ds.engine import ranks
from vitkd_ds.models import build
from vitkd_ds.models.features import Features, tap_features
from vitkd_ds.train.parts import Parts, open_split, split_of, teacher_needs
from vitkd_ds.train.statistics import wilson_interval

logger = logging.getLogger(__name__)

IMAGES = 512
"""Most images that the teacher is shown."""
MOST_S = 20.0
"""Most seconds that this takes; a large teacher on a CPU sees fewer images."""
ENOUGH = 100
"""Images below which a teacher that seems to guess is only warned of."""
NEAR_CHANCE = 0.1
"""Part of the way from chance to all right, below which the whole interval must lie for a teacher to be called a guess.
It is no multiple of chance, as 1.5 times the chance of two classes is 75 %."""
MICRO_BATCH = {"cuda": 64, "cpu": 16}
FAR_PERCENT = 5.0
"""An error if the whole interval is farther than this below the figure; a warning if it is below at all."""
PUBLISHED = {
    ("deit3_small_patch16_224.fb_in22k_ft_in1k", 1.0): 83.08,
    ("deit3_base_patch16_224.fb_in22k_ft_in1k", 1.0): 85.73,
    ("deit3_large_patch16_224.fb_in22k_ft_in1k", 1.0): 86.99,
    ("deit3_small_patch16_224.fb_in22k_ft_in1k", 0.875): 82.76,
    ("deit3_base_patch16_224.fb_in22k_ft_in1k", 0.875): 85.48,
}
"""Top-1 in percent on ImageNet's 50,000 validation images, by timm's name and data.val_crop_fraction. At 1.0: timm's
results-imagenet.csv; at 0.875: Small of WTTM (ICLR 2024, table 13), Base of cls_KD's issue 5; Large is not known."""
DEMO_TEACHER_TOP1 = 91.15
"""Top-1 of the packaged teacher on the packaged 2,000 images (EXPERIMENTS.md)."""
ADVICE = "check that data.val has the classes in the teacher's order, its crop, and that the weights are its own"

Level = Literal["ok", "warning", "error"]


def check_teacher(parts: Parts) -> None:
    """Show each teacher a few validation images. Collective. Raises ValueError if logits that a term compares are no
    better than chance on as many images as can tell; what is worse than expected, or cannot be told from chance, is
    warned of."""
    run = parts.run
    for name, teacher in run.teachers.items():
        if not run.losses_of(name).needs.logits or teacher.checkpoint == "random":
            continue
        counts = count_right(run, parts.teachers[name], parts.device, classes=parts.train_loader.classes)
        level, found = judge(run, teacher, *counts)
        if counts[0] >= ENOUGH and is_guess(run, *counts):
            raise ValueError(f"{called(name)} must know the classes of the data, found {found}: {ADVICE}")
        text = f"{found}: {ADVICE}" if level != "ok" else found
        said = logging.INFO if level == "ok" or ranks.rank() else logging.WARNING
        logger.log(said, "%s: %s", role_of(name), text)


def check_fp8(parts: Parts) -> None:
    """Log how much each fp8 teacher differs from itself in bf16 on a micro-batch of validation images. Collective."""
    for name, teacher in parts.run.teachers.items():
        if teacher.fp8 and teacher.checkpoint != "random":  # which another build would draw anew
            _check_fp8(parts, name)


def _check_fp8(parts: Parts, name: str) -> None:
    """Do so for one teacher."""
    run = parts.run
    teacher = parts.teachers[name]
    plain = build.build_teacher(run.teachers[name], run.data, role=role_of(name), **teacher_needs(run, name))
    with closing(parts.val_loader.epoch(0)) as micro_batches, torch.no_grad():
        images_BCHW, _ = ranks.together(lambda: next(micro_batches))
        inputs_BCHW = teacher.normalization.apply(images_BCHW, teacher.dtype)
        plain = plain.to(parts.device, teacher.dtype)
        plain_BK = tap_features(plain, inputs_BCHW, None).logits_BK.float()
        found_BK = teacher(images_BCHW).logits_BK.float()
    change = 100 * ((found_BK - plain_BK).norm() / plain_BK.norm()).item()
    same = 100 * (found_BK.argmax(1) == plain_BK.argmax(1)).float().mean().item()
    answers = f", and {same:.1f} % of {len(images_BCHW)} answers stay" if name in parts.answering else ""
    logger.info(f"{role_of(name)} in fp8: its outputs change by {change:.2f} % (norm of the difference){answers}")


def count_right(
    run: Run, teacher: Callable[[Tensor], Features], device: torch.device, *, classes: tuple[str, ...]
) -> tuple[int, int]:
    """Count validation images, spread evenly over the file, and those that the teacher has right. Collective."""
    data: Any = replace(run.data, max_val_images=min(IMAGES, run.data.max_val_images or IMAGES))
    micro = min(MICRO_BATCH[device.type], split_of(run).micro_batch_size)  # what the teacher was built for
    loader = ranks.together(lambda: open_split(replace(run, data=data), "val", micro, device, classes=classes))
    counts = torch.zeros(2, dtype=torch.float64, device=device)
    start = time.monotonic()
    with closing(loader.epoch(0)) as micro_batches:
        for _ in range(loader.num_batches):
            images_BCHW, labels_B = ranks.together(lambda: next(micro_batches))
            best_B = teacher(images_BCHW).logits_BK.argmax(1)
            counts += torch.stack([(labels_B >= 0).sum(), (best_B == labels_B).sum()])
            if not ranks.all_true(time.monotonic() - start < MOST_S, device):
                break
    num_images, num_right = map(int, ranks.sum_over_ranks(counts).tolist())
    return num_images, num_right


def is_guess(run: Run, num_images: int, num_right: int) -> bool:
    """Whether the interval of the top-1 has chance in it, and nothing that is far from it."""
    chance = 100 / run.data.num_classes
    (low, high) = wilson_interval(num_images, num_right)
    return low < chance and high < chance + NEAR_CHANCE * (100 - chance)


def judge(run: Run, teacher: TeacherConfig, num_images: int, num_right: int) -> tuple[Level, str]:
    """Compare what was counted with the published figure, or else with chance; what was found, in words."""
    low, high = wilson_interval(num_images, num_right)
    found = f"top-1 {100 * num_right / num_images:.1f} % on {num_images} images, 95 % interval [{low:.1f}, {high:.1f}]"
    published = published_top1(run, teacher)
    if is_guess(run, num_images, num_right):
        return "error", f"{found}, which is no better than chance"
    if published is None and low < 100 / run.data.num_classes:
        return "warning", f"{found}, which cannot be told from chance with {num_images} images"
    if published is None:
        order = "" if _states_classes(teacher) else "; nothing beside its file states the order of its classes"
        return "ok", f"{found}; no published figure is known of this file{order}"
    figure, source = published
    level = "error" if high < figure - FAR_PERCENT else "warning" if high < figure else "ok"
    return level, f"{found}, expected {figure:.2f} ({source})"


def published_top1(run: Run, teacher: TeacherConfig) -> tuple[float, str] | None:
    """A teacher's figure in percent and its source, of a .json beside the file or else of the model's name; None if
    none is known. Where there is none at the run's crop, it is that at crop 1."""
    data = run.data
    if teacher.head:
        return None  # it is another's answer
    if teacher.checkpoint == "demo" and data.val == "demo" and not teacher.image_size:
        return DEMO_TEACHER_TOP1, "EXPERIMENTS.md"
    beside = build.teacher_file(teacher).with_suffix(".json")
    if teacher.checkpoint != "hub" and "top1" in (described := description_beside(build.teacher_file(teacher))):
        return described["top1"], str(beside)
    is_usual = (teacher.image_size or data.image_size) == 224 and data.num_classes == 1000
    for fraction in (data.val_crop_fraction, 1.0) if is_usual else ():
        if (teacher.model, fraction) in PUBLISHED:
            return PUBLISHED[teacher.model, fraction], f"published at crop {fraction:g}"
    return None


def _states_classes(teacher: TeacherConfig) -> bool:
    """Whether the order of the teacher's classes is known to be the data's: it was compared when data was opened."""
    if teacher.head:
        return False
    return teacher.checkpoint == "hub" or "classes" in description_beside(build.teacher_file(teacher))
