"""Settings of the terms reach the losses."""

from dataclasses import replace

import pytest
import torch

from tests.models.families import source_model
from vitkd_ds import ViTKDLoss
from vitkd_ds.config.losses import (
    TERMS,
    CrossEntropyTerm,
    DISTTerm,
    FeatureTerm,
    KDTerm,
    LossesConfig,
    NKDTerm,
    RelationTerm,
    SpectralTerm,
    ViTKDTerm,
)
from vitkd_ds.losses import dist_loss, dkd_loss, kd_loss, local_relation_loss, nkd_loss, spectral_loss, wttm_loss
from vitkd_ds.losses.balance import Balance
from vitkd_ds.losses.part import Features, PairInfo
from vitkd_ds.models.distiller import Distiller, part_of
from vitkd_ds.models.features import tap_features
from vitkd_ds.models.pair import check_pair
from vitkd_ds.models.selection import logits_and_attention

WEIGHTS = {"ce": torch.tensor(0.5), "kd": torch.tensor(2.0), "nkd": torch.tensor(3.0), "vitkd": torch.tensor(4.0)}


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(0)
    student, teacher = source_model("deit"), source_model("registers", embed_dim=96)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        return student, teacher, images, torch.eye(5)[:3], tap_features(teacher, images, (0, 1))


@pytest.mark.parametrize("changes", [{}, {"alpha": 0.3}, {"beta": 0.4}, {"mask_ratio": 0.25}, {"scaled": True}])
def test_each_number_of_a_term_reaches_its_loss(batch, changes):
    student, teacher, images, targets, features = batch
    losses = LossesConfig(
        CrossEntropyTerm(weight=1), KDTerm(weight=1, temperature=3.0), NKDTerm(weight=1, temperature=2.0, gamma=1.5),
        replace(ViTKDTerm(weight=1, alpha=0.1, beta=0.2), **changes),
    )  # fmt: skip
    distiller = Distiller(student, losses, {"teacher": check_pair(student, teacher, losses, image_size=32)}).eval()
    torch.manual_seed(1)
    found = distiller(images, targets, {"teacher": features}, WEIGHTS)
    numbers = {"alpha": 0.1, "beta": 0.2, "mask_ratio": 0.5, "scaled": False} | changes
    vitkd = ViTKDLoss(48, 96, **numbers)
    vitkd.load_state_dict(distiller.vitkd.state_dict())
    own = tap_features(student, images, (0, 1))
    torch.manual_seed(1)
    inputs = [(torch.stack([each.blocks[0], each.blocks[1]], 1), each.final_BPD) for each in (own, features)]
    halves = vitkd(*inputs[0], *inputs[1])
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


def test_the_blocks_and_grids_of_vitkd_reach_it():
    def tokens(grid, dim):
        drawn = torch.randn(5, 2, grid[0] * grid[1], dim, dtype=torch.float64)
        return Features(None, final_BPD=drawn[4], blocks=dict(enumerate(drawn[:4])))

    torch.manual_seed(0)
    student, teacher, grids = tokens((2, 4), 4), tokens((4, 6), 6), {"student_grid": (2, 4), "teacher_grid": (4, 6)}
    term = ViTKDTerm(weight=1, blocks=(1, 3))
    part, plain = part_of(term)(term, PairInfo(4, 6, **grids)).double(), ViTKDLoss(4, 6, **grids).double()
    plain.load_state_dict(part.state_dict())
    shallow = [torch.stack([each.blocks[1], each.blocks[3]], 1) for each in (student, teacher)]
    torch.manual_seed(1)
    expected = plain(shallow[0], student.final_BPD, shallow[1], teacher.final_BPD)
    torch.manual_seed(1)
    assert part(student, teacher, None) == {f"vitkd_{name}": expected[name] for name in ("mimic", "generate")}


def test_norms_biases_and_weights_listed_by_timm_do_not_decay():
    losses, (student, teacher) = LossesConfig(vitkd=ViTKDTerm(weight=1)), map(source_model, ("deit", "registers"))
    student.patch_embed.proj.weight.requires_grad_(False)
    distiller = Distiller(student, losses, {"teacher": check_pair(student, teacher, losses, image_size=32)})
    names = {p: name for name, p in distiller.named_parameters()}
    decayed, undecayed = distiller.split_by_decay()
    free = {name for name in names.values() if name.endswith("bias") or "norm" in name}
    free |= {"student.cls_token", "student.pos_embed"}
    assert {names[p] for p in undecayed} == free
    assert {names[p] for p in decayed} == {*names.values()} - free - {"student.patch_embed.proj.weight"}


