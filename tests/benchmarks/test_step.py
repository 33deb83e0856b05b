"""The step benchmark at toy size: every variant with the real engines, and the rows it writes."""

import itertools
import json
import re
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch._dynamo.exc import BackendCompilerFailed

from benchmarks import gpu, step, step_rounds
from benchmarks.step import parse
from benchmarks.step_rounds import PARTS, Timed, time_parts
from benchmarks.step_variants import VARIANTS, build_pair, make_micro_batch, run_static
from tests.conftest import ROOT, finish_ranks, run_command, start_ranks
from vitkd_ds.recipes import build_run

pytestmark = pytest.mark.slow

KEYS = {"pair", "variant", "micro_batch", "images_per_s", "ratio", "peak_gib", "tflops", "mfu"}


class Device:
    """A fake device that processes a queue while Python continues; it shares one clock with Python."""

    def __init__(self):
        self.now = self.is_free_at = 0.0

    def launch(self, *, python, device):
        self.now += python
        self.is_free_at = max(self.is_free_at, self.now) + device

    def wait(self):
        self.now = max(self.now, self.is_free_at)


def test_host_time_is_pythons_own_time_without_waits_of_the_update(monkeypatch):
    device = Device()
    monkeypatch.setattr(time, "perf_counter", lambda: device.now)
    monkeypatch.setattr(get_accelerator(), "synchronize", device.wait)

    def update():
        device.launch(python=4, device=20)
        device.wait()  # for the norm, as the engines do
        device.launch(python=5, device=100)

    variant = SimpleNamespace(
        teach=lambda batch: device.launch(python=1, device=100),
        forward=lambda batch, features: device.launch(python=2, device=100),
        backward=lambda total: device.launch(python=3, device=100),
        update=update,
    )
    timed = Timed("toy", variant, resting_bytes=0, first_total=0.0)
    time_parts(timed, None, steps=2)
    norm = 20
    assert timed.parts_ms["host"] == 1e3 * (1 + 2 + 3 + 4 + norm + 5)
    assert [timed.parts_ms[part] for part in PARTS] == [101e3, 102e3, 103e3, 129e3]


def test_all_variants_do_the_same_work_on_images_laid_out_like_the_loaders():
    assert build_run("deit_base_from_deit3_large").optim.ema_decay > 0
    pair = build_pair("base", ds_config="ds_configs/zero2.json", debug=True)
    assert pair.run.optim.ema_decay == 0, "the plain loops keep no average"
    images_BCHW = make_micro_batch(pair, 2, torch.device("cpu")).images_BCHW
    assert images_BCHW.is_contiguous(memory_format=torch.channels_last)


def test_a_symbolic_size_is_rejected():
    double = torch.compile(lambda x: 2 * x, backend=run_static)
    assert double(torch.ones(2)).tolist() == [2, 2]
    with pytest.raises(BackendCompilerFailed, match="a graph has dynamic sizes: s"):
        double(torch.ones(3))


def test_tuned_kernels_come_last_and_in_a_cell_of_their_own(tmp_path):
    parts = gpu.parts(tmp_path, debug=False)
    tuned = [name for name, words in parts.items() if "max-autotune" in words]
    assert tuned == [list(parts)[-1]] and not {"fp8", "reduce-overhead"} & set(parts[tuned[0]])


def test_under_a_launcher_there_must_be_one_pair_and_one_micro_batch(monkeypatch, capsys):
    given = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["step.py", "--pairs", "tiny", "--micro_batches", "64", "128"])
    with pytest.raises(SystemExit):
        parse()
    assert "got --pairs tiny and --micro_batches 64 128" in capsys.readouterr().err


def run_cell(monkeypatch, tmp_path, *, broken="", stop=None):
    """Measure the variants a, b and c, whose loops are replaced. Return the written rows and the failures.

    Args:
        broken: variant that cannot be built.
        stop: variant during whose building the process is killed.
    """
    rows = tmp_path / "rows.json"
    args = SimpleNamespace(
        variants=["a", "b", "c"], repeats=2, steps=1, warmup=0, json=rows, worker=None, pairs=["tiny"],
        micro_batches=[2], debug=True, ds_config="ds_configs/zero2.json",
    )  # fmt: skip

    def build(name, pair, batch, args, device):
        if name == stop:
            raise KeyboardInterrupt
        if name == broken:
            raise RuntimeError("no kernel")
        return Timed(name, None, resting_bytes=0, first_total=5.0)

    def time_toy(timed, batch, steps, device):
        timed.images_per_s.append(3.0)

    monkeypatch.setattr(step_rounds, "prepare", build)
    monkeypatch.setattr(step_rounds, "time_round", time_toy)
    monkeypatch.setattr(step_rounds, "time_parts", lambda *args: None)
    monkeypatch.setattr(step_rounds, "make_micro_batch", lambda *args: None)
    monkeypatch.setattr(step, "generate_no_code", lambda: None)
    monkeypatch.setattr(step.processes, "start_processes", lambda: torch.device("cpu"))
    monkeypatch.setattr(step.torch, "set_num_threads", lambda number: None)
    toy = SimpleNamespace(name="tiny", image_flops=1)
    monkeypatch.setattr(step, "build_pair", lambda *args, **options: toy)
    with suppress(KeyboardInterrupt):
        cell = step.measure_cell(args)
        return [row["variant"] for row in json.loads(rows.read_text())], cell
    return [row["variant"] for row in json.loads(rows.read_text())], None


