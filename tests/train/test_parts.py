"""Class names: labels of training, validation and teacher must mean the same classes."""

import json
import shutil
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.data.conftest import write_images
from tests.threaded import on_ranks
from vitkd_ds.commands.pack import pack
from vitkd_ds.config.run import TeacherConfig
from vitkd_ds.data.crops import BICUBIC, BILINEAR, CentreCrops
from vitkd_ds.data.images import check_classes
from vitkd_ds.data.loader import build_loader
from vitkd_ds.data.order import SAMPLE_DTYPE
from vitkd_ds.engine import ranks
from vitkd_ds.models.build import build_student
from vitkd_ds.models.normalization import Normalization
from vitkd_ds.recipes import build_run
from vitkd_ds.train import parts
from vitkd_ds.train.loaders import open_split
from vitkd_ds.train.parts import build_models, build_parts, check_teacher_classes, teacher_needs


@pytest.mark.parametrize("found, message", [
    (("dog", "cat"), "it has 'dog' as class 0, where data.train has 'cat'"),
    (("cat",), "it lacks 'dog'"), (("cat", "dog", "eel"), "it also has 'eel'"),
    (("cat", "eel"), "it lacks 'dog' and also has 'eel'"),
    (tuple("abcdefg"), "lacks 'cat', 'dog' and also has 'a', 'b', 'c', 'd', 'e' and 2 more. Pack"),
])  # fmt: skip
def test_missing_or_extra_classes_or_the_first_difference_are_named(found, message):
    check_classes(("cat", "dog"), ("cat", "dog"), source="t.json")
    with pytest.raises(ValueError, match=f"t.json does not match the classes of data.train.*{message}"):
        check_classes(("cat", "dog"), found, source="t.json")


def run_of(train, val, num_classes):
    run = build_run("demo_plain", debug=True)
    data = replace(run.data, train=str(train), val=str(val), num_classes=num_classes, num_workers=1)
    return replace(run, data=data, global_batch_size=4, micro_batch_size_per_gpu=4)


@pytest.mark.parametrize("num_classes, error", [
    (2, "data.val. has classes that data.train does not have: 'birds' .*did you mean bird"),
    (3, "data.train must have data.num_classes=3 classes, but .* has 2: set --data.num_classes=2"),
])  # fmt: skip
def test_a_class_that_training_lacks_is_named_before_the_run(tmp_path, num_classes, error):
    src = write_images(tmp_path / "images", 12, classes=("ant", "bird"))
    train = pack(src, tmp_path / "train.beton", workers=1).path
    (src / "bird").rename(src / "birds")
    val = pack(src, tmp_path / "val.beton", workers=1).path
    with pytest.raises(ValueError, match=error):
        build_parts(run_of(train, val, num_classes), torch.device("cpu"))


def test_validation_uses_trainings_class_numbers_and_a_teacher_must_match_their_order(tmp_path):
    src = write_images(tmp_path / "images", 12, classes=("ant", "bird", "cat"))
    train = pack(src, tmp_path / "train.beton", workers=1).path
    (tmp_path / "names").write_text("cat\nbird\n")
    shutil.rmtree(src / "ant")
    val = pack(src, tmp_path / "val.beton", classes=str(tmp_path / "names"), workers=1).path
    run = run_of(train, val, 3)
    loader = open_split(run, "val", 12, torch.device("cpu"), classes=("ant", "bird", "cat"))
    assert loader.classes == ("ant", "bird", "cat") and next(loader.epoch(0))[1].tolist() == [2] * 4 + [1] * 4
    (tmp_path / "t.json").write_text(json.dumps({"classes": ["cat", "bird", "ant"]}))
    run = replace(
        run, teachers={"teacher": TeacherConfig("deit_tiny_patch16_224", checkpoint=str(tmp_path / "t.safetensors"))}
    )
    features = replace(run.losses, vitkd=replace(run.losses.vitkd, weight=1))
    assert not check_teacher_classes(replace(run, losses=features), "teacher", loader.classes), "no logits are compared"
    with pytest.raises(ValueError, match="t.json does not match the classes of data.train"):
        check_teacher_classes(
            replace(run, losses=replace(features, nkd=replace(features.nkd, weight=1))), "teacher", loader.classes
        )
    (tmp_path / "t.json").write_text(json.dumps({"classes": list(loader.classes)}))
    assert check_teacher_classes(replace(run, losses=features), "teacher", loader.classes)


