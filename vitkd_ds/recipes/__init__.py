"""Recipes: complete settings of runs, each with a name. Start reading at `build_run`.

Each recipe is a function that returns a Run. Its docstring gives the command, the expected top-1, the hardware and the
source; `vitkd-ds recipes` prints the docstring's first line. `imagenet` has the student-teacher pairs of the ViTKD
paper, `rivals` has other methods, `foundation` has DINOv3 teachers, `demo` has the demo that comes with the package,
and `images` has defaults for your own images.
"""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Callable

from vitkd_ds.config.overrides import nearest
from vitkd_ds.config.run import Run
from vitkd_ds.config.run_folder import read_run
from vitkd_ds.recipes import demo, foundation, imagenet, images, rivals

logger = logging.getLogger(__name__)

RECIPES: dict[str, Callable[[], Run]] = {
    recipe.__name__: recipe
    for recipe in (
        demo.demo,
        demo.demo_plain,
        demo.demo_fast,
        demo.demo_teacher,
        demo.demo_label_free,
        imagenet.deit_tiny_from_deit3_small,
        imagenet.deit_small_from_deit3_base,
        imagenet.deit_base_from_deit3_large,
        imagenet.deit_small_from_deit3_base_3augment,
        rivals.deit_tiny_soft_kd,
        rivals.deit_tiny_wttm_vitkd,
        rivals.deit_tiny_vkd_regnety160,
        rivals.deit_small_vkd_regnety160,
        foundation.deit_tiny_from_dinov3_large_probe,
        foundation.vit_small_from_dinov3_large,
        foundation.vit_small_from_dinov3_7b,
        images.images,
    )
}


def build_run(recipe: str, *, debug: bool = False) -> Run:
    """Return the run of a named recipe, or the stored run in a folder if `recipe` has a slash or exists as a path.

    A stored run keeps its workdir, so that training continues in that folder. Its `resume` is reset to auto, because
    the checkpoint that it started from may no longer exist. Its `extend` is reset to False.

    Args:
        debug: reduce a named recipe to a few steps on the demo images that come with the package.

    Raises:
        ValueError: `recipe` is not a known name (the message suggests the closest one), the folder contains no run, or
            `debug` is used with a folder.
    """
    if recipe in RECIPES:
        run = RECIPES[recipe]()
        return _debug_size(run) if debug else run
    if "/" not in recipe and not os.path.exists(recipe):
        raise ValueError(f"--recipe {recipe} is not a recipe: {nearest(recipe, RECIPES)}")
    if debug:
        raise ValueError(f"--debug needs a named recipe, got the stored run {recipe}. Omit --debug.")
    stored = read_run(Path(recipe))
    if stored.resume not in ("auto", "none"):
        logger.warning("%s started from %s. Pass --resume to start from there again.", recipe, stored.resume)
    return replace(stored, resume="auto", extend=False)


def _debug_size(run: Run) -> Run:
    """Reduce a run to a few steps on the demo images. It keeps its models; teachers from the hub get random weights."""
    # On a laptop CPU, a 224-px image takes sixty times as long as the demo's 28-px images.
    is_small = run.data.image_size <= 28
    teachers = dict(run.teachers)
    for name, teacher in run.teachers.items():
        if teacher.checkpoint == "hub":
            args = dict(teacher.model_args)
            if "_7b_" in teacher.model:
                args["depth"] = 2  # all blocks would not fit into a laptop's memory
            teachers[name] = replace(teacher, checkpoint="random", model_args=args)
    return replace(
        run,
        workdir=f"{run.workdir}_debug",
        teachers=teachers,
        data=replace(
            run.data,
            train="demo",
            val="demo",
            num_classes=10 if run.data.labels == "use" else 0,
            max_val_images=64 if is_small else 8,
            knn_train="",  # has thousands of images
            knn_val="",
        ),
        global_batch_size=48 if is_small else 8,
        micro_batch_size_per_gpu=16 if is_small else 2,
        max_steps=4 if is_small else 2,
        log_every_steps=1,
        compile="off",  # compiling takes minutes on a CPU
        debug=True,
    )
