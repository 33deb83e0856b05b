"""Disk faults for `benchmarks/chaos_slurm.py`: for some seconds, a disk is full or returns errors."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_MIB = 200
# This library is preloaded into all processes of the job. The environment variable FAILING names a file. While this
# file exists, reads, writes and fsyncs of files in its folder fail with EIO.
FAILING_DISK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(int fd) {
  char link[64], path[4096];
  const char* mark = getenv("FAILING");
  if (!mark || access(mark, F_OK)) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0 || strncmp(path, mark, strrchr(mark, '/') - mark)) return 0;
  errno = EIO;
  return 1;
}
#define WRAP(type, function, arguments, ...) \
  type function arguments { \
    static type (*real) arguments; \
    if (!real) real = (type(*) arguments)dlsym(RTLD_NEXT, #function); \
    return fails(fd) ? -1 : real(__VA_ARGS__); \
  }
WRAP(ssize_t, read, (int fd, void* out, size_t n), fd, out, n)
WRAP(ssize_t, write, (int fd, const void* data, size_t n), fd, data, n)
WRAP(int, fsync, (int fd), fd)
"""


def build_failing_disk(library: Path) -> None:
    """Compile FAILING_DISK into a library for LD_PRELOAD."""
    compiler = ["cc", "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", library, "-ldl"]
    subprocess.run(compiler, input=FAILING_DISK, text=True, check=True)


def fill(path: Path, seconds: float) -> None:
    """Fill the disk of `path` by writing this file, keep the disk full for `seconds`, and delete the file."""
    until = None
    try:
        with path.open("wb", buffering=0) as file:
            while until is None or time.monotonic() < until:  # deleted files free space again
                try:
                    file.write(bytes(2**16))
                except OSError:
                    until = until or time.monotonic() + seconds
                    time.sleep(0.01)
    finally:
        path.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a small tmpfs on `folder` for the `with` block."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder])
