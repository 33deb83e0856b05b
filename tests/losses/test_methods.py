"""Losses of rival methods: the official code's values and gradients, and float64 twins in tests/reference."""

import pytest
import torch
import torch.nn.functional as F

from tests.losses.golden import DTYPES, TOLERANCE, assert_close, case
from tests.reference import losses as reference
from vitkd_ds.config.losses import AttentionTerm, RelationTerm, SpectralTerm
from vitkd_ds.losses import (
    dist_loss,
    dkd_loss,
    global_relation_loss,
    kd_loss,
    local_relation_loss,
    spectral_loss,
    vkd_loss,
    wttm_loss,
)
from vitkd_ds.losses.attention import Attention, attention_loss
from vitkd_ds.losses.feature import Target, phi_s
from vitkd_ds.losses.part import Features, PairInfo
from vitkd_ds.losses.precision import standardized
from vitkd_ds.losses.relation import Relation
from vitkd_ds.losses.spectral import Spectral


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sums", [(1, 1), (0.3, 0.9)])
def test_attention_matches_its_twins_value_and_gradient_for_any_prefix_attention(sums):
    student, teacher = ((part * random(3, 5, 5, seed=i).softmax(-1)).requires_grad_() for i, part in enumerate(sums))
    found = attention_loss(student, teacher)
    assert found.item() == pytest.approx(reference.attention(student, teacher), rel=1e-9)
    found.backward()
    shares = [each.detach() / each.detach().sum(-1, keepdim=True) for each in (student, teacher)]
    expected = (1 - shares[1] / shares[0]) / student.detach().sum(-1, keepdim=True) / 15
    torch.testing.assert_close(student.grad, expected)
    assert teacher.grad is None and attention_loss(student, 2 * student).item() == pytest.approx(0, abs=1e-12)
    assert attention_loss(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32
    assert attention_loss(torch.eye(4)[None], torch.eye(4)[None].roll(1, 2)).isfinite()


def test_attention_compares_pairs_of_blocks_and_needs_equal_grids():
    term, pair = AttentionTerm(weight=1, student_blocks=(0, -1), teacher_blocks=(2, 1)), PairInfo(6, 8, (2, 2), (2, 2))
    maps = [{number: random(3, 4, 4, seed=10 * i + number).softmax(-1) for number in (-1, 0, 1, 2)} for i in (1, 2)]
    found = Attention(term, pair)(*(Features(None, maps=each) for each in maps), None)["attention"]
    expected = [reference.attention(maps[0][own], maps[1][other]) for own, other in ((0, 2), (-1, 1))]
    assert found.item() == pytest.approx(sum(expected) / 2, rel=1e-9)
    with pytest.raises(ValueError, match="losses.attention needs the same patch grid"):
        Attention(term, PairInfo(6, 8, (2, 2), (3, 3)))
    with pytest.raises(ValueError, match="losses.attention.teacher_blocks must have as many blocks"):
        AttentionTerm(student_blocks=(0, 1), teacher_blocks=(0,)).check_run(None)


LOGIT_CASES = {
    **{f"wttm{i}": (wttm_loss, ("gamma",), {}) for i in range(3)},
    **{f"ttm{i}": (wttm_loss, ("gamma",), {"weighted": False}) for i in range(3)},
    **{f"dist{i}": (dist_loss, ("beta", "gamma"), {}) for i in range(2)},
    **{f"standardized_kd{i}": (kd_loss, ("temperature",), {"standardize": True}) for i in range(2)},
    **{f"dkd{i}": (dkd_loss, ("alpha", "beta", "temperature"), {}) for i in range(3)},
}


@DTYPES
@pytest.mark.parametrize("name", LOGIT_CASES)
def test_losses_of_logits_match_the_official_values_and_gradients(name, dtype):
    golden, (loss, keys, more) = case(name), LOGIT_CASES[name]
    student, teacher = (golden[f"{who}_logits_BK"].to(dtype) for who in ("student", "teacher"))
    inputs = [student.requires_grad_(), teacher.requires_grad_()]
    if golden.get("standardized", torch.zeros(())) > 0:
        inputs = [standardized(each) for each in inputs]
    if "labels_B" in golden:
        inputs.append(golden["labels_B"].long())
    found = loss(*inputs, **{key: float(golden[key]) for key in keys}, **more)
    found.backward()
    assert_close(found.detach(), golden["loss"], TOLERANCE[dtype])
    assert_close(student.grad, golden["grad_student_logits"], TOLERANCE[dtype])
    assert teacher.grad is None


@DTYPES
@pytest.mark.parametrize("name", ["spectral0", "spectral1", "spectral2"])
def test_spectral_matches_the_official_value_and_gradient(name, dtype):
    golden = case(name)
    student, teacher = golden["student_LBDHW"].to(dtype).requires_grad_(), golden["teacher_LBDHW"].to(dtype)
    num_layers, _, width, *grid = student.shape
    blocks = tuple(range(num_layers))
    term = SpectralTerm(weight=1, student_blocks=blocks, teacher_blocks=tuple(range(3, 3 + num_layers)))
    part = Spectral(term, PairInfo(width, teacher.shape[2], tuple(grid), tuple(grid)))
    tokens = [each.flatten(3).transpose(2, 3) for each in (student, teacher)]
    own = Features(None, blocks=dict(enumerate(tokens[0])))
    other = Features(None, blocks={3 + i: layer for i, layer in enumerate(tokens[1])})
    found = part(own, other, None)["spectral"]
    found.backward()
    assert_close(found.detach(), golden["loss"], 1e-5)  # the official code computes in fp32
    assert_close(student.grad, golden["grad_student"], 1e-5)


@DTYPES
@pytest.mark.parametrize("name", ["relation0", "relation1"])
def test_relations_match_the_official_values_and_gradients(name, dtype):
    golden = {key: value.to(dtype) for key, value in case(name).items()}
    patches, pooled = (golden[f"student_{key}"].requires_grad_() for key in ("patches_BPD", "global_BD"))
    numbers = {"temperature": float(golden["temperature"])}
    local = local_relation_loss(patches, golden["teacher_patches_BPD"], **numbers)
    image = global_relation_loss(pooled, golden["teacher_global_BD"], golden["queue_QD"], **numbers)
    (local + image).backward()
    for found, key in ((local, "loss_local"), (image, "loss_global")):
        assert_close(found.detach(), golden[key].double(), TOLERANCE[dtype])
    for found, key in ((patches, "patches"), (pooled, "global")):
        assert_close(found.grad, golden[f"grad_student_{key}"].double(), TOLERANCE[dtype])


@DTYPES
def test_vkd_matches_the_official_value_and_gradient(dtype):
    golden = {key: value.to(dtype) for key, value in case("vkd0").items()}
    tokens = golden["student_tokens_BND"].requires_grad_()
    projected = F.linear(tokens.mean(1), golden["projector_weight"])
    found = vkd_loss(projected, golden["teacher_map_BDHW"].mean((2, 3)))
    found.backward()
    assert_close(found.detach(), golden["loss"].double(), TOLERANCE[dtype])
    assert_close(tokens.grad, golden["grad_student"].double(), TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["phi_s0", "phi_s1", "phi_s2"])
def test_phi_s_has_the_official_covariance_up_to_the_signs_of_the_eigenvectors(name):
    golden = case(name)
    features, mean = golden["features_ND"], golden["mean_D"]
    # The official covariance divides by the number of features minus one.
    target = Target("phi_s", len(mean)).double()
    target.fix(features.mean(0), torch.cov(features.T))
    found, expected = target(features), golden["transformed_ND"]
    assert_close(target.mean_D, mean, 1e-12)
    variances = torch.cov(found.T).diagonal()
    torch.testing.assert_close(variances, torch.cov(expected.T).diagonal())
    torch.testing.assert_close(variances, torch.ones_like(variances))
    both = [torch.linalg.eigvalsh(torch.cov(each.T)) for each in (found, expected)]
    torch.testing.assert_close(*both, rtol=1e-9, atol=1e-9)
    pairs = [torch.pdist(each) for each in (found, expected)]
    torch.testing.assert_close(*pairs)  # the same geometry


@pytest.mark.parametrize("dim", [2, 6, 24, 32])
def test_phi_s_of_any_width_gives_all_channels_unit_variance_by_a_rotation_and_one_scale(dim):
    features = random(500, dim) @ random(dim, dim, seed=1) + 3
    covariance = torch.cov(features.T)
    matrix = phi_s(covariance)
    torch.testing.assert_close((matrix @ covariance @ matrix.T).diagonal(), torch.ones(dim, dtype=torch.float64))
    square = matrix @ matrix.T
    torch.testing.assert_close(square, square[0, 0] * torch.eye(dim, dtype=torch.float64))


STUDENT, TEACHER, LABELS = random(5, 7, scale=3), random(5, 7, seed=1, scale=3), torch.tensor([0, 6, 3, 3, 1])


@pytest.mark.parametrize("loss, twin, others, numbers", [
    (wttm_loss, reference.wttm, [], {"gamma": 0.3}), (wttm_loss, reference.wttm, [], {"gamma": 2, "weighted": False}),
    (dist_loss, reference.dist, [], {"beta": 2.0, "gamma": 0.5}),
    (dkd_loss, reference.dkd, [LABELS], {"alpha": 2.0, "beta": 0.5, "temperature": 3.0}),
    (lambda *a, **k: kd_loss(*a, standardize=True, **k), reference.standardized_kd, [], {"temperature": 3.0}),
    (vkd_loss, reference.vkd, [], {}),
])  # fmt: skip
def test_losses_match_their_twins(loss, twin, others, numbers):
    found = loss(STUDENT, TEACHER, *others, **numbers).item()
    assert found == pytest.approx(twin(STUDENT, TEACHER, *others, **numbers), rel=1e-10)


@pytest.mark.parametrize("grid, widths", [((3, 4), (4, 4)), ((4, 3), (3, 7)), ((2, 5), (2, 6))])
def test_spectral_matches_its_twin(grid, widths):
    tokens = [random(2, grid[0] * grid[1], width, seed=i) for i, width in enumerate(widths)]
    assert spectral_loss(*tokens, grid=grid).item() == pytest.approx(reference.spectral(*tokens, grid), rel=1e-10)


def test_relations_match_their_twins_and_a_queues_empty_rows_do_not_count():
    own, other, queue = random(2, 5, 3), random(2, 5, 4, seed=1), random(6, 4, seed=2)
    found = local_relation_loss(own, other, temperature=0.2).item()
    assert found == pytest.approx(reference.relation_local(own, other, temperature=0.2), rel=1e-10)
    own, other = random(3, 4), random(3, 4, seed=1)
    expected = reference.relation_global(own, other, queue[:4], temperature=0.2)
    filled = torch.arange(6) < 4
    found = global_relation_loss(own, other, F.normalize(queue, dim=1), filled, temperature=0.2).item()
    assert found == pytest.approx(expected, rel=1e-10)


def test_equal_logits_standardise_to_0_with_a_finite_gradient():
    student = torch.zeros(2, 5, requires_grad=True)
    loss = kd_loss(student, random(2, 5).float(), standardize=True)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student.grad).all()


