"""The teacher check at the start of each new run: published accuracy, chance level, and the consequences."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats

from tests.conftest import run_several
from tests.threaded import on_ranks
from vitkd_ds.data.demo import CLASSES
from vitkd_ds.data.loader import build_loader
from vitkd_ds.engine import ranks
from vitkd_ds.models.build import DEMO_TEACHER
from vitkd_ds.recipes import build_run
from vitkd_ds.train import teacher_check


def run_with(num_classes, **teacher):
    run = build_run("demo")
    return replace(
        run,
        teachers={"teacher": replace(run.teachers["teacher"], **teacher)},
        data=replace(run.data, num_classes=num_classes),
    )


def published(run):
    return teacher_check.published_top1(run, run.teachers["teacher"])


@pytest.mark.parametrize("right, figure, num_classes, level", [
    (440, 85.73, 1000, "ok"), (425, 85.73, 1000, "ok"), (410, 85.73, 1000, "warning"), (380, 85.73, 1000, "error"),
    (0, 85.73, 1000, "error"), (0, None, 1000, "error"), (80, None, 1000, "ok"), (55, None, 10, "error"),
    (80, None, 10, "ok"),
])  # fmt: skip
def test_the_teacher_is_judged_by_its_interval_or_against_chance(tmp_path, right, figure, num_classes, level):
    if figure:
        (tmp_path / "t.json").write_text(json.dumps({"top1": figure}))
    run = run_with(num_classes, checkpoint=str(tmp_path / "t.safetensors"))
    found = teacher_check.judge(run, run.teachers["teacher"], 512, right)
    assert found[0] == level and f"top-1 {100 * right / 512:.1f} % on 512 images, 95 % interval [" in found[1]


@pytest.mark.parametrize("num_images, right, num_classes, level", [
    (100, 59, 2, "warning"), (100, 50, 2, "warning"), (512, 256, 2, "error"), (100, 61, 2, "ok"),
    (100, 10, 10, "error"), (100, 13, 10, "warning"), (30, 8, 4, "warning"), (512, 0, 2, "error"),
    (512, 1, 1000, "error"), (512, 4, 1000, "ok"),
])  # fmt: skip
def test_too_few_images_to_distinguish_from_chance_give_a_warning(tmp_path, num_images, right, num_classes, level):
    run = run_with(num_classes, checkpoint=str(tmp_path / "t.safetensors"))
    chance, interval = 1 / num_classes, stats.binomtest(right, num_images).proportion_ci(0.95, method="wilson")
    is_open, is_near = interval.low < chance, interval.high < chance + 0.1 * (1 - chance)
    assert level == ("ok" if not is_open else "error" if is_near else "warning")
    found, said = teacher_check.judge(run, run.teachers["teacher"], num_images, right)
    assert found == level
    words = {"error": "is no better than chance", "ok": "no published top-1 is known"}
    assert words.get(level, f"cannot be told from chance with {num_images} images") in said


def test_the_published_accuracy_is_for_the_crop_or_the_export(tmp_path):
    run = build_run("deit_small_from_deit3_base")
    assert published(run) == (85.48, "published at crop 0.875")
    assert published(build_run("deit_base_from_deit3_large")) == (86.99, "published at crop 1")
    assert published(build_run("demo"))[0] == 91.15
    (tmp_path / "t.json").write_text('{"top1": 80.5}')
    own = replace(
        run, teachers={"teacher": replace(run.teachers["teacher"], checkpoint=str(tmp_path / "t.safetensors"))}
    )
    assert published(own) == (80.5, str(tmp_path / "t.json"))
    assert published(replace(own, data=replace(own.data, image_size=384)))[0] == 80.5
    larger, probed = (
        replace(run.teachers["teacher"], **changes) for changes in ({"image_size": 384}, {"head": "x.safetensors"})
    )
    assert published(replace(run, teachers={"teacher": larger})) is None, "at 224 pixels"
    assert published(replace(run, teachers={"teacher": probed})) is None, "with timm's classifier"
    assert published(replace(run, data=replace(run.data, num_classes=10))) is None


def test_an_unknown_class_order_is_reported(tmp_path):
    run = run_with(10, checkpoint=str(tmp_path / "t.safetensors"))
    said = teacher_check.judge(run, run.teachers["teacher"], 512, 300)[1]
    assert "no .json file next to it lists its classes" in said
    (tmp_path / "t.json").write_text('{"classes": ["a"]}')
    assert "lists its classes" not in teacher_check.judge(run, run.teachers["teacher"], 512, 300)[1]


@pytest.fixture(scope="module")
def guessing(tmp_path_factory):
    """The demo's teacher with its head's classes reversed, unknown to its .json."""
    folder = tmp_path_factory.mktemp("guessing")
    state = load_file(DEMO_TEACHER)
    for name in ("head.weight", "head.bias"):
        state[name] = state[name].roll(1, dims=0)
    save_file(state, folder / "teacher.safetensors")
    shutil.copy(DEMO_TEACHER.with_suffix(".json"), folder / "teacher.json")
    return folder / "teacher.safetensors"


def test_a_run_rejects_a_teacher_at_chance_warns_about_few_images_and_checks_only_once(guessing, tmp_path, demo_cache):
    base = ["--recipe=demo", "--debug", "--max_steps=1"]
    bad = [*base, f"--teacher.checkpoint={guessing}", f"--workdir={tmp_path / 'bad'}"]
    good = [*base, f"--workdir={tmp_path / 'good'}"]
    commands = [
        [*bad, "--data.max_val_images=200"], [*bad, "--losses.nkd.weight=0"], good,
        [*good, "--max_steps=2", "--extend"],
        [*base, f"--teacher.checkpoint={guessing}", f"--workdir={tmp_path / 'few'}", "--data.max_val_images=50"],
    ]  # fmt: skip
    refused, features, first, again, few = run_several(1, tmp_path / "commands", commands)
    assert "the teacher does not know the classes of the data: top-1 " in refused["refused"]
    assert "on 200 images" in refused["refused"] and "no better than chance; check that data.val" in refused["refused"]
    assert features["summary"] and "teacher: top-1" not in features["said"], "ViTKD does not use logits"
    assert "teacher: top-1 " in first["said"] and "on 64 images" in first["said"] and "91.15" in first["said"]
    assert again["summary"]["steps"] == 2 and "teacher: top-1" not in again["said"]
    assert few["summary"] and "on 50 images" in few["said"] and "no better than chance" in few["said"]


def test_correct_answers_are_counted_on_evenly_spread_images(demo_cache):
    run = build_run("demo", debug=True)
    run = replace(run, data=replace(run.data, max_val_images=0))
    seen = []

    def right_on_even(images_BCHW):
        seen.append(len(images_BCHW))
        labels = torch.arange(sum(seen) - len(images_BCHW), sum(seen)) * 2000 // 512 // 200  # 200 images per class
        answers = torch.where(labels % 2 == 0, labels, (labels + 1) % 10)
        return teacher_check.Features(torch.nn.functional.one_hot(answers, 10).float())

    counts = teacher_check.count_right(run, right_on_even, torch.device("cpu"), classes=tuple(CLASSES))
    assert counts == (512, sum(i * 2000 // 512 // 200 % 2 == 0 for i in range(512))) and max(seen) == 16


RIGHT = {0: 3, 1: 0, 2: 5}
"""Images per micro-batch that each rank's fake teacher below classifies correctly."""


