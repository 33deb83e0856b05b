"""Apply a command line's options to a run, with what follows from them: the model that a run folder describes, and the
terms that are off without a teacher. Nothing here imports torch."""

import logging
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Mapping

from vitkd_ds.config.overrides import apply_overrides, read_run
from vitkd_ds.config.run import Run, TeacherConfig
from vitkd_ds.config.run_folder import (
    CONFIG,
    DONE,
    TAG,
    description_beside,
    find_weights,
    is_begun,
    is_student,
    model_of,
    run_of,
)
from vitkd_ds.config.term import terms_of_a_teacher

logger = logging.getLogger(__name__)

WEIGHTS = {"student": ("init", ("", "hub")), "teacher": ("checkpoint", ("", "hub", "demo", "random"))}
"""The field that names a model's weights, and its values that are no path."""


def apply_options(recipe: Run, options: Mapping[str, str]) -> Run:
    """Copy a recipe's run with options such as {"optim.lr": "3e-4"} set.

    - `teacher`: "none" trains without one; the terms that need a teacher are then off. A recipe without a teacher gets
      one by any option of it.
    - `teacher.checkpoint` and `student.init` take a run folder, a checkpoint or an export, which also says the model
      and its arguments; the result names the file of weights in it.
      A run that was begun with an earlier checkpoint of the same run keeps it.
    - Another `student.model` or `teacher.model` does not inherit the recipe's model_args.

    Raises:
        ValueError: an option or value that is none (the nearest is named), or files that contradict the options.
    """
    is_without, options = options.get("teacher") == "none", dict(options)
    run = _with_or_without_teacher(recipe, options)
    run = apply_overrides(run, options)
    for role, (key, _) in WEIGHTS.items():
        if getattr(run, role):
            run = _with_described_model(_without_old_args(run, recipe, role, options), role, options)
        if f"{role}.{key}" in options:
            run = _with_weights_of_before(run, role, options[f"{role}.{key}"])
    if run.teacher is None:
        for name in terms_of_a_teacher(run.losses):
            term, option = getattr(run.losses, name), f"losses.{name}.weight"
            if option in options and term.weight and is_without:
                raise ValueError(
                    f"--{option}={options[option]} needs a teacher, found --teacher none: leave one of them out"
                )
            if option not in options:
                off = replace(term, weight=0.0)
                run = replace(run, losses=replace(run.losses, **{name: off}))
    return run


def _with_or_without_teacher(run: Run, options: dict[str, str]) -> Run:
    """Take the option `teacher` out of `options`, and give the run a teacher or none."""
    own = next((key for key in options if key.startswith("teacher.")), None)
    if "teacher" in options:
        if (value := options.pop("teacher")) != "none":
            raise ValueError(
                f"--teacher must be none, found {value!r}: --teacher.checkpoint names a teacher's weights or run "
                "folder, --teacher.model its architecture"
            )
        if own:
            raise ValueError(f"--{own} must not be given with --teacher none: leave one of them out")
        return replace(run, teacher=None)
    defaults = {field.name: field.default for field in fields(TeacherConfig) if field.default is not MISSING}
    is_new = run.teacher is None and own is not None
    return replace(run, teacher=TeacherConfig(model="", **defaults)) if is_new else run


def _without_old_args(run: Run, recipe: Run, role: str, options: Mapping[str, str]) -> Run:
    """Drop the recipe's arguments of another model than the one that is now named."""
    config, before = getattr(run, role), getattr(recipe, role)
    is_other = before is not None and config.model != before.model
    if not (is_other and config.model_args and f"{role}.model_args" not in options):
        return run
    logger.info(
        "%s.model=%s takes the place of recipe %s's %s: its %s.model_args %s are left out", role, config.model,
        recipe.recipe, before.model, role, dict(config.model_args),
    )  # fmt: skip
    return replace(run, **{role: replace(config, model_args={})})


def _with_described_model(run: Run, role: str, options: Mapping[str, str]) -> Run:
    """Resolve a folder to the file of weights in it, and take the model that the .json beside the weights describes.

    An option that names another model is refused, and `model_args` of an option stay, as a model may be built with
    more arguments than it was stored with.
    """
    config, (key, words) = getattr(run, role), WEIGHTS[role]
    value = getattr(config, key)
    if value in words:
        return run
    # What an option names must be there; what a run has stored is missed only when it is loaded.
    path = find_weights(value, f"{role}.{key}") if f"{role}.{key}" in options else Path(value)
    described = model_of(description_beside(path))
    if not described:
        return replace(run, **{role: replace(config, **{key: str(path)})})
    named = options.get(f"{role}.model", described["model"])
    if named != described["model"]:
        raise ValueError(
            f"--{role}.model must be the model of {role}.{key}={value}, which is {described['model']}, found {named}: "
            "leave it out"
        )
    if f"{role}.model_args" in options:
        described.pop("model_args")
    return replace(run, **{role: replace(config, **{key: str(path)}, **described)})


def _with_weights_of_before(run: Run, role: str, given: str) -> Run:
    """Keep the checkpoint with which the run in workdir was begun, where the option `given` names the run that it is
    of: that one may have trained on, or become finished, since."""
    workdir, path, (key, words) = Path(run.workdir), Path(given).expanduser(), WEIGHTS[role]
    moves = given not in words and is_student(path) and not TAG.fullmatch(path.name)
    if not moves or run.resume == "none" or not is_begun(workdir) or not (workdir / CONFIG).is_file():
        return run
    config, before = getattr(run, role), getattr(read_run(workdir), role)
    old, new = getattr(before, key) if before else "", getattr(config, key)
    if old in words or old == new or run_of(Path(old)) != run_of(Path(new)):
        return run
    if not Path(old).exists() and not (workdir / DONE).exists():
        raise ValueError(
            f"{workdir} was begun with {role}.{key}={old}, found no such file any more, and {given} means {new} now: "
            "put the file back, or give another --workdir"
        )
    logger.info("%s.%s stays %s, with which %s was begun, though %s means %s now", role, key, old, workdir, given, new)
    return replace(run, **{role: replace(config, **{key: old})})
