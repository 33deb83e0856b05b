"""Training without labels, from packing to k-NN: labels are never used, and images without labels train the same
student."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import load_file

from tests.conftest import assert_same_result, metrics_of, run_several
from vitkd_ds import cli
from vitkd_ds.checkpoint.manifest import read_manifest
from vitkd_ds.cli import parse_run
from vitkd_ds.commands.compare import compare
from vitkd_ds.commands.doctor import attempted
from vitkd_ds.commands.doctor.data import check_knn
from vitkd_ds.commands.doctor.rows import Patient
from vitkd_ds.commands.evaluate import evaluate_exported
from vitkd_ds.commands.pack import pack
from vitkd_ds.commands.parse import checked
from vitkd_ds.data.loader import build_loader
from vitkd_ds.losses.feature import Feature
from vitkd_ds.losses.part import PairInfo
from vitkd_ds.models.features import tap_features
from vitkd_ds.recipes import build_run
from vitkd_ds.train.evaluate import evaluate_features
from vitkd_ds.train.loaders import open_knn

CPU = torch.device("cpu")
WORKING = "vitkd, vkd, spectral, feature, relation, attention"


def options(workdir, data, *more):
    return [
        "--recipe=demo_label_free", "--debug", f"--workdir={workdir}", f"--data.train={data}", f"--data.val={data}",
        "--max_steps=21", "--global_batch_size=8", "--micro_batch_size_per_gpu=2", "--checkpoint.every_steps=7",
        "--checkpoint.keep_last=3", "--eval_every_epochs=1", "--augment.mixup_alpha=0.8", "--augment.cutmix_alpha=1",
        "--optim.ema_decay=0.5", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def unlabelled(small_beton, tmp_path_factory):
    """The images of small_beton in the same order, without labels."""
    path = tmp_path_factory.mktemp("unlabelled") / "x.beton"
    pack(small_beton.parent / "images", path, labels="none", write_mode="raw", max_resolution=0)
    return path


@pytest.fixture(scope="module")
def labelled(small_beton, tmp_path_factory):
    """Labelled images for k-NN: those of small_beton except one, so that two ranks have unequal shares."""
    folder = tmp_path_factory.mktemp("labelled")
    shutil.copytree(small_beton.parent / "images", folder / "images")
    sorted(folder.glob("images/*/*"))[7].unlink()
    pack(folder / "images", folder / "x.beton", write_mode="raw", max_resolution=0)
    return folder / "x.beton"


@pytest.fixture(scope="module")
def few(small_beton, tmp_path_factory):
    """Ten images of two of its classes."""
    folder = tmp_path_factory.mktemp("few")
    for place in sorted((small_beton.parent / "images").iterdir())[:2]:
        (folder / "images" / place.name).mkdir(parents=True)
        for file in sorted(place.iterdir())[:5]:
            shutil.copy(file, folder / "images" / place.name)
    pack(folder / "images", folder / "x.beton", write_mode="raw", max_resolution=0)
    return folder / "x.beton"


@pytest.fixture(scope="module")
def runs(small_beton, unlabelled, labelled, tmp_path_factory, demo_cache):
    """Runs on two ranks: labels ignored, and images without labels, also resumed from a checkpoint. k-NN has labels."""
    folder = tmp_path_factory.mktemp("label_free")
    asked = (f"--data.knn_train={labelled}", f"--data.knn_val={labelled}")
    commands = [
        options(folder / "ignored", small_beton, *asked),
        options(folder / "none", unlabelled, "--data.labels=use", *asked),
    ]
    outcomes = run_several(2, folder / "commands", commands)
    assert not any(outcome["refused"] for outcome in outcomes), outcomes
    shutil.copytree(folder / "none", folder / "resumed")
    (folder / "resumed" / "done").unlink()
    (folder / "resumed" / "checkpoints" / "latest").write_text("step00000014")
    again = options(folder / "resumed", unlabelled, "--data.labels=use", *asked)
    (outcome,) = run_several(2, folder / "again", [again])
    assert "step 14 of 21" in outcome["said"]
    return folder


@pytest.mark.slow
def test_ignored_or_missing_labels_train_the_same_student_bit_for_bit_even_when_resumed(runs):
    assert_same_result(runs / "ignored", runs / "none")
    assert_same_result(runs / "resumed", runs / "none")


def test_the_run_is_evaluated_by_agreement_and_the_best_agrees_most(runs, capsys):
    lines = [line for line in metrics_of(runs / "none") if "val_num_images" in line]
    assert [line["step"] for line in lines] == [7, 14, 21] and all(line["val_num_images"] == 60 for line in lines)
    assert all(0 < line[f"val_{name}"] < 1 for line in lines for name in ("cka", "cka_patches"))
    keys = {key for line in metrics_of(runs / "none") for key in line}
    assert {key for key in keys if "top1" in key} == {"val_knn_top1"} and not keys & {"ce", "val_agreement"}
    best = max(lines, key=lambda line: line["val_cka"])
    assert (runs / "none" / "checkpoints" / "best").read_text() == f"step{best['step']:08}"
    state = read_manifest(runs / "none" / "checkpoints" / "step00000021")["train_state"]
    assert state["best_top1"] == pytest.approx(best["val_cka"], rel=1e-6) and state["best_step"] == best["step"]
    summary = json.loads((runs / "none" / "summary.json").read_text())
    assert summary["cka"] == pytest.approx(lines[-1]["val_cka"], rel=1e-5)
    assert summary["cka_patches"] == pytest.approx(lines[-1]["val_cka_patches"], rel=1e-5)
    assert 0 < summary["student_raw_cka"] != summary["cka"] and "student_top1" not in summary
    # One process, with the teacher in fp32 instead of bf16.
    found = evaluate_exported(str(runs / "none"))
    assert found["cka"] == pytest.approx(summary["cka"], rel=0.03) and found["num_images"] == 60
    with pytest.raises(ValueError, match="none was trained without classes .data.num_classes=0.") as refusal:
        compare(str(runs / "none"))
    advised = shlex.split(str(refusal.value).partition("run: vitkd-ds ")[2])
    assert advised == ["eval", str(runs / "none"), "--knn", "--probe"]
    cli.evaluate(advised[1], knn="true", probe="true")
    assert "knn_top1" in capsys.readouterr().out


def test_k_nn_in_the_run_matches_eval_over_all_ranks_images(runs, labelled):
    lines = [line for line in metrics_of(runs / "none") if "val_knn_top1" in line]
    summary = json.loads((runs / "none" / "summary.json").read_text())
    found = evaluate_exported(str(runs / "none"), knn=True, train=str(labelled), val=str(labelled))
    assert found["num_train"] == found["num_images"] == 59
    assert summary["knn_top1"] == pytest.approx(found["knn_top1"], abs=1e-6) and 10 < found["knn_top1"] < 100
    assert [line["step"] for line in lines] == [7, 14, 21]
    assert lines[-1]["val_knn_top1"] == pytest.approx(found["knn_top1"], rel=1e-5)


@pytest.mark.parametrize("flags, message", [
    ({"knn_train": "demo"}, "data.knn_train and data.knn_val go together, got data.knn_train only"),
    ({"knn_train": "demo", "knn_val": "demo", "labels": "use", "num_classes": "10"}, "is for runs without labels"),
])  # fmt: skip
def test_k_nn_needs_both_splits_and_excludes_classes(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_run((), {"recipe": "demo_label_free"} | {f"data.{key}": value for key, value in flags.items()})


@pytest.mark.parametrize("train, val, message", [
    ("unlabelled", "labelled", "data.knn_train needs at least 20 images, .* has 60 images of 0 classes"),
    ("labelled", "unlabelled", "data.knn_val needs .*classes of data.knn_train.* has 60 images of 0 classes"),
    ("few", "few", "data.knn_train needs at least 20 images, labelled .* has 10 images of 2 classes"),
    ("labelled", "few", "data.knn_val needs .*classes of data.knn_train.* has 10 images of 2 classes"),
    ("labelled", "gone", "data.knn_val: no file gone. Pack the images first"),
])  # fmt: skip
def test_k_nn_needs_enough_labelled_images(unlabelled, labelled, few, demo_cache, train, val, message):
    paths = {"labelled": labelled, "unlabelled": unlabelled, "few": few, "gone": "gone"}
    run = build_run("demo_label_free")
    run = replace(run, data=replace(run.data, knn_train=str(paths[train]), knn_val=str(paths[val])))
    with pytest.raises(ValueError, match=message):
        open_knn(run, 4, CPU)
    (row,) = attempted("data.knn", check_knn, Patient(run, CPU, ["here"]))
    assert row.level == "error" and re.search(message, row.found)


def test_the_doctor_checks_the_k_nn_images(labelled, demo_cache):
    run = build_run("demo_label_free")
    assert list(check_knn(Patient(run, CPU, ["here"]))) == []
    run = replace(run, data=replace(run.data, knn_train=str(labelled), knn_val="demo"))
    neighbours, asked = open_knn(run, 4, CPU)
    assert neighbours.classes == asked.classes and (len(neighbours), len(asked)) == (15, 500)
    rows = list(check_knn(Patient(run, CPU, ["here"])))
    assert [(row.level, row.name, row.found.partition(",")[0]) for row in rows] == [
        ("ok", "data.knn_train", "59 images in 10 classes"), ("ok", "data.knn_val", "2"),
    ]  # fmt: skip


def test_the_cosines_use_the_trained_adapters(runs, monkeypatch):
    summary = json.loads((runs / "none" / "summary.json").read_text())
    lines = [line for line in metrics_of(runs / "none") if "val_cosine" in line]
    module = torch.load(runs / "none" / "checkpoints" / "step00000021" / "mp_rank_00_model_states.pt")["module"]
    feature = Feature(build_run("demo_label_free").losses.feature, PairInfo(64, 128, (7, 7), (7, 7))).eval()
    # The last weights in bf16; the run uses their average, which follows them closely.
    feature.load_state_dict({name[8:]: each for name, each in module.items() if name.startswith("feature.")})
    asked = partial(evaluate_features, watch={"teacher": [feature.metrics]})
    monkeypatch.setattr("vitkd_ds.commands.evaluate.evaluate_features", asked)
    found = evaluate_exported(str(runs / "none"))
    for name in ("cosine", "cosine_patches"):
        assert found[name] == pytest.approx(summary[name], rel=0.1) and 0.01 < found[name] < 1
        assert [line["step"] for line in lines] == [7, 14, 21] and lines[0][f"val_{name}"] < summary[name]
        assert summary[name] == pytest.approx(lines[-1][f"val_{name}"], rel=1e-5)


def test_the_student_is_a_headless_timm_model_and_describes_its_features(runs):
    described = json.loads((runs / "none" / "student.json").read_text())
    model = timm.create_model(described["model"], **described["args"]).eval()
    model.load_state_dict(load_file(runs / "none" / "student.safetensors"))
    assert described["classes"] == [] and model.num_classes == 0 and "cka" in described
    assert described["features"] == {"pooled": "class token", "num_prefix_tokens": 1, "width": 64}
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pooled = tap_features(model, images, ()).pooled_BD
        assert torch.equal(pooled, model.forward_features(images)[:, 0]) and torch.equal(pooled, model(images))


def test_features_are_evaluated_on_the_runs_data_or_other_data(runs, small_beton, unlabelled):
    given = {"train": str(small_beton), "val": str(small_beton)}
    found = evaluate_exported(str(runs / "ignored"), knn=True, **given)
    assert found == evaluate_exported(str(runs / "none"), knn=True, **given)
    assert found["num_train"] == found["num_images"] == 60 and 0 < found["knn_top1"] <= 100
    own = evaluate_exported(str(runs / "none"), knn=True)
    assert own["num_train"] == own["num_images"] == 59, "those of data.knn_train and data.knn_val"
    with pytest.raises(ValueError, match="has no labels of two or more classes"):
        evaluate_exported(str(runs / "none"), knn=True, train=str(unlabelled), val=str(unlabelled))


@pytest.mark.parametrize("backend", ["ffcv", "torchvision"])
def test_images_without_labels_open_as_data_without_classes(unlabelled, small_beton, backend):
    data = replace(build_run("demo").data, train=str(unlabelled), val=str(unlabelled), num_classes=0, backend=backend)
    loader = build_loader(data, split="val", micro_batch_size=60)
    assert loader.classes == ()
    ((images, labels),) = loader.epoch(0)
    assert labels.tolist() == [0] * 60
    same = replace(data, train=str(small_beton), val=str(small_beton), labels="ignore")
    ignoring = build_loader(same, split="val", micro_batch_size=60)
    ((others, zeros),) = ignoring.epoch(0)
    assert ignoring.classes == () and torch.equal(images, others) and torch.equal(labels, zeros)


@pytest.mark.parametrize("changes, message", [
    ({"train": "labelled", "val": "labelled"}, "data.train must have data.num_classes=0 classes, but .* has 10: set "
     "--data.num_classes=10, or train without labels .--data.labels=ignore."),
    ({"val": "labelled"}, "(data.val.) has classes that data.train does not have: .* pack both with --labels none, "
     "ignore them with --data.labels=ignore"),
    ({"train": "labelled", "num_classes": 10}, "(data.val.) has no labels, but data.train has classes"),
])  # fmt: skip
def test_labels_in_only_one_split_are_rejected(unlabelled, small_beton, changes, message):
    paths = {"labelled": str(small_beton)}
    changes = {key: paths.get(value, value) for key, value in changes.items()}
    files = {"train": str(unlabelled), "val": str(unlabelled)}
    data = replace(build_run("demo").data, **files | {"num_classes": 0} | changes)
    with pytest.raises(ValueError, match=message):
        classes = build_loader(data, split="train", micro_batch_size=4).classes
        build_loader(data, split="val", micro_batch_size=4, classes=classes)


@pytest.mark.parametrize("term, what", [
    ("ce", "labels"), ("nkd", "labels"), ("dkd", "labels"), ("kd", "logits of a classifier"),
    ("wttm", "logits of a classifier"), ("dist", "logits of a classifier"),
    ("distillation_token", "logits of a classifier"),
])  # fmt: skip
def test_terms_that_need_labels_or_a_classifier_are_rejected_by_name(unlabelled, term, what):
    flags = {"recipe": "demo_label_free", "debug": "true", f"losses.{term}.weight": "1"}
    message = (
        rf"losses.{term} needs {what}, but {{}} \(data.num_classes=0\). Set --losses.{term}.weight=0, and set the "
    )
    message += rf"weight of one or more of {WORKING}\.$"
    with pytest.raises(ValueError, match=message.format("labels are ignored")):
        parse_run((), dict(flags))
    files = {"data.train": str(unlabelled), "data.val": str(unlabelled), "data.labels": "use"}
    with pytest.raises(ValueError, match=message.format("data.train has no labels")):
        parse_run((), flags | files)


@pytest.mark.parametrize("term", WORKING.split(", "))
def test_each_other_term_is_accepted_on_its_own(term):
    flags = {"recipe": "demo_label_free", "losses.feature.weight": "0", "losses.relation.weight": "0"}
    run = parse_run((), flags | {f"losses.{term}.weight": "1"})
    assert list(run.losses.active()) == [term] and run.data.num_classes == 0


def test_a_run_from_python_is_checked_and_its_classes_counted_before_any_process_starts():
    run = build_run("demo_label_free", debug=True)
    with pytest.raises(ValueError, match="data.num_classes must be 0 with data.labels=ignore, got 10. Add"):
        checked(replace(run, data=replace(run.data, num_classes=10)))
    plain = build_run("demo", debug=True)
    assert checked(replace(plain, data=replace(plain.data, num_classes=0))) == plain
    with pytest.raises(ValueError, match="no loss term is on"):
        parse_run((), {"recipe": "demo_label_free", "teacher": "none"})
    assert parse_run((), {"recipe": "images", "data.train": "demo", "data.val": "demo", "teacher": "none",
                          "data.image_size": "28"}).data.num_classes == 10  # fmt: skip