def counted_on_three_ranks(monkeypatch, *, late=None, failing=None, most=60):
    """Each rank's counts on the packaged images; a rank may be late from its second micro-batch on, or fail."""
    run = replace(build_run("demo"), global_batch_size=48)
    run = replace(run, data=replace(run.data, max_val_images=most, num_workers=1))
    ticks = {rank: iter([0.0, 1.0, *[99.0 if rank == late else 2.0] * 9]) for rank in RIGHT}
    monkeypatch.setattr(teacher_check, "time", SimpleNamespace(monotonic=lambda: next(ticks[ranks.rank()])))

    def on_rank(rank):
        loader = build_loader(run.data, split="val", rank=rank, world_size=3, micro_batch_size=16)
        labels = iter([labels_B for _, labels_B in loader.epoch(0)])

        def teacher(images_BCHW):
            if rank == failing:
                raise ValueError("no such weights")
            wrong_B = (next(labels) + 1) % 10
            wrong_B[: RIGHT[rank]] = (wrong_B[: RIGHT[rank]] - 1) % 10
            return SimpleNamespace(logits_BK=torch.nn.functional.one_hot(wrong_B, 10).float())

        return teacher_check.count_right(run, teacher, torch.device("cpu"), classes=CLASSES)

    return on_ranks(3, on_rank)


def test_unequal_shares_are_counted_together_and_one_late_rank_stops_all(demo_cache, monkeypatch):
    # 20 images per rank: micro-batches of 16 and 4. The last rank classifies all 4 correctly.
    assert counted_on_three_ranks(monkeypatch) == [(60, 3 + 3 + 0 + 0 + 5 + 4)] * 3
    assert counted_on_three_ranks(monkeypatch, late=1) == [(60, 15)] * 3, "the second was its last micro-batch"
    assert counted_on_three_ranks(monkeypatch, late=2, most=150)[0][0] == 3 * 32
    assert counted_on_three_ranks(monkeypatch, most=59)[0][0] == 59, "padding does not count"


def test_a_file_missing_on_one_rank_is_known_on_all_before_the_teacher_check(demo_cache, tmp_path):
    def on_rank(rank):
        val = "demo" if rank else str(tmp_path / "none.beton")
        run = replace(build_run("demo"), global_batch_size=48)
        run = replace(run, data=replace(run.data, val=val, num_workers=1))
        with pytest.raises(ValueError) as raised:
            teacher_check.count_right(run, lambda images: None, torch.device("cpu"), classes=CLASSES)
        return type(raised.value), str(raised.value)

    of_main, of_other = on_ranks(2, on_rank)
    assert of_other[0] is ranks.RefusedElsewhere and of_main[1] in of_other[1] and "none.beton" in of_main[1]


def micro_batches_of(rank):
    """Micro-batches; rank 1 cannot read the first."""
    if rank == 1:
        raise ValueError("no such image")
    yield torch.zeros(2, 3, 28, 28, dtype=torch.uint8), torch.zeros(2)


def test_images_unreadable_on_one_rank_end_the_teacher_check_on_all(monkeypatch):
    run = build_run("demo")
    run = run.with_model("teacher", replace(run.teachers["teacher"], fp8=True))
    device = torch.device("cpu")
    loader = SimpleNamespace(num_batches=1, epoch=lambda number: micro_batches_of(ranks.rank()))
    monkeypatch.setattr(teacher_check, "open_split", lambda *arguments, **options: loader)

    def on_rank(rank):
        with pytest.raises(ValueError, match="no such image") as counted:
            teacher_check.count_right(run, None, device, classes=CLASSES)
        parts = SimpleNamespace(run=run, device=device, val_loader=loader, teachers={"teacher": None})
        with pytest.raises(ValueError, match="no such image") as compared:
            teacher_check.check_fp8(parts)
        return type(counted.value), type(compared.value)

    assert on_ranks(2, on_rank) == [(ranks.RefusedElsewhere,) * 2, (ValueError,) * 2]
