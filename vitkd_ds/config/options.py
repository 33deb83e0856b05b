"""Apply command-line options to a run, and change settings that depend on them. Imports no torch.

For example, an option with a run folder also sets the model, and `--teacher none` switches off loss terms.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Mapping

from vitkd_ds.config import run_folder
from vitkd_ds.config.overrides import apply_overrides
from vitkd_ds.config.run import Run, StudentConfig, TeacherConfig
from vitkd_ds.config.selected import HUB, SELECT, is_selected, selected_file
from vitkd_ds.config.teachers import MANY, USUAL, path_of, shortened
from vitkd_ds.config.term import terms_of_a_teacher

logger = logging.getLogger(__name__)

WEIGHTS = {StudentConfig: ("init", ("", "hub")), TeacherConfig: ("checkpoint", ("", "hub", "demo", "random"))}
"""For each settings class, the field that names the weights, and the values of this field that are not paths."""


def apply_options(recipe: Run, options: Mapping[str, str]) -> Run:
    """Return a copy of a recipe's run with options set, such as {"optim.lr": "3e-4"}.

    - `teacher`: "none" removes all teachers and switches off the terms that need one. Setting any option of a teacher
      that the recipe lacks adds that teacher. `teacher.X` is short for `teachers.teacher.X`.
    - `teacher.checkpoint` and `student.init` accept a run folder, a checkpoint or an export. The model and its
      arguments are then taken from there, and the setting becomes the path of the weight file. If the run in workdir
      was started from an earlier checkpoint of that folder, the run keeps using that checkpoint.
    - `student.init=select:SOURCE` keeps the student's model.
    - A new `student.model` or `teacher.model` does not inherit the recipe's model_args.

    Raises:
        ValueError: an option is unknown (the message suggests the nearest), a value is invalid, or files contradict
            the options.
    """
    own = {shortened(key): text for key, text in options.items() if key != USUAL}
    run = apply_overrides(_with_teachers(recipe, options), own)
    for role, config in run.models.items():
        run = _with_described_model(_without_old_args(run, recipe, role, own), role, own)
        key, _ = WEIGHTS[type(config)]
        if f"{role}.{key}" in own:
            run = _with_weights_of_before(run, role, own[f"{role}.{key}"])
    return run if run.teachers else _without_terms_of_a_teacher(run, options)


def _with_teachers(run: Run, options: Mapping[str, str]) -> Run:
    """Add teachers that options mention but the run does not have. If `teacher` is "none", remove all teachers."""
    paths = {key: path_of(key) for key in options if key != USUAL}
    own = {key: path[1] for key, path in paths.items() if path[0] == MANY and len(path) == 3}
    if USUAL not in options:
        added = {name: TeacherConfig(model="") for name in own.values() if name not in run.teachers}
        return replace(run, teachers=run.teachers | added)
    if options[USUAL] != "none":
        raise ValueError(
            f"--teacher must be none, got {options[USUAL]!r}. Pass a teacher's weights or run folder with "
            "--teacher.checkpoint, or its architecture with --teacher.model."
        )
    for key in own:
        raise ValueError(f"--{key} and --teacher none exclude each other. Omit one of them.")
    return replace(run, teachers={})


def _without_terms_of_a_teacher(run: Run, options: Mapping[str, str]) -> Run:
    """Switch off the terms that need a teacher, except terms whose weight is given as an option.

    A weight above 0 in such an option is an error. With --teacher none, this function raises ValueError; otherwise
    `check_run` does so later.
    """
    for name in terms_of_a_teacher(run.losses):
        term, option = getattr(run.losses, name), f"losses.{name}.weight"
        if option not in options:
            run = replace(run, losses=replace(run.losses, **{name: replace(term, weight=0.0)}))
        elif term.weight and USUAL in options:
            raise ValueError(f"--{option}={options[option]} and --teacher none exclude each other. Omit one of them.")
    return run


def _without_old_args(run: Run, recipe: Run, role: str, options: Mapping[str, str]) -> Run:
    """Drop the recipe's model_args if the run has another model than the recipe."""
    config, before = run.models[role], recipe.models.get(role)
    is_other = before is not None and config.model != before.model
    if not (is_other and config.model_args and f"{role}.model_args" not in options):
        return run
    old = f"recipe {recipe.recipe}'s {before.model}"
    args = dict(config.model_args)
    logger.info(f"{role}.model={config.model} replaces {old}; dropped the recipe's {role}.model_args {args}")
    return run.with_model(role, replace(config, model_args={}))


