"""Build students and teachers, which are timm VisionTransformers, and check that both fit together.

Nothing is adapted silently: a file must have exactly the model's weights, and a position embedding is interpolated only
where the configuration allows it.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from vitkd_ds.config.overrides import nearest
from vitkd_ds.config.run import DataConfig, StudentConfig, TeacherConfig
from vitkd_ds.models.normalization import Normalization
from vitkd_ds.models.weights import key_differences, load_state_dict_file

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
"""Arguments of a VisionTransformer that model_args may not set, and why."""

_OTHER_SIZE = "give weights trained at this size, or change data.image_size"
_OTHER_RESOLUTION = {
    "student": _OTHER_SIZE,
    "teacher": f"{_OTHER_SIZE}, or interpolate the position embedding with --teacher.allow_other_resolution=true",
}


@dataclass(frozen=True)
class PairInfo:
    """Widths and patch grids (rows, columns) of a student and its teacher, named as the arguments of ViTKDLoss."""

    student_dim: int
    teacher_dim: int
    student_grid: tuple[int, int]
    teacher_grid: tuple[int, int]


def build_student(config: StudentConfig, data: DataConfig) -> VisionTransformer:
    """Build the student on the CPU in fp32, initialised as `config.init` says.

    From the hub, the classifier starts anew if data.num_classes is not the pretrained one's, as in timm. A file must
    fit exactly. In both cases the weights must have been trained on this patch grid.

    Raises:
        ValueError: the model, its arguments or its weights do not fit; the message names the key.
    """
    model = _create(config, data, pretrained=config.init == "hub", drop_path_rate=config.drop_path_rate)
    if config.init not in ("", "hub"):
        _load_weights(model, Path(config.init), key="student.init")
    model.set_grad_checkpointing(config.checkpoint_activations)
    return model


def build_teacher(config: TeacherConfig, data: DataConfig) -> VisionTransformer:
    """Build the teacher on the CPU in fp32 and eval mode, with the weights of `config.checkpoint` and no gradients.

    Raises:
        ValueError: as for the student.
    """
    model = _create(config, data, pretrained=config.checkpoint == "hub")
    if config.checkpoint not in ("hub", "random"):
        _load_weights(model, teacher_file(config), key="teacher.checkpoint", is_allowed=config.allow_other_resolution)
    return model.requires_grad_(False).eval()


def build_exported(description: Mapping[str, Any], weights: Path) -> VisionTransformer:
    """Build an exported student on the CPU in fp32: `description` is what its student.json says, `weights` its file.

    Raises:
        ValueError: as for the student.
    """
    own, args = ("num_classes", "img_size"), description["args"]
    data = DataConfig(train="", val="", num_classes=args["num_classes"], image_size=args["img_size"])
    model_args = {name: value for name, value in args.items() if name not in own}
    return build_student(StudentConfig(description["model"], model_args, init=str(weights)), data)


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


def check_pair(student: VisionTransformer, teacher: VisionTransformer, *, blocks: Sequence[int]) -> PairInfo:
    """Check that the teacher can teach this student by the tapped blocks; widths and patch grids may differ.

    Raises:
        ValueError: the numbers of classes differ, or a tapped block does not exist.
    """
    if student.num_classes != teacher.num_classes:
        raise ValueError(
            f"student and teacher must have the same classes, found {student.num_classes} and {teacher.num_classes}: "
            "build both with data.num_classes"
        )
    for role, depth in (("student", len(student.blocks)), ("teacher", len(teacher.blocks))):
        if outside := [block for block in blocks if not 0 <= block < depth]:
            raise ValueError(
                f"losses.vitkd.blocks must be between 0 and {depth - 1}, as the {role} has {depth} blocks, "
                f"found {outside[0]}: choose others or a deeper {role}"
            )
    grids = student.patch_embed.grid_size, teacher.patch_embed.grid_size
    return PairInfo(student.embed_dim, teacher.embed_dim, *grids)


def _load_weights(model: VisionTransformer, path: Path, *, key: str, is_allowed: bool = False) -> None:
    """Load a local file strictly; only another patch grid may be allowed. `key` is the option that errors name."""
    state = load_state_dict_file(path)
    own = model.state_dict()
    patches, positions = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    # timm's filter silently resizes patch embeddings of another patch size and drops a pre-logits layer. The first must
    # not reach it and the second is put back, so that the comparison below names either.
    if patches is not None and patches.shape == own["patch_embed.proj.weight"].shape:
        if positions is not None and "pos_embed" in own and positions.shape[1] != own["pos_embed"].shape[1]:
            _check_grid(model, positions.shape[1], source=f"{key}={path}", is_allowed=is_allowed)
        pre_logits = {name: tensor for name, tensor in state.items() if "pre_logits" in name}
        state = {**checkpoint_filter_fn(state, model, adapt_layer_scale=True), **pre_logits}
    if differences := key_differences(own, state):
        raise ValueError(
            f"{key} must hold exactly the weights of the configured model, found in {path}: {differences}. "
            "Give its own file, or change model, model_args or data.num_classes to the file's"
        )
    model.load_state_dict(state)


def _check_grid(model: VisionTransformer, positions: int, *, source: str, is_allowed: bool) -> None:
    """Refuse another number of positions, unless it is another square grid and that is allowed."""
    num_prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    side = math.isqrt(max(0, positions - num_prefix))
    rows, columns = model.patch_embed.grid_size
    if side * side + num_prefix != positions or not side:
        raise ValueError(
            f"{source} must have {model.pos_embed.shape[1]} positions ({rows} x {columns} patches and {num_prefix} "
            f"prefix tokens), found {positions}: give the file of the same model"
        )
    if not is_allowed:
        height, width = model.patch_embed.patch_size
        raise ValueError(
            f"{source} must be trained at data.image_size ({rows} x {columns} patches), found {side} x {side} patches "
            f"({side * height} x {side * width} pixels): {_OTHER_RESOLUTION[source.partition('.')[0]]}"
        )


def _check_hub(config: ModelConfig, data: DataConfig, pretrained: Mapping[str, Any], *, role: str) -> None:
    """Check, before anything is fetched, that the weights that timm describes as `pretrained` fit as they are."""
    key = {"student": "student.init", "teacher": "teacher.checkpoint"}[role]
    source = f"{key}=hub of {config.model}"
    if "patch_size" in config.model_args:
        raise ValueError(
            f"{role}.model_args must not set patch_size with {key}=hub, as timm would resize the weights, found "
            f"{config.model_args['patch_size']}: leave it out, or give a file"
        )
    if role == "teacher" and pretrained["num_classes"] != data.num_classes:
        raise ValueError(
            f"{source} must have data.num_classes={data.num_classes} classes, found {pretrained['num_classes']}: its "
            "classifier would be random, so give a file of a teacher trained on these classes"
        )
    trained = tuple(pretrained["input_size"][-2:])
    is_allowed = role == "teacher" and config.allow_other_resolution
    if trained != (data.image_size, data.image_size) and not is_allowed:
        raise ValueError(
            f"{source} must be trained at data.image_size={data.image_size}, found {trained[0]} x {trained[1]} pixels: "
            + _OTHER_RESOLUTION[role]
        )


def _create(config: ModelConfig, data: DataConfig, *, pretrained: bool, drop_path_rate: float = 0) -> VisionTransformer:
    """Create a model with timm, after refusing what timm would refuse late or not at all."""
    role = "student" if isinstance(config, StudentConfig) else "teacher"
    default = _default_model(config.model, role=role)
    if pretrained:
        _check_hub(config, data, default.pretrained_cfg, role=role)
    _check_model_args(config.model_args, role=role)
    made = model_args_of(config, data)
    try:
        model = timm.create_model(made["model"], pretrained=pretrained, drop_path_rate=drop_path_rate, **made["args"])
    # timm's checks are assertions, its loading errors RuntimeErrors, the network's OSErrors.
    except (AssertionError, RuntimeError, OSError, TypeError, ValueError) as error:
        advice = "fetch the weights beforehand and give the file, or fix the arguments" if pretrained else "fix them"
        raise ValueError(
            f"{role}.model={config.model} must build with {made['args']}, timm answered {error!r}: {advice}"
        ) from error
    height, width = model.patch_embed.patch_size
    if data.image_size % height or data.image_size % width:
        raise ValueError(
            f"data.image_size must be a multiple of the patches of {role}.model={config.model} ({height} x {width}), "
            f"found {data.image_size}: timm would ignore the last pixels, so change one of the two"
        )
    assert type(model) is type(default), f"timm made a {type(model).__name__} with {made['args']}"
    return model


def check_model_name(name: str, *, role: str) -> None:
    """Raise ValueError, with the nearest names, unless timm knows the architecture `name`."""
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = nearest(architecture, timm.list_models())
        raise ValueError(f"{role}.model must be a timm model, found {name!r}: {near}")


def _default_model(name: str, *, role: str) -> VisionTransformer:
    """Create the named model without model_args on the meta device, where it costs no memory."""
    check_model_name(name, role=role)
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except RuntimeError as error:
        architecture = name.partition(".")[0]
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")) or architecture
        raise ValueError(f"{role}.model must name weights that timm knows, found {name!r}: choose of {tags}") from error
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"{role}.model must be a timm VisionTransformer, found {name}, a {type(model).__name__}: choose a deit_*, "
            "deit3_* or vit_* model of that class"
        )
    return model


def _check_model_args(model_args: Mapping[str, Any], *, role: str) -> None:
    """Refuse arguments that a VisionTransformer does not take, and those that are set elsewhere."""
    known = [name for name in inspect.signature(VisionTransformer.__init__).parameters if name != "self"]
    for name, value in model_args.items():
        if name in _OWNED_ARGS:
            raise ValueError(f"{role}.model_args must not set {name}, found {value!r}: it {_OWNED_ARGS[name]}")
        if name not in known:
            raise ValueError(
                f"{role}.model_args must be arguments of timm's VisionTransformer, found {name}: {nearest(name, known)}"
            )
