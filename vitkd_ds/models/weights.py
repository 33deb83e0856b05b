"""Read weights from a local file without running its code, and rename them to timm's keys.

Files may be timm's own (the exported student included), facebookresearch/deit's (DeiT and DeiT III), or of mmcls,
mmpretrain or cls_KD, each as .safetensors or as a torch pickle, plain or inside a training checkpoint. A key that no
rule knows stays as it is, so that strict loading names it; so does DeiT III's `gamma_1`, which timm's filter renames.
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
"""Keys under which training checkpoints keep the weights; the average is taken only if there are no others."""
_WRAPPERS = ("module.", "model.")
"""Prefixes that DDP, DeepSpeed and Lightning add."""
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
"""Patterns that turn names of mmcls and mmpretrain into timm's, applied in this order.

Source: open-mmlab/mmpretrain `mmpretrain/models/backbones/{vision_transformer,deit,deit3}.py`,
`mmpretrain/models/heads/{vision_transformer_head,deit_head}.py`, `tools/model_converters/deit3_to_mmpretrain.py`.
"""

_FOREIGN = {
    "transformers": r"(^|\.)(embeddings\.(cls_token|class_embedding|patch_embedding)|embedder\.)",
    "torchvision": r"^encoder\.layers\.encoder_layer_\d+\.|^features\.\d+\.\d+\.",
}
"""Library -> pattern of a tensor's name in its vision models."""

_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError)
"""Errors that torch.load raises on bytes that are no torch file, depending on where it trips."""

_CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    "c = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
    "c = c if isinstance(c, dict) else {'model': c}; "
    "s = next((c[k] for k in ('model', 'state_dict', 'model_state_dict') if k in c), c); "
    "s = s.state_dict() if isinstance(s, torch.nn.Module) else s; "
    "save_file({k: v.clone().contiguous() for k, v in s.items() if torch.is_tensor(v)}, sys.argv[2])"
)


def load_state_dict_file(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of one model from a file, on the CPU, under timm's names.

    No code in the file can run: pickles (.pth, .pt, .bin) are read with `weights_only=True`, and allowed beyond that is
    only `argparse.Namespace`, which facebookresearch/deit and timm store as `args`. The weights may be the whole file
    or lie under model, state_dict, model_state_dict, or else model_ema. Wrapper prefixes are removed; of a distiller's
    checkpoint (`student.*` beside `teacher.*` and loss keys) only the student is taken.

    Raises:
        ValueError: no such file, an unknown suffix, damage, a pickle that needs more than the above, or no tensors.
    """
    path = Path(path).expanduser()
    if path.name.endswith(INDEX_SUFFIX):
        return rename(_load_parts(path))
    if not path.is_file():
        raise ValueError(f"weights must be an existing file, found none at {path}: check the path")
    known = (SUFFIX, INDEX_SUFFIX, *PICKLE_SUFFIXES)
    if path.suffix not in known:
        raise ValueError(f"weights must be a file in {', '.join(known)}, found {path.suffix!r} in {path}: convert it")
    try:
        content = _read_pickle(path) if path.suffix in PICKLE_SUFFIXES else load_tensors(path)
    except SafetensorError as error:
        raise damaged(path, error) from error
    return rename(_find_tensors(content, path))


@contextmanager
def as_utf8(path: Path) -> Iterator[str]:
    """Yield a path of an existing file for safetensors, which takes UTF-8 only."""
    with path.open("rb") as file:
        yield str(path) if str(path).isprintable() else f"/proc/self/fd/{file.fileno()}"


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; raises SafetensorError if it is damaged."""
    with as_utf8(path) as name:
        return load_file(name)


def files_of_index(path: Path) -> dict[str, Path]:
    """Name -> file of the tensors that an index of safetensors files lists. Raises ValueError if it is none, and
    Unreadable where the disk fails."""
    try:
        listed = load_json(path)["weight_map"]
        return {str(name): path.parent / file for name, file in listed.items()}
    except Unreadable:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} must be the index of safetensors files, JSON with a weight_map of names and files, found "
            f"{type(error).__name__}: {error}: fetch it again"
        ) from error


