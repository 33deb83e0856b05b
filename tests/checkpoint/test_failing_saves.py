"""A disk that is full for one rank, and a lost right to write, cost a checkpoint and not the run, until too often."""

import json
import tempfile
from pathlib import Path

from tests.conftest import finish_ranks, start_ranks

WORKER = Path(__file__).with_name("failing_saves.py")


def test_failed_saves_are_said_leave_the_previous_one_and_end_the_run_only_in_a_row():
    with tempfile.TemporaryDirectory() as folder:  # not pytest's, which only its owner may enter
        workdir = Path(folder)
        workdir.chmod(0o755)
        outputs = finish_ranks(start_ranks(2, WORKER, workdir))
        seen, other = (json.loads((workdir / f"seen{rank}.json").read_text()) for rank in (0, 1))
    assert seen["failures"] == other["failures"] == [0, 1, 2, 0, 1, 0, 1, 2]
    one = ["latest", "step00000001"]
    assert seen["folders"][:4] == [one, one, one, ["latest", "step00000001", "step00000004"]]
    assert seen["folders"][-1] == ["latest", "step00000004", "step00000006"], "nothing half written stays"
    for text in (
        "SAVING FAILED at step 2: rank 0: OSError: [Errno 27]",
        "SAVING FAILED at step 3: rank 1: OSError",
        "SAVING FAILED at step 5: rank 0: PermissionError",
        "Training goes on; failure 2, at 3 in a row it stops",
    ):
        assert text in outputs[0] and text not in outputs[1]
    assert seen["error"] == other["error"] and "The last whole checkpoint is step00000006." in seen["error"]
    assert "Stopped after 3 failed saves in a row (checkpoint.max_failures is 3)" in seen["error"]
