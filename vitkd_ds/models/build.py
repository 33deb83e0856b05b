"""Build students and teachers with timm, after what timm would refuse late or not at all was refused here.

`vitkd_ds.models.fit` loads files, and `vitkd_ds.models.pair` checks that both models fit together.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from vitkd_ds.config import teachers
from vitkd_ds.config.losses import LossesConfig
from vitkd_ds.config.reading import raise_if_of_the_disk
from vitkd_ds.config.run import DataConfig, StudentConfig, TeacherConfig
from vitkd_ds.config.run_folder import description_beside, model_of
from vitkd_ds.config.teachers import USUAL
from vitkd_ds.config.term import terms_of_blocks
from vitkd_ds.models.arguments import check_model_args, preprocessing_of, takes_image_size
from vitkd_ds.models.features import TOKEN_MODELS
from vitkd_ds.models.fit import fit_state, load_weights
from vitkd_ds.models.hub import check_hub, check_hub_is_reached, check_model_name, hub_file, size_key_of
from vitkd_ds.models.linear_head import load_head
from vitkd_ds.models.normalization import Normalization, ResizedNormalization
from vitkd_ds.models.stream import WeightStream, can_stream, make_buffers
from vitkd_ds.models.weights import load_state_dict_file

logger = logging.getLogger(__name__)

ModelConfig = StudentConfig | TeacherConfig
DEMO_TEACHER = Path(__file__).parents[1] / "data" / "demo" / "teacher.safetensors"


def build_student(
    config: StudentConfig, data: DataConfig, *, classes: tuple[str, ...] | None = None, needs_blocks: bool = True
) -> nn.Module:
    """Build the student on the CPU in fp32, initialised as `config.init` says; `needs_blocks` as for a teacher.

    The classifier starts anew if the weights are for other classes: of another number or, where the description beside
    them names theirs, other than `classes`, those of the data in label order. All else must fit exactly; weights of
    another patch grid are interpolated if the configuration allows it.

    Raises:
        ValueError: the model, its arguments or its weights do not fit; the message names the key.
    """
    model = _create(
        config,
        data,
        role="student",
        pretrained=config.init == "hub",
        drop_path_rate=config.drop_path_rate,
        needs_blocks=needs_blocks,
    )
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise ValueError(
            f"student.model must be without batch norm, whose running statistics would differ on each rank, found "
            f"{config.model}: choose a model of layer norms, such as a vit_*, deit_*, swin_* or convnext_*"
        )
    if config.init not in ("", "hub"):
        path = Path(config.init)
        has_others = classes is not None and description_beside(path).get("classes", list(classes)) != list(classes)
        _load_file(model, config, path, key="student.init", needs_classifier=False, has_other_classes=has_others)
    model.set_grad_checkpointing(config.checkpoint_activations)
    return model


def build_teacher(
    config: TeacherConfig,
    data: DataConfig,
    *,
    role: str = USUAL,
    needs_blocks: bool = True,
    needs_logits: bool = True,
    stream: bool = False,
) -> nn.Module:
    """Build a teacher on the CPU in fp32 and eval mode, with the weights of `config.checkpoint` and no gradients.

    Args:
        role: its place in the run, which error messages name.
        needs_blocks: a term compares tokens of blocks, so the model must be one of TOKEN_MODELS.
        needs_logits: a term compares logits, so its classifier must be for data.num_classes. Else one that is not is
            left out, and the model has num_classes 0. `config.head` takes the place of any classifier: the model has it
            as `linear_head`, by which `tap_features` computes logits.
        stream: leave the weights in their file, where it is safetensors and the model one of TOKEN_MODELS whose weights
            they are as they are: the model is on the meta device, with a `WeightStream` as `weight_stream`.

    Raises:
        ValueError: as for the student.
    """
    data = replace(data, image_size=config.image_size or data.image_size)
    needs_logits = needs_logits and not config.head
    needs = {"role": role, "needs_blocks": needs_blocks, "needs_logits": needs_logits}
    model = _streamed_teacher(config, data, **needs) if stream else None
    if model is None:
        model = _create(config, data, pretrained=config.checkpoint == "hub", **needs)
        if config.checkpoint not in ("hub", "random"):
            _load_file(model, config, teacher_file(config), key=f"{role}.checkpoint", needs_classifier=needs_logits)
    if config.head:
        dims = {"dim": model.num_features, "num_classes": data.num_classes}
        has_class_token = getattr(model, "cls_token", None) is not None
        model.linear_head = load_head(Path(config.head), key=f"{role}.head", has_class_token=has_class_token, **dims)
        model.num_classes = data.num_classes
    return model.requires_grad_(False).eval()


def _streamed_teacher(
    config: TeacherConfig, data: DataConfig, *, role: str, needs_blocks: bool, needs_logits: bool
) -> nn.Module | None:
    """The teacher on the meta device with its `weight_stream`; None if it cannot be streamed."""
    path = None if config.checkpoint == "random" else teacher_file(config)
    if config.checkpoint == "hub":
        path = hub_file(config.model, key=f"{role}.checkpoint")
    if path is None or not can_stream(path):
        return None
    with torch.device("meta"):
        is_hub, needs = config.checkpoint == "hub", {"needs_blocks": needs_blocks, "needs_logits": needs_logits}
        model = _create(config, data, role=role, pretrained=is_hub, fetch=False, **needs)
    if not isinstance(model, TOKEN_MODELS):
        return None
    options = {"allow_other_grid": config.allow_other_resolution, "needs_classifier": needs_logits}
    stream = WeightStream(path)
    if not stream.keep(fit_state(model, stream.shapes, path, key=f"{role}.checkpoint", **options)):
        logger.info(
            "%s.checkpoint=%s is not the model's own as it is: each rank reads it whole", role, config.checkpoint
        )
        return None
    try:
        make_buffers(model)
    except NotImplementedError:  # some are computed of weights, which are not there yet: mixed rotary embeddings
        logger.info("%s has buffers that its weights make: each rank reads it whole", config.model)
        return None
    _take_normalization(model, path)
    model.weight_stream = stream
    return model


def build_exported(description: Mapping[str, Any], weights: Path) -> nn.Module:
    """Build an exported student on the CPU in fp32: `description` is what its student.json says, `weights` its file.

    Raises:
        ValueError: as for the student, or its classifier does not fit.
    """
    described = preprocessing_of(description, weights)
    num_classes, image_size = description["args"]["num_classes"], description["image_size"]
    data = DataConfig(train="", val="", num_classes=num_classes, image_size=image_size)
    state = load_state_dict_file(weights)  # first, as a run that goes on may delete the file soon
    model = build_student(StudentConfig(**model_of(description)), data, needs_blocks=False)
    options = {"key": "student", "allow_other_grid": False, "needs_classifier": True}
    model.load_state_dict(fit_state(model, state, weights, **options))
    model.pretrained_cfg = model.pretrained_cfg | described
    return model


def _load_file(model: nn.Module, config: ModelConfig, path: Path, *, key: str, **classifier: bool) -> None:
    """Load weights, and the normalisation that the description beside them states."""
    load_weights(model, path, key=key, allow_other_grid=config.allow_other_resolution, **classifier)
    _take_normalization(model, path)


def _take_normalization(model: nn.Module, path: Path) -> None:
    """Give a model the normalisation that the description beside its weights states, if there is one."""
    if normalization := description_beside(path).get("normalization"):
        model.pretrained_cfg = model.pretrained_cfg | {key: normalization[key] for key in ("mean", "std")}


def without_fused_attention(model: nn.Module) -> None:
    """Let a timm model compute attention step by step, as is faster on a CPU: the backward pass of torch's fused one
    takes half of a step there (EXPERIMENTS.md)."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


