"""Observe terms that gather, or have buffers or a projector; part of `observe.py`."""

import zlib
from dataclasses import replace

import torch

from tests.engine import tiny
from vitkd_ds.engine import ranks
from vitkd_ds.losses.vkd import OrthogonalProjector


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def save(files, folder):
    """Write a checkpoint's files on all ranks; return the folder."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        torch.save(content, folder / name)
    ranks.barrier()
    return folder


def observe(seen, folder):
    """Train with these terms in fp32 and bf16, and restore their checkpoint."""
    for precision, run in (("bf16", tiny.RUN), ("fp32", tiny.FP32_RUN)):
        run = replace(run, losses=tiny.OTHERS)
        engine, teacher = tiny.make_engine(run)
        for number, target in enumerate(engine.distiller.feature.targets.values()):
            target.fix(torch.linspace(-1, 1, 32), torch.eye(32) * (1.2345 + number))
        seen[f"{precision} other terms"] = tiny.train(engine, teacher)
        seen[f"{precision} kept"] = {
            name: str(buffer.dtype) for name, buffer in engine.distiller.named_buffers() if "student." not in name
        }
        reflections = tiny.all_weights(engine)["vkd.projector.reflections"]
        projector = OrthogonalProjector(16, 32)
        projector.load_state_dict({"reflections": reflections})
        weight = projector.weight()
        seen[f"{precision} orthogonal"] = (weight.T @ weight - torch.eye(16)).abs().max().item()
        seen[f"{precision} moved"] = not torch.equal(reflections, engine_start(run))
        saved = save(engine.state_files(), folder / f"others{precision}")
        restored, _ = tiny.make_engine(run)
        restored.load(saved)
        buffers = [dict(each.distiller.named_buffers()) for each in (engine, restored)]
        seen[f"{precision} buffers"] = ranks.from_all(
            [zlib.crc32(b.float().numpy().tobytes()) for b in buffers[0].values()]
        )
        seen[f"{precision} restored"] = equal(*buffers)
        futures = [tiny.train(each, teacher, steps=2) for each in (engine, restored)]
        seen[f"{precision} others continue"] = futures[0] == futures[1]


def engine_start(run):
    return tiny.make_distiller(run.losses)[0].vkd.projector.reflections.detach()
