"""Read files with retries, because network file systems fail temporarily. Imports no torch.

A file that cannot be read is not treated as damaged. Its content may be intact, so the caller must not skip it, and a
later launch may be able to read it.
"""

import errno
import json
import logging
import time
from functools import wraps
from pathlib import Path
from typing import Any, Callable, TypeVar

T = TypeVar("T")
logger = logging.getLogger(__name__)

WAITS_S = (1.0, 2.0, 4.0)
"""Seconds before each retry."""
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Error codes for a wrong path, such as a missing file. A retry would not help."""
OF_THE_DISK = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EREMOTEIO)
"""Error codes of a failing disk, which may be temporary."""


class Unreadable(OSError):
    """Failure to read a file in spite of retries. The same command may succeed later."""


def patiently(read: Callable[..., T]) -> Callable[..., T]:
    """Decorator that retries a function after an OSError. The function's first argument is the path to read.

    The decorated function raises:
        OSError: the path is wrong, for example because the file is missing or is a folder; raised without a retry.
        Unreadable: every attempt failed.
    """

    @wraps(read)
    def retrying(path: str | Path, *arguments: Any) -> T:
        for wait_s in (*WAITS_S, None):
            try:
                return read(path, *arguments)
            except OSError as error:
                if error.errno in NOT_THERE or isinstance(error, Unreadable):
                    raise
                if wait_s is None:
                    raise Unreadable(
                        f"{path} cannot be read ({len(WAITS_S) + 1} attempts in {sum(WAITS_S):.0f} s): {error}. Check "
                        "its disk and its permissions, then rerun the same command."
                    ) from error
                logger.warning("cannot read %s, retrying in %g s: %s", path, wait_s, error)
                time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    return retrying


def raise_if_of_the_disk(error: BaseException, what: str) -> None:
    """Raise Unreadable if `error`, which was raised while reading `what`, is a disk failure."""
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        raise Unreadable(f"{what} cannot be read: {error}. Check the disk, then rerun the same command.") from error


@patiently
def read_bytes(file: Path) -> bytes:
    """Read a whole file; for errors see `patiently`."""
    return file.read_bytes()


def load_json(file: Path) -> Any:
    """Read a JSON file. Raises ValueError if its content is not JSON; for other errors see `patiently`."""
    try:
        return json.loads(read_bytes(file).decode())
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None
