"""Linear CKA against its definition by full Gram matrices, with padding rows that must not count."""

import pytest
import timm
import torch
from torch import nn

from tests.threaded import on_ranks
from vitkd_ds.config.losses import FeatureTerm
from vitkd_ds.losses.feature import Feature
from vitkd_ds.losses.part import Features, PairInfo
from vitkd_ds.models.features import tap_features
from vitkd_ds.models.normalization import Normalization
from vitkd_ds.recipes.demo import STUDENT_ARGS, TEACHER_ARGS
from vitkd_ds.train.agreement import Agreement, cka
from vitkd_ds.train.evaluate import evaluate_features

PLAIN = Normalization(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))


def slow_cka(student, teacher):
    """HSIC of both with linear kernels, by centred n x n matrices, in fp64."""
    centre = torch.eye(len(student), dtype=torch.float64) - 1 / len(student)
    k, m = (centre @ (x.double() @ x.double().T) @ centre for x in (student, teacher))
    return ((k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt()).item()


def micro_batches(*, patches=(4, 4)):
    """Three micro-batches of correlated features far from 0, and which rows count."""
    generator = torch.Generator().manual_seed(0)
    shared, found = torch.randn(3, 5, generator=generator), []
    for size in (4, 5, 2):
        both = []
        for dim, count, scale in zip((3, 6), patches, (1.0, 50.0)):
            noise = torch.randn(size, 1 + count, dim, generator=generator)
            common = torch.randn(size, 1 + count, 3, generator=torch.Generator().manual_seed(size))
            tokens = 100 + scale * (noise + 2 * common @ shared.repeat(1, 2)[:, :dim])
            both.append(Features(tokens[:, 0], tokens[:, 0], tokens[:, 1:]))
        found.append((*both, torch.arange(size) != 1))
    return found


@pytest.mark.parametrize("at_a_time", [32, 2])
def test_cka_matches_a_slow_one_over_counted_images_and_compares_patches_individually(monkeypatch, at_a_time):
    monkeypatch.setattr("vitkd_ds.train.agreement.IMAGES", at_a_time)
    agreement, batches = Agreement(), micro_batches()
    for batch in batches:
        agreement.add(*batch)
    found = agreement.result()
    for name, rows in (("cka", lambda x, real: x.pooled_BD[real]),
                       ("cka_patches", lambda x, real: x.final_BPD[real].flatten(0, 1))):  # fmt: skip
        student, teacher = (torch.cat([rows(batch[i], batch[2]) for batch in batches]) for i in (0, 1))
        assert found[name] == pytest.approx(slow_cka(student, teacher), rel=1e-6) and 0.05 < found[name] < 0.99
    assert found.keys() == {"cka", "cka_patches"}


def feature_term():
    torch.manual_seed(0)
    return Feature(FeatureTerm(target="layer_norm"), PairInfo(3, 6, (2, 2), (2, 2))).eval()


def test_cosines_are_means_over_counted_images_of_adapted_student_features():
    feature, batches = feature_term(), micro_batches()
    agreement, found = Agreement([feature.metrics]), {"cosine": [], "cosine_patches": []}
    for batch in batches:
        with torch.no_grad():
            agreement.add(*batch)
    for student, teacher, is_real_B in batches:
        for image in is_real_B.nonzero().flatten().tolist():
            for name, kind, own, target in (
                ("cosine", "pooled", student.pooled_BD[image][None], teacher.pooled_BD[image][None]),
                ("cosine_patches", "patches", student.final_BPD[image], teacher.final_BPD[image]),
            ):
                own, target = feature.adapters[kind](own).double(), target.double()
                target = (target - target.mean(-1, keepdim=True)) / target.std(-1, correction=0, keepdim=True)
                own, target = own / own.norm(dim=-1, keepdim=True), target / target.norm(dim=-1, keepdim=True)
                found[name].append((own * target).sum(-1).mean().item())
    result = agreement.result()
    for name, values in found.items():
        assert len(values) == 8 and result[name] == pytest.approx(sum(values) / 8, rel=1e-4), name
    assert abs(result["cosine"] - result["cosine_patches"]) > 1e-3


def test_different_grids_omit_patches_and_constant_features_agree_with_nothing():
    agreement = Agreement()
    for batch in micro_batches(patches=(4, 9)):
        agreement.add(*batch)
    assert agreement.result().keys() == {"cka"}
    covariance = torch.zeros(5, 5, dtype=torch.float64)
    covariance[3:, 3:] = torch.eye(2)
    assert cka(covariance, 3) == 0
    covariance[:2, :2] = covariance[3:, :2] = covariance[:2, 3:] = torch.eye(2)
    assert cka(covariance, 3) == pytest.approx(1)  # the same features plus a constant channel


class Batches:
    """Micro-batches of 4 and a last one of 3, including padding rows."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (11, 3, 28, 28), generator=generator, dtype=torch.uint8)
        self.labels = torch.zeros(11, dtype=torch.int64)
        self.labels[[3, 10]] = -1

    def epoch(self, _):
        yield from zip(self.images.split(4), self.labels.split(4))


def model_of(args, seed):
    torch.manual_seed(seed)
    model = timm.create_model("deit_tiny_patch16_224", img_size=28, num_classes=0, **args)
    nn.init.normal_(model.patch_embed.proj.weight, std=0.3)
    return model.eval()


def test_the_student_is_normalised_before_its_comparison_with_the_teacher(monkeypatch):
    data, student, teacher = Batches(), model_of(STUDENT_ARGS, 0), model_of(TEACHER_ARGS | {"init_values": None}, 1)

    def taught(images):
        return tap_features(teacher, images.float() / 255, ())

    found = evaluate_features(student.train(), data, normalization=PLAIN, teachers={"teacher": taught})
    real = data.images[data.labels >= 0]
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    with torch.no_grad():
        tokens = [student(1 * (real / 255 - mean) / std), teacher(real / 255)]
        patches = [student.forward_features((real / 255 - mean) / std), teacher.forward_features(real / 255)]
    assert found["num_images"] == 9
    assert found["cka"] == pytest.approx(slow_cka(*tokens), rel=1e-4)
    assert found["cka_patches"] == pytest.approx(slow_cka(*(each[:, 1:].flatten(0, 1) for each in patches)), rel=1e-4)
    monkeypatch.setattr("vitkd_ds.train.evaluate.MICRO_BATCHES_PER_LOOK", 2)
    options = {"normalization": PLAIN, "teachers": {"teacher": taught}}
    assert evaluate_features(student, data, **options, must_stop=lambda: True) is None
    data.labels[:] = -1
    with pytest.raises(ValueError, match="no image of data.val could be decoded"):
        evaluate_features(student, data, **options)


def agreement_of(feature, rank, world_size):
    """Each rank takes every `world_size`-th micro-batch; their counted rows differ."""
    agreement, batches = Agreement([feature.metrics]), micro_batches()[:2] * 2
    with torch.no_grad():
        for batch in batches[rank::world_size]:
            agreement.add(*batch)
    return agreement.result()


def test_two_ranks_match_one():
    feature = feature_term()
    expected = agreement_of(feature, 0, 1)
    assert expected.keys() == {"cka", "cka_patches", "cosine", "cosine_patches"}
    for found in on_ranks(2, lambda rank: agreement_of(feature, rank, 2)):
        assert found == pytest.approx(expected, rel=1e-9)
