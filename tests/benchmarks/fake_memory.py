"""A CUDA caching allocator's counters without a GPU: deleted tensors wait until the allocator looks at their events."""

import torch


class FakeMemory:
    """Counters of `torch.cuda`, in bytes. `install` puts them in place of torch's.

    Attributes:
        allocated: bytes of all tensors.
        waiting: bytes of deleted tensors that the device may still use.
    """

    def __init__(self):
        self.allocated = self.waiting = 0
        self.is_idle = False
        self._most_active = self._most_allocated = 0

    def use(self, lasting, passing=0):
        """Queue work that allocates `lasting` bytes, and `passing` bytes that wait for the device afterwards."""
        self.take_back()
        self.is_idle = False
        self.allocated += lasting
        self.waiting += passing
        self._most_allocated = max(self._most_allocated, self.allocated + passing // 2)
        self._most_active = max(self._most_active, self.allocated + self.waiting)

    def synchronize(self):
        self.is_idle = True

    def take_back(self):
        """Free the memory of deleted tensors if the device is done with them, as at an allocation."""
        self.waiting = 0 if self.is_idle else self.waiting

    def reset(self):
        self._most_allocated, self._most_active = self.allocated, self.allocated + self.waiting

    def stats(self):
        return {
            "active_bytes.all.current": self.allocated + self.waiting,
            "active_bytes.all.peak": self._most_active,
        }

    def install(self, monkeypatch):
        empty = torch.empty

        def allocate(*args, device=None, **kwargs):
            if torch.device(device or "cpu").type == "cuda":
                self.take_back()
                device = "cpu"
            return empty(*args, device=device, **kwargs)

        monkeypatch.setattr(torch, "empty", allocate)
        for name, replacement in {
            "synchronize": lambda device=None: self.synchronize(),
            "empty_cache": self.take_back,
            "reset_peak_memory_stats": lambda device=None: self.reset(),
            "memory_stats": lambda device=None: self.stats(),
            "memory_allocated": lambda device=None: self.allocated,
            "max_memory_allocated": lambda device=None: self._most_allocated,
        }.items():
            monkeypatch.setattr(torch.cuda, name, replacement)
