"""Evaluation metrics are declared once; everything else follows from the declaration."""

import pytest

from vitkd_ds.config.metrics import VAL_METRICS, Metric, deciding, digits_of, summary_of


def test_a_metric_says_which_of_two_values_is_better():
    assert Metric().is_better(2.0, 1.0) and not Metric().is_better(1.0, 1.0)
    loss = Metric(is_higher_better=False)
    assert loss.is_better(1.0, 2.0) and not loss.is_better(2.0, 1.0)
    assert [name for name, metric in VAL_METRICS.items() if not metric.is_higher_better] == ["kl"]


@pytest.mark.parametrize("kind, expected", [("classes", "top1"), ("features", "cka")])
def test_one_metric_selects_the_best_for_each_kind_of_student(kind, expected):
    assert [name for name, metric in VAL_METRICS.items() if metric.decides_for == kind] == [expected]
    assert deciding(kind) == expected


def test_a_summary_has_the_students_standard_metrics_and_any_others_measured():
    found = {"num_images": 7, "top1": 50.0, "top5": 90.0, "kl": 0.5}
    classes = {"student_top1": 50.0, "student_top5": 90.0, "teacher_top1": None, "agreement": None}
    assert summary_of(found, "classes") == classes
    found = {"num_images": 7, "cka": 0.5, "cosine": 0.25, "knn_top1": 60.0, "own": 1.0}
    features = {"cka": 0.5, "cka_patches": None, "cosine": 0.25, "knn_top1": 60.0}
    assert summary_of(found, "features") == features
    assert [digits_of(name) for name in ("top1", "kl", "kl/dino", "probe_lr", "own")] == [2, 4, 4, 4, 2]
    assert summary_of(found | {"cka/dino": 0.75, "kl/dino": 1.0, "own/dino": 2.0}, "features") == features | {
        "cka/dino": 0.75
    }


def test_top5_says_nothing_about_five_or_fewer_classes_and_top1_about_any_number():
    assert [number for number in range(8) if not VAL_METRICS["top5"].says(number)] == [1, 2, 3, 4, 5]
    assert all(VAL_METRICS["top1"].says(number) for number in range(8))
