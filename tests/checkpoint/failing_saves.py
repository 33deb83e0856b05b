"""Run on each of two ranks by test_failing_saves.py: the disk is full for one rank, then the right to write is lost."""

import json
import os
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from tests.engine.worker import RUN, make_engine, train
from vitkd_ds.checkpoint import load
from vitkd_ds.checkpoint.load import TrainState
from vitkd_ds.checkpoint.save import SaveError, Saver
from vitkd_ds.config.run import CheckpointConfig
from vitkd_ds.engine import processes, ranks
from vitkd_ds.engine.processes import start_processes

NOBODY = 65534


def limit_file_size(size):
    """As if the disk were full after so many bytes of a file; -1 is no limit."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def lose_the_right_to_write(folder):
    folder.chmod(0o555)
    os.seteuid(NOBODY if os.getuid() == 0 else os.getuid())  # root may write anywhere


def get_it_back(folder):
    os.seteuid(os.getuid())
    folder.chmod(0o755)


def main():
    workdir = Path(sys.argv[1])
    folder = workdir / "checkpoints"
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    start_processes()
    torch.set_num_threads(1)
    engine, teacher = make_engine(replace(RUN, optim=replace(RUN.optim, ema_decay=0.9)))
    train(engine, teacher, steps=1)
    saver, state = Saver(workdir, CheckpointConfig(max_failures=3), {}), TrainState(7, 1)
    seen = {"failures": [], "folders": []}

    def save(step):
        state.step = step
        saver.save(engine, state)
        seen["failures"].append(saver.num_failures)
        seen["folders"].append(sorted(path.name for path in folder.iterdir()))
        start = load.newest_whole(ranks.from_main(load.find("auto", workdir)))
        assert start.tag == ranks.from_main((folder / "latest").read_text())

    save(1)
    for rank in (0, 1):
        limit_file_size(1000 if ranks.rank() == rank else -1)
        save(2 + rank)
    limit_file_size(-1)
    save(4)
    if ranks.rank() == 0:
        lose_the_right_to_write(folder)
    save(5)
    if ranks.rank() == 0:
        get_it_back(folder)
    save(6)
    limit_file_size(1000 if ranks.rank() == 1 else -1)
    save(7)
    save(8)
    try:
        save(9)
    except SaveError as error:
        seen["error"] = str(error)
    limit_file_size(-1)
    seen["latest"] = (folder / "latest").read_text()
    (workdir / f"seen{ranks.rank()}.json").write_text(json.dumps(seen))
    processes.leave()


if __name__ == "__main__":
    main()
