"""`vitkd-ds plan` for a small data set of one's own, with the commands of its help and its errors."""

import re

import pytest

from tests.data.conftest import write_images
from vitkd_ds import cli
from vitkd_ds.commands.pack import pack


def test_a_small_folder_is_counted_before_and_after_packing_without_validation_images(tmp_path, capsys):
    folder = write_images(tmp_path / "train", 200)
    flags = {"recipe": "images", "teacher": "none", "data.train": str(folder), "gpus": "1"}
    for file in (folder, tmp_path / "train.beton"):
        cli.plan(**flags)
        text = capsys.readouterr().out
        assert re.search(rf"epoch +200 images +counted: {file}, whole steps", text) and "1 steps of 128 images" in text
        if file == folder:
            mean = sum(path.stat().st_size for path in folder.rglob("*.png")) / 200
            assert f"{mean / 1e3:.1f} kB per image" in text
            pack(folder, tmp_path / "train.beton", workers=1)


def test_the_option_in_the_error_of_a_too_large_batch_makes_the_plan_succeed(tmp_path, capsys):
    flags = {"recipe": "deit_base_from_deit3_large", "data.train": str(write_images(tmp_path / "train", 200))}
    flags["data.num_classes"] = "2"
    with pytest.raises(ValueError, match="200 training images are fewer than one global batch") as error:
        cli.plan(**flags)
    key, value = re.search(r"Pass --(\w+)=(\d+), or", str(error.value)).groups()
    cli.plan(**flags, **{key: value})
    assert value == "128" and "1 steps of 128 images" in capsys.readouterr().out