def test_losses_of_extreme_logits_are_finite_under_bf16_autocast():
    student = torch.tensor([[3e4, -3e4, 0.0], [-3e4, 3e4, 1.0]], requires_grad=True)
    teacher = (-student.detach()).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        linear = F.linear(student, torch.eye(3))
        total = wttm_loss(linear, teacher, gamma=0.5) + dist_loss(linear, teacher)
        total = total + dkd_loss(linear, teacher, torch.tensor([0, 1])) + kd_loss(linear, teacher, standardize=True)
    total.backward()
    assert total.dtype == torch.float32 and torch.isfinite(total) and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("make, message", [
    (lambda: dkd_loss(STUDENT, TEACHER, TEACHER.softmax(1)), "DKD is not defined for mixed labels"),
    (lambda: wttm_loss(STUDENT, random(5, 8), gamma=1), "must both be"),
    (lambda: dist_loss(STUDENT, random(4, 7)), "must both be"),
    (lambda: spectral_loss(random(2, 6, 4), random(2, 6, 3), grid=(2, 3)), "at least as wide"),
    (lambda: spectral_loss(random(2, 6, 4), random(2, 6, 4), grid=(2, 2)), "must fill a 2 x 2 grid"),
    (lambda: Spectral(SpectralTerm(weight=1), PairInfo(4, 4, (2, 2), (3, 3))), "losses.spectral needs the same patch"),
    (lambda: Relation(RelationTerm(weight=1), PairInfo(4, 4, (2, 2), (3, 3))), "losses.relation needs the same patch"),
    (lambda: SpectralTerm(student_blocks=(0,)).check_run(None), "spectral.teacher_blocks must have as many blocks"),
])  # fmt: skip
def test_invalid_inputs_are_rejected_with_their_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("gamma, is_larger_where_sure", [(0.5, False), (2.0, True)])
def test_wttm_weights_an_unsure_teacher_more_if_gamma_is_below_1_and_a_sure_one_if_above(gamma, is_larger_where_sure):
    student, weights = torch.randn(1, 5, generator=torch.Generator().manual_seed(0)), []
    for logits in ([[4.0, 0, 0, 0, 0]], [[0.5, 0, 0, 0, 0]]):
        teacher = torch.tensor(logits)
        values = [wttm_loss(student, teacher, gamma=gamma, weighted=is_weighted) for is_weighted in (True, False)]
        weights.append((values[0] / values[1]).item())
    sure, unsure = weights
    assert (sure > unsure) is is_larger_where_sure
    assert all((weight <= 1) is is_larger_where_sure for weight in weights)
