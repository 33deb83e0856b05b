"""The frozen teacher: a ZeRO-Inference shard, a replica, or a shard in CPU memory.

shard and offload are DeepSpeed stage-3 engines without an optimizer: their weights are partitioned over the ranks and
gathered block by block, each as one flat parameter, during the forward. replica is the plain module on every rank. All
give the same features, up to rounding, in the dtype of `ds_configs/teacher_zero3.json`.
"""

from collections import deque
from copy import deepcopy
from functools import partial
from typing import Any, Callable, Sequence

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from vitkd_ds.config.run import Run
from vitkd_ds.config.teachers import USUAL
from vitkd_ds.config.term import Needs
from vitkd_ds.engine import ranks
from vitkd_ds.engine.compile import compile_options
from vitkd_ds.engine.ds_config import TEACHER_FILES, is_bf16, load_ds_config, most_blocks, resolve_auto
from vitkd_ds.engine.flat import FlatBlock
from vitkd_ds.models.attention import AttentionMaps
from vitkd_ds.models.build import normalization_of
from vitkd_ds.models.features import Features, tap_features
from vitkd_ds.models.selection import KeptTokens
from vitkd_ds.models.stream import WeightStream


class FeatureModule(nn.Module):
    """A module whose forward is `tap_features`, because DeepSpeed's hooks run only around a forward; of the patches
    `kept_BL` alone, if they are given, where `patch_drop` is a `KeptTokens`."""

    def __init__(self, model: nn.Module, needs: Needs) -> None:
        super().__init__()
        self.model = model
        self.blocks = needs.tapped("teacher")
        attention = needs.teacher_attention
        self.maps = AttentionMaps(model, attention) if attention else None

    def forward(self, images_BCHW: Tensor, kept_BL: Tensor | None = None) -> Features:
        """See `tap_features`."""
        if kept_BL is None:
            return tap_features(self.model, images_BCHW, self.blocks, maps=self.maps)
        self.model.patch_drop.kept_BL = kept_BL
        features = tap_features(self.model, images_BCHW, self.blocks, maps=self.maps)
        self.model.patch_drop.kept_BL = None
        return features


def partition_blocks(
    model: nn.Module,
    stream: WeightStream,
    run: Run,
    ds_config: dict[str, Any],
    dtype: torch.dtype,
    on_block: Callable[[], None] = lambda: None,
) -> None:
    """Give a model on the meta device its weights, each block partitioned over the ranks before the next is read.
    Collective.

    Rank 0 reads, and DeepSpeed sends what it read to the others. So a rank has a block at a time beside its part, and
    in the end what is in no block, which the engine partitions. `on_block` is called before each block.

    Raises:
        ValueError, OSError: the file cannot be read.
        FailedElsewhere: on another rank.
    """
    is_reader = ranks.rank() == 0
    first = None
    for number, block in enumerate(model.blocks):
        on_block()
        ranks.together(partial(stream.fill, block, f"blocks.{number}.", dtype, is_read=is_reader))
        flat = FlatBlock(block, compile=run.compile)
        if first is None:
            deepspeed.zero.Init(module=flat, config_dict_or_path=deepcopy(ds_config), dtype=dtype)
            first = flat.flats[0]
        else:
            first.convert_to_zero_parameters(param_list=flat.flats)
        model.blocks[number] = flat
    model.blocks = nn.Sequential(*model.blocks)
    ranks.together(partial(stream.fill, model, "", dtype))


def keeps_whole(placement: str) -> bool:
    """Whether a rank keeps all of a partitioned teacher that it has gathered once."""
    return ranks.world_size() == 1 and placement == "shard"


def move_buffers(module: nn.Module, device: torch.device) -> None:
    """Move the buffers, such as those of rotary embeddings: DeepSpeed moves parameters alone where some are partitioned
    before it comes."""
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = buffer.to(device)


