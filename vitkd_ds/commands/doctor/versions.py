"""Packages: within setup.py's ranges, loadable, and the same on all ranks."""

import platform
from importlib import metadata

import torch

from vitkd_ds.checkpoint.folder import git_commit
from vitkd_ds.commands.doctor.patient import Patient
from vitkd_ds.commands.doctor.rows import Row, error, ok
from vitkd_ds.engine import ranks

SHOWN = ("torch", "deepspeed", "timm", "ffcv", "numpy")


def check_versions(patient: Patient) -> list[Row]:
    """Ranges, compiled parts, and the same everywhere. Collective."""
    installed, rows = requirement_rows(metadata.requires("vitkd_ds") or [])
    rows += compiled_rows(patient.run.data.backend)
    here = {"python": platform.python_version(), **installed, "git commit": git_commit()}
    rows += difference_rows(ranks.from_all(here), patient.nodes)
    shown = ", ".join(f"{name} {here[name]}" for name in ("python", *SHOWN) if name in here)
    commit, _, mark = here["git commit"].partition("-")
    commit = f", commit {commit[:12]}{mark and f' ({mark})'}" if commit else ""
    built = f" for CUDA {torch.version.cuda}" if torch.version.cuda else ""
    return [ok("versions", f"{shown}{commit}; torch built{built or ' without CUDA'}"), *rows]


def requirement_rows(requirements: list[str]) -> tuple[dict[str, str], list[Row]]:
    """Versions of the packages that setup.py asks for, and a row for each that is missing or out of its range.

    Args:
        requirements: such as "timm<2,>=1.0.25"; those of extras are left out.
    """
    from packaging.requirements import Requirement  # torch's and deepspeed's own requirement

    installed, rows = {}, []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _version(requirement.name)
        if found:
            installed[requirement.name] = found
        if not found or not requirement.specifier.contains(found, prereleases=True):
            wanted = f"{requirement.name}{requirement.specifier}"
            rows.append(
                error("versions", f"{wanted} must be installed, found {found or 'none'}", f"pip install '{wanted}'")
            )
    return installed, rows


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def compiled_rows(backend: str) -> list[Row]:
    """A row if the decoder or FFCV was built for another Python, numpy or C++ library; they are loaded to see."""
    if backend != "ffcv":
        return [ok("decoder", f"not needed, as data.backend is {backend}")]
    try:
        import vitkd_ds.data.beton.decode  # noqa: F401
    except Exception as caught:  # any kind: a wrong build fails in many ways
        advice = "run `make setup` on this machine, or install the wheels of `make wheels`"
        return [error("decoder", f"FFCV and the decoder must load, found {type(caught).__name__}: {caught}", advice)]
    return [ok("decoder", "FFCV and the compiled decoder load")]


def difference_rows(versions_of_ranks: list[dict[str, str]], nodes: list[str]) -> list[Row]:
    """A row for each package that some rank has in another version than rank 0; the same rows on all ranks."""
    rows = []
    for name in dict.fromkeys(key for versions in versions_of_ranks for key in versions):
        found = [versions.get(name, "none") for versions in versions_of_ranks]
        other = next((rank for rank, version in enumerate(found) if version != found[0]), None)
        if other is not None:
            on = f"{found[0]} on {nodes[0]} and {found[other]} on {nodes[other]}"
            advice = "start all ranks from one shared environment and checkout"
            rows.append(error("versions", f"{name} must be the same on all ranks, found {on}", advice))
    return rows
