"""Evaluation against a slow count, with padding rows that must not count."""

import math

import pytest
import torch
from torch import nn

from vitkd_ds.models.features import Features
from vitkd_ds.models.normalization import Normalization
from vitkd_ds.train.evaluate import evaluate

PLAIN = Normalization(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))


def linear(seed, num_classes=7):
    """A model of 2 x 2 images."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))
    nn.init.normal_(model[1].weight, std=1e-2, generator=torch.Generator().manual_seed(seed))
    return model


class Batches:
    """Micro-batches of 4 and a last one of 3, some rows only padding."""

    def __init__(self, num_classes=7):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (11, 3, 2, 2), generator=generator, dtype=torch.uint8)
        self.labels = torch.randint(0, num_classes, (11,), generator=generator)
        self.labels[[3, 10]] = -1

    def epoch(self, _):
        yield from zip(self.images.split(4), self.labels.split(4))


@pytest.mark.parametrize("num_classes", [7, 3])
def test_counts_are_the_slow_ones(num_classes):
    student, teacher, data = linear(1, num_classes), linear(2, num_classes), Batches(num_classes)
    result = evaluate(student, data, normalization=PLAIN, teacher=lambda x: Features(teacher(x.float()), None, None))
    sums = dict.fromkeys(("num_images", "top1", "top5", "teacher_top1", "agreement", "kl"), 0)
    for image, label in zip(data.images, data.labels.tolist()):
        if label < 0:
            continue
        s, t = (model(image[None].float())[0].log_softmax(0).tolist() for model in (student, teacher))
        order = sorted(range(num_classes), key=lambda k: -s[k])
        sums["num_images"] += 9
        sums["top1"] += 100 * (order[0] == label)
        sums["top5"] += 100 * (label in order[:5])
        sums["teacher_top1"] += 100 * (t.index(max(t)) == label)
        sums["agreement"] += 100 * (t.index(max(t)) == order[0])
        sums["kl"] += sum(math.exp(q) * (q - p) for p, q in zip(s, t))
    assert result.pop("kl") == pytest.approx(sums.pop("kl") / 9, rel=1e-5)
    assert result == pytest.approx({name: value / 9 for name, value in sums.items()})


def test_it_can_be_given_up_needs_an_image_and_agrees_with_no_teacher_where_there_is_none(monkeypatch):
    data = Batches()
    assert evaluate(linear(1), data, normalization=PLAIN).keys() == {"num_images", "top1", "top5"}
    monkeypatch.setattr("vitkd_ds.train.evaluate.MICRO_BATCHES_PER_LOOK", 2)
    assert evaluate(linear(1), data, normalization=PLAIN, must_stop=lambda: True) is None
    data.labels[:] = -1
    with pytest.raises(ValueError, match="must count at least one image, found none in data.val"):
        evaluate(linear(1), data, normalization=PLAIN)


class Watched(nn.Linear):
    """A model that keeps what it is given, and in which mode."""

    def forward(self, images_BCHW):
        self.seen.append((images_BCHW, self.training))
        return super().forward(images_BCHW.flatten(1))


def test_images_are_normalised_and_the_student_is_in_eval_mode():
    model, data, normalization = Watched(12, 7), Batches(), Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    model.seen = []
    evaluate(model.train(), data, normalization=normalization)
    images, modes = zip(*model.seen)
    assert torch.equal(torch.cat(images), normalization.apply(data.images, torch.float32)) and not any(modes)
