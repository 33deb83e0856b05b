"""Class folders are read in torchvision's order, and files packed in earlier versions' order stay valid."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from tests.data.sources.test_sources import jpeg, refused, tree
from vitkd_ds.commands.pack import pack
from vitkd_ds.commands.pack.folders import find_packed
from vitkd_ds.data.sources import open_source
from vitkd_ds.data.sources.folder import is_image

NESTED = ("s1/x.jpg", "s1-b/x.jpg", "s1/deep/x.jpg", "a.jpg", "s1/deep-er/y.jpg", "s1 c/x.jpg", "S/z.PNG", "s1/é/x.jpg")


def random_names(rng):
    """Image paths up to five folders deep, with names that sort around the path separator."""
    pieces = ["a", "a-", "a.b", "b", "b ", "b+c", "A", "é", "0", "a,"]
    for number in range(40):
        folders = rng.choice(pieces, rng.integers(1, 6)).tolist()
        yield os.path.join(*folders, f"{rng.choice(pieces)}{number}.jpg")


def order_of_earlier_versions(folder):
    """Image paths class by class; inside each folder, files come before subfolders."""
    for class_name in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()):
        for root, folders, names in os.walk(folder / class_name):
            folders.sort()
            yield from (os.path.join(root, name) for name in sorted(names) if is_image(name))


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_images_have_torchvisions_labels_and_order(tmp_path, seed):
    names = [f"{top}/{name}" for top in ("b", "a", "a-b") for name in NESTED]
    names = names if seed is None else [*random_names(np.random.default_rng(seed))]
    source = open_source(tree(tmp_path / "train", *names))
    theirs = ImageFolder(tmp_path / "train")
    assert (list(source.names), source.labels.tolist()) == tuple(map(list, zip(*theirs.samples)))
    assert source.classes == tuple(theirs.classes)
    assert list(source.names) != [*order_of_earlier_versions(tmp_path / "train")]


def test_nested_folders_packed_by_an_earlier_version_are_used_until_they_change(tmp_path):
    src = tree(tmp_path / "train", **{f"{top}/{name}": jpeg(i) for top in "ab" for i, name in enumerate(NESTED)})
    path = pack(src, tmp_path / "train.beton", workers=1).path
    side = tmp_path / "train.beton.json"
    source, earlier = open_source(src), [*order_of_earlier_versions(src)]
    sizes = np.array([os.path.getsize(name) for name in earlier])
    fingerprint = replace(source, names=earlier, sizes=sizes).fingerprint(without=f"{src}/")
    values = json.loads(side.read_text())
    assert values["source"] == source.fingerprint(without=f"{src}/") != fingerprint
    assert find_packed("data.train", str(src)) == str(path)
    side.write_text(json.dumps(values | {"source": fingerprint}))
    assert find_packed("data.train", str(src)) == str(path)
    (src / "a" / "s1" / "x.jpg").write_bytes(jpeg(9))
    with pytest.raises(ValueError, match="has changed since .* was packed from it"):
        find_packed("data.train", str(src))


def test_a_folder_of_splits_is_rejected_with_the_command_that_packs_one_of_them(tmp_path):
    src = tree(
        tmp_path / "photos", "train/ant/x.jpg", "train/bee/y.jpg", "train/.x.jpg", "train/README.txt", "val/ant/z.jpg"
    )
    train = src / "train"
    found = rf"'{train}' is not a class: it directly contains no images, only folders \(ant, bee\). If those are the "
    with pytest.raises(ValueError, match=f"{found}.*: vitkd-ds pack {train} {train}.beton. Otherwise, .* --classes"):
        open_source(src)
    (tmp_path / "names.txt").write_text("train\nval\n")
    assert open_source(src, classes=str(tmp_path / "names.txt")).labels.tolist() == [0, 0, 1]
    tree(src, "more/x.jpg")
    with pytest.raises(ValueError, match=found):
        open_source(src)  # recognised by its name, although another folder contains images
    tree(src, "train/x.jpg", "val/x.jpg")  # images next to folders: a class with subfolders
    assert open_source(src).classes == ("more", "train", "val")
    years = tree(tmp_path / "years", "2024/ant/x.jpg", "2025/ant/y.jpg")
    with pytest.raises(ValueError, match="'.*2024' is not a class: it directly contains no images, only folders"):
        open_source(years)


def test_hidden_files_and_folders_which_torchvision_reads_are_counted(tmp_path, caplog):
    src = tree(tmp_path / "train", "a/x.jpg", "b/y.jpg")
    expected = list(open_source(src).names)
    assert not caplog.text
    tree(src, ".hidden/x.jpg", "a/.x.jpg", "a/.deep/y.jpg", "a/.deep/z.jpg", "b/c/.DS_Store")
    assert ImageFolder(src).classes == [".hidden", "a", "b"]
    tree(src, ".a.jpg")
    for options in ({}, {"labels": "none"}):
        caplog.clear()
        assert list(open_source(src, **options).names) == expected
        assert f"skipping 5 hidden files and folders; the first is {str(src / '.a.jpg')!r}" in caplog.text
        assert len(caplog.records) == 1
    caplog.clear()
    tree(tmp_path / "only", ".a/x.jpg")
    refused(tmp_path / "only", match="Found a folder that is none of these")


def test_images_and_dangling_links_next_to_class_folders_are_counted(tmp_path, caplog):
    src = tree(tmp_path / "train", "a/x.jpg", "b/y.jpg", "loose.jpg")
    (src / "a-class").symlink_to("nothing")
    assert open_source(src).classes == ("a", "b")
    found = f"skipping 2 files outside of the class folders; the first is {str(src / 'a-class')!r}"
    assert [record.getMessage() for record in caplog.records] == [found]


@pytest.mark.parametrize("options", [{}, {"labels": "none"}])
def test_an_unlistable_folder_is_rejected_and_does_not_count_as_empty(tmp_path, monkeypatch, options):
    """A folder with a path too long for the system, which rejects it even for root."""
    src = tree(tmp_path / "train", "a/x.jpg")
    monkeypatch.chdir(src / "a")
    for _ in range(20):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    open("deep.jpg", "wb").close()
    refused(src, **options, match="cannot list '.*/a/ddd.*': File name too long. Make it readable, or move it away")
