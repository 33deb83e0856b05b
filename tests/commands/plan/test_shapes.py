"""Counts of parameters and operations, against published figures and by hand."""

import pytest
import timm
import torch

from vitkd_ds.commands.plan import shapes
from vitkd_ds.config.losses import TERMS
from vitkd_ds.losses import ViTKDLoss
from vitkd_ds.losses.part import Features, PairInfo
from vitkd_ds.models.cost import forward_flops, term_cost
from vitkd_ds.models.distiller import part_of


def on_meta(name, **args):
    with torch.device("meta"):
        return timm.create_model(name, **args)


@pytest.mark.parametrize(
    "name, gmacs",
    [
        ("deit_tiny_patch16_224", 1.26),
        ("deit_small_patch16_224", 4.61),
        ("deit_base_patch16_224", 17.58),
        ("deit3_large_patch16_224", 61.60),
    ],
)
def test_operation_counts_match_timms_tables(name, gmacs):
    assert forward_flops(on_meta(name), 224) / 2e9 == pytest.approx(gmacs, rel=0.01)


def test_operations_of_a_tiny_model_and_of_a_step_by_hand():
    model = on_meta("deit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=6, depth=1, num_heads=1, num_classes=2)
    tokens = 5
    block = 6 * 18 + 6 * 6 + 6 * 24 + 24 * 6
    attention = 2 * tokens * tokens * 6
    forward = 2 * (tokens * block + attention + 4 * 4 * 4 * 3 * 6 + 6 * 2)
    assert forward_flops(model, 8) == forward
    assert shapes.step_flops(model, [(model, 8)], None, image_size=8) == 4 * forward
    aligners, convolutions = 3 * 2 * 3, 2 * 9 * 3 * 3
    for loss, weights in (ViTKDLoss(2, 3), aligners + convolutions), (ViTKDLoss(3, 3), convolutions):
        assert shapes.step_flops(model, [(model, 8)], loss, image_size=8) == 4 * forward + 3 * 2 * 4 * weights


def test_checkpointing_keeps_the_blocks_inputs_and_one_block():
    student = on_meta("deit_tiny_patch16_224")
    assert shapes.activation_bytes(student, checkpointed=False) == 197 * 192 * 12 * 34
    assert shapes.activation_bytes(student, checkpointed=True) == 197 * 192 * (12 * 2 + 34)


def kept_bytes(function, *inputs, parameters):
    """Bytes that autograd keeps of one call, without parameters and inputs; shared storage counts once."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*parameters, *inputs)}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(*inputs)
    return sum(storage.nbytes() for address, storage in kept.items() if address not in known)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_small_patch16_224"])
def test_bytes_kept_for_backward_match_autograd(name):
    model = timm.create_model(name).bfloat16()
    kept = kept_bytes(model, torch.randn(1, 3, 224, 224).bfloat16(), parameters=model.parameters())
    planned = shapes.activation_bytes(model, checkpointed=False)
    assert 0.95 * planned < kept < planned


def test_bytes_kept_by_the_loss_match_autograd_plus_the_teachers_features():
    loss = ViTKDLoss(192, 384).bfloat16()
    student = [torch.randn(*shape, 192).bfloat16().requires_grad_() for shape in ((1, 2, 196), (1, 196))]
    teacher = [torch.randn(*shape, 384).bfloat16() for shape in ((1, 2, 196), (1, 196))]
    kept = kept_bytes(loss, *student, *teacher, parameters=loss.parameters())
    kept += sum(feature.nbytes for feature in teacher)
    assert kept == pytest.approx(TERMS["vitkd"].cost.bytes_per_patch * 196 * 384, rel=0.02)


PAIR = PairInfo(student_dim=64, teacher_dim=96, student_grid=(4, 4), teacher_grid=(4, 4))
ADAPTERS = 6 * 17 * 64 * 96
"""Operations of a linear layer to the teacher's width for 16 tokens and one pooled vector, forward and backward."""
PRODUCTS = {
    "feature": ADAPTERS + 6 * 17 * 96 * 96 + 2 * 17 * 96 * 96,
    "relation": ADAPTERS + 6 * 16 * 16 * 96 + 2 * 16 * 16 * 96 + 6 * 96 * 4096,
    "vkd": 6 * 64 * 96,
    "spectral": 0,
    "attention": 0,
}


def features_of(number, dim, blocks, attention, *, is_student):
    shapes_of_all = [(5,), (dim,), (16, dim), *[(16, dim) for _ in blocks]]
    made = [torch.randn(number, *shape).bfloat16().requires_grad_(is_student) for shape in shapes_of_all]
    maps = {block: torch.rand(number, 16, 16).requires_grad_(is_student) for block in attention}
    return Features(*made[:3], dict(zip(blocks, made[3:])), maps=maps)


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_terms_cost_counts_its_matrix_products_and_autograds_memory(name):
    term = TERMS[name](weight=1.0)
    counted, kept = term_cost(term, PAIR, num_classes=5)
    assert counted == PRODUCTS[name]
    part = part_of(term)(term, PAIR)
    for parameter in part.parameters():
        parameter.data = parameter.bfloat16()

    def kept_of(number):
        needs = term.needs
        student = features_of(number, 64, needs.student_blocks, needs.student_attention, is_student=True)
        teacher = features_of(number, 96, needs.teacher_blocks, needs.teacher_attention, is_student=False)
        of_student, of_teacher = (
            [each.pooled_BD, each.final_BPD, *each.blocks.values(), *each.maps.values()] for each in (student, teacher)
        )
        targets_BK = torch.zeros(number, 5)
        kept = kept_bytes(lambda *_: part(student, teacher, targets_BK), *of_student, *of_teacher, parameters=())
        return kept + sum(tensor.nbytes for tensor in of_teacher)

    assert kept == kept_of(4) - kept_of(3) > 0
