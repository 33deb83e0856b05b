"""Table of the commands: groups, arguments, options and examples; source of checks, help and completion."""

from typing import NamedTuple


class Option(NamedTuple):
    """An option of a command."""

    kind: type
    value: str
    """Placeholder, or the possible values separated by |; "" for a switch."""
    about: str


class Page(NamedTuple):
    """Help page of a command, without its summary, which is the docstring of its function."""

    words: dict[str, str]
    """Positional argument -> meaning. Brackets mark an optional one; "..." allows any number."""
    options: dict[str, Option]
    examples: tuple[str, str]
    more: str = ""
    """Text after the usage line."""
    takes_run: bool = False
    """Whether every setting of a run is also an option."""


STUDENT = "A run folder, a checkpoint in it, or an exported student."
RUNS = {"RUN": "A run folder, finished or still training.", "[RUN ...]": "More run folders."}
RECIPE = Option(str, "NAME|PATH", "A recipe (vitkd-ds recipes), or a run folder or config.json that stores a run.")

GROUPS = {
    "Start": ("recipes", "doctor", "plan", "completion"),
    "Images": ("pack", "show", "check", "adopt"),
    "Train": ("train", "sweep", "watch"),
    "Results": ("eval", "compare", "report"),
    "Use": ("predict", "export"),
}