@pytest.mark.parametrize("model, colour", [("vit_tiny_patch16_224", 128), ("deit_tiny_patch16_224", 124)])
def test_pixels_uncovered_by_randaugment_have_the_students_mean_colour(tmp_path, model, colour):
    src = write_images(tmp_path / "images", 24)
    run = run_of(pack(src, tmp_path / "train.beton", workers=1).path, "", 2)
    run = replace(run, student=replace(run.student, model=model))
    run = replace(run, augment=replace(run.augment, rand_augment="rand-m9-n2-p1"))
    with closing(open_split(run, "train", 4, torch.device("cpu")).epoch(0)) as micro_batches:
        reds = torch.cat([images[:, 0].flatten(1) for images, _ in micro_batches])
    parts_of_each = {level: (reds == level).float().mean(1) for level in (124, 128)}
    found = {level: int((parts > 0.05).sum()) for level, parts in parts_of_each.items()}
    assert found[colour] >= found[124 + 128 - colour] + 3


@pytest.mark.parametrize("names, is_kept", [(["ant", "bird"], True), (["cat", "dog"], False)])
def test_the_student_keeps_its_classifier_only_for_the_classes_of_the_data(tmp_path, monkeypatch, names, is_kept):
    built = []
    monkeypatch.setattr(parts, "start_engines", lambda run, config, models, *rest: built.append(models) or 1 / 0)
    packed = pack(write_images(tmp_path / "images", 12, classes=("ant", "bird")), tmp_path / "x.beton", workers=1).path
    run = run_of(packed, packed, 2)
    torch.manual_seed(1)
    source = build_student(run.student, run.data)
    torch.nn.init.ones_(source.head.weight)
    save_file(source.state_dict(), tmp_path / "s.safetensors")
    (tmp_path / "s.json").write_text(json.dumps({"classes": names}))
    run = replace(run, student=replace(run.student, init=str(tmp_path / "s.safetensors")))
    with pytest.raises(ZeroDivisionError):
        parts.build_parts(run, torch.device("cpu"))
    (models,) = built
    assert bool((models.student.head.weight == 1).all()) == is_kept


def test_a_run_that_ends_within_its_warm_up_is_rejected(small_beton):
    run = replace(run_of(small_beton, small_beton, 10), debug=False, max_steps=0, epochs=1)
    with pytest.raises(ValueError, match="the warm-up must be shorter than the run, .*got (\\d+) of \\1 steps"):
        parts.build_parts(run, torch.device("cpu"))


def test_a_split_is_opened_with_the_settings_of_the_run(small_beton):
    run = run_of(small_beton, small_beton, 10)
    run = replace(run, seed=3, global_batch_size=12, augment=replace(run.augment, color_jitter=0.5, repeats=3))
    sizes = {"micro_batch_size": 4, "global_batch_size": 12}
    expected = build_loader(run.data, split="train", augment=run.augment, seed=3, **sizes)
    found = open_split(run, "train", 4, torch.device("cpu"))
    assert found.steps_per_epoch == expected.steps_per_epoch == 5
    for (images, labels), others in zip(found.epoch(1), expected.epoch(1), strict=True):
        assert torch.equal(images, others[0]) and torch.equal(labels, others[1])


def test_the_terms_determine_which_teacher_outputs_are_needed():
    run = build_run("demo")
    for term, placement, expected in (
        ("kd", "shard", {"needs_blocks": False, "needs_logits": True, "stream": True}),
        ("vitkd", "replica", {"needs_blocks": True, "needs_logits": False, "stream": False}),
    ):
        off = {name: replace(each, weight=float(name == term)) for name, each in run.losses.terms().items()}
        teacher = replace(run.teachers["teacher"], placement=placement)
        assert (
            teacher_needs(replace(run, teachers={"teacher": teacher}, losses=replace(run.losses, **off)), "teacher")
            == expected
        )


