"""Check that student and teacher are compatible, and return the shapes of their features for the losses."""

import math

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vitkd_ds.config.losses import LossesConfig
from vitkd_ds.config.term import terms_of_logits
from vitkd_ds.losses.part import PairInfo
from vitkd_ds.models.attention import check_attention
from vitkd_ds.models.features import TOKEN_MODELS, patch_tokens


def check_pair(
    student: nn.Module, teacher: nn.Module, losses: LossesConfig, *, image_size: int, teacher_image_size: int = 0
) -> PairInfo | None:
    """Check that teacher and student fit the active terms. Widths and patch grids may differ.

    Args:
        image_size: height and width of the student's input in pixels.
        teacher_image_size: height and width of the teacher's input in pixels; 0 means the same as the student.

    Returns:
        Widths and patch grids of both models, or None if the terms compare only logits.

    Raises:
        ValueError: the teacher has a classifier with a different number of classes than the student's; a model lacks a
            block that a term reads; or a term needs a distillation token and the student has none.
    """
    if teacher.num_classes and student.num_classes != teacher.num_classes:
        raise ValueError(
            f"student and teacher must have the same number of classes, got {student.num_classes} and "
            f"{teacher.num_classes}. Build both with data.num_classes."
        )
    of_second_head = next((name for name, term in losses.active().items() if term.needs.second_head), None)
    if of_second_head and not hasattr(student, "set_distilled_training"):
        raise ValueError(
            f"losses.{of_second_head} needs a student with a distillation token, got a {type(student).__name__}. "
            f"Choose a deit_*_distilled_* model, or set --losses.{of_second_head}.weight=0."
        )
    if losses.needs.tapped("teacher") is None:
        return None
    # Negative block indices count from the end. Only attention terms may have them.
    for name, term in losses.active().items():
        for role, model in (("student", student), ("teacher", teacher)):
            depth = len(getattr(model, "blocks", ()))
            attention = getattr(term.needs, f"{role}_attention")
            from_the_last = [block + depth if block < 0 else block for block in attention]
            blocks = [*getattr(term.needs, f"{role}_blocks"), *from_the_last]
            if outside := [block for block in blocks if not 0 <= block < depth]:
                raise ValueError(
                    f"blocks of losses.{name} must be between 0 and {depth - 1}, because the {role} has {depth} "
                    f"blocks, got {outside[0]}. Choose other blocks or a deeper {role}."
                )
            check_attention(model, attention, role=role, term=name)
    others = f"With this model, use only terms that compare logits: {', '.join(terms_of_logits(losses))}."
    student_dim, student_grid = _shape(student, image_size, others)
    teacher_dim, teacher_grid = _shape(teacher, teacher_image_size or image_size, others)
    return PairInfo(student_dim, teacher_dim, student_grid, teacher_grid)


def _shape(model: nn.Module, image_size: int, others: str) -> tuple[int, tuple[int, int]]:
    """Return the width and the grid (rows, columns) of a model's final tokens or feature map.

    Raises:
        ValueError: the model's output is not a square grid. The message ends with `others`, the remedy.
    """
    if isinstance(model, TOKEN_MODELS):
        return model.embed_dim, model.patch_embed.grid_size
    must = f"a {type(model).__name__} must return a square grid of tokens or a feature map,"
    # For other models, only a forward pass shows the shapes. Fake tensors make it free.
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            weight = next(model.parameters())
            image = torch.empty(1, 3, image_size, image_size, dtype=weight.dtype, device=weight.device)
            features = model.forward_features(image)
            tokens_BPD = patch_tokens(model, features)
            num_tokens, dim = tokens_BPD.shape[1:]
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{must} got {type(error).__name__}: {str(error)[:100]}. {others}") from None
    side = math.isqrt(num_tokens)
    if side * side != num_tokens:
        raise ValueError(f"{must} got {num_tokens} tokens. {others}")
    return dim, (side, side)
