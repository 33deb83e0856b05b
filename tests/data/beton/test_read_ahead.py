"""Reading ahead: images of the next micro-batches are read early enough, and no further on a fast disk."""

import shutil
import threading
import time

import numpy as np
import pytest

from benchmarks.slow_disk import measure
from tests.data.conftest import write_beton
from vitkd_ds.data.beton import read_ahead
from vitkd_ds.data.beton.decode import Decoder
from vitkd_ds.data.beton.format import read_beton
from vitkd_ds.data.beton.read_ahead import BATCHES, PROBES, ReadAhead


class Disk:
    """Fake decoder that reads ahead; each image reports the given number of seconds."""

    def __init__(self, seconds):
        self.seconds, self.asked, self.changed = seconds, [], threading.Condition()

    def read_ahead(self, indices, *, num_threads):
        with self.changed:
            self.asked.append(indices.tolist())
            self.changed.notify()
        return np.full(len(indices), self.seconds)

    def wait_for(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= count, timeout=20), self.asked
        time.sleep(0.05)
        assert len(self.asked) == count, "it reads no further before the next is taken"
        return self.asked


@pytest.mark.parametrize("seconds, calls", [(1e-5, 1), (1.0, 2)])
def test_reading_stays_some_micro_batches_ahead_and_takes_whole_ones_on_a_slow_disk(seconds, calls):
    indices, disk = np.arange(1000)[::-1], Disk(seconds)
    with ReadAhead(disk, indices, micro_batch_size=20) as ahead:
        found = disk.wait_for(calls * BATCHES)
        whole = [sum(found[first : first + calls], []) for first in range(0, len(found), calls)]
        expected = [indices[20 * number :][: PROBES if calls == 1 else 20].tolist() for number in range(BATCHES)]
        assert whole == expected
        ahead.taken()
        assert disk.wait_for(calls * (BATCHES + 1))[-calls][0] == indices[20 * BATCHES]
        for _ in range(30):
            ahead.taken()
    assert not ahead.is_alive()


def test_images_already_taken_are_not_read_ahead(monkeypatch):
    monkeypatch.setattr(read_ahead, "BATCHES", 0)
    disk = Disk(1.0)
    with ReadAhead(disk, np.arange(40), micro_batch_size=20) as ahead:
        ahead.taken()
        ahead.taken()
        ahead.join(timeout=20)
    assert disk.asked == []


def test_requested_images_are_read_and_timed_and_invalid_ones_rejected(beton, tmp_path):
    path = shutil.copy(beton, tmp_path)
    _, table, _ = read_beton(beton)
    decoder = Decoder(path, table)
    seconds = decoder.read_ahead(np.array([3, 21, 3, 0]), num_threads=3)
    assert seconds.shape == (4,) and (seconds > 0).all() and not table["checked"].any()
    for indices, num_threads in (([22], 1), ([-1], 1), ([0], 0)):
        with pytest.raises(ValueError, match="indices must be in .0, 22. and num_threads at least 1"):
            decoder.read_ahead(np.array(indices), num_threads=num_threads)
    with pytest.raises(ValueError, match="indices must be a C-contiguous array of dtype int64"):
        decoder.read_ahead(np.array([0.0]), num_threads=1)
    assert decoder.read_ahead(np.zeros(0, np.int64), num_threads=4).tolist() == []
    with open(path, "r+b") as file:
        file.truncate(1000)
    assert (decoder.read_ahead(np.array([3]), num_threads=1) >= 0).all(), "the decoder reports unreadable images"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cc"), reason="compiles a library that delays reads")
def test_an_epoch_on_a_slow_disk_takes_less_than_its_reads_in_sequence(tmp_path):
    path = write_beton(tmp_path, 120)
    (row,) = measure(str(path), [25.0], rounds=1, micro_batch_size=8)
    assert row["without"] < 1 / 0.025 < 1.5 / 0.025 < row["with"]
