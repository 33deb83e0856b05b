"""Count the blocks that the host gathers ahead of a device that computes only when waited for; see `observed`."""

from tests.engine import tiny
from vitkd_ds.engine import ds_config
from vitkd_ds.engine import teacher as engine_teacher


class LazyDevice:
    """Device that does nothing until it is waited for; replaces DeepSpeed's accelerator."""

    def __init__(self):
        self.num_queued = self.num_done = 0

    def is_synchronized_device(self):
        return False

    def current_stream(self):
        return self

    def record_event(self):
        self.num_queued += 1
        return LazyEvent(self, self.num_queued)


class LazyEvent:
    """Event after the queued work with this number."""

    def __init__(self, device, number):
        self._device, self._number = device, number

    def synchronize(self):
        self._device.num_done = max(self._device.num_done, self._number)


def observe(seen):
    """Record, at the start of each block in two forwards, the number of blocks that were started but not computed
    (including this one), and whether blocks were freed before their end was recorded."""
    images_BCHW, _ = tiny.make_batch(8)
    block_bytes = 2 * sum(p.numel() for p in tiny.make_models()[1].blocks[0].parameters())
    before = engine_teacher.get_accelerator, ds_config.AHEAD_BYTES
    try:
        for placement, room in (("offload", 100), ("shard", 0.9), ("shard", 1)):
            device, in_flight, were_freed = LazyDevice(), [], []
            engine_teacher.get_accelerator, ds_config.AHEAD_BYTES = (
                lambda device=device: device,
                int(room * block_bytes),
            )
            teacher = tiny.make_teacher(placement)
            recorded = device.record_event

            def record_event(teacher=teacher, device=device, recorded=recorded, were_freed=were_freed):
                block = teacher.module.module.model.blocks[device.num_queued % 3]
                were_freed.append(all(p.numel() == 0 for p in block.parameters()))
                return recorded()

            device.record_event = record_event
            for block in teacher.module.module.model.blocks:
                block.register_forward_pre_hook(
                    lambda *_, device=device, seen=in_flight: seen.append(device.num_queued - device.num_done + 1)
                )
            for _ in range(2):
                teacher(images_BCHW)
            seen[f"pace of {placement}, {room} more"] = {"in flight": in_flight, "freed": were_freed}
    finally:
        engine_teacher.get_accelerator, ds_config.AHEAD_BYTES = before
