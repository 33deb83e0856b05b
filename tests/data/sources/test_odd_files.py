"""Unusual source files: links in tars, concatenated tars, pipes and devices."""

import os
import tarfile

import pytest

from tests.data.sources.test_sources import (
    TEXT,
    WNIDS,
    everything,
    jpeg,
    refused,
    tar_bytes,
    tree,
    write_tar,
    write_train,
    write_val,
)
from vitkd_ds.data.sources import open_source


def with_link(path, name, target, *, kind=tarfile.LNKTYPE):
    """Add a link to a tar."""
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        tar.addfile(info)
    return path


def test_a_hard_link_in_a_tar_is_its_target_and_other_irregular_members_are_counted(tmp_path, caplog):
    members = [("0.jpg", jpeg(0)), ("0.cls", b"1"), ("1.jpg", jpeg(1)), ("1.cls", b"0")]
    path = write_tar(tmp_path / "s.tar", members)
    with_link(with_link(path, "2.jpg", "0.jpg"), "2.cls", "1.cls")
    assert everything(open_source(path)) == [("1", jpeg(0)), ("0", jpeg(1)), ("0", jpeg(0))] and not caplog.text
    train = write_tar(tmp_path / "n01440764.tar", [("a.JPEG", jpeg(3))])
    whole = write_tar(tmp_path / "t.tar", [(train.name, with_link(train, "b.JPEG", "a.JPEG").read_bytes())])
    assert everything(open_source(whole)) == [(WNIDS[0], jpeg(3))] * 2, "also in a tar inside a tar"
    with_link(with_link(path, "dev/null", "", kind=tarfile.CHRTYPE), "3.jpg", "0.jpg", kind=tarfile.SYMTYPE)
    assert len(open_source(path).labels) == 3
    assert f"{str(path)!r}: skipping 2 non-regular members; the first is 'dev/null'" in caplog.text
    with_link(path, "4.jpg", "x.jpg")
    refused(path, match="has '4.jpg' as a link to 'x.jpg', which does not precede it")


@pytest.mark.parametrize("zeros", [0, 512, 3 * 2**20])
def test_concatenated_tars_are_all_read_and_other_data_after_the_end_are_rejected(tmp_path, zeros):
    parts = [tar_bytes([(f"{i}.jpg", jpeg(i)), (f"{i}.cls", b"%d" % i)]) + bytes(zeros) for i in range(3)]
    path = tmp_path / "s.tar"
    path.write_bytes(b"".join(parts))
    assert everything(open_source(path)) == [(str(i), jpeg(i)) for i in range(3)]
    path.write_bytes(parts[0] + parts[1][: len(jpeg(1))])
    refused(path, match="s.tar' is (truncated|not a complete)")
    path.write_bytes(parts[0] + b"no tar" * 200)
    refused(path, match="s.tar' is (truncated|not a complete, uncompressed tar)")


@pytest.mark.timeout(20)
def test_a_pipe_or_device_named_like_an_image_or_tar_is_rejected_at_once(tmp_path):
    src = tree(tmp_path / "train", "a/x.jpg")
    (src / "a" / "zero.jpg").symlink_to("/dev/zero")
    refused(src, match="image '.*/a/zero.jpg' is not a regular file")
    refused(src, labels="none", match="image '.*/a/zero.jpg' is not a regular file")
    (src / "a" / "zero.jpg").unlink()
    os.mkfifo(src / "a" / "pipe.png")
    refused(src, match="image '.*/a/pipe.png' is not a regular file")
    (tmp_path / "tars").mkdir()
    os.mkfifo(tmp_path / "tars" / "s.tar")
    for path in (tmp_path / "tars", tmp_path / "tars" / "s.tar"):
        refused(path, match="s.tar' is not a regular file")


