"""Compatibility of student and teacher, for terms that compare more than logits."""

import pytest
import timm

from tests.models.families import source_model
from tests.models.test_build import SMALL, TINY, student_of, teacher_of
from vitkd_ds.config.losses import LossesConfig, ViTKDTerm, VkDTerm
from vitkd_ds.losses.part import PairInfo
from vitkd_ds.models.pair import check_pair

VITKD = LossesConfig(vitkd=ViTKDTerm(weight=1))


@pytest.mark.parametrize("name, size, grid", [
    ("regnety_002", 64, (2, 2)), ("swin_tiny_patch4_window7_224", 224, (7, 7)), ("cait_xxs24_224", 224, (14, 14)),
    ("volo_d1_224", 224, None), ("crossvit_tiny_240", 240, None),
])  # fmt: skip
def test_a_teacher_of_another_kind_is_paired_by_its_feature_map_or_rejected_without_one(name, size, grid):
    teacher = timm.create_model(name, num_classes=5)
    student = timm.create_model(TINY, num_classes=5, img_size=size, patch_size=16 if size != 240 else 12)
    losses = LossesConfig(vkd=VkDTerm(weight=1))
    if grid:
        info = check_pair(student, teacher, losses, image_size=size)
        assert info.teacher_grid == grid and info.teacher_dim == teacher.num_features
    else:
        with pytest.raises(
            ValueError, match="must return a square grid of tokens or a feature map, got .* use only terms"
        ):
            check_pair(student, teacher, losses, image_size=size)


def test_a_pair_may_differ_in_width_depth_and_grid():
    student = student_of("deit", model_args={**SMALL, "patch_size": (8, 16)})
    wide = {"patch_size": 16, "embed_dim": 96, "depth": 3, "num_heads": 3}
    teacher = teacher_of("deit3", "random", model_args=wide)
    info = check_pair(student, teacher, VITKD, image_size=32)
    assert info == PairInfo(student_dim=48, teacher_dim=96, student_grid=(4, 2), teacher_grid=(2, 2))


@pytest.mark.parametrize("changes, blocks, message", [
    ({"num_classes": 7}, (0, 1), "same number of classes, got 5 and 7"),
    ({"depth": 1}, (0, 1), "blocks of losses.vitkd must be between 0 and 0, because the teacher has 1 .*got 1"),
    ({"depth": 4}, (0, 2), "the student has 2 blocks, got 2"),
    ({}, (0, -1), "got -1"),
])  # fmt: skip
def test_a_pair_with_other_classes_or_too_few_blocks_is_rejected(changes, blocks, message):
    with pytest.raises(ValueError, match=message):
        losses = LossesConfig(vitkd=ViTKDTerm(weight=1, blocks=blocks))
        check_pair(source_model("deit"), source_model("deit3", **changes), losses, image_size=32)


def test_a_teacher_of_another_kind_is_run_at_its_own_size():
    teacher = timm.create_model("regnety_002", num_classes=5)
    student = timm.create_model(TINY, num_classes=5, img_size=64)
    sizes = {"image_size": 64, "teacher_image_size": 96}
    info = check_pair(student, teacher, LossesConfig(vkd=VkDTerm(weight=1)), **sizes)
    assert (info.student_grid, info.teacher_grid) == ((4, 4), (3, 3))


def test_a_teacher_without_classes_fits_any_student():
    assert check_pair(source_model("deit"), source_model("deit3", num_classes=0), VITKD, image_size=32)
