"""The door: turn argv into one command whose every option is known to be valid.

fire splits the command line, but would turn `--workdir 2024_01` into a number, and complain about a mistyped flag only
after the run. So all values stay text until they are checked and converted here, before the slow imports: torch and
deepspeed take seconds.
"""

import inspect
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Callable

import fire
from fire.decorators import SetParseFn

from vitkd_ds.commands.pack.folders import pack_folders
from vitkd_ds.commands.parse import check_words, parse_run
from vitkd_ds.config.help import field_help
from vitkd_ds.config.overrides import convert, nearest
from vitkd_ds.config.run import Run, as_dict
from vitkd_ds.recipes import RECIPES, build_run
from vitkd_ds.train import console, signals, watchdog

REFUSED = 2
"""Exit code where settings, files or models do not fit: the same command would end the same way again."""

LAUNCHER_FLAGS = ("local_rank", "local-rank")
"""Flags that DeepSpeed's launcher appends for every rank; the environment says the same."""


def train_main() -> None:
    """`train.py`: the command `train`."""
    _run("train")


def main() -> None:
    """`vitkd-ds`: the console script."""
    _run()


def _run(*command: str) -> None:
    # Read when torch is imported. Waiting OpenMP threads would spin, and steal the cores from decoders and neighbours.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.argv[1:] = [word for word in sys.argv[1:] if word.lstrip("-").partition("=")[0] not in LAUNCHER_FLAGS]
    words = ["--help" if word == "-h" else word for word in (*command, *sys.argv[1:])]
    if words[:1] == ["--help"]:
        words = [*words[1:], "--help"]  # `--help train` asks what `train --help` asks
    name, *words = words or ["--help"]
    if name == "train":
        signals.listen()  # before the slow imports
    console.install()
    try:
        if name == "--help":
            print("\n\n".join(f"{name}: {inspect.getdoc(command)}" for name, command in COMMANDS.items()))
        elif name not in COMMANDS:
            raise ValueError(f"vitkd-ds {name} is no command: {nearest(name, COMMANDS)}")
        else:
            fire.Fire(COMMANDS[name], command=words, name=name)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(REFUSED)


def _command(
    words: str = "", *, takes_run: bool = False, about: Callable[[dict[str, str]], str] | None = None, **options: type
) -> Callable[..., Any]:
    """Make a function a command.

    It is called with its `words`, of which those in brackets may be left out and "..." at the end is any number more,
    and with those of its `options`, given with their types, that it got; with `takes_run` also with all other `flags`,
    for `parse_run`. `about` makes the text of --help from the flags; without it the docstring is the text.
    """

    def make(function: Callable[..., None]) -> Callable[..., None]:
        @SetParseFn(str)
        def checked(*given: str, **flags: str) -> None:
            if "help" in flags:
                print(about(flags) if about else inspect.getdoc(function))
                return
            check_words(given, words)
            own = {key: convert(flags.pop(key), options[key], key) for key in options if key in flags}
            if flags and not takes_run:
                key = next(iter(flags))
                raise ValueError(f"--{key} is no option: {nearest(key, options) if options else 'there are none'}")
            function(*given, **own, **({"flags": flags} if takes_run else {}))

        checked.__doc__ = function.__doc__
        return checked

    return make


def _help_on_train(flags: dict[str, str]) -> str:
    """Describe train and every field of a run, or the group or field that --help names."""
    recipe, topic = flags.get("recipe", "demo"), flags["help"]
    topic = "" if topic == "True" else topic  # what fire makes of a flag without a value
    about = "" if topic else f"{inspect.getdoc(train)}\n\n"
    fields = field_help(build_run(recipe), topic, width=shutil.get_terminal_size().columns)
    return f"{about}Defaults are those of --recipe {recipe}.\n\n{fields}"


@_command(takes_run=True, about=_help_on_train, print_config=bool)
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
    run = _with_packed_folders(run)
    from vitkd_ds.engine.processes import leave
    from vitkd_ds.train.loop import train as train_run

    try:
        train_run(run)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(REFUSED)  # not sys.exit, see `leave`
    except BaseException as error:  # whatever it is: this rank must end, or the others wait for it
        watchdog.report(error)
        os._exit(1)
    leave()


