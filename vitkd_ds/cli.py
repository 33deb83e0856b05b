"""Command line: parse argv, validate every option, and run one command.

The package `fire` splits the command line. By default, `fire` would turn `--workdir 2024_01` into a number, and report
a mistyped flag only after the run. So `fire` is told to pass all values as text, and `vitkd_ds` checks and converts
them. These checks run before torch and deepspeed are imported, because importing them takes seconds.
"""

import inspect
import io
import json
import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import fire
from fire.decorators import SetParseFn

from vitkd_ds import __version__
from vitkd_ds.commands.early import check_export, check_has_images, check_picture, check_recipe, check_student
from vitkd_ds.commands.ending import ending
from vitkd_ds.commands.pack.adopt import adopt, check
from vitkd_ds.commands.pack.folders import find_packed, pack_folders, packed_or_exit
from vitkd_ds.commands.parse import command, parse_run, train_help
from vitkd_ds.commands.plan.hardware import check_hardware
from vitkd_ds.commands.usage import index_text, table_text
from vitkd_ds.config.check import check_workdir
from vitkd_ds.config.overrides import nearest
from vitkd_ds.config.run import as_dict
from vitkd_ds.engine.ds_config import find_ds_config
from vitkd_ds.recipes import RECIPES, build_run
from vitkd_ds.train import console, signals, watchdog

REFUSED = 2
"""Exit code for errors that would recur in a rerun: invalid settings, files or models, or a non-finite loss."""
LAUNCHER_FLAGS = ("local_rank", "local-rank")
"""Flags that DeepSpeed's launcher adds for every rank. They are dropped; the variable LOCAL_RANK has the same value."""


def train_main() -> None:
    """Run the command `train`; entry point of `train.py`."""
    _run("train")


def main() -> None:
    """Run the command named by the first argument; entry point of the console script `vitkd-ds`."""
    _run()


@console.ending_quietly()
def _run(*first: str) -> None:
    # torch reads this at import. By default, idle OpenMP threads spin and take CPU time from decoders and other jobs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.argv[1:] = [word for word in sys.argv[1:] if word.lstrip("-").partition("=")[0] not in LAUNCHER_FLAGS]
    words = ["--help" if word == "-h" else word for word in (*first, *sys.argv[1:])]
    if words[:1] in (["--help"], ["help"]):
        words = [*words[1:2], "--help", *words[2:]]  # `help train optim` means `train --help optim`
    name, *words = words or ["--help"]
    console.install()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names may contain any bytes
    if name == "train":
        signals.listen()  # before the slow imports
    try:
        if name == "--help":
            print(index_text(summaries()))
        elif "--version" in sys.argv[1:2]:
            print(f"vitkd_ds {__version__}")
        elif name not in COMMANDS:
            is_setting = name in as_dict(build_run("demo"))
            near = f"did you mean vitkd-ds train --help {name}?" if is_setting else nearest(name, COMMANDS)
            raise ValueError(f"vitkd-ds has no command {name}: {near}")
        else:
            fire.Fire(SetParseFn(str)(COMMANDS[name]), command=_with_values(words), name=name)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, OSError) else REFUSED)  # an I/O error may be transient


def _with_values(words: list[str]) -> list[str]:
    """Return the words with =True after each --noX that has no value, which fire would read as --X=False."""
    return [
        f"{word}=True" if word.startswith("--no") and "=" not in word and following.startswith("-") else word
        for word, following in zip(words, [*words[1:], "--"])
    ]


@command("train", about=train_help)
def train(*, flags: dict[str, str], print_config: bool = False) -> None:
    """Distil a student from a teacher, or train it without one."""
    if not print_config:
        check_recipe(flags)
    run = parse_run((), flags)
    if print_config:
        if console.is_first_rank():
            print(json.dumps(as_dict(run), indent=2))
        return
    check_workdir(run)
    find_ds_config(run.ds_config)
    console.secure("stdout")
    run = packed_or_exit(run)
    from vitkd_ds.engine.processes import leave
    from vitkd_ds.train.loop import train as train_run
    from vitkd_ds.train.step import NonFiniteError

    try:
        is_done = train_run(run) is not None
    except (ValueError, NonFiniteError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(REFUSED)  # not sys.exit: see `leave`
    except BaseException as error:  # of any kind: this rank must exit, or the others wait for it
        watchdog.report(error)
        os._exit(1)
    if is_done and console.is_first_rank():
        with suppress(OSError, ValueError):  # the run is finished, even if its files cannot be read now
            print(ending(run.workdir), file=sys.stderr)
    leave()


@command("recipes")
def recipes() -> None:
    """List the recipes, each with a one-line description."""
    print(table_text({name: (inspect.getdoc(recipe) or "").splitlines()[0] for name, recipe in RECIPES.items()}))


@command("pack")
def pack(src: str, dst: str, **options: Any) -> None:
    """Pack images into a .beton file."""
    from vitkd_ds.commands.pack import pack as pack_images
    from vitkd_ds.commands.pack.writer import DoesNotDecode

    try:
        info = pack_images(src, dst, **options)
    except DoesNotDecode as error:
        given = [f"--{key}" if value is True else f"--{key}={value}" for key, value in options.items()]
        command = shlex.join(["vitkd-ds", "pack", src, dst, *(word for word in given if word != "--skip_bad=False")])
        raise ValueError(f"{error}\nThe command that skips such files: {command} --skip_bad") from error
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"stopped before {dst} was complete. Rerun the same command to continue.")
    classes = f"in {len(info.classes)} classes" if info.classes else "without labels"
    print(f"{dst}: {info.num_images} images {classes}, {info.passthrough} of them stored unchanged")


