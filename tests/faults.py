"""Failing disks: a preloaded library that makes calls on a file fail with EIO."""

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
static int spared, times, reads_only;

static void arm(const char* part_of_path, int nth, int count, int reads) {
  strcpy(name, part_of_path);
  spared = nth;
  times = count;
  reads_only = reads;
}
void fail(const char* part_of_path, int count) { arm(part_of_path, 0, count, 1); }
void fail_any(const char* part_of_path, int nth, int count) { arm(part_of_path, nth, count, 0); }
int left(void) { return times; }

static int fails_at(const char* path) {
  if (times <= 0 || !strstr(path, name) || spared-- > 0) return 0;
  times--;
  errno = EIO;
  return 1;
}
static int fails(int fd, int is_read) {
  char link[64], path[4096];
  if (times <= 0 || (reads_only && !is_read)) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return fails_at(path);
}
#define WRAP(type, function, fails, ...) \
  static type (*real)(); \
  if (!real) real = (type(*)())dlsym(RTLD_NEXT, #function); \
  return fails ? -1 : real(__VA_ARGS__);
ssize_t read(int fd, void* out, size_t n) { WRAP(ssize_t, read, fails(fd, 1), fd, out, n) }
ssize_t pread(int fd, void* out, size_t n, off_t at) { WRAP(ssize_t, pread, fails(fd, 1), fd, out, n, at) }
ssize_t pread64(int fd, void* out, size_t n, off_t at) { WRAP(ssize_t, pread64, fails(fd, 1), fd, out, n, at) }
ssize_t write(int fd, const void* data, size_t n) { WRAP(ssize_t, write, fails(fd, 0), fd, data, n) }
int fsync(int fd) { WRAP(int, fsync, fails(fd, 0), fd) }
int rename(const char* old, const char* new) { WRAP(int, rename, !reads_only && fails_at(new), old, new) }
int mkdir(const char* path, mode_t mode) { WRAP(int, mkdir, !reads_only && fails_at(path), path, mode) }
"""
HEAD = """
import ctypes, os, sys
from pathlib import Path
from vitkd_ds.config import reading
reading.WAITS_S = (0.01, 0.02)
library = ctypes.CDLL(os.environ["LD_PRELOAD"])
fail = lambda name, times: library.fail(name.encode(), times)
fail_any = lambda name, nth, times: library.fail_any(name.encode(), nth, times)
"""


def run_on_a_failing_disk(tmp_path, code, *words):
    """Run Python code that can make a disk fail, and return its stdout. Waits between retries are short.

    After `fail(NAME, TIMES)` the next TIMES reads of files whose path contains NAME fail. After `fail_any(NAME, N,
    TIMES)` the next N reads, writes, fsyncs, renames and mkdirs succeed and TIMES more fail.
    """
    library = tmp_path / "fail.so"
    if not library.exists():
        (tmp_path / "fail.c").write_text(SOURCE)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, tmp_path / "fail.c", "-ldl"], check=True)
    env = os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-c", HEAD + code, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return done.stdout
