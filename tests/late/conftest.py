"""Fixtures: a process group of one rank inside pytest's process."""

import os
import re
import warnings
from copy import copy

import pytest
import torch
from deepspeed import comm
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import groups, logger

from vitkd_ds.engine import processes


@pytest.fixture(scope="module")
def one_rank():
    """Start a process group of one rank, and restore everything that this changes in the process."""
    environ, num_threads = dict(os.environ), torch.get_num_threads()
    level, filters = logger.level, [*logger.filters]
    known_groups = {name: copy(value) for name, value in vars(groups).items() if re.match("_[A-Za-z]", name)}
    with warnings.catch_warnings():
        processes.start_processes()
        yield
    processes.shut_down()
    comm.comm.cdb = None
    vars(groups).update(known_groups)
    logger.setLevel(level)
    logger.filters[:] = filters
    torch.set_num_threads(num_threads)
    os.environ.clear()
    os.environ.update(environ)


def pytest_runtest_setup(item):
    """Skip these tests where torch finds a GPU, whose name the simulated device takes."""
    if torch.cuda.is_available() or get_accelerator().device_name() != "cpu":
        pytest.skip("the simulated device takes the name of this machine's GPU")
