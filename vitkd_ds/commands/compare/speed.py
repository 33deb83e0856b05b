"""Measure the inference speed of students and their teachers on this machine's first GPU, or on the CPU.

Speed does not depend on weights, so teachers get random weights. Their weight files are not needed, and nothing is
downloaded. The models take turns, so that a temporary slowdown of the machine affects all of them.
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
from vitkd_ds.models.create import model_args_of

MICRO_BATCH = {"cuda": 64, "cpu": 16}
DTYPE = {"cuda": torch.bfloat16, "cpu": torch.float32}
MOST_S = 1.5
MOST_ROUNDS = 100
"""Limits per model: total seconds of its forward passes, and number of these passes. Each model runs at least two."""
WARMUP_ROUNDS = 3
"""Warm-up passes of each model, which are not timed. If there are no other passes, the last one is timed."""


class Key(NamedTuple):
    """Identity of a model to measure: architecture, its arguments and image size. Weights do not matter."""

    model: str
    args: str
    size: int
    """Height and width of the model's images, in pixels."""


class Speeds(NamedTuple):
    """Measured speeds of all runs, and the device."""

    device: str
    images_per_s: list[tuple[float, float | None]]
    """For each run, the speed of the student, and the speed of all its teachers when they run one after another. The
    second speed is None if the run has no teacher."""


def measure(results: Sequence[Result]) -> Speeds:
    """Measure the models of all runs; models with the same `Key` are measured once.

    Raises:
        ValueError: a student cannot be loaded. This is checked before the first measurement.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models: dict[Key, nn.Module] = {}
    keys = [(_student(result, models), _teachers(result, models)) for result in results]
    micro = MICRO_BATCH[device.type]
    dtype = DTYPE[device.type]
    ready = {key: model.to(device, dtype).eval() for key, model in models.items()}
    images = {key: torch.randn(micro, 3, key.size, key.size, device=device, dtype=dtype) for key in ready}
    speeds = {key: micro / seconds for key, seconds in forward_seconds(ready, images).items()}
    text = f"{_name(device)} ({str(dtype).removeprefix('torch.')}, {micro} images per forward)"
    together = [1 / sum(1 / speeds[teacher] for teacher in teachers) if teachers else None for _, teachers in keys]
    return Speeds(text, [(speeds[student], rate) for (student, _), rate in zip(keys, together)])


@torch.inference_mode()
def forward_seconds(models: dict[Key, nn.Module], images: dict[Key, Tensor]) -> dict[Key, float]:
    """Run the models in turns. Return the median time of each model's forward, in seconds."""
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
    """Return the key of a run's student. If `models` has no model with this key, add the student to it.

    The student of an unfinished run is taken from the checkpoint that the run would resume from.
    """
    try:
        found = find_student(result.folder)
        description = read_json(found / DESCRIPTION, EXPORTED)
        key = _key(description["model"], description["args"], description["image_size"])
        if key not in models:
            models[key] = build.build_exported(description, found / STUDENT)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot measure the student of {result.folder}: {error}. Pass --speed false to skip the measurement."
        ) from None
    return key


def _teachers(result: Result, models: dict[Key, nn.Module]) -> list[Key]:
    """Return the key of each teacher of a run. Add the teachers that are missing from `models`."""
    run = result.config["run"]
    return [_teacher(from_dict(TeacherConfig, each), run, models) for each in read(run).values()]


def _teacher(teacher: TeacherConfig, run: dict[str, Any], models: dict[Key, nn.Module]) -> Key:
    size = teacher.image_size or run["data"]["image_size"]
    num_classes = run["data"]["num_classes"]
    teacher = replace(teacher, checkpoint="random", head="", image_size=0)
    data = DataConfig(train="", val="", image_size=size, num_classes=num_classes)
    made = model_args_of(teacher, data)
    key = _key(made["model"], made["args"], size)
    if key not in models:
        models[key] = build.build_teacher(teacher, data, needs_blocks=False)
    return key


def _key(model: str, args: dict[str, Any], size: int) -> Key:
    args = {name: value for name, value in args.items() if name not in NOT_OF_THE_MODEL}
    return Key(model.partition(".")[0], json.dumps(args, sort_keys=True), size)