def _with_described_model(run: Run, role: str, options: Mapping[str, str]) -> Run:
    """Set a role's weights to the file in the given folder, and its model to the one described in the file's .json.

    Raise ValueError if an option names another model. If an option sets `model_args`, the option overrides the .json
    file, because a model may need other arguments now than when it was stored.
    """
    config = run.models[role]
    key, words = WEIGHTS[type(config)]
    value = getattr(config, key)
    if value in words:
        return run
    if is_selected(value):
        file = selected_file(value, run.teachers)
        if value in (SELECT, f"{SELECT}{HUB}"):
            raise ValueError(f"--{role}.{key}={value} names no model. Pass select:teacher, select:hub:MODEL or a path.")
        if file and "/" not in file and not Path(file).exists():
            teachers = f"its teachers are {', '.join(run.teachers)}" if run.teachers else "it has no teacher"
            raise ValueError(
                f"--{role}.{key}={value}: {file} is not a teacher of this run, because {teachers}, and no file "
                "or folder has that name. Name a teacher, pass a path, or use select:hub:MODEL."
            )
        if file and f"{role}.{key}" in options:
            value = f"{SELECT}{run_folder.find_weights(file, f'--{role}.{key}={value}')}"
        return run.with_model(role, replace(config, init=value))
    # A path from an option must exist now. A stored path is checked when it is loaded.
    path = run_folder.find_weights(value, f"{role}.{key}") if f"{role}.{key}" in options else Path(value)
    described = run_folder.model_of(run_folder.description_beside(path))
    named = options.get(f"{role}.model")
    if described and named not in (None, described["model"]):
        raise ValueError(
            f"--{role}.model={named} contradicts {role}.{key}={value}, which holds {described['model']}. "
            f"Omit --{role}.model."
        )
    if f"{role}.model_args" in options:
        described.pop("model_args", None)
    return run.with_model(role, replace(config, **{key: str(path)}, **described))


def _with_weights_of_before(run: Run, role: str, given: str) -> Run:
    """Keep the weights that the run in workdir was started with, if they come from the run that the option names.

    The named run may have a newer checkpoint by now. Switching to it would change the run in workdir, which has already
    started. `given` is the value of the option.
    """
    config = run.models[role]
    key, words = WEIGHTS[type(config)]
    workdir, path = Path(run.workdir), Path(given).expanduser()
    moves = given not in words and run_folder.is_student(path) and not run_folder.TAG.fullmatch(path.name)
    is_begun = run_folder.is_begun(workdir) and (workdir / run_folder.CONFIG).is_file()
    if not moves or run.resume == "none" or not is_begun:
        return run
    before = run_folder.read_run(workdir).models.get(role)
    old, new = getattr(before, key) if before else "", getattr(config, key)
    if old in words or old == new or run_folder.run_of(Path(old)) != run_folder.run_of(Path(new)):
        return run
    if not Path(old).exists() and not (workdir / run_folder.DONE).exists():
        raise ValueError(
            f"{workdir} was started with {role}.{key}={old}, which no longer exists. {given} is now {new}. "
            "Restore the old file, or pass another --workdir."
        )
    logger.info(f"keeping {role}.{key}={old}, with which {workdir} was started, although {given} is now {new}")
    return run.with_model(role, replace(config, **{key: old}))
