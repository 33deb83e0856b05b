"""Terms with parameters or buffers: adapters, targets, projector, queue, factors."""

import pytest
import torch
import torch.nn.functional as F

from tests.losses.test_methods import random
from tests.reference import losses as reference
from vitkd_ds.config.losses import FeatureTerm, RelationTerm, VkDTerm
from vitkd_ds.losses import vkd_loss
from vitkd_ds.losses.balance import Balance
from vitkd_ds.losses.feature import Feature, Target, equal_variances, hadamard, phi_s
from vitkd_ds.losses.part import Features, PairInfo
from vitkd_ds.losses.relation import Relation
from vitkd_ds.losses.vkd import OrthogonalProjector, VkD

PAIR = PairInfo(student_dim=6, teacher_dim=8, student_grid=(2, 3), teacher_grid=(2, 3))


def features(dim, *, images=4, tokens=6, seed=0):
    return Features(None, random(images, dim, seed=seed), random(images, tokens, dim, seed=seed + 1))


@pytest.mark.parametrize("target", ["raw", "layer_norm", "standardize", "phi_s"])
def test_feature_matches_its_twin_for_every_target(target):
    torch.manual_seed(0)
    part = Feature(FeatureTerm(weight=1, target=target, calibration_batches=3), PAIR).double()
    own, other = features(6), features(8, seed=5)
    expected = [other.pooled_BD, other.final_BPD]
    assert part.num_calibrating == (3 if target in ("standardize", "phi_s") else 0)
    if target == "layer_norm":
        expected = [F.layer_norm(each, (8,)) for each in expected]
    if part.num_calibrating:
        for path, values in part.features_to_calibrate(features(8, images=40, seed=7)).items():
            values = values.flatten(0, -2)
            part.get_submodule(path).fix(values.mean(0), torch.cov(values.T, correction=0))
            place = 0 if path == "targets.pooled" else 1
            if target == "standardize":
                expected[place] = (expected[place] - values.mean(0)) / values.std(0, correction=0)
            else:
                expected[place] = (expected[place] - values.mean(0)) @ phi_s(torch.cov(values.T, correction=0)).T
    found = part(own, other, None)
    adapted = [part.adapters[kind](each) for kind, each in (("pooled", own.pooled_BD), ("patches", own.final_BPD))]
    for value, twin in zip(found.values(), reference.feature(*adapted, *expected), strict=True):
        assert value.item() == pytest.approx(twin, rel=1e-9)
    assert list(found) == ["feature_class", "feature_patches"]
    assert part.adapters["pooled"][0].weight is not part.adapters["patches"][0].weight


def test_the_smaller_grid_is_interpolated_to_the_larger_one():
    torch.manual_seed(0)
    for student_grid, teacher_grid in (((2, 2), (4, 4)), ((4, 4), (2, 2))):
        pair = PairInfo(6, 8, student_grid, teacher_grid)
        part = Feature(FeatureTerm(weight=1, target="raw"), pair).double()
        own, other = features(6, tokens=student_grid[0] ** 2), features(8, tokens=teacher_grid[0] ** 2, seed=5)
        found = part(own, other, None)["feature_patches"]
        adapted = part.adapters["patches"](own.final_BPD)
        tokens = {"own": (adapted, student_grid), "other": (other.final_BPD, teacher_grid)}
        larger = []
        for values, (rows, columns) in tokens.values():
            image = values.transpose(1, 2).reshape(4, 8, rows, columns)
            image = F.interpolate(image, size=(4, 4), mode="bicubic") if rows == 2 else image
            larger.append(image.flatten(2).transpose(1, 2))
        _, expected = reference.feature(own.pooled_BD, larger[0], own.pooled_BD, larger[1])
        assert found.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dims", [(4, 9), (9, 4), (5, 5)])
