"""What must hold between the fields of a run, checked before any model, file or device is touched. Nothing here imports
torch."""

import errno
import os
import re
from importlib.util import find_spec
from pathlib import Path

from vitkd_ds.config.losses import BAD_ENTRY_POINTS
from vitkd_ds.config.run import Run, TeacherConfig, peak_lr
from vitkd_ds.config.run_folder import CHECKPOINTS, newest
from vitkd_ds.config.teachers import called, role_of, teacher_of
from vitkd_ds.config.term import terms_of_a_teacher, terms_of_logits

EXTRAS = {
    "wandb": "pip install 'vitkd_ds[wandb]'",
    "mlflow": "pip install 'vitkd_ds[mlflow]'",
    # It asks for an older Pillow, whose resizing is not our decoder's, and works with ours.
    "trackio": "pip install 'vitkd_ds[trackio]' && pip install --no-deps 'trackio>=0.43,<0.44'",
}
"""Trackers that are packages of their own, under these names, and how to install them."""

NAME = re.compile(r"[A-Za-z0-9_-]+")
"""What a teacher may be called: its name is part of options and of the names of logged values."""


def check_run(run: Run) -> None:
    """Check what spans several fields; raises ValueError before any model, file or device is touched."""
    is_begun = bool(newest(Path(run.workdir) / CHECKPOINTS))  # what it was started from may be gone by now
    if run.resume not in ("auto", "none") and not is_begun and not Path(run.resume).is_dir():
        raise ValueError(f"--resume must be auto, none, or the folder of a run or checkpoint, found {run.resume!r}")
    _check_trackers(run)
    if BAD_ENTRY_POINTS:
        raise ValueError(BAD_ENTRY_POINTS[0])
    _check_is_complete(run)
    _check_rate(run)
    if not run.losses.active():
        raise ValueError(
            "losses must have at least one term, got none with a weight above 0. Set --losses.ce.weight=1."
        )
    _check_teachers(run)
    for term in run.losses.active().values():
        term.check_run(run)


def check_workdir(run: Run) -> None:
    """Refuse a run folder that no start could make: at or below a file, or of a name that is too long."""
    try:
        os.stat(Path(run.workdir) / CHECKPOINTS / ("x" * 99))  # about as long as the paths in a checkpoint
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            raise ValueError(
                f"--workdir must be a folder that can be made, got {run.workdir!r}: {error.strerror}. Pass another."
            ) from error


def check_classes(run: Run) -> None:
    """Check what depends on the classes of the data, once they are counted: data.num_classes is 0 if there are none.

    Raises:
        ValueError: k-NN for half of its splits, or for a run that has a top-1; terms or a head that need classes where
            there are none.
    """
    data = run.data
    given = [f"data.{name}" for name in ("knn_train", "knn_val") if getattr(data, name)]
    if len(given) == 1:
        raise ValueError(f"data.knn_train and data.knn_val go together, got {given[0]} only. Give both or none.")
    if given and data.num_classes:
        raise ValueError(
            f"data.knn_train is for runs without labels, got data.num_classes={data.num_classes}. Omit it and "
            "data.knn_val."
        )
    if data.num_classes and data.labels == "ignore":
        raise ValueError(
            f"data.num_classes must be 0 where data.labels=ignore, got {data.num_classes}. Add --data.num_classes=0, "
            "or omit --data.labels."
        )
    if not data.num_classes:
        _check_without_classes(run)


def _check_without_classes(run: Run) -> None:
    """Reject terms that need labels or a classifier, and a run without a teacher."""
    why = "labels are ignored" if run.data.labels == "ignore" else "data.train has no labels"
    terms = run.losses.terms().items()
    needing = {name: term for name, term in run.losses.active().items() if term.needs.classes}
    if needing:
        first, term = next(iter(needing.items()))
        off = " ".join(f"--losses.{name}.weight=0" for name in needing)
        raise ValueError(
            f"losses.{first} needs {'labels' if term.needs.labels else 'logits of a classifier'}, but {why} "
            f"(data.num_classes=0). Set {off}, and give a weight to one or more of "
            f"{', '.join(name for name, term in terms if not term.needs.classes)}."
        )
    for name, teacher in run.teachers.items():
        if teacher.head:
            raise ValueError(f"{role_of(name)}.head gives logits of classes, but {why} (data.num_classes=0). Omit it.")
    if not run.teachers:
        raise ValueError(
            f"no teacher given, but {why} (data.num_classes=0). Pass --teacher.model NAME or --teacher.checkpoint RUN."
        )


