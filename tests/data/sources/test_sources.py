"""Sources: the same images from every kind, detected automatically and read in place; errors name file and member."""

import gzip
import io
import os
import tarfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from tests.commands.pack.test_pack import content_of, names_in
from tests.data.test_image_file import file_of
from vitkd_ds.commands.pack import pack
from vitkd_ds.data.beton.format import read_beton
from vitkd_ds.data.sources import open_source

WNIDS = ("n01440764", "n01443537", "n02119789")


def refused(path, *, match, **options):
    with pytest.raises(ValueError, match=match):
        open_source(path, **options)


def jpeg(number):
    return file_of(Image.new("RGB", (16 + number, 12), (20 * number % 256, 99, 0)), "JPEG")


def write_tar(path, members, mode="w"):
    path.write_bytes(tar_bytes(members, mode))
    return path


def tar_bytes(members, mode="w"):
    """A tar with the members (name, bytes)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def images_of(wnid, count=4):
    """Names and bytes in no particular order."""
    first = WNIDS.index(wnid) * 10
    return [(f"{wnid}_{i}.JPEG", jpeg(first + i)) for i in reversed(range(count))]


def tree(root, *names, **files):
    """A folder with the files, and the same image under each name."""
    for name, content in (dict.fromkeys(names, jpeg(1)) | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_folder(root):
    return tree(root, **{f"{wnid}/{name}": content for wnid in WNIDS for name, content in images_of(wnid)})


def write_train(path):
    return write_tar(path, [(f"{wnid}.tar", tar_bytes(images_of(wnid))) for wnid in reversed(WNIDS)])


def everything(source):
    """The images and labels that training gets from a source, in order."""
    images = [source.read(i) for i in range(len(source.labels))]
    assert [len(content) for content in images] == list(source.sizes) and len(images) == len(source.names)
    return [(source.classes[label], content) for label, content in zip(source.labels, images)]


def test_imagenets_training_tar_and_a_folder_of_its_tars_equal_the_class_folders(tmp_path):
    folder = write_folder(tmp_path / "folder")
    path, expected = write_train(tmp_path / "t.tar"), everything(open_source(folder))
    tar = open_source(path)
    assert (tar.kind, tar.classes) == ("ImageNet train", WNIDS) and everything(tar) == expected
    assert tar.names[5] == "t.tar/n01443537.tar/n01443537_1.JPEG"
    (tmp_path / "tars").mkdir()
    for wnid in WNIDS:
        write_tar(tmp_path / "tars" / f"{wnid}.tar", images_of(wnid))
    assert everything(open_source(tmp_path / "tars")) == expected
    files = [pack(src, src.with_suffix(".beton"), passthrough=True, workers=2).path for src in (path, folder)]
    assert content_of(files[0]) == content_of(files[1])
    assert read_beton(files[0])[2].tolist() == read_beton(files[1])[2].tolist()
    betons = [f"{name}.beton{ending}" for name in ("folder", "t") for ending in ("", ".json")]
    assert names_in(tmp_path) == sorted(["folder", "t.tar", "tars", *betons])


VAL_NAMES = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 7)]
VAL_WNIDS = [WNIDS[i % 3] for i in range(6)]


def write_val(path):
    members = [(f"{name}.JPEG", jpeg(i)) for i, name in enumerate(VAL_NAMES)]
    return write_tar(path, [members[4], *members[:4], members[5]])


def write_devkit(path):
    ids, meta = [3, 1, 2], io.BytesIO()
    rows = [(number, wnid, 0) for number, wnid in zip([*ids, 1001], [*WNIDS, "n00001740"])]
    synsets = np.array(rows, [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")])
    scipy.io.savemat(meta, {"synsets": synsets})
    truth = "".join(f"{ids[WNIDS.index(wnid)]}\n" for wnid in VAL_WNIDS).encode()
    root = "ILSVRC2012_devkit_t12/data"
    members = [(f"{root}/ILSVRC2012_validation_ground_truth.txt", truth), (f"{root}/meta.mat", meta.getvalue())]
    return write_tar(path, members, "w:gz")


TEXT = "".join(f"{name}.JPEG {wnid}\n" for name, wnid in zip(VAL_NAMES, VAL_WNIDS))
KAGGLE = "ImageId,PredictionString\n" + "".join(
    f"{name},{wnid} 85 1 499 272 {wnid} 1 2 3 4\n" for name, wnid in zip(VAL_NAMES[::-1], VAL_WNIDS[::-1])
)


@pytest.mark.parametrize("labels", [TEXT, KAGGLE, "devkit"])
def test_imagenets_validation_tar_gets_its_labels_from_any_of_three_files(tmp_path, labels):
    file = tmp_path / "labels"
    write_devkit(file) if labels == "devkit" else file.write_text(labels)
    source = open_source(write_val(tmp_path / "val.tar"), labels=str(file))
    assert (source.kind, source.classes) == ("ImageNet val", WNIDS)
    assert everything(source) == [(wnid, jpeg(i)) for i, wnid in enumerate(VAL_WNIDS)]
    assert source.names[4] == "val.tar/ILSVRC2012_val_00000005.JPEG"


def test_missing_or_invalid_labels_and_an_invalid_devkit_are_reported(tmp_path):
    val, labels = write_val(tmp_path / "val.tar"), tmp_path / "labels.txt"
    for text, message in (
        (TEXT[: len(TEXT) // 2], "lacks the classes of 'ILSVRC2012_val_00000004.JPEG'"),
        (TEXT + f"{VAL_NAMES[0]}.JPEG n02119789\n", "line 7 of .* a second class"),
        ("lonely\n", "got 'lonely'"),
    ):
        labels.write_text(text)
        refused(val, labels=str(labels), match=message)
    refused(val, match="has no labels. Pass --labels")
    refused(val, labels=str(tmp_path / "no"), match="no file .* .--labels")
    write_tar(tmp_path / "other.tar", [("x/y", b"z")])
    refused(val, labels=str(tmp_path / "other.tar"), match="other.tar' is not ImageNet's devkit .* KeyError")


@pytest.mark.parametrize("keep", [0.97, 0.7, 0.3, "header", "end"])
def test_a_truncated_tar_is_rejected(tmp_path, keep):
    (tmp_path / "labels").write_text(TEXT)
    labels = {"labels": str(tmp_path / "labels")}
    for path, options in ((write_train(tmp_path / "t.tar"), {}), (write_val(tmp_path / "val.tar"), labels)):
        with tarfile.open(path) as tar:
            last = tar.getmembers()[-1]
        content = path.read_bytes()
        end = {"header": last.offset + 100, "end": last.offset_data + -(-last.size // 512) * 512}
        path.write_bytes(content[: end.get(keep, 0) or int(last.offset * keep)])
        refused(path, **options, match=f"{path.name}'.* is (truncated|not a complete)")


def test_a_truncated_or_empty_inner_tar_is_rejected_by_name(tmp_path):
    whole, other = tar_bytes(images_of(WNIDS[0])), tar_bytes(images_of(WNIDS[1]))
    for content, second, message in (
        (whole[: len(whole) // 2], WNIDS[1], "member 'n01440764.tar', is (truncated|not a complete)"),
        (gzip.compress(whole), WNIDS[1], "member 'n01440764.tar', is not a complete, uncompressed tar"),
        (tar_bytes([]), WNIDS[1], "class tar 'n0.* has no images"),
        (whole, "extra", "'extra.tar' in .* is a duplicate, or its name is not"),
    ):
        path = write_tar(tmp_path / "t.tar", [(f"{WNIDS[0]}.tar", content), (f"{second}.tar", other)])
        refused(path, match=message)


def test_names_inside_a_tar_never_become_paths(tmp_path):
    (tmp_path / "in").mkdir()
    evil = tar_bytes([("../../evil.JPEG", jpeg(1)), ("/tmp/evil.JPEG", jpeg(2))])
    path = write_tar(tmp_path / "in" / "t.tar", [(f"{WNIDS[0]}.tar", evil)])
    info = pack(path, tmp_path / "in" / "x.beton", passthrough=True, workers=1)
    assert info.num_images == 2 and not list(tmp_path.rglob("*evil*")) and not os.path.exists("/tmp/evil.JPEG")


def test_an_unrecognised_source_is_rejected_with_the_list_of_kinds_or_a_hint(tmp_path):
    folder = write_folder(tmp_path / "train")
    (tmp_path / "text").write_text("x")
    (tmp_path / "gz.tar").write_bytes(b"\x1f\x8b\x08 compressed")
    (tmp_path / "hollow" / "a").mkdir(parents=True)
    refused(tmp_path / "nothing", match="nothing' does not exist")
    for name in ("text", "gz.tar", "hollow", "hollow/a"):
        refused(tmp_path / name, match="ImageFolder .*WebDataset.*parquet.*Found .* at '.*" + name)
    write_tar(folder / "0.tar", [("0.jpg", jpeg(0)), ("0.cls", b"0")])
    refused(folder, match="Found signs of ImageFolder.* and of WebDataset")
    (folder / "0.tar").unlink()
    refused(folder, split="train", match="--split does not apply to .* .ImageFolder")
    (folder / "n09").mkdir()
    refused(folder, match="class folder .*n09.* has no images .* or pass --classes FILE")
    tree(tmp_path / "hollow", "x.JPEG")
    refused(tmp_path / "hollow", match="without a class .*: pack them without labels .* --labels none.*tar itself")


def test_links_are_followed_to_each_folder_once_and_other_sources_have_other_fingerprints(tmp_path):
    src = tree(tmp_path / "twice", "a/deep/x.jpg", "b/x.jpg")
    for link, target in (
        ("a/loop", ""),
        ("a/loop", "a"),
        ("a/deep/loop", "a"),
        ("b/other", "a/deep"),
        ("c", "a"),
        ("a/deep/up", "b"),
    ):
        (src / link).symlink_to(src / target)
        refused(src, match="'.*' is a link to the folder '.*', .* Remove the link")
        (src / link).unlink()
    tree(tmp_path, "disk/x.jpg", "train/c/x.jpg")
    (tmp_path / "train" / "a").symlink_to(tmp_path / "disk")
    (tmp_path / "train" / "c" / "y.jpg").symlink_to(tmp_path / "disk" / "x.jpg")
    assert everything(open_source(tmp_path / "train")) == [("a", jpeg(1)), ("c", jpeg(1)), ("c", jpeg(1))]
    before = open_source(tmp_path / "train").fingerprint()
    assert open_source(tmp_path / "train").fingerprint() == before
    with (tmp_path / "train" / "c" / "x.jpg").open("ab") as file:
        file.write(b"\0")
    assert open_source(tmp_path / "train").fingerprint() != before


def test_a_class_list_gives_folders_their_labels_and_may_name_classes_without_images(tmp_path):
    src = tree(tmp_path / "val", **{f"{name}/{i}.jpg": jpeg(i) for i, name in enumerate(("cat", "ant", "dog"))})
    (src / "eel").mkdir()
    names = tmp_path / "names.txt"
    names.write_text("\ufeffdog\n\n eel\nbee \ncat\nant\n../val/cat\n", encoding="utf-8")
    source = open_source(src, classes=str(names))
    assert source.classes == ("dog", "eel", "bee", "cat", "ant", "../val/cat") and source.labels.tolist() == [0, 3, 4]
    assert everything(source) == [("dog", jpeg(2)), ("cat", jpeg(0)), ("ant", jpeg(1))]
    assert source.fingerprint() != open_source(tree(src, "eel/x.jpg")).fingerprint()
    (src / "eel" / "x.jpg").unlink()
    packed = pack(src, tmp_path / "val.beton", classes=str(names), workers=1)
    assert packed.classes == source.classes and read_beton(packed.path)[2].tolist() == [0, 3, 4]
    again = open_source(src, classes=str(packed.path))
    assert again.classes == source.classes and again.labels.tolist() == [0, 3, 4]
    for text, message in (
        ("dog\nants\neel", r"3 classes, but not the class of folder '.*val/ant' \(did you mean ants.\) and 1 more"),
        ("dog\neel\ncat\nant\ndog", "lists class 'dog' 2 times"),
        ("\n \n", "has no classes. Pass --classes"),
    ):
        names.write_text(text)
        refused(src, classes=str(names), match=message)
    refused(src, classes=str(src), match="--classes is not a readable text file or .beton: .*Is a directory")
    refused(src, classes=str(tmp_path / "none.beton"), match="none.beton. must be a .beton file, but does not exist")


def test_without_labels_all_images_of_a_folder_are_listed_in_the_order_of_their_paths(tmp_path, caplog):
    src = tree(tmp_path / "x", "b.jpg", "a/deep/c.png", "a/z.jpg", ".hidden/d.jpg", "a/.e.jpg", **{"a/notes.txt": b"x"})
    source = open_source(src, labels="none")
    assert [os.path.relpath(name, src) for name in source.names] == ["b.jpg", "a/z.jpg", "a/deep/c.png"]
    assert source.classes == () and source.labels.tolist() == [0, 0, 0] and source.read(2) == jpeg(1)
    assert source.sizes.tolist() == [len(jpeg(1))] * 3 and "1 files without an image's ending" in caplog.text
    assert source.fingerprint() != open_source(tree(tmp_path / "y", "b.jpg"), labels="none").fingerprint()
    (src / "loop").symlink_to(src / "a")
    refused(src, labels="none", match="is a link to the folder")
    (tmp_path / "hollow").mkdir()
    for name in ("hollow", "x/b.jpg"):
        refused(tmp_path / name, labels="none", match="no images .* at any depth in")
    refused(src, labels="none", classes="names", match="--classes does not apply to --labels none")
    refused(src, labels="none", split="train", match="--split does not apply to --labels none")
