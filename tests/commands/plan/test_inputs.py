"""What predictions start from: the table of results, the models' shapes, DeepSpeed's files."""

import json
import re
from dataclasses import fields, replace

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import ROOT
from vitkd_ds.commands.plan.hardware import HARDWARE
from vitkd_ds.commands.plan.inputs import inputs_of
from vitkd_ds.commands.plan.measured import MEASURED, Rate
from vitkd_ds.commands.plan.predict import Layout, images_per_s, memory_bytes
from vitkd_ds.commands.plan.text import plan_text
from vitkd_ds.engine.ds_config import TEACHER_FILES
from vitkd_ds.recipes import build_run


@pytest.mark.parametrize("rate", [
    rate
    for measured in MEASURED.values()
    for field in fields(measured)
    for value in [getattr(measured, field.name)]
    for rate in (value.values() if isinstance(value, dict) else [value])
    if isinstance(rate, Rate)
], ids=lambda rate: rate.row)  # fmt: skip
def test_every_measured_row_stands_in_the_table(rate):
    table = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    (line,) = re.findall(rf"^\| {rate.row} \|.*$", table, re.M)
    assert re.search(rf"\b{rate.images_per_s:,.0f}\b", line), line


def test_what_is_not_a_speed_stands_in_the_table_too():
    table = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    measured = MEASURED["h100"]
    assert f"{measured.step.row} {' / '.join(map(str, measured.step_parts_ms))}" in " ".join(table.split())
    assert measured.loader.row == "ours-jpg500"
    assert f"`ours-jpg500`, {measured.loader_bytes_per_image:,} bytes an image" in " ".join(table.split())


def test_the_measured_step_is_what_the_parts_add_up_to():
    run = replace(build_run("deit_tiny_from_deit3_small"), global_batch_size=256)
    layout = Layout(nodes=1, gpus_per_node=1, micro_batch=256, accumulation=1, placement="replica")
    inputs = inputs_of(run, HARDWARE["h100"]).inputs
    assert images_per_s(inputs, layout, HARDWARE["h100"]) == pytest.approx(5342)
    # 256 images: 47.92 ms of S6, less 8.86 of C1, 19.69 of C4, 2.42 of C7 and 10.1 of the update.
    assert inputs.host_s == pytest.approx(6.86e-3, rel=2e-3) and inputs.update_s == pytest.approx(10.1e-3)


def test_the_predictions_in_the_table_are_what_plan_says():
    table = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    speeds, memory = [], []
    for pair, images in {
        "tiny_from_deit3_small": 256,
        "small_from_deit3_base": 256,
        "base_from_deit3_large": 128,
    }.items():
        layout = Layout(nodes=1, gpus_per_node=1, micro_batch=images, accumulation=1, placement="replica")
        inputs = inputs_of(build_run(f"deit_{pair}"), HARDWARE["h100"]).inputs
        speeds.append(f"{images_per_s(inputs, layout, HARDWARE['h100']):,.0f}")
        memory.append(f"{sum(memory_bytes(inputs, layout).values()) / 2**30:.1f}")
    (line,) = re.findall(r"^\| S15 \|.*$", table, re.M)
    assert f"(predicted {', '.join(speeds)})" in line and f"(predicted {', '.join(memory)})" in line
    layout = replace(layout, micro_batch=512)
    (line,) = re.findall(r"^\| S16 \|.*$", table, re.M)
    assert f"(predicted {images_per_s(inputs, layout, HARDWARE['h100']):,.0f})" in line
    assert f"(predicted {sum(memory_bytes(inputs, layout).values()) / 2**30:.1f})" in line


def test_without_vitkd_there_is_no_loss_to_pay_for():
    run = build_run("deit_tiny_from_deit3_small")
    without = replace(run, losses=replace(run.losses, vitkd=replace(run.losses.vitkd, weight=0.0)))
    paid, unpaid = (inputs_of(one, HARDWARE["h100"]).inputs for one in (run, without))
    assert unpaid.loss_s == 0 < paid.loss_s
    assert unpaid.activation_bytes == 197 * 192 * 12 * 34, "the student's alone"
    assert unpaid.trained_params == 5_717_416
    assert unpaid.image_bytes == 1_354_752, "150,528 values: a byte, four, and two for each model"
    assert re.search("ViTKD loss +none +counted: its weight is 0", plan_text(without, nodes=1, gpus=8))