def test_the_students_initial_weights_depend_only_on_the_seed():
    weights = []
    for ambient, seed in ((1, 3), (2, 3), (1, 4)):
        torch.manual_seed(ambient)
        weights.append(build_models(replace(build_run("demo_plain"), seed=seed)).student.patch_embed.proj.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_export_says_how_to_feed_the_student():
    run = build_run("demo_plain")
    classes = tuple("jabcdefghi")
    for ema_decay, weights in ((0.9, "ema"), (0.0, "raw")):
        optim, data = replace(run.optim, ema_decay=ema_decay), replace(run.data, val_crop_fraction=0.7)
        run = replace(run, optim=optim, data=data)
        loader = SimpleNamespace(classes=classes)
        made = parts.Parts(run, *[None] * 5, Normalization((0.5,) * 3, (0.4,) * 3), None, train_loader=loader)
        described = made.student_description()
        overlay = described["args"]["pretrained_cfg_overlay"]
        assert described["weights"] == weights and described["val_crop_fraction"] == overlay["crop_pct"] == 0.7
        assert described["classes"] == overlay["label_names"] == [*classes] and overlay["std"] == (0.4,) * 3
        assert not {"teacher", "teachers"} & described.keys()


@pytest.mark.parametrize("interpolation, expected", [("random", "bicubic"), ("bilinear", "bilinear")])
def test_the_export_names_the_filter_that_evaluation_used_and_timm_takes_it(interpolation, expected):
    run = build_run("demo_plain")
    run = replace(run, data=replace(run.data, interpolation=interpolation))
    loader = SimpleNamespace(classes=tuple("abcdefghij"))
    made = parts.Parts(run, *[None] * 5, Normalization((0.5,) * 3, (0.5,) * 3), None, train_loader=loader)
    described = made.student_description()
    model = timm.create_model(described["model"], **described["args"])
    found = timm.data.resolve_model_data_config(model)
    assert found["interpolation"] == described["interpolation"] == expected
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    transformed = timm.data.create_transform(**found)(Image.fromarray(pixels))
    # Against validation's crop, by its own row.
    row = CentreCrops(28, 1.0, interpolation).rows(np.zeros(1, SAMPLE_DTYPE), np.array([40]), np.array([60]))[0]
    how = {BILINEAR: Image.Resampling.BILINEAR, BICUBIC: Image.Resampling.BICUBIC}[row["filter"]]
    resized = Image.fromarray(pixels).resize((row["resized_width"], row["resized_height"]), how)
    left, top = row["window_left"], row["window_top"]
    expected_HWC = np.asarray(resized.crop((left, top, left + 28, top + 28))) / 255 * 2 - 1
    assert np.abs(transformed.permute(1, 2, 0).numpy() - expected_HWC).max() < 1e-5


def demo_with(**changes):
    """The demo with some settings replaced."""
    run = replace(build_run("demo"), global_batch_size=48)
    for name, values in changes.items():
        if name in run.models:
            run = run.with_model(name, replace(run.models[name], **values))
        else:
            own = values if isinstance(values, str) else replace(getattr(run, name), **values)
            run = replace(run, **{name: own})
    return run


@pytest.mark.parametrize("changes, found", [
    ({"ds_config": "none.json"}, "none.json"),
    ({"data": {"train": "none.beton"}}, "none.beton"),
    ({"data": {"val": "none.beton"}}, "none.beton"),
    ({"data": {"knn_train": "none.beton", "knn_val": "none.beton"}}, "data.knn_train: no file none.beton"),
    ({"teacher": {"checkpoint": "none.safetensors"}}, "none.safetensors"),
    ({"student": {"model": "deit_tiny_patch", "model_args": {}}}, "deit_tiny_patch"),
])  # fmt: skip
def test_a_file_missing_on_one_rank_ends_all_ranks_before_the_engines_start(demo_cache, changes, found):
    def on_rank(rank):
        with pytest.raises(ValueError) as raised:
            parts.build_parts(demo_with(**changes if rank else {}), torch.device("cpu"))
        return type(raised.value), str(raised.value)

    (kind, text), (_, other_text) = on_ranks(2, on_rank)
    assert kind is ranks.RefusedElsewhere and "rank 1: " in text and found in text and found in other_text


def test_a_teacher_with_other_classes_on_one_rank_is_rejected_on_all(demo_cache, tmp_path):
    (tmp_path / "teacher.json").write_text('{"classes": ["ant", "bird"]}')

    def on_rank(rank):
        other = {"teacher": {"checkpoint": str(tmp_path / "teacher.safetensors")}}
        with pytest.raises(ValueError, match="does not match the classes of data.train") as raised:
            parts.build_parts(demo_with(**other if rank else {}), torch.device("cpu"))
        return type(raised.value)

    assert on_ranks(2, on_rank) == [ranks.RefusedElsewhere, ValueError]


def test_a_teacher_complete_on_only_one_rank_is_rejected_on_all():
    def on_rank(rank):
        teacher = SimpleNamespace(weight_stream=None) if rank == 0 else SimpleNamespace()
        with pytest.raises(ValueError, match="differs between nodes: ranks 1, 2 cannot stream it"):
            parts.check_is_read_alike(teacher, "teacher")

    on_ranks(3, on_rank)
