"""Inputs of predictions: the table of results, the models' shapes, DeepSpeed's files."""

import json
import re
from dataclasses import replace

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import ROOT
from tests.data.conftest import write_images
from vitkd_ds.commands.pack import pack
from vitkd_ds.commands.plan import hardware as known
from vitkd_ds.commands.plan.hardware import HARDWARE
from vitkd_ds.commands.plan.inputs import _loss_rows, inputs_of
from vitkd_ds.commands.plan.predict import Layout, images_per_s, memory_bytes
from vitkd_ds.commands.plan.text import plan_text
from vitkd_ds.data.beton.format import read_tables
from vitkd_ds.engine.ds_config import TEACHER_FILES
from vitkd_ds.models.cost import forward_flops
from vitkd_ds.recipes import build_run

H100 = HARDWARE["h100"]
TABLE = (ROOT / "benchmarks" / "RESULTS.md").read_text()
PAIRS = {"tiny_from_deit3_small": 256, "small_from_deit3_base": 256, "base_from_deit3_large": 128}


def one_gpu(images):
    return Layout(nodes=1, gpus_per_node=1, micro_batch=images, accumulation=1, placement="replica")


RATES = [*known.TEACHERS.values(), *known.STUDENTS.values(), known.LOSS, known.STEP, known.REPLICA, known.SHARD]


@pytest.mark.parametrize("rate", [*RATES, known.LOADER], ids=lambda rate: rate.row)
def test_every_measured_row_is_in_the_table(rate):
    (line,) = re.findall(rf"^\| {rate.row} \|.*$", TABLE, re.M)
    assert re.search(rf"\b{rate.images_per_s:,.0f}\b", line), line


def test_measurements_other_than_speeds_are_in_the_table_too():
    text = " ".join(TABLE.split())
    assert f"{known.STEP.row} 10.1 / 8.2 / 23.6 / {known.UPDATE_MS}" in text
    assert f"`{known.LOADER.row}`, {known.LOADER_BYTES:,} bytes per image" in text


def test_the_fixed_time_left_with_flat_parameters_follows_from_the_host_rows():
    lines = [re.search(rf"^\| {row} \|.*$", TABLE, re.M)[0] for row in known.HOST_ROWS.split(", ")]
    times = [[float(ms) for ms in re.findall(r"\| (\d+\.\d\d)(?= \|)", line)[:4]] for line in lines]
    then, now = times[:3], times[3:]

    def added(plain, replica, shard):
        return replica[2] / plain[2] - 1, replica[3] / plain[3], (shard[0] - replica[0]) / plain[0]

    parts = [here / before for here, before in zip(added(*now), added(*then))]
    assert parts == pytest.approx([known.FLAT_BACKWARD, known.FLAT_UPDATE, known.FLAT_GATHERS])


def test_the_parts_add_up_to_the_measured_step():
    inputs = inputs_of(build_run("deit_tiny_from_deit3_small"), H100)
    # 256 images: 47.92 ms of S6, less 8.86 of C1, 19.69 of C4, 2.42 of C7 and 10.1 of the update. Flat parameters keep
    # this fraction of backward's extra time over the plain loop: (9.60 / 8.84 - 1) / (20.98 / 9.16 - 1).
    assert inputs.host_s == pytest.approx(6.86e-3 * 0.08597 / 1.29039, rel=2e-3)
    assert inputs.update_s == pytest.approx(10.1e-3 * (2.74 / 9.41) / (5.63 / 9.68))
    # S3 and S4, and the gathers: ((10.17 - 4.67) / 4.88) / ((18.76 - 5.32) / 5.07).
    assert inputs.shard_host_s == pytest.approx(256 * (1 / 3466 - 1 / 3577) * 1.12705 / 2.65089, rel=2e-3)
    before = replace(inputs, host_s=6.86e-3, update_s=10.1e-3)
    assert images_per_s(before, one_gpu(256), H100) == pytest.approx(5342, rel=1e-3)


