"""Frozen teacher: sharded over the ranks (ZeRO-Inference), sharded in CPU memory, or replicated.

The placements `shard` and `offload` are DeepSpeed stage-3 engines without an optimizer. Their weights are partitioned
over the ranks, and forward gathers them block by block, each block as one flat parameter. `replica` is the unchanged
module on every rank. All three return the same features, up to rounding, in the dtype of ds_configs/teacher_zero3.json.
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
    """Module with `tap_features` as its forward, because DeepSpeed's hooks run only around a module's forward.

    Without `kept_BL`, all patches are computed. With `kept_BL`, only the patches with these indices are computed, and
    the model's `patch_drop` must be a `KeptTokens`.
    """

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


def partition(
    model: nn.Module,
    run: Run,
    ds_config: dict[str, Any],
    dtype: torch.dtype,
    on_block: Callable[[], None] = lambda: None,
) -> None:
    """Partition the weights of a model over the ranks, block by block. Collective.

    If the model has a `weight_stream`, its weights are still in their file: rank 0 reads a block, DeepSpeed partitions
    it over the ranks, and then the next block is read. So a rank holds its partition and at most one whole block. The
    weights outside blocks are read last, by every rank, and the engine partitions them. Without a stream, every rank
    holds the whole model in CPU memory, but the device also gets one block at a time. DeepSpeed's engine would move
    the whole model to the device before it partitions it. `on_block` is called before each block.

    Raises:
        ValueError, OSError: the file cannot be read.
        FailedElsewhere: the file cannot be read on another rank.
    """
    stream: WeightStream | None = getattr(model, "weight_stream", None)
    is_reader = ranks.rank() == 0
    blocks = list(getattr(model, "blocks", ()))
    first = None
    for number, block in enumerate(blocks):
        on_block()
        if stream:
            ranks.together(partial(stream.fill, block, f"blocks.{number}.", dtype, is_read=is_reader))
        flat = FlatBlock(block, compile=run.compile)
        if first is None:
            deepspeed.zero.Init(module=flat, config_dict_or_path=deepcopy(ds_config), dtype=dtype)
            first = flat.flats[0]
        else:
            first.convert_to_zero_parameters(param_list=flat.flats)
        model.blocks[number] = flat
    if blocks:
        model.blocks = nn.Sequential(*model.blocks)
    else:  # models other than vision transformers stay unchanged
        deepspeed.zero.Init(module=model, config_dict_or_path=deepcopy(ds_config), dtype=dtype)
    if stream:
        ranks.together(partial(stream.fill, model, "", dtype))


def keeps_whole(placement: str) -> bool:
    """Return whether a rank keeps gathered blocks: only with placement "shard" on a single rank."""
    return ranks.world_size() == 1 and placement == "shard"


def move_buffers(module: nn.Module, device: torch.device) -> None:
    """Move all buffers (for example, of rotary embeddings) to a device.

    DeepSpeed does not move buffers if some parameters are already partitioned when it builds its engine.
    """
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = buffer.to(device)


class Teacher:
    """Frozen model that computes the features of images, without gradients and always in eval mode.

    It is not an nn.Module, so it cannot end up in the student's module, optimizer, moving average or checkpoint, and
    `train()` on the student does not reach it. All ranks must build it and call it equally often. With torch.compile, a
    replica is compiled as a whole, and a sharded teacher block by block.

    Args:
        name: the teacher's name in `run.teachers`.
        micro_batch_size: largest number of images per call.
        on_block: called before each block is read and partitioned, because reading may take long.
        left: the queue of `Pace`, shared by teachers that run one after another; None creates a new queue.
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
        # DeepSpeed would convert only the parameters; this also converts buffers, such as a batch norm's.
        module = FeatureModule(model.requires_grad_(False), run.losses_of(name).needs).to(self.dtype)
        self._pace: Pace | None = None
        if config.placement == "replica":
            self.module = module.to(device)
            if config.fp8:
                quantize_blocks(self.module.model)
            if run.is_compiled:
                self.module.compile(dynamic=False, options=compile_options(run.compile))
        else:
            ds_config["steps_per_print"] = None
            partition(model, run, ds_config, self.dtype, on_block)
            move_buffers(module, device)
            self.module, *_ = deepspeed.initialize(model=module, config=ds_config)
            for hook in self.module.optimizer.backward_hooks:
                hook.remove()  # unused without backward; in forward they cost as much as the rest of ZeRO
            if runs_ahead() and not keeps_whole(config.placement):
                left = deque() if left is None else left
                self._pace = Pace(getattr(model, "blocks", ()), left, placement=config.placement)
        self.module.eval()
        self._modules = tuple(module.modules())  # without DeepSpeed's engine, which is always in training mode

    @torch.compiler.disable  # with keep_tokens, the student's compiled forward calls this
    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor, *, are_normalized: bool = False, kept_BL: Tensor | None = None) -> Features:
        """Compute features in the teacher's dtype.

        A compiled teacher pads a smaller batch, such as the last of an evaluation, to a full micro-batch. Without
        padding, torch would recompile the teacher for each batch size, and the rest of the run would be slower.

        Args:
            images_BCHW: images with values 0 to 255.
            are_normalized: the images are already normalised with the teacher's mean and std.
            kept_BL: indices of the patches to compute; None for all.
        """
        if any(module.training for module in self._modules):
            self.module.eval()  # after train() on a submodule, dropout and drop path would be active
        num_images = len(images_BCHW)
        missing = self._fill_up_to - num_images
        if missing > 0:
            is_channels_last = images_BCHW.is_contiguous(memory_format=torch.channels_last)
            images_BCHW = torch.cat([images_BCHW, images_BCHW[:1].expand(missing, -1, -1, -1)])
            if kept_BL is not None:
                kept_BL = torch.cat([kept_BL, kept_BL[:1].expand(missing, -1)])
            if is_channels_last:  # different strides would also trigger recompilation
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
    """Return whether the host continues while the device computes."""
    return not get_accelerator().is_synchronized_device()


