"""How ranks learn that another failed, on one process and on two."""

import pytest

from tests.conftest import finish_ranks, start_ranks
from vitkd_ds.engine import ranks

AGREEING = """
from vitkd_ds.engine import processes, ranks

def on_rank(number, error):
    def function():
        if ranks.rank() == number:
            raise error
        return ranks.rank()
    return function

def told(function):
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

processes.start_processes()
print("all", ranks.together(ranks.rank), ranks.on_main(lambda: ranks.rank() + 5), ranks.failures(ranks.rank))
print("together", told(lambda: ranks.together(on_rank(1, ValueError("no file")))))
print("failures", ranks.failures(on_rank(1, OSError("disk full"))))
mains = [on_rank(number, KeyError("x")) for number in (0, 1)]
print("main", *(told(lambda: ranks.on_main(function)) for function in mains))
processes.leave()
"""


def test_what_fails_on_one_rank_is_known_on_all():
    outputs = finish_ranks(start_ranks(2, "-c", AGREEING))
    for rank, output in enumerate(outputs):
        assert f"all {rank} 5 []" in output
        assert "failures ['rank 1: OSError: disk full']" in output
        assert "main KeyError: 'x' 0" in output, "on rank 1 nothing runs"
    assert "together FailedElsewhere: rank 1: ValueError: no file" in outputs[0]
    assert "together ValueError: no file" in outputs[1]


def test_without_a_process_group_there_is_one_rank():
    def fail():
        raise ValueError("no")

    assert (ranks.rank(), ranks.world_size(), ranks.from_all(3)) == (0, 1, [3])
    assert ranks.together(lambda: 7) == ranks.on_main(lambda: 7) == 7
    assert ranks.failures(fail) == ["rank 0: ValueError: no"]
    for agree in (ranks.together, ranks.on_main):
        with pytest.raises(ValueError, match="no"):
            agree(fail)
