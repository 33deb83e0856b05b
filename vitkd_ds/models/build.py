"""Build timm students and teachers, and validate arguments that timm checks late or not at all.

`vitkd_ds.models.fit` loads weight files, and `vitkd_ds.models.pair` checks that student and teacher are compatible.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm
import torch
from torch import nn

from vitkd_ds.config.run import DataConfig, StudentConfig, TeacherConfig
from vitkd_ds.config.run_folder import description_beside, model_of
from vitkd_ds.config.selected import DEMO_TEACHER, is_selected, source_of
from vitkd_ds.config.teachers import USUAL
from vitkd_ds.config.teachers import read as read_by_teacher
from vitkd_ds.models.arguments import preprocessing_of
from vitkd_ds.models.create import ModelConfig, create, default_model
from vitkd_ds.models.features import TOKEN_MODELS
from vitkd_ds.models.fit import fit_state, load_weights
from vitkd_ds.models.hub import hub_file
from vitkd_ds.models.linear_head import load_head
from vitkd_ds.models.normalization import Normalization, ResizedNormalization
from vitkd_ds.models.select_weights import select_weights
from vitkd_ds.models.stream import WeightStream, can_stream, make_buffers
from vitkd_ds.models.weights import load_state_dict_file

logger = logging.getLogger(__name__)


def build_student(
    config: StudentConfig,
    data: DataConfig,
    *,
    classes: tuple[str, ...] | None = None,
    teachers: Mapping[str, TeacherConfig] = MappingProxyType({}),
    needs_blocks: bool = True,
) -> nn.Module:
    """Build the student on the CPU in fp32, initialised according to `config.init`.

    The classifier is random if the weights have another number of classes, or if their student.json lists other names
    than `classes`. All other weights must fit exactly. A position embedding for another patch grid is interpolated if
    `config.allow_other_resolution` is set.

    Args:
        classes: class names of the data in label order; None if unknown.
        teachers: the run's teachers by name, from which `config.init` may select weights.
        needs_blocks: see `build_teacher`.

    Raises:
        ValueError: the model, its arguments or its weights are invalid; the message names the setting.
    """
    model = create(
        config,
        data,
        role="student",
        pretrained=config.init == "hub",
        drop_path_rate=config.drop_path_rate,
        needs_blocks=needs_blocks,
    )
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise ValueError(
            f"student.model={config.model} has batch norm, and its running statistics would differ between ranks. "
            "Choose a model with layer norms, such as a vit_*, deit_*, swin_* or convnext_*."
        )
    if is_selected(config.init):
        _select(model, config, data, source_of(config.init, teachers))
    elif config.init not in ("", "hub"):
        path = Path(config.init)
        has_others = classes is not None and description_beside(path).get("classes", list(classes)) != list(classes)
        _load_file(model, config, path, key="student.init", needs_classifier=False, has_other_classes=has_others)
    model.set_grad_checkpointing(config.checkpoint_activations)
    return model


def _select(model: nn.Module, config: StudentConfig, data: DataConfig, source: TeacherConfig) -> None:
    """Copy weights selected from `source` into a student, with the normalisation that its patch embedding expects."""
    check_source(config.init, source)
    is_allowed = config.allow_other_resolution or source.allow_other_resolution
    source = replace(source, image_size=0, head="", allow_other_resolution=is_allowed)
    try:
        wide = build_teacher(source, data, role="student", needs_logits=False)
        taken = select_weights(model, wide, heads=config.select_heads, blocks=config.select_blocks)
    except ValueError as error:
        raise ValueError(f"student.init={config.init}: {error}") from None
    logger.info("student.init=%s: %s", config.init, taken)
    model.pretrained_cfg = model.pretrained_cfg | {key: wide.pretrained_cfg[key] for key in ("mean", "std")}


def check_source(init: str, source: TeacherConfig) -> None:
    """Raise ValueError if timm lacks the model to select weights from."""
    try:
        default_model(source.model, role=USUAL)
    except ValueError as error:
        raise ValueError(f"student.init={init}: {str(error).removeprefix(f'{USUAL}.model=')}") from None


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
        role: teacher or teachers.NAME, for error messages.
        needs_blocks: a term compares blocks, so the model must be an instance of TOKEN_MODELS.
        needs_logits: a term compares logits, so the classifier must have data.num_classes. If False, a classifier for
            another number of classes is dropped, and num_classes of the model is 0. With `config.head`, the probe in
            that file becomes `model.linear_head`. `tap_features` then computes the logits with the probe, not with the
            classifier.
        stream: if possible, leave the weights in their file. The model is then on the meta device, and its
            `weight_stream` is a `WeightStream`. This needs an instance of TOKEN_MODELS, and safetensors files whose
            tensors fit without changes.

    Raises:
        ValueError: as in `build_student`.
    """
    data = replace(data, image_size=config.image_size or data.image_size)
    needs_logits = needs_logits and not config.head
    needs = {"role": role, "needs_blocks": needs_blocks, "needs_logits": needs_logits}
    model = _streamed_teacher(config, data, **needs) if stream else None
    if model is None:
        model = create(config, data, pretrained=config.checkpoint == "hub", **needs)
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
    """Return the teacher on the meta device with a `weight_stream`; None if the weights cannot be streamed."""
    path = None if config.checkpoint == "random" else teacher_file(config)
    if config.checkpoint == "hub":
        path = hub_file(config.model, key=f"{role}.checkpoint")
    if path is None or not can_stream(path):
        return None
    with torch.device("meta"):
        is_hub, needs = config.checkpoint == "hub", {"needs_blocks": needs_blocks, "needs_logits": needs_logits}
        model = create(config, data, role=role, pretrained=is_hub, fetch=False, **needs)
    if not isinstance(model, TOKEN_MODELS):
        return None
    options = {"allow_other_grid": config.allow_other_resolution, "needs_classifier": needs_logits}
    stream = WeightStream(path)
    if not stream.keep(fit_state(model, stream.shapes, path, key=f"{role}.checkpoint", **options)):
        logger.info(
            "%s.checkpoint=%s needs changes to fit the model, so each rank reads all of it", role, config.checkpoint
        )
        return None
    try:
        make_buffers(model)
    except NotImplementedError:  # buffers computed from weights, which are not loaded yet: mixed rotary embeddings
        logger.info("%s computes buffers from its weights, so each rank reads all of them", config.model)
        return None
    _take_normalization(model, path)
    model.weight_stream = stream
    return model


