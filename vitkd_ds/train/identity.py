"""Identity of a run: the settings that affect its result, and fingerprints of its inputs.

The manifest of each checkpoint stores the identity, so that a later launch can check that it continues the same run.
The identity does not include paths and modification times, because files may be moved or touched.
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
from vitkd_ds.config.selected import is_selected, source_of
from vitkd_ds.config.teachers import role_of
from vitkd_ds.engine import ranks
from vitkd_ds.models import build
from vitkd_ds.models.hub import hub_file
from vitkd_ds.models.weights import INDEX_SUFFIX, files_of_index
from vitkd_ds.train.parts import Parts

OF_DESCRIPTION = ("classes", "normalization")
"""Keys of the .json file next to a weights file; their values affect how the weights are used."""
_CHUNK = 1 << 24


def identity_of(parts: Parts) -> dict[str, Any]:
    """Return a run's identity: the settings that affect its result and the fingerprints of its inputs. Collective.

    Raises:
        ValueError: nodes have different files under the same path.
    """
    loaders = dict(zip(("train", "val"), (parts.train_loader, parts.val_loader)))
    loaders |= dict(zip(("knn_train", "knn_val"), parts.knn_loaders or ()))
    inputs = {f"data.{name}": [loader.fingerprint, loader.content] for name, loader in loaders.items()}
    # Weights may be large, so only one rank per node reads them.
    of_node = ranks.together(lambda: weights_of(parts.run) if os.environ.get("LOCAL_RANK", "0") == "0" else {})
    everywhere = ranks.from_all(inputs | of_node)
    inputs = everywhere[0]
    for rank, found in enumerate(everywhere):
        if others := [key for key, value in found.items() if inputs.get(key, value) != value]:
            raise ValueError(
                f"the files of {', '.join(others)} differ between rank {rank} and rank 0. Copy them again, or use "
                "files on a disk that all nodes share."
            )
    return {"settings": learned_settings(parts.run), "inputs": inputs}


def weights_of(run: Run) -> dict[str, str]:
    """Return the hash of each weights file, keyed by the setting that names the file."""
    student = run.student
    files = {"student.init": hub_file(student.model) if student.init == "hub" else Path(student.init)}
    if is_selected(student.init):
        source = source_of(student.init, run.teachers)
        is_hub = source.checkpoint == "hub"
        files["student.init"] = hub_file(source.model) if is_hub else build.teacher_file(source)
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
    """Raise ValueError unless a checkpoint comes from a run with this identity.

    Settings in `free` may differ. If `start` is None, there is no checkpoint, and nothing is checked.
    """
    before = start.manifest.get("identity") if start else identity
    if before is None:  # versions before 0.9.1 stored only the training images
        if not start.config.exists():
            raise ValueError(f"{start.config} is missing, so the settings of {start.path} are unknown. Restore it.")
        content = identity["inputs"]["data.train"][1]
        before = {"settings": {}, "inputs": {"data.train": [start.manifest["train_state"]["data"], content]}}
    # Settings that the checkpoint lacks were added in later versions; their defaults keep the earlier behaviour.
    settings = identity["settings"]
    changed = [key for key, value in before["settings"].items() if settings.get(key) != value and key not in free]
    changed += [key for key, now in identity["inputs"].items() if before["inputs"].get(key, now) != now]
    if changed:
        raise ValueError(
            f"{start.path} belongs to a run with other settings or files: {', '.join(sorted(changed))} changed. "
            "Restore them, or pass --workdir with a new folder."
        )