@command("show")
def show(data: str, dst: str = "show.png", *, flags: dict[str, str]) -> None:
    """Write a PNG with augmented training images and their labels."""
    flags = {"recipe": "demo" if data == "demo" else "images"} | flags
    check_picture(Path(dst))
    if flags.get("data.backend", build_run(flags["recipe"]).data.backend) == "ffcv":
        data = find_packed("DATA", data)
    run = parse_run((), flags | {"data.train": data, "data.val": data}, trains=False)
    from vitkd_ds.commands.show import show as show_run

    print(show_run(run, Path(dst)))


@command("eval")
def evaluate(student: str, **options: Any) -> None:
    """Evaluate a student: top-1, top-5 and agreement with a teacher."""
    val = options.get("val", "")
    check_student(student, (val, options.get("train", "")), options.get("teacher", ""))
    if not val:
        check_has_images(student)
    from vitkd_ds.commands.evaluate import evaluate_exported
    from vitkd_ds.config.metrics import digits_of

    for name, value in evaluate_exported(student, **options).items():
        print(f"{name:12} {value:.{digits_of(name)}f}")


@command("compare")
def compare(*runs: str, **options: Any) -> None:
    """Compare runs: accuracy, size, speed, and differences over seeds."""
    from vitkd_ds.commands.compare import compare as compare_runs

    print(compare_runs(*runs, **options))


@command("report")
def report(*runs: str, **options: Any) -> None:
    """Write an HTML report on a run: curves, classes and images."""
    from vitkd_ds.commands.report import report as write_report

    path = write_report(*runs, **options)
    print(path)
    print(f"wrote the report; open it in a browser: {Path(path).resolve().as_uri()}", file=sys.stderr)


@command("watch")
def watch(run: str) -> None:
    """Show the progress of a run from its folder."""
    from vitkd_ds.commands.watch import watch as watch_run

    with suppress(KeyboardInterrupt):
        watch_run(run)
        print(ending(run))


@command("sweep")
def sweep_seeds(
    *more: str, flags: dict[str, str], recipes: str = "", seeds: int = 5, jobs: int = 1, list: bool = False
) -> None:
    """Train recipes and settings over several seeds and compare them."""
    from vitkd_ds.commands.sweep import commands, sweep
    from vitkd_ds.commands.sweep.members import members_of

    names = [name for text in (recipes, *more) for name in text.split(",") if name]
    runs = members_of(names, seeds, Path(flags.pop("workdir", "runs/sweep")), flags)
    print(commands(runs) if list else sweep(runs, jobs=jobs))


@command("export")
def export(source: str, destination: str, **options: Any) -> None:
    """Export a student to timm, ONNX, torch.export or Hugging Face."""
    check_export(source, destination, **{key: options[key] for key in ("format", "val", "push") if key in options})
    from vitkd_ds.commands.export import export as export_student

    print(export_student(source, destination, **options))


@command("predict")
def predict(student: str, *images: str, **options: Any) -> None:
    """Predict class probabilities or pooled features of images."""
    check_student(student, images)
    from vitkd_ds.commands.predict import predict as predict_images

    for line in predict_images(student, images, **options):
        print(line)


@command("plan")
def plan(*, flags: dict[str, str], nodes: int = 1, gpus: int | None = None, hardware: str = "h100") -> None:
    """Predict speed, time, memory and disk use of a run on a cluster."""
    if "recipe" not in flags:
        raise ValueError("plan needs --recipe. Run `vitkd-ds recipes` for a list.")
    check_hardware(hardware)
    if "data.train" in flags:
        flags.setdefault("data.val", flags["data.train"])  # not read, but the recipe `images` has no default
    run = parse_run((), flags)
    from vitkd_ds.commands.plan.text import plan_text

    print(plan_text(run, nodes=nodes, gpus=gpus, hardware=hardware))


@command("doctor")
def doctor(*, flags: dict[str, str]) -> None:
    """Check machine, data and models before a run, in under two minutes."""
    check_recipe(flags)
    run = pack_folders(parse_run((), flags), may_pack=False)
    from vitkd_ds.commands.doctor import examine
    from vitkd_ds.engine.processes import leave, shut_down

    if examine(run):
        leave()
    shut_down()
    sys.exit(1)


@command("completion")
def completion(shell: str) -> None:
    """Print the shell script that completes commands and options."""
    from vitkd_ds.commands.completion import script

    print(script(shell, summaries()))


def summaries() -> dict[str, str]:
    """Return the first line of each command's docstring, by the command's name."""
    return {name: (inspect.getdoc(each) or "").splitlines()[0] for name, each in COMMANDS.items()}


COMMANDS = {"train": train, "recipes": recipes, "pack": pack, "show": show, "eval": evaluate, "export": export}
COMMANDS |= {"predict": predict, "compare": compare, "report": report, "watch": watch, "sweep": sweep_seeds}
COMMANDS |= {"plan": plan, "doctor": doctor, "check": command("check")(check), "adopt": command("adopt")(adopt)}
COMMANDS |= {"completion": completion}
