"""The run folder: its checkpoints, config.json, and the settings that may change."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import vitkd_ds
from vitkd_ds.checkpoint import folder
from vitkd_ds.config.run import as_dict
from vitkd_ds.config.run_folder import read_run
from vitkd_ds.data.demo import demo_beton
from vitkd_ds.data.images import fingerprint_of
from vitkd_ds.recipes import build_run


@pytest.fixture
def run(tmp_path):
    return replace(build_run("demo"), workdir=str(tmp_path))


def finish(run, **config):
    """Mark the run folder as finished."""
    for name, content in (("config.json", {"run": as_dict(run)} | config), ("summary.json", {})):
        Path(run.workdir, name).write_text(json.dumps(content))
    Path(run.workdir, "done").touch()


def test_a_folder_with_done_is_finished_unless_the_run_starts_over(tmp_path, run):
    assert not folder.is_finished(run)
    finish(run)
    assert folder.is_finished(run) and folder.is_finished(replace(run, resume="/another"))
    assert not folder.is_finished(replace(run, resume="none"))


@pytest.mark.parametrize("name, found", [
    ("config.json", "config.json with its settings is missing. Restore it"),
    ("summary.json", "summary.json is missing or not valid JSON: .*No such file"),
])  # fmt: skip
def test_a_finished_folder_that_lacks_a_file_is_rejected(tmp_path, run, name, found):
    finish(run)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=found):
        folder.is_finished(run)
    if name == "summary.json":
        (tmp_path / name).write_text("{")
        with pytest.raises(ValueError, match="summary.json is missing or not valid JSON"):
            folder.is_finished(run)


@pytest.mark.parametrize("content", [
    b'{"run": [1]}', b'{"run": {"student": [1]}}', b"[1]", b"null", b"", b"\xff", b"[" * 100_000, None,
], ids=lambda content: str(content)[:20])  # fmt: skip
def test_an_error_names_a_damaged_config_json(tmp_path, run, content):
    file = tmp_path / "config.json"
    finish(run)
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    for ask in (folder.is_finished, folder.check_begun):
        with pytest.raises(ValueError, match=f"{file} (must|does not have) "):
            ask(run)
    with pytest.raises(ValueError, match=f"{file} contains no run of this version: |no run at {file}: Is a directory"):
        read_run(tmp_path)


def test_a_finished_run_recognises_its_images_under_any_path(tmp_path, run, demo_cache):
    train, val = tmp_path / "train.beton", tmp_path / "val.beton"

    def put(split, path):
        for suffix in ("", ".json"):
            shutil.copy(f"{demo_beton(split)}{suffix}", f"{path}{suffix}")

    put("train", train)
    put("val", val)
    run = replace(run, data=replace(run.data, train=str(train), val=str(val)))
    images = {split: fingerprint_of(run.data, split) for split in ("train", "val")}
    finish(run, images=images)
    moved = replace(run, data=replace(run.data, train="demo", val="demo"))
    assert folder.is_finished(run) and folder.is_finished(moved)
    put("train", val)
    with pytest.raises(ValueError, match="with data.val=.*val.beton, but this path has other images now"):
        folder.is_finished(run)
    swapped = replace(run, data=replace(run.data, val=str(train)))
    with pytest.raises(ValueError, match=", but .*/train.beton has other images"):
        folder.is_finished(swapped)
    for path in (train, val):
        path.unlink()
    assert folder.is_finished(run), "they are no longer needed"
    finish(run)  # written by a version that stored no fingerprints
    assert folder.is_finished(run)
    with pytest.raises(ValueError, match=", but demo has other images"):
        folder.is_finished(moved)


def test_every_changeable_key_is_a_setting_of_a_run(run):
    settings = folder.flattened(as_dict(run))
    assert not folder.FREE_KEYS - settings.keys()


def test_settings_that_affect_learning_are_not_changeable():
    free = {
        "student": {"checkpoint_activations"}, "teacher": {"placement"},
        "data": {"train", "val", "knn_train", "knn_val", "num_workers", "backend", "on_bad"},
        "checkpoint": {"every_steps", "keep_last", "max_failures"},
        "": {"workdir", "resume", "extend", "eval_every_epochs", "log_every_steps", "compile", "deterministic",
             "profile", "ds_config", "timeout_minutes", "micro_batch_size_per_gpu", "trackers"},
    }  # fmt: skip
    assert folder.FREE_KEYS == {f"{part}.{key}".lstrip(".") for part, keys in free.items() for key in keys}


@pytest.mark.parametrize(
    "files, what", [(["checkpoints/step00000012/x"], "a run at step 12"), (["done"], "a finished run")]
)
def test_an_error_about_other_settings_describes_the_run_in_the_folder(tmp_path, run, files, what):
    (tmp_path / "config.json").write_text(json.dumps({"run": as_dict(run)}))
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    held = f"^{tmp_path} holds {what} of recipe {run.recipe}, whose settings in config.json differ"
    with pytest.raises(ValueError, match=held):
        folder.check_settings(replace(run, seed=9), tmp_path / "config.json")


def test_a_longer_run_needs_an_explicit_option(tmp_path, run):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"run": as_dict(run)}))
    longer = replace(run, epochs=run.epochs + 1)
    held = f"{tmp_path} holds a run of recipe {run.recipe}, whose settings in config.json differ from those given"
    remedy = "Pass another --workdir for a new run, or add --extend"
    with pytest.raises(ValueError, match=f"{held}: epochs: .* now. {remedy}"):
        folder.check_settings(longer, config)
    for shorter in (replace(run, epochs=run.epochs / 2), replace(longer, max_steps=3)):
        with pytest.raises(ValueError, match=r"now. Pass another --workdir for a new run\.$"):
            folder.check_settings(shorter, config)
    assert folder.check_settings(replace(longer, extend=True), config) == run


def test_settings_that_affect_learning_must_not_change(tmp_path, run):
    config = tmp_path / "config.json"
    folder.check_settings(run, config)  # there is no config.json yet
    config.write_text(json.dumps({"run": as_dict(run)}))
    moved = replace(run, log_every_steps=1, micro_batch_size_per_gpu=1, data=replace(run.data, train="moved.beton"))
    folder.check_settings(moved, config)
    student = replace(run.student, model_args=run.student.model_args | {"depth": 5})
    for change, message in (
        ({"seed": 1}, "given: seed: 0 there, 1 now. Pass another --workdir"),
        ({"student": student, "seed": 1}, r"given: seed: 0 there, 1 now; student.model_args: \{.*\} there, \{.*\} now"),
    ):
        with pytest.raises(ValueError, match=message):
            folder.check_settings(replace(run, **change), config)
    config.write_text("")
    with pytest.raises(ValueError, match="config.json does not have valid settings"):
        folder.check_settings(run, config)


def test_a_new_run_needs_a_folder_without_checkpoints_and_may_have_other_settings_there(tmp_path, run):
    (tmp_path / "config.json").write_text(json.dumps({"run": as_dict(replace(run, seed=1))}))
    folder.check_settings(run, None)  # that run died before its first checkpoint
    (tmp_path / "checkpoints" / "step00000002").mkdir(parents=True)
    with pytest.raises(ValueError, match="--resume none needs an unused folder"):
        folder.check_settings(run, None)


@pytest.mark.skipif(not shutil.which("git"), reason="asks git")
def test_the_recorded_commit_is_the_checkouts_and_marks_modified_files(tmp_path, monkeypatch):
    def git(*words):
        words = ["-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(vitkd_ds, "__file__", str(tmp_path / "vitkd_ds" / "__init__.py"))
    assert folder.git_commit() == "", "not of a checkout"
    (tmp_path / "file").write_text("1")
    for words in (["init"], ["add", "file"], ["commit", "-m", "first"]):
        git(*words)
    assert folder.git_commit() == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert folder.git_commit() == git("rev-parse", "HEAD") + "-dirty"
