"""Create timm models, and validate arguments that timm checks late or not at all."""

from functools import cache
from typing import Any

import timm
import torch
from torch import nn

from vitkd_ds.config.image_sizes import sizes_of
from vitkd_ds.config.losses import LossesConfig
from vitkd_ds.config.reading import raise_if_of_the_disk
from vitkd_ds.config.run import DataConfig, StudentConfig, TeacherConfig
from vitkd_ds.config.term import terms_of_blocks
from vitkd_ds.models.arguments import check_model_args, takes_image_size
from vitkd_ds.models.features import TOKEN_MODELS
from vitkd_ds.models.hub import check_hub, check_hub_is_reached, check_model_name, size_key_of

ModelConfig = StudentConfig | TeacherConfig


def model_args_of(config: ModelConfig, data: DataConfig) -> dict[str, Any]:
    """Return a dict `made` such that `timm.create_model(made["model"], **made["args"])` rebuilds the model."""
    args = {"num_classes": data.num_classes, "img_size": data.image_size, **config.model_args}
    return {"model": config.model, "args": args}


def create(
    config: ModelConfig,
    data: DataConfig,
    *,
    role: str,
    pretrained: bool,
    drop_path_rate: float = 0,
    needs_blocks: bool = True,
    needs_logits: bool = True,
    fetch: bool = True,
) -> nn.Module:
    """Create a model with timm, and validate arguments that timm checks late or not at all."""
    default = default_model(config.model, role=role)
    if needs_blocks and not isinstance(default, TOKEN_MODELS):
        raise ValueError(
            f"{role}.model must be a timm VisionTransformer or Eva, got {config.model}, a {type(default).__name__}. "
            "Choose a deit_*, deit3_* or vit_* model of these classes, or switch off the terms that compare blocks: "
            f"{' and '.join(terms_of_blocks(LossesConfig()))}."
        )
    if pretrained:
        check_hub(config, data, default, role=role, needs_logits=needs_logits)
    if pretrained and fetch:
        check_hub_is_reached(config.model, key="student.init" if role == "student" else f"{role}.checkpoint")
    check_model_args(config.model_args, type(default), role=role)
    args = model_args_of(config, data)["args"]
    if not takes_image_size(type(default)):
        del args["img_size"]
    elif data.image_sizes and not isinstance(default, TOKEN_MODELS):
        raise ValueError(
            f"data.image_sizes needs models that take images of several sizes, but {role}.model={config.model} is a "
            f"{type(default).__name__}, which is built for one size. Choose a timm VisionTransformer, Eva or "
            "convolutional network, or omit --data.image_sizes."
        )
    elif data.image_sizes:
        args["dynamic_img_size"] = True  # interpolates the position embedding in forward; the weights stay the same
    is_for_others = pretrained and role != "student" and default.pretrained_cfg["num_classes"] != data.num_classes
    if is_for_others or getattr(config, "head", ""):
        args["num_classes"] = 0  # no term needs its classifier for other classes, or teacher.head replaces it
    try:
        model = timm.create_model(
            config.model, pretrained=pretrained and fetch, drop_path_rate=drop_path_rate or None, **args
        )
    # timm's checks raise AssertionError, its loading RuntimeError, and the network OSError.
    except (AssertionError, RuntimeError, OSError, TypeError, ValueError) as error:
        raise_if_of_the_disk(error, f"the weights of {config.model}")
        advice = "Download the weights and pass the file, or fix the arguments." if pretrained else "Fix the arguments."
        raise ValueError(f"timm cannot build {role}.model={config.model} with {args}: {error!r}. {advice}") from error
    if isinstance(model, TOKEN_MODELS):
        height, width = model.patch_embed.patch_size
        sizes = {size: "data.image_sizes" for size in sizes_of(data.image_sizes)}
        sizes[data.image_size] = size_key_of(config, role)
        for size, key in sizes.items():
            if size % height or size % width:
                raise ValueError(
                    f"{key} must be a multiple of the patch size of {role}.model={config.model} ({height} x {width}), "
                    f"got {size}: timm would ignore the last pixels. Change the size or the model."
                )
    assert type(model) is type(default), f"timm made a {type(model).__name__} with {args}"
    return model


def default_model(name: str, *, role: str) -> nn.Module:
    """Return the named model without model_args, on the meta device. It is cached, so callers must not modify it."""
    check_model_name(name, role=role)
    try:
        return _on_meta(name)
    except RuntimeError as error:
        architecture = name.partition(".")[0]
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")) or architecture
        raise ValueError(f"{role}.model={name} names weights unknown to timm. Choose one of {tags}.") from error


@cache
def _on_meta(name: str) -> nn.Module:
    """Create a model and cache it. Even on the meta device, timm takes half a second to initialise a ViT-Large."""
    with torch.device("meta"):
        return timm.create_model(name)
