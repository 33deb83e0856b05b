"""The prediction against cases computed by hand, its inputs against the table of results, and what it refuses."""

import re
from dataclasses import fields, replace

import pytest

from tests.conftest import ROOT
from vitkd_ds import cli
from vitkd_ds.hardware import HARDWARE, hardware_of
from vitkd_ds.measured import MEASURED, Rate
from vitkd_ds.plan import Inputs, Layout, bytes_per_step, images_per_s, link_bytes_per_s, memory_bytes, scaling
from vitkd_ds.plan import step_time as time_of
from vitkd_ds.plan_inputs import inputs_of
from vitkd_ds.plan_text import plan_text
from vitkd_ds.recipes import build_run

INPUTS = Inputs(
    teacher_s=1e-4, student_s=3e-4, loss_s=0.0, host_s=0.010, shard_host_s=0.002, flops=1e9, trained_params=10**8,
    teacher_params=2 * 10**8, gathers=10, activation_bytes=1e6, has_average=False, bucket_elements=5 * 10**7,
)  # fmt: skip
PARAMS = {"trained_params": INPUTS.trained_params, "teacher_params": INPUTS.teacher_params}
CARD = replace(HARDWARE["h100"], nvlink_gb_per_s=100, network_gb_per_s=10, pcie_gb_per_s=50)
"""70 % of 100, 10 and 50 GB/s; 30 us to start a collective."""


def test_one_gpu_by_hand():
    layout = Layout(nodes=1, gpus_per_node=1, micro_batch=100, accumulation=1, placement="replica")
    assert time_of(INPUTS, layout, CARD).total == pytest.approx(0.010 + 0.030 + 0.010)
    assert images_per_s(INPUTS, layout, CARD) == pytest.approx(2000)
    assert set(bytes_per_step(layout, **PARAMS).values()) == {0}
    accumulating = replace(layout, accumulation=4, placement="shard")
    assert time_of(INPUTS, accumulating, CARD).total == pytest.approx(4 * 0.052)


def test_two_gpus_of_a_node_by_hand():
    layout = Layout(nodes=1, gpus_per_node=2, micro_batch=100, accumulation=1, placement="replica")
    assert bytes_per_step(layout, **PARAMS) == {"gradients": 4e8, "weights": 1e8, "gathers": 0}
    time = time_of(INPUTS, layout, CARD)
    # 4e8 bytes at 70 GB/s in two buckets: 5.774 ms, less than the 20 ms of backward, so the last bucket is left.
    assert time.gradients == pytest.approx((4e8 / 70e9 + 2 * 30e-6) / 2)
    assert time.weights == pytest.approx(1e8 / 70e9 + 30e-6)
    assert time.gathers == 0
    assert images_per_s(INPUTS, layout, CARD) == pytest.approx(200 / (0.05 + 0.002887 + 0.0014586), rel=1e-4)


def test_two_nodes_of_four_by_hand():
    layout = Layout(nodes=2, gpus_per_node=4, micro_batch=10, accumulation=1, placement="shard")
    # The ring leaves a node through four cards of 10 GB/s; seven eighths of everything pass each GPU.
    assert link_bytes_per_s(CARD, nodes=2, gpus_per_node=4) == pytest.approx(28e9)
    sent = bytes_per_step(layout, **PARAMS)
    assert sent == {"gradients": 7e8, "weights": 1.75e8, "gathers": 3.5e8}
    time = time_of(INPUTS, layout, CARD)
    assert time.gradients == pytest.approx(7e8 / 28e9 + 60e-6 - 2 / 3 * 0.003)
    assert time.gathers == pytest.approx(3.5e8 / 28e9 + 300e-6 - 0.001)
    assert time.host == pytest.approx(0.012)
    within = time_of(INPUTS, replace(layout, placement="node"), CARD)
    assert bytes_per_step(replace(layout, placement="node"), **PARAMS)["gathers"] == pytest.approx(0.75 * 4e8)
    assert within.gathers == pytest.approx(0.75 * 4e8 / 70e9 + 300e-6 - 0.001)


def test_an_offloaded_teacher_comes_over_pcie_by_hand():
    layout = Layout(nodes=1, gpus_per_node=1, micro_batch=10, accumulation=1, placement="offload")
    assert time_of(INPUTS, layout, CARD).gathers == pytest.approx(4e8 / 35e9 - 0.001)


def test_memory_by_hand():
    layout = Layout(nodes=1, gpus_per_node=4, micro_batch=100, accumulation=1, placement="shard")
    found = list(memory_bytes(INPUTS, layout).values())
    assert found == [4e8, 16e8 / 4, 8 * 5e7, 4e8 / 4 + 2 * 4e7, 1e8, 1.5 * 2**30]
    alone = replace(layout, gpus_per_node=1)
    assert list(memory_bytes(replace(INPUTS, has_average=True), alone).values())[:4] == [4e8, 20e8, 6 * 5e7, 4e8]
    assert memory_bytes(INPUTS, replace(layout, placement="replica"))["teacher"] == 4e8


