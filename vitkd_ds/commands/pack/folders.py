"""Pack a run's class folders on first use, so that `--data.train FOLDER` works without a pack command.

The folder `photos/train` is packed into the file `photos/train.beton` before the process group starts. The first rank
packs, and the other ranks wait for the file. If another run is already packing this folder, the first rank waits too.
torch is imported only if a folder must be packed.
"""

import logging
import shlex
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from vitkd_ds.checkpoint.folder import check_begun
from vitkd_ds.config.options import WEIGHTS
from vitkd_ds.config.run import Run
from vitkd_ds.config.run_folder import check_is_there
from vitkd_ds.config.selected import is_selected, selected_file, source_of
from vitkd_ds.data.beton.format import check_beton, partial_path
from vitkd_ds.data.beton.side_file import SOURCE_KEY, read_side, side_path
from vitkd_ds.data.classes import check_is_not_one, check_is_packed, is_class_folder, packed_path
from vitkd_ds.data.demo import demo_beton
from vitkd_ds.data.sources import Source, open_source
from vitkd_ds.data.sources.folder import check_are_no_splits, class_names, earlier_fingerprint
from vitkd_ds.engine.ds_config import find_ds_config
from vitkd_ds.train import console, signals

logger = logging.getLogger(__name__)

POLL_S, SAY_S, PATIENCE_S = 1.0, 60.0, 600.0
"""Seconds to wait while another process packs: between two checks, between two log lines, and in total if the file does
not grow."""


def packed_or_exit(run: Run) -> Run:
    """Call `pack_folders` and return its result. Exit the process if a packing worker fails or a signal arrives."""
    try:
        return pack_folders(run)
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        logger.warning("stopped before the images were packed. Rerun the same command to continue.")
        sys.exit()


def pack_folders(run: Run, *, may_pack: bool = True) -> Run:
    """Pack data.train and data.val if they are class folders; return the run with the paths of the .betons.

    data.val gets the classes of data.train. An existing .beton is reused if the file names, file sizes and classes of
    its folder have not changed; only the first rank checks this. With the torchvision backend, which reads folders
    directly, the run is returned unchanged.

    Args:
        may_pack: whether to pack missing .betons. If False, a missing .beton is an error; commands that should not
            write pass False.

    Raises:
        ValueError: a folder cannot be packed or has changed since it was packed; another process that packs it makes
            no progress; or a setting of the run is invalid.
        RuntimeError: a packing worker failed or was killed, or the disk is full.
        KeyboardInterrupt: a signal arrived. The images packed so far are kept, and the next run packs the others.
    """
    if run.data.backend != "ffcv":
        return run
    train, val = run.data.train, run.data.val
    check_is_packed("data.train", train)
    check_is_packed("data.val", val)
    if may_pack and any(is_class_folder(path) and not packed_path(Path(path)).exists() for path in (train, val)):
        _check_without_images(run)
    ignores = run.data.labels == "ignore"
    if is_class_folder(train):
        num_classes = len(class_names(Path(train))) if ignores else run.data.num_classes
        train = _packed("data.train", Path(train), num_classes=num_classes, may_pack=may_pack)
    if val == run.data.train:
        val = train
    elif is_class_folder(val) and ignores:
        val = _packed("data.val", Path(val), num_classes=len(class_names(Path(val))), may_pack=may_pack)
    elif is_class_folder(val):
        # Check train before packing val, which may take an hour; it also determines the order of classes.
        info = check_beton(demo_beton("train") if train == "demo" else train)
        if not info.classes:
            raise ValueError(
                f"data.val has class folders, but data.train={train} has no labels. Pack it without labels (vitkd-ds "
                f"pack {shlex.quote(val)} FILE.beton --labels none), or pass --data.labels=ignore."
            )
        val = _packed("data.val", Path(val), classes=str(info.path), may_pack=may_pack)
    return replace(run, data=replace(run.data, train=train, val=val))


def find_packed(key: str, path: str) -> str:
    """Return the path of a class folder's .beton. Return any other path unchanged.

    Args:
        key: option that the path comes from, for error messages.
        path: path to look up.

    Raises:
        ValueError: the folder is not packed or has changed since it was packed.
    """
    check_is_packed(key, path)
    return _packed(key, Path(path), may_pack=False) if is_class_folder(path) else path


def _check_without_images(run: Run) -> None:
    """Before packing, check all settings that can be checked without images. Raise ValueError for an invalid one."""
    check_begun(run)
    find_ds_config(run.ds_config)
    for role, config in run.models.items():
        key, words = WEIGHTS[type(config)]
        value = getattr(config, key)
        file = selected_file(value, run.teachers) if is_selected(value) else value
        if file not in words:
            check_is_there(file, f"{role}.{key}")
    if not console.is_first_rank():
        return
    from vitkd_ds.models.hub import check_hub_is_reached, check_model_name  # imports timm, which is slow

    for role, config in run.models.items():
        check_model_name(config.model, role=role)
        key, _ = WEIGHTS[type(config)]
        value = getattr(config, key)
        if is_selected(value):
            from vitkd_ds.models.build import check_source

            check_source(value, source_of(value, run.teachers))
        if value == "hub":
            check_hub_is_reached(config.model, key=f"{role}.{key}")


