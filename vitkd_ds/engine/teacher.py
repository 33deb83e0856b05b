"""The frozen teacher: a ZeRO-Inference shard, a replica, or a shard in CPU memory.

shard and offload are DeepSpeed stage-3 engines without an optimizer: their weights are partitioned over the ranks and
gathered block by block, each as one flat parameter, during the forward. replica is the plain module on every rank. All
give the same features, up to rounding, in the dtype of `ds_configs/teacher_zero3.json`.
"""

from typing import Sequence

import deepspeed
import torch
from torch import Tensor, nn

from vitkd_ds.config.run import Run
from vitkd_ds.engine import ranks
from vitkd_ds.engine.ds_config import TEACHER_FILES, is_bf16, load_ds_config, resolve_auto
from vitkd_ds.engine.flat import FlatBlock
from vitkd_ds.engine.internals import SHARD_OPTIMIZER, check_internals
from vitkd_ds.models.build import normalization_of
from vitkd_ds.models.features import Features, tap_features


class FeatureModule(nn.Module):
    """A module whose forward is `tap_features`, because DeepSpeed's hooks run only around a forward."""

    def __init__(self, model: nn.Module, blocks: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.blocks = tuple(blocks)

    def forward(self, images_BCHW: Tensor) -> Features:
        """See `tap_features`."""
        return tap_features(self.model, images_BCHW, self.blocks)


class Teacher:
    """Images in, features out, without gradient, always in eval mode.

    It is not an nn.Module, so it cannot become part of the student's module, optimizer, moving average or checkpoint,
    and nobody's `train()` reaches it. All ranks must build it, and call it the same number of times, with at most
    `micro_batch_size` images. It is compiled as a whole, or block by block where weights are gathered.
    """

    def __init__(self, model: nn.Module, run: Run, *, device: torch.device, micro_batch_size: int) -> None:
        self.normalization = normalization_of(model)
        self._fill_up_to = micro_batch_size if run.compile else 0
        file = f"ds_configs/{TEACHER_FILES[run.teacher.placement]}"
        ds_config = load_ds_config(file, {"train_micro_batch_size_per_gpu": micro_batch_size})
        resolve_auto(ds_config, world_size=ranks.world_size())
        self.dtype = torch.bfloat16 if is_bf16(ds_config) else torch.float32
        # Buffers too, such as a batch norm's: DeepSpeed rounds the parameters alone.
        module = FeatureModule(model.requires_grad_(False), run.losses.tapped_blocks).to(self.dtype)
        if run.teacher.placement == "replica":
            self.module = module.to(device)
            if run.compile:
                self.module.compile()
        else:
            if blocks := getattr(model, "blocks", ()):  # other models than vision transformers stay as they are
                model.blocks = nn.Sequential(*(FlatBlock(block, compile=run.compile) for block in blocks))
            ds_config["steps_per_print"] = None
            self.module, *_ = deepspeed.initialize(model=module, config=ds_config)
            check_internals(self.module.optimizer, SHARD_OPTIMIZER)
            for hook in self.module.optimizer.backward_hooks:
                hook.remove()  # there is no backward pass, and they cost a forward as much as all the rest of ZeRO
        self.module.eval()
        self._modules = tuple(module.modules())  # DeepSpeed's engine itself is always in training mode

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor, *, are_normalized: bool = False) -> Features:
        """Features of images with values 0 to 255, which are normalised with the teacher's own mean and std, unless
        they are so already, in its dtype.

        For a compiled teacher fewer images than a micro-batch, as an evaluation ends with, are filled up: it would be
        compiled anew for each number of images, and stay slower for the rest of the run.
        """
        if any(module.training for module in self._modules):
            self.module.eval()  # somebody called train() on a module inside: dropout and drop path would be on
        num_images, missing = len(images_BCHW), self._fill_up_to - len(images_BCHW)
        if missing > 0:
            is_channels_last = images_BCHW.is_contiguous(memory_format=torch.channels_last)
            images_BCHW = torch.cat([images_BCHW, images_BCHW[:1].expand(missing, -1, -1, -1)])
            if is_channels_last:  # other strides would be compiled anew, too
                images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        if not are_normalized:
            images_BCHW = self.normalization.apply(images_BCHW, self.dtype)
        features = self.module(images_BCHW)
        if missing > 0:
            features = Features(*(None if feature is None else feature[:num_images] for feature in features))
        return features
