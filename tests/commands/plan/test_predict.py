"""Predictions against cases computed by hand, the printed page, and errors."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from vitkd_ds import cli
from vitkd_ds.commands.plan import predict
from vitkd_ds.commands.plan.hardware import HARDWARE, hardware_of
from vitkd_ds.commands.plan.inputs import TrainImages, inputs_of
from vitkd_ds.commands.plan.text import _per_node, _placement, _speed, plan_text
from vitkd_ds.recipes import build_run

INPUTS = predict.Inputs(
    teacher_s=1e-4,
    student_s=3e-4,
    loss_s=0.0,
    others_s=0.0,
    host_s=0.010,
    update_s=0.004,
    shard_host_s=0.002,
    flops=1e9,
    trained_params=10**8,
    student_params=9 * 10**7,
    teacher_params=2 * 10**8,
    gathers=10,
    gathered_params=5 * 10**7,
    offloaded_params=3 * 10**7,
    activation_bytes=1e6,
    image_bytes=2e5,
    is_compiled=False,
    state_bytes=8 * 10**8,
    bucket_elements=5 * 10**7,
)
PARAMS = {"trained_params": INPUTS.trained_params, "teacher_params": INPUTS.teacher_params}
CARD = replace(HARDWARE["h100"], nvlink_gb_per_s=100, network_gb_per_s=10, pcie_gb_per_s=50)
"""70 % of 100, 10 and 50 GB/s; 30 us to start a collective."""


def test_one_gpu_by_hand():
    layout = predict.Layout(nodes=1, gpus_per_node=1, micro_batch=100, accumulation=1, placement="replica")
    # Teacher 10 ms, student 30 ms, host 10 ms; update 4 ms.
    assert predict.images_per_s(INPUTS, layout, CARD) == pytest.approx(100 / 0.054)
    assert set(predict.bytes_per_step(layout, **PARAMS).values()) == {0}
    # Four times 10 + 30 + 10 + 2 ms for the shard's hooks; the update comes once a step.
    time = predict.step_parts(INPUTS, replace(layout, accumulation=4, placement="shard"), CARD)
    assert sum(time.values()) == pytest.approx(0.212)
    assert time["update"] == pytest.approx(0.004) and time["host"] == pytest.approx(0.048)
    # 4e8 bytes of an offloaded teacher at 35 GB/s: 11.43 ms, overlapping 1 ms of teacher compute.
    time = predict.step_parts(INPUTS, replace(layout, micro_batch=10, placement="offload"), CARD)
    assert time["gathers"] == pytest.approx(10.43e-3, rel=1e-3)


def test_the_output_gives_bytes_moved_from_cpu_memory_and_a_shortened_runs_duration(capsys):
    layout = predict.Layout(nodes=1, gpus_per_node=2, micro_batch=10, accumulation=3, placement="offload")
    assert predict.copied_bytes(layout, teacher_params=INPUTS.teacher_params) == 3 * 2e8
    assert predict.copied_bytes(replace(layout, placement="shard"), teacher_params=INPUTS.teacher_params) == 0
    own = {"micro_batch_size_per_gpu": "128", "teacher.placement": "offload", "max_steps": "100"}
    cli.plan(recipe="deit_base_from_deit3_large", nodes="1", gpus="8", **own)
    text = capsys.readouterr().out
    assert re.search(r"gathers .*of the teacher's weights: 533 MB per GPU, and 76 MB from CPU memory; time", text)
    step_ms, seconds = (float(re.search(rf"^  {what} +([\d.e-]+)", text, re.M)[1]) for what in ("step", "100 steps"))
    assert seconds == pytest.approx(100 * step_ms / 1e3, abs=0.5)


def test_two_gpus_on_a_node_by_hand_and_a_compiled_student_overlaps_nothing():
    layout = predict.Layout(nodes=1, gpus_per_node=2, micro_batch=100, accumulation=1, placement="replica")
    assert predict.bytes_per_step(layout, **PARAMS) == {"gradients": 4e8, "weights": 1e8, "gathers": 0}
    time = predict.step_parts(INPUTS, layout, CARD)
    # 4e8 bytes at 70 GB/s in two buckets: 5.714 + 0.06 ms. Backward takes 20 ms, so only the last bucket is exposed.
    assert time["gradients"] == pytest.approx(2.887e-3, rel=1e-3)
    assert time["weights"] == pytest.approx(1.4586e-3, rel=1e-4)
    assert time["gathers"] == 0
    assert predict.images_per_s(INPUTS, layout, CARD) == pytest.approx(200 / (0.054 + 0.002887 + 0.0014586), rel=1e-4)
    assert predict.step_parts(replace(INPUTS, is_compiled=True), layout, CARD)["gradients"] == pytest.approx(
        5.774e-3, rel=1e-3
    )


def test_each_micro_batch_sends_gradients_and_ranks_share_the_cpu_memory_link():
    layout = predict.Layout(nodes=1, gpus_per_node=2, micro_batch=100, accumulation=3, placement="replica")
    assert predict.bytes_per_step(layout, **PARAMS) == {"gradients": 12e8, "weights": 1e8, "gathers": 0}
    time = predict.step_parts(INPUTS, layout, CARD)
    assert time["gradients"] == pytest.approx(3 * 2.887e-3, rel=1e-3)
    # Each rank reads 2e8 bytes at 35 GB/s and gets as many from the other at 70: 5.714 + 2.857 + 0.3 ms, less 1 ms.
    one = replace(layout, micro_batch=10, accumulation=1, placement="offload")
    assert predict.step_parts(INPUTS, one, CARD)["gathers"] == pytest.approx(7.871e-3, rel=1e-3)


def test_two_nodes_of_four_by_hand():
    layout = predict.Layout(nodes=2, gpus_per_node=4, micro_batch=10, accumulation=1, placement="shard")
    # The ring leaves a node through four cards of 10 GB/s; seven eighths of all bytes pass through each GPU.
    assert predict.link_bytes_per_s(CARD, nodes=2, gpus_per_node=4) == pytest.approx(28e9)
    sent = predict.bytes_per_step(layout, **PARAMS)
    assert sent == {"gradients": 7e8, "weights": 1.75e8, "gathers": 3.5e8}
    time = predict.step_parts(INPUTS, layout, CARD)
    # 25 ms and two starts, partly hidden by 2 ms of backward; 12.5 ms and ten starts, overlapping 1 ms of teacher.
    assert time["gradients"] == pytest.approx(0.02306)
    assert time["gathers"] == pytest.approx(0.0118)
    assert time["host"] == pytest.approx(0.012)


def test_memory_by_hand():
    layout = predict.Layout(nodes=1, gpus_per_node=4, micro_batch=100, accumulation=1, placement="shard")
    found = predict.memory_bytes(INPUTS, layout)
    teacher = 1e8 + 1e8  # a quarter of 4e8 bytes, and the parameters gathered at a time
    assert list(found.values()) == [4e8, 4e8, 3.6e8, 4e8, teacher, 2e7, 1e8, 1.5 * 2**30]
    assert predict.memory_bytes(replace(INPUTS, is_compiled=True), layout)["gradient buckets"] == 3e8, (
        "there is no second bucket to fill"
    )
    small = predict.memory_bytes(replace(INPUTS, trained_params=10**6), layout)
    assert small["gradient buckets"] == 2e8 + 4e6, "two whole buckets, and a copy of all gradients to send"
    alone = predict.memory_bytes(replace(INPUTS, state_bytes=12 * 10**8), replace(layout, gpus_per_node=1))
    assert list(alone.values())[:5] == [4e8, 20e8, 3.6e8, 3e8, 4e8]
    assert predict.memory_bytes(INPUTS, replace(layout, placement="replica"))["teacher"] == 4e8
    assert predict.memory_bytes(INPUTS, replace(layout, placement="offload"))["teacher"] == 6e7 + 3e7 / 4


def test_base_at_512_images_fits_an_80_gb_card_and_checkpointing_takes_less():
    run, layout = build_run("deit_base_from_deit3_large"), predict.Layout(1, 1, 512, 2, "shard")
    checkpointed = replace(run, student=replace(run.student, checkpoint_activations=True))
    whole, less = (predict.memory_bytes(inputs_of(one, HARDWARE["h100"]), layout) for one in (run, checkpointed))
    assert sum(less.values()) < sum(whole.values()) < 0.9 * HARDWARE["h100"].memory_gib * 2**30


def test_the_command_prints_every_section_and_a_source_for_every_input(capsys):
    cli.plan(recipe="deit_base_from_deit3_large", nodes="4", gpus="8")
    text = capsys.readouterr().out
    for section in ("speed", "memory per GPU", "per node", "teacher placement", "inputs"):
        assert re.search(rf"^{section}", text, re.M), section
    assert "augmentation" in text
    for line in text[text.index("\ninputs\n") + 8 :].splitlines():
        assert re.search("measured, row|not measured|assumed|counted|data sheet", line), line


def test_an_unmeasured_gpu_counts_by_its_peak_and_a_7b_teacher_needs_offload_on_24_gb(capsys):
    cli.plan(recipe="deit_base_from_deit3_large", nodes="1", gpus="8", hardware="h100")
    cli.plan(recipe="deit_base_from_deit3_large", nodes="1", gpus="8", hardware="a100")
    ours, other = capsys.readouterr().out.split("a100: a prediction")
    losses = [float(re.search(r"^ +loss +([\d.]+) ms", text, re.M)[1]) for text in (ours, other)]
    assert losses[1] / losses[0] == pytest.approx(989.4 / 312, rel=0.01)
    teacher = re.search(r"^  teacher +[\d,]+ images/s +(.*)", other, re.M)[1]
    assert teacher.startswith("assumed: 40% of 312 TFLOP/s") and "row C3" not in other and "and on this GPU" in other
    cli.plan(recipe="vit_small_from_dinov3_7b", gpus="1", **{"micro_batch_size_per_gpu": "256"}, hardware="rtx4090")
    text = capsys.readouterr().out
    row = r"^  {} +[\d.,]+ ms +([\d.]+) GiB; needs a GPU with (\d+) GiB or more$"
    found = [re.search(row.format(placement), text, re.M).groups() for placement in ("replica", "offload")]
    replica, offload = (float(gib) for gib, _ in found)
    assert replica - offload == pytest.approx(12.51 - 2 * 0.313, abs=0.11) and "--teacher.placement=offload" in text
    for gib, (_, least) in zip((replica, offload), found):
        assert math.ceil((gib - 0.05) / 0.9) <= int(least) <= math.ceil((gib + 0.05) / 0.9)


def test_fields_of_the_run_can_be_set(capsys):
    own = {"micro_batch_size_per_gpu": "64", "teacher.placement": "replica"}
    cli.plan(recipe="deit_tiny_from_deit3_small", nodes="1", gpus="1", **own)
    assert "micro-batches of 64 images, 16 per GPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"hardware": "h10"}, r"^--hardware h10 is unknown: did you mean h100"),
        ({"hardware": "zzzz"}, r"^--hardware zzzz is unknown: valid names are a100, cpu, h100, h200, rtx4090$"),
        ({"nodes": "0"}, "--nodes and --gpus .per node. must be positive"),
        ({"nodes": "3"}, "global_batch_size must be a multiple of the number of ranks, got 1024 and 24"),
        ({"node": "3"}, "--node is not an option"),
        ({"gpus": "many"}, "--gpus must be a whole number"),
        ({"recipe": None}, "plan needs --recipe"),
        ({"ds_config": "fp32.json"}, "only bf16 students, but .*fp32.json sets fp32. Remove"),
    ],
)
def test_what_cannot_be_predicted_is_rejected(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("fp32.json").write_text('{"bf16": {"enabled": false}, "zero_optimization": {"stage": 2}}')
    flags = {"recipe": "deit_base_from_deit3_large"} | flags
    with pytest.raises(ValueError, match=message):
        cli.plan(**{key: text for key, text in flags.items() if text})


def test_cards_are_recognised_by_driver_name_and_never_confused():
    known = {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H200": "h200",
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA GeForce RTX 4090": "rtx4090",
    }
    others = (
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA H200 NVL",
        "NVIDIA GH200 480GB",
        "NVIDIA GH200 144G HBM3e",
        "NVIDIA A100 80GB PCIe",
        "NVIDIA A100-SXM4-40GB",
        "cpu",
    )
    for device in (*known, *others):
        assert hardware_of(device) is HARDWARE.get(known.get(device)), device


def test_rates_and_memory_match_the_data_sheets():
    def rates(name):
        kind = HARDWARE[name]
        return kind.memory_gib, kind.nvlink_gb_per_s, kind.network_gb_per_s, kind.pcie_gb_per_s, kind.peak_tflops

    # NVLink 900 GB/s in both directions and a 400 Gb/s port; 600 and 200; none, 25 Gb/s. PCIe 5.0 and 4.0, 16 lanes.
    assert rates("h100") == (79.1, 900 / 2, 400 / 8, 64, 989.4)
    assert rates("h200") == (139.8, 900 / 2, 400 / 8, 64, 989.4)
    assert rates("a100") == (79.1, 600 / 2, 200 / 8, 32, 312)
    assert rates("rtx4090") == (23.5, 32, round(25 / 8, 1), 32, 165.2)
    assert [kind.is_measured for kind in HARDWARE.values()] == [True, False, False, False]


@pytest.mark.parametrize(
    "size, text", [(10_499_999_999, "10"), (10_500_000_001, "11"), (9_949_999_999, "9.9"), (9_950_000_001, "10")]
)
def test_a_node_reads_and_decodes_its_share_of_the_images_per_second(size, text):
    layout = predict.Layout(nodes=2, gpus_per_node=2, micro_batch=100, accumulation=1, placement="replica")
    images = TrainImages(num_images=2, bytes_per_image=size / 2, name="", bytes_source="")
    per_s = predict.images_per_s(INPUTS, layout, CARD) / 2
    cores = per_s / 1548
    lines = _per_node(INPUTS, layout, CARD, images).splitlines()
    loader, disk = (re.split(" {2,}", line.strip()) for line in lines[1:])
    assert loader == ["loader cores", f"{cores:.0f}", f"{cores / 2:.1f} per GPU"]
    about = f"until the file ({text} GB) is cached in memory"
    assert disk == ["disk", f"{per_s * size / 2 / 1e6:,.0f} MB/s", about]


def rows_of(section):
    """The cells of a section's rows, keyed by the first cell."""
    lines = [line for line in section.splitlines() if line.startswith("  ")]
    return {cells[0]: cells[1:] for cells in (re.split(" {2,}", line.strip()) for line in lines)}


