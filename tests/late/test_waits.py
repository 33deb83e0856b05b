"""Each wait in the package has a test that leaves it out; clocks wait for all queued work."""

import ast

import pytest
import torch

from tests.conftest import ROOT
from tests.late.device import late_device
from tests.late.without import without
from vitkd_ds.commands.compare import speed
from vitkd_ds.engine import processes

PACE = "test_teacher.py::test_without_the_pace_more_blocks_are_on_the_device"
COPIES = "test_copies.py::test_without_one_of_its_waits_a_loop_sees_other_images"
CLOCKS = "test_waits.py::test_a_clock_waits_for_all_queued_work"
WAITS = {
    ("engine/teacher.py", "self._left.popleft()[0].synchronize()"): PACE,
    ("engine/teacher.py", "get_accelerator().current_stream().record_event()"): PACE,
    ("engine/teacher.py", "get_accelerator().is_synchronized_device()"): PACE,
    ("engine/teacher.py", "self.wait()"): PACE,
    ("engine/teacher.py", "self._pace.wait()"): (
        "test_teacher.py::test_a_teacher_waits_for_the_blocks_of_another_that_ran_before"
    ),
    ("engine/student.py", "self._event.synchronize()"): (
        "test_student.py::test_an_outcome_that_is_read_without_waiting_is_wrong"
    ),
    ("engine/student.py", "get_accelerator().current_stream().record_event()"): (
        "test_student.py::test_an_outcome_whose_event_comes_before_its_copy_is_wrong"
    ),
    ("engine/student.py", "copy_(non_blocking=True)"): (
        "test_student.py::test_an_outcome_that_waits_for_its_copy_is_noticed"
    ),
    ("engine/processes.py", "get_accelerator().synchronize()"): CLOCKS,
    ("commands/compare/speed.py", "torch.cuda.synchronize()"): CLOCKS,
    ("data/epochs.py", "copied.synchronize()"): COPIES,
    ("data/epochs.py", "copied.synchronize() at the end"): (
        "test_copies.py::test_without_the_wait_at_its_end_a_loop_leaves_a_copy_behind"
    ),
    ("data/transfer.py", "self._stream.record_event()"): (
        "test_copies.py::test_an_event_that_does_not_follow_its_copy_is_noticed"
    ),
    ("data/transfer.py", "current.wait_event(copied)"): COPIES,
    ("data/transfer.py", "tensor.record_stream(current)"): COPIES,
    ("data/transfer.py", "to(non_blocking=True)"): "test_copies.py::test_a_copy_that_waits_is_noticed",
    ("data/transfer.py", "to(non_blocking=True) of a small array"): (
        "test_mixing.py::test_mixing_does_not_make_the_host_wait"
    ),
}
"""File and code of each wait, and of each copy that must not wait, with the test that changes it."""
METHODS = {
    "synchronize", "is_synchronized_device", "wait", "wait_event", "wait_stream", "record_event", "record_stream",
}  # fmt: skip


def waits_in(tree):
    """Yield the code of each wait, and of each copy that does not wait."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in METHODS:
                yield ast.unparse(node)
            elif any(keyword.arg == "non_blocking" for keyword in node.keywords):
                yield f"{node.func.attr}(non_blocking=True)"


def test_every_wait_in_the_package_is_listed_with_its_test():
    found = []
    for path in sorted((ROOT / "vitkd_ds").rglob("*.py")):
        text = path.read_text()
        if "torch" in text or "get_accelerator" in text:
            file = str(path.relative_to(ROOT / "vitkd_ds"))
            found += [(file, code) for code in waits_in(ast.parse(text)) if file.startswith(("engine", "data"))
                      or "cuda" in code or "accelerator" in code]  # fmt: skip
    listed = [(file, code.partition(" at ")[0].partition(" of ")[0]) for file, code in WAITS]
    assert sorted(found) == sorted(listed)
    for test in WAITS.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / "late" / file).read_text(), test


def is_everything_done(clock):
    """Return whether all queued work is done after reading a clock."""
    with late_device(0, eager=0) as device, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.ones(3, device="cuda")
        torch.ones(3, device="cuda")
        assert clock() > 0
        return all(stream.query() for stream in device.order.streams)


@pytest.mark.parametrize(
    "module, name, wait",
    [
        (processes, "synchronised_time", "get_accelerator().synchronize()"),
        (speed, "_synchronised_time", "torch.cuda.synchronize()"),
    ],
)
def test_a_clock_waits_for_all_queued_work(module, name, wait):
    assert is_everything_done(getattr(module, name))
    with without(module, name, wait):
        assert not is_everything_done(getattr(module, name))