class Teacher:
    """Images in, features out, without gradient, always in eval mode.

    It is not an nn.Module, so it cannot become part of the student's module, optimizer, moving average or checkpoint,
    and nobody's `train()` reaches it. All ranks must build it, and call it the same number of times, with at most
    `micro_batch_size` images. It is compiled as a whole, or block by block where weights are gathered. `on_block` is
    called before each block that is read from a file, which may take long.

    Args:
        name: the teacher's name in `run.teachers`.
        left: see `Pace`; teachers that run one after another share it.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Run,
        name: str = USUAL,
        *,
        device: torch.device,
        micro_batch_size: int,
        on_block: Callable[[], None] = lambda: None,
        left: deque[tuple[Any, int]] | None = None,
    ) -> None:
        config = run.teachers[name]
        size = config.image_size
        self.normalization = normalization_of(model, image_size=size if size != run.data.image_size else 0)
        self._fill_up_to = micro_batch_size if run.is_compiled else 0
        file = f"ds_configs/{TEACHER_FILES[config.placement]}"
        ds_config = load_ds_config(file, {"train_micro_batch_size_per_gpu": micro_batch_size})
        resolve_auto(ds_config, world_size=ranks.world_size())
        self.dtype = torch.bfloat16 if is_bf16(ds_config) else torch.float32
        if config.keep_tokens:
            model.patch_drop = KeptTokens(model.num_prefix_tokens)
        # Buffers too, such as a batch norm's: DeepSpeed rounds the parameters alone.
        module = FeatureModule(model.requires_grad_(False), run.losses_of(name).needs).to(self.dtype)
        self._pace: Pace | None = None
        if config.placement == "replica":
            self.module = module.to(device)
            if config.fp8:
                quantize_blocks(self.module.model)
            if run.is_compiled:
                self.module.compile(options=compile_options(run.compile))
        else:
            ds_config["steps_per_print"] = None
            if stream := getattr(model, "weight_stream", None):
                partition_blocks(model, stream, run, ds_config, self.dtype, on_block)
                move_buffers(module, device)
            elif blocks := getattr(model, "blocks", ()):  # other models than vision transformers stay as they are
                model.blocks = nn.Sequential(*(FlatBlock(block, compile=run.compile) for block in blocks))
            self.module, *_ = deepspeed.initialize(model=module, config=ds_config)
            for hook in self.module.optimizer.backward_hooks:
                hook.remove()  # there is no backward pass, and they cost a forward as much as all the rest of ZeRO
            if runs_ahead() and not keeps_whole(config.placement):
                left = deque() if left is None else left
                self._pace = Pace(getattr(model, "blocks", ()), left, placement=config.placement)
        self.module.eval()
        self._modules = tuple(module.modules())  # DeepSpeed's engine itself is always in training mode

    @torch.compiler.disable  # with keep_tokens the student's compiled forward calls it
    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor, *, are_normalized: bool = False, kept_BL: Tensor | None = None) -> Features:
        """Features of images with values 0 to 255, which are normalised with the teacher's own mean and std, unless
        they are so already, in its dtype; of the patches numbered `kept_BL` alone, if these are given.

        For a compiled teacher fewer images than a micro-batch, as an evaluation ends with, are filled up: it would be
        compiled anew for each number of images, and stay slower for the rest of the run.
        """
        if any(module.training for module in self._modules):
            self.module.eval()  # somebody called train() on a module inside: dropout and drop path would be on
        num_images = len(images_BCHW)
        missing = self._fill_up_to - num_images
        if missing > 0:
            is_channels_last = images_BCHW.is_contiguous(memory_format=torch.channels_last)
            images_BCHW = torch.cat([images_BCHW, images_BCHW[:1].expand(missing, -1, -1, -1)])
            if kept_BL is not None:
                kept_BL = torch.cat([kept_BL, kept_BL[:1].expand(missing, -1)])
            if is_channels_last:  # other strides would be compiled anew, too
                images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        if not are_normalized:
            images_BCHW = self.normalization.apply(images_BCHW, self.dtype)
        if self._pace:
            self._pace.wait()
        features = self.module(images_BCHW) if kept_BL is None else self.module(images_BCHW, kept_BL)
        if missing > 0:
            features = tree_map_only(Tensor, lambda feature: feature[:num_images], features)
        return features


def runs_ahead() -> bool:
    """Whether the host does not wait for each operation of the device."""
    return not get_accelerator().is_synchronized_device()


def _gathered_bytes(p: Any) -> int:
    """Bytes of a parameter of DeepSpeed's stage 3 when it is gathered."""
    return p.ds_numel * p.element_size()


class Pace:
    """Limit to how far the host runs ahead of a GPU: `most_blocks` gathered blocks that are not computed yet.

    DeepSpeed gathers a block when the host enters it and frees it when the host leaves it, but on a GPU its memory can
    be used again only once the block is computed. A host that is ten blocks ahead has ten of them gathered, and one
    that copies an offloaded teacher faster than the GPU computes has all. So after each block the host waits for an
    earlier one. The GPU still has the block that was just left to work on, while the next one is copied. What DeepSpeed
    gathers ahead of the host, by `stage3_prefetch_bucket_size`, comes on top.

    It must be made after DeepSpeed's engine: only hooks that are registered later see a block that was freed.

    Args:
        left: end and size of each block that the host has left and the GPU may not have computed yet. Teachers that run
            one after another share it, so that the bound holds for all of them together.
    """

    def __init__(self, blocks: Sequence[nn.Module], left: deque[tuple[Any, int]], *, placement: str) -> None:
        sizes = [sum(_gathered_bytes(p) for p in block.parameters()) for block in blocks]
        self._largest = max(sizes, default=1)
        self._most_bytes = self._largest * most_blocks(placement, self._largest)
        self._left = left
        for block in blocks:
            block.register_forward_hook(self._leave)

    def wait(self) -> None:
        """Wait until another block of this teacher has room; to be called before its forward pass, too."""
        while self._left and sum(size for _, size in self._left) + self._largest > self._most_bytes:
            self._left.popleft()[0].synchronize()

    def _leave(self, *_: Any) -> None:
        self._left.append((get_accelerator().current_stream().record_event(), self._largest))
        self.wait()


def quantize_blocks(model: nn.Module) -> None:
    """Put the weights of the linear layers in a model's blocks into fp8 (e4m3), a scale for each output channel, in
    place; their inputs are rounded likewise when they are called, a scale for each token. Embedding, norms, attention's
    softmax and classifier stay as they are.

    Raises:
        ValueError: torchao is not installed, the model has no blocks, or torchao refuses the device that it is on.
    """
    try:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow
        from torchao.quantization.quant_api import quantize_
    except ImportError as error:
        raise ValueError(
            f"teacher.fp8 needs torchao, found {error}: pip install 'vitkd_ds[fp8]', or leave teacher.fp8 off"
        ) from None
    if not isinstance(blocks := getattr(model, "blocks", None), nn.Module):
        raise ValueError(f"teacher.fp8 needs a model with blocks, found {type(model).__name__}: leave teacher.fp8 off")
    try:
        quantize_(blocks, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))
    except AssertionError as error:
        raise ValueError(f"teacher.fp8 needs a GPU that multiplies in fp8, found that {error}: leave it off") from None
