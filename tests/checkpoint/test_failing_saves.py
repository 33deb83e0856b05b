"""A full disk on one rank or a lost write permission costs a checkpoint, and ends the run only after repeated
failures."""

import os
import resource
from dataclasses import replace

from tests.engine.tiny import RUN, make_engine, train
from vitkd_ds.checkpoint import load
from vitkd_ds.checkpoint.load import TrainState
from vitkd_ds.checkpoint.save import SaveError, Saver
from vitkd_ds.config.run import CheckpointConfig
from vitkd_ds.engine import ranks


def limit_file_size(size):
    """Simulate a disk that is full after `limit` bytes of a file; -1 means no limit."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def observe(seen, workdir):
    """Failures in a row and folders after each save, and the error that ends it, of each rank; for observe.py."""
    folder = workdir / "checkpoints"
    engine, teacher = make_engine(replace(RUN, optim=replace(RUN.optim, ema_decay=0.9)))
    train(engine, teacher, steps=1)
    saver, state = Saver(workdir, CheckpointConfig(max_failures=3), {}), TrainState(7, 1)
    mine = {"failures": [], "folders": []}
    full_for = {2: 0, 3: 1, 7: 1, 8: 1, 9: 1}
    try:
        for step in range(1, 10):
            state.step = step
            limit_file_size(1000 if full_for.get(step) == ranks.rank() else -1)
            if step in (5, 6) and ranks.rank() == 0:  # root ignores file permissions, so become nobody for one step
                os.seteuid(os.getuid())
                folder.chmod(0o555 if step == 5 else 0o755)
                os.seteuid(65534 if step == 5 and os.getuid() == 0 else os.getuid())
            saver.save(engine, state)
            mine["failures"].append(saver.num_failures)
            mine["folders"].append(sorted(path.name for path in folder.iterdir()))
            start = load.newest_whole(ranks.from_main(load.find("auto", workdir)))
            assert start.tag == ranks.from_main((folder / "latest").read_text())
    except SaveError as error:
        mine["error"] = str(error)
    limit_file_size(-1)
    seen["saves"] = ranks.from_all(mine)


def test_failed_saves_are_logged_keep_the_previous_one_and_end_the_run_only_in_a_row(observed):
    seen, other = observed[2]["saves"]
    assert seen["failures"] == other["failures"] == [0, 1, 2, 0, 1, 0, 1, 2]
    one = ["latest", "step00000001"]
    assert seen["folders"][:4] == [one, one, one, ["latest", "step00000001", "step00000004"]]
    assert seen["folders"][-1] == ["latest", "step00000004", "step00000006"], "nothing half written stays"
    for text in (
        "SAVING FAILED at step 2: rank 0: OSError: [Errno 27]",
        "SAVING FAILED at step 3: rank 1: OSError",
        "SAVING FAILED at step 5: rank 0: PermissionError",
        "This is failed save 2 in a row; training stops at number 3",
    ):
        assert text in observed[2]["said"][0] and text not in observed[2]["said"][1]
    assert seen["error"] == other["error"] and "The last complete checkpoint is step00000006." in seen["error"]
    assert "Stopped after 3 failed saves in a row (checkpoint.max_failures is 3)" in seen["error"]