PAGES = {
    "recipes": Page({}, {}, ("vitkd-ds recipes", "vitkd-ds recipes | grep dinov3")),
    "doctor": Page(
        {},
        {"recipe": RECIPE},
        ("vitkd-ds doctor --recipe demo", "srun vitkd-ds doctor --recipe deit_tiny_from_deit3_small --debug"),
        "Checks this node, or under srun all nodes with the ranks of the run, and prints a table of problems and "
        "remedies. The exit code is 1 if the run would fail.",
        takes_run=True,
    ),
    "plan": Page(
        {},
        {
            "recipe": RECIPE,
            "nodes": Option(int, "N", "Number of nodes; 1 if omitted."),
            "gpus": Option(int, "N", "GPUs per node, 8 if omitted; with --hardware cpu processes, 1 if omitted."),
            "hardware": Option(str, "h100|h200|a100|rtx4090|cpu", "Kind of GPU, or this CPU; h100 if omitted."),
        },
        (
            "vitkd-ds plan --recipe deit_tiny_from_deit3_small --nodes 2",
            "vitkd-ds plan --recipe vit_small_from_dinov3_large --gpus 4 --hardware a100 --epochs 100",
        ),
        "Images are counted if --data.train is a .beton; otherwise the numbers are for ImageNet. A model that was not "
        "measured at 224 px is assumed to reach a fixed fraction of peak FLOP/s.",
        takes_run=True,
    ),
    "completion": Page(
        {"SHELL": "bash, zsh or fish."}, {}, ('eval "$(vitkd-ds completion bash)"', "vitkd-ds completion fish | source")
    ),
    "pack": Page(
        {
            "SRC": "An ImageFolder tree, ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar with --labels, WebDataset "
            "tars (a folder, a tar, or a pattern in quotes), a Hugging Face data set (a save_to_disk folder or parquet "
            "files), or with --labels none the images in any folder.",
            "DST": "The new .beton file.",
        },
        {
            "passthrough": Option(bool, "", "Store JPEGs that need no scaling as they are; encode only the others."),
            "restart_markers": Option(
                bool, "", "With --passthrough, add restart markers to JPEGs: same pixels, faster decoding."
            ),
            "max_resolution": Option(
                int, "N", "Longest side in pixels, 0 for any. 500 if omitted; 0 with --passthrough or --short_side."
            ),
            "short_side": Option(int, "N", "Shorter side in pixels, in place of --max_resolution; 0 if omitted: off."),
            "write_mode": Option(
                str, "jpg|raw|proportion", "JPEGs (jpg, the default), pixels (raw: fast and large), or half of each."
            ),
            "quality": Option(int, "N", "Quality of newly encoded JPEGs, 1 to 100; 90 if omitted."),
            "shuffle": Option(bool, "", "Store the images in a random order instead of by class."),
            "workers": Option(int, "N", "Number of processes; all available CPUs if omitted."),
            "skip_bad": Option(bool, "", "Skip images that cannot be decoded, with a warning, instead of stopping."),
            "restart": Option(bool, "", "Start over instead of continuing an interrupted pack."),
            "labels": Option(
                str, "FILE|none", "Labels of ImageNet's validation tar (the devkit or a text file); none: no labels."
            ),
            "classes": Option(
                str,
                "FILE",
                "Class names in label order, one per line, or a .beton with them. Some may lack images.",
            ),
            "split": Option(str, "NAME", "Split of a Hugging Face data set that has several."),
        },
        (
            "vitkd-ds pack photos/train photos/train.beton",
            "vitkd-ds pack photos/val photos/val.beton --classes photos/train.beton --passthrough",
        ),
        "After an interruption, the same command continues.",
    ),
    "show": Page(
        {"DATA": "A .beton, a packed folder, or demo.", "[DST]": "The PNG to write; show.png if omitted."},
        {"recipe": RECIPE._replace(about=f"{RECIPE.about} images if omitted, demo for the demo's data.")},
        ("vitkd-ds show demo", "vitkd-ds show photos/train.beton look.png --data.image_size 224 --seed 3"),
        takes_run=True,
    ),
    "check": Page(
        {"FILE": "A .beton with its side file next to it."},
        {},
        ("vitkd-ds check photos/train.beton", "srun --ntasks-per-node=1 vitkd-ds check /scratch/train.beton"),
        "Use it after copying a file. The exit code is 2 if an image is damaged.",
    ),
    "adopt": Page(
        {"FILE": "A .beton written by FFCV, with the fields image (RGBImageField) and label (IntField)."},
        {
            "classes": Option(str, "FILE", "Class names in label order, one per line, or another .beton. Required."),
            "shuffled": Option(bool, "", "The images lie in a random order, as data.order=quasi_random needs."),
        },
        (
            "vitkd-ds adopt train.beton --classes classes.txt",
            "vitkd-ds adopt val.beton --classes train.beton --shuffled",
        ),
        "The file itself stays unchanged.",
    ),
    "train": Page(
        {},
        {
            "print_config": Option(bool, "", "Print the resolved run as JSON and exit; --recipe FILE reads it back."),
            "teacher": Option(str, "none", "Train any recipe without a teacher."),
            "help": Option(str, "GROUP", "Describe the settings of one group, such as optim, or one setting."),
        },
        (
            "vitkd-ds train --recipe images --teacher none --data.train photos/train --data.val photos/val",
            "vitkd-ds train --recipe demo --optim.lr 1e-3 --workdir runs/demo",
        ),
        "Rerun the same command to resume. --recipe RUN continues the run in that folder; with --workdir NEW it trains "
        "that run again from the start. Relative paths start at the current folder.",
        takes_run=True,
    ),
    "sweep": Page(
        {"[RECIPE ...]": "More recipes, as in --recipes A B C."},
        {
            "recipes": Option(str, "NAME,...", "Recipes to compare, each a name or path as for train. Required."),
            "seeds": Option(int, "N", "Seeds per recipe, from 0 on; 5 if omitted."),
            "workdir": Option(str, "DIR", "Folder of all runs; runs/sweep if omitted."),
            "jobs": Option(int, "N", "Runs at a time, each with its share of CPUs and one GPU; 1 if omitted."),
            "grid.KEY": Option(str, "V1,V2,...", "Values of one setting; every combination is trained."),
            "list": Option(bool, "", "Print the options of each run and exit."),
        },
        (
            "vitkd-ds sweep --recipes demo_plain,demo --seeds 3 --workdir runs/demo_sweep",
            "vitkd-ds sweep --recipes demo --seeds 2 --grid.optim.lr 1e-3,2e-3 --list",
        ),
        "Differences are to the first recipe. Rerun the same command to continue; finished runs are kept.",
        takes_run=True,
    ),
    "watch": Page(
        {"RUN": "A run folder."},
        {},
        ("vitkd-ds watch runs/demo", "vitkd-ds watch /shared/runs/tiny"),
        "It ends with the run, or on Ctrl-C, which leaves the run alone.",
    ),
    "eval": Page(
        {"STUDENT": f"{STUDENT} A run folder knows its data and teacher."},
        {
            "val": Option(str, "PATH", "Validation images: .beton, packed folder or demo; the run's own if omitted."),
            "teacher": Option(str, "RUN|MODEL", "Teacher to compare with: run, checkpoint, export or timm model."),
            "teacher_checkpoint": Option(str, "PATH|hub", "Weights of --teacher MODEL; hub (timm's) if omitted."),
            "micro_batch_size": Option(int, "N", "Images per forward; 64 if omitted."),
            "knn": Option(bool, "", "Classify --val by the 20 nearest features of --train."),
            "probe": Option(bool, "", "Classify --val by a linear probe on the features of --train."),
            "train": Option(str, "PATH", "Labelled training images for --knn and --probe. The run's own if omitted."),
        },
        ("vitkd-ds eval runs/demo", "vitkd-ds eval runs/demo --knn --probe"),
    ),
    "compare": Page(
        RUNS,
        {
            "csv": Option(bool, "", "Print the rows as CSV, in full precision."),
            "plot": Option(str, "FILE.png", "Draw validation top-1 and training loss over the epochs."),
            "speed": Option(bool, "true|false", "Measure inference speed on this machine; true if omitted."),
        },
        (
            "vitkd-ds compare runs/plain runs/distilled",
            "vitkd-ds compare runs/plain runs/distilled --plot curves.png --speed false",
        ),
        "Put options after the folders.",
    ),
    "report": Page(
        {"RUN": "The run folder that the report is about.", "[RUN ...]": "Run folders to compare it with."},
        {"out": Option(str, "FILE.html", "The file to write; report.html in the first folder if omitted.")},
        ("vitkd-ds report runs/distilled runs/plain", "vitkd-ds report runs/demo --out demo.html"),
        "Nothing is trained or evaluated again.",
    ),
    "predict": Page(
        {"STUDENT": STUDENT, "IMAGE": "An image, or a folder of images at any depth.", "[IMAGE ...]": "More of them."},
        {
            "top": Option(int, "N", "Classes per image; 5 if omitted."),
            "features": Option(bool, "", "Print pooled features instead of classes; the only output without classes."),
        },
        (
            "vitkd-ds predict runs/demo photo.jpg --top 1",
            "vitkd-ds predict my_model photos/new --features > new.csv",
        ),
        "Images are cropped and normalised as in evaluation. For a folder, and for features, the output is CSV. Put "
        "options after the images.",
    ),
    "export": Page(
        {"RUN": STUDENT, "DST": "The new folder to write."},
        {
            "format": Option(
                str,
                "timm|onnx|torch_export|hf",
                "timm (the default): student.safetensors and student.json. onnx: model.onnx. torch_export: model.pt2. "
                'hf: a folder with a model card for timm.create_model("local-dir:DST", pretrained=True).',
            ),
            "which": Option(str, "last|best", "Checkpoint of a run folder; last if omitted."),
            "half": Option(bool, "", "Store fp16 weights."),
            "val": Option(
                str,
                "PATH",
                "Images on which onnx or torch_export is compared with torch; the run's own if omitted.",
            ),
            "push": Option(str, "USER/NAME", "With --format hf, upload the folder to this new private repository."),
        },
        ("vitkd-ds export runs/demo my_model", "vitkd-ds export runs/demo demo_onnx --format onnx --which best"),
        "onnx and torch_export take normalized images and store a description of the preprocessing. With --half, "
        "images are fp16 too. Put options after the folders.",
    ),
}
