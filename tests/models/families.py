"""Small models of each supported family of timm's vision transformers."""

import timm
import torch

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
FAMILIES = {
    "deit": ("deit_tiny_patch16_224", SMALL),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", SMALL),
    "deit3": ("deit3_small_patch16_224.fb_in22k_ft_in1k", SMALL),
    "registers": ("vit_small_patch16_224", {**SMALL, "reg_tokens": 4}),
}


def source_model(family: str, *, image_size: int = 32, num_classes: int = 5, **changes) -> torch.nn.Module:
    """Return a model with random values in all parameters: initial zeros and ones could hide a wrong mapping."""
    name, model_args = FAMILIES[family]
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=image_size, num_classes=num_classes, **{**model_args, **changes})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()