def _packed(key: str, folder: Path, *, num_classes: int = 0, classes: str = "", may_pack: bool) -> str:
    """Return the path of a class folder's .beton. If it is missing, pack it, or raise ValueError if not `may_pack`.

    Args:
        num_classes: number of classes that the folder must have; ignored if `classes` is given.
        classes: file with the classes to pack with; "" takes the names of the class folders.
    """
    dst = packed_path(folder)
    if not may_pack and not dst.exists():
        check_are_no_splits(folder, class_names(folder))  # pack would reject them, too
        raise ValueError(
            f"{key} is a folder that is not packed yet: {str(dst)!r} does not exist. Run: "
            f"{_command(key, folder, dst, classes)}"
        )
    if not console.is_first_rank():
        _wait_for(folder, dst)
        return str(dst)
    if not dst.exists():
        found = len(class_names(folder))
        if not classes and found != num_classes:  # fail now instead of after packing
            check_is_not_one(key, str(folder), found)
            raise ValueError(
                f"{key} must have data.num_classes={num_classes} class folders, got {found} in {str(folder)!r}. Pass "
                f"--data.num_classes={found}, or the folder that contains the class folders."
            )
        logger.info("packing %s into %s; later starts reuse that file", folder, dst)
        if _pack(key, folder, dst, classes=classes):
            return str(dst)
        _wait_for(folder, dst)
    _check_source(key, folder, dst, classes=classes)
    logger.info("using %s, packed earlier from %s", dst, folder)
    return str(dst)


def _is_lossless(key: str) -> bool:
    """Return whether to store original JPEGs where possible: True for validation images, False for training images."""
    return key.endswith("val")


def _command(key: str, folder: Path, dst: Path, classes: str) -> str:
    """Return the `vitkd-ds pack` command that packs a class folder with the same settings as `_pack`."""
    options = (["--classes", classes] if classes else []) + (["--passthrough"] if _is_lossless(key) else [])
    return shlex.join(["vitkd-ds", "pack", str(folder), str(dst), *options])


def _pack(key: str, folder: Path, dst: Path, *, classes: str) -> bool:
    """Pack a class folder and return True. Return False if another process is packing it or has packed it."""
    from vitkd_ds.commands.pack.images import pack
    from vitkd_ds.commands.pack.parts import PackedElsewhere
    from vitkd_ds.commands.pack.writer import DoesNotDecode, handled_by

    if signals.received():
        raise KeyboardInterrupt(signals.received())
    try:
        # During training, signals take effect at the next step. There is none yet, so here they interrupt at once.
        with handled_by(signal.default_int_handler, *signals.ASKING):
            pack(folder, dst, classes=classes, passthrough=_is_lossless(key))
    except PackedElsewhere:
        return False
    except ValueError as error:
        if dst.exists():  # another process was faster
            return False
        command = _command(key, folder, dst, classes)
        advice = f"The command that skips such files: {command} --skip_bad\nRun it, then rerun this command."
        if not isinstance(error, DoesNotDecode):
            advice = f"The command that failed: {command}\nApply the advice above to that command and run it, or "
            advice += f"change --{key}. Then rerun this command."
        raise ValueError(f"{error}\n{advice}") from error
    except OSError as error:
        raise ValueError(
            f"cannot pack {key} into {str(dst)!r}: {error}. Make {str(dst.parent)!r} writable. Or pack into another "
            f"folder (vitkd-ds pack {shlex.quote(str(folder))} FILE.beton) and pass --{key}=FILE.beton."
        ) from error
    return True


def _check_source(key: str, folder: Path, dst: Path, *, classes: str) -> None:
    """Raise ValueError unless the .beton was packed from the folder's current file names, file sizes and classes."""
    again = f"{shlex.join(['rm', str(dst), str(side_path(dst))])} && {_command(key, folder, dst, classes)}"
    remedy = f"Pass {shlex.quote(str(dst))} instead of the folder to use it anyway, or pack again: {again}"
    packed_from = read_side(dst).get(SOURCE_KEY)
    if packed_from is None:
        raise ValueError(
            f"cannot tell whether {str(dst)!r} matches {str(folder)!r}, because an older version packed it without "
            f"storing its source. {remedy}"
        )
    why = ""
    try:
        # The .beton got its classes from a list or from the folder. In both cases, compare with its own classes.
        source = open_source(folder, classes=str(dst))
        fingerprints = (of(source, without=f"{folder}/") for of in (Source.fingerprint, earlier_fingerprint))
        is_same = packed_from in fingerprints
    except ValueError as error:
        is_same = False
        why = f" ({error})"
    if not is_same:
        raise ValueError(f"{str(folder)!r} has changed since {str(dst)!r} was packed from it{why}. {remedy}")


def _wait_for(folder: Path, dst: Path) -> None:
    """Wait until another process has packed `dst`. Raise ValueError if the process makes no progress for PATIENCE_S."""
    partial = partial_path(dst)
    growth = None
    grown_at = said_at = time.monotonic()
    while not (dst.exists() and side_path(dst).exists()):
        now = time.monotonic()
        if (found := _growth(partial)) != growth:
            growth = found
            grown_at = now
        if now - grown_at > PATIENCE_S:
            raise ValueError(
                f"another process is packing {str(folder)!r} into {str(dst)!r}, but {str(partial)!r} has not grown for "
                f"{PATIENCE_S / 60:g} minutes. End that process, and rerun this command."
            )
        if now - said_at >= SAY_S:
            said_at = now
            logger.info("waiting for another process to pack %s: %.2f GB so far", dst, (growth or (0,))[0] / 1e9)
        if signals.received():
            raise KeyboardInterrupt(signals.received())
        time.sleep(POLL_S)


def _growth(partial: Path) -> tuple[int, int] | None:
    """Return the bytes packed so far and the time of the last change in ns. Return None before packing starts."""
    try:
        return (partial / "images").stat().st_size, partial.stat().st_mtime_ns
    except FileNotFoundError:
        return None
