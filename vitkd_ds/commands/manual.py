"""Arguments, options and examples of all commands; used for checks, help and completion."""

from typing import NamedTuple


class Option(NamedTuple):
    """An option of a command."""

    kind: type
    value: str
    """Placeholder for the value in help texts, or the possible values separated by |. "" if the option has no value."""
    about: str


class Page(NamedTuple):
    """Help page of a command, except its summary, which is the docstring of the command's function."""

    words: dict[str, str]
    """Description of each positional argument, by its name. A name in brackets is optional; "..." allows any number."""
    options: dict[str, Option]
    examples: tuple[str, str]
    more: str = ""
    """Further text, shown below the usage line."""
    takes_run: bool = False
    """Whether every setting of a run is also an option."""


STUDENT = "A run folder, a checkpoint in it, or an exported student."
RUNS = {"RUN": "A run folder, finished or still training.", "[RUN ...]": "More run folders."}
RECIPE = Option(str, "NAME|PATH", "A recipe (vitkd-ds recipes lists them), a run folder, or the config.json of a run.")

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
        "Prints a table of problems and remedies. If srun starts doctor with the nodes and ranks of the run, it checks "
        "all these nodes; otherwise, it checks only this node. The exit code is 1 if the run would fail.",
        takes_run=True,
    ),
    "plan": Page(
        {},
        {
            "recipe": RECIPE,
            "nodes": Option(int, "N", "Number of nodes; 1 if omitted."),
            "gpus": Option(
                int,
                "N",
                "GPUs per node; 8 if omitted. With --hardware cpu, processes that share the CPU; 1 if omitted.",
            ),
            "hardware": Option(
                str, "h100|h200|a100|rtx4090|cpu", "Kind of GPU, or cpu for this machine's CPU; h100 if omitted."
            ),
        },
        (
            "vitkd-ds plan --recipe deit_tiny_from_deit3_small --nodes 2",
            "vitkd-ds plan --recipe images --teacher none --data.train photos/train --gpus 1 --hardware rtx4090",
        ),
        "For your own images, pass --recipe images, --data.train, and --teacher.model NAME or --teacher none. Images "
        "in a .beton or in class folders are counted; otherwise, plan assumes the images of ImageNet-1k. It knows the "
        "measured speeds of some models at 224 px. For all other models, it assumes a fixed fraction of the "
        "GPU's peak FLOP/s.",
        takes_run=True,
    ),
    "completion": Page(
        {"SHELL": "bash, zsh or fish."}, {}, ('eval "$(vitkd-ds completion bash)"', "vitkd-ds completion fish | source")
    ),
    "pack": Page(
        {
            "SRC": "A folder with a subfolder per class (ImageFolder), ILSVRC2012_img_train.tar, "
            "ILSVRC2012_img_val.tar (needs --labels), WebDataset tars (a folder, a tar, or a pattern in quotes), or a "
            "Hugging Face data set (a save_to_disk folder or parquet files). With --labels none, any folder of images.",
            "DST": "The new .beton file.",
        },
        {
            "passthrough": Option(bool, "", "Store JPEGs that need no scaling as they are; encode all other images."),
            "restart_markers": Option(
                bool, "", "With --passthrough, add restart markers to JPEGs. They decode faster, to the same pixels."
            ),
            "max_resolution": Option(
                int,
                "N",
                "Scale larger images down to this longest side, in pixels; 0 keeps every size. If omitted: 500, or 0 "
                "with --passthrough or --short_side.",
            ),
            "short_side": Option(
                int, "N", "Scale larger images down to this shorter side, in pixels; 0 keeps every size. 0 if omitted."
            ),
            "write_mode": Option(
                str,
                "jpg|raw|proportion",
                "jpg (the default): store JPEGs. raw: store pixels, fast and large. proportion: half of each.",
            ),
            "quality": Option(int, "N", "Quality of newly encoded JPEGs, 1 to 100; 90 if omitted."),
            "shuffle": Option(bool, "", "Store the images in a random order instead of by class."),
            "workers": Option(int, "N", "Number of processes; all available CPUs if omitted."),
            "skip_bad": Option(bool, "", "Skip images that cannot be decoded, with a warning, instead of stopping."),
            "restart": Option(bool, "", "Start over instead of continuing an interrupted pack."),
            "labels": Option(
                str,
                "FILE|none",
                "Labels of ImageNet's validation tar: its devkit or a text file. none: pack images without labels.",
            ),
            "classes": Option(
                str,
                "FILE",
                "Text file of class names in label order, one per line, or a .beton with these classes. A class may "
                "have no images.",
            ),
            "split": Option(str, "NAME", "Split to pack, for a Hugging Face data set with several splits."),
        },
        (
            "vitkd-ds pack photos/train photos/train.beton",
            "vitkd-ds pack photos/val photos/val.beton --classes photos/train.beton --passthrough",
        ),
        "Rerun the same command to continue an interrupted pack.",
    ),
    "show": Page(
        {"DATA": "A .beton, a packed folder, or demo.", "[DST]": "The PNG to write; show.png if omitted."},
        {"recipe": RECIPE._replace(about=f"{RECIPE.about} If omitted: demo if DATA is demo, else images.")},
        ("vitkd-ds show demo", "vitkd-ds show photos/train.beton look.png --data.image_size 224 --seed 3"),
        takes_run=True,
    ),
    "check": Page(
        {"FILE": "A .beton. FILE.json, which pack wrote with it, must be in the same folder."},
        {},
        ("vitkd-ds check photos/train.beton", "srun --ntasks-per-node=1 vitkd-ds check /scratch/train.beton"),
        "Use this command after copying a .beton. The exit code is 2 if an image is damaged.",
    ),
    "adopt": Page(
        {"FILE": "A .beton written by FFCV, with the fields image (RGBImageField) and label (IntField)."},
        {
            "classes": Option(
                str, "FILE", "Text file of class names in label order, one per line, or another .beton. Required."
            ),
            "shuffled": Option(
                bool, "", "State that the images are stored in a random order. data.order=quasi_random needs this."
            ),
        },
        (
            "vitkd-ds adopt train.beton --classes classes.txt",
            "vitkd-ds adopt val.beton --classes train.beton --shuffled",
        ),
        "FILE itself stays unchanged.",
    ),
    "train": Page(
        {},
        {
            "print_config": Option(
                bool, "", "Print all settings of the run as JSON and exit. --recipe FILE reads them back."
            ),
            "teacher": Option(str, "none", "Train without a teacher, with any recipe."),
            "help": Option(
                str,
                "TOPIC",
                "Describe one group of settings, such as optim, one setting, or all settings with a word in their "
                "name, such as lr.",
            ),
        },
        (
            "vitkd-ds train --recipe images --teacher none --data.train photos/train --data.val photos/val",
            "vitkd-ds train --recipe demo --optim.lr 1e-3 --workdir runs/demo",
        ),
        "Rerun the same command to resume. --recipe RUN, with a run folder, continues that run. --recipe RUN --workdir "
        "NEW trains a new run with the same settings in the folder NEW. Relative paths start at the current folder.",
        takes_run=True,
    ),
    "sweep": Page(
        {"[RECIPE ...]": "More recipes, as in --recipes A B C."},
        {
            "recipes": Option(str, "NAME,...", "Recipes to compare: names or paths, as for train. Required."),
            "seeds": Option(int, "N", "Number of seeds per recipe, counted from 0; 5 if omitted."),
            "workdir": Option(str, "DIR", "Folder for all runs; runs/sweep if omitted."),
            "jobs": Option(
                int, "N", "Number of runs at a time; 1 if omitted. Each gets one GPU and an equal share of the CPUs."
            ),
            "grid.KEY": Option(
                str, "V1,V2,...", "Values of the setting KEY. With several KEYs, every combination is trained."
            ),
            "list": Option(bool, "", "Print the options of each run and exit."),
        },
        (
            "vitkd-ds sweep --recipes demo_plain,demo --seeds 3 --workdir runs/demo_sweep",
            "vitkd-ds sweep --recipes demo --seeds 2 --grid.optim.lr 1e-3,2e-3 --list",
        ),
        "The table shows differences from the first recipe. Rerun the same command to continue; finished runs are not "
        "trained again.",
        takes_run=True,
    ),
    "watch": Page(
        {"RUN": "A run folder."},
        {},
        ("vitkd-ds watch runs/demo", "vitkd-ds watch /shared/runs/tiny"),
        "Ends when the run is finished, or on Ctrl-C. Ctrl-C does not stop the run itself.",
    ),
    "eval": Page(
        {"STUDENT": f"{STUDENT} If it belongs to a run, the run's data and teacher are the defaults."},
        {
            "val": Option(str, "PATH", "Validation images: .beton, packed folder or demo; the run's own if omitted."),
            "teacher": Option(
                str,
                "RUN|MODEL",
                "Teacher to compare with: run, checkpoint, export or timm model. The run's own if omitted.",
            ),
            "teacher_checkpoint": Option(
                str, "PATH|hub", "Weights for --teacher MODEL: a path, or hub for timm's own; hub if omitted."
            ),
            "micro_batch_size": Option(int, "N", "Images per forward pass; 64 if omitted."),
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
        {"RUN": "The run folder that the report is about.", "[RUN ...]": "Run folders to compare with the first one."},
        {"out": Option(str, "FILE.html", "The file to write; report.html in the first folder if omitted.")},
        ("vitkd-ds report runs/distilled runs/plain", "vitkd-ds report runs/demo --out demo.html"),
        "Nothing is trained or evaluated again.",
    ),
    "predict": Page(
        {
            "STUDENT": STUDENT,
            "IMAGE": "An image, or a folder of images at any depth.",
            "[IMAGE ...]": "More images or folders.",
        },
        {
            "top": Option(int, "N", "Number of classes per image; 5 if omitted."),
            "features": Option(
                bool, "", "Print pooled features instead of classes. Always on for a student without a classifier."
            ),
        },
        (
            "vitkd-ds predict runs/demo photo.jpg --top 1",
            "vitkd-ds predict my_model photos/new --features > new.csv",
        ),
        "Images are cropped and normalised as in evaluation. The output is CSV if an IMAGE is a folder, or if features "
        "are printed. Put options after the images.",
    ),
    "export": Page(
        {"RUN": STUDENT, "DST": "The new folder to write."},
        {
            "format": Option(
                str,
                "timm|onnx|torch_export|hf",
                "timm (the default) writes student.safetensors and student.json; onnx writes model.onnx; torch_export "
                'writes model.pt2; hf writes a model card and files for timm.create_model("local-dir:DST", '
                "pretrained=True).",
            ),
            "which": Option(str, "last|best", "Checkpoint of a run folder; last if omitted."),
            "half": Option(bool, "", "Store fp16 weights."),
            "val": Option(
                str,
                "PATH",
                "Images on which an onnx or torch_export graph is compared with torch; the run's own if omitted.",
            ),
            "push": Option(
                str,
                "USER/NAME",
                "With --format hf, upload the folder to this private repository, which must be empty or new.",
            ),
        },
        ("vitkd-ds export runs/demo my_model", "vitkd-ds export runs/demo demo_onnx --format onnx --which best"),
        "An exported onnx or torch_export graph takes normalized images, and contains a description of the "
        "preprocessing. With --half, the graph takes fp16 images. Put options after the folders.",
    ),
}
