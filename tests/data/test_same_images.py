"""Both models see the same mixed images. Run as a program, this file makes one update and inspects the inputs."""

import sys
from contextlib import closing
from dataclasses import replace

import torch

from tests.conftest import finish_ranks, start_ranks
from vitkd_ds.cli import parse_run
from vitkd_ds.engine.processes import start_processes
from vitkd_ds.models.normalization import Normalization
from vitkd_ds.train.inputs import Inputs
from vitkd_ds.train.parts import build_parts
from vitkd_ds.train.step import train_step


def test_teacher_and_student_get_the_same_mixed_images_in_each_micro_batch_of_a_step(small_beton, demo_cache):
    finish_ranks(start_ranks(1, __file__, small_beton))


def main():
    device = start_processes()
    torch.set_num_threads(1)
    flags = {"global_batch_size": "8", "micro_batch_size_per_gpu": "4", "data.num_workers": "1", "debug": "True"}
    run = parse_run((), {"recipe": "demo", "data.train": sys.argv[1], "augment.cutmix_alpha": "1"} | flags)
    parts = build_parts(run, device)
    with closing(parts.train_loader.epoch(0)) as micro_batches:
        unmixed = [images.float() for (images, _), _ in zip(micro_batches, range(2))]
    look(parts, unmixed, lambda images: images)
    # Another mean and std, so the student's input determines the expected teacher input.
    own, other = parts.normalization, Normalization(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    parts.teachers["teacher"].normalization = other
    old_std, old_mean, new_std, new_mean = (
        torch.tensor(numbers).view(3, 1, 1) for numbers in (own.std, own.mean, other.std, other.mean)
    )
    parts = replace(parts, inputs=Inputs(run, own, parts.engine.dtype, parts.teachers, device))
    look(parts, unmixed, lambda images: (images.float() * old_std + old_mean - new_mean) / new_std)


def look(parts, unmixed, shown):
    """Make a step of two micro-batches and compare both models' inputs; `shown` maps the student's to the teacher's."""
    teacher, student, features = [], [], []

    def watched_teacher(images, *, are_normalized, kept_BL):
        assert are_normalized and kept_BL is None
        teacher.append(images)
        features.append((parts.teachers["teacher"](images, are_normalized=True), images))
        return features[-1][0]

    hook = parts.engine.distiller.register_forward_pre_hook(lambda _, arguments: student.append(arguments[:3]))
    with closing(parts.train_loader.epoch(0)) as micro_batches:
        train_step(replace(parts, teachers={"teacher": watched_teacher}), micro_batches, 0)
    hook.remove()
    assert len(teacher) == len(student) == 2
    for images, (images_of_student, targets, _), plain in zip(teacher, student, unmixed, strict=True):
        torch.testing.assert_close(images.float(), shown(images_of_student).float(), rtol=2**-7, atol=0.05)
        assert not torch.equal(images, parts.normalization.apply(plain, parts.engine.dtype)), "they are mixed"
        assert (targets.max(1).values < 1).any()
    assert (teacher[-1] is student[-1][0]) == (parts.teachers["teacher"].normalization == parts.normalization)
    expected = parts.teachers["teacher"].module(teacher[-1])
    assert torch.equal(features[-1][0].logits_BK, expected.logits_BK), "normalised twice, or not at all"


if __name__ == "__main__":
    main()
