"""Read weights block by block, so that a model may be larger than a machine's memory.

The model is built on torch's meta device, which uses no memory, and compared with the header of its weight file. Then
`vitkd_ds.engine.teacher` reads one block, partitions it over the ranks, and reads the next block.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from timm.models._manipulate import reinit_non_persistent_buffers
from torch import Tensor, nn

from vitkd_ds.models.weights import INDEX_SUFFIX, SUFFIX, as_utf8, damaged, files_of_index, rename

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def can_stream(path: Path) -> bool:
    """Return whether tensors can be read one by one: from a safetensors file, or an index of several such files."""
    return path.name.endswith((SUFFIX, INDEX_SUFFIX))


class WeightStream:
    """Tensors in safetensors files, under the names that they have in a timm model.

    Args:
        path: a .safetensors file, or a .safetensors.index.json next to its files.

    Attributes:
        shapes: for each name in the model, a meta tensor with the shape and dtype of the weight.

    Raises:
        ValueError: a file is missing or damaged, or contains tensors that are not floating-point.
    """

    def __init__(self, path: Path) -> None:
        files = files_of_index(path) if path.name.endswith(INDEX_SUFFIX) else {None: path}
        found: dict[str, Tensor] = {}
        self._places: dict[str, tuple[Path, str]] = {}
        for file in sorted(set(files.values())):
            wanted = [name for name, each in files.items() if each == file and name is not None]
            for name, tensor in _header(file, wanted).items():
                found[name] = tensor
                self._places[name] = (file, name)
        self.shapes = rename(found)
        names = {id(tensor): name for name, tensor in found.items()}
        self._places = {name: self._places[names[id(tensor)]] for name, tensor in self.shapes.items()}

    def keep(self, state: dict[str, Tensor]) -> bool:
        """Give the tensors the names that they have in `state`, a dict of tensors from `shapes`. Drop all others.

        Returns:
            Whether the tensors were renamed. If `state` contains a tensor that is not in `shapes`, the weights of the
            file do not fit without changes. The result is then False, and no name changes.
        """
        names = {id(tensor): name for name, tensor in self.shapes.items()}
        if any(id(tensor) not in names for tensor in state.values()):
            return False
        self._places = {name: self._places[names[id(tensor)]] for name, tensor in state.items()}
        self.shapes = dict(state)
        return True

    def fill(self, module: nn.Module, prefix: str, dtype: torch.dtype, *, is_read: bool = True) -> None:
        """Replace the meta tensors of a module with the weights, on the CPU and in `dtype`.

        Args:
            module: a block of the model, or the model itself.
            prefix: prefix of the module's names in the model.
            dtype: dtype of the loaded weights.
            is_read: read parameters from the file. If False, they stay uninitialised, because another rank sends them.
                Buffers are always read.

        Raises:
            ValueError, OSError: a file cannot be read.
        """
        for path, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_meta:
                continue
            owner, _, leaf = path.rpartition(".")
            owner = module.get_submodule(owner)
            must_read = is_read or leaf in owner._buffers  # no rank sends buffers
            value = self._read(prefix + path).to(dtype) if must_read else torch.empty(tensor.shape, dtype=dtype)
            if leaf in owner._buffers:
                owner._buffers[leaf] = value
            else:
                owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)

    def _read(self, name: str) -> Tensor:
        file, stored = self._places[name]
        try:
            # Open the file each time, so that the memory of earlier tensors can be freed.
            with as_utf8(file) as name, safe_open(name, framework="pt") as opened:
                return opened.get_tensor(stored)
        except SafetensorError as error:
            raise damaged(file, error) from error


def make_buffers(model: nn.Module) -> None:
    """Compute the buffers of a model on the meta device that weight files lack, such as rotary embeddings."""
    persistent = model.state_dict().keys()
    for path, buffer in list(model.named_buffers()):
        if path not in persistent:
            owner, _, leaf = path.rpartition(".")
            model.get_submodule(owner)._buffers[leaf] = torch.empty_like(buffer, device="cpu")
    reinit_non_persistent_buffers(model)


def _header(file: Path, wanted: list[str]) -> dict[str, Tensor]:
    """Return meta tensors with the shapes and dtypes of the tensors in a file.

    Only the names in `wanted` are returned; if `wanted` is empty, all are returned.
    """
    if not file.is_file():
        raise ValueError(f"no weight file at {file}. Check the path.")
    try:
        with as_utf8(file) as name, safe_open(name, framework="pt") as opened:
            names = wanted or list(opened.keys())
            if missing := [name for name in names if name not in set(opened.keys())]:
                raise ValueError(f"{file} lacks tensor {missing[0]}, which its index lists. Download it again.")
            slices = {name: opened.get_slice(name) for name in names}
            wrong = [f"{name} {each.get_dtype()}" for name, each in slices.items() if each.get_dtype() not in _DTYPES]
            if wrong:
                raise ValueError(f"tensors in {file} must be {', '.join(_DTYPES)}, got {wrong[0]}. Convert the file.")
            return {
                name: torch.empty(each.get_shape(), dtype=_DTYPES[each.get_dtype()], device="meta")
                for name, each in slices.items()
            }
    except SafetensorError as error:
        raise damaged(file, error) from error
