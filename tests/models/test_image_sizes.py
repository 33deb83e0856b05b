"""Models for data.image_sizes: at full size as without it, and at smaller sizes as timm's model of that size."""

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F

from vitkd_ds.config.run import DataConfig, StudentConfig, TeacherConfig
from vitkd_ds.models.build import build_student, build_teacher
from vitkd_ds.models.create import model_args_of
from vitkd_ds.models.features import tap_features

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
DATA = DataConfig(train="demo", val="demo", image_size=32, num_classes=5)
SIZES = replace(DATA, image_sizes="16:1,24:1,32:2")
MODELS = {
    "deit_tiny_patch16_224": SMALL,
    "deit_tiny_distilled_patch16_224": SMALL,
    "deit3_small_patch16_224": SMALL,
    "eva02_tiny_patch14_224": SMALL,
    "vit_small_patch16_dinov3": SMALL,
}


def student_of(name, data):
    torch.manual_seed(0)
    return build_student(StudentConfig(model=name, model_args=MODELS[name]), data)


def answer_of(model, size):
    """Blocks, logits and gradients for random images."""
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    model.train()
    features = tap_features(model, images, (0, 1))
    model.zero_grad()
    (features.logits_BK.square().sum() + features.blocks[1].square().mean()).backward()
    found = [features.logits_BK, *features.blocks.values(), features.final_BPD]
    return found + [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", MODELS)
def test_at_full_size_outputs_gradients_weights_and_export_are_the_same_bits(name):
    plain, dynamic = student_of(name, DATA), student_of(name, SIZES)
    before, after = plain.state_dict(), dynamic.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    expected, found = answer_of(plain, 32), answer_of(dynamic, 32)
    assert len(expected) == len(found) > 20 and all(map(torch.equal, expected, found))
    config = StudentConfig(model=name, model_args=MODELS[name])
    assert model_args_of(config, SIZES) == model_args_of(config, DATA), "the exported student is built as before"


@pytest.mark.parametrize("name", MODELS)
def test_at_a_smaller_size_the_model_is_timms_of_that_size_with_a_resized_position_embedding(name):
    dynamic = student_of(name, SIZES)
    for size in (16, 24):
        small = timm.create_model(name, img_size=size, num_classes=5, **MODELS[name])
        state = dict(dynamic.state_dict())
        if "pos_embed" in state:
            num_prefix = state["pos_embed"].shape[1] - 16
            prefix, patches = state["pos_embed"].split([num_prefix, 16], dim=1)
            grid = patches.reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
            resized = F.interpolate(grid, (size // 8, size // 8), mode="bicubic", antialias=True)
            state["pos_embed"] = torch.cat([prefix, resized.flatten(2).transpose(1, 2)], dim=1)
        small.load_state_dict(state)
        outputs = [answer_of(model, size)[:4] for model in (dynamic, small)]
        for found, expected in zip(*outputs, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_takes_all_sizes_and_a_convolutional_one_as_well():
    for name, args in (("deit3_small_patch16_224", SMALL), ("convnext_atto", {})):
        config = TeacherConfig(model=name, model_args=args, checkpoint="random")
        teacher = build_teacher(config, replace(SIZES, image_size=128, image_sizes="64:1,128:1"), needs_blocks=False)
        assert teacher(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize("name, data, message", [
    ("swin_tiny_patch4_window7_224", replace(SIZES, image_size=224, image_sizes="112:1,224:1"),
     "data.image_sizes needs models that take images of several sizes, but student.model=swin_tiny_patch4_window7_224"),
    ("deit_tiny_patch16_224", replace(SIZES, image_sizes="20:1,32:1"),
     r"data.image_sizes must be a multiple of the patch size of student.model=.* \(8 x 8\), got 20"),
    ("deit_tiny_patch16_224", replace(DATA, image_size=36),
     r"data.image_size must be a multiple of the patch size of student.model=.* \(8 x 8\), got 36"),
])  # fmt: skip
def test_models_and_sizes_that_do_not_fit_are_rejected(name, data, message):
    with pytest.raises(ValueError, match=message):
        build_student(StudentConfig(model=name, model_args=MODELS.get(name, {})), data, needs_blocks=False)
