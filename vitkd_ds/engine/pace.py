"""How far the host may run ahead of a GPU through a teacher whose blocks are gathered one by one.

DeepSpeed gathers a block when the host enters it and frees it when the host leaves it, but on a GPU its memory can be
used again only once the block is computed: a host that is ten blocks ahead has ten of them gathered, and one that
copies an offloaded teacher faster than the GPU computes has all. So after each block the host waits for an earlier
one to be computed. The GPU still has the block that was just left to work on, beside which the next one is copied. A
teacher without `blocks` is left as it is.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

from deepspeed.accelerator import get_accelerator
from torch import nn

from vitkd_ds.engine.ds_config import most_blocks


def runs_ahead() -> bool:
    """Whether the host does not wait for each operation of the device."""
    return not get_accelerator().is_synchronized_device()


def _gathered_bytes(p: Any) -> int:
    """Bytes of a parameter of DeepSpeed's stage 3 when it is gathered."""
    return p.ds_numel * p.element_size()


class Pace:
    """Keeps the blocks of a shard or an offloaded teacher that the host has entered and the GPU has not computed yet to
    `most_blocks`. What DeepSpeed gathers ahead of the host, by `stage3_prefetch_bucket_size`, comes on top.

    It must be made after DeepSpeed's engine: only hooks that are registered later see a block that was freed.
    """

    def __init__(self, blocks: Sequence[nn.Module], *, placement: str) -> None:
        sizes = [sum(_gathered_bytes(p) for p in block.parameters()) for block in blocks]
        self._most = most_blocks(placement, max(sizes, default=1))
        self._left: deque[Any] = deque()
        for block in blocks:
            block.register_forward_hook(self._leave)

    def _leave(self, *_: Any) -> None:
        self._left.append(get_accelerator().current_stream().record_event())
        if len(self._left) == self._most:
            self._left.popleft().synchronize()