def _gathered_bytes(p: Any) -> int:
    """Return the bytes of a ZeRO stage-3 parameter after it is gathered."""
    return p.ds_numel * p.element_size()


class Pace:
    """Throttle that lets the host gather at most `most_blocks` blocks that the GPU has not computed yet.

    DeepSpeed gathers a block when the host enters it and frees it when the host leaves it. The GPU can reuse the memory
    only after computing the block. If the host were ten blocks ahead, the GPU would hold ten gathered blocks. If the
    host copied an offloaded teacher faster than the GPU computes, the GPU would hold the whole model. Therefore, after
    each block, the host waits until the GPU has computed an earlier one. Meanwhile the GPU computes the block that the
    host has just left, and the next block is copied. Blocks that DeepSpeed prefetches (`stage3_prefetch_bucket_size`)
    are not counted.

    Create a Pace after DeepSpeed's engine, because a hook that is registered earlier runs before the block is freed.

    Args:
        left: end event and bytes of each block that the host has left and the GPU may not have computed. Teachers that
            run one after another share this queue, so the limit covers all of them together.
    """

    def __init__(self, blocks: Sequence[nn.Module], left: deque[tuple[Any, int]], *, placement: str) -> None:
        sizes = [sum(_gathered_bytes(p) for p in block.parameters()) for block in blocks]
        self._largest = max(sizes, default=1)
        self._most_bytes = self._largest * most_blocks(placement, self._largest)
        self._left = left
        for block in blocks:
            block.register_forward_hook(self._leave)

    def wait(self) -> None:
        """Wait until another block of this teacher fits within the limit. Also call this before each forward pass."""
        while self._left and sum(size for _, size in self._left) + self._largest > self._most_bytes:
            self._left.popleft()[0].synchronize()

    def _leave(self, *_: Any) -> None:
        self._left.append((get_accelerator().current_stream().record_event(), self._largest))
        self.wait()


def quantize_blocks(model: nn.Module) -> None:
    """Quantize the linear layers in a model's blocks to fp8 (e4m3), in place.

    Weights get one scale per output channel. Inputs are quantized on each call, with one scale per token. Embedding,
    norms, attention softmax and classifier keep their precision.

    Raises:
        ValueError: torchao is not installed, the model has no blocks, or torchao does not support the model's device.
    """
    try:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow
        from torchao.quantization.quant_api import quantize_
    except ImportError as error:
        raise ValueError(
            f"teacher.fp8 needs torchao: {error}. Run pip install 'vitkd_ds[fp8]', or remove --teacher.fp8."
        ) from None
    if not isinstance(blocks := getattr(model, "blocks", None), nn.Module):
        raise ValueError(f"teacher.fp8 needs a model with blocks, got {type(model).__name__}. Remove --teacher.fp8.")
    try:
        quantize_(blocks, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))
    except AssertionError as error:
        raise ValueError(f"teacher.fp8 does not work on this device: {error}. Remove --teacher.fp8.") from None