def test_an_empty_tar_has_no_images_and_does_not_affect_its_neighbours(tmp_path):
    empty = write_tar(tmp_path / "empty.tar", [])
    refused(empty, match="src must be one of these: .*Found a file that is none of these")
    (tmp_path / "bytes.tar").write_bytes(b"")
    refused(tmp_path / "bytes.tar", match="src must be one of these: .*Found a file that is none of these")
    (tmp_path / "tars").mkdir()
    empty.rename(tmp_path / "tars" / "0.tar")
    refused(tmp_path / "tars", match="no images .* in the WebDataset tars")
    write_tar(tmp_path / "tars" / "1.tar", [("0.jpg", jpeg(0)), ("0.cls", b"1"), ("1.jpg", jpeg(1)), ("1.cls", b"0")])
    assert everything(open_source(tmp_path / "tars")) == [("1", jpeg(0)), ("0", jpeg(1))]
    (tmp_path / "bytes.tar").rename(tmp_path / "tars" / "2.tar")
    refused(tmp_path / "tars", match="2.tar' is not a complete, uncompressed tar")


def test_a_dangling_link_named_like_an_image_or_tar_is_rejected_by_name(tmp_path):
    src = tree(tmp_path / "train", "a/x.jpg", "b/x.jpg")
    (src / "b" / "gone.jpg").symlink_to("nothing")
    for options in ({}, {"labels": "none"}):
        refused(src, **options, match="cannot read an image: .*b/gone.jpg.* Fix or remove the file")
    (src / "b" / "gone.jpg").unlink()
    (src / "b" / "gone.txt").symlink_to("nothing")
    assert len(open_source(src).labels) == 2
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "0.tar", [("0.jpg", jpeg(0)), ("0.cls", b"0")])
    (tmp_path / "tars" / "1.tar").symlink_to("nothing")
    refused(tmp_path / "tars", match="1.tar' is not a regular file")
    refused(tmp_path / "tars" / "1.tar", match="does not exist")


def test_imagenets_own_tars_are_never_read_as_samples_in_any_folder(tmp_path):
    (tmp_path / "in").mkdir()
    val = write_val(tmp_path / "in" / "ILSVRC2012_img_val.tar")
    refused(val, match="has no labels. Pass --labels")
    refused(tmp_path / "in", match="src must be one of these: .*Found a folder that is none of these")
    renamed = val.rename(tmp_path / "in" / "other.tar")
    refused(renamed, match="has no labels. Pass --labels")
    (tmp_path / "labels").write_text(TEXT)
    assert open_source(renamed, labels=str(tmp_path / "labels")).kind == "ImageNet val"
    train = write_train(tmp_path / "in" / "train.tar")
    assert open_source(train).kind == "ImageNet train"
    write_tar(tmp_path / "in" / f"{WNIDS[0]}.tar", [("a.JPEG", jpeg(1))])
    for path in (renamed, train):
        path.unlink()
    assert open_source(tmp_path / "in").kind == "ImageNet train"


def test_non_image_files_in_and_among_imagenets_tars_are_counted(tmp_path, caplog):
    root, wnid = tmp_path / "in", WNIDS[0]
    root.mkdir()
    write_tar(root / f"{wnid}.tar", [("a.JPEG", jpeg(1)), ("b.gif", b"x"), (".c.JPEG", jpeg(2))])
    (root / f"{WNIDS[1]}.tar.part").write_bytes(b"x")
    assert len(open_source(root).labels) == 1
    val = write_tar(tmp_path / "val.tar", [("ILSVRC2012_val_00000001.JPEG", jpeg(1)), ("ILSVRC2012_val_2.gif", b"x")])
    (tmp_path / "labels").write_text(TEXT)
    assert len(open_source(val, labels=str(tmp_path / "labels")).labels) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"skipping 1 files other than class tars; the first is '{root / WNIDS[1]}.tar.part'",
        f"skipping 2 hidden files and files without an image's ending; the first is 'in/{wnid}.tar/b.gif'",
        "skipping 1 hidden files and files without an image's ending; the first is 'val.tar/ILSVRC2012_val_2.gif'",
    ]