def teacher_file(config: TeacherConfig) -> Path:
    """Path of the teacher's weights, where `config.checkpoint` is neither "hub" nor "random"."""
    return DEMO_TEACHER if config.checkpoint == "demo" else Path(config.checkpoint)


def license_of(config: TeacherConfig) -> str | None:
    """Licence that timm's configuration states for the weights that the model's name tells, or for those of which they
    were distilled; None where they are others or it states none."""
    if config.checkpoint in ("demo", "random"):
        return None
    if config.checkpoint != "hub" and "recipe" in (described := description_beside(teacher_file(config))):
        before = teachers.read(described).values()  # trained here, maybe with teachers whose licences go on
        licences = dict.fromkeys(each.get("license") for each in before if isinstance(each, dict))
        return ", ".join(filter(None, licences)) or None
    is_named = config.checkpoint == "hub" or "." in config.model
    pretrained = timm.get_pretrained_cfg(config.model) if is_named else None
    return pretrained.license if pretrained else None


def model_args_of(config: ModelConfig, data: DataConfig) -> dict[str, Any]:
    """Arguments that rebuild the model with timm alone: `timm.create_model(made["model"], **made["args"])`."""
    args = {"num_classes": data.num_classes, "img_size": data.image_size, **config.model_args}
    return {"model": config.model, "args": args}


