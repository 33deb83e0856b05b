"""Runs with teachers of other kinds: a convolutional network for logits, and tokens of a model with other classes."""

import json
import re
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import metrics_of, run_command, run_several
from vitkd_ds.models.build import DEMO_TEACHER


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, small_beton, demo_cache):
    """On two ranks: regnets as shard and replica, and the demo's teacher with a classifier for 7 classes."""
    place = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(0)
    save_file(timm.create_model("regnety_002", num_classes=10).state_dict(), place / "regnet.safetensors")
    state = load_file(DEMO_TEACHER)
    state |= {"head.weight": torch.zeros(7, 128), "head.bias": torch.zeros(7)}
    save_file(state, place / "seven.safetensors")
    base = ["--recipe=demo", "--debug", f"--data.train={small_beton}", f"--data.val={small_beton}", "--max_steps=3",
            "--global_batch_size=8", "--micro_batch_size_per_gpu=4"]  # fmt: skip
    regnet = [*base, "--teacher.model=regnety_002", f"--teacher.checkpoint={place / 'regnet.safetensors'}"]
    logits = [*regnet, "--losses.vitkd.weight=0"]
    commands = {
        "shard": [*logits, "--teacher.placement=shard"], "replica": [*logits, "--teacher.placement=replica"],
        "tokens": regnet,
        "seven": [*base, f"--teacher.checkpoint={place / 'seven.safetensors'}", "--losses.nkd.weight=0"],
        "seven_logits": [*base, f"--teacher.checkpoint={place / 'seven.safetensors'}"],
        "one": base,
        "two": [*base, f"--teachers.other.checkpoint={DEMO_TEACHER}", "--losses.nkd.teacher=other"],
    }  # fmt: skip
    options = [[*words, f"--workdir={place / name}"] for name, words in commands.items()]
    found = dict(zip(commands, run_several(2, place / "commands", options), strict=True))
    return place, {name: outcome | {"options": commands[name]} for name, outcome in found.items()}


def nkd_of(workdir):
    return [line["nkd"] for line in metrics_of(workdir) if "nkd" in line]


def test_two_copies_of_a_teacher_with_one_term_each_equal_one_with_both_bit_for_bit(outcomes):
    place, found = outcomes
    one, two = (metrics_of(place / name) for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two] and len(one) == 4
    computed = {"total", "ce", "nkd", "vitkd_mimic", "vitkd_generate", "grad_norm", "val_top1", "val_kl"}
    assert computed <= {key for line in one for key in line}
    for line, other in zip(one, two):
        assert all(line[key] == other[key] for key in computed & line.keys()), line["step"]
    assert two[-1]["val_agreement/other"] == two[-1]["val_agreement"]
    weights = [(place / name / "student.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    for name, key in (("one", "teacher"), ("two", "teachers")):
        config, described = (json.loads((place / name / file).read_text()) for file in ("config.json", "student.json"))
        assert {"teacher", "teachers"} & config["run"].keys() == {key} == {"teacher", "teachers"} & described.keys()
        assert {"teacher", "teachers"} & config["models"].keys() == {key}
    assert "teachers.other: top-1" in found["two"]["said"] and "teachers.other: deit3" in found["two"]["said"]


def test_a_convolutional_teacher_teaches_logits_as_a_shard_and_as_a_replica(outcomes):
    place, found = outcomes
    for name in ("shard", "replica"):
        assert found[name]["summary"]["agreement"] is not None
        assert re.search(r"teacher: regnety_002, 2.\d+ M parameters, [\d.]+ GFLOPs", found[name]["said"]), "no tokens"
        assert "replaces recipe demo's deit3_small_patch16_224" in found[name]["said"]
    shard, replica = (nkd_of(place / name) for name in ("shard", "replica"))
    assert len(shard) == 3 and replica == pytest.approx(shard, rel=1e-2)
    assert (
        "teacher.model must be a timm VisionTransformer or Eva, got regnety_002, a RegNet" in found["tokens"]["refused"]
    )
    assert "switch off the terms that compare blocks" in found["tokens"]["refused"]


@pytest.mark.slow
def test_a_compiled_convolutional_teacher_teaches_the_same(outcomes):
    place, found = outcomes
    compiled = [*found["shard"]["options"], "--compile", f"--workdir={place / 'compiled'}"]
    (outcome,) = run_several(2, place / "compile", [compiled])
    assert outcome["summary"]["agreement"] is not None
    assert nkd_of(place / "compiled") == pytest.approx(nkd_of(place / "shard"), rel=1e-2)


def test_a_teacher_used_only_for_tokens_may_have_other_classes_and_is_not_evaluated(outcomes):
    place, found = outcomes
    summary = found["seven"]["summary"]
    assert summary["teacher_top1"] is None is summary["agreement"] and summary["student_top1"] is not None
    assert "has 7 classes, but the data has 10: dropping its classifier" in found["seven"]["said"]
    assert {"vitkd_mimic", "vitkd_generate"} <= metrics_of(place / "seven")[0].keys()
    assert "of another shape: head.weight (7, 128) for (10, 128)" in found["seven_logits"]["refused"]
    done = run_command("vitkd-ds", "eval", place / "seven")
    assert "agreement" not in done.stdout and "it has no logits for these classes" in done.stderr


def test_eval_accepts_a_teachers_run_folder(outcomes):
    place, _ = outcomes
    words = ["vitkd-ds", "eval", place / "shard", "--teacher"]
    itself = run_command(*words, place / "shard").stdout.split()
    assert float(itself[itself.index("agreement") + 1]) == 100
    other = run_command(*words, place / "seven" / "latest").stdout.split()
    top1 = json.loads((place / "seven" / "summary.json").read_text())["student_top1"]
    assert float(other[other.index("teacher_top1") + 1]) == pytest.approx(top1, abs=0.01)
    shutil.copytree(place / "shard", place / "turned")
    described = json.loads((place / "turned" / "student.json").read_text())
    described["classes"] = described["classes"][::-1]
    (place / "turned" / "student.json").write_text(json.dumps(described))
    turned = run_command(*words, place / "turned")
    assert "its classes are different" in turned.stderr and "agreement" not in turned.stdout