def _check_trackers(run: Run) -> None:
    """Refuse a tracker that is not installed. A folder of its name in the current one, which is no package, is not."""
    for name, command in EXTRAS.items():
        found = find_spec(name) if name in run.trackers else None
        if name in run.trackers and (found is None or found.origin is None):
            raise ValueError(
                f"trackers: {name} must be installed, found none: {command}, or leave {name} out of --trackers"
            )


def _check_teachers(run: Run) -> None:
    """Reject terms without the teacher that they need, a teacher that no term needs, and ways to run it that clash."""
    names = ", ".join(run.teachers)
    for key, term in run.losses.active().items():
        if not term.needs.teacher:
            continue
        if not run.teachers:
            off = f"--losses.{key}.weight=0"
            raise ValueError(f"losses.{key} needs a teacher, and recipe {run.recipe} has none. Set {off}.")
        if teacher_of(term, run.teachers) not in run.teachers:
            raise ValueError(
                f"losses.{key}.teacher={term.teacher} is no teacher of this run, whose teachers are {names}. Set "
                f"--losses.{key}.teacher to one of them."
            )
    for name, teacher in run.teachers.items():
        if not NAME.fullmatch(name):
            raise ValueError(f"a teacher's name must have letters, digits, - and _ only, got {name!r}. Rename it.")
        losses = run.losses_of(name)
        if not losses.active():
            which = f" and teacher={name}" if len(run.teachers) > 1 else ""
            raise ValueError(
                f"{called(name)} has no use, as no term of {', '.join(terms_of_a_teacher(run.losses))} has a weight"
                f"{which}. Give one a weight{which}, or train with --teacher none."
            )
        _check_teacher(role_of(name), teacher, run)


def _check_teacher(role: str, teacher: TeacherConfig, run: Run) -> None:
    """Reject ways to run a teacher that clash with each other or with the losses."""
    if teacher.fp8 and teacher.placement != "replica":
        raise ValueError(
            f"{role}.fp8 needs a teacher that is whole on each rank, got {role}.placement={teacher.placement}. "
            f"Add --{role}.placement=replica."
        )
    # The student's attention chooses the patches, from a forward pass that gives its logits only.
    active = run.losses.active().items()
    comparing = [key for key, term in active if term.needs.tapped("teacher") is not None]
    if teacher.keep_tokens and comparing:
        raise ValueError(
            f"{role}.keep_tokens must be 0 with losses that compare tokens, some of which the teacher would lack, "
            f"found {teacher.keep_tokens} and losses.{', losses.'.join(comparing)}: set --{role}.keep_tokens=0, "
            f"or train with {', '.join(terms_of_logits(run.losses))} alone"
        )
    if teacher.checkpoint == "random" and not run.debug:
        raise ValueError(f"{role}.checkpoint=random is for --debug runs only. Give a file or hub, or add --debug.")


def _check_is_complete(run: Run) -> None:
    """Reject a recipe that leaves models or data to the options, where these do not name them."""
    no_model = f"must name a timm model, and recipe {run.recipe} names none. Give"
    if not run.student.model:
        raise ValueError(f"student.model {no_model} --student.model, or a run folder with --student.init.")
    for name, teacher in run.teachers.items():
        role = role_of(name)
        if not teacher.model:
            raise ValueError(
                f"{role}.model {no_model} --{role}.model, or a run folder with --{role}.checkpoint, or train with "
                "--teacher none."
            )
    for split in ("train", "val"):
        if not getattr(run.data, split):
            raise ValueError(
                f"data.{split} must name images, and recipe {run.recipe} names none. Give a .beton, or a folder that "
                f"holds a folder per class, with --data.{split}."
            )


def _check_rate(run: Run) -> None:
    """Reject a learning rate that has no epoch in which to fall, or falls to more than its peak. A debug run may: it is
    short, and its batch small."""
    optim = run.optim
    if optim.warmup_epochs and optim.warmup_fraction:
        raise ValueError(
            f"one of optim.warmup_epochs and optim.warmup_fraction must be 0, got {optim.warmup_epochs:g} and "
            f"{optim.warmup_fraction:g}. Set the other one to 0."
        )
    if optim.warmup_epochs >= run.epochs and not run.debug:
        raise ValueError(
            f"optim.warmup_epochs must be less than epochs, or the learning rate never falls, got "
            f"{optim.warmup_epochs:g} of {run.epochs:g}. Lower --optim.warmup_epochs, or set it to 0 and give "
            "--optim.warmup_fraction=0.05."
        )
    if optim.min_lr > peak_lr(run) and not run.debug:
        raise ValueError(
            f"optim.min_lr must be at most the peak learning rate, which is {optim.lr:g} for {optim.lr_batch_size} "
            f"images and {peak_lr(run):g} for global_batch_size={run.global_batch_size}, got {optim.min_lr:g}. Lower "
            "--optim.min_lr, or raise --optim.lr."
        )
