"""Weights in a local file: read without running its code, and renamed to timm's keys.

Apart from `models` because it knows files and names only: no model, no timm. Formats it understands: timm's own
(the exported student included), facebookresearch/deit's (DeiT and DeiT III), and mmcls / mmpretrain / cls_KD, each as
.safetensors or as a torch pickle, plain or inside a training checkpoint. A key that none of the rules knows is kept as
it is, so that strict loading names it. DeiT III's ``gamma_1`` stays too: timm's own filter renames it in `models`.
"""

import argparse
import pickle
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

PICKLE_SUFFIXES = (".pth", ".pt", ".bin")

_CONTAINERS = ("model", "state_dict", "model_state_dict", "model_ema")
"""Where training checkpoints keep the weights; the average is taken only where nothing else is."""

_WRAPPERS = ("module.", "model.")
"""Prefixes of DDP, DeepSpeed and Lightning."""

_MM_RULES = (
    (r"^backbone\.", ""),
    (r"^layers\.", "blocks."),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^(blocks\.\d+)\.ln([12])\.", r"\1.norm\2."),
    (r"^(blocks\.\d+)\.attn\.gamma1\.weight$", r"\1.ls1.gamma"),
    (r"^(blocks\.\d+)\.ffn\.gamma2\.weight$", r"\1.ls2.gamma"),
    (r"^(blocks\.\d+)\.ffn\.layers\.0\.0\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.ffn\.layers\.1\.", r"\1.mlp.fc2."),
    (r"^(?:ln|norm)1\.", "norm."),
    (r"^head\.layers\.(head|head_dist)\.", r"\1."),
)
"""mmcls and mmpretrain names to timm's, applied in this order.

Source: open-mmlab/mmpretrain ``mmpretrain/models/backbones/{vision_transformer,deit,deit3}.py``,
``mmpretrain/models/heads/{vision_transformer_head,deit_head}.py``, ``tools/model_converters/deit3_to_mmpretrain.py``.
"""

_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError)
"""What torch.load raises on bytes that are no torch file; which of them depends on where it trips."""

_CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    "c = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
    "s = next((c[k] for k in ('model', 'state_dict', 'model_state_dict') if k in c), c); "
    "save_file({k: v.clone().contiguous() for k, v in s.items() if torch.is_tensor(v)}, sys.argv[2])"
)


def load_state_dict_file(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of one model from a file, on the CPU, under timm's names.

    Pickles (.pth, .pt, .bin) are read with ``weights_only=True`` and nothing but ``argparse.Namespace`` allowed on
    top, which facebookresearch/deit and timm store as ``args``; so no code in the file can run.
    The weights may be the whole file or lie under model, state_dict, model_state_dict (or model_ema where those are
    absent). Wrapper prefixes are removed; of a distiller's checkpoint (``student.*`` beside ``teacher.*`` and loss
    keys) only the student is taken.

    Raises:
        ValueError: No such file, unknown suffix, unreadable, a pickle that needs more than the above, no tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"weights must be an existing file, found none at {path}: check the path")
    if path.suffix == ".safetensors":
        content = _read_safetensors(path)
    elif path.suffix in PICKLE_SUFFIXES:
        content = _read_pickle(path)
    else:
        known = ", ".join((".safetensors", *PICKLE_SUFFIXES))
        raise ValueError(f"weights must be a file in {known}, found {path.suffix!r} in {path}: convert it")
    return timm_keys(strip_prefixes(_find_tensors(content, path)))


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that wrappers add, as often as they are there.

    A wrapper's prefix is removed where more than half of the keys carry it. Where any key starts with ``student.``,
    only those keys are kept. ``_orig_mod.`` (torch.compile) is removed anywhere in a key.
    """
    state = _renamed({key: key.replace("_orig_mod.", "") for key in state}, state)
    while True:
        student = {key: key.removeprefix("student.") for key in state if key.startswith("student.")}
        if student:
            state = _renamed(student, state)
            continue
        carried = [prefix for prefix in _WRAPPERS if 2 * sum(key.startswith(prefix) for key in state) > len(state)]
        if not carried:
            return state
        state = _renamed({key: key.removeprefix(carried[0]) for key in state}, state)


def timm_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename mmcls / mmpretrain keys to timm's; a state dict with other keys comes back with the same keys."""
    if not any(key.startswith(("backbone.", "layers.")) for key in state):
        return dict(state)
    return _renamed({key: _timm_key(key) for key in state}, state)


def key_differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Which keys of `state` do not fit `own`, a few of each kind; empty where all fit."""
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    kinds = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": shapes,
    }
    return "; ".join(f"{len(names)} {kind}: {_few(names)}" for kind, names in kinds.items() if names)


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _timm_key(key: str) -> str:
    for pattern, replacement in _MM_RULES:
        key = re.sub(pattern, replacement, key)
    return key


def _renamed(new_names: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` under new names, of the keys in `new_names` only; two keys must not meet under one name."""
    renamed = {new: state[old] for old, new in new_names.items()}
    if len(renamed) < len(new_names):
        twice = sorted(new for new in renamed if list(new_names.values()).count(new) > 1)
        raise ValueError(f"weights must be of one model, found two tensors for {twice[0]}: save one model's alone")
    return renamed


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} must be a whole safetensors file, found damage ({error}): fetch it again") from error


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is not None:
            raise ValueError(_refusal(path, wanted[1])) from error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} must be a whole torch file, found damage ({reason}): fetch it again") from error


def _refusal(path: Path, wanted: str) -> str:
    """Why a pickle is not read, and how its owner converts it."""
    target = path.with_suffix(".safetensors")
    command = f'python -c "{_CONVERT}" {shlex.quote(str(path))} {shlex.quote(str(target))}'
    return (
        f"{path} must hold tensors and plain values only, found the Python object {wanted}: making it runs code from "
        f"the file, so the file is refused. If you trust it, convert it yourself and give the result:\n{command}"
    )


def _find_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of the first container that has any, else those at the top."""
    top = content if isinstance(content, Mapping) else {}
    for candidate in (*(top.get(name) for name in _CONTAINERS), top):
        if isinstance(candidate, Mapping):
            tensors = {key: value for key, value in candidate.items() if isinstance(value, Tensor)}
            if tensors:
                return tensors
    found = f"the keys {', '.join(map(str, list(top)[:8]))}" if top else f"a {type(content).__name__}"
    places = f"at the top or under {', '.join(_CONTAINERS)}"
    raise ValueError(f"{path} must hold tensors, {places}, found {found}: save the model's state_dict()")
