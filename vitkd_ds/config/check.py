"""What must hold between the fields of a run, checked before any model, file or device is touched. Nothing here imports
torch."""

import errno
import os
from importlib.util import find_spec
from pathlib import Path

from vitkd_ds.config.losses import BAD_ENTRY_POINTS
from vitkd_ds.config.run import Run, peak_lr
from vitkd_ds.config.run_folder import CHECKPOINTS, newest
from vitkd_ds.config.term import terms_of_a_teacher, terms_of_logits

EXTRAS = {
    "wandb": "pip install 'vitkd_ds[wandb]'",
    "mlflow": "pip install 'vitkd_ds[mlflow]'",
    # It asks for an older Pillow, whose resizing is not our decoder's, and works with ours.
    "trackio": "pip install 'vitkd_ds[trackio]' && pip install --no-deps 'trackio>=0.43,<0.44'",
}
"""Trackers that are packages of their own, under these names, and how to install them."""


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
    active = run.losses.active()
    if not active:
        raise ValueError(
            "losses must have at least one term, got none with a weight above 0. Set --losses.ce.weight=1."
        )
    _check_teacher(run)
    for term in active.values():
        term.check_run(run)


def check_workdir(run: Run) -> None:
    """Refuse a run folder that no start could make: at or below a file, or of a name that is too long."""
    try:
        os.stat(Path(run.workdir) / CHECKPOINTS / ("x" * 99))  # about as long as the paths in a checkpoint
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            raise ValueError(
                f"--workdir must be a folder that can be made, found {error.strerror}: {run.workdir!r}. Pass another."
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
    if run.teacher and run.teacher.head:
        raise ValueError(f"teacher.head gives logits of classes, but {why} (data.num_classes=0). Omit it.")
    if run.teacher is None:
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


def _check_teacher(run: Run) -> None:
    """Refuse terms without the teacher that they need, a teacher that none needs, and ways to run it that clash."""
    active = run.losses.active()
    needing = next((f"losses.{name}" for name, term in active.items() if term.needs.teacher), None)
    if needing and not run.teacher:
        raise ValueError(f"{needing} needs a teacher, and recipe {run.recipe} has none: set --{needing}.weight=0")
    if not run.teacher:
        return
    if not needing:
        raise ValueError(
            f"a teacher must be used by one of {', '.join(terms_of_a_teacher(run.losses))}, found no such term with a "
            "weight: give one a weight, or take a recipe without a teacher"
        )
    if run.teacher.fp8 and run.teacher.placement != "replica":
        raise ValueError(
            f"teacher.fp8 needs a teacher that is whole on each rank, found teacher.placement={run.teacher.placement}: "
            "add --teacher.placement=replica"
        )
    comparing = [name for name, term in active.items() if term.needs.tapped("teacher") is not None]
    if run.teacher.keep_tokens and comparing:
        raise ValueError(
            f"teacher.keep_tokens must be 0 with losses that compare tokens, some of which the teacher would lack, "
            f"found {run.teacher.keep_tokens} and losses.{', losses.'.join(comparing)}: set --teacher.keep_tokens=0, "
            f"or train with {', '.join(terms_of_logits(run.losses))} alone"
        )
    if run.teacher.checkpoint == "random" and not run.debug:
        raise ValueError("teacher.checkpoint=random is for --debug runs only: give a file or hub, or add --debug")


def _check_is_complete(run: Run) -> None:
    """Refuse a recipe that leaves models or data to the options, where these do not name them."""
    if not run.student.model:
        raise ValueError(
            f"student.model must name a timm model, and recipe {run.recipe} names none: give --student.model, or a run "
            "folder with --student.init"
        )
    if run.teacher and not run.teacher.model:
        raise ValueError(
            f"teacher.model must name a timm model, and recipe {run.recipe} names none: give --teacher.model, or a run "
            "folder with --teacher.checkpoint, or train with --teacher none"
        )
    for split in ("train", "val"):
        if not getattr(run.data, split):
            raise ValueError(
                f"data.{split} must name images, and recipe {run.recipe} names none: give a .beton, or a folder that "
                f"holds a folder per class, with --data.{split}"
            )


def _check_rate(run: Run) -> None:
    """Refuse a learning rate that has no epoch in which to fall, or falls to more than its peak. A debug run may: it is
    short, and its batch small."""
    optim = run.optim
    if optim.warmup_epochs and optim.warmup_fraction:
        raise ValueError(
            f"one of optim.warmup_epochs and optim.warmup_fraction must be 0, found {optim.warmup_epochs:g} and "
            f"{optim.warmup_fraction:g}: set the other one to 0"
        )
    if run.debug:
        return
    if optim.warmup_epochs >= run.epochs:
        raise ValueError(
            f"optim.warmup_epochs must be less than epochs, or the learning rate never falls, found "
            f"{optim.warmup_epochs:g} of {run.epochs:g}: lower --optim.warmup_epochs, or set it to 0 and give "
            "--optim.warmup_fraction=0.05"
        )
    if optim.min_lr > peak_lr(run):
        raise ValueError(
            f"optim.min_lr must be at most the peak learning rate, which is {optim.lr:g} for {optim.lr_batch_size} "
            f"images and {peak_lr(run):g} for global_batch_size={run.global_batch_size}, found {optim.min_lr:g}: lower "
            "--optim.min_lr, or raise --optim.lr"
        )
