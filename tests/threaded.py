"""Ranks as threads of the test process: torch's real collectives without the cost of starting processes.

The ranks share all module state except torch.distributed's, so the code under test must keep none. Engines need
processes.
"""

from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta

import torch
import torch.distributed as torch_dist
from torch.testing._internal.distributed import multi_threaded_pg

HANGING_S = 20
"""A rank that has not returned after this many seconds is waiting for a collective that no other rank calls."""


def on_ranks(world_size, function):
    """Call `function(rank)` on a thread per rank; return the results, or raise an error of one rank."""
    store = torch_dist.HashStore()
    multi_threaded_pg._install_threaded_pg()
    torch._C._distributed_c10d._set_thread_isolation_mode(True)

    def on_rank(rank):
        options = {"rank": rank, "world_size": world_size, "store": store, "timeout": timedelta(seconds=HANGING_S)}
        torch_dist.init_process_group("threaded", **options)
        try:
            return function(rank)
        except BaseException as error:
            multi_threaded_pg.ProcessLocalGroup.exception_handle(error)
            raise
        finally:
            torch_dist.destroy_process_group()

    try:
        with ThreadPoolExecutor(world_size) as pool:
            futures = [pool.submit(on_rank, rank) for rank in range(world_size)]
            if wait(futures, timeout=HANGING_S).not_done:
                multi_threaded_pg.ProcessLocalGroup.exception_handle(TimeoutError())  # ends waiting ranks
            errors = [error for future in futures if (error := future.exception())]
            if errors:
                # SystemExit only means that a rank waited for the one that failed.
                raise min(errors, key=lambda error: isinstance(error, SystemExit))
            return [future.result() for future in futures]
    finally:
        multi_threaded_pg.ProcessLocalGroup.reset()
        multi_threaded_pg._uninstall_threaded_pg()
        torch._C._distributed_c10d._set_thread_isolation_mode(False)