@pytest.mark.parametrize(
    "own, length",
    [
        ({"epochs": 100.0}, ("100 epochs", "1.2 h")),
        ({"epochs": 60.0}, ("60 epochs", "42 min")),
        ({"epochs": 900.0}, ("900 epochs", "10.5 h")),
        ({"epochs": 100.0, "max_steps": 72_000}, ("100 epochs", "1.2 h")),
        ({"epochs": 100.0, "max_steps": 12_000}, ("12,000 steps", "12 min")),
        ({"epochs": 100.0, "max_steps": 100}, ("100 steps", "6 s")),
    ],
)
def test_speed_and_length_by_hand(own, length):
    run = replace(build_run("deit_base_from_deit3_large"), global_batch_size=200, **own)
    layout = predict.Layout(nodes=1, gpus_per_node=2, micro_batch=100, accumulation=1, placement="replica")
    images = TrainImages(num_images=143_999, bytes_per_image=1.0, name="", bytes_source="")
    rows = rows_of(_speed(run, INPUTS, layout, CARD, images))
    # 58.35 ms a step, as above; 719 steps an epoch. A GPU computes 1714 x 1e9 operations a second.
    assert rows["images/s"] == ["3,428", "1,714 per GPU"]
    assert rows["step"] == ["58.3 ms", "micro-batches of 100 images, 1 per GPU"]
    assert rows["TFLOP/s per GPU"] == ["2", "MFU 0.2%, peak 989.4 TFLOP/s"]
    about = "719 steps of 200 images per epoch; without evaluations and checkpoints"
    assert rows[length[0]] == [length[1], about] and len(rows) == 12