def test_it_stops_scaling_where_doubling_brings_too_little():
    layouts = [Layout(1, ranks, 128 // ranks, 1, "replica") for ranks in (1, 2, 4, 8)]
    quiet = replace(INPUTS, trained_params=10**5)
    speeds, stop = scaling(quiet, layouts, CARD)
    # 51.2 + 10, 25.6 + 10, 12.8 + 10, 6.4 + 10 ms, and next to no communication: 1.72, 1.56, 1.39 times as fast.
    assert speeds[0] == pytest.approx(128 / 0.0612, rel=1e-3)
    assert stop == 2
    assert scaling(quiet, layouts[:2], CARD)[1] is None


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


def test_the_measured_step_is_what_the_parts_add_up_to():
    run = replace(build_run("deit_tiny_from_deit3_small"), global_batch_size=256)
    layout = Layout(nodes=1, gpus_per_node=1, micro_batch=256, accumulation=1, placement="replica")
    assert images_per_s(inputs_of(run, HARDWARE["h100"]).inputs, layout, HARDWARE["h100"]) == pytest.approx(5342)


@pytest.mark.parametrize("recipe, trained", [
    # student + three aligners + two convolutions + mask token
    ("deit_tiny_from_deit3_small", 5_717_416 + 3 * (192 * 384 + 384) + 2 * (9 * 384**2 + 384) + 384),
    ("deit_base_from_deit3_large", 86_567_656 + 3 * (768 * 1024 + 1024) + 2 * (9 * 1024**2 + 1024) + 1024),
])  # fmt: skip
def test_parameters_are_those_of_student_and_losses(recipe, trained):
    assert inputs_of(build_run(recipe), HARDWARE["h100"]).inputs.trained_params == trained


def test_base_at_512_images_fits_an_80_gb_card_and_checkpointing_takes_less():
    run = replace(build_run("deit_base_from_deit3_large"), micro_batch_size_per_gpu=512)
    layout = Layout(nodes=1, gpus_per_node=1, micro_batch=512, accumulation=2, placement="shard")
    whole = sum(memory_bytes(inputs_of(run, HARDWARE["h100"]).inputs, layout).values())
    run = replace(run, student=replace(run.student, checkpoint_activations=True))
    less = sum(memory_bytes(inputs_of(run, HARDWARE["h100"]).inputs, layout).values())
    assert less < whole < 0.9 * HARDWARE["h100"].memory_gib * 2**30


def test_the_command_prints_every_section_and_a_source_for_every_input(capsys):
    cli.plan(recipe="deit_base_from_deit3_large", nodes="4", gpus="8")
    text = capsys.readouterr().out
    for section in ("speed", "memory per GPU", "per node", "more GPUs", "the teacher's placement", "inputs"):
        assert re.search(rf"^{section}", text, re.M), section
    assert "it stops scaling at" in text and "zero_hpz_partition_size" in text
    for line in text[text.index("\ninputs\n") + 8 :].splitlines():
        assert re.search("measured, row|assumed|counted|data sheet", line), line


def test_fields_of_the_run_can_be_set(capsys):
    flags = {"recipe": "deit_tiny_from_deit3_small", "nodes": "1", "gpus": "1"}
    cli.plan(**flags, **{"micro_batch_size_per_gpu": "64", "teacher.placement": "replica"})
    assert "64 images x 16 a GPU" in capsys.readouterr().out


@pytest.mark.parametrize("flags, message", [
    ({"hardware": "h10"}, "--hardware must be one of h100, h200, a100, found 'h10'"),
    ({"hardware": "a100"}, r"must have measured speeds \(h100\), found a100"),
    ({"nodes": "0"}, "--nodes and --gpus must be positive"),
    ({"nodes": "3"}, "global_batch_size must be a multiple of the number of ranks, found 1024 and 24"),
    ({"recipe": "demo"}, "plan needs a teacher that was measured at 224 pixels"),
    ({"node": "3"}, "--node is no option"),
    ({"gpus": "many"}, "--gpus must be a whole number"),
])  # fmt: skip
def test_what_cannot_be_predicted_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        cli.plan(**({"recipe": "deit_base_from_deit3_large"} | flags))


def test_a_recipe_must_be_named():
    with pytest.raises(ValueError, match="plan needs --recipe"):
        cli.plan()


@pytest.mark.parametrize("device, name", [
    ("NVIDIA H100 80GB HBM3", "h100"),
    ("NVIDIA H200", "h200"),
    ("NVIDIA A100-SXM4-80GB", "a100"),
])  # fmt: skip
def test_cards_are_known_by_their_drivers_names(device, name):
    assert hardware_of(device).name == name


@pytest.mark.parametrize("device", [
    "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA GH200 480GB", "NVIDIA GH200 144G HBM3e",
    "NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-40GB", "cpu",
])  # fmt: skip
def test_other_cards_of_a_name_are_not_taken_for_it(device):
    assert hardware_of(device) is None


def test_the_text_says_when_nothing_fits():
    run = replace(build_run("deit_base_from_deit3_large"), global_batch_size=4096, micro_batch_size_per_gpu=4096)
    text = plan_text(run, nodes=1, gpus=1)
    assert "DOES NOT FIT" in text and "checkpoint_activations" in text
