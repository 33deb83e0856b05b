"""Build students and teachers, which are timm VisionTransformers, and check that both fit together.

A model is made with timm, after what timm would refuse late or not at all was refused here; `vitkd_ds.models.fit` loads
files.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitkd_ds.config.overrides import nearest
from vitkd_ds.config.run import DataConfig, StudentConfig, TeacherConfig
from vitkd_ds.config.run_folder import description_beside, model_of
from vitkd_ds.models.fit import OTHER_RESOLUTION, load_weights
from vitkd_ds.models.normalization import Normalization

ModelConfig = StudentConfig | TeacherConfig
DEMO_TEACHER = Path(__file__).parents[1] / "data" / "demo" / "teacher.safetensors"

_OWNED_ARGS = {
    "num_classes": "is data.num_classes",
    "img_size": "is data.image_size",
    "drop_path_rate": "is student.drop_path_rate",
    "in_chans": "is 3, as images are RGB",
    "patch_drop_rate": "must stay 0, as student and teacher tokens would not match",
    "device": "is chosen by the launcher",
    "dtype": "is chosen in ds_configs",
}
"""Arguments of a model that model_args may not set, and why."""


@dataclass(frozen=True)
class PairInfo:
    """Widths and patch grids (rows, columns) of a student and its teacher, named as the arguments of ViTKDLoss."""

    student_dim: int
    teacher_dim: int
    student_grid: tuple[int, int]
    teacher_grid: tuple[int, int]


def build_student(
    config: StudentConfig, data: DataConfig, *, classes: tuple[str, ...] | None = None
) -> VisionTransformer:
    """Build the student on the CPU in fp32, initialised as `config.init` says.

    The classifier starts anew if the weights are for other classes: of another number or, where the description beside
    them names theirs, other than `classes`, those of the data in label order. All else must fit exactly; weights of
    another patch grid are interpolated if the configuration allows it.

    Raises:
        ValueError: the model, its arguments or its weights do not fit; the message names the key.
    """
    model = _create(config, data, pretrained=config.init == "hub", drop_path_rate=config.drop_path_rate)
    if config.init not in ("", "hub"):
        path = Path(config.init)
        has_others = classes is not None and description_beside(path).get("classes", list(classes)) != list(classes)
        _load_file(model, config, path, key="student.init", needs_classifier=False, has_other_classes=has_others)
    model.set_grad_checkpointing(config.checkpoint_activations)
    return model


def build_teacher(
    config: TeacherConfig, data: DataConfig, *, needs_tokens: bool = True, needs_logits: bool = True
) -> nn.Module:
    """Build the teacher on the CPU in fp32 and eval mode, with the weights of `config.checkpoint` and no gradients.

    Args:
        needs_tokens: a term compares tokens, so the model must be a VisionTransformer.
        needs_logits: a term compares logits, so its classifier must be for data.num_classes. Else one that is not is
            left out, and the model has num_classes 0.

    Raises:
        ValueError: as for the student.
    """
    needs = {"needs_tokens": needs_tokens, "needs_logits": needs_logits}
    model = _create(config, data, pretrained=config.checkpoint == "hub", **needs)
    if config.checkpoint not in ("hub", "random"):
        _load_file(model, config, teacher_file(config), key="teacher.checkpoint", needs_classifier=needs_logits)
    return model.requires_grad_(False).eval()


def build_exported(description: Mapping[str, Any], weights: Path) -> VisionTransformer:
    """Build an exported student on the CPU in fp32: `description` is what its student.json says, `weights` its file.

    Raises:
        ValueError: as for the student, or its classifier does not fit.
    """
    args = description["args"]
    data = DataConfig(train="", val="", num_classes=args["num_classes"], image_size=args["img_size"])
    model = build_student(StudentConfig(**model_of(description)), data)
    load_weights(model, weights, key="student", allow_other_grid=False, needs_classifier=True)
    model.pretrained_cfg = model.pretrained_cfg | description.get("normalization", {})
    return model


def _load_file(model: nn.Module, config: ModelConfig, path: Path, *, key: str, **classifier: bool) -> None:
    """Load weights, and the normalisation that the description beside them states."""
    load_weights(model, path, key=key, allow_other_grid=config.allow_other_resolution, **classifier)
    if normalization := description_beside(path).get("normalization"):
        model.pretrained_cfg = model.pretrained_cfg | normalization


def teacher_file(config: TeacherConfig) -> Path:
    """Path of the teacher's weights, where `config.checkpoint` is neither "hub" nor "random"."""
    return DEMO_TEACHER if config.checkpoint == "demo" else Path(config.checkpoint)


def model_args_of(config: ModelConfig, data: DataConfig) -> dict[str, Any]:
    """Arguments that rebuild the model with timm alone: `timm.create_model(made["model"], **made["args"])`."""
    args = {"num_classes": data.num_classes, "img_size": data.image_size, **config.model_args}
    return {"model": config.model, "args": args}


def normalization_of(model: nn.Module) -> Normalization:
    """Mean and standard deviation that the model was trained with, by its timm configuration."""
    return Normalization(mean=tuple(model.pretrained_cfg["mean"]), std=tuple(model.pretrained_cfg["std"]))