def build_exported(description: Mapping[str, Any], weights: Path) -> nn.Module:
    """Build an exported student on the CPU in fp32.

    Args:
        description: content of the student's student.json.
        weights: the student's weight file.

    Raises:
        ValueError: as in `build_student`, or the classifier does not fit.
    """
    described = preprocessing_of(description, weights)
    num_classes, image_size = description["args"]["num_classes"], description["image_size"]
    data = DataConfig(train="", val="", num_classes=num_classes, image_size=image_size)
    state = load_state_dict_file(weights)  # first, because a running job may delete the file
    model = build_student(StudentConfig(**model_of(description)), data, needs_blocks=False)
    options = {"key": "student", "allow_other_grid": False, "needs_classifier": True}
    model.load_state_dict(fit_state(model, state, weights, **options))
    model.pretrained_cfg = model.pretrained_cfg | described
    return model


def _load_file(model: nn.Module, config: ModelConfig, path: Path, *, key: str, **classifier: bool) -> None:
    """Load weights from a file, and the normalisation from the .json file next to it."""
    load_weights(model, path, key=key, allow_other_grid=config.allow_other_resolution, **classifier)
    _take_normalization(model, path)


def _take_normalization(model: nn.Module, path: Path) -> None:
    """Set a model's normalisation from the .json file next to its weights, if the file has one."""
    if normalization := description_beside(path).get("normalization"):
        model.pretrained_cfg = model.pretrained_cfg | {key: normalization[key] for key in ("mean", "std")}


def without_fused_attention(model: nn.Module) -> None:
    """Switch a timm model to unfused attention, which is faster on a CPU.

    On a CPU, the backward pass of torch's fused attention takes half of a step (EXPERIMENTS.md).
    """
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


def teacher_file(config: TeacherConfig) -> Path:
    """Return the path of the teacher's weights, for a `config.checkpoint` other than "hub" and "random"."""
    return DEMO_TEACHER if config.checkpoint == "demo" else Path(config.checkpoint)


def license_of(config: TeacherConfig) -> str | None:
    """Return the licence of a teacher's weights, or None if it is unknown.

    For timm's weights, it is the licence in timm's configuration. For a student of this package, it lists the licences
    of the student's teachers.
    """
    if config.checkpoint in ("demo", "random"):
        return None
    if config.checkpoint != "hub" and "recipe" in (described := description_beside(teacher_file(config))):
        before = read_by_teacher(described).values()  # trained with this package: its teachers' licences apply
        licences = dict.fromkeys(each.get("license") for each in before if isinstance(each, dict))
        return ", ".join(filter(None, licences)) or None
    is_named = config.checkpoint == "hub" or "." in config.model
    pretrained = timm.get_pretrained_cfg(config.model) if is_named else None
    return pretrained.license if pretrained else None


def normalization_of(model: nn.Module, *, image_size: int = 0) -> Normalization:
    """Return the normalisation in the timm configuration of a model.

    With an `image_size` in pixels, the normalisation first resizes images to this size; 0 does not resize.
    """
    statistics = {key: tuple(model.pretrained_cfg[key]) for key in ("mean", "std")}
    return ResizedNormalization(**statistics, image_size=image_size) if image_size else Normalization(**statistics)


def statistics_of(
    config: StudentConfig, teachers: Mapping[str, TeacherConfig] = MappingProxyType({})
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation that `normalization_of` would return, without building the model."""
    model, file = config.model, Path(config.init) if config.init not in ("", "hub") else None
    if is_selected(config.init):
        source = source_of(config.init, teachers)
        check_source(config.init, source)
        model, file = source.model, teacher_file(source) if source.checkpoint not in ("hub", "random") else None
    described = default_model(model, role="student").pretrained_cfg
    if file:
        described = described | description_beside(file).get("normalization", {})
    return tuple(described["mean"]), tuple(described["std"])
