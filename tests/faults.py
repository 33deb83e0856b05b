"""Disks that fail: a library that is loaded before libc, and lets reads of a file fail with EIO a number of times."""

import os
import subprocess
import sys

from tests.conftest import ROOT

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char name[4096];
static int times;

void fail(const char* part_of_path, int count) { strcpy(name, part_of_path); times = count; }
int left(void) { return times; }

static int fails(int fd) {
  char link[64], path[4096];
  if (times <= 0) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  if (!strstr(path, name)) return 0;
  times--;
  errno = EIO;
  return 1;
}
#define WRAP(function, ...) \
  static ssize_t (*real)(int, void*, size_t, ...); \
  if (!real) real = dlsym(RTLD_NEXT, #function); \
  return fails(fd) ? -1 : real(fd, __VA_ARGS__);
ssize_t read(int fd, void* out, size_t n) { WRAP(read, out, n) }
ssize_t pread(int fd, void* out, size_t n, off_t at) { WRAP(pread, out, n, at) }
ssize_t pread64(int fd, void* out, size_t n, off_t at) { WRAP(pread64, out, n, at) }
"""
HEAD = """
import ctypes, os, sys
from pathlib import Path
from vitkd_ds.config import reading
reading.WAITS_S = (0.01, 0.02)
library = ctypes.CDLL(os.environ["LD_PRELOAD"])
fail = lambda name, times: library.fail(name.encode(), times)
"""


def run_on_a_failing_disk(tmp_path, code, *words):
    """Run Python code that may call `fail(NAME, TIMES)`: the next TIMES reads of a file whose path holds NAME fail.
    Returns what it printed. Nothing waits long between two attempts."""
    library = tmp_path / "fail.so"
    if not library.exists():
        (tmp_path / "fail.c").write_text(SOURCE)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, tmp_path / "fail.c", "-ldl"], check=True)
    env = os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-c", HEAD + code, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return done.stdout
