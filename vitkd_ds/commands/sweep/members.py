"""The runs of a sweep: every recipe, with every value of the grid, over all seeds."""

import itertools
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

from vitkd_ds.checkpoint.folder import is_finished
from vitkd_ds.commands.parse import parse_run
from vitkd_ds.config.run import Run
from vitkd_ds.config.run_folder import CONFIG

GRID = "grid."
"""What an option of the grid begins with."""
OWNED = {
    "seed": "--seeds N runs 0 to N - 1",
    "recipe": "--recipes names them",
    "resume": "the same command goes on",
    "extend": "give another --workdir",
    f"{GRID}workdir": "it is the sweep's folder",
}
"""Options that a sweep gives each run itself, and what to do instead."""


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    name: str
    """What it shares with the runs of other seeds: its recipe, and its values of the grid."""
    seed: int
    options: tuple[str, ...]
    """Those of train.py."""
    run: Run

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.run.workdir)

    def is_done(self) -> bool:
        """Whether it is finished. Raises ValueError if its folder holds a finished run of other settings."""
        return is_finished(self.run)

    def command(self) -> list[str]:
        """The command that trains it, or goes on with it, in one process."""
        return [sys.executable, "-m", "vitkd_ds", "train", *self.options]


def members_of(recipes: Sequence[str], seeds: int, workdir: Path, flags: Mapping[str, str]) -> list[Member]:
    """Make the runs of a sweep, checked as train.py checks them, seed by seed, so that an early end has all of a seed.

    Args:
        recipes: names, or what else --recipe takes.
        seeds: number of seeds, from 0 on.
        workdir: folder of the sweep; a run's is workdir/NAME/seedS.
        flags: options of every run; grid.KEY has values with commas, and every combination is run.

    Raises:
        ValueError: an option or value that is none, two runs of one name, or one that would be refused.
    """
    grid = _checked_grid(recipes, seeds, flags)
    shared = {key: text for key, text in flags.items() if not key.startswith(GRID)}
    variants = {}
    for recipe, values in itertools.product(recipes, itertools.product(*grid.values())):
        own = dict(zip(grid, values))
        name = ",".join([_name(recipe), *(f"{key}={value}" for key, value in own.items())])
        name = re.sub(r"[^\w.,=+-]", "_", name)
        if name in variants:
            raise ValueError(
                f"each run of a sweep must have a name of its own, found {name} twice: leave one out, or rename it"
            )
        variants[name] = {"recipe": recipe, **shared, **own}
    members = []
    for seed, (name, own) in itertools.product(range(seeds), variants.items()):
        given = own | {"seed": str(seed), "workdir": str(workdir / name / f"seed{seed}")}
        options = tuple(f"--{key}={value}" for key, value in given.items())
        run = parse_run((), dict(given))
        if run.data.labels == "ignore":
            raise ValueError(f"runs of a sweep must have a top-1, found data.labels=ignore in {name}: leave it out")
        members.append(Member(name, seed, options, run))
    return members


def _checked_grid(recipes: Sequence[str], seeds: int, flags: Mapping[str, str]) -> dict[str, list[str]]:
    """The values of each key of the grid. Raises ValueError for options that a sweep cannot have."""
    for key in OWNED:
        if {key, GRID + key} & flags.keys():
            raise ValueError(f"--{key} must not be given to a sweep, whose runs have their own: {OWNED[key]}")
    if seeds < 1 or not recipes:
        raise ValueError(f"a sweep needs a recipe and a seed at least, found {len(recipes)} and {seeds}: add some")
    grid = {key.removeprefix(GRID): _values(text) for key, text in flags.items() if key.startswith(GRID)}
    for key, values in grid.items():
        if not values:
            raise ValueError(f"--{GRID}{key} must have values with commas between them, found none")
        if key in flags:
            raise ValueError(f"--{key} must be given once, found it and --{GRID}{key}: leave one out")
    return grid


def _name(recipe: str) -> str:
    """A recipe's name; of a path that of its file without .json, or of the run folder."""
    path = Path(recipe).resolve() if "/" in recipe or recipe.startswith(".") else Path(recipe)
    path = path.parent if path.name == CONFIG else path
    return path.name.removesuffix(".json")


def _values(text: str) -> list[str]:
    """Values with commas between them, but for those inside brackets or braces: 1,2 or (0,1),(1,2)."""
    return re.findall(r"(?:\([^)]*\)|\[[^\]]*\]|\{[^}]*\}|[^,])+", text)
