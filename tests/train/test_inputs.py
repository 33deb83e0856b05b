"""Inputs of both models: mixing and normalising as one compiled function, against the plain operations."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vitkd_ds.models.normalization import Normalization
from vitkd_ds.recipes import build_run
from vitkd_ds.train.inputs import Inputs
from vitkd_ds.train.mixing import mix_step

ONE, OTHER = Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), Normalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
TEACHERS = {
    "none": None, "same": SimpleNamespace(normalization=ONE, dtype=torch.bfloat16),
    "other": SimpleNamespace(normalization=OTHER, dtype=torch.float32),
}  # fmt: skip


def micro_batch(seed=0):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (6, 16, 12, 3), dtype=np.uint8)).permute(0, 3, 1, 2)
    return images, torch.from_numpy(rng.integers(0, 10, 6))


def by_name(teacher):
    return {"teacher": teacher} if teacher else {}


def fused(run, dtype, teacher, compiled):
    """Inputs as on a GPU, except for the compiler."""
    inputs = Inputs(run, ONE, dtype, by_name(teacher), torch.device("cpu"))
    inputs._render = compiled(inputs.render)
    return inputs


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("mode", ["batch", "element"])
@pytest.mark.parametrize("mixup, cutmix", [(0, 0), (0.8, 0), (0, 1.0)])
def test_fused_inputs_equal_mixed_images_normalised_for_each_model_and_the_same_targets(mixup, cutmix, mode, teacher):
    run = build_run("demo_plain")
    augment = replace(run.augment, mixup_alpha=mixup, cutmix_alpha=cutmix, mix_mode=mode)
    run, teacher = replace(run, augment=augment), TEACHERS[teacher]
    inputs = fused(run, torch.float32, teacher, lambda render: render)
    for step in range(4):
        student, teachers, targets = inputs(*micro_batch(step), step=step, place=1)
        mixed, expected_targets = mix_step(run, *micro_batch(step), step=step, place=1)
        torch.testing.assert_close(student, ONE.apply(mixed, torch.float32))
        torch.testing.assert_close(targets, expected_targets)
        if teacher is None:
            assert not teachers
        else:
            expected = teacher.normalization.apply(mixed, teacher.dtype)
            torch.testing.assert_close(teachers["teacher"], expected)
        plain = Inputs(run, ONE, torch.float32, by_name(teacher), torch.device("cpu"))(
            *micro_batch(step), step=step, place=1
        )
        assert torch.equal(plain[0], ONE.apply(mixed, torch.float32)) and torch.equal(plain[2], expected_targets)
    if teacher and teacher.dtype == torch.bfloat16:  # the same as the student's, so one tensor serves both
        student, teachers, _ = fused(run, torch.bfloat16, teacher, lambda render: render)(
            *micro_batch(), step=0, place=0
        )
        assert student is teachers["teacher"] and student.dtype == torch.bfloat16


def test_teachers_with_equal_normalisation_share_their_images():
    teachers = {"one": TEACHERS["other"], "two": TEACHERS["same"], "three": TEACHERS["other"]}
    inputs = Inputs(build_run("demo_plain"), ONE, torch.bfloat16, teachers, torch.device("cpu"))
    student, shown, _ = inputs(*micro_batch(), step=0, place=0)
    assert shown.keys() == teachers.keys() and shown["two"] is student and shown["one"] is shown["three"]
    expected = OTHER.apply(micro_batch()[0], torch.float32)
    torch.testing.assert_close(shown["one"], expected)


@pytest.mark.parametrize("mixup, cutmix", [(0.8, 0), (0, 1.0)])
def test_the_next_micro_batch_reuses_memory_and_leaves_earlier_results_unchanged(mixup, cutmix):
    run = build_run("demo_plain")
    run = replace(run, augment=replace(run.augment, mixup_alpha=mixup, cutmix_alpha=cutmix))
    inputs = Inputs(run, ONE, torch.float32, {}, torch.device("cpu"))
    first = inputs(*micro_batch(0), step=0, place=0)[0]
    kept, memory = first.clone(), inputs._mixed_BCHW.data_ptr()
    second = inputs(*micro_batch(1), step=1, place=0)[0]
    assert inputs._mixed_BCHW.data_ptr() == memory and torch.equal(first, kept)
    images, labels = micro_batch(1)
    few = inputs(images[:3], labels[:3], step=1, place=0)[0]
    assert few.shape[0] == 3 and not torch.equal(second[:3], kept[:3])
    mixed = mix_step(run, images[:3], labels[:3], step=1, place=0)[0]
    assert torch.equal(few, ONE.apply(mixed, torch.float32))


def test_one_graph_serves_mixup_and_cutmix_and_none_is_compiled_on_a_cpu():
    run = build_run("demo_plain")
    run = replace(run, compile="default", augment=replace(run.augment, mixup_alpha=0.8, cutmix_alpha=1.0))
    assert Inputs(run, ONE, torch.bfloat16, {}, torch.device("cpu"))._render is None
    assert Inputs(run, ONE, torch.bfloat16, {}, torch.device("cuda"))._render is not None
    assert Inputs(replace(run, compile="off"), ONE, torch.bfloat16, {}, torch.device("cuda"))._render is None
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    inputs = fused(run, torch.bfloat16, None, lambda render: torch.compile(render, dynamic=False, backend=keep))
    whole = []
    for step in range(12):
        student, _, _ = inputs(*micro_batch(step), step=step, place=0)
        mixed, _ = mix_step(run, *micro_batch(step), step=step, place=0)
        torch.testing.assert_close(student, ONE.apply(mixed, torch.bfloat16))
        whole.append(torch.equal(mixed, mixed.round()))
    assert len(graphs) == 1 and len(set(whole)) == 2, "both Mixup and CutMix were drawn"
