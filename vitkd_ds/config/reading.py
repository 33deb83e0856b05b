"""Read files whose disk may fail for a moment, as network file systems do. Nothing here imports torch.

A file that cannot be read is not one that cannot be understood: of its content nothing is known, so it must not be
passed over as damaged, and another start may succeed.
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
"""Seconds before each further attempt to read."""
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors that say what the path is, and which no further attempt changes."""
OF_THE_DISK = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EREMOTEIO)
"""Errors of a disk that is away, perhaps for a moment, whatever the file is."""


class Unreadable(OSError):
    """The disk, or the right to read, failed again and again; the same command may succeed later."""


def patiently(read: Callable[..., T]) -> Callable[..., T]:
    """Decorate a function whose first argument is the path that it reads: it is called a few times more if it fails.

    It raises:
        OSError: there is no such file, or it is a folder; at once.
        Unreadable: it failed each time.
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
                        f"{path} must be readable, found {error}, {len(WAITS_S) + 1} times in {sum(WAITS_S):.0f} s: "
                        "check its disk, and the right to read it; then the same command goes on"
                    ) from error
                logger.warning("%s cannot be read, %s: another attempt in %g s", path, error, wait_s)
                time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    return retrying


def raise_if_of_the_disk(error: BaseException, what: str) -> None:
    """Raise Unreadable if a disk made `error` while `what` was read: another start may succeed."""
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        raise Unreadable(
            f"{what} must be readable, found {error}: check the disk; then the same command goes on"
        ) from error


@patiently
def read_bytes(file: Path) -> bytes:
    """Read a whole file; raises as `patiently` says."""
    return file.read_bytes()


def load_json(file: Path) -> Any:
    """Read a JSON file; raises as `patiently` says, and ValueError if it holds none."""
    try:
        return json.loads(read_bytes(file).decode())
    except RecursionError:
        raise ValueError("brackets that are nested too deeply") from None
