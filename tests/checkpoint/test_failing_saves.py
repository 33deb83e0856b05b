"""A disk that is full for one rank, and a lost right to write, cost a checkpoint and not the run, until too often."""


def test_failed_saves_are_said_leave_the_previous_one_and_end_the_run_only_in_a_row(observed):
    seen, other = observed[2]["saves"]
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
        assert text in observed[2]["said"][0] and text not in observed[2]["said"][1]
    assert seen["error"] == other["error"] and "The last whole checkpoint is step00000006." in seen["error"]
    assert "Stopped after 3 failed saves in a row (checkpoint.max_failures is 3)" in seen["error"]
