"""Both models see the same mixed images: this file, run as a program, makes one update and looks at what goes in."""

import sys
from contextlib import closing
from dataclasses import replace

import torch

from tests.conftest import finish_ranks, start_ranks
from vitkd_ds.cli import parse_run
from vitkd_ds.engine.processes import start_processes
from vitkd_ds.train.loop import train_step
from vitkd_ds.train.parts import build_parts


def test_teacher_and_student_get_the_same_mixed_images_in_each_micro_batch_of_a_step(small_beton, demo_cache):
    finish_ranks(start_ranks(1, __file__, small_beton))


def main():
    device = start_processes()
    torch.set_num_threads(1)
    flags = {"global_batch_size": "8", "micro_batch_size_per_gpu": "4", "data.num_workers": "1", "debug": "True"}
    run = parse_run((), {"recipe": "demo", "data.train": sys.argv[1], "augment.cutmix_alpha": "1"} | flags)
    parts = build_parts(run, device)
    assert parts.shares_inputs, "the demo's two models have the same mean, std and dtype"
    with closing(parts.train_loader.epoch(0)) as micro_batches:
        unmixed = [images.float() for (images, _), _ in zip(micro_batches, range(2))]
    for are_normalized in (True, False):
        look(replace(parts, shares_inputs=are_normalized), unmixed)


def look(parts, unmixed):
    """Make a step of two micro-batches, and compare what both models were shown."""
    teacher, student, features = [], [], []

    def watched_teacher(images, *, are_normalized):
        teacher.append(images if are_normalized else parts.normalization.apply(images, parts.engine.dtype))
        assert are_normalized == parts.shares_inputs
        features.append((parts.teacher(images, are_normalized=are_normalized), images))
        return features[-1][0]

    hook = parts.engine.distiller.register_forward_pre_hook(lambda _, arguments: student.append(arguments[:3]))
    with closing(parts.train_loader.epoch(0)) as micro_batches:
        train_step(replace(parts, teacher=watched_teacher), micro_batches, 0)
    hook.remove()
    assert len(teacher) == len(student) == 2
    for images, (images_of_student, targets, _), plain in zip(teacher, student, unmixed, strict=True):
        assert torch.equal(images, images_of_student)
        assert not torch.equal(images, parts.normalization.apply(plain, parts.engine.dtype)), "they are mixed"
        assert (targets.max(1).values < 1).any()
    expected = parts.teacher.module(images_of_student)
    assert torch.equal(features[-1][0].logits_BK, expected.logits_BK), "normalised twice, or not at all"


if __name__ == "__main__":
    main()
