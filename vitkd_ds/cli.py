"""Command + recipe + overrides -> one validated run. fire splits the command line; nothing else happens before every
flag is known to be valid.

fire alone would turn `--workdir 2024_01` into a number, and would run the function first and complain about a
mistyped flag afterwards. So every value stays text, all flags arrive here, and here they are checked and converted.
"""

import inspect
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import fire
from fire.decorators import SetParseFn

from vitkd_ds.config.overrides import apply_overrides, convert, nearest
from vitkd_ds.train import console, signals, watchdog

REFUSED = 2
"""Exit code where settings, files or models do not fit: the same command would end the same way again."""

LAUNCHER_FLAGS = ("local_rank", "local-rank")
"""What DeepSpeed's launcher appends for every rank; the environment says the same."""


def train_main() -> None:
    """`train.py`: one command, no subcommand."""
    signals.listen()  # before the slow imports
    _run(train)


def main() -> None:
    """`vitkd-ds`: the console script."""
    _run(COMMANDS)


def _run(component: Any) -> None:
    console.install()
    words = sys.argv[1:] = [word for word in sys.argv[1:] if word.lstrip("-").partition("=")[0] not in LAUNCHER_FLAGS]
    if "--help" in words or "-h" in words:
        chosen = component.get(words[0]) if isinstance(component, dict) else component
        print(
            inspect.getdoc(chosen) if chosen else "\n\n".join(f"{n}: {inspect.getdoc(c)}" for n, c in component.items())
        )
        return
    if isinstance(component, dict) and words and words[0] not in component:
        _refuse(f"vitkd-ds {words[0]} is no command: {nearest(words[0], component)}")
    try:
        fire.Fire(component, name="vitkd-ds" if isinstance(component, dict) else "train.py")
    except ValueError as error:
        _refuse(error)


def _refuse(reason: Any) -> NoReturn:
    print(f"error: {reason}", file=sys.stderr, flush=True)
    sys.exit(REFUSED)


@SetParseFn(str)
def train(*words: str, **flags: str) -> None:
    """Distil (or plainly train) a student.

    Usage: train [--recipe NAME] [--ds_config FILE] [--workdir DIR] [--resume auto|none|PATH] [--data.train FILE
    --data.val FILE] [--teacher.checkpoint PATH|hub] [--teacher.placement shard|replica|offload] [--compile] [--debug]
    [--KEY=VALUE ...], where KEY is any field of the run, such as optim.lr or losses.nkd.weight.
    """
    signals.listen()  # `vitkd-ds train` comes here without train_main
    run = parse_run(words, flags)
    from vitkd_ds.engine import (
        processes,  # after the flags are known to be valid: torch and deepspeed are slow to import
    )
    from vitkd_ds.train.loop import train as train_run

    try:
        train_run(run)
    except ValueError as error:  # without a traceback; not sys.exit, see processes.leave
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(REFUSED)
    except BaseException as error:  # whatever it is: this rank must end, or the others wait for it
        watchdog.report(error)
        os._exit(1)
    processes.leave()


def parse_run(words: tuple[str, ...], flags: dict[str, str]) -> Any:
    """The run that a command line asks for.

    Raises:
        ValueError: a word that is no flag, an unknown flag, recipe or value; the nearest valid name is given.
    """
    from vitkd_ds.config.run import check_run
    from vitkd_ds.data.augment.policy import parse_rand_augment
    from vitkd_ds.recipes import build_run

    _refuse_words(words)
    debug = convert(flags.pop("debug", "false"), bool, "debug")
    run = build_run(flags.pop("recipe", "demo"), debug=debug)
    run = apply_overrides(run, flags)
    check_run(run)
    if run.augment.rand_augment:
        parse_rand_augment(run.augment.rand_augment)
    return run


@SetParseFn(str)
def pack(*words: str, **flags: str) -> None:
    """Write a set of images as a .beton file. Given again after a kill, the same command continues.

    Usage: pack SRC DST [--passthrough] [--max_resolution 500 | --short_side N] [--write_mode jpg|raw|proportion]
    [--quality 90] [--shuffle] [--workers N] [--skip_bad] [--restart] [--labels FILE] [--classes FILE] [--split NAME],
    where SRC is an ImageFolder tree, ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar (--labels: the devkit, or a
    text file), WebDataset shards (a folder, a tar, or a pattern in quotes; --classes names the numbers), or a Hugging
    Face data set (a save_to_disk folder, or a folder of parquet files; --split).
    """
    types = {"labels": str, "classes": str, "split": str, "write_mode": str, "max_resolution": int, "short_side": int}
    types |= {"quality": int, "passthrough": bool, "shuffle": bool, "workers": int, "skip_bad": bool, "restart": bool}
    values = _plain_flags(flags, types)
    src, dst = _words(words, "SRC DST")
    from vitkd_ds.commands.pack import pack as pack_images

    try:
        info = pack_images(src, dst, **values)
    except (OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"stopped before {dst} was complete")
    print(f"{dst}: {info.num_images} images in {len(info.classes)} classes, {info.passthrough} of them as they were")


