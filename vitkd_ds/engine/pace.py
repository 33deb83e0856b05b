"""How far the host may run ahead of a GPU through a teacher whose blocks are gathered one by one.

DeepSpeed gathers a block when the host enters it and frees it when the host leaves it, but on a GPU its memory can be
used again only once the block is computed: a host that is ten blocks ahead has ten of them gathered, and one that
copies an offloaded teacher faster than it computes has all. So after each block the host waits for an earlier one to
be computed. The GPU still has the block that was just left to work on, beside which the next one is copied.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

from deepspeed.accelerator import get_accelerator
from torch import nn

AHEAD_BYTES = 400 * 2**20
"""What a shard may have gathered besides two blocks: 16 more of a DeiT III-Large, one more of a 7 B model."""


def runs_ahead() -> bool:
    """Whether the host does not wait for each operation of the device."""
    return not get_accelerator().is_synchronized_device()


def most_gathered(placement: str, block_bytes: int) -> int:
    """Blocks of so many bytes that are on a GPU at a time: of an offloaded teacher the one that is computed and the one
    on its way, of a shard as many more as AHEAD_BYTES have room for."""
    return 2 + (AHEAD_BYTES // block_bytes if placement == "shard" else 0)


class Pace:
    """Keeps the blocks of a shard or an offloaded teacher that are gathered and not computed yet to `most_gathered`.

    It must be made after DeepSpeed's engine: only hooks that are registered later see a block that was freed.
    """

    def __init__(self, blocks: Sequence[nn.Module], *, placement: str) -> None:
        sizes = [sum(p.ds_numel * p.element_size() for p in block.parameters()) for block in blocks]
        self._most = most_gathered(placement, max(sizes, default=1))
        self._left: deque[Any] = deque()
        for block in blocks:
            block.register_forward_hook(self._leave)

    def _leave(self, *_: Any) -> None:
        self._left.append(get_accelerator().current_stream().record_event())
        if len(self._left) == self._most:
            self._left.popleft().synchronize()
