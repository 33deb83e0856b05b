"""Write and read a checkpoint's manifest, and check that the checkpoint's files are intact.

manifest.json is written last. It lists every other file with its length and BLAKE2b checksum, and contains a checksum
of itself. The checksums detect damage and accidental changes. They do not prevent tampering, because anyone who can
write the files can also forge the manifest. No function here is collective; `vitkd_ds.checkpoint.load` coordinates the
ranks.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from vitkd_ds.checkpoint.files import sync_folder, write_text
from vitkd_ds.config.reading import Unreadable, load_json, patiently

MANIFEST = "manifest.json"
FORMAT = 1
"""Format version, increased when older checkpoints can no longer be read."""

_CHUNK = 1 << 20


def tag_of(step: int) -> str:
    """Return the name of the checkpoint after `step` updates."""
    return f"step{step:08d}"


def write_manifest(folder: Path, files: dict[str, Any], content: dict[str, Any]) -> None:
    """Write or replace manifest.json. The listed files must already be on disk.

    Args:
        folder: folder of the checkpoint.
        files: entry of each file, as returned by `write_whole`, by the file's name.
        content: further entries of the manifest.
    """
    manifest = {"format": FORMAT} | content | {"files": files}
    write_text(folder / MANIFEST, json.dumps(manifest | {"blake2b": _checksum(manifest)}, indent=1) + "\n")
    sync_folder(folder)


def _checksum(manifest: dict[str, Any]) -> str:
    text = json.dumps({key: value for key, value in manifest.items() if key != "blake2b"}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read manifest.json. Check that all listed files exist, and that there is no other .pt file.

    Raises:
        ValueError: the checkpoint is damaged; the message starts with the file's name.
        Unreadable: the disk failed; the checkpoint itself may be intact.
    """
    try:
        manifest = load_json(folder / MANIFEST)
        version = manifest["format"]
        files = manifest["files"]
        step = manifest["train_state"]["step"]
        entries = [(type(entry["bytes"]), type(entry["blake2b"])) for entry in files.values()]
        if type(step) is not int or {*entries} - {(int, str)}:
            raise ValueError("a step or length is not an integer, or a checksum is not a string")
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None
    except Unreadable:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read: {error!r}") from None
    if version != FORMAT:
        raise ValueError(f"{MANIFEST} has format {version}, but this version reads format {FORMAT}")
    if manifest.get("blake2b") != _checksum(manifest):
        raise ValueError(f"{MANIFEST} has changed: its checksum differs")
    if folder.name != tag_of(step):
        raise ValueError(f"{MANIFEST} belongs to step {step}")
    # DeepSpeed finds some of its files by pattern, so it would load an extra .pt file. Other extra files are harmless:
    # network file systems and users leave some.
    found = {*patiently(os.listdir)(folder)}
    for name in sorted((files.keys() - found) | {name for name in found - files.keys() if name.endswith(".pt")}):
        raise ValueError(f"{name} is {'missing' if name in files else 'not listed in the manifest'}")
    return manifest


def check_files(folder: Path, manifest: dict[str, Any], *, part: int = 0, num_parts: int = 1) -> str:
    """Check the lengths and checksums of one share of a checkpoint's files.

    Args:
        folder: folder of the checkpoint.
        manifest: its manifest.
        part: index of the share to check.
        num_parts: number of shares. All have about the same number of bytes.

    Returns:
        The name of the first damaged file and its problem; "" if all files are intact.

    Raises:
        Unreadable: the disk failed.
    """
    by_size = sorted(manifest["files"].items(), key=lambda item: (-item[1]["bytes"], item[0]))
    for name, entry in by_size[part::num_parts]:
        if reason := _fault(folder / name, entry):
            return f"{name} {reason}"
    return ""


def _fault(path: Path, entry: dict[str, Any]) -> str:
    @patiently
    def compare(path: Path) -> str:
        if (found := path.stat().st_size) != entry["bytes"]:
            return f"has {found} bytes instead of {entry['bytes']}"
        with path.open("rb") as file:
            found_hash = hashlib.blake2b(digest_size=32)
            while chunk := file.read(_CHUNK):
                found_hash.update(chunk)
        return "" if found_hash.hexdigest() == entry["blake2b"] else "has changed: its checksum differs"

    try:
        return compare(path)
    except Unreadable:
        raise
    except OSError as error:  # missing by now, or a folder
        return f"cannot be read: {error}"
