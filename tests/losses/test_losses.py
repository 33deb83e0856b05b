"""Invariants of the losses, and comparison with their float64 twins in tests/reference."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.reference import losses as reference
from vitkd_ds import ViTKDLoss, kd_loss, nkd_loss
from vitkd_ds.losses import soft_cross_entropy


def logits(seed, shape=(5, 7), scale=3.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(grid, student_dim, teacher_dim, images=2):
    generator, tokens = torch.Generator().manual_seed(0), grid[0] * grid[1]

    drawn = {"noise": torch.rand(images, tokens, generator=generator)}
    for side, dim in ("student", student_dim), ("teacher", teacher_dim):
        for depth, shape in ("shallow", (images, 2, tokens, dim)), ("deep", (images, tokens, dim)):
            drawn[f"{side}_{depth}"] = torch.randn(shape, generator=generator, dtype=torch.float64)
    return drawn


def call(loss, inputs, **kwargs):
    arguments = [inputs[name] for name in ("student_shallow", "student_deep", "teacher_shallow", "teacher_deep")]
    return loss(*arguments, noise_BP=inputs["noise"], **kwargs)


STUDENT, TEACHER, INDICES = logits(0), logits(1), torch.tensor([0, 6, 3, 3, 1])


@pytest.mark.parametrize("loss, twin, others, numbers", [
    (soft_cross_entropy, reference.cross_entropy, [TEACHER.softmax(1)], {}),
    (kd_loss, reference.kd, [TEACHER], {"temperature": 1.0}),
    (kd_loss, reference.kd, [TEACHER], {"temperature": 4.0}),
    (nkd_loss, reference.nkd, [TEACHER, INDICES], {"temperature": 2.0, "gamma": 1.5}),
    (nkd_loss, reference.nkd, [TEACHER, logits(2).softmax(1)], {"temperature": 2.0, "gamma": 1.5}),
])  # fmt: skip
def test_losses_of_logits_match_their_twins(loss, twin, others, numbers):
    assert loss(STUDENT, *others, **numbers).item() == pytest.approx(twin(STUDENT, *others, **numbers), rel=1e-12)


@pytest.mark.parametrize("grid, dims, ratio", [((3, 3), (4, 6), 0.5), ((2, 4), (4, 6), 0.3), ((3, 2), (5, 5), 0.75)])
def test_vitkd_matches_its_twin_even_on_grids_that_are_not_square(grid, dims, ratio):
    torch.manual_seed(0)
    loss = ViTKDLoss(*dims, alpha=0.1, beta=0.2, mask_ratio=ratio, student_grid=grid, teacher_grid=grid).double()
    torch.nn.init.normal_(loss.mask_token)
    inputs = features(grid, *dims)
    mimic, generate = reference.vitkd(loss.state_dict(), inputs, grid, 0.1, 0.2, ratio)
    terms = call(loss, inputs)
    assert terms["mimic"].item() == pytest.approx(mimic, rel=1e-12)
    assert terms["generate"].item() == pytest.approx(generate, rel=1e-12)


@pytest.mark.parametrize("grid, dims, times", [((3, 3), (4, 6), 196 * 384 / 54), ((14, 14), (8, 384), 1.0)])
def test_scaled_weights_are_the_papers_for_the_actual_number_of_summands(grid, dims, times):
    plain, scaled = (ViTKDLoss(*dims, alpha=0.1, beta=0.2, scaled=is_scaled).double() for is_scaled in (False, True))
    scaled.load_state_dict(plain.state_dict())
    inputs = features(grid, *dims)
    before, found = call(plain, inputs), call(scaled, inputs)
    for name in ("mimic", "generate", "total"):
        assert found[name].item() == pytest.approx(times * before[name].item(), rel=1e-12)
    assert times != 1 or all(torch.equal(found[name], before[name]) for name in found), (
        "the paper's pair stays as it is"
    )


def test_scaled_weights_use_the_students_grid_to_which_the_teachers_is_resized():
    plain, scaled = (
        ViTKDLoss(4, 6, student_grid=(4, 4), teacher_grid=(8, 8), scaled=is_scaled).double() for is_scaled in (0, 1)
    )
    scaled.load_state_dict(plain.state_dict())
    student, teacher = features((4, 4), 4, 6), features((8, 8), 4, 6)
    mixed = student | {name: teacher[name] for name in ("teacher_shallow", "teacher_deep")}
    ratio = call(scaled, mixed)["total"] / call(plain, mixed)["total"]
    assert ratio.item() == pytest.approx(196 * 384 / (16 * 6), rel=1e-6)


@pytest.mark.parametrize("tokens, ratio, masked", [(196, 0.5, 98), (49, 0.5, 25), (25, 0.75, 19), (49, 0.3, 15)])
def test_exactly_the_official_number_of_tokens_is_masked(tokens, ratio, masked):
    loss, seen, side = ViTKDLoss(4, 4, mask_ratio=ratio).double(), [], int(tokens**0.5)
    torch.nn.init.constant_(loss.mask_token, 99)
    loss.generation.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    call(loss, features((side, side), 4, 4))
    assert (seen[0] == 99).all(dim=1).sum(dim=(1, 2)).tolist() == [masked, masked]


@pytest.mark.parametrize("old, new", [((16, 16), (14, 14)), ((6, 4), (3, 2)), ((3, 5), (4, 2))])
def test_a_teacher_on_another_grid_is_resized_like_pillow(old, new):
    loss = ViTKDLoss(4, 6, student_grid=new, teacher_grid=old).double()
    student, teacher, by_hand = features(new, 4, 6), features(old, 4, 6), {}
    for name in ("teacher_shallow", "teacher_deep"):
        maps = teacher[name].float().reshape(-1, *old, 6).permute(0, 3, 1, 2).flatten(0, 1).numpy()
        resized = [Image.fromarray(each).resize(new[::-1], Image.Resampling.BILINEAR) for each in maps]
        tokens = torch.from_numpy(np.stack(resized)).reshape(-1, 6, new[0] * new[1]).transpose(1, 2)
        by_hand[name] = tokens.reshape(student[name].shape).double()
    on_equal_grids = ViTKDLoss(4, 6, student_grid=new, teacher_grid=new).double()
    on_equal_grids.load_state_dict(loss.state_dict())
    found = call(loss, student | {name: teacher[name] for name in by_hand})
    expected = call(on_equal_grids, student | by_hand)
    for name in ("mimic", "generate"):
        assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-5)


def test_the_default_noise_follows_torchs_seed():
    loss = ViTKDLoss(4, 6).double()
    inputs = features((4, 4), 4, 6) | {"noise": None}
    totals = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        totals.append(call(loss, inputs)["generate"].item())
    assert totals[0] == totals[1] != totals[2]


def test_the_default_noise_masks_each_image_differently():
    loss, seen = ViTKDLoss(4, 4).double(), []
    torch.nn.init.constant_(loss.mask_token, 99)
    loss.generation.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    torch.manual_seed(0)
    call(loss, features((4, 4), 4, 4, images=8) | {"noise": None})
    assert len({tuple(mask) for mask in (seen[0] == 99).all(dim=1).flatten(1).tolist()}) == 8


def test_the_teacher_gets_no_gradient_from_any_loss():
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    (kd_loss(student, teacher) + nkd_loss(student, teacher, torch.arange(5))).backward()
    inputs = features((4, 4), 4, 6)
    inputs = {name: value.requires_grad_() if name != "noise" else value for name, value in inputs.items()}
    call(ViTKDLoss(4, 6).double(), inputs)["total"].backward()
    assert student.grad is not None and inputs["student_deep"].grad is not None
    assert teacher.grad is None and inputs["teacher_deep"].grad is None and inputs["teacher_shallow"].grad is None


def test_losses_of_extreme_logits_are_finite_under_bf16_autocast():
    student = torch.tensor([[3e4, -3e4, 0.0], [-3e4, 3e4, 1.0]], requires_grad=True)
    teacher = -student.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        linear = torch.nn.functional.linear(student, torch.eye(3))
        assert linear.dtype == torch.bfloat16
        total = kd_loss(linear, teacher.bfloat16()) + nkd_loss(linear, teacher.bfloat16(), torch.tensor([0, 1]))
        total = total + soft_cross_entropy(linear, torch.eye(3)[:2])
    total.backward()
    assert total.dtype == torch.float32
    assert torch.isfinite(total) and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("loss, twin, others", [
    (soft_cross_entropy, reference.cross_entropy, [TEACHER.softmax(1)]),
    (kd_loss, reference.kd, [TEACHER]), (nkd_loss, reference.nkd, [TEACHER, TEACHER.softmax(1)]),
])  # fmt: skip
def test_softmaxes_of_bf16_logits_are_fp32(loss, twin, others):
    rounded = [values.bfloat16() for values in (STUDENT, *others)]
    numbers = {} if loss is soft_cross_entropy else {"temperature": 2.0}
    numbers |= {"gamma": 1.5} if loss is nkd_loss else {}
    expected = twin(*(values.double() for values in rounded), **numbers)
    assert loss(*rounded, **numbers).item() == pytest.approx(expected, rel=1e-5)


def test_squares_and_sums_of_bf16_features_are_fp32():
    loss = ViTKDLoss(8, 8, alpha=1.0, beta=1.0)
    inputs = {name: value.float() for name, value in features((14, 14), 8, 8).items()}
    rounded = {name: value if name == "noise" else value.bfloat16() for name, value in inputs.items()}
    found = call(loss.bfloat16(), rounded)["mimic"]
    exact = ((rounded["student_shallow"].double() - rounded["teacher_shallow"].double()) ** 2).sum() / 2
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-6)


def test_the_convolutions_get_channels_last_images_without_a_copy():
    loss, seen = ViTKDLoss(4, 6).double(), []
    loss.generation[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    call(loss, features((4, 4), 4, 6))
    assert seen[0].is_contiguous(memory_format=torch.channels_last) and seen[0]._base is not None


@pytest.mark.parametrize("make, message", [
    (lambda: ViTKDLoss(4, 6, mask_ratio=1.0), "mask_ratio must be between 0 and 1, got 1.0"),
    (lambda: call(ViTKDLoss(4, 6), features((4, 4), 5, 6)), "student features must be"),
    (lambda: call(ViTKDLoss(4, 6), features((2, 4), 4, 6)), "8 student tokens do not form a square grid"),
    (lambda: kd_loss(STUDENT, logits(1, (5, 8))), "must both be"),
    (lambda: nkd_loss(STUDENT, TEACHER, torch.rand(5)), "targets must be integer class indices"),
    (lambda: soft_cross_entropy(STUDENT, torch.zeros(5, dtype=torch.long)), "Convert class indices to one-hot"),
])  # fmt: skip
def test_invalid_inputs_are_rejected_with_their_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()