def check_pair(student: nn.Module, teacher: nn.Module, *, blocks: Sequence[int]) -> PairInfo | None:
    """Check that the teacher can teach this student by the tapped blocks; widths and patch grids may differ.

    Returns:
        None if no blocks are tapped: only logits are compared.

    Raises:
        ValueError: the numbers of classes differ, where the teacher has any, or a tapped block does not exist.
    """
    if teacher.num_classes and student.num_classes != teacher.num_classes:
        raise ValueError(
            f"student and teacher must have the same classes, found {student.num_classes} and {teacher.num_classes}: "
            "build both with data.num_classes"
        )
    if not blocks:
        return None
    for role, depth in (("student", len(student.blocks)), ("teacher", len(teacher.blocks))):
        if outside := [block for block in blocks if not 0 <= block < depth]:
            raise ValueError(
                f"losses.vitkd.blocks must be between 0 and {depth - 1}, as the {role} has {depth} blocks, "
                f"found {outside[0]}: choose others or a deeper {role}"
            )
    grids = student.patch_embed.grid_size, teacher.patch_embed.grid_size
    return PairInfo(student.embed_dim, teacher.embed_dim, *grids)


def _check_hub(
    config: ModelConfig, data: DataConfig, pretrained: Mapping[str, Any], *, role: str, needs_logits: bool
) -> None:
    """Check, before anything is fetched, that the weights that timm describes as `pretrained` fit as they are."""
    key = {"student": "student.init", "teacher": "teacher.checkpoint"}[role]
    source = f"{key}=hub of {config.model}"
    if "patch_size" in config.model_args:
        raise ValueError(
            f"{role}.model_args must not set patch_size with {key}=hub, as timm would resize the weights, found "
            f"{config.model_args['patch_size']}: leave it out, or give a file"
        )
    if role == "teacher" and needs_logits and pretrained["num_classes"] != data.num_classes:
        raise ValueError(
            f"{source} must have data.num_classes={data.num_classes} classes, found {pretrained['num_classes']}: its "
            "classifier would be random, so fine-tune it on these classes first and give that run folder"
        )
    trained = tuple(pretrained["input_size"][-2:])
    if trained != (data.image_size, data.image_size) and not config.allow_other_resolution:
        raise ValueError(
            f"{source} must be trained at data.image_size={data.image_size}, found {trained[0]} x {trained[1]} pixels: "
            + OTHER_RESOLUTION.format(role=role)
        )


def _create(
    config: ModelConfig, data: DataConfig, *, pretrained: bool, drop_path_rate: float = 0, needs_tokens: bool = True,
    needs_logits: bool = True,
) -> nn.Module:  # fmt: skip
    """Create a model with timm, after refusing what timm would refuse late or not at all."""
    role = "student" if isinstance(config, StudentConfig) else "teacher"
    default = _default_model(config.model, role=role)
    if needs_tokens and not isinstance(default, VisionTransformer):
        others = ", or compare logits alone with --losses.vitkd.weight=0" if role == "teacher" else ""
        raise ValueError(
            f"{role}.model must be a timm VisionTransformer, found {config.model}, a {type(default).__name__}: choose "
            f"a deit_*, deit3_* or vit_* model of that class{others}"
        )
    if pretrained:
        _check_hub(config, data, default.pretrained_cfg, role=role, needs_logits=needs_logits)
    _check_model_args(config.model_args, type(default), role=role)
    args = model_args_of(config, data)["args"]
    if "img_size" not in _arguments_of(type(default)):
        del args["img_size"]  # a convolutional network takes any
    if pretrained and role == "teacher" and default.pretrained_cfg["num_classes"] != data.num_classes:
        args["num_classes"] = 0  # its classifier is for other classes, and no term needs it
    try:
        model = timm.create_model(config.model, pretrained=pretrained, drop_path_rate=drop_path_rate or None, **args)
    # timm's checks are assertions, its loading errors RuntimeErrors, the network's OSErrors.
    except (AssertionError, RuntimeError, OSError, TypeError, ValueError) as error:
        advice = "fetch the weights beforehand and give the file, or fix the arguments" if pretrained else "fix them"
        raise ValueError(
            f"{role}.model={config.model} must build with {args}, timm answered {error!r}: {advice}"
        ) from error
    if isinstance(model, VisionTransformer):
        height, width = model.patch_embed.patch_size
        if data.image_size % height or data.image_size % width:
            raise ValueError(
                f"data.image_size must be a multiple of the patches of {role}.model={config.model} ({height} x "
                f"{width}), found {data.image_size}: timm would ignore the last pixels, so change one of the two"
            )
    assert type(model) is type(default), f"timm made a {type(model).__name__} with {args}"
    return model


def check_model_name(name: str, *, role: str) -> None:
    """Raise ValueError, with the nearest names, unless timm knows the architecture `name`."""
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = nearest(architecture, timm.list_models())
        raise ValueError(f"{role}.model must be a timm model, found {name!r}: {near}")


def _default_model(name: str, *, role: str) -> nn.Module:
    """Create the named model without model_args on the meta device, where it costs no memory."""
    check_model_name(name, role=role)
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except RuntimeError as error:
        architecture = name.partition(".")[0]
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")) or architecture
        raise ValueError(f"{role}.model must name weights that timm knows, found {name!r}: choose of {tags}") from error
    return model


def _check_model_args(model_args: Mapping[str, Any], cls: type[nn.Module], *, role: str) -> None:
    """Refuse arguments that a model of this class does not take, and those that are set elsewhere."""
    known = _arguments_of(cls)
    for name, value in model_args.items():
        if name in _OWNED_ARGS:
            raise ValueError(f"{role}.model_args must not set {name}, found {value!r}: it {_OWNED_ARGS[name]}")
        if name not in known and "kwargs" not in known:
            raise ValueError(
                f"{role}.model_args must be arguments of timm's {cls.__name__}, found {name}: {nearest(name, known)}"
            )


def _arguments_of(cls: type[nn.Module]) -> list[str]:
    """Names of the arguments that a timm class takes; "kwargs" among them stands for others."""
    named = VisionTransformer if issubclass(cls, VisionTransformer) else cls  # subclasses hand theirs on
    return [name for name in inspect.signature(named.__init__).parameters if name != "self"]
