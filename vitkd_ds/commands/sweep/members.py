"""Build the runs of a sweep: one for every combination of recipe, grid values and seed."""

import itertools
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

from vitkd_ds.checkpoint.folder import is_finished
from vitkd_ds.commands.parse import parse_run
from vitkd_ds.config.overrides import nearest_option, settings_of
from vitkd_ds.config.part import locate
from vitkd_ds.config.run import Run
from vitkd_ds.config.run_folder import CONFIG
from vitkd_ds.config.teachers import path_of

GRID = "grid."
"""Prefix of the options that define the grid of a sweep."""
OWNED = {
    "seed": "Pass --seeds N for seeds 0 to N - 1.",
    "recipe": "Pass --recipes.",
    "resume": "Rerun the same command to resume.",
    "extend": "Pass another --workdir.",
    f"{GRID}workdir": "Pass --workdir with the folder of the sweep.",
}
"""Option that a user must not pass to a sweep -> what to do instead."""


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    name: str
    """Name made of the recipe and the grid values; runs that differ only in their seed have the same name."""
    seed: int
    options: tuple[str, ...]
    """Options for train.py."""
    run: Run

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.run.workdir)

    def is_done(self) -> bool:
        """Return whether the run is finished. Raise ValueError if its folder has a finished run with other settings."""
        return is_finished(self.run)

    def command(self) -> list[str]:
        """Return the command that starts or resumes the run in one process."""
        return [sys.executable, "-m", "vitkd_ds", "train", *self.options]


def members_of(recipes: Sequence[str], seeds: int, workdir: Path, flags: Mapping[str, str]) -> list[Member]:
    """Build the runs of a sweep, with the same checks as train.py.

    All settings run with one seed before the next seed begins. The finished seeds of an interrupted sweep are therefore
    comparable.

    Args:
        recipes: values of --recipe.
        seeds: number of seeds, starting at 0.
        workdir: folder of the sweep. Each run trains in workdir/NAME/seedS.
        flags: options of train.py for all runs: name without dashes -> text. An option grid.KEY has several values for
            KEY, separated by commas. Every combination of the values of all grid options is trained.

    Raises:
        ValueError: an option is unknown, a value is invalid, two runs have the same name, or train.py would reject a
            run.
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
                f"two runs of the sweep have the same name {name}. Remove one of them or rename its recipe."
            )
        variants[name] = {"recipe": recipe, **shared, **own}
    members = []
    for seed, (name, own) in itertools.product(range(seeds), variants.items()):
        given = own | {"seed": str(seed), "workdir": str(workdir / name / f"seed{seed}")}
        options = tuple(f"--{key}={value}" for key, value in given.items())
        run = parse_run((), dict(given))
        if run.data.labels == "ignore":
            raise ValueError(f"{name} has data.labels=ignore, so it has no top-1 to compare. Remove it from the sweep.")
        members.append(Member(name, seed, options, run))
    return members


def _checked_grid(recipes: Sequence[str], seeds: int, flags: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the grid: setting -> its values. Raise ValueError for options that a sweep does not accept."""
    for key in OWNED:
        if {key, GRID + key} & flags.keys():
            raise ValueError(f"--{key} is set by the sweep for each run. {OWNED[key]}")
    if not recipes:
        raise ValueError(
            "sweep needs at least one recipe. Pass --recipes NAME,...; `vitkd-ds recipes` lists the names."
        )
    if seeds < 1:
        raise ValueError(f"sweep needs at least one seed, got {seeds}. Pass --seeds with 1 or more.")
    grid = {key.removeprefix(GRID): _values(text) for key, text in flags.items() if key.startswith(GRID)}
    for key, values in grid.items():
        if not values:
            raise ValueError(f"--{GRID}{key} has no values. Pass values separated by commas.")
        if locate(Run, path_of(key))[1] is None:
            valid = [setting.key for setting in settings_of(Run, None)]
            raise ValueError(f"--{GRID}{key} is not an option: {nearest_option(key, valid, f'--{GRID}')}")
        if key in flags:
            raise ValueError(f"--{key} and --{GRID}{key} are both given. Remove one of them.")
    return grid


def _name(recipe: str) -> str:
    """Return the name of a recipe. For a path, it is the name of the run folder, or of the file without .json."""
    path = Path(recipe).resolve() if "/" in recipe or recipe.startswith(".") else Path(recipe)
    path = path.parent if path.name == CONFIG else path
    return path.name.removesuffix(".json")


def _values(text: str) -> list[str]:
    """Split a text into values at its commas, except commas inside brackets or braces: (0,1),(1,2) has two values."""
    return re.findall(r"(?:\([^)]*\)|\[[^\]]*\]|\{[^}]*\}|[^,])+", text)
