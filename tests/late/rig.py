"""A student's engine with a teacher and a batch, for updates on the CPU or on the simulated device."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from tests.engine import tiny

RUN = replace(
    tiny.RUN,
    ds_config=str(Path(__file__).with_name("overlap.json")),
    optim=replace(tiny.RUN.optim, ema_decay=0.5),
)


class Rig:
    """An engine, a teacher and a batch of two micro-batches on a device. No result is read before `read`."""

    def __init__(self, device, run=RUN):
        self.engine, self.teacher = tiny.make_engine(run, accumulation=2)
        for group in self.engine.engine.basic_optimizer.param_groups:
            group["fused"] = True
        self.teacher.to(device)
        self.images_BCHW, self.targets_BK = (values.to(device) for values in tiny.make_batch())
        self.noise_BP = torch.rand(16, 16, generator=torch.Generator().manual_seed(5)).to(device)
        self.weights = {name: weight.to(device) for name, weight in tiny.weights_of_terms().items()}
        self.bad = torch.ones((), device=device)
        self.totals, self.outcomes = [], []

    def update(self, steps=2, bad_step=None):
        """Queue a few updates."""
        for step in range(steps):
            self.engine.set_lr(1e-3)
            for images in (slice(0, 8), slice(8, 16)):
                own = mock.patch.object(tiny, "weights_of_terms", lambda: self.weights)
                with own, mock.patch.object(torch, "rand", lambda *_, images=images, **__: self.noise_BP[images]):
                    batch = self.images_BCHW[images], self.targets_BK[images], self.engine.dtype
                    total = tiny.forward(self.engine, self.teacher, *batch)["total"]
                self.engine.backward(total)
                self.totals.append(total.detach())
            veto = self.bad * 2 if step == bad_step else None
            self.outcomes.append(self.engine.step(veto=veto, count=self.bad * step))
        return self

    def read(self, read):
        """Return outcomes, losses, weights and averages, with a function that reads a tensor."""
        # First what needs the least waiting.
        outcomes = [(each.grad_norm, each.num_vetoes, each.counted, *each.group_norms) for each in self.outcomes]
        masters = self.engine.engine.optimizer.single_partition_of_fp32_groups
        averages = [self.engine._optimizer.state[master]["ema"] for master in masters]
        return outcomes, [read(tensor).tolist() for tensor in (*self.totals, *masters, *averages)]
