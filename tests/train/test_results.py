"""Results of a run on differing ranks: skipped images, and a signal that reached only one rank."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.threaded import on_ranks
from tests.train.test_evaluate import PLAIN, Batches, linear
from vitkd_ds.checkpoint.load import TrainState
from vitkd_ds.checkpoint.lock import LockLost
from vitkd_ds.engine import ranks
from vitkd_ds.recipes import build_run
from vitkd_ds.train import loop, results

CPU = torch.device("cpu")


def test_skipped_images_are_counted_over_all_loaders_and_ranks():
    run = SimpleNamespace(data=SimpleNamespace(on_bad="skip"))
    parts = SimpleNamespace(run=run, device=CPU)

    def on_rank(rank):
        loaders = [SimpleNamespace(num_skipped=number) for number in (rank, 10 * rank, 1)]
        return results.skipped_images("skipped", parts, *loaders)

    assert on_ranks(3, on_rank) == [{"skipped": (0 + 1 + 2) * 11 + 3}] * 3
    run.data.on_bad = "error"
    assert results.skipped_images("skipped", parts) == {}


def test_a_signal_to_one_rank_ends_an_evaluation_and_a_start_on_all(monkeypatch):
    monkeypatch.setattr("vitkd_ds.train.evaluate.MICRO_BATCHES_PER_LOOK", 2)
    run = build_run("demo")

    def on_rank(rank):
        model = linear(1)
        engine = SimpleNamespace(weights_of=lambda *modules, average: {"student": model.state_dict()})
        parts = SimpleNamespace(
            run=run, device=CPU, engine=engine, export_model=linear(2), normalization=PLAIN, watched={},
            val_loader=Batches(), teachers={}, answering=(),
        )  # fmt: skip
        return results._evaluate_weights(parts, with_teachers=True) is None, loop._is_stopped(CPU)

    monkeypatch.setattr("vitkd_ds.train.signals.received", lambda: ranks.rank() == 1)
    assert on_ranks(2, on_rank) == [(True, True)] * 2
    monkeypatch.setattr("vitkd_ds.train.signals.received", lambda: False)
    assert on_ranks(2, on_rank) == [(False, False)] * 2


def finish_in(workdir, check):
    """Finish a run on this rank."""
    run = build_run("demo")
    parts = SimpleNamespace(
        run=replace(run, workdir=str(workdir)), student_description=dict, answering=(),
        schedule=SimpleNamespace(steps_per_epoch=1), engine=SimpleNamespace(student_weights=dict),
    )  # fmt: skip
    return results.finish(parts, TrainState(1, 0, step=1, result={"top1": 1.0, "top5": 2.0}), None, check=check)


def test_a_job_that_lost_its_run_folder_ends_on_all_ranks_without_writing_results(tmp_path):
    def lose():
        if ranks.rank() == 0:
            raise LockLost("another job has it")

    def on_rank(rank):
        with pytest.raises(LockLost, match="another job has it"):
            finish_in(tmp_path, lose)

    on_ranks(2, on_rank)
    assert not any(tmp_path.iterdir())


def test_only_rank_0_checks_the_lock_and_writes_the_results(tmp_path):
    looked = []
    first, second = on_ranks(2, lambda rank: finish_in(tmp_path, lambda: looked.append(ranks.rank())))
    assert looked == [0] and first == second
    assert (tmp_path / "done").exists()
