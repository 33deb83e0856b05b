"""WebDataset tars as image sources: patterns, numeric and named classes, errors by tar and key."""

import gzip
import re

import pytest

from tests.commands.pack.test_pack import names_in
from tests.data.conftest import write_beton
from tests.data.sources.test_sources import everything, jpeg, refused, write_tar
from vitkd_ds.commands.pack import pack
from vitkd_ds.data.beton.format import check_beton, read_beton
from vitkd_ds.data.sources import open_source


def write_tars(root, texts, *, per_tar=3):
    """Tars of samples with these texts as classes; other members lie in between."""
    root.mkdir()
    for first in range(0, len(texts), per_tar):
        members = []
        for i, text in enumerate(texts[first : first + per_tar], first):
            ending = ("jpg", "JPEG", "png", "webp")[i % 4]
            members += [(f"part/{i:04d}.json", b"{}"), (f"part/{i:04d}.cls", text.encode())]
            members += [(f"part/{i:04d}.{ending}", jpeg(i)), (f"part/{i:04d}.seg.png", b"mask")]
        write_tar(root / f"train-{first // per_tar:06d}.tar", members)
    return root


def test_folders_tars_and_patterns_give_their_tars(tmp_path):
    root = write_tars(tmp_path / "tars", ["1", "0", "2", "1\n", " 0", "2", "1"])
    source = open_source(root)
    assert (source.kind, source.classes) == ("WebDataset", ("0", "1", "2"))
    assert source.names[4] == "train-000001.tar/part/0004.jpg"
    whole = everything(source)
    assert whole == [(text, jpeg(i)) for i, text in enumerate("1021021")]
    for pattern, part in (
        ("train-*.tar", whole),
        ("train-{000000..000002}.tar", whole),
        ("train-000000.tar", whole[:3]),
        ("train-00000{2,0}.tar", whole[6:] + whole[:3]),
    ):
        assert everything(open_source(root / pattern)) == part
    refused(root / "{train,}-00000[012].tar", match="no tar matches '.*/-00000")


@pytest.mark.timeout(20)
def test_a_range_of_millions_ends_at_the_first_missing_tar_and_names_no_tar_twice(tmp_path):
    root = write_tars(tmp_path / "tars", ["0", "1"], per_tar=1)
    missing = "train-000002.tar' of '.*train-{000000..99999999}.tar'. Check the name"
    refused(root / "train-{000000..99999999}.tar", match=missing)
    refused(root / "train-{000000..99999999}{,.gz}.tar", match="no tar matches '.*/train-000000.gz.tar'")
    twice = r"matches '.*/train-000000.tar' twice, by '.*' and '.*'. Change the pattern"
    for pattern in ("train-{000000,000000}.tar", "train-[0{0..99999999}]*.tar", "{train,tra*}-000000.tar"):
        refused(root / pattern, match=twice)


def test_names_and_a_class_list_give_the_labels(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\n\nant\nbee\n", encoding="utf-8")
    listed = {"classes": str(tmp_path / "classes.txt")}
    names = write_tars(tmp_path / "names", ["dog", "ant", "cat"])
    assert open_source(names).classes == ("ant", "cat", "dog")
    source = open_source(names, **listed)
    assert source.classes == ("cat", "dog", "ant", "bee") and source.labels.tolist() == [1, 2, 0]
    numbers = write_tars(tmp_path / "numbers", ["3", "0"])
    source = open_source(numbers, **listed)
    assert source.labels.tolist() == [3, 0] and source.classes[3] == "bee"
    place = "'train-000000.tar/part/0000.jpg'"
    refused(numbers, match=f"no image has class number 1, but image {place} has 3. .* pass --classes")
    more = write_tars(tmp_path / "more", ["3", "4"])
    refused(more, **listed, match="class '4' at 'train-000000.tar/part/0001.JPEG' is not one of the 4 classes")
    refused(names, classes=str(tmp_path / "no"), match="is not a readable text file or .beton: .*No such file")
    (tmp_path / "classes.txt").write_text("cat\ncat\n")
    refused(names, **listed, match="lists class 'cat' 2 times")
    train = write_beton(tmp_path / "beton", 4)
    pets = write_tars(tmp_path / "pets", ["b", "a", "b"])
    assert open_source(pets, classes=str(train)).labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "members, message",
    [
        ([("0.jpg", jpeg(0))], "needs a file 0.cls with the class of '0.jpg'"),
        ([("0.jpg", jpeg(0)), ("0.png", jpeg(0)), ("0.cls", b"1")], "has '0.jpg' and '0.png'"),
        ([("0.jpg", jpeg(0)), ("0.cls", b" \n")], "needs a file 0.cls with the class of '0.jpg', but has an empty one"),
        ([("0.txt", b"x")], "no images"),
        ([("0.jpg", jpeg(0)), ("0.cls", b"x" * 1001)], "'0.cls' in '.*s.tar' has 1001 bytes; the maximum .* is 1000"),
    ],
)
def test_tars_without_whole_samples_are_rejected(tmp_path, members, message):
    refused(write_tar(tmp_path / "s.tar", members), match=message)


