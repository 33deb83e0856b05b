"""A run's identity: settings that change what is learned, and fingerprints of its images and weights.

Each checkpoint's manifest holds it, so that another start can tell whether it continues the same run. Paths do not
count, as files may move, and neither do times of change, which anybody can set.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from vitkd_ds.checkpoint.folder import learned_settings
from vitkd_ds.checkpoint.load import Start
from vitkd_ds.config.reading import patiently
from vitkd_ds.config.run import Run
from vitkd_ds.config.run_folder import description_beside
from vitkd_ds.config.teachers import role_of
from vitkd_ds.engine import ranks
from vitkd_ds.models import build
from vitkd_ds.models.hub import hub_file
from vitkd_ds.models.weights import INDEX_SUFFIX, files_of_index
from vitkd_ds.train.parts import Parts

OF_DESCRIPTION = ("classes", "normalization")
"""Keys of the .json beside weights that change how they are used."""
_CHUNK = 1 << 24


def identity_of(parts: Parts) -> dict[str, Any]:
    """Return a run's settings and input fingerprints. Collective.

    Raises:
        ValueError: nodes have different files under the same path.
    """
    loaders = dict(zip(("train", "val"), (parts.train_loader, parts.val_loader)))
    loaders |= dict(zip(("knn_train", "knn_val"), parts.knn_loaders or ()))
    inputs = {f"data.{name}": [loader.fingerprint, loader.content] for name, loader in loaders.items()}
    # One rank of each node reads the weights, which may be large.
    of_node = ranks.together(lambda: weights_of(parts.run) if os.environ.get("LOCAL_RANK", "0") == "0" else {})
    everywhere = ranks.from_all(inputs | of_node)
    inputs = everywhere[0]
    for rank, found in enumerate(everywhere):
        if others := [key for key, value in found.items() if inputs.get(key, value) != value]:
            raise ValueError(
                f"all nodes must have the same files, found other ones on rank {rank} than on rank 0 for "
                f"{', '.join(others)}. Copy them again, or name files on a disk that all nodes share."
            )
    return {"settings": learned_settings(parts.run), "inputs": inputs}


def weights_of(run: Run) -> dict[str, str]:
    """Return a hash of each file of weights that a run names."""
    student = run.student
    files = {"student.init": hub_file(student.model) if student.init == "hub" else Path(student.init)}
    for name, teacher in run.teachers.items():
        key = f"{role_of(name)}.checkpoint"
        files[f"{role_of(name)}.head"] = Path(teacher.head)
        is_hub = teacher.checkpoint == "hub"
        files[key] = hub_file(teacher.model, key=key) if is_hub else build.teacher_file(teacher)
    nowhere = (None, Path(), Path("random"))
    return {key: _hash(file.expanduser()) for key, file in files.items() if file not in nowhere}


def _hash(file: Path) -> str:
    described = description_beside(file)
    found = hashlib.blake2b(json.dumps([described.get(key) for key in OF_DESCRIPTION]).encode(), digest_size=16)
    parts = sorted({*files_of_index(file).values()}) if file.name.endswith(INDEX_SUFFIX) else []
    for part in (file, *parts):
        with patiently(Path.open)(part, "rb") as opened:
            while chunk := patiently(lambda _: opened.read(_CHUNK))(part):
                found.update(chunk)
    return found.hexdigest()


def check_identity(start: Start | None, identity: dict[str, Any], *, free: tuple[str, ...] = ()) -> None:
    """Raise ValueError unless a checkpoint is of a run with these settings, apart from `free` ones, and inputs."""
    before = start.manifest.get("identity") if start else identity
    if before is None:  # saved by a version before 0.9.1, which knew the training images alone
        if not start.config.exists():
            raise ValueError(f"{start.config} is missing, which says what run {start.path} is of. Restore it.")
        content = identity["inputs"]["data.train"][1]
        before = {"settings": {}, "inputs": {"data.train": [start.manifest["train_state"]["data"], content]}}
    # Settings that only this start has are a later version's: their defaults are what the earlier one did.
    settings = identity["settings"]
    changed = [key for key, value in before["settings"].items() if settings.get(key) != value and key not in free]
    changed += [key for key, now in identity["inputs"].items() if before["inputs"].get(key, now) != now]
    if changed:
        raise ValueError(
            f"{start.path} is of a run with other settings or files, found changes in {', '.join(sorted(changed))}. "
            "Restore them, or pass --workdir with a new folder."
        )
