"""The grid of augmented and mixed images that `vitkd-ds show` writes."""

import os
import shutil
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from tests.data.conftest import write_images
from vitkd_ds import cli
from vitkd_ds.cli import parse_run
from vitkd_ds.commands import show as show_module
from vitkd_ds.commands.pack import pack
from vitkd_ds.commands.show import COLUMNS, NO_CHARACTER, ROWS, _caption, _grid, find_font, show
from vitkd_ds.data.loader import build_loader
from vitkd_ds.train.mixing import mix_step

SMALL = {"data.train": "demo", "data.num_classes": "10", "data.image_size": "32"}


@pytest.mark.parametrize("recipe", ["demo", "deit_tiny_from_deit3_small", "deit_small_from_deit3_base_3augment"])
def test_the_grid_shows_different_images_for_each_recipe(tmp_path, recipe):
    path = show(parse_run((), SMALL | {"recipe": recipe}), tmp_path / "grid.png")
    pixels = np.asarray(Image.open(path).convert("L"))
    height, width = pixels.shape[0] // ROWS, pixels.shape[1] // COLUMNS
    cells = {
        pixels[y * height : (y + 1) * height, x * width : (x + 1) * width].tobytes()
        for y in range(ROWS)
        for x in range(COLUMNS)
    }
    assert width == 128 and height > 128 and len(cells) == ROWS * COLUMNS
    below = pixels[height - 20 : height]
    assert below.min() < 50 < 250 < below.max()  # a caption, black on white


def test_the_command_writes_to_the_given_path_and_rejects_non_png_names(tmp_path):
    words = ["demo", str(tmp_path / "x.png"), "--recipe", "demo", "--augment.mixup_alpha=0.8"]
    program = "from vitkd_ds.cli import main; main()"
    run = subprocess.run([sys.executable, "-c", program, "show", *words], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and run.stdout.strip() == str(tmp_path / "x.png"), run.stderr
    with pytest.raises(ValueError, match="DST must end in .png"):
        show(parse_run((), SMALL), tmp_path / "x.jpg")


def test_class_names_with_newlines_and_foreign_bytes_are_shown_escaped(tmp_path):
    src = write_images(tmp_path / "images", 40, classes=("a\nb", "\t", "ok"))
    os.rename(src / "ok", os.fsencode(src) + b"/\xff\xfe")
    path = pack(src, tmp_path / "x.beton", workers=1).path
    show(parse_run((), SMALL | {"data.train": str(path), "data.num_classes": "3"}), tmp_path / "grid.png")
    assert _caption(torch.tensor([0.0, 1.0]), ("a", "b\n\udcff'\\c")) == ["b\\n\\udcff'\\c"]


def captions_of(run, tmp_path, monkeypatch):
    """The caption of each image in the grid."""
    grid = Mock(wraps=show_module._grid)
    monkeypatch.setattr(show_module, "_grid", grid)
    show(run, tmp_path / "grid.png")
    return grid.call_args.args[1]


@pytest.mark.parametrize("mixing", [{}, {"augment.mixup_alpha": "0.8", "augment.mix_mode": "element"}])
def test_captions_are_classes_and_their_shares_in_the_image_whatever_the_label_smoothing(tmp_path, monkeypatch, mixing):
    names, smoothing = ("ant", "bird", "cat"), 0.3
    path = pack(write_images(tmp_path / "images", 40, classes=names), tmp_path / "x.beton", workers=1).path
    flags = {
        "data.train": str(path),
        "data.num_classes": "3",
        "data.image_size": "32",
        "augment.mixup_alpha": "0",
        "augment.cutmix_alpha": "0",
        "losses.ce.label_smoothing": str(smoothing),
    } | mixing
    run = parse_run((), flags)
    loader = build_loader(run.data, split="train", augment=run.augment, micro_batch_size=32, seed=run.seed)
    images, labels = next(loader.epoch(0))
    _, targets = mix_step(run, images, labels, step=0, place=0)
    expected = []
    for target in targets.double().tolist():
        shares = sorted((((part - smoothing / 3) / (1 - smoothing), name) for part, name in zip(target, names)))[::-1]
        (most, first), (other, second) = shares[:2]
        expected.append([f"{most:.2f} {first}", f"{other:.2f} {second}"] if other > 0.01 else [first])
    if not mixing:
        assert expected == [[names[label]] for label in labels]
    else:
        assert 16 < sum(len(lines) == 2 for lines in expected) < 32, "some met an image of their own class"
    assert captions_of(run, tmp_path, monkeypatch) == expected


def test_images_without_labels_are_shown_without_captions(tmp_path):
    path = pack(write_images(tmp_path / "images", 8), tmp_path / "x.beton", labels="none", workers=1).path
    run = parse_run((), {"recipe": "demo_label_free", "data.train": str(path), "data.val": str(path)})
    assert _caption(torch.zeros(0), ()) == [""]
    pixels = np.asarray(Image.open(show(run, tmp_path / "x.png")).convert("L"))
    assert pixels[140:164].min() == 255 and pixels[:140].min() < 200


def shown_run(monkeypatch, data, **flags):
    """The run of which `vitkd-ds show` shows the images."""
    shown = Mock(return_value="x.png")
    monkeypatch.setattr(show_module, "show", shown)
    cli.show(str(data), **flags)
    return shown.call_args.args[0]


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"losses.ce.weight": "1", "augment.mixup_alpha": "0.5"},
        {"losses.nkd.weight": "1"},
        {"teacher.checkpoint": "hub"},
        {"teacher": "none"},
    ],
)
@pytest.mark.parametrize("labels", ["", "none"])
def test_images_are_shown_with_or_without_labels_and_teacher_whatever_the_losses(tmp_path, monkeypatch, labels, flags):
    path = pack(write_images(tmp_path / "images", 40), tmp_path / "x.beton", labels=labels, workers=1).path
    run = shown_run(monkeypatch, path, **SHOWN, **flags)
    assert run.data.train == run.data.val == str(path) and run.data.num_classes == (0 if labels else 2)
    monkeypatch.undo()
    assert Image.open(show(run, tmp_path / "x.png")).convert("L").width == 128 * COLUMNS


