"""The door: turn argv into one command whose every option is known to be valid.

fire splits the command line, but would turn `--workdir 2024_01` into a number, and complain about a mistyped flag only
after the run. So all values stay text until they are checked and converted here, before the slow imports: torch and
deepspeed take seconds.
"""

import inspect
import io
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import fire
from fire.decorators import SetParseFn

from vitkd_ds.commands.early import check_export, check_picture, check_student
from vitkd_ds.commands.ending import ending
from vitkd_ds.commands.pack import OPTIONS as PACK_OPTIONS
from vitkd_ds.commands.pack.adopt import adopt, check
from vitkd_ds.commands.pack.folders import pack_folders, packed_or_exit
from vitkd_ds.commands.parse import command, parse_run, train_help
from vitkd_ds.commands.plan.hardware import check_hardware
from vitkd_ds.config.check import check_workdir
from vitkd_ds.config.overrides import nearest
from vitkd_ds.config.run import as_dict
from vitkd_ds.engine.ds_config import find_ds_config
from vitkd_ds.recipes import RECIPES
from vitkd_ds.train import console, signals, watchdog

REFUSED = 2
"""Exit code where settings, files or models do not fit, or a loss is not finite, as it would at the next start."""
LAUNCHER_FLAGS = ("local_rank", "local-rank")
"""Flags that DeepSpeed's launcher appends for every rank; the environment says the same."""


def train_main() -> None:
    """`train.py`: the command `train`."""
    _run("train")


def main() -> None:
    """`vitkd-ds`: the console script."""
    _run()


@console.ending_quietly()
def _run(*first: str) -> None:
    # Read when torch is imported. Waiting OpenMP threads would spin, and steal the cores from decoders and neighbours.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.argv[1:] = [word for word in sys.argv[1:] if word.lstrip("-").partition("=")[0] not in LAUNCHER_FLAGS]
    words = ["--help" if word == "-h" else word for word in (*first, *sys.argv[1:])]
    if words[:1] == ["--help"]:
        words = [*words[1:], "--help"]  # `--help train` asks what `train --help` asks
    name, *words = words or ["--help"]
    console.install()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name may be any bytes, and is printed as it is
    if name == "train":
        signals.listen()  # before the slow imports
    try:
        if name == "--help":
            print("\n\n".join(f"{name}: {inspect.getdoc(each)}" for name, each in COMMANDS.items()))
        elif name not in COMMANDS:
            raise ValueError(f"vitkd-ds {name} is no command: {nearest(name, COMMANDS)}")
        else:
            fire.Fire(SetParseFn(str)(COMMANDS[name]), command=words, name=name)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, OSError) else REFUSED)  # what cannot be read now may be at another start


@command(takes_run=True, about=lambda flags: train_help(flags, inspect.getdoc(train)), print_config=bool)
def train(*, flags: dict[str, str], print_config: bool = False) -> None:
    """Distil (or plainly train) a student.

    Usage: train [--recipe NAME|PATH] [--ds_config FILE] [--workdir DIR] [--resume auto|none|PATH] [--extend]
    [--data.train PATH --data.val PATH] [--teacher none | --teacher.checkpoint PATH|hub] [--teacher.placement
    shard|replica|offload] [--compile] [--debug] [--KEY=VALUE ...], where KEY is any field of the run, such as optim.lr
    or losses.nkd.weight. --help lists the fields, --help GROUP those of one group, such as optim.

    --print_config prints the resolved run as JSON and ends. --recipe takes it back from a file, as it takes the
    config.json of a run folder, or the folder: with the stored workdir the command continues that run, with --workdir
    NEW it trains the run again from its beginning. Relative paths in it count from the current folder.
    """
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
        os._exit(REFUSED)  # not sys.exit, see `leave`
    except BaseException as error:  # whatever it is: this rank must end, or the others wait for it
        watchdog.report(error)
        os._exit(1)
    if is_done and console.is_first_rank():
        with suppress(OSError, ValueError):  # the run is finished, whatever may not be read again now
            print(ending(run.workdir), file=sys.stderr)
    leave()


@command()
def recipes() -> None:
    """List the recipes, each with what it trains."""
    for name, recipe in RECIPES.items():
        print(f"{name:{max(map(len, RECIPES))}}  {recipe.__doc__.splitlines()[0]}")


