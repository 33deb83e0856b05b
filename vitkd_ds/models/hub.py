"""timm's pretrained weights: the names that timm knows, whether weights fit, and their file in the local cache."""

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
"""Files of weights that timm takes from the hub."""
REACH_S = 4
"""Longest that the hub may take to answer. Its client would ask six times in 23 seconds."""
_OF_TIMM = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
"""Arguments that timm.create_model gives to each model function."""


def check_model_name(name: str, *, role: str) -> None:
    """Raise ValueError, with the nearest names, unless timm knows the architecture `name`."""
    architecture = name.partition(".")[0]
    if role != "student":
        _register_teacher(architecture)
    if not timm.is_model(architecture):
        near = nearest(architecture, timm.list_models())
        raise ValueError(f"{role}.model must be a timm model, found {name!r}: {near}")


def _register_teacher(name: str) -> None:
    """Register a teacher of another package with timm, if an entry point has this name and timm has no such model.

    Its factory gets the arguments of a timm model function without timm's own (pretrained_cfg, cache_dir), and returns
    a model with timm's interface: pretrained_cfg, num_classes, num_features, forward_features and forward_head.
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
    """Path of timm's pretrained weights of a model in the local cache, to which they are fetched if need be; None if
    the hub has them in another format than safetensors. Raises ValueError if they cannot be had, and Unreadable where
    the disk fails. `key` names the setting in its messages."""
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
    """Ask the hub once for pretrained weights that the local cache lacks. Raises ValueError if it gives no answer."""
    pretrained = timm.get_pretrained_cfg(name)
    repository = pretrained.hf_hub_id if pretrained else None
    if not repository or any(isinstance(try_to_load_from_cache(repository, file), str) for file in CACHED_FILES):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, HUB_FILE), timeout=REACH_S)
    except HfHubHTTPError:
        return  # an answer, from which its client or timm goes on
    except Exception as error:  # of the hub's HTTP client, whose kinds change between versions, and of the system
        raise _not_had(name, key, error) from error


def _not_had(name: str, key: str, error: Exception) -> ValueError:
    """Make the error of weights that are not to be had. Raises Unreadable instead where the disk failed."""
    raise_if_of_the_disk(error, f"the cached weights of {name}")
    return ValueError(
        f"{key}=hub of {name} is not in this node's cache and could not be fetched: {type(error).__name__}: "
        f"{str(error).partition(chr(10))[0]}. Fetch it where there is a network, after `hf auth login` where its "
        "licence must be accepted, with the HF_HOME that the nodes share, or give the file"
    )


def check_hub(
    config: StudentConfig | TeacherConfig, data: DataConfig, default: nn.Module, *, role: str, needs_logits: bool
) -> None:
    """Check, before anything is fetched, that the weights that timm describes for the `default` model fit as they
    are."""
    pretrained: Any = default.pretrained_cfg
    key = "student.init" if role == "student" else f"{role}.checkpoint"
    source = f"{key}=hub of {config.model}"
    if "patch_size" in config.model_args:
        raise ValueError(
            f"{role}.model_args must not set patch_size with {key}=hub, as timm would resize the weights, found "
            f"{config.model_args['patch_size']}: leave it out, or give a file"
        )
    if role != "student" and needs_logits and pretrained["num_classes"] != data.num_classes:
        raise ValueError(
            f"{source} must have data.num_classes={data.num_classes} classes, found {pretrained['num_classes']}: its "
            "classifier would be random, so fine-tune it on these classes first and give that run folder, or give a "
            f"linear probe with --{role}.head"
        )
    trained = tuple(pretrained["input_size"][-2:])
    # Rotary embeddings alone are computed for any grid, and trained with many.
    is_rotary = isinstance(default, TOKEN_MODELS) and default.pos_embed is None
    if trained != (data.image_size, data.image_size) and not config.allow_other_resolution and not is_rotary:
        size_key = size_key_of(config, role)
        raise ValueError(
            f"{source} must be trained at {size_key}={data.image_size}, found {trained[0]} x {trained[1]} pixels: "
            + OTHER_RESOLUTION.format(role=role, size_key=size_key)
        )


def size_key_of(config: StudentConfig | TeacherConfig, role: str) -> str:
    """The option that says what images a model sees."""
    return f"{role}.image_size" if getattr(config, "image_size", 0) else "data.image_size"
