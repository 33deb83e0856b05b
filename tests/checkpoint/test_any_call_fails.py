"""Fail every read, write, fsync, rename and mkdir of a save or load, once or from then on.

A whole checkpoint always remains.
"""

import json

import pytest

from tests.faults import run_on_a_failing_disk

BEGIN = """
import json, logging, shutil
from tests.checkpoint.test_save import ENGINE, state_at
from vitkd_ds.checkpoint.load import find, newest_whole
from vitkd_ds.checkpoint.save import Saver
from vitkd_ds.config.run import CheckpointConfig

said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("vitkd_ds").addHandler(handler)
top, times = Path(sys.argv[1]), int(sys.argv[2])

def each_failure(act, run):
    "Call act() with its first call failing, then its second, and so on; the number of each, while there is one."
    for nth in range(1000):
        saver = Saver(run, CheckpointConfig(max_failures=9, keep_last=9), {})
        saver.save(ENGINE, state_at(4))
        said.clear()
        fail_any(run.name + "/", nth, times)
        result = act(saver)
        is_met = library.left() < times
        fail_any("", 0, 0)
        if not is_met:
            break
        yield nth, saver, result
        shutil.rmtree(run)
"""
SAVE = """
for nth, saver, _ in each_failure(lambda saver: saver.save(ENGINE, state_at(5)), run := top / "run"):
    whole = newest_whole(find("auto", run)).num_steps
    text = "".join(said)
    saver.save(ENGINE, state_at(6))
    found = newest_whole(find("auto", run)).num_steps
    print(json.dumps([nth, whole, text, found, sorted(path.name for path in saver.folder.iterdir())]))
"""
LOAD = """
def load(saver):
    try:
        return newest_whole(find("auto", saver.workdir)).num_steps
    except OSError as error:
        return type(error).__name__
for nth, _, found in each_failure(load, top / "run"):
    print(json.dumps([nth, found]))
"""
FOREVER = 1_000_000


def lines_of(*args):
    return [json.loads(line) for line in run_on_a_failing_disk(*args).splitlines()]


@pytest.mark.parametrize("times", [1, FOREVER], ids=["once", "from then on"])
def test_if_any_call_of_a_save_fails_one_checkpoint_is_whole_and_the_log_names_it(tmp_path, times):
    seen = lines_of(tmp_path, BEGIN + SAVE, tmp_path, times)
    wholes = [whole for _, whole, *_ in seen]
    assert wholes == sorted(wholes) and {*wholes} == {4, 5} and len(seen) > 18, "the old one until the new one is named"
    for nth, whole, said, found, names in seen:
        last = (
            f"The last complete checkpoint is step{whole:08d}."
            if times == 1
            else "The last complete checkpoint is unread"
        )
        assert (last in said) if "SAVING FAILED at step 5" in said else (whole == 5), (nth, said)
        assert found == 6 and {*names} - {"step00000005"} == {"latest", "step00000004", "step00000006"}, nth


@pytest.mark.parametrize(("times", "found"), [(1, 4), (FOREVER, "Unreadable")], ids=["once", "from then on"])
def test_if_any_call_of_a_start_fails_the_newest_checkpoint_is_loaded_or_none(tmp_path, times, found):
    seen = lines_of(tmp_path, BEGIN + LOAD, tmp_path, times)
    assert len(seen) > 4 and [each for _, each in seen] == [found] * len(seen)
