"""RUN/nonfinite: its description of a skipped update, and its command, which repeats that update."""

import json
import logging
import math
import shlex
from dataclasses import replace
from types import SimpleNamespace

import torch

from tests.conftest import metrics_of, run_command
from tests.threaded import on_ranks
from vitkd_ds.recipes import build_run
from vitkd_ds.train.nonfinite import report_nonfinite
from vitkd_ds.train.step import Update


def only_file(workdir):
    (file,) = (workdir / "nonfinite").glob("step*.json")
    return json.loads(file.read_text())


def test_a_diverged_run_leaves_a_record_whose_command_repeats_it_bit_for_bit(tmp_path, demo_cache):
    workdir = tmp_path / "run"
    options = ["--recipe=demo_plain", "--debug", f"--workdir={workdir}", "--checkpoint.every_steps=1"]
    options += ["--optim.lr=1e30", "--optim.clip_grad_norm=0", "--trackers=mlflow"]
    done = run_command("python", "train.py", *options, check=False)
    assert done.returncode == 2, done.stderr[-2000:]
    found = only_file(workdir)
    step = found["step"]
    assert f"stopped before update {step}," in done.stderr and found["checkpoint"] == f"step{step - 1:08d}"
    assert not math.isfinite(float(found["terms"][0]["total"]))
    assert str(workdir / "nonfinite" / f"step{step:08d}.json") in done.stderr
    assert (workdir / "mlflow").is_dir() and not (workdir / "tensorboard").exists()

    done = run_command(*shlex.split(found["replay"]), check=False)
    assert done.returncode == 2, done.stderr[-2000:]
    replayed = workdir / "nonfinite" / f"replay{step:08d}"
    again = only_file(replayed)
    same = found.keys() - {"checkpoint", "replay"}
    assert {key: again[key] for key in same} == {key: found[key] for key in same}
    assert not [line for line in metrics_of(replayed) if line["step"] < step], "it resumed from the last checkpoint"
    assert not (replayed / "mlflow").exists()


def test_the_record_has_every_ranks_terms_and_images_and_the_norms(observed):
    seen = observed[2]["nonfinite file"]
    assert (seen["step"], seen["epoch"], seen["checkpoint"]) == (3, 0, "step00000002")
    assert [terms["ce"] == "nan" for terms in seen["terms"]] == [False, True]
    assert seen["gradient_norms"] == {"with_weight_decay": "nan", "without_weight_decay": "nan"}
    assert seen["labels of its images"] == seen["labels that were seen"]
    assert len(set(map(tuple, seen["images"]["ranks"]))) == 2
    assert seen["replay"].startswith("torchrun --nproc_per_node 2 train.py --recipe=")


def test_only_rank_0_writes_and_an_impossible_folder_gives_a_warning(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="vitkd_ds")
    parts = SimpleNamespace(
        run=replace(build_run("demo"), workdir=str(tmp_path)),
        schedule=SimpleNamespace(steps_per_epoch=4, total_steps=8),
        train_loader=SimpleNamespace(train_numbers=lambda epoch, step: [torch.tensor([epoch, step])]),
        engine=SimpleNamespace(group_names=["all"]),
    )
    outcome = SimpleNamespace(group_norms=[math.inf])
    file = tmp_path / "nonfinite" / "step00000006.json"

    def said():
        caplog.clear()
        on_ranks(2, lambda rank: report_nonfinite(parts, Update(5, 0.1, {"ce": torch.tensor(rank)}, outcome, 0.0)))
        return [(record.levelname, record.getMessage()) for record in caplog.records if record.name != "root"]

    file.parent.touch()
    ((level, message),) = said()
    assert level == "WARNING" and f"update 6 could not be written to {file}: [Errno 17] File exists" in message
    file.parent.unlink()
    about = f"wrote terms, gradients, images and a replay command of update 6 to {file}"
    assert said() == [("INFO", about)]
    found = json.loads(file.read_text())
    assert found["terms"] == [{"ce": 0}, {"ce": 1}] and found["images"]["ranks"] == [[1, 1]]
    assert (found["step"], found["epoch"], found["checkpoint"]) == (6, 1, "")
