"""Check that the settings of a run fit together, before any model is built. Imports no torch."""

import errno
import math
import os
import re
from importlib.util import find_spec
from pathlib import Path

from vitkd_ds.config.image_sizes import check_phases, check_sizes, phases_of
from vitkd_ds.config.losses import BAD_ENTRY_POINTS
from vitkd_ds.config.run import Run, TeacherConfig, peak_lr
from vitkd_ds.config.run_folder import CHECKPOINTS, newest
from vitkd_ds.config.teachers import called, role_of, teacher_of
from vitkd_ds.config.term import terms_of_a_teacher, terms_of_logits

EXTRAS = {
    "wandb": "pip install 'vitkd_ds[wandb]'",
    "mlflow": "pip install 'vitkd_ds[mlflow]'",
    # trackio pins an older Pillow, which resizes differently from our decoder, but also works with a newer one.
    "trackio": "pip install 'vitkd_ds[trackio]' && pip install --no-deps 'trackio>=0.43,<0.44'",
}
"""Trackers that need a package of the same name, each with the command that installs the package."""

NAME = re.compile(r"[A-Za-z0-9_-]+")
"""Pattern of valid teacher names. A teacher's name becomes part of the names of options and logged values."""


def check_run(run: Run) -> None:
    """Raise ValueError if settings are missing or contradict each other. Builds no model and reads no image."""
    # A run with checkpoints no longer needs the folder it was started from.
    is_begun = bool(newest(Path(run.workdir) / CHECKPOINTS))
    if run.resume not in ("auto", "none") and not is_begun and not Path(run.resume).is_dir():
        raise ValueError(
            f"--resume must be auto, none, or an existing run or checkpoint folder, got {run.resume!r}. Check the path."
        )
    _check_trackers(run)
    if BAD_ENTRY_POINTS:
        raise ValueError(BAD_ENTRY_POINTS[0])
    _check_is_complete(run)
    _check_rate(run)
    _check_image_sizes(run)
    if not run.losses.active():
        raise ValueError("no loss term is on: the weights of all terms are 0. Set one, such as --losses.ce.weight=1.")
    _check_teachers(run)
    for term in run.losses.active().values():
        term.check_run(run)


def check_workdir(run: Run) -> None:
    """Raise ValueError if the run folder cannot be created.

    Possible reasons: a file is in the way, the path or a name in it is too long, or links in it form a loop.
    """
    try:
        os.stat(Path(run.workdir) / CHECKPOINTS / ("x" * 99))  # about as long as the paths in a checkpoint
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            raise ValueError(
                f"--workdir={run.workdir} cannot be created: {error.strerror}. Pass another folder."
            ) from error


def check_classes(run: Run) -> None:
    """Check the settings that depend on data.num_classes, which must already be known (0 for data without labels).

    Raises:
        ValueError: the settings for k-NN, labels and classes contradict each other; or there are no classes, but there
            is no teacher either, or a loss term or a teacher's linear head needs classes.
    """
    data = run.data
    given = [f"data.{name}" for name in ("knn_train", "knn_val") if getattr(data, name)]
    if len(given) == 1:
        raise ValueError(f"data.knn_train and data.knn_val go together, got {given[0]} only. Give both or none.")
    if given and data.num_classes:
        raise ValueError(
            f"data.knn_train is for runs without labels, got data.num_classes={data.num_classes}. Omit "
            "data.knn_train and data.knn_val."
        )
    if data.num_classes and data.labels == "ignore":
        raise ValueError(
            f"data.num_classes must be 0 with data.labels=ignore, got {data.num_classes}. Add --data.num_classes=0, "
            "or omit --data.labels."
        )
    if not data.num_classes:
        _check_without_classes(run)


def _check_without_classes(run: Run) -> None:
    """Raise ValueError if a run without classes has no teacher, or has a term or a linear head that needs classes."""
    why = "labels are ignored" if run.data.labels == "ignore" else "data.train has no labels"
    terms = run.losses.terms().items()
    needing = {name: term for name, term in run.losses.active().items() if term.needs.classes}
    if needing:
        first, term = next(iter(needing.items()))
        off = " ".join(f"--losses.{name}.weight=0" for name in needing)
        raise ValueError(
            f"losses.{first} needs {'labels' if term.needs.labels else 'logits of a classifier'}, but {why} "
            f"(data.num_classes=0). Set {off}, and set the weight of one or more of "
            f"{', '.join(name for name, term in terms if not term.needs.classes)}."
        )
    for name, teacher in run.teachers.items():
        if teacher.head:
            raise ValueError(
                f"{role_of(name)}.head computes class logits, but {why} (data.num_classes=0). "
                f"Omit --{role_of(name)}.head."
            )
    if not run.teachers:
        raise ValueError(
            f"no teacher given, but {why} (data.num_classes=0). Pass --teacher.model NAME or --teacher.checkpoint RUN."
        )


def _check_trackers(run: Run) -> None:
    """Raise ValueError if the package of a tracker is not installed.

    Python also finds a folder of the same name in the current folder (such as wandb/), but as a module without an
    origin. Such a folder does not count as the package.
    """
    for name, command in EXTRAS.items():
        found = find_spec(name) if name in run.trackers else None
        if name in run.trackers and (found is None or found.origin is None):
            raise ValueError(f"tracker {name} is not installed. Run {command}, or remove {name} from --trackers.")


