"""The settings of the terms reach the losses."""

from dataclasses import replace

import pytest
import torch

from tests.models.families import source_model
from vitkd_ds import ViTKDLoss
from vitkd_ds.config.losses import CrossEntropyTerm, KDTerm, LossesConfig, NKDTerm, ViTKDTerm
from vitkd_ds.losses import kd_loss, nkd_loss
from vitkd_ds.models.build import check_pair
from vitkd_ds.models.distiller import Distiller
from vitkd_ds.models.features import tap_features

WEIGHTS = {"ce": torch.tensor(0.5), "kd": torch.tensor(2.0), "nkd": torch.tensor(3.0), "vitkd": torch.tensor(4.0)}


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(0)
    student, teacher = source_model("deit"), source_model("registers", embed_dim=96)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        return student, teacher, images, torch.eye(5)[:3], tap_features(teacher, images, (0, 1))


@pytest.mark.parametrize("changes", [{}, {"alpha": 0.3}, {"beta": 0.4}, {"mask_ratio": 0.25}, {"scaled": True}])
def test_each_number_of_a_term_is_that_of_its_loss(batch, changes):
    student, teacher, images, targets, features = batch
    losses = LossesConfig(
        CrossEntropyTerm(weight=1), KDTerm(weight=1, temperature=3.0), NKDTerm(weight=1, temperature=2.0, gamma=1.5),
        replace(ViTKDTerm(weight=1, alpha=0.1, beta=0.2), **changes),
    )  # fmt: skip
    distiller = Distiller(student, losses, check_pair(student, teacher, blocks=(0, 1))).eval()
    torch.manual_seed(1)
    found = distiller(images, targets, features, WEIGHTS)
    numbers = {"alpha": 0.1, "beta": 0.2, "mask_ratio": 0.5, "scaled": False} | changes
    vitkd = ViTKDLoss(48, 96, **numbers)
    vitkd.load_state_dict(distiller.vitkd.state_dict())
    own = tap_features(student, images, (0, 1))
    torch.manual_seed(1)
    halves = vitkd(*own[1:], *features[1:])
    expected = {
        "ce": torch.nn.functional.cross_entropy(own.logits_BK, targets),
        "kd": kd_loss(own.logits_BK, features.logits_BK, temperature=3.0),
        "nkd": nkd_loss(own.logits_BK, features.logits_BK, targets, temperature=2.0, gamma=1.5),
        "vitkd_mimic": halves["mimic"], "vitkd_generate": halves["generate"],
    }  # fmt: skip
    expected["total"] = 0.5 * expected["ce"] + 2 * expected["kd"] + 3 * expected["nkd"] + 4 * halves["total"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-5), name


def test_a_student_of_logits_alone_has_no_parameters_of_a_loss_and_needs_no_tokens(batch):
    student, _, images, targets, features = batch
    losses = LossesConfig(nkd=NKDTerm(weight=1))
    distiller = Distiller(student, losses, None)
    assert {name.partition(".")[0] for name, _ in distiller.named_parameters()} == {"student"}
    terms = distiller(images, targets, features._replace(shallow_BLPD=None, deep_BPD=None), WEIGHTS)
    assert terms.keys() == {"total", "ce", "nkd"}