def damaged(file: Path, error: SafetensorError) -> ValueError:
    """The error of a safetensors file that cannot be read."""
    return ValueError(f"{file} must be a whole safetensors file, found damage ({error}): fetch it again")


def _load_parts(path: Path) -> dict[str, Tensor]:
    """The tensors that an index lists, from its files."""
    files = files_of_index(path)
    state: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        if not file.is_file():
            raise ValueError(f"weights must be an existing file, found none at {file}: check the path")
        try:
            state |= load_tensors(file)
        except SafetensorError as error:
            raise damaged(file, error) from error
    if missing := files.keys() - state.keys():
        raise ValueError(f"{path} must list what its files hold, found no {min(missing)} there: fetch them again")
    return {name: state[name] for name in files}


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under timm's names, without what wrappers put before them."""
    return timm_keys(strip_prefixes(state))


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that wrappers add, however nested.

    A wrapper's prefix is removed if more than half of the keys carry it. If any key starts with `student.`, only those
    keys are kept. `_orig_mod.`, which torch.compile adds, is removed anywhere in a key.
    """
    state = _renamed({key: key.replace("_orig_mod.", "") for key in state}, state)
    while True:
        student = {key: key.removeprefix("student.") for key in state if key.startswith("student.")}
        carried = [prefix for prefix in _WRAPPERS if 2 * sum(key.startswith(prefix) for key in state) > len(state)]
        if not student and not carried:
            return state
        state = _renamed(student or {key: key.removeprefix(carried[0]) for key in state}, state)


def timm_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of mmcls and mmpretrain to timm's; a state dict with other keys keeps them."""
    new_names = {key: key for key in state}
    if any(key.startswith("backbone.") or re.match(r"layers\.\d+\.ln1\.", key) for key in state):
        for pattern, replacement in _MM_RULES:
            new_names = {old: re.sub(pattern, replacement, new) for old, new in new_names.items()}
    return _renamed(new_names, state)


def key_differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """List the keys of `state` that do not fit `own`, a few of each kind; empty if all fit."""
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
    """Return the library whose models have tensors of these names, where it is a foreign one; else ""."""
    names = list(names)
    found = (library for library, pattern in _FOREIGN.items() if any(re.search(pattern, name) for name in names))
    return next(found, "")


def _renamed(new_names: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys that `new_names` has, and leave out the others; two keys must not get one name."""
    renamed = {new: state[old] for old, new in new_names.items()}
    if len(renamed) < len(new_names):
        twice = sorted(new for new in renamed if list(new_names.values()).count(new) > 1)
        raise ValueError(f"weights must be of one model, found two tensors for {twice[0]}: save one model's alone")
    return renamed


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"{path} must be a whole torch file, found damage ({reason}): fetch it again") from error
        files = shlex.join([str(path), str(path.with_suffix(".safetensors"))])
        raise ValueError(
            f"{path} must hold tensors and plain values only, found the Python object {wanted[1]}: making it runs code "
            "from the file, so the file is refused. If you trust it, convert it yourself and give the result:\n"
            f'python -c "{_CONVERT}" {files}'
        ) from error


def _find_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the tensors of the first container that has any, else those at the top."""
    top = content if isinstance(content, Mapping) else {}
    candidates = [top.get(name) for name in _CONTAINERS] + [top]
    for candidate in [candidate for candidate in candidates if isinstance(candidate, Mapping)]:
        if tensors := {key: value for key, value in candidate.items() if isinstance(value, Tensor)}:
            return tensors
    found = f"the keys {', '.join(map(str, list(top)[:8]))}" if top else f"a {type(content).__name__}"
    places = f"at the top or under {', '.join(_CONTAINERS)}"
    raise ValueError(f"{path} must hold tensors, {places}, found {found}: save the model's state_dict()")
