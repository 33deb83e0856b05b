"""Checks between the fields of a run, made before any model, file or device is touched. Imports no torch."""

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
    # trackio pins an older Pillow, which resizes differently from our decoder. It also works with the newer one.
    "trackio": "pip install 'vitkd_ds[trackio]' && pip install --no-deps 'trackio>=0.43,<0.44'",
}
"""Trackers that need another package of the same name, with the install command."""

NAME = re.compile(r"[A-Za-z0-9_-]+")
"""Valid name of a teacher, which becomes part of options and of logged names."""


def check_run(run: Run) -> None:
    """Raise ValueError if fields of a run contradict each other. Touches no model, device or image."""
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
    if not run.losses.active():
        raise ValueError("no loss term is on: the weights of all terms are 0. Set one, such as --losses.ce.weight=1.")
    _check_teachers(run)
    for term in run.losses.active().values():
        term.check_run(run)


def check_workdir(run: Run) -> None:
    """Raise ValueError if the run folder cannot be created: a path at or below a file, or too long a name."""
    try:
        os.stat(Path(run.workdir) / CHECKPOINTS / ("x" * 99))  # about as long as the paths in a checkpoint
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            raise ValueError(
                f"--workdir={run.workdir} cannot be created: {error.strerror}. Pass another folder."
            ) from error


def check_classes(run: Run) -> None:
    """Check the settings that depend on the number of classes, once it is known (0 for data without labels).

    Raises:
        ValueError: only one of the two k-NN splits is given, k-NN is set for data with labels, or a term or
            teacher head needs classes and there are none.
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
            f"data.num_classes must be 0 with data.labels=ignore, got {data.num_classes}. Add --data.num_classes=0, "
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
            f"(data.num_classes=0). Set {off}, and set the weight of one or more of "
            f"{', '.join(name for name, term in terms if not term.needs.classes)}."
        )
    for name, teacher in run.teachers.items():
        if teacher.head:
            raise ValueError(f"{role_of(name)}.head computes class logits, but {why} (data.num_classes=0). Omit it.")
    if not run.teachers:
        raise ValueError(
            f"no teacher given, but {why} (data.num_classes=0). Pass --teacher.model NAME or --teacher.checkpoint RUN."
        )


def _check_trackers(run: Run) -> None:
    """Raise ValueError for a tracker that is not installed.

    A folder with the tracker's name in the current folder (such as wandb/) is found without an origin and does not
    count as the package.
    """
    for name, command in EXTRAS.items():
        found = find_spec(name) if name in run.trackers else None
        if name in run.trackers and (found is None or found.origin is None):
            raise ValueError(f"tracker {name} is not installed. Run {command}, or remove {name} from --trackers.")


def _check_teachers(run: Run) -> None:
    """Reject terms that lack their teacher, teachers that no term uses, and conflicting settings of a teacher."""
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
                f"{called(name)} is not used: none of {', '.join(terms_of_a_teacher(run.losses))} has a weight"
                f"{which}. Set a weight{which}, or train with --teacher none."
            )
        _check_teacher(role_of(name), teacher, run)


def _check_teacher(role: str, teacher: TeacherConfig, run: Run) -> None:
    """Reject settings of a teacher that conflict with each other or with the losses."""
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
            f"Set --{role}.keep_tokens=0, or use only losses of logits ({', '.join(terms_of_logits(run.losses))})."
        )
    if teacher.checkpoint == "random" and not run.debug:
        raise ValueError(f"{role}.checkpoint=random is for --debug runs only. Pass a file or hub, or add --debug.")


def _check_is_complete(run: Run) -> None:
    """Reject a run without a model or data, which neither its recipe nor an option names."""
    no_model = f"is not set, and recipe {run.recipe} has no default. Pass"
    if not run.student.model:
        raise ValueError(f"student.model {no_model} --student.model, or a run folder with --student.init.")
    for name, teacher in run.teachers.items():
        role = role_of(name)
        if not teacher.model:
            raise ValueError(
                f"{role}.model {no_model} --{role}.model, or a run folder with --{role}.checkpoint, or --teacher none."
            )
    for split in ("train", "val"):
        if not getattr(run.data, split):
            raise ValueError(
                f"data.{split} is not set, and recipe {run.recipe} has no default. Pass a .beton, or a folder with a "
                f"subfolder per class, with --data.{split}."
            )


def _check_rate(run: Run) -> None:
    """Reject a learning rate that never decays, or a minimum above its peak.

    Debug runs are exempt: their few steps and small batch break these rules.
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
            f"optim.min_lr must be at most the peak learning rate, which is {optim.lr:g} for {optim.lr_batch_size} "
            f"images and {peak_lr(run):g} for global_batch_size={run.global_batch_size}, got {optim.min_lr:g}. Lower "
            "--optim.min_lr, or raise --optim.lr."
        )
