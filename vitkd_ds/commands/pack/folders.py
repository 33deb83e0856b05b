"""Pack the class folders of a run, once, so that `--data.train FOLDER` trains without a command before it.

`photos/train` becomes `photos/train.beton` beside it. This happens before the ranks meet: the first rank packs, and the
others wait until the file is there, as the first one does where another run packs it. torch is imported only where
there is something to pack.
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
from vitkd_ds.data.beton.format import check_beton, partial_path
from vitkd_ds.data.beton.side_file import SOURCE_KEY, read_side, side_path
from vitkd_ds.data.classes import check_is_not_one, check_is_packed, is_class_folder, packed_path
from vitkd_ds.data.demo import demo_beton
from vitkd_ds.data.sources import Source, open_source
from vitkd_ds.data.sources.folder import class_names, earlier_fingerprint
from vitkd_ds.engine.ds_config import find_ds_config
from vitkd_ds.train import console, signals

logger = logging.getLogger(__name__)

POLL_S, SAY_S, PATIENCE_S = 1.0, 60.0, 600.0
"""Seconds between two looks at what another process packs, between two lines about it, and without any growth before it
is given up."""


def packed_or_exit(run: Run) -> Run:
    """Return the run that reads .betons, as `pack_folders` does; exit if a worker failed or a signal came."""
    try:
        return pack_folders(run)
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        logger.warning("stopped before the images were packed; the same command goes on")
        sys.exit()


def pack_folders(run: Run, *, may_pack: bool = True) -> Run:
    """Pack data.train, and then data.val with its classes, where they are class folders; return the run that reads the
    .betons. With the torchvision backend, which reads folders as they are, the run is returned unchanged.

    An existing .beton is used if it was packed from the folder as that is now: with the same names, sizes and classes,
    which the first rank alone checks.

    Args:
        may_pack: else the .betons must be there, as for commands that only look.

    Raises:
        ValueError: the folder has changed since, or cannot be packed there, or another process does not go on with it;
            or the run would be refused for another reason that shows without its images.
        RuntimeError: a worker failed or was killed, or the disk is full.
        KeyboardInterrupt: a signal asked to stop meanwhile; what is packed is kept.
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
        # Opened before an hour is spent on the other file: it must be there, and says the order of the classes.
        info = check_beton(demo_beton("train") if train == "demo" else train)
        if not info.classes:
            raise ValueError(
                f"data.val must have no labels, as data.train={train} has none, found a folder per class: pack it "
                f"without (vitkd-ds pack {shlex.quote(val)} FILE.beton --labels none), or ignore them with "
                "--data.labels=ignore"
            )
        val = _packed("data.val", Path(val), classes=str(info.path), may_pack=may_pack)
    return replace(run, data=replace(run.data, train=train, val=val))


def find_packed(key: str, path: str) -> str:
    """The .beton of a class folder, which must be packed as the folder is now; other paths are returned as they are.
    Raises ValueError, which names the option `key`."""
    check_is_packed(key, path)
    return _packed(key, Path(path), may_pack=False) if is_class_folder(path) else path


def _check_without_images(run: Run) -> None:
    """Raise ValueError for a run that would be refused when its images are packed, where that shows without them."""
    check_begun(run)
    find_ds_config(run.ds_config)
    for role, config in run.models.items():
        key, words = WEIGHTS[type(config)]
        if getattr(config, key) not in words:
            check_is_there(getattr(config, key), f"{role}.{key}")
    if not console.is_first_rank():
        return
    from vitkd_ds.models.hub import check_hub_is_reached, check_model_name  # slow: timm

    for role, config in run.models.items():
        check_model_name(config.model, role=role)
        key, _ = WEIGHTS[type(config)]
        if getattr(config, key) == "hub":
            check_hub_is_reached(config.model, key=f"{role}.{key}")


def _packed(key: str, folder: Path, *, num_classes: int = 0, classes: str = "", may_pack: bool) -> str:
    """Path of the .beton of a folder, packed if it is not there: with `num_classes` of its own, or with `classes`."""
    dst = packed_path(folder)
    if not may_pack and not dst.exists():
        raise ValueError(
            f"{key} is a folder, which `train` packs at its first use, found no {str(dst)!r}: pack it now "
            f"({_command(key, folder, dst, classes)})"
        )
    if not console.is_first_rank():
        _wait_for(folder, dst)
        return str(dst)
    if not dst.exists():
        found = len(class_names(folder))
        if not classes and found != num_classes:  # refused now, as it would be when all is packed
            check_is_not_one(key, str(folder), found)
            raise ValueError(
                f"{key} must have data.num_classes={num_classes} class folders, found {found} in {str(folder)!r}: set "
                f"--data.num_classes={found}, or give the folder in which the class folders lie"
            )
        logger.info("packing %s into %s, once; later starts use that file", folder, dst)
        if _pack(key, folder, dst, classes=classes):
            return str(dst)
        _wait_for(folder, dst)
    _check_source(key, folder, dst, classes=classes)
    logger.info("using %s, which was packed from %s", dst, folder)
    return str(dst)


