"""A loss that is not finite on one rank stops all ranks before the update."""

from pathlib import Path

from tests.conftest import finish_ranks, start_ranks

WORKER = Path(__file__).with_name("nonfinite.py")


def test_all_ranks_stop_and_name_step_terms_lr_and_the_last_good_checkpoint(tmp_path, demo_cache):
    outputs = finish_ranks(start_ranks(2, WORKER, tmp_path / "run"))
    for rank, output in enumerate(outputs):
        assert f"rank {rank} stopped: stopped before update 3, rank {rank}, lr " in output
        assert "last good checkpoint step00000002" in output
    assert "ce nan" in outputs[1] and "ce nan" not in outputs[0]
    assert not (tmp_path / "run" / "done").exists()
