"""A student that a run replaces while it is being read, and paths that are not valid UTF-8."""

import json
import os
import shutil
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.commands.test_evaluate import write_export
from vitkd_ds import cli, load_student
from vitkd_ds.checkpoint.export import export_student
from vitkd_ds.checkpoint.files import write_text
from vitkd_ds.commands.export import export as export_as
from vitkd_ds.config.run_folder import read_student


def publish(workdir, export, step):
    """Simulate a run that keeps one checkpoint and saves to a busy disk."""
    folder = workdir / "checkpoints"
    shutil.copytree(export, folder / ".part")
    (folder / ".part").rename(folder / f"step{step:08d}")
    write_text(folder / "latest", f"step{step:08d}")
    shutil.rmtree(folder / f"step{step - 1:08d}", ignore_errors=True)


def test_the_student_of_a_constantly_saving_run_is_loaded_and_exported(tmp_path, small_beton):
    workdir, export, ended = tmp_path / "run", tmp_path / "export", threading.Event()
    (workdir / "checkpoints").mkdir(parents=True)
    write_export(export)
    publish(workdir, export, 1)

    def save():
        step = 1
        while not ended.is_set():
            ended.wait(0.01)
            step += 1
            publish(workdir, export, step)

    thread = threading.Thread(target=save)
    thread.start()
    try:
        for number in range(10):
            assert load_student(workdir).num_classes == 10
            export_student(str(workdir), str(tmp_path / f"copy{number}"))
        export_as(str(workdir), str(tmp_path / "hf"), format="hf")
        export_as(str(workdir), str(tmp_path / "graph"), format="torch_export", val=str(small_beton))
    finally:
        ended.set()
        thread.join()


def test_a_student_is_searched_again_only_if_it_has_been_deleted(tmp_path):
    found = iter(tmp_path / name for name in "abc")

    def use(folder):
        if folder.name == "c":
            return "read"
        raise FileNotFoundError(folder)

    assert read_student(lambda: next(found), use) == "read"
    write_export(tmp_path / "there")
    tries = []
    with pytest.raises(FileNotFoundError):
        read_student(lambda: tries.append(0) or tmp_path / "there", lambda folder: use(folder))
    assert len(tries) == 1
    with pytest.raises(ValueError, match="is not a run, checkpoint or exported student"):
        load_student(tmp_path / "nothing")


def test_paths_of_any_bytes_are_loaded_exported_printed_and_written(tmp_path, capfdbinary, monkeypatch):
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/\xff\xfe"))
    with suppress(OSError):
        odd.mkdir()
    if not odd.exists():
        pytest.skip("this file system takes UTF-8 alone")
    write_export(odd / "export")
    assert load_student(odd / "export").num_classes == 10
    monkeypatch.setattr(sys, "argv", ["vitkd-ds", "export", str(odd / "export"), str(odd / "copy")])
    cli.main()
    assert capfdbinary.readouterr().out == bytes(odd) + b"/copy\n"
    assert json.loads((odd / "copy" / "student.json").read_text())["image_size"] == 28
    write_text(odd / "page.html", f"<p>{odd}</p>")
    assert "\\udcff\\udcfe" in (odd / "page.html").read_text()
