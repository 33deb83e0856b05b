"""Captions in other scripts: a font that has them is found, and where there is none, a warning names the characters."""

import os
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image, ImageFont

from vitkd_ds.commands import fonts
from vitkd_ds.commands.fonts import find_font, missing_from
from vitkd_ds.commands.show import COLUMNS, ROWS, _grid


def has_font_with(text):
    codes = " ".join(f"{ord(character):x}" for character in text)
    words = ["fc-list", f":charset={codes}", "file"]
    return shutil.which("fc-list") and subprocess.run(words, capture_output=True).stdout


def needs_font_with(text):
    return pytest.mark.skipif(not has_font_with(text), reason=f"no font with {text}: .ci/test_programs installs one")


def caption_pixels(*names):
    """The pixels below each image of a grid with these captions."""
    captions = [[name] for name in names] + [["x"]] * (ROWS * COLUMNS - len(names))
    pixels = np.asarray(_grid(np.zeros((ROWS * COLUMNS, 128, 128, 3), np.uint8), captions).convert("L"))
    return [pixels[128:152, 128 * i : 128 * (i + 1)] for i in range(len(names))]


def boxes(count):
    """As the default font writes so many characters that it has not."""
    return caption_pixels(fonts.NO_CHARACTER * count)[0]


@pytest.mark.parametrize("names", [
    pytest.param(("猫", "犬"), marks=needs_font_with("猫犬")), pytest.param(("я", "ю"), marks=needs_font_with("яю")),
    pytest.param(("猫", "ñandú"), marks=needs_font_with("猫ñandú")),
])  # fmt: skip
def test_names_in_another_script_look_different_and_are_no_boxes(names, caplog):
    first, second = caption_pixels(*names)
    assert first.min() < 100 and second.min() < 100 and not caplog.text
    assert not np.array_equal(first, second)
    for name, pixels in zip(names, (first, second), strict=True):
        assert not np.array_equal(pixels, boxes(len(name)))
        assert not np.array_equal(pixels, caption_pixels(name + fonts.NO_CHARACTER)[0])
    assert pixels_outside(*names) == 0


def pixels_outside(*names):
    """Dark pixels of the captions where the next row of images begins, or above them."""
    below = [np.concatenate([pixels[:0], pixels[12:]]) for pixels in caption_pixels(*names)]
    return sum(int((pixels < 100).sum()) for pixels in below)


def test_the_default_font_is_used_without_asking_anybody_where_it_has_all(monkeypatch):
    monkeypatch.setattr(fonts.subprocess, "run", None)
    font = find_font(["0.12 plain name", "…", ""])
    assert font.getname() == ImageFont.load_default().getname() and find_font([]).getname() == font.getname()
    assert missing_from(font, "aZ09 .…") == [] and missing_from(font, "a猫я\u0378") == ["猫", "я", "\u0378"]


@pytest.fixture
def fc_list(tmp_path, monkeypatch):
    """A function that puts an fc-list with this output, and nothing else, on the path; it notes its arguments."""

    def put(output):
        program = tmp_path / "fc-list"
        program.write_text(f"#!/bin/sh\nprintf '%s|' \"$@\" > {tmp_path}/asked\nprintf '{output}'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
        return tmp_path / "asked"

    return put


def test_where_no_font_has_them_the_default_font_is_used_and_a_warning_names_characters_and_remedy(
    fc_list, tmp_path, monkeypatch, caplog
):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    for output in ("", f"{tmp_path}/broken.ttf\\t0\\tRegular\\n", "nonsense\\n"):
        asked = fc_list(output)
        caplog.clear()
        assert find_font(["b猫a", "猫犬"]).getname() == ImageFont.load_default().getname()
        assert "found none that has 犬 猫: boxes" in caplog.text
        assert "install fontconfig and a font with these characters, such as fonts-noto-cjk" in caplog.text
        assert ":charset=61 62 72ac 732b|" in asked.read_text()
    caplog.clear()
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    find_font(map(chr, range(0x4E00, 0x4E00 + 30)))
    assert caplog.text.count("丈") == 1 and " and 10 more: boxes" in caplog.text and len(caplog.records) == 1


@needs_font_with("я")
def test_a_font_that_lacks_some_is_passed_over_and_a_plain_style_preferred(fc_list, tmp_path):
    file = subprocess.run(["fc-list", "--format", "%{file}\n", ":charset=44f"], capture_output=True, text=True).stdout
    default = ImageFont.load_default()
    (tmp_path / "lacking.ttf").write_bytes(default.path.getvalue() if hasattr(default.path, "getvalue") else b"")
    has_all = file.splitlines()[0]
    fc_list(f"{tmp_path}/a.ttf\\t0\\tBold\\n{tmp_path}/lacking.ttf\\t0\\tRegular\\n{has_all}\\t65536\\tBook\\n")
    shutil.copy(has_all, tmp_path / "a.ttf")
    assert find_font(["я"]).path == has_all


def test_a_grid_with_names_that_no_font_has_is_still_written(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    first, second = caption_pixels("\U000f0000", "a")
    assert first.min() < 100 and not np.array_equal(first, second) and "found none that has" in caplog.text
    assert np.array_equal(first, boxes(1)) and isinstance(Image.fromarray(first), Image.Image)
