"""Pack the class folders of a run, once, so that `--data.train FOLDER` trains without a command before it.

`photos/train` becomes `photos/train.beton` beside it. This happens before the ranks meet: the first rank packs, and the
others wait until the file is there, as the first one does where another run packs it. torch is imported only where
there is something to pack.
"""

import logging
import shlex
import signal
import time
from dataclasses import replace
from pathlib import Path

from vitkd_ds.config.run import Run
from vitkd_ds.data.beton.format import SUFFIX, check_beton, partial_path
from vitkd_ds.data.beton.side_file import SOURCE_KEY, read_side, side_path
from vitkd_ds.data.demo import demo_beton
from vitkd_ds.data.sources import open_source
from vitkd_ds.data.sources.folder import class_names, has_class_folders
from vitkd_ds.train import console, signals

logger = logging.getLogger(__name__)

POLL_S, SAY_S, PATIENCE_S = 1.0, 60.0, 600.0
"""Seconds between two looks at what another process packs, between two lines about it, and without any growth before it
is given up."""


def pack_folders(run: Run) -> Run:
    """Pack data.train, and then data.val with its classes, where they are class folders; return the run that reads the
    .betons. With the torchvision backend, which reads folders as they are, the run is returned unchanged.

    An existing .beton is used if it was packed from the folder as that is now: with the same names, sizes and classes,
    which the first rank alone checks.

    Raises:
        ValueError: the folder has changed since, or cannot be packed there, or another process does not go on with it.
        RuntimeError: a worker failed or was killed, or the disk is full.
        KeyboardInterrupt: a signal asked to stop meanwhile; what is packed is kept.
    """
    if run.data.backend != "ffcv":
        return run
    train, val = run.data.train, run.data.val
    if _is_folder(train):
        train = _packed("data.train", Path(train), num_classes=run.data.num_classes)
    if _is_folder(val):
        # Opened before an hour is spent on the other file: it must be there, and says the order of the classes.
        classes = demo_beton("train") if train == "demo" else check_beton(train).path
        val = _packed("data.val", Path(val), classes=str(classes))
    return replace(run, data=replace(run.data, train=train, val=val))


def _is_folder(path: str) -> bool:
    return path not in ("", "demo") and has_class_folders(Path(path))


def _packed(key: str, folder: Path, *, num_classes: int = 0, classes: str = "") -> str:
    """Path of the .beton of a folder, packed if it is not there: with `num_classes` of its own, or with `classes`."""
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    dst = folder.with_name(folder.name + SUFFIX)
    if not console.is_first_rank():
        _wait_for(folder, dst)
        return str(dst)
    if not dst.exists():
        found = len(class_names(folder))
        if not classes and found != num_classes:  # refused now, as it would be when all is packed
            raise ValueError(
                f"{key} must have data.num_classes={num_classes} class folders, found {found} in {str(folder)!r}: set "
                f"--data.num_classes={found}, or give the folder in which the class folders lie"
            )
        logger.info("packing %s into %s, once; later starts use that file", folder, dst)
        if _pack(key, folder, dst, classes=classes):
            return str(dst)
        _wait_for(folder, dst)
    _check_source(key, folder, dst)
    logger.info("using %s, which was packed from %s", dst, folder)
    return str(dst)


def _pack(key: str, folder: Path, dst: Path, *, classes: str) -> bool:
    """Pack a folder with the defaults of `pack`; return whether it was done here, and not by another process."""
    from vitkd_ds.commands.pack.images import pack
    from vitkd_ds.commands.pack.journal import PackedElsewhere
    from vitkd_ds.commands.pack.writer import handled_by

    if signals.received():
        raise KeyboardInterrupt(signals.received())
    words = ["vitkd-ds", "pack", str(folder), str(dst)] + (["--classes", classes] if classes else [])
    try:
        # A run notes signals and goes on until its next step, but there is none yet: here each of them interrupts.
        with handled_by(signal.default_int_handler, *signals.ASKING):
            pack(folder, dst, classes=classes)
    except PackedElsewhere:
        return False
    except ValueError as error:
        if dst.exists():  # another process was faster
            return False
        raise ValueError(f"{key} is packed as `{shlex.join(words)}` does it, which found: {error}") from error
    except OSError as error:
        raise ValueError(
            f"{key} is a folder, and must be packed into {str(dst)!r}, found {error}: make {str(dst.parent)!r} "
            f"writable, or pack it elsewhere (vitkd-ds pack {shlex.quote(str(folder))} FILE.beton) and give "
            f"--{key}=FILE.beton"
        ) from error
    return True


def _check_source(key: str, folder: Path, dst: Path) -> None:
    """Raise ValueError unless a .beton was packed from the folder as it is now."""
    both = f"{str(dst)!r} and {side_path(dst).name!r}"
    remedy = f"remove {both} to pack it again, or give --{key}={dst} to use the file as it is"
    packed_from = read_side(dst).get(SOURCE_KEY)
    if packed_from is None:
        raise ValueError(
            f"{str(dst)!r} must say that it was packed from {str(folder)!r} as it is now, but was packed by an older "
            f"version, which did not write it down: {remedy}"
        )
    why = ""
    try:
        # With the classes of the file itself, whether it got them from a list or from the folder.
        found = open_source(folder, classes=str(dst)).fingerprint(without=f"{folder}/")
    except ValueError as error:
        found, why = "", f" ({error})"
    if found != packed_from:
        raise ValueError(f"{str(folder)!r} has changed since {str(dst)!r} was packed from it{why}: {remedy}")


def _wait_for(folder: Path, dst: Path) -> None:
    """Wait until another process has packed `dst`; raise ValueError when its partial file has not grown for long."""
    partial, growth = partial_path(dst), None
    grown_at = said_at = time.monotonic()
    while not (dst.exists() and side_path(dst).exists()):
        now = time.monotonic()
        if (found := _growth(partial)) != growth:
            growth, grown_at = found, now
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
    """Size in bytes and time of the last write; None while there is no file."""
    try:
        stat = partial.stat()
    except FileNotFoundError:
        return None
    return stat.st_size, stat.st_mtime_ns
