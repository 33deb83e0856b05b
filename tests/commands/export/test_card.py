"""The model card against the run's files: the results of the exported step, its data, and names shown as text."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import yaml
from PIL import Image

from tests.commands.test_probe import write_student
from tests.conftest import metrics_of
from vitkd_ds.commands.export import export
from vitkd_ds.commands.export.card import code, initial_weights
from vitkd_ds.config.metrics import VAL_METRICS
from vitkd_ds.data.demo import CLASSES
from vitkd_ds.train.statistics import wilson_interval


def card_of(student, out, **options):
    """The head of a card, and its text."""
    export(str(student), str(out), format="hf", **options)
    _, head, text = (out / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


@pytest.mark.parametrize("which", ["last", "best"])
def test_a_card_has_the_exported_steps_results_with_the_number_of_images(whole_run, small_beton, tmp_path, which):
    run = shutil.copytree(whole_run, tmp_path / "run")
    (run / "checkpoints" / "best").write_text("step00000028")  # a different step than the last
    head, text = card_of(run, tmp_path / "out", which=which)
    assert head["pipeline_tag"] == "image-classification" and head["library_name"] == "timm" and "license" not in head
    step = {"last": 30, "best": 28}[which]
    (line,) = [line for line in metrics_of(whole_run) if line["step"] == step and "val_top1" in line]
    assert f"| step | {step} |" in text and "on 64 validation images" in text and "(n = 1)" in text
    for name, key in (
        ("top-1 %", "val_top1"),
        ("top-5 %", "val_top5"),
        ("teacher top-1 %", "val_teacher_top1"),
        ("agreement with the teacher, %", "val_agreement"),
    ):
        found, low, high = re.search(
            rf"^\| {re.escape(name)} \| (\S+) \(95 % interval from the images: (\S+) to (\S+)\) \|$", text, re.M
        ).groups()
        assert float(found) == pytest.approx(line[key], abs=0.006)
        expected = wilson_interval(64, round(line[key] * 64 / 100))
        assert (float(low), float(high)) == pytest.approx(expected, abs=0.006)
    assert f"| training images | `{small_beton.name}` |" in text and str(small_beton.parent) not in text
    assert (
        "| recipe | `demo` |" in text and "| weights | moving average |" in text and "`deit3_small_patch16_224`" in text
    )
    assert f'timm.create_model("local-dir:{(tmp_path / "out").name}", pretrained=True)' in text
    assert text.startswith("\n# run\n"), "the title is the run's"
    assert str(tmp_path) not in text and all(f"`{name}`" in text for name in CLASSES)


def test_a_card_leaves_out_a_metric_that_says_nothing_about_so_few_classes(whole_run, tmp_path, monkeypatch):
    certain = replace(VAL_METRICS["top5"], most_certain=len(CLASSES))
    monkeypatch.setitem(VAL_METRICS, "top5", certain)
    _, text = card_of(whole_run, tmp_path / "out")
    assert "| top-1 % |" in text and "top-5" not in text


@pytest.mark.parametrize(
    "licence, said",
    [
        ("dinov3-license", "timm states the licence `dinov3-license` for its weights"),
        (None, "No licence is stated for its weights"),
    ],
)
def test_a_student_without_a_run_or_classes_has_a_card_with_the_known_facts(tmp_path, licence, said):
    write_student(tmp_path / "student")
    described = json.loads((tmp_path / "student" / "student.json").read_text())
    described |= {"teacher": {"model": "vit_large", "license": licence}, "features": {"width": 64}}
    (tmp_path / "student" / "student.json").write_text(json.dumps(described))
    head, text = card_of(tmp_path / "student", tmp_path / "out")
    assert head["pipeline_tag"] == "image-feature-extraction" and head["tags"][-1] == "image-feature-extraction"
    assert "No evaluation is stored for this student." in text and "A feature extractor" in text
    assert f"`vit_large`. {said}." in text and "features = model(transform(image)[None])[0]" in text
    assert "softmax" not in text and "k-NN, linear probes or retrieval" in text

    del described["teacher"]
    described["teachers"] = {name: {"model": name, "license": licence} for name in ("dino", "clip")}
    (tmp_path / "student" / "student.json").write_text(json.dumps(described))
    _, text = card_of(tmp_path / "student", tmp_path / "again")
    assert f"`dino`. {said}. `clip`. {said}. This card" in text


def test_user_supplied_names_are_shown_as_text():
    assert code("a|b`c`\n# d") == r"`a/b'c'\n# d`"


@pytest.mark.parametrize("init, shown", [
    ("", "random"), ("hub", "hub"), ("/me/a.pth", "a.pth"), ("select:teacher", "select:teacher"),
    ("select:/me/a.safetensors", "select:a.safetensors"), ("select:hub:deit3_base", "select:hub:deit3_base"),
])  # fmt: skip
def test_initial_weights_are_named_without_folders(init, shown):
    assert initial_weights(init) == shown


def test_the_code_on_a_card_loads_the_student(tmp_path, monkeypatch, capsys):
    write_student(tmp_path / "student", num_classes=10)
    _, text = card_of(tmp_path / "student", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("image.jpg")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(compile(block, "card", "exec"), {})
    assert capsys.readouterr().out.strip() in CLASSES
