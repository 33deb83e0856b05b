"""The benchmark scripts run at toy sizes; only the byte counts of real network interfaces are checked."""

import importlib.util
import json
import shutil
import sys
import time

import pytest

from benchmarks import gpu
from benchmarks.network import why_not
from tests.conftest import ROOT, run_command

pytestmark = pytest.mark.slow


def run_loader(folder, names):
    path = folder / "rows.json"
    words = ["--debug", "--workdir", folder / "work", "--rows", ",".join(names), "--json", path]
    done = run_command("python", ROOT / "benchmarks" / "loader.py", *words)
    return {row["name"]: row for row in json.loads(path.read_text())}, done.stdout


def test_the_first_rows_keep_their_names(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from loader_rows import ROWS

    assert list(ROWS)[:4] == ["ours-jpg500", "ffcv-jpg500", "pillow-originals", "turbojpeg-crop-limit"]


@pytest.mark.skipif(not shutil.which("g++"), reason="compiles crop_limit.cpp")
def test_the_loader_benchmark_runs_and_writes_its_rows(tmp_path):
    names = ["ours-jpg500", "turbojpeg-crop-limit"]
    if importlib.util.find_spec("torchvision"):
        names.insert(1, "pillow-originals")
    rows, text = run_loader(tmp_path, names)
    assert list(rows) == names
    assert all(row["images_per_cpu_s"] > 0 and row["wall_images_per_s"] > 0 for row in rows.values())
    assert rows["ours-jpg500"]["first_batch_s"] > 0 and rows["ours-jpg500"]["peak_rss_gib"] > 0
    assert "| turbojpeg-crop-limit |" in text and "ours-jpg500 after a cold start" in text


@pytest.mark.skipif(not importlib.util.find_spec("torchvision"), reason="torchvision and timm are the opponents")
def test_all_loaders_run_each_full_recipe(tmp_path):
    names = [f"ours-{name}-{recipe}" for name in ("jpg500", "raw") for recipe in ("randaugment-erasing", "3augment")]
    names += ["pillow-originals-randaugment", "pillow-originals-3augment", "tv2-originals-3augment"]
    rows, _ = run_loader(tmp_path, names)
    assert {name for name, row in rows.items() if row["images_per_cpu_s"] > 0} == set(names)


def test_an_unknown_row_is_rejected_with_the_existing_names():
    done = run_command("python", ROOT / "benchmarks" / "loader.py", "--debug", "--rows", "ours-png", check=False)
    assert done.returncode and "ours-jpg500" in done.stderr and "unknown names: ours-png" in done.stderr


def test_two_hosts_send_what_the_plan_predicts(tmp_path):
    if reason := why_not("tc", "taskset"):
        pytest.skip(f"SCALING NOT TESTED: {reason}")
    size = ["--debug", "--rounds=1", "--steps=2", "--ranks", "2", "--links", "1000"]
    done = run_command("python", "benchmarks/scaling.py", *size, "--json", tmp_path / "rows.json", cwd=ROOT)
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["ranks"] == 2 and row["step_s"] > 0 and row["compute_s"] > 0
    assert row["formula_bytes"] < row["sent_bytes"] < 1.1 * row["formula_bytes"], "more than headers and two numbers"
    assert "| 1000 | 2 |" in done.stdout


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_commands_of_make_gpu_run_at_toy_size(tmp_path):
    gpu = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--debug", "--out", tmp_path]
    run_command(*gpu, cwd=ROOT, timeout=800)  # 200 s on two free cores
    done = {part["part"]: part for part in json.loads((tmp_path / "rows.json").read_text())}
    assert {name: part["code"] for name, part in done.items()} == {"checks": 0, "step tiny": 0, "host": 0}
    checks = {row["check"]: row["passed"] for row in done["checks"]["rows"]}
    assert checks == dict.fromkeys(("veto", "loader", "offload", "step", "resume", "graphs"), True)
    hosts = {row["variant"]: row for row in done["host"]["rows"]}
    assert list(hosts) == ["eager", "compiled", "replica", "shard"] and hosts["compiled"]["ratio"] == 1
    keys = {"variant", "teacher_ms", "forward_ms", "backward_ms", "update_ms", "total_ms", "ratio"}
    assert all(set(row) == keys and row["total_ms"] > row["teacher_ms"] > 0 for row in hosts.values())
    lines = (tmp_path / "rows.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines] == ["eager", "compiled", "replica", "shard", "offload"]


def test_a_failed_or_late_part_is_reported_and_the_rest_still_runs(tmp_path):
    far = time.monotonic() + 60
    assert gpu.run("broken", ["-c", "raise SystemExit(3)"], tmp_path, deadline=far)["code"] == 3
    assert (
        gpu.run("slow", ["-c", "import time; time.sleep(30)"], tmp_path, deadline=time.monotonic() + 1)["code"] is None
    )
    rows = [
        {"pair": "tiny", "micro_batch": 64, "variant": variant, "images_per_s": speed, "ratio": ratio}
        for variant, speed, ratio in (("compiled", 100, 1.0), ("replica", 96, 0.96), ("shard", 95, 0.95))
    ]
    slow = [row | {"pair": "base", "images_per_s": row["images_per_s"] / (2 if row["variant"] == "shard" else 1),
                   "ratio": 1.3} for row in rows]  # fmt: skip
    said = gpu.judge(
        [{"part": "step tiny", "rows": rows}, {"part": "step base", "rows": slow}, {"part": "host", "rows": slow}]
    )
    assert [line.split(":")[0] for line in said] == ["MISSED", "reached", "reached", "MISSED"]
    assert "tiny, 64: a replica at 0.96 x" in said[0] and "base, 64: a shard takes 2.02 x" in said[3]
    assert gpu.run("late", ["-c", "print()"], tmp_path, deadline=time.monotonic())["code"] is None
    assert (tmp_path / "broken.txt").exists() and not (tmp_path / "late.txt").exists()


def test_one_part_runs_with_its_backend_and_keeps_the_rows_of_the_others(monkeypatch, tmp_path):
    calls = []

    def run(name, arguments, out, *, deadline):
        calls.append((name, arguments, round(deadline - time.monotonic())))
        return {"part": name, "code": 0, "seconds": 0.0, "rows": []}

    monkeypatch.setattr(gpu, "run", run)
    for only in ("checks", "host", "checks"):
        words = ["--only", only, "--minutes", "3", "--backend", "torchvision", "--debug", "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
        with pytest.raises(SystemExit) as ended:
            gpu.main()
        assert not ended.value.code
    assert [name for name, _, _ in calls] == ["checks", "host", "checks"] and {left for *_, left in calls} == {180}
    assert calls[0][1][1:3] == ["--backend", "torchvision"]
    assert [part["part"] for part in json.loads((tmp_path / "rows.json").read_text())] == ["host", "checks"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--debug", "--only", "chess"])
    with pytest.raises(SystemExit):
        gpu.main()
