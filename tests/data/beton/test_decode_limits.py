"""The C++ decoder with short reads, and with images that need too much memory."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.data.beton.test_decode import crop_row, decode_rows, jpeg, photo, stored  # noqa: F401
from vitkd_ds.data.beton.decode import BAD_JPEG, DECODED, NO_MEMORY
from vitkd_ds.data.beton.format import RAW_MODE

SHORT_READS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <unistd.h>
ssize_t pread(int fd, void* out, size_t size, off_t offset) {
  static _Thread_local int calls;
  if (++calls % 3 == 0) return errno = EINTR, -1;
  ssize_t (*real)(int, void*, size_t, off_t) = dlsym(RTLD_NEXT, "pread");
  return real(fd, out, size > 7 ? size / 2 : size, offset);
}
ssize_t pread64(int fd, void* out, size_t size, off_t offset) { return pread(fd, out, size, offset); }
"""


def test_short_or_interrupted_reads_continue_where_they_stopped(tmp_path):
    """Simulate short reads from a network file system, and signals before the first byte."""
    contents = [jpeg(photo(40, 50)), photo(40, 50).tobytes()]
    table = stored(contents, [(40, 50)] * 2, crc=True)
    table["mode"] = 0, RAW_MODE
    rows = np.concatenate([crop_row(index=i, box=(3, 5, 30, 31), resized=(16, 16)) for i in (0, 1)])
    (tmp_path / "images").write_bytes(b"".join(contents))
    np.savez(tmp_path / "asked.npz", table=table, rows=rows)
    (tmp_path / "short.c").write_text(SHORT_READS)
    shim = tmp_path / "short.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", shim, tmp_path / "short.c", "-ldl"], check=True)
    answers = {}
    for name, environ in (("whole", {}), ("short", {"LD_PRELOAD": str(shim)})):
        command = [sys.executable, "-c", DECODE_ASKED, tmp_path, name]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)} | environ, check=True)
        answers[name] = np.load(tmp_path / f"{name}.npz")
    for found in answers.values():
        assert (found["status"] == DECODED).all() and found["images"].any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(answers["short"]["images"], answers["whole"]["images"])


DECODE_ASKED = """
import sys
from pathlib import Path
import numpy as np
from vitkd_ds.data.beton.decode import Decoder
folder, name = Path(sys.argv[1]), sys.argv[2]
asked = np.load(folder / "asked.npz")
images, status = np.zeros((2, 16, 16, 3), np.uint8), np.full(2, -1, np.int32)
Decoder(folder / "images", asked["table"].copy()).decode(asked["rows"], images, status, num_threads=1)
np.savez(folder / f"{name}.npz", images=images, status=status)
"""


@pytest.mark.parametrize("height, reason", [(1000, BAD_JPEG), (2000, NO_MEMORY)])
def test_a_progressive_jpeg_that_needs_more_memory_than_allowed_is_reported(height, reason, decode_rows):  # noqa: F811
    # Its coefficients, two bytes for each of three channels, would take 390 MB and 780 MB; the limit is 537 MB.
    small = jpeg(photo(16, 16), progressive=True, subsampling=0)
    start = small.index(b"\xff\xc2") + 5
    size = height.to_bytes(2, "big") + (65000).to_bytes(2, "big")
    claimed = small[:start] + size + small[start + 4 :]
    row = crop_row(box=(0, 0, 8, 8))
    _, status, _ = decode_rows([claimed], [(height, 65000)], row, 8)
    assert status[0] == reason