def _with_packed_folders(run: Run) -> Run:
    """The run that reads .betons where its data are class folders, which are packed at their first use."""
    try:
        return pack_folders(run)
    except (OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("stopped before the images were packed; the same command goes on", file=sys.stderr)
        sys.exit()


@_command()
def recipes() -> None:
    """List the recipes, each with what it trains."""
    for name, recipe in RECIPES.items():
        print(f"{name:{max(map(len, RECIPES))}}  {recipe.__doc__.splitlines()[0]}")


@_command(
    "SRC DST", passthrough=bool, max_resolution=int, short_side=int, write_mode=str, quality=int, shuffle=bool,
    workers=int, skip_bad=bool, restart=bool, labels=str, classes=str, split=str,
)  # fmt: skip
def pack(src: str, dst: str, **options: Any) -> None:
    """Write a set of images as a .beton file. Given again after a kill, the same command continues.

    Usage: pack SRC DST [--passthrough] [--max_resolution 500 | --short_side N] [--write_mode jpg|raw|proportion]
    [--quality 90] [--shuffle] [--workers N] [--skip_bad] [--restart] [--labels FILE] [--classes FILE] [--split NAME],
    where SRC is an ImageFolder tree, ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar (--labels: the devkit, or a
    text file), WebDataset tars (a folder, a tar, or a pattern in quotes), or a Hugging Face data set (a save_to_disk
    folder, or a folder of parquet files; --split). --classes, for an ImageFolder tree or WebDataset tars, is a text
    file with a class name per line in label order, or another .beton; classes without images may be among them.
    """
    from vitkd_ds.commands.pack import pack as pack_images

    try:
        info = pack_images(src, dst, **options)
    except (OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"stopped before {dst} was complete")
    print(f"{dst}: {info.num_images} images in {len(info.classes)} classes, {info.passthrough} of them as they were")


@_command("DATA [DST]", takes_run=True)
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
    run = pack_folders(parse_run((), flags), may_pack=False)
    from vitkd_ds.commands.show import show as show_run

    print(show_run(run, Path(dst)))


@_command("STUDENT", val=str, teacher=str, teacher_checkpoint=str, micro_batch_size=int)
def evaluate(student: str, **options: Any) -> None:
    """Evaluate an exported student: top-1 and top-5, and the agreement with a teacher.

    Usage: eval STUDENT [--val PATH] [--teacher RUN | --teacher MODEL --teacher_checkpoint PATH|hub]
    [--micro_batch_size 64], where STUDENT and RUN are each a run folder, a checkpoint or an exported student, and the
    PATH of --val a .beton, or a folder that train or pack has packed. A run folder knows its data and teacher.
    """
    from vitkd_ds.commands.evaluate import evaluate_exported

    for name, value in evaluate_exported(student, **options).items():
        print(f"{name:12} {value:.{4 if name == 'kl' else 2}f}")


@_command("RUN [RUN ...]", csv=bool, plot=str, speed=bool)
def compare(*runs: str, **options: Any) -> None:
    """Compare runs, finished or still going: accuracy, size and speed, and differences over the seeds that they share.

    Usage: compare RUN [RUN ...] [--csv] [--plot FILE.png] [--speed false], where RUN is a run folder. Options come
    after the folders, as --csv would take the next word for its value. The speed of student and teacher at inference is
    measured here, on random images, unless --speed is false. --csv prints the rows as CSV. --plot draws validation
    top-1 and training loss over the epochs.
    """
    from vitkd_ds.commands.compare import compare as compare_runs

    print(compare_runs(*runs, **options))


@_command("RUN DST", which=str, half=bool)
def export(source: str, destination: str, **options: Any) -> None:
    """Copy a student out of a run: student.safetensors (a plain timm state dict) and student.json.

    Usage: export RUN DST [--which last|best] [--half], where RUN is a run folder or one of its checkpoints and DST a
    new folder; --half stores fp16. Options come after the folders, as --half would take the next word for its value.
    """
    from vitkd_ds.checkpoint.export import export_student

    print(export_student(source, destination, **options))


@_command(takes_run=True, nodes=int, gpus=int, hardware=str)
def plan(*, flags: dict[str, str], nodes: int = 1, gpus: int = 8, hardware: str = "h100") -> None:
    """Predict images/s, hours, memory, loader cores and disk of a recipe on a cluster, each input with its source.

    Usage: plan --recipe NAME|PATH [--nodes N] [--gpus G] [--hardware h100] [--KEY=VALUE ...], where --gpus is per node
    and KEY is any field of the run (`train --help`), such as teacher.placement or micro_batch_size_per_gpu. Images are
    counted where --data.train is a .beton; without it the numbers are those of ImageNet. Speeds are those of the
    ImageNet recipes' pairs at 224 pixels: for images of your own name such a recipe, not `images`.
    """
    if "recipe" not in flags:
        raise ValueError("plan needs --recipe, found none: name an ImageNet recipe")
    run = parse_run((), flags)
    from vitkd_ds.commands.plan.text import plan_text

    print(plan_text(run, nodes=nodes, gpus=gpus, hardware=hardware))


@_command(takes_run=True)
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
COMMANDS |= {"compare": compare, "plan": plan, "doctor": doctor}