def _check_teachers(run: Run) -> None:
    """Raise ValueError if a term lacks its teacher, no term uses a teacher, or a teacher is invalid."""
    names = ", ".join(run.teachers)
    for key, term in run.losses.active().items():
        if not term.needs.teacher:
            continue
        if not run.teachers:
            off = f"--losses.{key}.weight=0"
            raise ValueError(f"losses.{key} needs a teacher, and recipe {run.recipe} has none. Set {off}.")
        if teacher_of(term, run.teachers) not in run.teachers:
            raise ValueError(
                f"losses.{key}.teacher={term.teacher} is not a teacher of this run. Set --losses.{key}.teacher to one "
                f"of {names}."
            )
    for name, teacher in run.teachers.items():
        if not NAME.fullmatch(name):
            raise ValueError(f"a teacher's name may contain only letters, digits, - and _, got {name!r}. Rename it.")
        losses = run.losses_of(name)
        if not losses.active():
            which = f" and teacher={name}" if len(run.teachers) > 1 else ""
            raise ValueError(
                f"{called(name)} is not used: none of {', '.join(terms_of_a_teacher(run.losses))} has a weight "
                f"above 0{which}. Set a weight{which}, or train with --teacher none."
            )
        _check_teacher(role_of(name), teacher, run)


def _check_teacher(role: str, teacher: TeacherConfig, run: Run) -> None:
    """Raise ValueError if settings of a teacher conflict with each other or with the losses."""
    if teacher.fp8 and teacher.placement != "replica":
        raise ValueError(
            f"{role}.fp8 needs the whole teacher on each rank, got {role}.placement={teacher.placement}. "
            f"Add --{role}.placement=replica."
        )
    # With keep_tokens, the student's forward pass chooses the teacher's patches and returns only logits.
    active = run.losses.active().items()
    comparing = [key for key, term in active if term.needs.tapped("teacher") is not None]
    if teacher.keep_tokens and comparing:
        raise ValueError(
            f"{role}.keep_tokens={teacher.keep_tokens} drops tokens that losses.{', losses.'.join(comparing)} compare. "
            f"Set --{role}.keep_tokens=0, or use only terms that compare logits "
            f"({', '.join(terms_of_logits(run.losses))})."
        )
    if teacher.checkpoint == "random" and not run.debug:
        raise ValueError(f"{role}.checkpoint=random is for --debug runs only. Pass a file or hub, or add --debug.")


def _check_is_complete(run: Run) -> None:
    """Raise ValueError unless the student's model, the model of every teacher, and the data are set."""
    no_model = f"recipe {run.recipe} has no default for it"
    if not run.student.model:
        raise ValueError(
            f"student.model is not set, and {no_model}. Pass --student.model NAME, or --student.init with a run folder."
        )
    for name, teacher in run.teachers.items():
        role = role_of(name)
        if not teacher.model:
            raise ValueError(
                f"{role}.model is not set, and {no_model}. Pass --{role}.model NAME, or --{role}.checkpoint with a run "
                "folder, or --teacher none."
            )
    for split in ("train", "val"):
        if not getattr(run.data, split):
            raise ValueError(
                f"data.{split} is not set, and recipe {run.recipe} has no default for it. Pass --data.{split} with "
                "a .beton file, or with a folder that has one subfolder per class."
            )


def _check_rate(run: Run) -> None:
    """Raise ValueError if both warm-ups are set, the learning rate never decays, or its minimum is above its peak.

    Debug runs may break the last two rules, because they have few steps and a small batch.
    """
    optim = run.optim
    if optim.warmup_epochs and optim.warmup_fraction:
        raise ValueError(
            f"optim.warmup_epochs={optim.warmup_epochs:g} and optim.warmup_fraction={optim.warmup_fraction:g} exclude "
            "each other. Set one of them to 0."
        )
    if optim.warmup_epochs >= run.epochs and not run.debug:
        raise ValueError(
            f"optim.warmup_epochs ({optim.warmup_epochs:g}) must be less than epochs ({run.epochs:g}); otherwise the "
            "learning rate never decays. Lower --optim.warmup_epochs, or set it to 0 and pass "
            "--optim.warmup_fraction=0.05."
        )
    if optim.min_lr > peak_lr(run) and not run.debug:
        raise ValueError(
            f"optim.min_lr must be at most the peak learning rate, which is {peak_lr(run):g} for "
            f"global_batch_size={run.global_batch_size} (optim.lr={optim.lr:g} is for {optim.lr_batch_size} images), "
            f"got {optim.min_lr:g}. Lower --optim.min_lr, or raise --optim.lr."
        )


def _check_image_sizes(run: Run) -> None:
    """Raise ValueError if data.image_sizes does not fit data.image_size, the number of epochs or a teacher."""
    text = run.data.image_sizes
    if not text:
        return
    check_sizes(text, run.data.image_size)
    if not run.debug:  # debug runs are shorter than an epoch
        check_phases(phases_of(text, math.ceil(run.epochs)), text)
    for name, teacher in run.teachers.items():
        if teacher.image_size not in (0, run.data.image_size):
            raise ValueError(
                f"data.image_sizes needs teachers that see the student's images, got {role_of(name)}.image_size="
                f"{teacher.image_size} and data.image_size={run.data.image_size}. Set --{role_of(name)}.image_size=0, "
                "or omit --data.image_sizes."
            )
