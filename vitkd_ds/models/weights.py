"""Read weights from a file without running code from it, and rename them to timm's keys.

The file may come from timm (including exported students), facebookresearch/deit (DeiT and DeiT III), mmcls, mmpretrain
or cls_KD. It may be a .safetensors file or a torch pickle, with only the weights or a whole training checkpoint. A key
without a renaming rule stays unchanged, so that strict loading reports it. DeiT III's `gamma_1` also stays unchanged,
because timm's filter renames it later.
"""

import argparse
import pickle
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitkd_ds.config.reading import Unreadable, load_json

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
PICKLE_SUFFIXES = (".pth", ".pt", ".bin")
_CONTAINERS = ("model", "state_dict", "model_state_dict", "model_ema")
"""Keys of the weights in training checkpoints. model_ema is used only if the file has none of the other keys."""
_WRAPPERS = ("module.", "model.")
"""Prefixes added by DDP, DeepSpeed and Lightning."""
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
"""Patterns from names of mmcls and mmpretrain to timm's, applied in this order.

Source: open-mmlab/mmpretrain `mmpretrain/models/backbones/{vision_transformer,deit,deit3}.py`,
`mmpretrain/models/heads/{vision_transformer_head,deit_head}.py`, `tools/model_converters/deit3_to_mmpretrain.py`.
"""

_FOREIGN = {
    "transformers": r"(^|\.)(embeddings\.(cls_token|class_embedding|patch_embedding)|embedder\.)",
    "torchvision": r"^encoder\.layers\.encoder_layer_\d+\.|^features\.\d+\.\d+\.",
}
"""Library -> pattern of tensor names in its vision models."""

_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError)
"""Errors that torch.load may raise for a damaged file."""

_CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    "c = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
    "c = c if isinstance(c, dict) else {'model': c}; "
    "s = next((c[k] for k in ('model', 'state_dict', 'model_state_dict') if k in c), c); "
    "s = s.state_dict() if isinstance(s, torch.nn.Module) else s; "
    "save_file({k: v.clone().contiguous() for k, v in s.items() if torch.is_tensor(v)}, sys.argv[2])"
)


def load_state_dict_file(path: str | Path) -> dict[str, Tensor]:
    """Return the weights of a model from a file, on the CPU and under timm's names.

    No code in the file can run. Pickles (.pth, .pt, .bin) are read with `weights_only=True`. One more class is allowed,
    `argparse.Namespace`, because facebookresearch/deit and timm store it as `args`. The weights may be at the top
    level, or under the key model, state_dict, model_state_dict or model_ema. Wrapper prefixes are removed. If the file
    has the weights of student, teacher and losses (keys `student.*`, `teacher.*`, ...), only the student is returned.

    Raises:
        ValueError: the file is missing or damaged, has an unknown suffix, contains objects of other classes, or
            contains no tensors.
    """
    path = Path(path).expanduser()
    if path.name.endswith(INDEX_SUFFIX):
        return rename(_load_parts(path))
    if not path.is_file():
        raise ValueError(f"no weight file at {path}. Check the path.")
    known = (SUFFIX, INDEX_SUFFIX, *PICKLE_SUFFIXES)
    if path.suffix not in known:
        raise ValueError(
            f"{path} has an unknown suffix for weights: {path.suffix!r}. Convert it to {', '.join(known)}."
        )
    try:
        content = _read_pickle(path) if path.suffix in PICKLE_SUFFIXES else load_tensors(path)
    except SafetensorError as error:
        raise damaged(path, error) from error
    return rename(_find_tensors(content, path))


