"""Predictions for this machine's CPU, and for a run without a teacher."""

import os
import re
from dataclasses import replace

import pytest

from tests.commands.plan.test_predict import rows_of
from vitkd_ds.commands.plan import predict
from vitkd_ds.commands.plan.hardware import HARDWARE, find_hardware, matmul_tflops
from vitkd_ds.commands.plan.inputs import inputs_of
from vitkd_ds.commands.plan.text import plan_text
from vitkd_ds.config.losses import CrossEntropyTerm, LossesConfig
from vitkd_ds.recipes import build_run

H100 = HARDWARE["h100"]


@pytest.mark.parametrize("recipe", ["demo", "demo_plain"])
def test_a_cpu_is_measured_and_shared_by_its_processes_even_for_a_plain_run(demo_cache, recipe):
    texts = [plan_text(build_run(recipe), nodes=1, gpus=gpus, hardware="cpu") for gpus in (None, 2)]
    assert texts[0].startswith(f"{recipe} on 1 x 1 cpu: a prediction") and "GPU" not in "".join(texts)
    for text, processes in zip(texts, (1, 2)):
        rows = rows_of(text)
        assert rows["epoch"][0] == "6,000 images" and re.fullmatch(r"\d+ (s|min)", rows["20 epochs"][0])
        total_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        assert float(re.search(r"of ([\d.]+) GiB: fits", text)[1]) == pytest.approx(total_gib / processes, abs=0.06)
        assert ("teacher" in rows) == ("replica" in rows) == (recipe == "demo")
        assert recipe == "demo" or "teacher" not in text
    # Bounds that a wrong unit would violate.
    assert 1e-3 < matmul_tflops() < 100 and find_hardware("cpu", processes=4).peak_tflops < matmul_tflops(1024)


def test_a_plain_run_costs_as_much_as_its_pair_without_the_teacher():
    pair = build_run("deit_tiny_from_deit3_small")
    losses = replace(pair.losses, vitkd=replace(pair.losses.vitkd, weight=0.0))
    plain = inputs_of(replace(pair, teachers={}, losses=LossesConfig(ce=CrossEntropyTerm(weight=1))), H100)
    both = inputs_of(replace(pair, losses=losses), H100)
    assert plain.student_s == both.student_s and plain.teacher_s == plain.teacher_params == plain.loss_s == 0
    layout = predict.Layout(nodes=1, gpus_per_node=2, micro_batch=10, accumulation=1, placement="replica")
    parts, others = (predict.step_parts(inputs, layout, H100) for inputs in (plain, both))
    assert parts["teacher"] == parts["gathers"] == 0 and parts["update"] == others["update"]
