"""Paths and names checked before torch is imported, and the output of export and report about their files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from tests.commands.test_evaluate import write_export
from vitkd_ds import cli
from vitkd_ds.commands.early import check_export, check_has_images, check_recipe, check_student
from vitkd_ds.config.run import as_dict
from vitkd_ds.recipes import build_run


def test_a_student_its_images_and_its_teacher_must_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_export(tmp_path / "student")
    Path("x.jpg").touch()
    check_student("student", ("", "demo", "x.jpg"), "deit_tiny_patch16_224")
    check_student("student", (), "./student")
    with pytest.raises(ValueError, match="no images at 'y.jpg'. Check the path."):
        check_student("student", ("x.jpg", "y.jpg"))
    with pytest.raises(ValueError, match="--teacher: no weight file, run"):
        check_student("student", (), "runs/none")


def test_an_export_needs_a_student_and_a_new_folder(tmp_path, whole_run):
    write_export(tmp_path / "student")
    check_export(str(tmp_path / "student"), str(tmp_path / "new"))
    with pytest.raises(ValueError, match="student already exists and is not overwritten. Pass another folder"):
        check_export(str(whole_run), str(tmp_path / "student"))
    unfinished = shutil.copytree(whole_run, tmp_path / "run")
    (unfinished / "student.safetensors").unlink()
    check_export(str(unfinished), str(tmp_path / "new"))


@pytest.mark.parametrize("command, options", [("eval", {}), ("export", {"format": "onnx"})])
def test_an_export_without_a_run_needs_images_of_its_own(tmp_path, whole_run, command, options):
    write_export(tmp_path / "student")
    words = [str(tmp_path / "new")] if command == "export" else []
    with pytest.raises(ValueError, match=r"^no images: .*student does not belong to a run. Pass --val with a .beton"):
        cli.COMMANDS[command](str(tmp_path / "student"), *words, **options)
    check_export(str(tmp_path / "student"), str(tmp_path / "new"), "onnx", "demo")
    check_export(str(tmp_path / "student"), str(tmp_path / "new"), "hf")
    check_has_images(str(whole_run))
    check_has_images(str(whole_run / "checkpoints" / "best"))


def test_a_run_folder_as_recipe_is_not_trained_in_another_folder(tmp_path, monkeypatch):
    folder = tmp_path / "project" / "runs" / "x"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"run": as_dict(replace(build_run("demo"), workdir="runs/x"))}))
    monkeypatch.chdir(tmp_path)
    for command in (cli.train, cli.doctor):
        with pytest.raises(ValueError, match=r"^--recipe project/runs/x would train in runs/x, .* another folder here"):
            command(recipe="project/runs/x")
    with pytest.raises(ValueError, match=rf"Rerun this command in {tmp_path}/project, where .* pass --workdir pr"):
        check_recipe({"recipe": "project/runs/x"})
    moved = shutil.move(folder, tmp_path / "moved")
    with pytest.raises(ValueError, match=r"another folder here. Pass --workdir moved to continue that run, or another"):
        check_recipe({"recipe": "moved"})
    check_recipe({"recipe": str(moved), "workdir": "new"})
    shutil.move(moved, folder)
    shutil.copytree(folder, "demo")
    check_recipe({"recipe": "demo"})  # the recipe, also beside a folder of that name
    monkeypatch.chdir(tmp_path / "project")
    check_recipe({"recipe": "runs/x"})
    check_recipe({"recipe": str(folder)})


@pytest.mark.parametrize("format, file", [("timm", "student.safetensors"), ("hf", "README.md")])
def test_export_says_what_it_wrote_and_the_python_that_loads_it(tmp_path, caplog, capsys, format, file):
    caplog.set_level("INFO")
    model = write_export(tmp_path / "student")
    cli.export(str(tmp_path / "student"), str(tmp_path / "out"), format=format)
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    wrote, load = caplog.messages[-2:]
    assert wrote.startswith("wrote ") and file in wrote and wrote.endswith(f" to {tmp_path / 'out'}")
    import vitkd_ds

    loaded = eval(load.partition("load it in Python: ")[2], {"vitkd_ds": vitkd_ds, "timm": timm})
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in loaded.state_dict().items())


def test_report_says_how_to_open_its_file(whole_run, tmp_path, capsys):
    cli.report(str(whole_run), out=str(tmp_path / "my report.html"))
    said = capsys.readouterr()
    assert said.out == f"{tmp_path}/my report.html\n"
    assert said.err.endswith(f"open it in a browser: file://{tmp_path}/my%20report.html\n")