def test_the_predictions_in_the_table_match_plan():
    speeds, memory, gflops = [], [], []
    for pair, images in PAIRS.items():
        inputs = inputs_of(build_run(f"deit_{pair}"), H100)
        gflops.append(f"{inputs.flops / 1e9:.1f}")
        for layout in (one_gpu(images), one_gpu(512)):
            speeds.append(f"{images_per_s(inputs, layout, H100):,.0f}")
            memory.append(f"{sum(memory_bytes(inputs, layout).values()) / 2**30:.1f}")
    assert f"{', '.join(gflops[:2])} and {gflops[2]} GFLOP per image" in TABLE
    (line,) = re.findall(r"^\| S15 \|.*$", TABLE, re.M)
    assert f"(predicted {', '.join(speeds[::2])})" in line and f"(predicted {', '.join(memory[::2])})" in line
    (line,) = re.findall(r"^\| S16 \|.*$", TABLE, re.M)
    assert f"(predicted {speeds[-1]})" in line and f"(predicted {memory[-1]})" in line


@pytest.mark.slow
def test_unmeasured_models_run_at_an_assumed_fraction_of_peak_at_their_own_size():
    run = build_run("deit_small_from_deit3_base")
    losses = replace(run.losses, vitkd=replace(run.losses.vitkd, weight=0), nkd=replace(run.losses.nkd, weight=0))
    losses = replace(losses, feature=replace(losses.feature, weight=1))
    large = replace(
        run,
        losses=losses,
        teachers={"teacher": replace(run.teachers["teacher"], model="vit_7b_patch16_dinov3.lvd1689m")},
    )
    inputs, larger = (
        inputs_of(each, H100)
        for each in (large, replace(large, teachers={"teacher": replace(large.teachers["teacher"], image_size=448)}))
    )
    # Two operations per parameter and token (201 tokens), and a few for attention.
    assert inputs.teacher_s == pytest.approx(2 * 6.716e9 * 201 / (0.4 * 989.4e12), rel=0.03)
    assert larger.teacher_s == pytest.approx(inputs.teacher_s * 789 / 201, rel=0.05)
    assert larger.student_s == inputs.student_s == 1 / 8800
    assert inputs.flops == pytest.approx(2 * 6.716e9 * 201 + 3 * 9.2e9, rel=0.03) and inputs.gathers == 41
    narrow = replace(large, student=replace(large.student, model_args={"embed_dim": 192, "num_heads": 3}))
    assert 4 / 8800 > inputs_of(narrow, H100).student_s != inputs.student_s
    text = plan_text(large, nodes=1, gpus=8)
    assert re.search(r"teacher +145 images/s +assumed: 40% of 989\.4 TFLOP/s; counted: 2,725\.5 GFLOP per image", text)


def test_a_second_teacher_adds_forward_time_and_weights_but_shares_the_gather_limit():
    run = build_run("deit_tiny_from_deit3_small")
    losses = replace(run.losses, nkd=replace(run.losses.nkd, weight=1, teacher="other"))
    two = replace(run, losses=losses, teachers=run.teachers | {"other": run.teachers["teacher"]})
    one, both = inputs_of(run, H100), inputs_of(two, H100)
    for name in ("teacher_s", "teacher_params", "gathers", "shard_host_s"):
        assert getattr(both, name) == pytest.approx(2 * getattr(one, name)), name
    for name in ("student_s", "loss_s", "gathered_params", "offloaded_params", "activation_bytes", "trained_params"):
        assert getattr(both, name) == getattr(one, name), name
    with torch.device("meta"):
        teacher = timm.create_model("deit3_small_patch16_224")
    assert both.flops - one.flops == forward_flops(teacher, 224)
    assert both.image_bytes - one.image_bytes == 2 * 3 * 224**2, "its normalised images, bf16"
    placed = replace(two.teachers["other"], placement="replica")
    with pytest.raises(ValueError, match="one placement of all teachers, got replica and shard. Set --teach"):
        plan_text(replace(two, teachers=two.teachers | {"other": placed}), nodes=1, gpus=8)


