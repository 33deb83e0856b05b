"""Flat parameters: a module trains as a few long parameters, and its own weights are views of them.

ZeRO's hooks, buckets and copies run in Python once for every parameter, and a vision transformer of 12 blocks has 163:
at small micro-batches a GPU waits for them. Outside the engine nothing changes: weights keep their names and shapes in
exports, checkpoints and messages, and the arithmetic is the same, so no bit of a loss or a weight differs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vitkd_ds.engine import ranks
from vitkd_ds.engine.compile import compile_options


@dataclass(frozen=True)
class Group:
    """Trainable parameters that an optimizer treats alike."""

    name: str
    params: list[nn.Parameter]
    weight_decay: float = 0.0
    num_states: int = 0
    """fp32 values that the optimizer keeps per weight, besides the moving average."""
    is_whole: bool = False
    """Keep each weight whole in the partition of one rank, and tell the optimizer its shape; else a partition may begin
    within a weight."""


class Place(NamedTuple):
    """Place of a weight in the row of its group, which ZeRO cuts into equal partitions."""

    start: int
    """Element of the row at which it begins."""
    shape: torch.Size


class FlatModule(nn.Module):
    """A module of which the engine sees a few flat parameters instead of its own.

    The module gives up the parameters of `groups` and keeps everything else: buffers, frozen parameters, train and eval
    mode. In a forward pass views of the flat parameters stand in their places, so a flat parameter's gradient is whole
    when that of its first weight is.

    Args:
        module: on the CPU, in fp32.
        groups: its trainable parameters.
        max_numel: elements of a flat parameter at most, unless one weight alone has more. It is ZeRO's bucket: a longer
            parameter would be reduced by itself, and nothing before all of it has a gradient. A group of whole weights
            has one flat parameter per rank instead, all of the same length.

    Attributes:
        shapes: for each flat parameter name -> shape of the weights in it, in their order. The state dict calls the
            flat parameters flat0, flat1 and so on; those of one group follow each other, in the order of `groups`.
        places: for each group name -> place of its weights, in their order.
        parameter_groups: torch's, with flat parameters in place of the module's, and for whole weights the `shapes` of
            those in this rank's partition, which follow each other from its start.
    """

    def __init__(self, module: nn.Module, groups: Sequence[Group], *, max_numel: int) -> None:
        super().__init__()
        self.module = module
        self.shapes: list[dict[str, torch.Size]] = []
        self.places: list[dict[str, Place]] = []
        self.parameter_groups: list[dict[str, Any]] = []
        names = {p: name for name, p in module.named_parameters()}
        for group in groups:
            runs = _deal(group.params, ranks.world_size()) if group.is_whole else [*_cut(group.params, max_numel)]
            length = max(_numel(run) for run in runs) if group.is_whole else 0
            flats = []
            places = {}
            start = 0
            for run in runs:
                # ZeRO makes the length of a partition even.
                padding = group.params[0].new_zeros(max(0, length + length % 2 - _numel(run)))
                flats.append(nn.Parameter(torch.cat([*(p.detach().reshape(-1) for p in run), padding])))
                self.register_parameter(f"flat{len(self.shapes)}", flats[-1])
                self.shapes.append({names[p]: p.shape for p in run})
                for p in run:
                    places[names[p]] = Place(start, p.shape)
                    start += p.numel()
                start += len(padding)
            self.places.append(places)
            self.parameter_groups.append({"params": flats, "weight_decay": group.weight_decay})
            if group.is_whole:
                self.parameter_groups[-1]["shapes"] = [p.shape for p in runs[ranks.rank()]]
        trained = {p for group in groups for p in group.params}
        # The module, the name in it and the weight's name; a weight that two modules share has two such places.
        self._owners: list[tuple[nn.Module, str, str]] = []
        for path, p in list(module.named_parameters(remove_duplicate=False)):
            if p in trained:
                owner, _, leaf = path.rpartition(".")
                self._owners.append((module.get_submodule(owner), leaf, names[p]))
        self._put({})

    @property
    def flats(self) -> list[nn.Parameter]:
        """The flat parameters."""
        return [self.get_parameter(f"flat{i}") for i in range(len(self.shapes))]

    def views(self, flats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Cut tensors of the flat parameters' lengths, such as these themselves, into weights by name."""
        views: dict[str, Tensor] = {}
        for flat, shapes in zip(flats, self.shapes):
            sizes = [shape.numel() for shape in shapes.values()]
            padding = len(flat) - sum(sizes)
            pieces = flat.split([*sizes, padding] if padding else sizes)
            views |= {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces)}
        return views

    def call(self, flats: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
        """The module's forward with weights from tensors of the flat parameters' lengths, which are not kept."""
        self._put(self.views(flats))
        result = self.module(*args, **kwargs)
        self.release()
        return result

    def forward(self, *args: Any) -> Any:
        """The module's forward with the flat parameters.

        Their views stay in their places until `release`, because activation checkpointing runs blocks once more in the
        backward pass. A compiled graph contains that, so there they are not kept.
        """
        if torch.compiler.is_compiling():
            return self.call(self.flats, *args)
        self._put(self.views(self.flats))
        return self.module(*args)

    def release(self) -> None:
        """Take the views of the last forward pass out of the module, when its backward pass is done."""
        self._put({})

    def _put(self, weights: dict[str, Tensor]) -> None:
        for owner, leaf, name in self._owners:
            parameters: dict[str, Any] = owner._parameters
            parameters[leaf] = weights.get(name)  # register_parameter would refuse a view


class FlatBlock(FlatModule):
    """A frozen block with one flat parameter, so that ZeRO-3 gathers and releases one tensor a block.

    Its forward may be compiled, as `Run.compile` says; DeepSpeed's hooks are around it and must not be. Views of
    gathered weights are not kept, or the weights would stay gathered.
    """

    def __init__(self, block: nn.Module, *, compile: str) -> None:
        params = list(block.parameters())
        super().__init__(block, [Group("frozen", params)], max_numel=_numel(params))
        self.requires_grad_(False)
        if not list(block.buffers()):
            # Out of DeepSpeed's sight, which would walk through all modules of a block whenever it gathers or releases.
            self.__dict__["module"] = block.eval()
            del self._modules["module"]
        self._call = self.call
        if compile != "off":
            self._call = torch.compile(self.call, options=compile_options(compile, keeps_addresses=False))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's forward."""
        return self._call(self.flats, *args, **kwargs)


def _numel(params: Sequence[nn.Parameter]) -> int:
    return sum(p.numel() for p in params)


def _cut(params: Sequence[nn.Parameter], max_numel: int) -> Iterator[list[nn.Parameter]]:
    """Cut a group into runs of at most so many elements; a longer parameter is a run of its own."""
    run: list[nn.Parameter] = []
    for p in params:
        if run and _numel(run) + p.numel() > max_numel:
            yield run
            run = []
        run.append(p)
    if run:
        yield run


def _deal(params: Sequence[nn.Parameter], num_ranks: int) -> list[list[nn.Parameter]]:
    """Give each weight to the rank that has the fewest elements so far, the longest first."""
    runs: list[list[nn.Parameter]] = [[] for _ in range(num_ranks)]
    for p in sorted(params, key=nn.Parameter.numel, reverse=True):
        min(runs, key=_numel).append(p)
    return runs