def test_a_process_that_is_killed_while_it_builds_a_variant_has_written_the_rows_of_those_before(monkeypatch, tmp_path):
    assert run_cell(monkeypatch, tmp_path, stop="c") == (["a", "b"], None)


def test_a_variant_that_fails_takes_down_no_other(monkeypatch, tmp_path):
    found, cell = run_cell(monkeypatch, tmp_path, broken="b")
    assert found == ["a", "c"] and cell["has_failed"]
    assert cell["lines"][-1].endswith("b FAILED: RuntimeError: no kernel")


def test_a_variant_that_does_not_fit_the_free_memory_is_skipped(monkeypatch):
    pair = build_pair("tiny", ds_config="ds_configs/zero2.json", debug=True)
    layout = step_rounds.Layout(1, 1, 64, 1, "replica")
    parts = step_rounds.memory_bytes(step_rounds.inputs_of(pair.run, step_rounds.HARDWARE["h100"]), layout)
    needed = sum(parts.values()) - parts["context and fragmentation"]
    free = {"bytes": needed}
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free["bytes"], 2**40))
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    assert step_rounds.too_large(pair, 64, torch.device("cuda")) == ""
    free["bytes"] = needed - 1
    assert "GiB are needed, and " in step_rounds.too_large(pair, 64, torch.device("cuda"))
    assert step_rounds.too_large(pair, 64, torch.device("cpu")) == ""


def rows_of_command(*words, rows):
    done = run_command(sys.executable, "benchmarks/step.py", "--debug", *words, "--json", rows, cwd=ROOT)
    return json.loads(rows.read_text()), done.stdout


def test_every_variant_is_timed(tmp_path):
    rows, text = rows_of_command("--pairs", "tiny", rows=tmp_path / "rows.json")
    assert [row["variant"] for row in rows] == list(VARIANTS)
    for row in rows:
        assert row.keys() == KEYS and row["pair"] == "tiny" and row["micro_batch"] == 4
        assert row["images_per_s"] > 0 and row["tflops"] > 0 and row["ratio"] > 0
        assert row["peak_gib"] is None and row["mfu"] is None, "a CPU has neither"
        assert (row["ratio"] == 1) == (row["variant"] == "compiled")
    assert all(line in text for line in ("teacher / forward / backward / update / host", "tiny     4 offload"))


@pytest.mark.long
def test_every_pair_is_timed_at_every_micro_batch_with_static_sizes(tmp_path):
    """With --debug symbolic sizes are an error; the engines and teachers are traced like the plain loop."""
    rows, text = rows_of_command("--micro_batches", "2", "4", rows=tmp_path / "rows.json")
    found = [(row["pair"], row["micro_batch"], row["variant"]) for row in rows]
    assert found == list(itertools.product(("tiny", "small", "base"), (2, 4), VARIANTS))
    assert text.count("pair   mb  variant") == 1


def test_on_two_ranks_only_the_engines_are_timed(tmp_path):
    rows = tmp_path / "rows.json"
    finish_ranks(start_ranks(2, "benchmarks/step.py", "--debug", "--pairs", "tiny", "--json", rows))
    assert [row["variant"] for row in json.loads(rows.read_text())] == ["replica", "shard", "offload"]


def test_deepspeed_and_an_update_make_few_calls_for_any_number_of_parameters():
    config = "ds_configs/zero2.json"
    done = run_command(sys.executable, "benchmarks/calls.py", "--debug", config, cwd=ROOT)
    counts = re.search(rf"{config}: backward (\d+) \(its own arithmetic (\d+)\), update (\d+);", done.stdout)
    backward, own, update = map(int, counts.groups())
    parameters = len(list(build_pair("tiny", ds_config=config, debug=True).distiller().parameters()))
    assert own > parameters, "at least one call computes each gradient"
    assert own < backward <= own + 2 * parameters + 20, "two calls per gradient: into the bucket, and into the fp32 sum"
    assert update < 100
    teachers = dict(re.findall(r"teacher, (\w+): (\d+)", done.stdout))
    assert int(teachers["shard"]) < int(teachers["replica"]) + 20, "the shard of a single rank is gathered again"
