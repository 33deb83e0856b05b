"""Meaning of a path: a run, a checkpoint, a pointer, an export, or a weights file."""

import json
from dataclasses import replace

import pytest

from vitkd_ds.commands.parse import checked
from vitkd_ds.config import run_folder as folder
from vitkd_ds.config.run import as_dict
from vitkd_ds.recipes import build_run


def test_only_published_checkpoints_count_and_a_pointer_to_another_is_ignored(tmp_path):
    assert folder.tags(tmp_path) == [] and folder.newest(tmp_path) == folder.pointer(tmp_path, "latest") == ""
    for name in ("step00000002", "step00000010", "step00000004", ".step00000011.part", "step12", "universal"):
        (tmp_path / name).mkdir()
    assert folder.tags(tmp_path) == ["step00000010", "step00000004", "step00000002"]
    for written, found in (("step00000004\n", "step00000004"), ("step4", "")):
        (tmp_path / "latest").write_text(written)
        assert folder.pointer(tmp_path, "latest") == found and folder.newest(tmp_path) == (found or "step00000010")


def test_a_path_that_exists_only_where_the_run_was_started_is_rejected_with_that_folder(tmp_path, monkeypatch):
    workdir = tmp_path / "project" / "runs" / "x"
    workdir.mkdir(parents=True)
    demo = build_run("demo")
    run = replace(demo, workdir="runs/x", data=replace(demo.data, val="photos/val.beton"))
    (workdir / "config.json").write_text(json.dumps({"run": as_dict(run)}))
    rerun = replace(run, workdir=str(workdir))
    monkeypatch.chdir(tmp_path)
    folder.check_paths(rerun)  # missing there too, so that another check explains it
    (tmp_path / "project" / "photos").mkdir()
    (tmp_path / "project" / "photos" / "val.beton").touch()
    with pytest.raises(ValueError, match=rf"^photos/val.beton does not .* was started in {tmp_path}/project. Rerun"):
        checked(rerun)
    for place, known in ((tmp_path / "project", rerun), (tmp_path, replace(rerun, workdir=str(tmp_path / "new")))):
        monkeypatch.chdir(place)
        folder.check_paths(known)


@pytest.mark.parametrize("latest, found", [(3, "step00000002"), (99, "step00000010"), (1, "step00000010")])
def test_if_the_named_checkpoint_is_missing_the_next_older_one_counts_or_else_the_newest(tmp_path, latest, found):
    for name in ("step00000002", "step00000010", "step00000004"):
        (tmp_path / name).mkdir()
    (tmp_path / "latest").write_text(f"step{latest:08d}")
    assert folder.newest(tmp_path) == found


def make_student(path, **description):
    path.mkdir(parents=True, exist_ok=True)
    (path / "student.safetensors").touch()
    (path / "student.json").write_text(json.dumps(description))


@pytest.fixture
def run(tmp_path):
    """A finished run with two checkpoints; the older one is the best."""
    for name in ("", "checkpoints/step00000004", "checkpoints/step00000008"):
        make_student(tmp_path / "run" / name, model=name, args={})
    (tmp_path / "run" / "done").touch()
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step00000008")
    (tmp_path / "run" / "checkpoints" / "best").write_text("step00000004")
    return tmp_path / "run"


def test_a_path_means_the_student_of_the_run_or_of_a_checkpoint(run):
    checkpoints = run / "checkpoints"
    for path, found in {
        run: run, run / "student.safetensors": run, checkpoints / "step00000004": checkpoints / "step00000004",
        run / "best": checkpoints / "step00000004", checkpoints / "best": checkpoints / "step00000004",
        run / "latest": checkpoints / "step00000008", checkpoints / "latest": checkpoints / "step00000008",
    }.items():  # fmt: skip
        assert folder.find_student(path) == found
        assert folder.find_weights(str(path), "x") == found / "student.safetensors"
    (run / "file.pth").touch()
    assert folder.find_weights(str(run / "file.pth"), "x") == run / "file.pth"
    with pytest.raises(ValueError, match="x: no weight file, run, checkpoint or export at some/file.pth"):
        folder.find_weights("some/file.pth", "x")
    (run / "student.json").write_text('{"model": "m"}')
    with pytest.raises(ValueError, match="student.json has no valid args, got None"):
        folder.find_weights(str(run), "x")


def test_an_unfinished_run_means_its_newest_checkpoint(run):
    (run / "done").unlink()  # extended, so the export of the shorter run still exists
    assert folder.find_student(run) == run / "checkpoints" / "step00000008"
    (run / "checkpoints" / "latest").unlink()
    assert folder.find_student(run) == run / "checkpoints" / "step00000008"
    with pytest.raises(ValueError, match="latest is not a run, checkpoint or exported student"):
        folder.find_student(run / "latest")


def test_a_path_without_a_student_is_rejected_by_name(run, tmp_path):
    (run / "checkpoints" / "step00000004" / "student.json").unlink()
    for path in (run / "best", tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=f"{path} is not a run, checkpoint or exported student"):
            folder.find_student(path)


def test_a_description_gives_the_model_without_arguments_set_by_the_data(tmp_path):
    args = {"num_classes": 3, "img_size": 8, "depth": 2, "pretrained_cfg_overlay": {"mean": [1]}}
    make_student(tmp_path, model="m", args=args)
    described = folder.description_beside(tmp_path / "student.safetensors")
    assert folder.model_of(described) == {"model": "m", "model_args": {"depth": 2}}
    assert folder.description_beside(tmp_path / "other.pth") == {} == folder.model_of({"classes": []})
    (tmp_path / "student.json").write_text("[1]")
    assert folder.description_beside(tmp_path / "student.safetensors") == {}
    (tmp_path / "student.json").write_text("{")
    with pytest.raises(ValueError, match="student.json is not valid JSON: Exp"):
        folder.description_beside(tmp_path / "student.safetensors")


@pytest.mark.parametrize("text, found", [
    (None, "is missing or not valid JSON: .*No such file"), ("{", "is missing or not valid JSON"),
    ("[]", r"must be a JSON object, got \[\]. Restore the file"),
    ('{"a": 1}', "has no valid b.c, got None"), ('{"a": 1, "b": 2}', "has no valid b.c"),
    ('{"a": 1, "b": {"c": "x"}}', "has no valid b.c, got 'x'"),
])  # fmt: skip
def test_a_runs_file_must_have_its_keys_with_the_right_types(tmp_path, text, found):
    file = tmp_path / "x.json"
    if text:
        file.write_text(text)
    with pytest.raises(ValueError, match=f"{file} {found}"):
        folder.read_json(file, {"a": int, "b.c": list})
    file.write_text('{"a": 1, "b": {"c": []}}')
    assert folder.read_json(file, {"a": int, "b.c": list}) == {"a": 1, "b": {"c": []}}


@pytest.mark.parametrize("content, advice", [
    ({"model_type": "vit", "architectures": ["ViTForImageClassification"]},
     r"a model folder of transformers \(vit\), .*--teacher.checkpoint hub"),
    ({"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}},
     "a model folder of timm: for a teacher, pass --teacher.model vit_tiny_patch16_224 and --teacher.checkpoint .*"),
])  # fmt: skip
def test_an_error_names_a_foreign_model_folder_and_the_option_to_use(tmp_path, content, advice):
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=f"student.safetensors does not exist. It is {advice}"):
        folder.find_weights(str(tmp_path), "teacher.checkpoint")
    assert folder.description_beside(tmp_path / "model.safetensors") == {}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="student.safetensors does not exist$"):
        folder.find_student(tmp_path)