def test_the_fastest_placement_that_fits_is_recommended_with_the_cost_of_a_shard():
    layout = predict.Layout(nodes=1, gpus_per_node=4, micro_batch=100, accumulation=1, placement="shard")
    parts = {name: predict.memory_bytes(INPUTS, replace(layout, placement=name)) for name in ("replica", "shard")}
    replica, shard = (sum(of_one.values()) / 2**30 for of_one in parts.values())
    # At most 0.9 of a card is used; a shard takes 0.2 GiB less than a replica and slightly more than an offload.
    for memory_gib, best in (
        (replica / 0.899, "replica"),
        (replica / 0.901, "shard"),
        (shard / 0.901, "offload"),
        (2, ""),
    ):
        text = _placement(INPUTS, layout, replace(CARD, memory_gib=memory_gib))
        assert re.findall(r"--teacher.placement=(\w+) is the fastest that fits", text) == ([best] if best else [])
        assert ("no placement fits" in text) is not bool(best)
    *_, advice = _placement(INPUTS, layout, CARD).splitlines()
    assert advice.endswith("a shard changes the step time by +4.1% and the memory by -0.2 GiB.")


def test_the_text_says_when_nothing_fits():
    run = replace(build_run("deit_base_from_deit3_large"), global_batch_size=4096, micro_batch_size_per_gpu=4096)
    text = plan_text(run, nodes=1, gpus=1)
    assert "DOES NOT FIT" in text and "checkpoint_activations" in text
