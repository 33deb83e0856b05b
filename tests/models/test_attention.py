"""Attention maps of timm's blocks, against the queries and keys that the model passes to torch's fused attention."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from tests.models.test_features import SMALL, build
from vitkd_ds.engine.flat import FlatBlock
from vitkd_ds.models.attention import AttentionMaps, check_attention
from vitkd_ds.models.features import tap_features

NAMES = ["deit", "distilled deit", "registers", "average pooling", "not square"]
EVAS = [
    "eva02_base_patch14_224",
    "eva02_small_patch14_224",
    "eva_giant_patch14_224",
    "vit_base_patch16_dinov3_qkvb",
    "vit_small_patch16_dinov3",
    "vit_base_patch16_rope_mixed_224",
    "vit_mediumd_patch16_rope_reg1_gap_256",
    "vit_pe_core_tiny_patch16_384",
]
"""One model for each of the ways that timm's Eva computes queries and keys."""


def model_of(name):
    small = SMALL | {"embed_dim": 48, "depth": 3}
    model = build(name, depth=3)[0] if name in NAMES else timm.create_model(name, **small)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # biases of 0 and scales of 1e-5 would hide a wrong one
    return model.eval()


def inside(monkeypatch, model, images):
    """Softmax of each block's queries and keys as passed to torch: mean over heads, patches to patches."""
    seen, own = [], F.scaled_dot_product_attention

    def attend(query, key, value, **options):
        seen.append(((query @ key.transpose(-2, -1)) / query.shape[-1] ** 0.5).softmax(-1).mean(1))
        return own(query, key, value, **options)

    with monkeypatch.context() as patched:
        patched.setattr(F, "scaled_dot_product_attention", attend)
        model(images)
    return [each[:, model.num_prefix_tokens :, model.num_prefix_tokens :] for each in seen]


@pytest.mark.parametrize("name", [*NAMES, *EVAS])
def test_maps_match_the_attention_inside_the_model_and_its_outputs_stay(name, monkeypatch):
    model = model_of(name)
    images = torch.randn(2, 3, *model.patch_embed.img_size)
    with torch.no_grad():
        expected, logits = inside(monkeypatch, model, images), model(images)
    expected = expected[:3]  # a head with attention pooling calls it once more
    assert all(block.attn.fused_attn for block in model.blocks)
    features = tap_features(model, images, (), maps=AttentionMaps(model, (1, -1)))
    assert torch.equal(features.logits_BK, logits) and list(features.maps) == [1, -1]
    for number, found in features.maps.items():
        torch.testing.assert_close(found, expected[number], rtol=1e-4, atol=1e-6)
        assert found.requires_grad and found.std() > 3e-4


def test_bf16_models_give_fp32_maps_and_each_call_has_its_own():
    model = build("deit")[0].bfloat16()
    maps = AttentionMaps(model, (0,))
    images = torch.randn(2, 3, 32, 32).bfloat16()
    first, second = (tap_features(model, each, (), maps=maps).maps[0] for each in (images, 2 * images))
    assert first.dtype == torch.float32 and not torch.equal(first, second)
    model(images)
    assert maps._found is None, "no map is kept for a call that did not ask for maps"


def test_activation_checkpointing_changes_no_gradient_and_keeps_no_map():
    grads = []
    for checkpointed in (False, True):
        model = build("deit")[0].train()
        model.set_grad_checkpointing(checkpointed)
        maps = AttentionMaps(model, (1, -1))
        found = tap_features(
            model, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)), (), maps=maps
        )
        sum(each.square().sum() for each in found.maps.values()).backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
        assert maps._found is None
    assert len(grads[0]) == len(grads[1]) > 10 and all(map(torch.equal, *grads))


def test_individually_compiled_blocks_share_no_graph_with_a_tapped_one():
    model = build("deit", depth=2)[0]
    maps, images = AttentionMaps(model, (0,)), torch.randn(2, 3, 32, 32)
    expected = tap_features(model, images, (), maps=maps).maps[0]
    model.blocks = nn.Sequential(*(FlatBlock(block, compile="off") for block in model.blocks))
    for block in model.blocks:
        block._call = torch.compile(block.call, backend="eager")
    with torch.no_grad():
        for _ in range(2):
            found = tap_features(model, images, (), maps=maps).maps
    torch.testing.assert_close(found[0], expected)


def test_blocks_whose_attention_is_not_known_are_rejected():
    model = timm.create_model("vit_small_patch16_18x2_224", img_size=32, embed_dim=24, depth=1, num_heads=3)
    check_attention(build("deit")[0], (0, -1), role="student", term="x")
    with pytest.raises(ValueError, match="losses.x needs.*block 0 of the teacher is a ParallelThings"):
        check_attention(model, (0,), role="teacher", term="x")
