"""tap_features on stock timm models: DeiT, distilled DeiT, DeiT III, registers, class-token-free."""

import pytest
import timm
import torch

from vitkd_ds import tap_features

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3, "num_classes": 7}
MODELS = {
    "deit": ("deit_tiny_patch16_224", {}, 1),
    "distilled deit": ("deit_tiny_distilled_patch16_224", {}, 2),
    "deit iii": ("deit3_small_patch16_224", {"init_values": 0.1}, 1),
    "registers": ("vit_small_patch16_224", {"reg_tokens": 4}, 5),
    "not square": ("deit_tiny_patch16_224", {"img_size": (32, 64)}, 1),
    "average pooling": ("vit_small_patch16_224", {"class_token": False, "global_pool": "avg"}, 0),
}


def build(name, **more):
    torch.manual_seed(0)
    model, args, prefix = MODELS[name]
    return timm.create_model(model, **SMALL | args | more).eval(), prefix


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_are_the_models_own_bit_for_bit(name, dtype):
    model, _ = build(name)
    images = torch.randn(2, 3, *model.patch_embed.img_size).to(dtype)
    assert torch.equal(tap_features(model.to(dtype), images).logits_BK, model(images))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_features_are_what_hooks_on_the_blocks_see_without_prefix_tokens(name):
    model, prefix = build(name)
    seen = {}
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, __, output, i=i: seen.update({i: output}))
    features = tap_features(model, torch.randn(2, 3, *model.patch_embed.img_size), blocks=(0, 2))
    assert model.num_prefix_tokens == prefix
    assert features.shallow_BLPD.shape == (2, 2, 32 if name == "not square" else 16, 24)
    assert torch.equal(features.shallow_BLPD, torch.stack([seen[0], seen[2]], 1)[:, :, prefix:])
    assert torch.equal(features.deep_BPD, model.norm(seen[3])[:, prefix:])


@pytest.mark.parametrize("blocks", [(1, 0), (0, 4), (-1, 0), (0, 0)])
def test_blocks_that_do_not_ascend_within_the_model_are_refused(blocks):
    model, _ = build("deit")
    with pytest.raises(ValueError, match="blocks must ascend within 0..3"):
        tap_features(model, torch.zeros(1, 3, 32, 32), blocks=blocks)


@pytest.mark.parametrize("name", ["convnext_atto", "regnety_002"])
@torch.no_grad()
def test_other_models_give_logits_alone_and_say_so_where_blocks_are_tapped(name):
    model, images = timm.create_model(name, num_classes=7).eval(), torch.randn(2, 3, 64, 64)
    features = tap_features(model, images, blocks=())
    assert torch.equal(features.logits_BK, model(images)) and features[1:] == (None, None)
    with pytest.raises(
        ValueError, match=f"must be a timm VisionTransformer, found a {type(model).__name__}: give blocks="
    ):
        tap_features(model, images)
    vit, _ = build("deit")
    assert tap_features(vit, images[:, :, :32, :32], blocks=())[1:] == (None, None)


def test_train_mode_and_gradients_are_the_models_own():
    model, _ = build("deit", drop_path_rate=0.5)
    features = tap_features(model.train(), torch.randn(4, 3, 32, 32))
    features.deep_BPD.sum().backward()
    assert model.training and model.patch_embed.proj.weight.grad.abs().sum() > 0
