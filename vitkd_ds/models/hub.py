"""Check names of timm models, check that their pretrained weights fit, and find or download the weight files."""

from pathlib import Path
from typing import Any

import timm
from huggingface_hub import (  # timm's own requirement
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from timm.models import register_model
from torch import nn

from vitkd_ds.config import entry_points
from vitkd_ds.config.overrides import nearest
from vitkd_ds.config.reading import raise_if_of_the_disk
from vitkd_ds.config.run import DataConfig, StudentConfig, TeacherConfig
from vitkd_ds.models.features import TOKEN_MODELS
from vitkd_ds.models.fit import OTHER_RESOLUTION

HUB_FILE = "model.safetensors"
CACHED_FILES = (HUB_FILE, "pytorch_model.bin")
"""Weight files that timm downloads from the hub."""
REACH_S = 4
"""Timeout in seconds for an answer of the hub. Without it, the hub's client would retry for 23 seconds."""
_OF_TIMM = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
"""Arguments that timm.create_model passes to every model function."""


def check_model_name(name: str, *, role: str) -> None:
    """Raise ValueError if timm has no model of this name; the message suggests the nearest names."""
    architecture = name.partition(".")[0]
    if role != "student":
        _register_teacher(architecture)
    if not timm.is_model(architecture):
        near = nearest(architecture, timm.list_models())
        raise ValueError(f"{role}.model={name} is not a timm model; {near}")


def _register_teacher(name: str) -> None:
    """Register another package's teacher with timm, if an entry point has this name and timm has no such model.

    The factory receives the arguments of a timm model function, except timm's internal ones (pretrained_cfg,
    cache_dir). It returns a model with timm's interface: pretrained_cfg, num_classes, num_features, forward_features
    and forward_head.
    """
    point = entry_points.find("teachers", name)
    if point is None or timm.is_model(name):
        return
    factory = entry_points.load(point)

    def build(pretrained: bool = False, **arguments: Any) -> nn.Module:
        own = {key: value for key, value in arguments.items() if key not in _OF_TIMM}
        return factory(pretrained=pretrained, **own)

    build.__name__ = name
    register_model(build)


def hub_file(name: str, *, key: str = "teacher.checkpoint") -> Path | None:
    """Return the path of timm's pretrained weights in the local cache, downloading them if needed.

    Args:
        name: model name with or without a tag.
        key: setting to name in error messages.

    Returns:
        The path, or None if the hub has no safetensors file with these weights.

    Raises:
        ValueError: the weights are neither in the cache nor available from the hub.
        Unreadable: the disk failed.
    """
    check_model_name(name, role=key.rpartition(".")[0])
    pretrained = timm.get_pretrained_cfg(name)
    if not pretrained or not pretrained.hf_hub_id:
        return None
    check_hub_is_reached(name, key=key)
    try:
        return Path(hf_hub_download(pretrained.hf_hub_id, HUB_FILE))
    except (OSError, ValueError, HfHubHTTPError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise _not_had(name, key, error) from error


def check_hub_is_reached(name: str, *, key: str) -> None:
    """Raise ValueError if a model's pretrained weights are not in the local cache and the hub does not answer."""
    pretrained = timm.get_pretrained_cfg(name)
    repository = pretrained.hf_hub_id if pretrained else None
    if not repository or any(isinstance(try_to_load_from_cache(repository, file), str) for file in CACHED_FILES):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, HUB_FILE), timeout=REACH_S)
    except HfHubHTTPError:
        return  # the hub answered, so its client or timm handles the rest
    except Exception as error:  # exception classes of the hub's HTTP client change between versions
        raise _not_had(name, key, error) from error


def _not_had(name: str, key: str, error: Exception) -> ValueError:
    """Return the error for unavailable weights. If `error` is a failure of the disk, raise Unreadable instead."""
    raise_if_of_the_disk(error, f"the cached weights of {name}")
    return ValueError(
        f"{key}=hub: the weights of {name} are not in this node's cache and cannot be downloaded: "
        f"{type(error).__name__}: {str(error).partition(chr(10))[0]}. Download them on a machine with a network, into "
        "the HF_HOME that the nodes share (after `hf auth login` if a licence must be accepted), or pass a file."
    )


def check_hub(
    config: StudentConfig | TeacherConfig, data: DataConfig, default: nn.Module, *, role: str, needs_logits: bool
) -> None:
    """Raise ValueError, before any download, if timm's pretrained weights do not fit without changes.

    `default` is this model, built with timm's default arguments.
    """
    pretrained: Any = default.pretrained_cfg
    key = "student.init" if role == "student" else f"{role}.checkpoint"
    source = f"{key}=hub of {config.model}"
    if "patch_size" in config.model_args:
        raise ValueError(
            f"{role}.model_args must not set patch_size (got {config.model_args['patch_size']}) with {key}=hub: timm "
            "would resize the weights. Omit it, or pass a file."
        )
    if role != "student" and needs_logits and pretrained["num_classes"] != data.num_classes:
        raise ValueError(
            f"{source} must have data.num_classes={data.num_classes} classes, got {pretrained['num_classes']}: its "
            "classifier would be random. Fine-tune it on these classes first and pass that run folder, or pass a "
            f"linear probe with --{role}.head."
        )
    trained = tuple(pretrained["input_size"][-2:])
    # A model with only rotary embeddings works on any grid and was trained on many.
    is_rotary = isinstance(default, TOKEN_MODELS) and default.pos_embed is None
    if trained != (data.image_size, data.image_size) and not config.allow_other_resolution and not is_rotary:
        size_key = size_key_of(config, role)
        raise ValueError(
            f"{source} must be trained at {size_key}={data.image_size}, got {trained[0]} x {trained[1]} pixels. "
            + OTHER_RESOLUTION.format(role=role, size_key=size_key)
        )


def size_key_of(config: StudentConfig | TeacherConfig, role: str) -> str:
    """Return the option that sets a model's input size."""
    return f"{role}.image_size" if getattr(config, "image_size", 0) else "data.image_size"
