"""Compare all methods on the demo over several seeds, each with a tuned loss weight.

    python benchmarks/demo_methods.py search [--folder runs/methods] [--jobs 2]
    python benchmarks/demo_methods.py table  [--folder runs/methods] [--jobs 2] [--seeds 5]

`search` holds out 1,000 of the 6,000 training images in the package. It trains each method on the others for
SEARCH_EPOCHS epochs with one seed, once for each factor in WEIGHTS, by which it multiplies the method's weight. It
writes the best factor of each method to weights.json in the folder. `table` trains all methods with these factors on
all 6,000 images, and evaluates them on the 2,000 test images, which the search does not use. It writes table/sweep.md
in the folder. Rerun an interrupted command to resume it.
"""

import argparse
import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vitkd_ds.commands.compare.runs import read_results  # noqa: E402
from vitkd_ds.commands.pack import pack  # noqa: E402
from vitkd_ds.commands.sweep import sweep  # noqa: E402
from vitkd_ds.commands.sweep.members import members_of  # noqa: E402
from vitkd_ds.config.options import apply_options  # noqa: E402
from vitkd_ds.config.run import Run, as_dict  # noqa: E402
from vitkd_ds.data.demo import CLASSES, demo_beton  # noqa: E402
from vitkd_ds.data.loader import build_loader  # noqa: E402
from vitkd_ds.recipes import build_run  # noqa: E402

WEIGHTS, SEARCH_EPOCHS = (0.3, 1.0, 3.0, 10.0), 8
HELD_OUT = 100
"""Training images per class that are held out for the search."""
PLAIN, OFF = "plain", {"losses.nkd.weight": 0.0, "losses.vitkd.weight": 0.0}
VITKD = {"losses.vitkd.weight": 1.0}
METHODS = {
    PLAIN: {},
    "kd": {"losses.kd.weight": 1.0},
    "nkd": {"losses.nkd.weight": 1.0},
    "vitkd": VITKD,
    "vitkd+nkd": VITKD | {"losses.nkd.weight": 1.0},
    "wttm": {"losses.wttm.weight": 1.0},
    "wttm+vitkd": VITKD | {"losses.wttm.weight": 1.0},
    "soft_kd_0.9": {"losses.ce.weight": 0.1, "losses.kd.weight": 0.9},
    "dist": {"losses.dist.weight": 1.0},
    "vkd": {"losses.vkd.weight": 1.0},
    "feature": {"losses.feature.weight": 1.0},
    "relation": {"losses.relation.weight": 1.0},
    "spectral": {"losses.spectral.weight": 1.0},
}
"""Loss weights of each method. Cross-entropy has weight 1 unless it is listed. The search tunes the last weight."""
FIXED = (PLAIN, "soft_kd_0.9")
"""Methods that are not tuned: one has no distillation loss, and the weights of the other are part of its definition."""


def run_of(method: str, factor: float) -> Run:
    """Return the demo's run with a method's loss terms; the method's last weight is multiplied by `factor`."""
    if method == PLAIN:
        return build_run("demo_plain")
    options = OFF | METHODS[method]
    searched = list(METHODS[method])[-1]
    options[searched] *= factor
    return apply_options(build_run("demo"), {key: str(value) for key, value in options.items()})


def write_recipe(folder: Path, name: str, run: Run) -> str:
    """Write a run's settings to a JSON file that --recipe can read; return the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(as_dict(run)))
    return str(path)


def held_out_data(folder: Path) -> dict[str, str]:
    """Split the training images of the package into two .beton files; return the options of a run that uses them."""
    paths = {split: folder / f"{split}.beton" for split in ("train", "val")}
    if not all(path.exists() for path in paths.values()):
        # A loader for validation returns the images unchanged and in the order of the file.
        data = replace(build_run("demo_plain").data, val=str(demo_beton("train")))
        counts = np.zeros(len(CLASSES), int)
        with closing((loader := build_loader(data, split="val", micro_batch_size=500)).epoch(0)) as micro_batches:
            for _ in range(loader.num_batches):
                images_BCHW, labels_B = next(micro_batches)
                for image_CHW, label in zip(images_BCHW, labels_B.tolist()):
                    split = "val" if counts[label] < HELD_OUT else "train"
                    place = folder / "images" / split / CLASSES[label]
                    place.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(image_CHW.permute(1, 2, 0).numpy()).save(place / f"{counts[label]:04d}.png")
                    counts[label] += 1
        for split, path in paths.items():
            pack(str(folder / "images" / split), str(path), write_mode="raw")
    return {"data.train": str(paths["train"]), "data.val": str(paths["val"])}


def search(args: argparse.Namespace) -> None:
    """Train each method that is not in FIXED with each factor in WEIGHTS; write the best factors to weights.json."""
    folder = args.folder.resolve()
    options = held_out_data(folder / "held_out") | {"epochs": str(SEARCH_EPOCHS), "eval_every_epochs": "0"}
    tried = {
        f"{method}@{factor:g}": (method, factor) for method in METHODS if method not in FIXED for factor in WEIGHTS
    }
    recipes = [write_recipe(folder / "recipes", name, run_of(*each)) for name, each in tried.items()]
    members = members_of(recipes, 1, folder / "search", options)
    print(sweep(members, jobs=args.jobs))
    best: dict[str, tuple[float, float]] = {}
    results = read_results([str(member.folder) for member in members])
    for (method, factor), result in zip(tried.values(), results, strict=True):
        best[method] = max(best.get(method, (-1.0, 1.0)), (result.top1, factor))
    (folder / "weights.json").write_text(json.dumps({name: factor for name, (_, factor) in best.items()}, indent=1))


def table(args: argparse.Namespace) -> None:
    """Train each method with its tuned weight and each seed, and print the table."""
    folder = args.folder.resolve()
    weights = json.loads((folder / "weights.json").read_text())
    recipes = [write_recipe(folder / "final", name, run_of(name, weights.get(name, 1.0))) for name in METHODS]
    print(sweep(members_of(recipes, args.seeds, folder / "table", {}), jobs=args.jobs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["search", "table"])
    parser.add_argument("--folder", type=Path, default=Path("runs/methods"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    (search if args.what == "search" else table)(args)


if __name__ == "__main__":
    main()
