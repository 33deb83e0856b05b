"""Flat parameters: a module trains as a few long parameters, and its weights are views of them.

ZeRO's Python hooks, buckets and copies run once per parameter. A vision transformer with 12 blocks has 163 parameters,
so at small micro-batches the GPU waits for Python. Outside the engine nothing changes: exports, checkpoints and
messages keep the weights' names and shapes, and losses and weights are bit-identical.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vitkd_ds.engine import ranks
from vitkd_ds.engine.compile import compile_options


@dataclass(frozen=True)
class Group:
    """Parameters with the same optimizer settings."""

    name: str
    params: list[nn.Parameter]
    weight_decay: float = 0.0
    num_states: int = 0
    """Number of fp32 values that the optimizer stores per element, not counting the moving average."""
    cost: Callable[[nn.Parameter], float] | None = None
    """Function that returns the work of a weight's update, in any unit. If given, each weight stays whole within one
    rank's partition, the ranks get about equal costs, and the optimizer gets the weights' shapes. If None, a partition
    may start in the middle of a weight."""
    row_blocks: Mapping[nn.Parameter, int] = field(default_factory=dict)
    """For weights that the optimizer treats as several matrices of equal height, the number of matrices. Any other
    weight is one matrix."""


class Place(NamedTuple):
    """Location of a weight in the row of its group.

    The row consists of all weights of the group, one after another. ZeRO splits it into equal partitions.
    """

    start: int
    """Index of the weight's first element in the row."""
    shape: torch.Size


