"""Measure exported students, and their teachers, at inference on this machine's first device.

Speed does not depend on the weights, so a teacher is built with random ones: its file may be elsewhere by now, and
nothing is downloaded. All models take turns, so that what slows the machine down for a while slows all of them.
"""

import json
import statistics
import time
from dataclasses import replace
from typing import Any, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.config.overrides import from_dict
from vitkd_ds.config.run import DataConfig, TeacherConfig
from vitkd_ds.config.run_folder import DESCRIPTION, EXPORTED, NOT_OF_THE_MODEL, STUDENT, find_student, read_json
from vitkd_ds.config.teachers import read
from vitkd_ds.models import build

MICRO_BATCH = {"cuda": 64, "cpu": 16}
DTYPE = {"cuda": torch.bfloat16, "cpu": torch.float32}
MOST_S = 1.5
MOST_ROUNDS = 100
"""Most seconds per model, all its forwards together, and most forwards of each; two forwards are made in any case."""
WARMUP_ROUNDS = 3
"""Forwards that are not counted, or all but the last if there are so few."""


class Key(NamedTuple):
    """What is the same for the same architecture."""

    model: str
    args: str
    size: int
    """Height and width of its images, in pixels."""


class Speeds(NamedTuple):
    """What was measured, and on what."""

    device: str
    images_per_s: list[tuple[float, float | None]]
    """Of each run the student's and the teachers', one after another; None without a teacher."""


def measure(results: Sequence[Result]) -> Speeds:
    """Measure each architecture once; raises ValueError, before any forward, for a student that cannot be rebuilt."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models: dict[Key, nn.Module] = {}
    keys = [(_student(result, models), _teachers(result, models)) for result in results]
    micro = MICRO_BATCH[device.type]
    dtype = DTYPE[device.type]
    ready = {key: model.to(device, dtype).eval() for key, model in models.items()}
    images = {key: torch.randn(micro, 3, key.size, key.size, device=device, dtype=dtype) for key in ready}
    speeds = {key: micro / seconds for key, seconds in forward_seconds(ready, images).items()}
    text = f"{_name(device)} ({str(dtype).removeprefix('torch.')}, {micro} images a forward)"
    together = [1 / sum(1 / speeds[teacher] for teacher in teachers) if teachers else None for _, teachers in keys]
    return Speeds(text, [(speeds[student], rate) for (student, _), rate in zip(keys, together)])


@torch.inference_mode()
def forward_seconds(models: dict[Key, nn.Module], images: dict[Key, Tensor]) -> dict[Key, float]:
    """Time the forwards of models on a device in turns; the median seconds of each model."""
    seconds: dict[Key, list[float]] = {key: [] for key in models}
    for number in range(MOST_ROUNDS):
        if number >= 2 and sum(map(sum, seconds.values())) * (1 + 1 / number) > MOST_S * len(models):
            break  # another round would take too long
        for key, model in models.items():
            start = _synchronised_time()
            model(images[key])
            seconds[key].append(_synchronised_time() - start)
    return {key: statistics.median(each[min(WARMUP_ROUNDS, len(each) - 1) :]) for key, each in seconds.items()}


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def _synchronised_time() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _student(result: Result, models: dict[Key, nn.Module]) -> Key:
    """Add the exported student to `models`, unless its architecture is there; its key. Of a run that is not finished it
    is that of the checkpoint to go on from."""
    try:
        found = find_student(result.folder)
        description = read_json(found / DESCRIPTION, EXPORTED)
        key = _key(description["model"], description["args"], description["image_size"])
        if key not in models:
            models[key] = build.build_exported(description, found / STUDENT)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the student of {result.folder} must be there to be measured, found: {error}; or give --speed false"
        ) from None
    return key


def _teachers(result: Result, models: dict[Key, nn.Module]) -> list[Key]:
    """Add the run's teachers to `models`, unless their architectures are there; their keys."""
    run = result.config["run"]
    return [_teacher(from_dict(TeacherConfig, each), run, models) for each in read(run).values()]


def _teacher(teacher: TeacherConfig, run: dict[str, Any], models: dict[Key, nn.Module]) -> Key:
    size = teacher.image_size or run["data"]["image_size"]
    num_classes = run["data"]["num_classes"]
    teacher = replace(teacher, checkpoint="random", head="", image_size=0)
    data = DataConfig(train="", val="", image_size=size, num_classes=num_classes)
    made = build.model_args_of(teacher, data)
    key = _key(made["model"], made["args"], size)
    if key not in models:
        models[key] = build.build_teacher(teacher, data, needs_blocks=False)
    return key


def _key(model: str, args: dict[str, Any], size: int) -> Key:
    args = {name: value for name, value in args.items() if name not in NOT_OF_THE_MODEL}
    return Key(model.partition(".")[0], json.dumps(args, sort_keys=True), size)
