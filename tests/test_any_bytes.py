"""Arbitrary bytes in a file or on the command line: the result is a value, or soon a ValueError that names it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.checkpoint.test_load import make
from tests.data.conftest import write_beton
from vitkd_ds.checkpoint import folder, lock, manifest
from vitkd_ds.commands.compare.runs import read_results
from vitkd_ds.commands.report.answers import read_answers
from vitkd_ds.config.options import apply_options
from vitkd_ds.config.run import as_dict
from vitkd_ds.config.run_folder import description_beside, model_of, newest, read_json, read_run
from vitkd_ds.data.beton.format import read_beton
from vitkd_ds.recipes import build_run
from vitkd_ds.train import introduction
from vitkd_ds.train.log import MetricsLog

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**30)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.text(max_size=8), inner, max_size=3), max_leaves=8)  # fmt: skip
DEEP = b"[" * 100_000
DIGITS = b"9" * 5000


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Any bytes; any JSON; this content with some bytes changed, removed or inserted."""

    @st.composite
    def changed(draw):
        first = draw(st.integers(0, len(content)))
        last = draw(st.integers(first, min(len(content), first + 40)))
        return content[:first] + draw(st.binary(max_size=40)) + content[last:]

    return st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()) | changed()


def with_another_value(tree: dict) -> st.SearchStrategy[dict]:
    """The JSON tree with one value replaced anywhere in it, or one key removed or added."""
    places = [[key] for key in tree]
    places += [[key, inner] for key, part in tree.items() if isinstance(part, dict) for inner in part]

    @st.composite
    def changed(draw):
        made = json.loads(json.dumps(tree))
        *parts, last = draw(st.sampled_from(places))
        place = made
        for part in parts:
            place = place[part]
        how = draw(st.sampled_from(["replaced", "left out", "put in"]))
        if how == "left out":
            del place[last]
        else:
            place[last if how == "replaced" else draw(st.text(max_size=8))] = draw(VALUES)
        return made

    return changed()


def must_name(file: Path, read, *words):
    """Read; any error must be a ValueError that names the file."""
    try:
        return read(*words)
    except ValueError as error:
        assert file.name in str(error), error


