"""A start continues a run only with the settings, images and weights that the run started with."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.conftest import assert_same_result, everything_on, finish_ranks, run_several, start_ranks
from vitkd_ds.checkpoint.folder import LENGTH
from vitkd_ds.checkpoint.load import Start
from vitkd_ds.commands.pack import pack
from vitkd_ds.config.run import DataConfig
from vitkd_ds.data.images import open_images
from vitkd_ds.recipes import build_run
from vitkd_ds.train.identity import check_identity, weights_of


def start_of(tmp_path, identity):
    manifest = {"identity": identity} if identity else {}
    return Start(tmp_path / "checkpoints", "step00000001", is_own=True, is_named=False, manifest=manifest)


def test_settings_and_inputs_must_match_the_checkpoint(tmp_path):
    now = {"settings": {"seed": 0, "epochs": 1}, "inputs": {"data.val": [1, 2], "teacher.checkpoint": "a"}}
    check_identity(None, now)
    check_identity(start_of(tmp_path, now), now)
    longer = now | {"settings": {"seed": 0, "epochs": 2}}
    check_identity(start_of(tmp_path, now), longer, free=LENGTH)
    newer = {name: values | {"of a later version": 1} for name, values in now.items()}
    check_identity(start_of(tmp_path, now), newer)
    others = [longer, now | {"settings": {"epochs": 1}}, now | {"inputs": {"data.val": [1, 3]}},
              now | {"inputs": {"teacher.checkpoint": "b"}}]  # fmt: skip
    for other, key in zip(others, ("epochs", "seed", "data.val", "teacher.checkpoint")):
        with pytest.raises(ValueError, match=f"files: {key} changed\\. Restore them"):
            check_identity(start_of(tmp_path, now), other)


def test_an_earlier_versions_checkpoint_needs_its_config_and_the_same_training_images(tmp_path):
    start = start_of(tmp_path, None)
    start.manifest["train_state"] = {"data": 1}
    now = {"settings": {"seed": 0}, "inputs": {"data.train": [1, 2], "data.val": [3, 4]}}
    with pytest.raises(ValueError, match="config.json is missing, so the settings of"):
        check_identity(start, now)
    (tmp_path / "config.json").touch()
    check_identity(start, now)
    with pytest.raises(ValueError, match="files: data.train changed. Restore"):
        check_identity(start, now | {"inputs": {"data.train": [5, 2]}})


def test_the_hash_of_weights_covers_each_of_their_files_and_their_classes(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    run = build_run("demo")
    student = replace(run.student, init=str(tmp_path / "one.safetensors"))
    teacher = replace(run.teachers["teacher"], checkpoint=str(index), head=str(tmp_path / "two.safetensors"))
    run = replace(run, student=student, teachers={"teacher": teacher})
    found = [weights_of(run)]
    assert found[0].keys() == {"student.init", "teacher.checkpoint", "teacher.head"} and weights_of(run) == found[0]
    save_file({"b": torch.tensor([0.0, 0, 1e-9])}, tmp_path / "two.safetensors")
    found.append(weights_of(run))
    (tmp_path / "one.json").write_text(json.dumps({"classes": ["b", "a"], "recipe": "x"}))
    found.append(weights_of(run))
    changed = [sorted(key for key in before if before[key] != after[key]) for before, after in zip(found, found[1:])]
    assert changed == [["teacher.checkpoint", "teacher.head"], ["student.init"]]
    assert weights_of(build_run("demo")).keys() == {"teacher.checkpoint"}
    assert not weights_of(build_run("demo_plain"))


def packed(folder, seed):
    """A .beton of one random image in each of ten classes."""
    pixels = np.random.default_rng(seed)
    for label in range(10):
        (folder / "images" / f"{label}").mkdir(parents=True)
        image = Image.fromarray(pixels.integers(0, 256, (28, 28, 3), dtype=np.uint8))
        image.save(folder / "images" / f"{label}" / "x.png")
    pack(folder / "images", folder / "x.beton", write_mode="raw", max_resolution=0)
    return folder / "x.beton"


@pytest.mark.parametrize("backend", ["ffcv", "torchvision"])
def test_images_with_other_bytes_at_the_same_paths_have_another_content_hash(tmp_path, backend):
    found = []
    for seed in (0, 1, 0):
        path = packed(tmp_path / f"{len(found)}", seed)
        data = DataConfig(train="", val=str(path), image_size=28, num_classes=10, backend=backend)
        images = open_images(data, split="val", seed=0, micro_batch_size=1)
        found.append((images.fingerprint, images.content))
        images.close()
    assert found[0][0] == found[1][0] and found[0][1] != found[1][1] and found[0] == found[2]


@pytest.mark.slow
def test_nodes_with_different_images_are_rejected_before_the_first_step(tmp_path, demo_cache):
    for rank in (0, 1):
        packed(tmp_path / f"{rank}", rank)
    code = "import os; os.chdir(os.environ['RANK']); from vitkd_ds.cli import train_main; train_main()"
    command = ["--recipe=demo_plain", "--debug", "--data.train=x.beton", "--data.val=x.beton"]
    sizes = [f"--workdir={tmp_path}/run", "--global_batch_size=2", "--micro_batch_size_per_gpu=1"]
    for said in finish_ranks(start_ranks(2, "-c", code, *command, *sizes, cwd=tmp_path), codes=[2, 2]):
        assert "the files of data.train, data.val differ between rank 1 and rank 0. Copy" in said, said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_interrupted_run_is_not_continued_with_other_images_or_settings(whole_run, small_beton, tmp_path):
    folders = [tmp_path / name for name in ("val", "settings", "same")]
    for folder in folders:
        shutil.copytree(whole_run, folder)
        (folder / "done").unlink()
        (folder / "checkpoints" / "latest").write_text("step00000028")
        if folder.name != "val":
            (folder / "config.json").unlink()
    changes = [[f"--data.val={small_beton}"], ["--optim.lr=0.003", "--seed=1"], []]
    commands = [[*everything_on(folder, small_beton), *change] for folder, change in zip(folders, changes)]
    images, settings, same = run_several(2, tmp_path / "commands", commands)
    assert "files: data.val changed. Restore" in images["refused"], images
    assert "files: optim.lr, seed changed. Restore" in settings["refused"], settings
    assert same["summary"], same
    assert_same_result(folders[2], whole_run)