def test_a_projector_is_orthogonal_for_any_parameter_and_learns(dims):
    torch.manual_seed(0)
    projector = OrthogonalProjector(*dims)
    smaller = min(dims)
    target = random(8, dims[1]).float()
    for dtype in (torch.float32, torch.bfloat16):
        projector = projector.to(dtype)
        for scale in (1.0, 0.0, 100.0):
            with torch.no_grad():
                projector.reflections.mul_(scale).add_(scale - 1)
            weight = projector.weight()
            assert weight.shape == (dims[1], dims[0]) and weight.dtype == torch.float32
            square = weight.T @ weight if dims[1] >= dims[0] else weight @ weight.T
            torch.testing.assert_close(square, torch.eye(smaller), rtol=0, atol=1e-5)
    projector = OrthogonalProjector(*dims)
    optimizer, losses = torch.optim.SGD(projector.parameters(), lr=1.0), []
    inputs = random(8, dims[0], seed=2).float()
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(vkd_loss(projector(inputs), target))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_vkd_pools_patches_projects_them_and_compares_with_the_pooled_teacher():
    torch.manual_seed(0)
    part = VkD(VkDTerm(weight=1), PAIR).double()
    own, other = features(6), features(8, seed=5)
    projected = own.final_BPD.mean(1) @ part.projector.weight().T
    expected = reference.vkd(projected.detach(), other.final_BPD.mean(1))
    assert part(own, other, None)["vkd"].item() == pytest.approx(expected, rel=1e-9)


def test_a_queue_keeps_the_newest_features_of_all_ranks_and_starts_empty():
    torch.manual_seed(0)
    gathered = []

    def gather(values):
        gathered.append(values)
        return torch.cat([values, values + 1])

    part = Relation(RelationTerm(weight=1, queue=10, temperature=0.2), PAIR, gather).double()
    past = []
    for step in range(3):
        own, other = features(6, seed=10 * step), features(8, seed=10 * step + 5)
        found = part(own, other, None)
        past += [*other.pooled_BD, *(other.pooled_BD + 1)]
        pooled, patches = part.pooled(own.pooled_BD).detach(), part.patches(own.final_BPD).detach()
        expected = reference.relation_global(pooled, other.pooled_BD, torch.stack(past[-10:]), temperature=0.2)
        assert found["relation_global"].item() == pytest.approx(expected, rel=1e-8)
        local = reference.relation_local(patches, other.final_BPD, temperature=0.2)
        assert found["relation_local"].item() == pytest.approx(local, rel=1e-8)
    assert len(gathered) == 3 and part.num_seen == 24


def test_each_target_is_calibrated_on_its_own_features():
    part, teacher = Feature(FeatureTerm(weight=1), PAIR), features(8)
    found = part.features_to_calibrate(teacher)
    for kind, values in (("pooled", teacher.pooled_BD), ("patches", teacher.final_BPD)):
        assert part.get_submodule(f"targets.{kind}") is part.targets[kind] and found[f"targets.{kind}"] is values


def test_a_queue_given_too_many_images_keeps_the_newest():
    part = Relation(RelationTerm(weight=1, queue=3), PairInfo(4, 6, (2, 2), (2, 2)))
    teacher = random(5, 6).float()
    part._remember(teacher)
    assert torch.allclose(part.queue_QD, F.normalize(teacher[-3:], dim=1)) and part.num_seen == 3


def test_a_channel_that_never_varied_stays_small():
    target = Target("standardize", 4).double()
    seen = random(100, 4)
    seen[:, 2] = 5.0
    target.fix(seen.mean(0), torch.cov(seen.T, correction=0))
    later = torch.full((1, 4), 6.0, dtype=torch.float64)
    found = target(later)
    assert found[0, 2].item() == pytest.approx(1 / (1e-4 * seen.var(0, correction=0).mean().item()) ** 0.5)
    expected = (6 - seen.mean(0)) / seen.std(0, correction=0)
    torch.testing.assert_close(found[0, [0, 1, 3]], expected[[0, 1, 3]])


@pytest.mark.parametrize("order, doublings", [(1, 1), (1, 8), (12, 1), (12, 2), (12, 32), (12, 64)])
def test_hadamard_matrices_have_equal_absolute_entries_and_orthogonal_rows(order, doublings):
    matrix, dim = hadamard(order, doublings), order * doublings
    assert matrix.shape == (dim, dim) and (matrix.abs() == 1).all()
    assert torch.equal(matrix @ matrix.T, dim * torch.eye(dim, dtype=torch.float64))
    if dim > 1:
        rotation = equal_variances(torch.rand(dim, dtype=torch.float64)) * dim**0.5
        torch.testing.assert_close(rotation.abs(), torch.ones_like(rotation))


