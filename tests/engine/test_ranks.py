"""How ranks learn that another failed, on one process and on two."""

import pytest

from vitkd_ds.engine import ranks


def test_what_fails_on_one_rank_is_known_on_all(observed):
    together = ["FailedElsewhere: rank 1: ValueError: no file", "ValueError: no file"]
    for rank, told in enumerate(observed[2]["agreement"]):
        assert told["all"] == [rank, 5, []] and told["together"] == together[rank]
        assert told["failures"] == ["rank 1: OSError: disk full"]
        assert told["main"] == ["KeyError: 'x'", 0], "on rank 1 nothing runs"


def test_without_a_process_group_there_is_one_rank():
    def fail():
        raise ValueError("no")

    assert (ranks.rank(), ranks.world_size(), ranks.from_all(3)) == (0, 1, [3])
    assert ranks.together(lambda: 7) == ranks.on_main(lambda: 7) == 7
    assert ranks.failures(fail) == ["rank 0: ValueError: no"]
    for agree in (ranks.together, ranks.on_main):
        with pytest.raises(ValueError, match="no"):
            agree(fail)