def test_the_gradients_of_a_compiled_student_all_come_after_its_last_product():
    model = timm.create_model(
        "deit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=8, depth=3, num_heads=1, num_classes=4
    )
    events = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: events.append("gradient"))

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket.__name__ in ("mm", "bmm", "convolution_backward"):
                events.append("product")
            return function(*args, **(kwargs or {}))

    before = {}
    for name, forward in {"eager": model, "compiled": torch.compile(model, backend="aot_eager")}.items():
        total = forward(torch.zeros(2, 3, 16, 16)).sum()
        events.clear()
        with Watch():
            total.backward()
        before[name] = events[: len(events) - events[::-1].index("product")].count("gradient")
    assert before["eager"] > 0.9 * len(list(model.parameters())) and before["compiled"] == 0


def test_compiling_decides_whether_reductions_are_hidden():
    run = build_run("deit_base_from_deit3_large")
    assert inputs_of(run, HARDWARE["h100"]).inputs.is_compiled
    assert re.search("reductions run beside +nothing", plan_text(run, nodes=1, gpus=8))
    eager = plan_text(replace(run, compile=False), nodes=1, gpus=8)
    assert re.search("reductions run beside +67% of student and loss", eager)


def test_a_shard_is_gathered_whole_where_deepspeeds_file_does_not_limit_it(tmp_path, monkeypatch):
    run = build_run("deit_base_from_deit3_large")
    teacher, block = 304_374_760, 12_598_272
    assert inputs_of(run, HARDWARE["h100"]).inputs.gathered_params == 3e7 > 2 * block, "with the files as shipped"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds_configs").mkdir()

    def gathered(**zero):
        for file in set(TEACHER_FILES.values()):
            (tmp_path / "ds_configs" / file).write_text(json.dumps({"zero_optimization": {"stage": 3} | zero}))
        return inputs_of(run, HARDWARE["h100"]).inputs.gathered_params

    assert gathered() == teacher, "eight times the default of 5e7 are more than it has"
    assert "saves no memory, as DeepSpeed gathers" in plan_text(run, nodes=1, gpus=8)
    assert "saves no memory on one GPU" in plan_text(run, nodes=1, gpus=1)
    assert gathered(stage3_prefetch_bucket_size=2e7) == 16e7
    assert gathered(stage3_max_live_parameters=3e7) == 3e7
    assert gathered(stage3_prefetch_bucket_size=0) == block
    assert "saves 0.5 GiB" in plan_text(run, nodes=1, gpus=8)


def test_disk_and_file_follow_from_bytes_and_images():
    text = plan_text(build_run("deit_base_from_deit3_large"), nodes=1, gpus=8)
    per_s = int(re.search("images/s +([0-9,]+)", text)[1].replace(",", ""))
    assert int(re.search(r"disk +([0-9,]+) MB/s +until the file is in memory \(74 GB", text)[1]) == pytest.approx(
        per_s * 0.057596, abs=1
    )
    assert "augmentation on the GPU" in text


@pytest.mark.parametrize("recipe, trained", [
    # student + three aligners + two convolutions + mask token
    ("deit_tiny_from_deit3_small", 5_717_416 + 3 * (192 * 384 + 384) + 2 * (9 * 384**2 + 384) + 384),
    ("deit_base_from_deit3_large", 86_567_656 + 3 * (768 * 1024 + 1024) + 2 * (9 * 1024**2 + 1024) + 1024),
])  # fmt: skip
def test_parameters_are_those_of_student_and_losses(recipe, trained):
    assert inputs_of(build_run(recipe), HARDWARE["h100"]).inputs.trained_params == trained