@pytest.mark.parametrize("odd", ["-1", "3.0", "+2", "1e3", "nan"])
def test_one_invalid_class_number_does_not_turn_the_others_into_names(tmp_path, odd):
    root = write_tars(tmp_path / "tars", [str(i) for i in range(12)] + [odd])
    place = "'train-000004.tar/part/0012.jpg'"
    refused(root, match=f"1 of 13 classes are numbers, but not integers .* the first is {re.escape(odd)} at {place}")
    all_odd = write_tars(tmp_path / "odd", ["0.0", "10.0", "2.0"])
    refused(
        all_odd,
        match="3 of 3 classes are numbers, but not integers .* the first is 0.0 at 'train-000000.tar/part/0000.jpg'",
    )
    names = tmp_path / "names.txt"
    names.write_text("\n".join([*map(str, range(12)), odd]))
    assert open_source(root, classes=str(names)).labels.tolist() == list(range(13))


def test_numbers_after_a_byte_order_mark_are_numbers_and_very_long_names_stay_distinct(tmp_path):
    marked = write_tars(tmp_path / "marked", [f"\ufeff{i}" for i in range(11)])
    assert open_source(marked).labels.tolist() == list(range(11))
    long = write_tars(tmp_path / "long", ["x" * 999 + "b", "x" * 999 + "a"])
    assert open_source(long).labels.tolist() == [1, 0]


def test_numbers_among_names_are_names_with_a_warning(tmp_path, caplog):
    root = write_tars(tmp_path / "tars", ["10", "2", "a", "10", "b"])
    source = open_source(root)
    assert source.classes == ("10", "2", "a", "b") and source.labels.tolist() == [0, 1, 2, 0, 3]
    place = "'train-000000.tar/part/0002.png'"
    assert f"2 of 5 classes are not numbers, so all are used as names; the first is 'a' at {place}" in caplog.text
    caplog.clear()
    assert open_source(write_tars(tmp_path / "names", ["a", "1b", "c"])).classes == ("1b", "a", "c")
    assert not caplog.text


def test_samples_with_other_image_endings_are_counted_and_the_first_is_named(tmp_path, caplog):
    root = write_tars(tmp_path / "tars", ["0", "1", "0"])
    open_source(root)
    assert not caplog.text
    endings = ("image.jpg", "bmp", "tif", "gif", "ppm", "avif", "jpe")
    members = [(f"a/{i}.{name}", b"0") for i, ending in enumerate(endings) for name in ("cls", ending)]
    write_tar(root / "a.tar", [*members, ("b.cls", b"1"), ("c.json", b"{}"), ("._d.bmp", b"x")])
    assert len(open_source(root).labels) == 3
    counted = f"skipping 9 of 12 samples of {str(root)!r} without an image (jpg jpeg png webp); the first is"
    assert f"{counted} 'a.tar/a/0.image.jpg'" in caplog.text and len(caplog.records) == 2
    assert "skipping 1 hidden files; the first is 'a.tar/._d.bmp'" in caplog.text


def test_other_files_in_a_folder_of_tars_are_counted(tmp_path, caplog):
    root = write_tars(tmp_path / "tars", ["0", "1"], per_tar=1)
    (root / "train-000002.tar.gz").write_bytes(b"x")
    (root / "more").mkdir()
    assert len(open_source(root).labels) == 2
    found = f"skipping 2 files and folders without the ending .tar; the first is {str(root / 'more')!r}"
    assert [record.getMessage() for record in caplog.records] == [found]


def test_tars_are_packed_in_place_and_truncated_or_compressed_ones_rejected_by_name(tmp_path):
    root = write_tars(tmp_path / "tars", [str(i % 3) for i in range(40)])
    info = pack(root / "train-{000000..000013}.tar", tmp_path / "x.beton", passthrough=True, workers=2)
    assert check_beton(info.path) == info and info.passthrough == 40
    assert read_beton(info.path)[2].tolist() == [i % 3 for i in range(40)]
    assert names_in(tmp_path) == ["tars", "x.beton", "x.beton.json"]
    second = root / "train-000001.tar"
    content = second.read_bytes()
    for damaged, message in (
        (content[: len(content) // 3], "is (truncated|not a complete)"),
        (content[:-10240] + b"x" * 600, "is (truncated|not a complete)"),
        (gzip.compress(content), "is not a complete, uncompressed tar"),
    ):
        second.write_bytes(damaged)
        refused(root, match=f"train-000001.tar' {message}")


def test_a_class_number_of_hundreds_of_digits_is_rejected_before_allocating_a_class_list(tmp_path):
    number = "9" * 400
    root = write_tars(tmp_path / "tars", ["1", number, "0"])
    name = "'train-000000.tar/part/0001.JPEG'"
    number = r"9{40}\.\.\. \(400 characters\)'?"
    refused(root, match=f"no image has class number 2, but image {name} has {number}. .* pass --classes")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    refused(root, classes=str(tmp_path / "classes.txt"), match=f"class '{number} at {name}")
