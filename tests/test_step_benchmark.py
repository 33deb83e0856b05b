"""The benchmark of the step, at toy size: every variant with the real engines, and the rows it writes."""

import json
import re
import sys

from tests.conftest import ROOT, finish_ranks, run_command, start_ranks

KEYS = {"pair", "variant", "micro_batch", "images_per_s", "ratio", "peak_gib", "tflops", "mfu"}


def test_every_variant_of_every_pair_is_timed(tmp_path):
    done = run_command(sys.executable, "benchmarks/step.py", "--debug", "--json", tmp_path / "rows.json", cwd=ROOT)
    rows = json.loads((tmp_path / "rows.json").read_text())
    found = [(row["pair"], row["variant"]) for row in rows]
    variants = ("eager", "compiled", "replica", "shard", "offload")
    assert found == [(pair, variant) for pair in ("tiny", "small", "base") for variant in variants]
    for row in rows:
        assert row.keys() == KEYS and row["micro_batch"] == 4
        assert row["images_per_s"] > 0 and row["tflops"] > 0 and row["ratio"] > 0
        assert row["peak_gib"] is None and row["mfu"] is None, "a CPU has neither"
        assert (row["ratio"] == 1) == (row["variant"] == "compiled")
    assert all(line in done.stdout for line in ("teacher / forward / backward / update / host", "base     4 offload"))


def test_on_two_ranks_the_engines_alone_are_timed(tmp_path):
    rows = tmp_path / "rows.json"
    finish_ranks(start_ranks(2, "benchmarks/step.py", "--debug", "--pairs", "tiny", "--json", rows))
    assert [row["variant"] for row in json.loads(rows.read_text())] == ["replica", "shard", "offload"]


def test_an_update_takes_few_kernels_whatever_the_number_of_parameters():
    config = "ds_configs/zero2.json"
    done = run_command(sys.executable, "benchmarks/kernels.py", "--debug", config, cwd=ROOT)
    counts = done.stdout.split(f"{config}: backward ")[1].split(";")[0].split(", update ")
    assert int(counts[1]) < 100 and int(counts[0]) < 300
    teachers = dict(re.findall(r"teacher, (\w+): (\d+)", done.stdout))
    assert int(teachers["shard"]) < int(teachers["replica"]) + 20, "a shard of one rank is gathered again"