def test_a_folder_that_is_not_packed_is_named_as_the_argument_with_a_command_that_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos" / "train", 8)
    write_images(tmp_path, 8, classes=("flat",))
    match = (
        r"^DATA must be .*, got 'flat'. Pack it first \(vitkd-ds pack flat FILE.beton --labels none\), then pass FILE"
    )
    with pytest.raises(ValueError, match=match):
        cli.show("flat")
    with pytest.raises(ValueError, match="^DATA is a folder .* Run: vitkd-ds pack photos/train photos/train.beton$"):
        cli.show("photos/train")
    with pytest.raises(ValueError, match="'photos/train' is not a class: .* give 'photos/train' instead"):
        cli.show("photos")
    with pytest.raises(ValueError, match="^DATA must be .*, got the file 'flat/000.png'. Check the path"):
        cli.show("flat/000.png")
    torchvision = {"data.backend": "torchvision"}
    assert shown_run(monkeypatch, "photos/train", **SHOWN, **torchvision).data.train == "photos/train"
    cli.pack("photos/train", "photos/train.beton", workers="1")
    assert shown_run(monkeypatch, "photos/train", **SHOWN).data.train == "photos/train.beton"


SHOWN = {"data.image_size": "32", "epochs": "1"}


def caption_pixels(*names):
    """The pixels below each image in a grid with these captions."""
    captions = [[name] for name in names] + [["x"]] * (ROWS * COLUMNS - len(names))
    pixels = np.asarray(_grid(np.zeros((ROWS * COLUMNS, 128, 128, 3), np.uint8), captions).convert("L"))
    return [pixels[128:152, 128 * i : 128 * (i + 1)] for i in range(len(names))]


@pytest.mark.parametrize("names", [("猫", "犬"), ("я", "ю"), ("猫", "ñandú")])
def test_names_in_other_scripts_are_drawn_with_real_glyphs(names, caplog):
    codes = " ".join(f"{ord(character):x}" for character in "".join(names))
    if not (shutil.which("fc-list") and subprocess.run(["fc-list", f":charset={codes}"], capture_output=True).stdout):
        pytest.skip(f"no font with {names}: .ci/test_programs installs one")
    first, second = caption_pixels(*names)
    assert first.min() < 100 and second.min() < 100 and not caplog.text
    assert not np.array_equal(first, second)
    for name, pixels in zip(names, (first, second), strict=True):
        assert pixels[12:].min() > 100, "it ends above the next row of images"
        assert not np.array_equal(pixels, caption_pixels(name + NO_CHARACTER)[0])
        assert not np.array_equal(pixels, caption_pixels(NO_CHARACTER * len(name))[0])


def test_pillows_font_is_used_without_a_font_search_if_it_has_all_glyphs(monkeypatch):
    monkeypatch.setattr(show_module.subprocess, "run", None)
    for texts in (["0.12 plain name", "…", ""], []):
        assert find_font(texts).getname() == ImageFont.load_default().getname()


@pytest.mark.parametrize("listed", ["{}/broken.ttf", "nonsense", "", None])
def test_missing_glyphs_become_boxes_and_a_warning_names_characters_and_remedy(tmp_path, monkeypatch, caplog, listed):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    if listed is not None:
        program = tmp_path / "fc-list"
        program.write_text(f"#!/bin/sh\nprintf '%s|' \"$@\" > {tmp_path}/asked\necho '{listed.format(tmp_path)}'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}" if listed is not None else str(tmp_path / "nowhere"))
    assert find_font(["b猫a", "猫犬"]).getname() == ImageFont.load_default().getname()
    assert "no font has the characters 犬 猫, so boxes replace them. Install fontconfig and a font" in caplog.text
    assert listed is None or ":charset=61 62 72ac 732b|" in (tmp_path / "asked").read_text()
    assert np.array_equal(caption_pixels("猫")[0], caption_pixels(NO_CHARACTER)[0])