@contextmanager
def as_utf8(path: Path) -> Iterator[str]:
    """Yield a path under which safetensors can open an existing file. safetensors accepts only paths in UTF-8."""
    with path.open("rb") as file:
        yield str(path) if str(path).isprintable() else f"/proc/self/fd/{file.fileno()}"


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raise SafetensorError if it is damaged."""
    with as_utf8(path) as name:
        return load_file(name)


def files_of_index(path: Path) -> dict[str, Path]:
    """Return a dict from tensor name to file, read from an index of safetensors files.

    Raises:
        ValueError: the file is missing or is not such an index.
        Unreadable: the disk failed.
    """
    try:
        listed = load_json(path)["weight_map"]
        return {str(name): path.parent / file for name, file in listed.items()}
    except Unreadable:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not an index of safetensors files (JSON with a weight_map of names and files): "
            f"{type(error).__name__}: {error}. Download it again."
        ) from error


def damaged(file: Path, error: SafetensorError) -> ValueError:
    """Return the error for a damaged safetensors file."""
    return ValueError(f"{file} is damaged or not a safetensors file: {error}. Download it again.")


def _load_parts(path: Path) -> dict[str, Tensor]:
    """Read the tensors that an index lists."""
    files = files_of_index(path)
    state: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        if not file.is_file():
            raise ValueError(f"no weight file at {file}. Check the path.")
        try:
            state |= load_tensors(file)
        except SafetensorError as error:
            raise damaged(file, error) from error
    if missing := files.keys() - state.keys():
        raise ValueError(f"{path} lists {min(missing)}, but its files lack that tensor. Download them again.")
    return {name: state[name] for name in files}


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under timm's names, without the prefixes of wrappers such as DDP."""
    return timm_keys(strip_prefixes(state))


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers from keys, including prefixes of nested wrappers.

    A prefix is removed if more than half of the keys have it. If any key starts with `student.`, only keys with this
    prefix are kept. torch.compile's `_orig_mod.` is removed anywhere in a key.
    """
    state = _renamed({key: key.replace("_orig_mod.", "") for key in state}, state)
    while True:
        student = {key: key.removeprefix("student.") for key in state if key.startswith("student.")}
        carried = [prefix for prefix in _WRAPPERS if 2 * sum(key.startswith(prefix) for key in state) > len(state)]
        if not student and not carried:
            return state
        state = _renamed(student or {key: key.removeprefix(carried[0]) for key in state}, state)


def timm_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename keys of mmcls and mmpretrain to timm's; other keys stay unchanged."""
    new_names = {key: key for key in state}
    if any(key.startswith("backbone.") or re.match(r"layers\.\d+\.ln1\.", key) for key in state):
        for pattern, replacement in _MM_RULES:
            new_names = {old: re.sub(pattern, replacement, new) for old, new in new_names.items()}
    return _renamed(new_names, state)


def key_differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Describe how names and shapes differ between `state` and `own`, with examples; "" if they are equal."""
    common = [(name, tuple(state[name].shape), tuple(own[name].shape)) for name in own if name in state]
    kinds = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [f"{name} {found} for {wanted}" for name, found, wanted in common if found != wanted],
    }
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for kind, names in kinds.items()
        if names
    )


def library_of(names: Iterable[str]) -> str:
    """Return the library in _FOREIGN that uses such tensor names, or "" if none does."""
    names = list(names)
    found = (library for library, pattern in _FOREIGN.items() if any(re.search(pattern, name) for name in names))
    return next(found, "")


def _renamed(new_names: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys in `new_names` and drop all other keys. Raise ValueError if two keys get the same name."""
    renamed = {new: state[old] for old, new in new_names.items()}
    if len(renamed) < len(new_names):
        twice = sorted(new for new in renamed if list(new_names.values()).count(new) > 1)
        raise ValueError(f"weights contain two tensors for {twice[0]}. Save the weights of one model only.")
    return renamed


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"{path} is damaged or not a torch file: {reason}. Download it again.") from error
        files = shlex.join([str(path), str(path.with_suffix(".safetensors"))])
        raise ValueError(
            f"{path} contains the Python object {wanted[1]}, and loading it would run code from the file. If you trust "
            "the file, convert it and pass the result:\n"
            f'python -c "{_CONVERT}" {files}'
        ) from error


def _find_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors under the first key of _CONTAINERS that has any, or else those at the top level."""
    top = content if isinstance(content, Mapping) else {}
    candidates = [top.get(name) for name in _CONTAINERS] + [top]
    for candidate in [candidate for candidate in candidates if isinstance(candidate, Mapping)]:
        if tensors := {key: value for key, value in candidate.items() if isinstance(value, Tensor)}:
            return tensors
    found = f"the keys {', '.join(map(str, list(top)[:8]))}" if top else f"a {type(content).__name__}"
    places = f"at the top level or under {', '.join(_CONTAINERS)}"
    raise ValueError(f"{path} has no tensors {places}, only {found}. Save the model's state_dict().")
