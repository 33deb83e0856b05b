"""tap_features on stock timm models: DeiT, distilled DeiT, DeiT III, with registers, without a class token."""

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
def test_features_match_hooks_on_the_blocks_without_prefix_tokens(name):
    model, prefix = build(name)
    seen = {}
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, __, output, i=i: seen.update({i: output}))
    features = tap_features(model, torch.randn(2, 3, *model.patch_embed.img_size), blocks=(0, 2))
    assert model.num_prefix_tokens == prefix
    assert list(features.blocks) == [0, 2]
    for block, tokens_BPD in features.blocks.items():
        assert tokens_BPD.shape == (2, 32 if name == "not square" else 16, 24)
        assert torch.equal(tokens_BPD, seen[block][:, prefix:])
    assert torch.equal(features.final_BPD, model.norm(seen[3])[:, prefix:])
    assert torch.equal(features.pooled_BD, model.norm(seen[3])[:, 0] if prefix else features.final_BPD.mean(1))


@pytest.mark.parametrize("blocks", [(1, 0), (0, 4), (-1, 0), (0, 0)])
def test_blocks_out_of_order_or_range_are_rejected(blocks):
    model, _ = build("deit")
    with pytest.raises(ValueError, match="blocks must ascend within 0..3"):
        tap_features(model, torch.zeros(1, 3, 32, 32), blocks=blocks)


@pytest.mark.parametrize("name", ["convnext_atto", "regnety_002", "swin_tiny_patch4_window7_224", "cait_xxs24_224"])
@torch.no_grad()
def test_other_models_give_logits_and_their_last_map_and_an_error_if_blocks_are_tapped(name):
    size = 64 if name in ("convnext_atto", "regnety_002") else 224
    model, images = timm.create_model(name, num_classes=7).eval(), torch.randn(2, 3, size, size)
    seen = []
    features = tap_features(model, images, blocks=())
    assert torch.equal(features.logits_BK, model(images)) and features.blocks == {}
    tokens = model.forward_features(images)
    for position, token in enumerate(features.final_BPD.unbind(1)):
        row, column = divmod(position, size // 32)
        seen.append(token)
        expected = tokens[:, 1 + position] if "cait" in name else None
        if expected is None:
            expected = tokens[:, row, column] if "swin" in name else tokens[:, :, row, column]
        assert torch.equal(token, expected)
    class_token = tokens[:, 0] if "cait" in name else torch.stack(seen, 1).mean(1)
    assert torch.equal(features.pooled_BD, class_token)
    with pytest.raises(
        ValueError, match=f"only in a timm VisionTransformer or Eva, got a {type(model).__name__}. Pass blocks="
    ):
        tap_features(model, images)
    vit, _ = build("deit")
    assert tap_features(vit, images[:, :, :32, :32], blocks=None)[1:] == (None,) * 5
    assert tap_features(vit, images[:, :, :32, :32], blocks=()).final_BPD.shape == (2, 16, 24)


def test_train_mode_and_gradients_match_the_model():
    model, _ = build("deit", drop_path_rate=0.5)
    features = tap_features(model.train(), torch.randn(4, 3, 32, 32))
    features.final_BPD.sum().backward()
    assert model.training and model.patch_embed.proj.weight.grad.abs().sum() > 0
