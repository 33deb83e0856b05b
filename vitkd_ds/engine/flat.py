"""Flat parameters: a module trains as a few long parameters, and its own weights are views of them.

ZeRO's hooks, buckets and copies run in Python once for every parameter, and a vision transformer of 12 blocks has 163:
at small micro-batches a GPU waits for them. Outside the engine nothing changes: weights keep their names and shapes in
exports, checkpoints and messages, and the arithmetic is the same, so no bit of a loss or a weight differs.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitkd_ds.engine.compile import compile_options


class FlatModule(nn.Module):
    """A module of which the engine sees a few flat parameters instead of its own.

    The module gives up the parameters of `groups` and keeps everything else: buffers, frozen parameters, train and eval
    mode. In a forward pass views of the flat parameters stand in their places, so a flat parameter's gradient is whole
    when that of its first weight is.

    Args:
        module: on the CPU, in fp32.
        groups: its trainable parameters in groups for the optimizer, each a dict with `params`.
        max_numel: elements of a flat parameter at most, unless one weight alone has more. It is ZeRO's bucket: a longer
            parameter would be reduced by itself, and nothing before all of it has a gradient.

    Attributes:
        flats: the flat parameters, which the state dict calls flat0, flat1 and so on; those of one group follow each
            other, in the order of `groups`.
        shapes: for each flat parameter name -> shape of the weights in it, in their order.
    """

    def __init__(self, module: nn.Module, groups: Sequence[dict[str, Any]], *, max_numel: int) -> None:
        super().__init__()
        self.module = module
        self.shapes: list[dict[str, torch.Size]] = []
        self._groups: list[dict[str, Any]] = []
        names = {p: name for name, p in module.named_parameters()}
        for group in groups:
            flats = []
            for params in _cut(group["params"], max_numel):
                flats.append(nn.Parameter(torch.cat([p.detach().reshape(-1) for p in params])))
                self.register_parameter(f"flat{len(self.shapes)}", flats[-1])
                self.shapes.append({names[p]: p.shape for p in params})
            self._groups.append(group | {"params": flats})
        trained = {p for group in groups for p in group["params"]}
        # The module, the name in it and the weight's name; a weight that two modules share has two such places.
        self._places: list[tuple[nn.Module, str, str]] = []
        for path, p in list(module.named_parameters(remove_duplicate=False)):
            if p in trained:
                owner, _, leaf = path.rpartition(".")
                self._places.append((module.get_submodule(owner), leaf, names[p]))
        self._put({})

    @property
    def flats(self) -> list[nn.Parameter]:
        """See above."""
        return [self._parameters[f"flat{i}"] for i in range(len(self.shapes))]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The groups, with flat parameters in place of the module's."""
        return self._groups

    def group_shapes(self) -> list[dict[str, torch.Size]]:
        """Name -> shape of the weights of each group, in the order in which the flat parameters hold them."""
        shapes = iter(self.shapes)
        return [{k: v for _ in group["params"] for k, v in next(shapes).items()} for group in self._groups]

    def views(self, flats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Cut tensors of the flat parameters' lengths, such as these themselves, into weights by name."""
        views: dict[str, Tensor] = {}
        for flat, shapes in zip(flats, self.shapes):
            pieces = flat.split([shape.numel() for shape in shapes.values()])
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
        for owner, leaf, name in self._places:
            owner._parameters[leaf] = weights.get(name)  # register_parameter would refuse a view


class FlatBlock(FlatModule):
    """A frozen block with one flat parameter, so that ZeRO-3 gathers and releases one tensor a block.

    Its forward may be compiled, as `Run.compile` says; DeepSpeed's hooks are around it and must not be. Views of
    gathered weights are not kept, or the weights would stay gathered.
    """

    def __init__(self, block: nn.Module, *, compile: str) -> None:
        params = list(block.parameters())
        super().__init__(block, [{"params": params}], max_numel=sum(p.numel() for p in params))
        self.requires_grad_(False)
        if not list(block.buffers()):
            # Out of DeepSpeed's sight, which would walk through all modules of a block whenever it gathers or releases.
            self.__dict__["module"] = self._modules.pop("module").eval()
        self._call = self.call
        if compile != "off":
            self._call = torch.compile(self.call, options=compile_options(compile, keeps_addresses=False))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's forward."""
        return self._call(self.flats, *args, **kwargs)


def _cut(params: Sequence[nn.Parameter], max_numel: int) -> Iterator[list[nn.Parameter]]:
    """Cut a group into runs of at most so many elements; a longer parameter is a run of its own."""
    run: list[nn.Parameter] = []
    for p in params:
        if run and sum(q.numel() for q in run) + p.numel() > max_numel:
            yield run
            run = []
        run.append(p)
    if run:
        yield run