def test_the_patches_that_the_student_attends_to_most_are_shown_to_the_teacher(batch):
    student, _, images, targets, features = batch
    seen = []

    def teach(kept):
        seen.append(kept)
        return features

    distiller = Distiller(
        student, LossesConfig(kd=KDTerm(weight=1)), {"teacher": None}, keep_tokens={"teacher": 5}
    ).eval()
    distiller(images, targets, {"teacher": teach}, WEIGHTS)
    order = logits_and_attention(student, images)[1].sort(dim=1, descending=True).indices
    assert torch.equal(seen[0], order[:, :5])


@pytest.mark.parametrize("size, kept", [(32, 5), (24, 2), (16, 1), (8, 1)])
def test_of_smaller_images_the_teacher_sees_the_same_fraction_of_the_patches(batch, size, kept):
    _, _, _, targets, features = batch
    student, seen = source_model("deit", dynamic_img_size=True), []
    distiller = Distiller(student, LossesConfig(kd=KDTerm(weight=1)), {"teacher": None}, keep_tokens=5).eval()
    teach = lambda kept_BL: seen.append(kept_BL.shape) or features  # noqa: E731
    distiller(torch.randn(3, 3, size, size), targets, {"teacher": teach}, WEIGHTS)
    assert seen == [(3, kept)]


def test_each_term_compares_the_teacher_that_it_names(batch):
    student, _, images, targets, features = batch
    losses = LossesConfig(kd=KDTerm(weight=1, teacher="b"), nkd=NKDTerm(weight=1, teacher="a"))
    answers = {"a": features, "b": Features(features.logits_BK.roll(1, 1))}
    kept = []
    teachers = answers | {"b": lambda kept_BL: kept.append(kept_BL.shape[1]) or answers["b"]}
    distiller = Distiller(student, losses, {"a": None, "b": None}, keep_tokens={"a": 0, "b": 5}).eval()
    found = distiller(images, targets, teachers, WEIGHTS)
    assert kept == [5], "only of that teacher"
    for name, teacher in (("nkd", "a"), ("kd", "b")):
        alone = LossesConfig(**{name: replace(getattr(losses, name), teacher=teacher)})
        one = Distiller(student, alone, {teacher: None}).eval()
        expected = one(images, targets, {teacher: answers[teacher]}, WEIGHTS)
        assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-6)


def test_a_student_with_only_logit_terms_needs_no_loss_parameters_or_tokens(batch):
    student, _, images, targets, features = batch
    losses = LossesConfig(nkd=NKDTerm(weight=1))
    distiller = Distiller(student, losses, {"teacher": None})
    assert {name.partition(".")[0] for name, _ in distiller.named_parameters()} == {"student"}
    terms = distiller(images, targets, {"teacher": Features(features.logits_BK)}, WEIGHTS)
    assert terms.keys() == {"total", "ce", "nkd"}


def parts_of(batch, **terms):
    """The modules of terms with weight 1, in a distiller without cross-entropy."""
    student, teacher, images, targets, features = batch
    losses = LossesConfig(ce=CrossEntropyTerm(weight=0), **terms)
    torch.manual_seed(1)
    distiller = Distiller(student, losses, {"teacher": check_pair(student, teacher, losses, image_size=32)}).eval()
    weights = {name: torch.tensor(1.0) for name in terms}
    return distiller, distiller(images, targets, {"teacher": features}, weights)


@pytest.mark.parametrize("name, numbers, expected", [
    ("wttm", {"gamma": 0.3}, lambda s, t, y: wttm_loss(s, t, gamma=0.3)),
    ("wttm", {"gamma": 0.3, "weighted": False}, lambda s, t, y: wttm_loss(s, t, gamma=0.3, weighted=False)),
    ("dist", {"beta": 2.0, "gamma": 0.5}, lambda s, t, y: dist_loss(s, t, beta=2.0, gamma=0.5)),
    ("dist", {"scope": "all_ranks"}, lambda s, t, y: dist_loss(s, t)),
    ("dkd", {"alpha": 2.0, "beta": 3.0, "temperature": 4.0},
     lambda s, t, y: dkd_loss(s, t, y.argmax(1), alpha=2.0, beta=3.0, temperature=4.0)),
    ("kd", {"temperature": 2.0, "standardize": True},
     lambda s, t, y: kd_loss(s, t, temperature=2.0, standardize=True)),
])  # fmt: skip
def test_each_number_of_a_logit_term_reaches_its_loss(batch, name, numbers, expected):
    student, _, images, targets, features = batch
    _, found = parts_of(batch, **{name: TERMS[name](weight=1, **numbers)})
    value = expected(student.eval()(images), features.logits_BK, targets)
    assert found[name].item() == pytest.approx(value.item(), rel=1e-5)


