"""Fit a file's weights to a model. Nothing is adapted silently: another patch grid must be allowed, a classifier that
is left out is reported, and anything else that differs is refused."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from timm.models import Eva, eva, vision_transformer
from torch import Tensor, nn

from vitkd_ds.models.features import TOKEN_MODELS
from vitkd_ds.models.weights import key_differences, library_of, load_state_dict_file

logger = logging.getLogger(__name__)

OTHER_RESOLUTION = (
    "give weights trained at this size, change {size_key}, or interpolate the position embedding with "
    "--{role}.allow_other_resolution=true"
)


def load_weights(
    model: nn.Module,
    path: Path,
    *,
    key: str,
    allow_other_grid: bool,
    needs_classifier: bool,
    has_other_classes: bool = False,
) -> None:
    """Load a local file into a timm model of the configured classes.

    Args:
        key, allow_other_grid, needs_classifier, has_other_classes: see `fit_state`.

    Raises:
        ValueError: the file does not fit; the message names the keys.
    """
    options = {"allow_other_grid": allow_other_grid, "needs_classifier": needs_classifier}
    state = load_state_dict_file(path)
    model.load_state_dict(fit_state(model, state, path, key=key, has_other_classes=has_other_classes, **options))


def fit_state(
    model: nn.Module,
    state: dict[str, Tensor],
    path: Path,
    *,
    key: str,
    allow_other_grid: bool,
    needs_classifier: bool,
    has_other_classes: bool = False,
) -> dict[str, Tensor]:
    """Fit a state dict to a timm model of the configured classes, by names and shapes alone.

    Args:
        state: tensors under timm's names; they, and the model, may be on the meta device.
        path: where they are from, for messages.
        key: the option that errors name, such as student.init.
        allow_other_grid: interpolate a position embedding of another square patch grid.
        needs_classifier: refuse a classifier that does not fit. Else it is left out, which the log says: a student's
            starts from its random initialisation, a teacher becomes a model without classes.
        has_other_classes: the file's classifier is known to be for other classes than the model's, even if it fits.

    Returns:
        What `load_state_dict` takes: the same tensors, but for a position embedding that is interpolated and, of a
        student, a classifier that is left out.

    Raises:
        ValueError: they do not fit; the message names the keys.
    """
    own = model.state_dict()
    if isinstance(model, TOKEN_MODELS):
        state = _at_own_grid(model, state, source=f"{key}={path}", is_allowed=allow_other_grid)
    misfit = "" if needs_classifier else _misfit_of_classifier(model, state, key, has_other_classes=has_other_classes)
    if misfit:
        names = _classifier(model, state)
        state = {name: tensor for name, tensor in state.items() if name not in names}
        if key.startswith("teacher"):
            model.reset_classifier(0)
            own = model.state_dict()
        state |= {name: own[name] for name in names if name in own}
    if differences := key_differences(own, state):
        advice = "Give its own file, or change model, model_args or data.num_classes to the file's"
        if library := library_of(state):
            advice = (
                f"The file is of a {library} model, whose tensors have other names than timm's. Give the same model's "
                f"weights from timm: --{key} hub, where timm has them"
            )
        raise ValueError(
            f"{key} must hold exactly the weights of the configured model, found in {path}: {differences}. {advice}"
        )
    if misfit:
        logger.info("%s=%s %s: the classifier is left out", key, path, misfit)
    return state


def _classifier(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """The names of the classifier's weights, in the model or in the file, as either may be without one."""
    layers = model.pretrained_cfg["classifier"]
    layers = (layers,) if isinstance(layers, str) else layers
    return [name for name in {**model.state_dict(), **state} if name.rpartition(".")[0] in layers]


def _misfit_of_classifier(model: nn.Module, state: Mapping[str, Tensor], key: str, *, has_other_classes: bool) -> str:
    """What is wrong with the file's classifier, in words; "" if it fits, or if neither has one."""
    own, names = model.state_dict(), _classifier(model, state)
    found, wanted = ([tuple(some[name].shape) for name in names if name in some] for some in (state, own))
    if found == wanted:
        return "has other classes than the data" if has_other_classes and names else ""
    if not found:
        return f"has no classifier, the data {model.num_classes}"
    if not wanted:
        return f"has {found[0][0]} classes, the {_role(key)} none"
    if found[0][0] != model.num_classes:
        return f"has {found[0][0]} classes, the data {model.num_classes}"
    return f"has a classifier of shapes {found}, where {wanted} would fit"


def _at_own_grid(model: nn.Module, state: dict[str, Tensor], *, source: str, is_allowed: bool) -> dict[str, Tensor]:
    """The weights with timm's renames, and a position embedding for the model's own grid if that is allowed."""
    own = model.state_dict()
    patches, positions = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    # timm's filter silently resizes patch embeddings of another patch size and drops a pre-logits layer. The first must
    # not reach it and the second is put back, so that the comparison of all keys names either.
    if patches is None or patches.shape != own["patch_embed.proj.weight"].shape:
        return state
    if positions is not None and "pos_embed" in own and positions.shape[1] != own["pos_embed"].shape[1]:
        _check_grid(model, positions.shape[1], source=source, is_allowed=is_allowed)
    pre_logits = {name: tensor for name, tensor in state.items() if "pre_logits" in name}
    if isinstance(model, Eva):
        return eva.checkpoint_filter_fn(state, model)
    return {**vision_transformer.checkpoint_filter_fn(state, model, adapt_layer_scale=True), **pre_logits}


def _check_grid(model: nn.Module, positions: int, *, source: str, is_allowed: bool) -> None:
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
            f"({side * height} x {side * width} pixels): "
            + OTHER_RESOLUTION.format(role=_role(source.partition("=")[0]), size_key="the image size")
        )


def _role(key: str) -> str:
    """Return the model's place in the run from the key of its weights, such as teacher.checkpoint or student."""
    return key.rpartition(".")[0] or key