def test_other_token_terms_cost_as_much_as_counted():
    run = build_run("deit_small_from_deit3_base")
    more = replace(run, losses=replace(run.losses, feature=replace(run.losses.feature, weight=1)))
    before, after = (inputs_of(each, H100) for each in (run, more))
    flops = (6 * 384 * 768 + 6 * 768**2 + 2 * 768**2) * 197
    assert after.flops - before.flops == flops
    assert after.others_s == pytest.approx(flops / (0.25 * 989.4e12))
    assert after.loss_s == before.loss_s + after.others_s
    assert after.activation_bytes > before.activation_bytes + 2 * 197 * 768
    assert before.others_s == 0 and re.search("other losses on tokens +none +counted", plan_text(run, nodes=1, gpus=8))
    text = plan_text(more, nodes=1, gpus=8)
    assert re.search(
        r"other losses on tokens +5\.2 us per image +assumed: 25% .*; counted: 1\.28 GFLOP for feature", text
    )
    assert re.search("ViTKD loss +26,500 images/s", text), "the measured one is as it was"
    ((_, measured, _), (_, value, source)) = _loss_rows(more, replace(after, loss_s=0.6, others_s=0.1), H100)
    assert (measured, value) == ("2 images/s", "100000.0 us per image") and "24735.00 GFLOP for feature" in source


def test_models_are_built_without_memory_or_random_numbers():
    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor) and made.device.type != "meta":
                self.largest = max(self.largest, made.numel())
            return made

    state = torch.get_rng_state()
    with Watch() as watch:
        inputs_of(build_run("deit_tiny_from_deit3_small"), H100)
    assert watch.largest < 1000 and torch.equal(torch.get_rng_state(), state)


def test_a_teacher_without_blocks_is_gathered_module_by_module():
    run = build_run("deit_small_vkd_regnety160")
    inputs = inputs_of(run, H100)
    teacher = timm.create_model("regnety_160")
    own = [module for module in teacher.modules() if [*module.parameters(recurse=False)]]
    assert inputs.gathers == len(own) + 1 and inputs.teacher_params == sum(p.numel() for p in teacher.parameters())
    assert inputs.gathered_params == inputs.offloaded_params == inputs.teacher_params, "nothing makes the host wait"


def test_without_vitkd_the_loss_costs_nothing():
    run = build_run("deit_tiny_from_deit3_small")
    without = replace(run, losses=replace(run.losses, vitkd=replace(run.losses.vitkd, weight=0.0)))
    paid, unpaid = (inputs_of(one, H100) for one in (run, without))
    assert unpaid.loss_s == 0 < paid.loss_s
    assert unpaid.activation_bytes == 197 * 192 * 12 * 34, "only the student's"
    assert unpaid.trained_params == 5_717_416
    aligners, convolutions, mask_token = 3 * (192 * 384 + 384), 2 * (9 * 384**2 + 384), 384
    assert paid.trained_params == unpaid.trained_params + aligners + convolutions + mask_token
    assert unpaid.image_bytes == 1_354_752, "150,528 values: one byte, four bytes, and two bytes for each model"
    assert re.search("ViTKD loss +none +counted: no such loss", plan_text(without, nodes=1, gpus=8))


def test_a_compiled_students_gradients_all_arrive_after_its_last_matrix_product():
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
    assert re.search("reductions overlap with +nothing", plan_text(run, nodes=1, gpus=8))
    eager = plan_text(replace(run, compile="off"), nodes=1, gpus=8)
    assert re.search("reductions overlap with +67% of student and loss", eager)


