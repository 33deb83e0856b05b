"""Measure the loader's speed on a disk with high latency, without and with read-ahead.

    python benchmarks/slow_disk.py FILE.beton [--delay_ms 0 3] [--rounds 3] [--micro_batch_size 64]

Each measurement is made in a new process, which reads one epoch in random order with one decoder thread, at 224 px. A
preloaded library delays the first read of each position in FILE. In each round, every measurement is made once. The
output is JSON. For each delay, it has the median images/s and the median images per CPU-second, without and with
`vitkd_ds.data.beton.read_ahead`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char is_cached[1 << 24];  // per 64 bytes of the file: imitates the page cache

static char* delayed_place(int fd, off_t at) {
  static ino_t file;
  static int delay_us;
  struct stat status;
  if (!file) delay_us = atoi(getenv("DELAY_US")), file = strtoul(getenv("DELAYED_INODE"), 0, 10);
  if (!delay_us || fstat(fd, &status) || status.st_ino != file) return 0;
  char* place = &is_cached[(at >> 6) % sizeof is_cached];
  if (*place) return 0;
  usleep(delay_us);
  return place;
}
#define WRAP(function) \
  ssize_t function(int fd, void* out, size_t n, off_t at) { \
    static ssize_t (*real)(int, void*, size_t, off_t); \
    if (!real) real = dlsym(RTLD_NEXT, #function); \
    char* place = delayed_place(fd, at); \
    if (place) *place = 1; \
    return real(fd, out, n, at); \
  }
WRAP(pread)
WRAP(pread64)
"""


def read_epoch(path: str, *, micro_batch_size: int, reads_ahead: bool) -> tuple[float, float]:
    """Read one epoch. Return images/s and images per CPU-second, measured after the first three micro-batches."""
    from vitkd_ds.config.run import DataConfig
    from vitkd_ds.data.beton import read_ahead
    from vitkd_ds.data.beton.format import check_beton
    from vitkd_ds.data.loader import build_loader

    if not reads_ahead:
        read_ahead.BATCHES = 0
    num_classes = len(check_beton(path).classes)
    data = DataConfig(train=path, val=path, image_size=224, num_classes=num_classes, num_workers=1)
    loader = build_loader(data, split="train", micro_batch_size=micro_batch_size)
    micro_batches = loader.epoch(0)
    for _ in range(3):
        next(micro_batches)
    start, cpu_start, taken = time.perf_counter(), time.process_time(), 0
    for images_BCHW, _ in micro_batches:
        taken += len(images_BCHW)
    return taken / (time.perf_counter() - start), taken / (time.process_time() - cpu_start)


def measure(path: str, delays_ms: list[float], *, rounds: int, micro_batch_size: int) -> list[dict[str, float]]:
    """Return a row for each delay: median images/s and images per CPU-second, without and with read-ahead."""
    found: dict[tuple[float, bool], list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "delay.c"), Path(folder, "delay.so")
        source.write_text(SOURCE)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        for _ in range(rounds):
            for delay_ms in delays_ms:
                for reads_ahead in (False, True):
                    env = os.environ | {"LD_PRELOAD": str(library), "DELAY_US": str(round(1e3 * delay_ms))}
                    env["DELAYED_INODE"] = str(os.stat(path).st_ino)
                    words = [sys.executable, __file__, path, "--epoch", str(int(reads_ahead))]
                    words += ["--micro_batch_size", str(micro_batch_size)]
                    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
                    found.setdefault((delay_ms, reads_ahead), []).append([*map(float, done.stdout.split()[-2:])])
    rows = []
    for delay_ms in delays_ms:
        rows.append({"delay_ms": delay_ms})
        for name, reads_ahead in (("without", False), ("with", True)):
            wall, cpu = (median(numbers) for numbers in zip(*found[delay_ms, reads_ahead], strict=True))
            rows[-1] |= {name: wall, f"{name}_cpu": cpu}
    return rows


def main() -> None:
    """Measure and print the rows. With the internal option --epoch, read one epoch and print its speeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--delay_ms", type=float, nargs="+", default=[0.0, 3.0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--micro_batch_size", type=int, default=64)
    parser.add_argument("--epoch", type=int, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.epoch is not None:
        print(*read_epoch(words.file, micro_batch_size=words.micro_batch_size, reads_ahead=bool(words.epoch)))
        return
    rows = measure(words.file, words.delay_ms, rounds=words.rounds, micro_batch_size=words.micro_batch_size)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
