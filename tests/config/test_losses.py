"""Loss terms as settings: the inputs they declare, and terms from other packages."""

import json
import re
import sys
from dataclasses import replace

import pytest

from tests.conftest import ROOT, run_command
from vitkd_ds.config import losses as module
from vitkd_ds.config.check import check_run
from vitkd_ds.config.losses import TERMS, LossesConfig, NKDTerm, SpectralTerm, ViTKDTerm, VkDTerm
from vitkd_ds.config.term import Needs, terms_of_a_teacher
from vitkd_ds.recipes import build_run

PAGE = (ROOT / "docs" / "losses.md").read_text()
"""The docs page's example package: its two files and its entry point."""


@pytest.fixture
def other_package(tmp_path):
    """An installed package with a loss term: its code, its entry-point file, and the environment that finds it."""
    package, info = tmp_path / "site" / "my_losses", tmp_path / "site" / "my_losses-1.0.dist-info"
    package.mkdir(parents=True), info.mkdir()
    (package / "__init__.py").write_text("")
    for name, text in zip(("terms.py", "pooled.py"), re.findall(r"```python\n(.*?)```", PAGE, re.S), strict=True):
        (package / name).write_text(text)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-losses\nVersion: 1.0\n")
    point = re.search(r'pooled = "(.*)"', PAGE)[1]
    (info / "entry_points.txt").write_text(f"[vitkd_ds.losses]\npooled = {point}\n")
    return info, {"PYTHONPATH": str(tmp_path / "site")}


def test_a_term_of_another_package_trains_shows_in_help_and_is_stored(other_package, tmp_path, demo_cache):
    _, environ = other_package
    done = run_command("python", "train.py", "--help", "losses.pooled", **environ)
    assert "--losses.pooled.power=2.0" in done.stdout and "Power of the differences." in done.stdout
    flags = ["--recipe=demo", "--debug", "--losses.nkd.weight=0", "--losses.vitkd.weight=0", "--losses.pooled.weight=2"]
    run_command("python", "train.py", *flags, f"--workdir={tmp_path / 'run'}", "--losses.pooled.power=1.5", **environ)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "total" in line]
    assert all(line["total"] == pytest.approx(line["ce"] + 2 * line["pooled"], rel=1e-4) for line in trained)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["losses"]["pooled"]["power"] == 1.5
    done = run_command("python", "train.py", f"--recipe={tmp_path / 'run'}", check=False)
    assert done.returncode == 2 and "pooled" in done.stderr, "without the package the stored run cannot be read"


def test_a_package_that_does_not_load_is_named(other_package):
    info, environ = other_package
    (info.parent / "my_losses" / "terms.py").write_text("import nothing_of_that_name\n")
    done = run_command("python", "train.py", "--recipe=demo", "--debug", **environ, check=False)
    assert done.returncode == 2 and "ModuleNotFoundError: No module named 'nothing_of_that_name'" in done.stderr


@pytest.mark.parametrize("name", ["kd", "student", "balance", "not-a-name"])
def test_a_used_or_invalid_name_is_rejected(other_package, name):
    info, environ = other_package
    (info / "entry_points.txt").write_text(f"[vitkd_ds.losses]\n{name} = my_losses.terms:PooledTerm\n")
    done = run_command("python", "train.py", "--recipe=demo", "--debug", **environ, check=False)
    assert (
        done.returncode == 2
        and "Traceback" not in done.stderr
        and f"the name of loss {name} = my_losses" in done.stderr
    )


def test_inputs_of_active_terms_are_combined_and_inactive_terms_do_not_count():
    spectral = SpectralTerm(weight=1, student_blocks=(3, 1), teacher_blocks=(7, 2))
    losses = LossesConfig(nkd=NKDTerm(weight=1), vitkd=ViTKDTerm(weight=1, blocks=(0, 1)), spectral=spectral)
    assert losses.needs == Needs(True, True, (0, 1, 3), (0, 1, 2, 7), labels=True)
    assert losses.needs.tapped("student") == (0, 1, 3) and losses.needs.tapped("teacher") == (0, 1, 2, 7)
    assert LossesConfig(nkd=NKDTerm(weight=1)).needs.tapped("teacher") is None
    assert LossesConfig(vkd=VkDTerm(weight=1)).needs.tapped("teacher") == ()
    assert not LossesConfig().needs.teacher
    assert terms_of_a_teacher(LossesConfig()) == [name for name in TERMS if name != "ce"]


@pytest.mark.parametrize("key", ["mixup_alpha", "cutmix_alpha"])
def test_a_loss_with_one_label_per_image_is_rejected_with_mixing(key):
    run = build_run("demo")
    run = replace(run, losses=replace(run.losses, dkd=replace(run.losses.dkd, weight=1)))
    check_run(run)
    with pytest.raises(ValueError, match=f"losses.dkd needs one label per image, but augment.{key}=0.5.*losses.nkd"):
        check_run(replace(run, augment=replace(run.augment, **{key: 0.5})))


def test_every_term_is_a_field_with_its_own_position_and_an_existing_module():
    from vitkd_ds.models.distiller import part_of

    assert list(LossesConfig().terms()) == list(module.TERMS)
    for name, term in TERMS.items():
        assert term._place == f"losses.{name}" and part_of(term()).__module__ == term.module.partition(":")[0]
    assert "torch" not in sys.modules[module.__name__].__dict__