class FlatModule(nn.Module):
    """Wrapper that replaces a module's parameters with a few flat parameters for the engine.

    The parameters in `groups` are removed from the module. Buffers, frozen parameters, and train or eval mode stay
    unchanged. During forward, each weight is a view into its flat parameter. A flat gradient is complete once backward
    has reached all its weights.

    Args:
        module: module on the CPU, in fp32.
        groups: the module's parameters to flatten.
        max_numel: maximum length of a flat parameter; only a single larger weight may exceed it. Pass ZeRO's bucket
            size: ZeRO reduces a longer parameter outside the bucket, after its whole gradient is complete. The
            maximum does not apply to a group with a `cost`, which has one flat parameter per rank, all of equal length.

    Attributes:
        shapes: for each flat parameter, the names and shapes of its weights in storage order. The flat parameters are
            in the order of `groups`, and their names in the state dict are flat0, flat1, ...
        places: for each group, the names and `Place`s of its weights in storage order.
        parameter_groups: torch's parameter groups, with flat parameters. A group with a `cost` also has the key
            "shapes": the shapes of the matrices in this rank's partition. These matrices are stored one after another,
            without gaps, from the first element of the partition.
    """

    def __init__(self, module: nn.Module, groups: Sequence[Group], *, max_numel: int) -> None:
        super().__init__()
        self.module = module
        self.shapes: list[dict[str, torch.Size]] = []
        self.places: list[dict[str, Place]] = []
        self.parameter_groups: list[dict[str, Any]] = []
        names = {p: name for name, p in module.named_parameters()}
        for group in groups:
            is_whole = group.cost is not None
            runs = _deal(group, ranks.world_size()) if is_whole else [*_cut(group.params, max_numel)]
            length = max(_numel(run) for run in runs) if is_whole else 0
            flats = []
            places = {}
            start = 0
            for run in runs:
                # ZeRO rounds partition lengths up to even.
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
            if is_whole:
                self.parameter_groups[-1]["shapes"] = _shapes(group, runs[ranks.rank()])
        trained = {p for group in groups for p in group.params}
        # (owning module, attribute name, weight name); a weight shared by two modules has two entries.
        self._owners: list[tuple[nn.Module, str, str]] = []
        for path, p in list(module.named_parameters(remove_duplicate=False)):
            if p in trained:
                owner, _, leaf = path.rpartition(".")
                self._owners.append((module.get_submodule(owner), leaf, names[p]))
        self._put({})

    @property
    def flats(self) -> list[nn.Parameter]:
        """Flat parameters, in order."""
        return [self.get_parameter(f"flat{i}") for i in range(len(self.shapes))]

    def views(self, flats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return views of all weights by name, into the flat parameters or other tensors of the same lengths."""
        views: dict[str, Tensor] = {}
        for flat, shapes in zip(flats, self.shapes):
            sizes = [shape.numel() for shape in shapes.values()]
            padding = len(flat) - sum(sizes)
            pieces = flat.split([*sizes, padding] if padding else sizes)
            views |= {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces)}
        return views

    def call(self, flats: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
        """Run the module's forward with weights that are views of `flats`, and then remove the views."""
        self._put(self.views(flats))
        result = self.module(*args, **kwargs)
        self.release()
        return result

    def forward(self, *args: Any) -> Any:
        """Run the module's forward with the flat parameters.

        The views stay in the module until `release`, because activation checkpointing reruns blocks in backward. When
        forward is compiled, the graph includes the rerun, so the views are removed immediately.
        """
        if torch.compiler.is_compiling():
            return self.call(self.flats, *args)
        self._put(self.views(self.flats))
        return self.module(*args)

    def release(self) -> None:
        """Remove the last forward's views from the module. Call this method after backward."""
        self._put({})

    def _put(self, weights: dict[str, Tensor]) -> None:
        for owner, leaf, name in self._owners:
            parameters: dict[str, Any] = owner._parameters
            parameters[leaf] = weights.get(name)  # register_parameter rejects views


class FlatBlock(FlatModule):
    """Frozen block with one flat parameter, so that ZeRO-3 gathers and releases one tensor per block.

    `compile` is `Run.compile`. The block's forward is compiled, but not DeepSpeed's hooks around it. No views of
    gathered weights are kept, because they would prevent the gathered memory from being freed.
    """

    def __init__(self, block: nn.Module, *, compile: str) -> None:
        params = list(block.parameters())
        super().__init__(block, [Group("frozen", params)], max_numel=_numel(params))
        self.requires_grad_(False)
        if not list(block.buffers()):
            # Hide the block from DeepSpeed, which would traverse all its submodules on each gather and release.
            self.__dict__["module"] = block.eval()
            del self._modules["module"]
        self._call = self.call
        if compile != "off":
            options = compile_options(compile, keeps_addresses=False)
            self._call = torch.compile(self.call, dynamic=False, options=options)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block's forward."""
        return self._call(self.flats, *args, **kwargs)


def _numel(params: Sequence[nn.Parameter]) -> int:
    return sum(p.numel() for p in params)


def _cut(params: Sequence[nn.Parameter], max_numel: int) -> Iterator[list[nn.Parameter]]:
    """Split a list of parameters into lists of at most `max_numel` elements. A longer parameter gets its own list."""
    run: list[nn.Parameter] = []
    for p in params:
        if run and _numel(run) + p.numel() > max_numel:
            yield run
            run = []
        run.append(p)
    if run:
        yield run


def _deal(group: Group, num_ranks: int) -> list[list[nn.Parameter]]:
    """Return each rank's weights. The costliest are assigned first, each to the rank with the least work so far."""
    cost = group.cost or nn.Parameter.numel
    runs: list[list[nn.Parameter]] = [[] for _ in range(num_ranks)]
    for p in sorted(group.params, key=cost, reverse=True):
        min(runs, key=lambda run: sum(map(cost, run))).append(p)
    return runs


def _shapes(group: Group, run: Sequence[nn.Parameter]) -> list[torch.Size]:
    """Return the shapes of the matrices that the optimizer gets for the parameters in `run`, in order."""
    shapes = []
    for p in run:
        number = group.row_blocks.get(p, 1)
        shapes += number * [torch.Size([len(p) // number, *p.shape[1:]])]
    return shapes
