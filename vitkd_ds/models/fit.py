"""Fit a file's weights to a model, without silent changes.

A different patch grid is accepted only if a setting allows it. If the classifier is dropped, this is logged. Any other
difference raises an error.
"""

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
    "Pass weights trained at this size, change {size_key}, or interpolate the position embedding with "
    "--{role}.allow_other_resolution=true."
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
    """Load a weight file into a timm model.

    Args:
        key, allow_other_grid, needs_classifier, has_other_classes: see `fit_state`.

    Raises:
        ValueError: the file does not fit; the message lists the tensors that differ.
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
    """Return the state dict of a file, adapted to a timm model. Only names and shapes are compared.

    Args:
        state: tensors under timm's names. The tensors and the model may be on the meta device.
        path: file of the tensors, for messages.
        key: option to name in error messages, such as student.init.
        allow_other_grid: interpolate the position embedding if the file has another square patch grid. If False, raise
            an error.
        needs_classifier: raise an error if the classifier does not fit. If False, such a classifier is dropped with a
            log line: a student keeps its random classifier, and a teacher becomes a model without a classifier.
        has_other_classes: whether the file's classifier is for other classes, even if its shape fits.

    Returns:
        State dict for `load_state_dict`. It has the same tensors, except that a position embedding may be interpolated,
        and a classifier replaced or dropped.

    Raises:
        ValueError: some tensors do not fit; the message lists them.
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
        advice = "Pass the model's own file, or change model, model_args or data.num_classes to match."
        if library := library_of(state):
            advice = (
                f"The file is from {library}, which names tensors differently from timm. Use the same model's weights "
                f"from timm with --{key} hub, if timm has them."
            )
        raise ValueError(f"{key}={path} does not fit the configured model: {differences}. {advice}")
    if misfit:
        logger.info("%s=%s %s: dropping its classifier", key, path, misfit)
    return state


def _classifier(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the classifier's weights in the model and in the file. Either of the two may have none."""
    layers = model.pretrained_cfg["classifier"]
    layers = (layers,) if isinstance(layers, str) else layers
    return [name for name in {**model.state_dict(), **state} if name.rpartition(".")[0] in layers]


def _misfit_of_classifier(model: nn.Module, state: Mapping[str, Tensor], key: str, *, has_other_classes: bool) -> str:
    """Describe why the file's classifier does not fit; "" if it fits, or if file and model both have none."""
    own, names = model.state_dict(), _classifier(model, state)
    found, wanted = ([tuple(some[name].shape) for name in names if name in some] for some in (state, own))
    if found == wanted:
        return "has other classes than the data" if has_other_classes and names else ""
    if not found:
        return f"has no classifier, but the data has {model.num_classes} classes"
    if not wanted:
        return f"has {found[0][0]} classes, but the {_role(key)} has none"
    if found[0][0] != model.num_classes:
        return f"has {found[0][0]} classes, but the data has {model.num_classes}"
    return f"has a classifier of shapes {found}, but {wanted} is needed"


def _at_own_grid(model: nn.Module, state: dict[str, Tensor], *, source: str, is_allowed: bool) -> dict[str, Tensor]:
    """Return the weights under timm's current names; interpolate the position embedding if necessary and allowed."""
    own = model.state_dict()
    patches, positions = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    # timm's filter silently resizes patch embeddings of another patch size, and silently drops a pre-logits layer. To
    # have `fit_state` report them, do not call the filter in the first case, and add the layer back in the second.
    if patches is None or patches.shape != own["patch_embed.proj.weight"].shape:
        return state
    if positions is not None and "pos_embed" in own and positions.shape[1] != own["pos_embed"].shape[1]:
        _check_grid(model, positions.shape[1], source=source, is_allowed=is_allowed)
    pre_logits = {name: tensor for name, tensor in state.items() if "pre_logits" in name}
    if isinstance(model, Eva):
        return eva.checkpoint_filter_fn(state, model)
    return {**vision_transformer.checkpoint_filter_fn(state, model, adapt_layer_scale=True), **pre_logits}


def _check_grid(model: nn.Module, positions: int, *, source: str, is_allowed: bool) -> None:
    """Raise ValueError unless a file's number of positions belongs to a square grid and interpolation is allowed."""
    num_prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    side = math.isqrt(max(0, positions - num_prefix))
    rows, columns = model.patch_embed.grid_size
    if side * side + num_prefix != positions or not side:
        raise ValueError(
            f"{source} must have {model.pos_embed.shape[1]} positions ({rows} x {columns} patches and {num_prefix} "
            f"prefix tokens), got {positions}. Pass a file of the same model."
        )
    if not is_allowed:
        height, width = model.patch_embed.patch_size
        raise ValueError(
            f"{source} must be trained at data.image_size ({rows} x {columns} patches), got {side} x {side} patches "
            f"({side * height} x {side * width} pixels). "
            + OTHER_RESOLUTION.format(role=_role(source.partition("=")[0]), size_key="the image size")
        )


def _role(key: str) -> str:
    """Return a model's role from the key of its weights: teacher for teacher.checkpoint, student for student."""
    return key.rpartition(".")[0] or key
