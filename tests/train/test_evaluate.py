"""Evaluation against a slow count, with padding rows that must not count."""

import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

from tests.threaded import on_ranks
from vitkd_ds.models.features import Features, tap_features
from vitkd_ds.models.normalization import Normalization
from vitkd_ds.recipes.demo import STUDENT_ARGS, TEACHER_ARGS
from vitkd_ds.train.evaluate import evaluate, evaluate_features, evaluate_knn, pooled_features
from vitkd_ds.train.predictions import Predictions

PLAIN = Normalization(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))


def linear(seed, num_classes=7):
    """A model of 2 x 2 images."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))
    nn.init.normal_(model[1].weight, std=1e-2, generator=torch.Generator().manual_seed(seed))
    return model


def vit_of(args, seed):
    """A small vision transformer for images of 28 pixels."""
    torch.manual_seed(seed)
    model = timm.create_model("deit_tiny_patch16_224", img_size=28, num_classes=0, **args | {"init_values": None})
    nn.init.normal_(model.patch_embed.proj.weight, std=0.3)
    return model.eval()


class Batches:
    """Micro-batches of 4 and a last one of 3, including padding rows."""

    def __init__(self, num_classes=7):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (11, 3, 2, 2), generator=generator, dtype=torch.uint8)
        self.labels = torch.randint(0, num_classes, (11,), generator=generator)
        self.labels[[3, 10]] = -1

    def epoch(self, _):
        yield from zip(self.images.split(4), self.labels.split(4))


@pytest.mark.parametrize("num_classes", [7, 3])
def test_counts_match_slow_counts(num_classes):
    student, teacher, data = linear(1, num_classes), linear(2, num_classes), Batches(num_classes)
    result = evaluate(
        student, data, normalization=PLAIN, teachers={"teacher": lambda x: Features(teacher(x.float()), None, None)}
    )
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


def test_evaluation_can_be_interrupted_needs_an_image_and_works_without_a_teacher(monkeypatch):
    data = Batches()
    assert evaluate(linear(1), data, normalization=PLAIN).keys() == {"num_images", "top1", "top5"}
    monkeypatch.setattr("vitkd_ds.train.evaluate.MICRO_BATCHES_PER_LOOK", 2)
    assert evaluate(linear(1), data, normalization=PLAIN, must_stop=lambda: True) is None
    data.labels[:] = -1
    with pytest.raises(ValueError, match="no image of data.val could be decoded"):
        evaluate(linear(1), data, normalization=PLAIN)


class Watched(nn.Linear):
    """A model that records its inputs and its mode."""

    def forward(self, images_BCHW):
        self.seen.append((images_BCHW, self.training))
        return super().forward(images_BCHW.flatten(1))


def test_images_are_normalised_and_the_student_is_in_eval_mode():
    model, data, normalization = Watched(12, 7), Batches(), Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    model.seen = []
    evaluate(model.train(), data, normalization=normalization)
    images, modes = zip(*model.seen)
    assert torch.equal(torch.cat(images), normalization.apply(data.images, torch.float32)) and not any(modes)


def test_each_teacher_has_its_metrics_and_the_firsts_omit_its_name():
    student, data = linear(1), Batches()
    models = {"one": linear(2), "two": linear(3)}
    taught = {
        name: lambda images, model=model: Features(model(images.float()), None, None) for name, model in models.items()
    }
    predictions = Predictions()
    found = evaluate(student, data, normalization=PLAIN, teachers=taught, predictions=predictions)
    alone = [evaluate(student, data, normalization=PLAIN, teachers={"x": teacher}) for teacher in taught.values()]
    figures = ("teacher_top1", "agreement", "kl")
    assert found == alone[0] | {f"{name}/two": alone[1][name] for name in figures}
    assert alone[0]["kl"] != alone[1]["kl"]
    answers = predictions.result(np.arange(len(data.images)))
    right = {name: sum(map(int.__eq__, answers[name], answers["label"])) for name in ("teacher", "teacher/two")}
    assert [100 * number / len(answers["label"]) for number in right.values()] == pytest.approx(
        [found["teacher_top1"], found["teacher_top1/two"]]
    )


class Share(Batches):
    """Every third row of more images, starting at a rank's number, padded at the end."""

    classes = ("a", "b", "c")

    def __init__(self, rank, world_size, seed=0):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (61, 3, 28, 28), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, 3, (61,), generator=generator)
        missing = -len(images) % world_size
        padding = torch.full((missing,), -1)
        self.images = torch.cat([images, images[:missing]])[rank::world_size]
        self.labels = torch.cat([labels, padding])[rank::world_size]
        self.numbers = np.arange(100, 100 + len(images))


def evaluated(models, rank, world_size):
    """All evaluation results on one rank's share."""
    student, teacher, classifier = models

    def taught(images_BCHW):
        return tap_features(teacher, images_BCHW.float() / 255, ())._replace(logits_BK=images_BCHW[:, :, 3, 3].float())

    share, predictions = Share(rank, world_size), Predictions()
    found = evaluate(classifier, share, normalization=PLAIN, teachers={"teacher": taught}, predictions=predictions)
    found |= evaluate_features(student, share, normalization=PLAIN, teachers={"teacher": taught})
    found |= evaluate_knn(student, (Share(rank, world_size, seed=5), share), normalization=PLAIN)
    answers = predictions.result(share.numbers)
    return found, {name: answers[name] for name in ("image", "label", "student", "teacher")}


def test_three_ranks_with_unequal_shares_match_one():
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 3, bias=False))
    nn.init.normal_(classifier[1].weight, std=0.01, generator=torch.Generator().manual_seed(1))
    models = vit_of(STUDENT_ARGS, 0), vit_of(TEACHER_ARGS, 1), classifier
    expected, answers = evaluated(models, 0, 1)
    assert expected["num_images"] == 61 == len(answers["image"])
    for found, same in on_ranks(3, lambda rank: evaluated(models, rank, 3)):
        assert found == pytest.approx(expected, rel=1e-5) and same == answers


@pytest.mark.parametrize("function", [evaluate, evaluate_features, pooled_features])
def test_no_evaluation_builds_a_graph(function):
    student, graphs = vit_of(STUDENT_ARGS, 0), []
    student.register_forward_hook(lambda module, images, output: graphs.append(output.requires_grad))
    student.patch_embed.register_forward_hook(lambda module, images, output: graphs.append(output.requires_grad))

    def taught(images_BCHW):
        graphs.append(torch.is_grad_enabled())
        return tap_features(student, images_BCHW.float(), ())

    options = {} if function is pooled_features else {"teachers": {"teacher": taught}}
    assert next(student.parameters()).requires_grad
    function(student, Share(0, 1), normalization=PLAIN, **options)
    assert len(graphs) > 10 and not any(graphs)