@command("SRC DST", **PACK_OPTIONS)
def pack(src: str, dst: str, **options: Any) -> None:
    """Write a set of images as a .beton file. Given again after a kill, the same command continues.

    Usage: pack SRC DST [--passthrough [--restart_markers]] [--max_resolution 500 | --short_side N]
    [--write_mode jpg|raw|proportion] [--quality 90] [--shuffle] [--workers N] [--skip_bad] [--restart]
    [--labels FILE|none] [--classes FILE] [--split NAME], where SRC is an ImageFolder tree, ILSVRC2012_img_train.tar,
    ILSVRC2012_img_val.tar (--labels: the devkit, or a text file), WebDataset tars (a folder, a tar, or a pattern in
    quotes), a Hugging Face data set (a save_to_disk folder, or a folder of parquet files; --split), or with --labels
    none the images in any folder, without classes. --classes, for an ImageFolder tree or WebDataset tars, is a text
    file with a class name per line in label order, or another .beton; classes without images may be among them.
    """
    from vitkd_ds.commands.pack import pack as pack_images

    try:
        info = pack_images(src, dst, **options)
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"stopped before {dst} was complete")
    classes = f"in {len(info.classes)} classes" if info.classes else "without labels"
    print(f"{dst}: {info.num_images} images {classes}, {info.passthrough} of them as they were")


@command("DATA [DST]", takes_run=True)
def show(data: str, dst: str = "show.png", *, flags: dict[str, str]) -> None:
    """Write a grid of augmented, mixed training images with their labels to a PNG.

    Usage: show DATA [DST] [--recipe NAME|PATH] [--KEY=VALUE ...], where DATA is what --data.train takes (of
    a folder that is not packed yet, the command that packs it is told), DST is show.png if not given, and KEY any field
    of the run (`train --help`), such as augment.rand_augment or seed. Without --recipe it is `images`, or `demo` for
    the demo's data.
    """
    flags = {"recipe": "demo" if data == "demo" else "images"} | flags | {"data.train": data, "data.val": data}
    if not any(key.startswith(("teacher", "losses")) for key in flags):
        flags["teacher"] = "none"  # no picture depends on it, and `images` would ask for one
    check_picture(Path(dst))
    run = pack_folders(parse_run((), flags), may_pack=False)
    from vitkd_ds.commands.show import show as show_run

    print(show_run(run, Path(dst)))


@command("STUDENT", val=str, teacher=str, teacher_checkpoint=str, micro_batch_size=int, knn=bool, probe=bool, train=str)
def evaluate(student: str, **options: Any) -> None:
    """Evaluate an exported student: top-1 and top-5, and the agreement with a teacher; or its features alone.

    Usage: eval STUDENT [--val PATH] [--teacher RUN | --teacher MODEL --teacher_checkpoint PATH|hub]
    [--micro_batch_size 64] [--knn] [--probe] [--train PATH], where STUDENT and RUN are each a run folder, a checkpoint
    or an exported student, and PATH a .beton, demo, or a folder that train or pack has packed. A run folder knows its
    data and teacher. --knn and --probe classify val by the features of train: 20 neighbours, and a linear probe.
    """
    check_student(student, (options.get("val", ""), options.get("train", "")), options.get("teacher", ""))
    from vitkd_ds.commands.evaluate import evaluate_exported
    from vitkd_ds.config.metrics import digits_of

    for name, value in evaluate_exported(student, **options).items():
        print(f"{name:12} {value:.{digits_of(name)}f}")


@command("RUN [RUN ...]", csv=bool, plot=str, speed=bool)
def compare(*runs: str, **options: Any) -> None:
    """Compare runs, finished or still going: accuracy, size and speed, and differences over the seeds that they share.

    Usage: compare RUN [RUN ...] [--csv] [--plot FILE.png] [--speed false], where RUN is a run folder. Options come
    after the folders, as --csv would take the next word for its value. The speed of student and teacher at inference is
    measured here, on random images, unless --speed is false. --csv prints the rows as CSV. --plot draws validation
    top-1 and training loss over the epochs.
    """
    from vitkd_ds.commands.compare import compare as compare_runs

    print(compare_runs(*runs, **options))


@command("RUN [RUN ...]", out=str)
def report(*runs: str, **options: Any) -> None:
    """Write a report on a run, finished or still going, as one HTML file: curves, classes, images, beside other runs.

    Usage: report RUN [RUN ...] [--out FILE.html], where RUN is a run folder. The report is on the first, with the
    others beside it. FILE.html is report.html in its folder if not given. Nothing is trained or evaluated again.
    """
    from vitkd_ds.commands.report import report as write_report

    path = write_report(*runs, **options)
    print(path)
    print(f"wrote the report; open it in a browser: {Path(path).resolve().as_uri()}", file=sys.stderr)


@command("RUN")
def watch(run: str) -> None:
    """Watch a run that trains elsewhere, such as in a job: progress, evaluations, stops and end, from its folder.

    Usage: watch RUN. It ends with the run, or by Ctrl-C, which does not touch the run.
    """
    from vitkd_ds.commands.watch import watch as watch_run

    with suppress(KeyboardInterrupt):
        watch_run(run)
        print(ending(run))