RUN = as_dict(build_run("demo"))
CONFIG = {"run": RUN, "plan": {"total_steps": 3, "steps_per_epoch": 7}, "world_size": 1, "images": {"train": 1}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("any")


@example(content=DEEP)
@example(content=DIGITS)
@given(content=damaged(json.dumps(CONFIG).encode()) | with_another_value(CONFIG).map(
    lambda tree: json.dumps(tree).encode()) | with_another_value(RUN).map(
    lambda tree: json.dumps(CONFIG | {"run": tree}).encode()))  # fmt: skip
def test_config_json(place, content):
    file = place / "config.json"
    file.write_bytes(content)
    run = replace(build_run("demo"), workdir=str(place))
    must_name(file, folder.check_settings, run, file)
    must_name(file, read_run, place)
    must_name(file, read_run, file)
    must_name(file, lambda: introduction._history(run, 10, 3))
    must_name(file, lambda: read_json(file, {"run.resume": str}))
    (place / "metrics.jsonl").write_text('{"step": 1, "val_num_images": 9, "val_top1": 1.0, "val_top5": 1.0}\n')
    must_name(file, read_results, [str(place)])


ANSWERS = {"step": 1, "classes": ["a", "b"], "image": [0, 7], "label": [0, 1], "student": [1, 1],
           "student_probability": [0.5, 1.0], "teacher": [0, 0], "teacher_probability": [0.5, 0.9]}  # fmt: skip


@example(content=DEEP)
@example(content=DIGITS)
@given(content=damaged(json.dumps(ANSWERS).encode()) | with_another_value(ANSWERS).map(
    lambda tree: json.dumps(tree).encode()))  # fmt: skip
def test_the_answers_of_an_evaluation(place, content):
    file = place / "predictions.json"
    file.write_bytes(content)
    if found := must_name(file, read_answers, place):
        assert found.confusion()[1].sum() == len(found.label)


@example(content=DEEP)
@given(content=damaged(b'{"model": "deit_tiny_patch16_224", "args": {}, "classes": ["a"]}'))
def test_the_description_beside_weights(place, content):
    file = place / "weights.json"
    file.write_bytes(content)
    found = must_name(file, description_beside, place / "weights.safetensors")
    if found is not None and isinstance(found.get("args", {}), dict):
        model_of(found)


def forged(tree: dict) -> bytes:
    """A manifest with a correct checksum of itself."""
    return json.dumps(tree | {"blake2b": manifest._checksum(tree)}).encode()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A whole checkpoint, and its manifest's content."""
    path = make(tmp_path_factory.mktemp("checkpoint"), 1)
    tree = json.loads((path / "manifest.json").read_text())
    del tree["blake2b"]
    return path, tree


@given(data=st.data())
def test_a_manifest(checkpoint, data):
    path, tree = checkpoint
    entry = next(iter(tree["files"]))
    others = with_another_value(tree) | with_another_value(tree["files"]).map(lambda files: tree | {"files": files})
    others |= with_another_value(tree["files"][entry]).map(lambda e: tree | {"files": tree["files"] | {entry: e}})
    content = data.draw(damaged(forged(tree)) | others.map(forged) | st.sampled_from([DEEP, DIGITS]))
    (path / "manifest.json").write_bytes(content)
    try:
        found = manifest.read_manifest(path)
    except ValueError as error:  # names the manifest, or a file that is missing or unlisted
        assert "manifest.json" in str(error) or str(error).endswith((" is missing", " is not listed in the manifest"))
        return
    assert isinstance(manifest.check_files(path, found), str) and found["train_state"]["step"] == 1


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A .beton, with the full content of the file and of its side file."""
    path = write_beton(tmp_path_factory.mktemp("packed"), 6)
    side = path.with_name("x.beton.json")
    return path, side, path.read_bytes(), side.read_bytes()


@given(data=st.data())
def test_a_side_file(packed, data):
    path, side, beton, content = packed
    path.write_bytes(beton)
    tree = json.loads(content)
    other = with_another_value(tree).map(lambda tree: json.dumps(tree).encode())
    side.write_bytes(data.draw(damaged(content) | other | st.sampled_from([DEEP, DIGITS])))
    must_name(path, read_beton, path)


@given(data=st.data())
def test_a_beton(packed, data):
    path, side, beton, content = packed
    side.write_bytes(content)
    path.write_bytes(data.draw(damaged(beton[:2300]).map(lambda head: head + beton[2300:]) | damaged(beton)))
    must_name(path, read_beton, path)


@example(content=DEEP)
@given(content=damaged(json.dumps(lock.RunLock(Path("x")).me).encode()))
def test_a_lock(place, content):
    (place / "lock").write_bytes(content)
    name, _, lives = lock.holder_of(place)
    assert name and lives in (True, False, None)


@given(content=damaged(b"step00000001\n"))
def test_a_pointer(place, content):
    (place / "latest").write_bytes(content)
    assert newest(place) == ""


@example(content=DEEP)
@given(content=damaged(b'{"step": 1, "total": 1.0}\n{"step": 2, "total": 1.0}\n'))
def test_metrics_jsonl(place, content):
    (place / "metrics.jsonl").write_bytes(content)
    MetricsLog(place, total_steps=3, resumed_step=2).close()
    for line in (place / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["step"] <= 2


KEYS = ["optim.lr", "seed", "compile", "debug", "data.crop_scale", "student.model_args", "losses.vitkd.blocks",
        "augment.rand_augment", "workdir", "epochs", "teacher.placement", "ds_config"]  # fmt: skip


@example(key="student.model_args", text=DEEP.decode())
@example(key="student.model_args", text='{"a": ' * 50_000)
@example(key="seed", text=DIGITS.decode())
@given(key=st.sampled_from(KEYS) | st.text(max_size=12), text=st.text(max_size=30) | VALUES.map(json.dumps))
def test_an_option(key, text):
    try:
        apply_options(build_run("demo"), {key: text})
    except ValueError as error:
        assert key in str(error) or key.rpartition(".")[2] in str(error), error
