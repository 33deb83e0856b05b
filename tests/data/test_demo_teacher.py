"""The packaged teacher is small, and as good on the packaged images as was measured."""

from vitkd_ds.data.loader import build_loader
from vitkd_ds.models import build
from vitkd_ds.recipes import build_run
from vitkd_ds.train.evaluate import evaluate


def test_the_packaged_teacher_fits_in_four_megabytes_and_has_its_accuracy(demo_cache):
    run = build_run("demo")
    assert build.DEMO_TEACHER.stat().st_size < 4e6
    teacher = build.build_teacher(run.teacher, run.data)
    loader = build_loader(run.data, split="val", micro_batch_size=100)
    result = evaluate(teacher, loader, normalization=build.normalization_of(teacher))
    assert result["num_images"] == 2000
    assert 88.5 < result["top1"] < 89.7, "89.1 was measured"