@command("[RECIPE ...]", takes_run=True, recipes=str, seeds=int, jobs=int, list=bool)
def sweep_seeds(
    *more: str, flags: dict[str, str], recipes: str = "", seeds: int = 5, jobs: int = 1, list: bool = False
) -> None:
    """Compare recipes and settings over seeds: train what is missing, then one table, with paired differences.

    Usage: sweep --recipes A B C [--seeds 5] [--workdir runs/sweep] [--jobs N] [--KEY=VALUE ...] [--grid.KEY=V1,V2 ...]
    [--list], where A, B and C are what train's --recipe takes, KEY is any field of the run (`train --help`), and the
    runs are every recipe with every combination of the grid's values, with seeds 0, 1 and so on. Differences are to the
    first. Given again, the same command goes on; what is finished is never trained again. --jobs trains N at a time,
    each one process with its share of the CPUs and one GPU. --list prints the options of each run, a line a run.
    """
    from vitkd_ds.commands.sweep import commands, sweep
    from vitkd_ds.commands.sweep.members import members_of

    names = [name for text in (recipes, *more) for name in text.split(",") if name]
    runs = members_of(names, seeds, Path(flags.pop("workdir", "runs/sweep")), flags)
    print(commands(runs) if list else sweep(runs, jobs=jobs))


@command("RUN DST", format=str, which=str, half=bool, val=str, push=str)
def export(source: str, destination: str, **options: Any) -> None:
    """Copy a student out of a run, or write it as a graph or for the Hugging Face hub.

    Usage: export RUN DST [--format timm|onnx|torch_export|hf] [--which last|best] [--half] [--val PATH]
    [--push USER/NAME], where RUN is a run folder, one of its checkpoints or an export, and DST a new folder. timm, the
    default, writes student.safetensors (a plain timm state dict) and student.json; onnx model.onnx and torch_export
    model.pt2, each with its preprocessing inside and compared with torch on 16 images of --val, which a run knows; hf a
    folder for timm.create_model("local-dir:DST", pretrained=True) with a model card, which --push uploads to a new
    private repository. --half stores fp16. Options come after the folders, as --half would take the next word for its
    value.
    """
    check_export(source, destination, options.get("format", "timm"))
    from vitkd_ds.commands.export import export as export_student

    print(export_student(source, destination, **options))


@command("STUDENT IMAGE [IMAGE ...]", top=int, features=bool)
def predict(student: str, *images: str, **options: Any) -> None:
    """Say of images what a student sees: its likeliest classes with probabilities, or features where it has no classes.

    Usage: predict STUDENT IMAGE [IMAGE ...] [--top 5] [--features], where STUDENT is a run folder, a checkpoint or an
    exported student, and IMAGE a file, or a folder with images at any depth. Images are cut and normalised as in
    evaluation. With a folder, and for features, the output is CSV, with a line per image. --features asks a student
    with classes for its pooled features. Options come after the images, as --features would take the next word for its
    value.
    """
    check_student(student, images)
    from vitkd_ds.commands.predict import predict as predict_images

    for line in predict_images(student, images, **options):
        print(line)


@command(takes_run=True, nodes=int, gpus=int, hardware=str)
def plan(*, flags: dict[str, str], nodes: int = 1, gpus: int | None = None, hardware: str = "h100") -> None:
    """Predict images/s, hours, memory, loader cores and disk of a recipe on a cluster, each input with its source.

    Usage: plan --recipe NAME|PATH [--nodes N] [--gpus G] [--hardware h100|cpu] [--KEY=VALUE ...], --gpus is per node
    and KEY is any field of the run (`train --help`), such as teacher.placement or micro_batch_size_per_gpu. Images are
    counted where --data.train is a .beton; without it the numbers are those of ImageNet. Models that were not measured
    at 224 pixels, as the ImageNet recipes' were, run at an assumed part of the peak.
    """
    if "recipe" not in flags:
        raise ValueError("plan needs --recipe, found none: name one of a pair")
    check_hardware(hardware)
    run = parse_run((), flags)
    from vitkd_ds.commands.plan.text import plan_text

    print(plan_text(run, nodes=nodes, gpus=gpus, hardware=hardware))


@command(takes_run=True)
def doctor(*, flags: dict[str, str]) -> None:
    """Examine the machine, the data and the models for a run, in under two minutes; exit code 1 if it would fail.

    Usage: doctor [--recipe NAME|PATH] [--KEY=VALUE ...], where KEY is any field of the run, on one node, or under srun
    on all with the ranks of the run. Prints a table of what is ok, what is not, and what to do about it.
    """
    run = pack_folders(parse_run((), flags), may_pack=False)
    from vitkd_ds.commands.doctor import examine
    from vitkd_ds.engine.processes import leave, shut_down

    if examine(run):
        leave()
    shut_down()
    sys.exit(1)


COMMANDS = {"train": train, "recipes": recipes, "pack": pack, "show": show, "eval": evaluate, "export": export}
COMMANDS |= {"predict": predict, "compare": compare, "report": report, "watch": watch, "sweep": sweep_seeds}
COMMANDS |= {"plan": plan, "doctor": doctor, "check": command("FILE")(check)}
COMMANDS |= {"adopt": command("FILE", classes=str, shuffled=bool)(adopt)}