def test_the_weight_is_the_same_product_of_reflections_as_torchs():
    torch.manual_seed(0)
    for dims in ((5, 9), (9, 5), (7, 7)):
        projector = OrthogonalProjector(*dims).double()
        vectors = torch.tril(projector.reflections, diagonal=-1)
        columns = torch.linalg.householder_product(vectors, 2 / (1 + vectors.square().sum(0)))
        torch.testing.assert_close(projector.weight(), columns if dims[1] >= dims[0] else columns.T)


def test_factors_of_two_terms_match_a_case_by_hand_and_the_twin():
    balance = Balance(2)
    first = balance(torch.tensor([2.0, 2.0]))
    assert first.tolist() == [1, 1] and balance.w_T.tolist() == [0, 0], "equal terms stay equal"
    first = balance(torch.tensor([4.0, 1.0]))  # log 4 and 0: s = log 2, gradient s (log 4 - s) / 2 = log(2)^2 / 2
    half = torch.tensor(2.0).log().item() ** 2 / 2
    assert first.tolist() == [1, 1]
    assert balance.w_T.tolist() == pytest.approx([-0.025 * half, 0.025 * half], rel=1e-6)
    steps = [[3.0, 0.5, 7.0], [2.5, 0.4, 6.0], [0.1, 0.1, 5.0], [0.2, 0.3, 4.0]]
    balance = Balance(3).double()
    found = [balance(torch.tensor(values, dtype=torch.float64)).tolist() for values in steps]
    for factors, twin in zip(found, reference.balance(steps, lr=0.025, decay=0.01)):
        assert factors == pytest.approx(twin, rel=1e-6) and sum(factors) == pytest.approx(3)


def test_ranks_with_different_values_have_the_same_factors():
    seen = []

    def gather(values):
        seen.append(values)
        return torch.cat([values, torch.tensor([[1.0, 3.0]])])

    balance, alone = Balance(2, gather), Balance(2)
    balance(torch.tensor([3.0, 5.0])), alone(torch.tensor([2.0, 4.0]))
    assert torch.equal(balance.w_T, alone.w_T) and seen[0].tolist() == [[3.0, 5.0]]


def test_features_in_bf16_are_compared_in_fp32():
    own, other = (Features(None, *(each.bfloat16() for each in both[1:3])) for both in (features(6), features(8)))
    exact = [Features(None, *(each.double() for each in both[1:3])) for both in (own, other)]
    for make in (lambda: VkD(VkDTerm(weight=1), PAIR), lambda: Feature(FeatureTerm(weight=1, target="raw"), PAIR)):
        torch.manual_seed(0)
        part = make().bfloat16()
        found = part(own, other, None)
        expected = part.double()(*exact, None)
        for name, value in found.items():
            assert value.dtype == torch.float32 and value.item() == pytest.approx(expected[name].item(), rel=0.02)


@pytest.mark.parametrize("kind", ["standardize", "phi_s"])
def test_features_that_never_vary_lose_their_mean_and_stay_finite(kind):
    target = Target(kind, 4)
    target.fix(torch.full((4,), 3.0, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64))
    torch.testing.assert_close(target(torch.full((2, 4), 3.5)), torch.full((2, 4), 0.5))


@pytest.mark.parametrize("values", [
    [1.0] * 5, [0.0] * 5, [0.0, 0.0, 0.0, 0.0, 3.0], [1e-30, 1.0, 2.0, 1e6, 1e6], [0.1, 0.1, 0.1 + 1e-16, 0.1, 0.1],
    [7.0], [0.0] * 8,
])  # fmt: skip
def test_a_rotation_equalises_variances_even_if_some_or_all_are_equal_or_zero(values):
    values_D = torch.tensor(values, dtype=torch.float64)
    rotation_DD = equal_variances(values_D)
    eye = torch.eye(len(values), dtype=torch.float64)
    torch.testing.assert_close(rotation_DD @ rotation_DD.T, eye, rtol=0, atol=1e-9)
    found = (rotation_DD @ values_D.diag() @ rotation_DD.T).diagonal()
    torch.testing.assert_close(found, values_D.mean().expand_as(found), rtol=1e-6, atol=1e-12)