def normalization_of(model: nn.Module, *, image_size: int = 0) -> Normalization:
    """Mean and standard deviation that the model was trained with, by its timm configuration; with an `image_size` its
    images are resized to that first."""
    statistics = {key: tuple(model.pretrained_cfg[key]) for key in ("mean", "std")}
    return ResizedNormalization(**statistics, image_size=image_size) if image_size else Normalization(**statistics)


def statistics_of(config: StudentConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation that `normalization_of` would find, without building the model."""
    described = _default_model(config.model, role="student").pretrained_cfg
    if config.init not in ("", "hub"):
        described = described | description_beside(Path(config.init)).get("normalization", {})
    return tuple(described["mean"]), tuple(described["std"])


def _create(
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
    """Create a model with timm, after refusing what timm would refuse late or not at all."""
    default = _default_model(config.model, role=role)
    if needs_blocks and not isinstance(default, TOKEN_MODELS):
        raise ValueError(
            f"{role}.model must be a timm VisionTransformer or Eva, found {config.model}, a {type(default).__name__}: "
            "choose a deit_*, deit3_* or vit_* model of these classes, or leave out the terms that compare blocks, "
            f"{' and '.join(terms_of_blocks(LossesConfig()))}"
        )
    if pretrained:
        check_hub(config, data, default, role=role, needs_logits=needs_logits)
    if pretrained and fetch:
        check_hub_is_reached(config.model, key="student.init" if role == "student" else f"{role}.checkpoint")
    check_model_args(config.model_args, type(default), role=role)
    args = model_args_of(config, data)["args"]
    if not takes_image_size(type(default)):
        del args["img_size"]
    is_for_others = pretrained and role != "student" and default.pretrained_cfg["num_classes"] != data.num_classes
    if is_for_others or getattr(config, "head", ""):
        args["num_classes"] = 0  # its classifier is for other classes and no term needs it, or teacher.head is one
    try:
        model = timm.create_model(
            config.model, pretrained=pretrained and fetch, drop_path_rate=drop_path_rate or None, **args
        )
    # timm's checks are assertions, its loading errors RuntimeErrors, the network's OSErrors.
    except (AssertionError, RuntimeError, OSError, TypeError, ValueError) as error:
        raise_if_of_the_disk(error, f"the weights of {config.model}")
        advice = "fetch the weights beforehand and give the file, or fix the arguments" if pretrained else "fix them"
        raise ValueError(
            f"{role}.model={config.model} must build with {args}, timm answered {error!r}: {advice}"
        ) from error
    if isinstance(model, TOKEN_MODELS):
        height, width = model.patch_embed.patch_size
        if data.image_size % height or data.image_size % width:
            raise ValueError(
                f"{size_key_of(config, role)} must be a multiple of the patches of {role}.model={config.model} "
                f"({height} x {width}), found {data.image_size}: timm would ignore the last pixels, so change one "
                "of the two"
            )
    assert type(model) is type(default), f"timm made a {type(model).__name__} with {args}"
    return model


def _default_model(name: str, *, role: str) -> nn.Module:
    """Return the named model without model_args on the meta device, where it costs no memory. Not to be changed."""
    check_model_name(name, role=role)
    try:
        return _on_meta(name)
    except RuntimeError as error:
        architecture = name.partition(".")[0]
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")) or architecture
        raise ValueError(f"{role}.model must name weights that timm knows, found {name!r}: choose of {tags}") from error


@cache
def _on_meta(name: str) -> nn.Module:
    """Create a model once: timm goes through its initialisation on meta too, half a second for a ViT-Large."""
    with torch.device("meta"):
        return timm.create_model(name)
