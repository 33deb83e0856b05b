"""A replica teacher in fp8: torchao's own arithmetic, run on a CPU with its GPU check bypassed."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import finish_ranks, run_command, start_ranks
from tests.engine.tiny import make_models
from vitkd_ds.engine.teacher import quantize_blocks

DEMO = ["--recipe=demo", "--debug", "--teacher.placement=replica", "--micro_batch_size_per_gpu=48", "--max_steps=2"]


def without_check():
    """Let torchao compute in fp8 without a suitable GPU."""
    import torchao.quantization.quant_api

    torchao.quantization.quant_api._check_hardware_support = lambda granularity: None


def test_only_the_blocks_linear_layers_are_in_fp8_and_the_outputs_change_little(monkeypatch):
    import torchao.quantization.quant_api

    monkeypatch.setattr(torchao.quantization.quant_api, "_check_hardware_support", lambda granularity: None)
    plain, model = (make_models()[1].bfloat16() for _ in range(2))
    quantize_blocks(model)
    kinds = {name: type(p.data).__name__ for name, p in model.named_parameters()}
    in_fp8 = {name for name, kind in kinds.items() if kind == "Float8Tensor"}
    assert in_fp8 == {
        f"blocks.{i}.{layer}.weight" for i in range(3) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    weight = plain.blocks[0].mlp.fc1.weight.float()
    rounded = model.blocks[0].mlp.fc1.weight.dequantize().float()
    assert 0 < ((weight - rounded).norm() / weight.norm()).item() < 0.05, "e4m3 has four significant bits"
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        change = (model.forward_features(images) - plain.forward_features(images)).float().norm()
        assert 0 < change / plain.forward_features(images).float().norm() < 0.1


def test_unsupported_fp8_settings_are_reported(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="needs a model with blocks, got Linear"):
        quantize_blocks(torch.nn.Linear(2, 2))
    done = run_command("python", "train.py", *DEMO, "--teacher.fp8", f"--workdir={tmp_path / 'cpu'}", check=False)
    assert done.returncode == 2 and "teacher.fp8 does not work on this device: " in done.stderr
    assert not list((tmp_path / "cpu").glob("checkpoints/*"))
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ValueError, match=r"needs torchao.*pip install 'vitkd_ds\[fp8\]'"):
        quantize_blocks(make_models()[1])


def test_a_run_logs_the_change_in_outputs_and_learns_from_the_fp8_teacher(tmp_path, demo_cache):
    finish_ranks(start_ranks(1, "-m", __name__, tmp_path), timeout=200)
    seen = json.loads((tmp_path / "seen.json").read_text())
    change, same = map(
        float, re.search(r"outputs change by ([\d.]+) % .* and ([\d.]+) % of 48 answers", seen["said"]).groups()
    )
    assert 0.1 < change < 10 and same > 80
    assert seen["fp8"] != seen["bf16"] and seen["fp8"] == pytest.approx(seen["bf16"], rel=0.05)


def main(folder):
    import logging

    from vitkd_ds.cli import parse_run
    from vitkd_ds.train.loop import train

    without_check()
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    seen = {}
    for name in ("bf16", "fp8"):
        flags = [*DEMO, f"--workdir={folder / name}", f"--teacher.fp8={name == 'fp8'}"]
        run = parse_run((), dict(flag[2:].split("=") if "=" in flag else (flag[2:], "true") for flag in flags))
        logging.getLogger("vitkd_ds").addHandler(handler)
        logging.getLogger("vitkd_ds").setLevel(logging.INFO)
        train(run)
        lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        seen[name] = [line["nkd"] for line in lines if "nkd" in line]
    seen["said"] = next(said for said in records if "fp8" in said)
    (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
