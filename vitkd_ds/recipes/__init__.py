"""Complete named runs. Each recipe is a function of `debug` that returns a Run; its docstring holds the command, the
expected top-1, the hardware and the source."""

from typing import Callable

from vitkd_ds.config.overrides import nearest
from vitkd_ds.config.run import Run
from vitkd_ds.recipes.demo import demo, demo_plain, demo_teacher
from vitkd_ds.recipes.imagenet import (
    deit_base_from_deit3_large,
    deit_small_from_deit3_base,
    deit_small_from_deit3_base_3augment,
    deit_tiny_from_deit3_small,
)

RECIPES: dict[str, Callable[[bool], Run]] = {
    "demo": demo,
    "demo_plain": demo_plain,
    "demo_teacher": demo_teacher,
    "deit_tiny_from_deit3_small": deit_tiny_from_deit3_small,
    "deit_small_from_deit3_base": deit_small_from_deit3_base,
    "deit_base_from_deit3_large": deit_base_from_deit3_large,
    "deit_small_from_deit3_base_3augment": deit_small_from_deit3_base_3augment,
}


def build_run(recipe: str, *, debug: bool = False) -> Run:
    """The run of a recipe by name.

    Raises:
        ValueError: no recipe of that name; the nearest is named.
    """
    if recipe not in RECIPES:
        raise ValueError(f"--recipe {recipe} is no recipe: {nearest(recipe, RECIPES)}")
    return RECIPES[recipe](debug)