def _is_lossless(key: str) -> bool:
    """Whether images are packed as they are, where that can be: those that are evaluated, not those that train."""
    return key.endswith("val")


def _command(key: str, folder: Path, dst: Path, classes: str) -> str:
    """The command that packs a folder as a run does."""
    options = (["--classes", classes] if classes else []) + (["--passthrough"] if _is_lossless(key) else [])
    return shlex.join(["vitkd-ds", "pack", str(folder), str(dst), *options])


def _pack(key: str, folder: Path, dst: Path, *, classes: str) -> bool:
    """Pack a folder as `_command` does; return whether it was done here, and not by another process."""
    from vitkd_ds.commands.pack.images import pack
    from vitkd_ds.commands.pack.parts import PackedElsewhere
    from vitkd_ds.commands.pack.writer import handled_by

    if signals.received():
        raise KeyboardInterrupt(signals.received())
    try:
        # A run notes signals and goes on until its next step, but there is none yet: here each of them interrupts.
        with handled_by(signal.default_int_handler, *signals.ASKING):
            pack(folder, dst, classes=classes, passthrough=_is_lossless(key))
    except PackedElsewhere:
        return False
    except ValueError as error:
        if dst.exists():  # another process was faster
            return False
        raise ValueError(
            f"{key} is packed as `{_command(key, folder, dst, classes)}` does it, which found: {error}"
        ) from error
    except OSError as error:
        raise ValueError(
            f"{key} is a folder, and must be packed into {str(dst)!r}, found {error}: make {str(dst.parent)!r} "
            f"writable, or pack it elsewhere (vitkd-ds pack {shlex.quote(str(folder))} FILE.beton) and give "
            f"--{key}=FILE.beton"
        ) from error
    return True


def _check_source(key: str, folder: Path, dst: Path, *, classes: str) -> None:
    """Raise ValueError unless a .beton was packed from the folder as it is now."""
    again = f"{shlex.join(['rm', str(dst), str(side_path(dst))])} && {_command(key, folder, dst, classes)}"
    remedy = f"give {shlex.quote(str(dst))} in place of the folder to use it as it is, or pack it again: {again}"
    packed_from = read_side(dst).get(SOURCE_KEY)
    if packed_from is None:
        raise ValueError(
            f"{str(dst)!r} must say that it was packed from {str(folder)!r} as it is now, but was packed by an older "
            f"version, which did not write it down: {remedy}"
        )
    why = ""
    try:
        # With the classes of the file itself, whether it got them from a list or from the folder.
        source = open_source(folder, classes=str(dst))
        fingerprints = (of(source, without=f"{folder}/") for of in (Source.fingerprint, earlier_fingerprint))
        is_same = packed_from in fingerprints
    except ValueError as error:
        is_same = False
        why = f" ({error})"
    if not is_same:
        raise ValueError(f"{str(folder)!r} has changed since {str(dst)!r} was packed from it{why}: {remedy}")


def _wait_for(folder: Path, dst: Path) -> None:
    """Wait until another process has packed `dst`; raise ValueError when its partial file has not grown for long."""
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
                f"{str(dst)!r} must be packed from {str(folder)!r} by another process, found that "
                f"{str(partial)!r} has not grown for {PATIENCE_S / 60:g} minutes: see what that process says, end it, "
                f"and give the same command again"
            )
        if now - said_at >= SAY_S:
            said_at = now
            logger.info("waiting for %s, which another process packs: %.2f GB so far", dst, (growth or (0,))[0] / 1e9)
        if signals.received():
            raise KeyboardInterrupt(signals.received())
        time.sleep(POLL_S)


def _growth(partial: Path) -> tuple[int, int] | None:
    """Return the bytes packed so far, and when a part was last added or moved; None while there is nothing."""
    try:
        return (partial / "images").stat().st_size, partial.stat().st_mtime_ns
    except FileNotFoundError:
        return None
