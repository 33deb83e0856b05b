"""WebDataset shards as sources of images: patterns, classes as numbers and as names, errors by shard and key."""

import io
import tarfile

import pytest

from tests.data.sources.test_sources import everything, jpeg, write_tar
from vitkd_ds.commands.pack import pack
from vitkd_ds.data.beton.format import check_beton, read_beton
from vitkd_ds.data.sources import Options, open_source

NONE = Options()


def write_shards(root, texts, *, per_shard=3):
    """Shards of samples whose classes are the texts; other members lie between."""
    root.mkdir()
    for first in range(0, len(texts), per_shard):
        members = []
        for i, text in enumerate(texts[first : first + per_shard], first):
            ending = ("jpg", "JPEG", "png", "webp")[i % 4]
            members += [(f"part/{i:04d}.json", b"{}"), (f"part/{i:04d}.cls", text.encode())]
            members += [(f"part/{i:04d}.{ending}", jpeg(i)), (f"part/{i:04d}.seg.png", b"mask")]
        write_tar(root / f"train-{first // per_shard:06d}.tar", members)
    return root


def test_folders_tars_and_patterns_give_their_shards(tmp_path):
    root = write_shards(tmp_path / "shards", ["1", "0", "2", "1\n", " 0", "2", "1"])
    whole = everything(open_source(root, NONE))
    assert whole == [(text, jpeg(i)) for i, text in enumerate("1021021")]
    for pattern, part in (
        ("train-*.tar", whole),
        ("train-{000000..000002}.tar", whole),
        ("{train,}-00000[012].tar", None),
        ("train-00000{2,0}.tar", whole[6:] + whole[:3]),
    ):
        if part is None:
            with pytest.raises(ValueError, match="must be tars that exist, found none at '.*/-00000"):
                open_source(root / pattern, NONE)
        else:
            assert everything(open_source(root / pattern, NONE)) == part
    assert everything(open_source(root / "train-000000.tar", NONE)) == whole[:3]
    source = open_source(root, NONE)
    assert (source.kind, source.classes) == ("WebDataset", ("0", "1", "2"))
    assert source.names[4] == "train-000001.tar/part/0004.jpg"


def test_names_and_a_class_list_give_the_labels(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\n\nant\nbee\n", encoding="utf-8")
    listed = Options(classes=str(tmp_path / "classes.txt"))
    names = write_shards(tmp_path / "names", ["dog", "ant", "cat"])
    assert open_source(names, NONE).classes == ("ant", "cat", "dog")
    assert open_source(names, listed).classes == ("cat", "dog", "ant", "bee")
    assert open_source(names, listed).labels.tolist() == [1, 2, 0]
    numbers = write_shards(tmp_path / "numbers", ["3", "0"])
    source = open_source(numbers, listed)
    assert source.labels.tolist() == [3, 0] and source.classes[3] == "bee"
    with pytest.raises(ValueError, match="every class number must occur, found none of 1 below 3: give --classes"):
        open_source(numbers, NONE)
    with pytest.raises(
        ValueError, match="every class must be one of 4, found '4' at 'train-000000.tar/part/0001.JPEG'"
    ):
        open_source(write_shards(tmp_path / "more", ["3", "4"]), listed)
    with pytest.raises(ValueError, match="must be a text file, found .*No such file"):
        open_source(names, Options(classes=str(tmp_path / "no")))
    (tmp_path / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(ValueError, match="must name each class once"):
        open_source(names, listed)


@pytest.mark.parametrize("members, message", [
    ([("0.jpg", jpeg(0))], "must hold 0.cls with the class of '0.jpg'"),
    ([("0.jpg", jpeg(0)), ("0.png", jpeg(0)), ("0.cls", b"1")], "found '0.jpg' and '0.png'"),
    ([("0.jpg", jpeg(0)), ("0.cls", b" \n")], "must hold 0.cls with the class of '0.jpg', found an empty one"),
    ([("0.txt", b"x")], "found none in"),
])  # fmt: skip
def test_shards_without_whole_samples_are_refused(tmp_path, members, message):
    with pytest.raises(ValueError, match=message):
        open_source(write_tar(tmp_path / "s.tar", members), NONE)


def test_cut_and_compressed_shards_are_refused_by_name(tmp_path):
    root = write_shards(tmp_path / "shards", ["0", "1", "0", "1"])
    second = root / "train-000001.tar"
    content = second.read_bytes()
    for damaged in (content[: len(content) // 3], content[:-10240] + b"x" * 600):
        second.write_bytes(damaged)
        with pytest.raises(ValueError, match="train-000001.tar' must"):
            open_source(root, NONE)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    second.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="train-000001.tar' must be a whole, uncompressed tar"):
        open_source(root, NONE)


def test_shards_are_packed_in_place(tmp_path):
    root = write_shards(tmp_path / "shards", [str(i % 3) for i in range(40)])
    info = pack(root / "train-{000000..000013}.tar", tmp_path / "x.beton", passthrough=True, workers=2)
    assert check_beton(info.path) == info and info.passthrough == 40
    assert read_beton(info.path)[2].tolist() == [i % 3 for i in range(40)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shards", "x.beton", "x.beton.json"]