@SetParseFn(str)
def show(*words: str, **flags: str) -> None:
    """Write a grid of augmented, mixed training images with their labels to a PNG.

    Usage: show DATA [DST] [--recipe NAME] [--KEY=VALUE ...], where DATA is what --data.train takes, DST is show.png if
    not given, and KEY any field of the run, such as augment.rand_augment or seed.
    """
    words = words if len(words) == 2 else (*words, "show.png")
    data, dst = _words(words, "DATA [DST]")
    run = parse_run((), flags | {"data.train": data})
    from vitkd_ds.commands.show import show as show_run

    print(show_run(run, Path(dst)))


@SetParseFn(str)
def evaluate(*words: str, **flags: str) -> None:
    """Evaluate an exported student: top-1 and top-5, and the agreement with a teacher.

    Usage: eval STUDENT [--val FILE] [--teacher MODEL --teacher_checkpoint FILE|hub] [--micro_batch_size 64], where
    STUDENT is a run folder, a checkpoint folder or a student.safetensors; a run folder knows its data and teacher.
    """
    types = {"val": str, "teacher": str, "teacher_checkpoint": str, "micro_batch_size": int}
    values = _plain_flags(flags, types)
    (student,) = _words(words, "STUDENT")
    from vitkd_ds.commands.evaluate import evaluate_exported

    for name, value in evaluate_exported(student, **values).items():
        print(f"{name:12} {value:.4f}" if name == "kl" else f"{name:12} {value:.2f}")


@SetParseFn(str)
def export(*words: str, **flags: str) -> None:
    """Copy a student out of a run: student.safetensors (a plain timm state dict) and student.json.

    Usage: export RUN DST [--which last|best] [--half], where RUN is a run folder or one of its checkpoints and DST a
    new folder; --half stores fp16.
    """
    values = _plain_flags(flags, {"which": str, "half": bool})
    source, destination = _words(words, "RUN DST")
    from vitkd_ds.checkpoint.export import export_student

    print(export_student(source, destination, **values))


@SetParseFn(str)
def doctor(*words: str, **flags: str) -> None:
    """Examine the machine, the data and the models for a run, in under two minutes; exit code 1 if it would fail.

    Usage: doctor [--recipe NAME] [any other option of train], on one node, or under srun on all with the ranks of the
    run. Prints a table of what is ok, what is not, and what to do about it.
    """
    run = parse_run(words, flags)
    from vitkd_ds.commands.doctor.examine import examine
    from vitkd_ds.engine import processes

    if examine(run):
        processes.leave()
    processes.shut_down()
    sys.exit(1)


@SetParseFn(str)
def plan(*words: str, **flags: str) -> None:
    """Predict images/s, hours, memory, loader cores and disk of a recipe on a cluster, each input with its source.

    Usage: plan --recipe NAME [--nodes N] [--gpus G] [--hardware h100] [--KEY=VALUE ...], where --gpus is per node and
    KEY is any field of the run, such as teacher.placement or micro_batch_size_per_gpu.
    """
    _refuse_words(words)
    own = {key: convert(flags.pop(key), int, key) for key in ("nodes", "gpus") if key in flags}
    hardware = flags.pop("hardware", "h100")
    if "recipe" not in flags:
        raise ValueError("plan needs --recipe, found none: name an ImageNet recipe")
    from vitkd_ds.commands.plan.text import plan_text
    from vitkd_ds.recipes import build_run

    run = apply_overrides(build_run(flags.pop("recipe")), flags)
    print(plan_text(run, **({"nodes": 1, "gpus": 8} | own), hardware=hardware))


def _plain_flags(flags: dict[str, str], types: dict[str, Any]) -> dict[str, Any]:
    for key in flags:
        if key not in types:
            raise ValueError(f"--{key} is no option: {nearest(key, types)}")
    return {key: convert(text, types[key], key) for key, text in flags.items()}


def _words(words: tuple[str, ...], names: str) -> tuple[str, ...]:
    if len(words) != len(names.split()):
        raise ValueError(f"the command needs {names}, found {' '.join(words) or 'nothing'}")
    return words


def _refuse_words(words: tuple[str, ...]) -> None:
    if words:
        raise ValueError(f"every argument must be a --flag, found {words[0]!r}: put -- before its name")


COMMANDS = {
    "train": train,
    "pack": pack,
    "show": show,
    "eval": evaluate,
    "export": export,
    "plan": plan,
    "doctor": doctor,
}
"""Of the console script."""