def test_dist_over_all_ranks_gathers_both_models_logits_and_dist_per_micro_batch_none(batch):
    student, teacher, images, targets, features = batch
    for scope, expected in (("all_ranks", 2), ("micro_batch", 0)):
        seen = []

        def gather(values, seen=seen):
            seen.append(values)
            return values

        losses = LossesConfig(dist=DISTTerm(weight=1, scope=scope))
        distiller = Distiller(student, losses, {"teacher": None}, gather)
        distiller(images, targets, {"teacher": features}, {"ce": torch.tensor(1.0), "dist": torch.tensor(1.0)})
        assert len(seen) == expected and all(values.shape == (3, 5) for values in seen)


def test_spectral_compares_the_named_blocks_in_pairs(batch):
    student, _, images, _, features = batch
    term = SpectralTerm(weight=1, student_blocks=(1, 0), teacher_blocks=(0, 1))
    _, found = parts_of(batch, spectral=term)
    own, grid = tap_features(student.eval(), images, (0, 1)), student.patch_embed.grid_size
    pairs = [(own.blocks[1], features.blocks[0]), (own.blocks[0], features.blocks[1])]
    expected = sum(spectral_loss(*pair, grid=grid) for pair in pairs) / 2
    assert found["spectral"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_numbers_of_relation_and_feature_reach_their_losses(batch):
    distiller, found = parts_of(batch, relation=RelationTerm(weight=1, temperature=0.5, queue=7))
    assert distiller.relation.queue_QD.shape == (7, 96)
    own = tap_features(batch[0].eval(), batch[2], ())
    patches = distiller.relation.patches(own.final_BPD)
    expected = local_relation_loss(patches, batch[4].final_BPD, temperature=0.5)
    assert found["relation_local"].item() == pytest.approx(expected.item(), rel=1e-5)
    distiller, _ = parts_of(batch, feature=FeatureTerm(weight=1, target="phi_s", calibration_batches=5))
    assert distiller.feature.num_calibrating == 5 and distiller.feature.targets["patches"].kind == "phi_s"


def test_balanced_terms_use_the_current_factors_and_the_next_ones_are_learned(batch):
    student, _, images, targets, features = batch
    losses = LossesConfig(nkd=NKDTerm(weight=1), balance=True)
    distiller = Distiller(student, losses, {"teacher": None}).eval()
    distiller.balance.w_T.copy_(torch.tensor([0.0, 1.0]))
    weights = {"ce": torch.tensor(0.5), "nkd": torch.tensor(3.0)}
    found = distiller(images, targets, {"teacher": features}, weights)
    factors = 2 * torch.tensor([0.0, 1.0]).softmax(0)
    assert [found["balance_ce"].item(), found["balance_nkd"].item()] == pytest.approx(factors.tolist())
    expected = factors[0] * 0.5 * found["ce"] + factors[1] * 3 * found["nkd"]
    assert found["total"].item() == pytest.approx(expected.item(), rel=1e-5)
    twin = Balance(2)
    twin.w_T.copy_(torch.tensor([0.0, 1.0]))
    twin(torch.stack([found["ce"], found["nkd"]]))
    assert torch.allclose(distiller.balance.w_T, twin.w_T)
    plain = Distiller(student, LossesConfig(nkd=NKDTerm(weight=1)), {"teacher": None})
    assert "balance" not in dict(plain.named_modules())


def test_factors_are_learned_from_all_ranks_terms(batch):
    def gather(values):
        return torch.cat([values, 3 * values])

    student, _, images, targets, features = batch
    distiller = Distiller(student, LossesConfig(nkd=NKDTerm(weight=1), balance=True), {"teacher": None}, gather).eval()
    found = distiller(images, targets, {"teacher": features}, WEIGHTS)
    twins = Balance(2, gather), Balance(2)
    for twin in twins:
        twin(torch.stack([found["ce"], found["nkd"]]))
    assert torch.allclose(distiller.balance.w_T, twins[0].w_T) and not torch.allclose(*(twin.w_T for twin in twins))