@pytest.mark.slow
def test_a_shard_is_gathered_whole_unless_deepspeeds_file_limits_it(tmp_path, monkeypatch):
    run = build_run("deit_base_from_deit3_large")
    teacher, block = 304_374_760, 12_598_272
    shipped = inputs_of(run, H100)
    # The block being computed, the next one, as many more in bf16 as fit 400 MiB, and DeepSpeed's own prefetch.
    assert shipped.gathered_params == (2 + 400 * 2**20 // (2 * block)) * block + 3e7 == 18 * block + 3e7
    assert shipped.offloaded_params == 2 * block, "with the shipped files"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds_configs").mkdir()

    def gathered(**zero):
        for file in set(TEACHER_FILES.values()):
            (tmp_path / "ds_configs" / file).write_text(json.dumps({"zero_optimization": {"stage": 3} | zero}))
        inputs = inputs_of(run, H100)
        return inputs.gathered_params, inputs.offloaded_params

    assert gathered() == (teacher, teacher), "eight times the default of 5e7 are more than it has"
    for gpus, more in ((8, "+0.1"), (1, "+0.0"), (2, "+0.3")):
        assert f"and the memory by {more} GiB" in plan_text(run, nodes=1, gpus=gpus)
    assert gathered(stage3_prefetch_bucket_size=1e7) == (teacher, block + 8 * (1e7 + block))
    assert gathered(stage3_max_live_parameters=3e7) == (18 * block + 3e7, 2 * block + 3e7)
    assert gathered(stage3_prefetch_bucket_size=0) == (18 * block, 2 * block)
    larger = build_run("vit_small_from_dinov3_7b")
    block = 167_821_312
    assert inputs_of(larger, H100).gathered_params == 3 * block
    assert "and the memory by -10.0 GiB" in plan_text(larger, nodes=1, gpus=8)


def test_disk_and_file_follow_from_bytes_and_images():
    text = plan_text(build_run("deit_base_from_deit3_large"), nodes=1, gpus=8)
    per_s = int(re.search("images/s +([0-9,]+)", text)[1].replace(",", ""))
    disk = re.search(r"disk +([0-9,]+) MB/s +until the file \(74 GB\) is cached", text)[1]
    assert int(disk) == pytest.approx(per_s * 0.057596, abs=1)


def test_a_given_file_determines_images_bytes_and_derived_values(tmp_path, monkeypatch):
    run = build_run("deit_base_from_deit3_large")
    run = replace(run, global_batch_size=8, micro_batch_size_per_gpu=8)
    twice = pack(write_images(tmp_path / "images", 40), tmp_path / "own.beton", write_mode="raw", workers=1)
    mean = read_tables(twice.path).allocations["size"].mean()
    own = replace(run, data=replace(run.data, train=str(twice.path)))
    assumed, text = (plan_text(one, nodes=1, gpus=1) for one in (run, own))
    step_s = float(re.search(r"step +([0-9.]+) ms", text)[1]) / 1e3
    per_s = int(re.search("images/s +([0-9,]+)", text)[1].replace(",", ""))
    length, unit, steps = re.search(r"epochs +(\d+) (s|min) +([0-9,]+) steps of 8 images", text).groups()
    seconds = int(length) * {"s": 1, "min": 60}[unit]
    assert steps == "5" and seconds == pytest.approx(run.epochs * 5 * step_s, rel=0.06, abs=1)
    disk, size = re.search(r"disk +([0-9,]+) MB/s +until the file \(([0-9.e-]+) GB\) is cached", text).groups()
    assert int(disk) == pytest.approx(per_s * mean / 1e6, abs=1)
    assert float(size) == pytest.approx(40 * mean / 1e9, rel=0.05)
    assert re.search(rf"epoch +40 images +counted: {twice.path}, whole steps", text)
    assert re.search(rf"images on disk +{mean / 1e3:.1f} kB per image +counted: {twice.path}$", text, re.M)
    assert re.search(r"epoch +1,281,167 images +counted: ImageNet-1k's training set", assumed)
    row = known.LOADER.row
    assert re.search(rf"images on disk +57.6 kB per image +measured, row {row}: ImageNet", assumed)
    assert "160,145 steps of 8 images" in assumed and "(74 GB" in assumed
    (tmp_path / "names").write_text("dog\n")
    other = replace(own, data=replace(own.data, classes=str(tmp_path / "names")))
    with pytest.raises(ValueError, match=f"class 'dog' in .* is not a class of '{twice.path}'"):
        plan_text(other, nodes=1, gpus=1)
    with pytest.raises(ValueError, match="40 training images are fewer than one global batch .global_batch_size=48"):
        plan_text(replace(own, global_batch_size=48), nodes=1, gpus=1)
    twice.path.write_bytes(twice.path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="own.beton' must have .* bytes according to its header"):
        plan_text(own, nodes=1, gpus=1)
