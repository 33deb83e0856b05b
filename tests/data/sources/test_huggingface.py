"""Hugging Face data sets on disk as sources: original bytes from Arrow and parquet, splits, clear errors."""

import os
import shutil
import sys

import numpy as np
import pytest

from tests.data.sources.test_sources import everything, jpeg, refused, tree
from vitkd_ds.commands.pack import pack
from vitkd_ds.data.beton.format import check_beton, read_beton
from vitkd_ds.data.sources import open_source

datasets = pytest.importorskip("datasets")
parquet = pytest.importorskip("pyarrow.parquet")

NAMES = ["tench", "goldfish", "shark"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A private cache, and no network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def rows_of(images, labels, names=NAMES):
    """Rows with images, given as bytes and path or as None, and their classes."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": [pair and dict(zip(("bytes", "path"), pair)) for pair in images], "label": labels}
    return datasets.Dataset.from_dict(rows, features=features)


def write_table(folder, rows):
    """Write the table directly; the library itself would open the files that rows name."""
    folder.mkdir()
    parquet.write_table(rows.data.table.cast(rows.features.arrow_schema), folder / "train.parquet")


def dataset_of(count, *, first=0):
    """Rows with an image (as file bytes), its class, and another column."""
    numbers = range(first, first + count)
    rows = rows_of([(jpeg(i), f"{i}.JPEG") for i in numbers], [i % 3 for i in numbers])
    return rows.add_column("note", ["x"] * count)


def expected(count, first=0):
    return [(NAMES[i % 3], jpeg(i)) for i in range(first, first + count)]


def test_output_of_save_to_disk_is_read_byte_for_byte_and_by_packing_workers(tmp_path):
    dataset_of(7).save_to_disk(tmp_path / "one", num_shards=2)
    source = open_source(tmp_path / "one")
    assert (source.kind, source.classes) == ("Hugging Face", tuple(NAMES)) and everything(source) == expected(7)
    assert source.names[5] == "one[5] 5.JPEG"
    both = datasets.DatasetDict({"train": dataset_of(7), "validation": dataset_of(4, first=7)})
    both.save_to_disk(tmp_path / "both")
    source = open_source(tmp_path / "both", split="validation")
    assert everything(source) == expected(4, first=7) and source.names[1] == "both/validation[1] 8.JPEG"
    for split in ("", "test"):
        refused(tmp_path / "both", split=split, match=f"one of the splits in .* \\(train, validation\\), got '{split}'")
    dataset_of(70).save_to_disk(tmp_path / "many")
    info = pack(tmp_path / "many", tmp_path / "x.beton", passthrough=True, shuffle=True, workers=2)
    assert check_beton(info.path) == info and info.passthrough == 70
    assert np.bincount(read_beton(info.path)[2]).tolist() == [24, 23, 23]


@pytest.mark.parametrize("folder", [".", "data"])
def test_parquet_files_of_the_hub_are_read_byte_for_byte(tmp_path, folder):
    root = tmp_path / "hub" / folder
    root.mkdir(parents=True)
    for part, first in enumerate((0, 5)):
        dataset_of(5, first=first).to_parquet(root / f"train-{part:05d}-of-00002.parquet")
    source = open_source(tmp_path / "hub")
    assert source.classes == tuple(NAMES) and everything(source) == expected(10)
    dataset_of(3).to_parquet(root / "test-00000-of-00001.parquet")
    assert everything(open_source(tmp_path / "hub", split="train")) == expected(10)
    refused(tmp_path / "hub", match="one of the splits in .* \\(test, train\\), got ''")


@pytest.mark.parametrize(
    "names, message",
    [
        (["train-00000-of-00003", "train-00002-of-00003"], "lacks 1 of the 3 parts .* the first is number 00001"),
        (["train-00001-of-00003-0a1b"], "lacks 2 of the 3 parts .* the first is number 00000. Download them"),
        (["train-00000-of-00002", "train-00001-of-00003"], "mixes parts of two exports, .*-of-00002.* and .*-of-00003"),
        (["train", "train-00000-of-00001"], "mixes parts of two exports, 'train-.*' and 'train.parquet'"),
        (
            ["train-00000-of-00001-0a", "train-00000-of-00001-1b"],
            "2 files, but its export has 1 parts. .* 'train-00000-of-00001-0a.p",
        ),
        (["train-000000-of-000002"], "lacks 1 of the 2 parts .* the first is number 00001"),
        (["train_0_of_2"], "lacks 1 of the 2 parts .* the first is number 00001"),
        (
            ["train-00000-of-00001", "data/train-00000-of-00001"],
            "2 files, but its export has 1 parts. .* 'train-00000-of-00001.parq",
        ),
        (
            ["train-00000-of-00001", "train-00005-of-00001"],
            "2 files, but its export has 1 parts. .* 'train-00005-of-00001.parquet'",
        ),
    ],
)
def test_parquet_files_with_missing_or_foreign_members_are_rejected(tmp_path, names, message):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for first, name in enumerate(names):
        dataset_of(2, first=first).to_parquet(tmp_path / "hub" / f"{name}.parquet")
    refused(tmp_path / "hub", match=message)
    dataset_of(1).to_parquet(tmp_path / "hub" / "test-00000-of-00001-2c.parquet")
    assert everything(open_source(tmp_path / "hub", split="test")) == expected(1)
    refused(tmp_path / "hub", split="train", match=message)


def test_selected_rows_keep_their_labels_and_files_next_to_the_data_set_are_read(tmp_path):
    dataset_of(9).select([8, 1, 5]).save_to_disk(tmp_path / "rows")
    assert everything(open_source(tmp_path / "rows")) == [(NAMES[i % 3], jpeg(i)) for i in (8, 1, 5)]
    rows = rows_of([(None, "a.jpg"), (None, str(tmp_path / "paths" / "b.jpg"))], [0, 0], names=["x"])
    write_table(tmp_path / "paths", rows)
    tree(tmp_path / "paths", **{"a.jpg": jpeg(3), "c.jpg": jpeg(4)})
    (tmp_path / "paths" / "b.jpg").symlink_to("c.jpg")
    assert everything(open_source(tmp_path / "paths")) == [("x", jpeg(3)), ("x", jpeg(4))]


@pytest.mark.timeout(20)
def test_a_row_cannot_name_a_file_outside_the_data_set_or_a_pipe_or_device(tmp_path):
    folder = tmp_path / "paths"
    private = tree(tmp_path / "else", "private") / "private"
    for path in (str(private), "../else/private", "link.jpg", "up/private", "/dev/zero", "pipe", "no.jpg"):
        write_table(folder, rows_of([(jpeg(0), None), (None, path)], [0, 0]))
        os.mkfifo(folder / "pipe")
        (folder / "link.jpg").symlink_to(private)
        (folder / "up").symlink_to(private.parent)
        refused(folder, match="row 1 of '.*paths' has no bytes and names .*, which is not a regular file in")
        shutil.rmtree(folder)
    write_table(folder, rows_of([(None, "a.jpg")], [0]))
    source = open_source(tree(folder, "a.jpg"))
    (folder / "a.jpg").unlink()
    (folder / "a.jpg").symlink_to(private)
    with pytest.raises(ValueError, match="row 0 of .* names 'a.jpg'"):
        source.read(0)


def test_the_errors_remedy_stores_the_bytes_of_files_anywhere(tmp_path):
    path = tree(tmp_path, "a.jpg") / "a.jpg"
    rows = rows_of([(None, str(path))], [0], names=["x"])
    write_table(tmp_path / "paths", rows)
    refused(tmp_path / "paths", match="or save the data set with save_to_disk, which stores their bytes")
    rows.save_to_disk(tmp_path / "bytes")
    path.unlink()
    assert everything(open_source(tmp_path / "bytes")) == [("x", jpeg(1))]


def test_rows_with_neither_bytes_nor_path_are_counted_and_named(tmp_path, caplog):
    rows = rows_of([(jpeg(0), None), None, (jpeg(2), "2.jpg"), (None, "")], [0, 1, 2, 0])
    write_table(tmp_path / "rows", rows)
    source = open_source(tmp_path / "rows")
    counted = "2 rows of 'rows' have neither bytes nor a path and count as damaged images; the first is row 1"
    assert counted in caplog.text
    assert everything(source)[1:] == [(NAMES[1], b""), (NAMES[2], jpeg(2)), (NAMES[0], b"")]
    with pytest.raises(ValueError, match=r"'rows\[1\]' does not decode .*it is empty"):
        pack(tmp_path / "rows", tmp_path / "x.beton", workers=1)
    assert pack(tmp_path / "rows", tmp_path / "x.beton", workers=1, skip_bad=True, restart=True).num_images == 2
    caplog.clear()
    dataset_of(2).save_to_disk(tmp_path / "whole")
    open_source(tmp_path / "whole")
    assert not caplog.text


def test_unfit_data_sets_are_rejected(tmp_path, monkeypatch):
    dataset_of(3).remove_columns("label").save_to_disk(tmp_path / "unlabelled")
    refused(tmp_path / "unlabelled", match=r"one column of type ClassLabel \(class label\), but has 0")
    rows_of([(jpeg(0), None)] * 2, [0, -1]).save_to_disk(tmp_path / "test")
    refused(tmp_path / "test", match="row 1 of .* has class -1, not one from 0 to 2. Test splits have no labels")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1 no")
    refused(tmp_path / "broken", match="train.parquet' and 0 more files cannot be read as parquet files")
    arrow = next((tmp_path / "test").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    refused(tmp_path / "test", match="test' is not a valid save_to_disk folder")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(tmp_path / "unlabelled", match=r"needs the package datasets.*pip install 'vitkd_ds\[hf\]'")
