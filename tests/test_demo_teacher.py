"""The packaged teacher is small, and as good on the packaged images as was measured."""

from vitkd_ds import models
from vitkd_ds.data.loader import build_loader
from vitkd_ds.evaluate import evaluate
from vitkd_ds.recipes import build_run


def test_the_packaged_teacher_fits_in_four_megabytes_and_has_its_accuracy(demo_cache):
    run = build_run("demo")
    assert models.DEMO_TEACHER.stat().st_size < 4e6
    teacher = models.build_teacher(run.teacher, run.data)
    loader = build_loader(run.data, split="val", micro_batch_size=100)
    result = evaluate(teacher, loader, normalization=models.normalization_of(teacher))
    assert result["num_images"] == 2000
    assert 88.5 < result["top1"] < 89.7, "89.1 was measured"
