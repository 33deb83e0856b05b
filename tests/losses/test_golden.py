"""Values and gradients equal the official code's, recorded in tests/golden/official_losses.npz."""

import pytest
import torch

from tests.losses.golden import DTYPES, TOLERANCE, assert_close, case
from vitkd_ds import ViTKDLoss, kd_loss, nkd_loss


@DTYPES
@pytest.mark.parametrize("name", ["vitkd0", "vitkd1", "vitkd2", "vitkd3"])
def test_vitkd_matches_the_official_value_and_every_gradient(name, dtype):
    golden = case(name)
    inputs = [
        golden[f"{side}_{depth}"].to(dtype) for side in ("student", "teacher") for depth in ("shallow_BLPD", "deep_BPD")
    ]
    shallow, deep = (x.requires_grad_() for x in inputs[:2])
    loss = ViTKDLoss(deep.shape[2], inputs[3].shape[2], mask_ratio=float(golden["mask_ratio"])).to(dtype)
    state = {key.removeprefix("param:"): value for key, value in golden.items() if key.startswith("param:")}
    loss.load_state_dict(state, strict=True)  # the official names; equal widths need no aligners
    terms = loss(shallow, deep, *inputs[2:], noise_BP=golden["noise_BP"])
    terms["total"].backward()
    for total in (terms["total"], terms["mimic"] + terms["generate"]):
        assert_close(total.detach(), golden["loss"], TOLERANCE[dtype])
    assert_close(shallow.grad, golden["grad_student_shallow"], TOLERANCE[dtype])
    assert_close(deep.grad, golden["grad_student_deep"], TOLERANCE[dtype])
    for key, parameter in loss.named_parameters():
        assert_close(parameter.grad, golden[f"grad:{key}"], TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("name", ["nkd0", "nkd1", "nkd2", "nkd3"])
def test_nkd_matches_the_official_value_and_gradient(name, dtype):
    golden = case(name)
    student = golden["student_logits_BK"].to(dtype).requires_grad_()
    numbers = {key: float(golden[key]) for key in ("temperature", "gamma")}
    loss = nkd_loss(student, golden["teacher_logits_BK"].to(dtype), golden["targets"], **numbers)
    loss.backward()
    assert_close(loss.detach(), golden["loss"], TOLERANCE[dtype])
    assert_close(student.grad, golden["grad_student_logits"], TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("name", ["kd0", "kd1"])
def test_kd_times_alpha_plus_the_teachers_entropy_matches_the_official_loss(name, dtype):
    golden = case(name)
    temperature, alpha = float(golden["temperature"]), float(golden["alpha"])
    student = golden["student_logits_BK"].to(dtype).requires_grad_()
    teacher = golden["teacher_logits_BK"].to(dtype)
    loss = kd_loss(student, teacher, temperature=temperature)
    loss.backward()
    entropy = torch.distributions.Categorical(logits=teacher.double() / temperature).entropy().mean()
    assert_close(alpha * (loss.detach().double() + temperature**2 * entropy), golden["loss"], TOLERANCE[dtype])
    assert_close(alpha * student.grad, golden["grad_student_logits"], TOLERANCE[dtype])
