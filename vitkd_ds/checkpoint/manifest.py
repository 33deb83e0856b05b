"""Which files make a checkpoint, and whether they are whole: sizes and checksums, written and checked.

A checkpoint's folder holds manifest.json, written last, which lists every other file with its length and BLAKE2b
checksum, and has a checksum of its own. Files are flushed to the disk and hashed while they are written, so nothing is
read again. The checksums find damage and careless changes; against somebody who can write the folder they protect
nothing, as they can write a fitting manifest too. Nothing here communicates: `vitkd_ds.checkpoint.load` lets the ranks
agree.
"""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO, Callable

MANIFEST = "manifest.json"
FORMAT = 1
"""Counted up when a checkpoint of an older version can no longer be read."""

_CHUNK = 1 << 20


def tag_of(step: int) -> str:
    """The name of the checkpoint after this many updates."""
    return f"step{step:08d}"


class HashingFile:
    """What torch.save and others write to: passes bytes on to a file, counts and hashes them.

    A failing write is noted and raised by `close_safely`: an exception must not pass through torch's C++ writer.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.num_bytes, self.error = file, 0, None
        self.hash = hashlib.blake2b(digest_size=32)

    def write(self, data: Any) -> int:
        """Write and hash; returns the length."""
        length = memoryview(data).nbytes
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
            self.hash.update(data)
            self.num_bytes += length
        return length

    def flush(self) -> None:
        """Nothing: `write_file` flushes once, to the disk."""

    def close_safely(self) -> dict[str, Any]:
        """Flush to the disk; returns the file's entry in the manifest. Raises OSError if any write failed."""
        if self.error is not None:
            raise self.error
        self.file.flush()
        os.fsync(self.file.fileno())
        return {"bytes": self.num_bytes, "blake2b": self.hash.hexdigest()}


def write_file(path: Path, fill: Callable[[HashingFile], Any]) -> dict[str, Any]:
    """Write a new file through `fill`, flush it to the disk; returns its entry in the manifest."""
    with path.open("wb") as file:
        hashing = HashingFile(file)
        fill(hashing)
        return hashing.close_safely()


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems do it by themselves
            raise
    finally:
        os.close(descriptor)


def write_manifest(folder: Path, files: dict[str, Any], content: dict[str, Any]) -> None:
    """Write manifest.json, or replace it at once: `content` and the entries of `files`; to be called when those are on
    the disk."""
    manifest = {"format": FORMAT} | content | {"files": files}
    text = json.dumps(manifest | {"blake2b": _checksum(manifest)}, indent=1) + "\n"
    temporary = folder / f".{MANIFEST}"
    write_file(temporary, lambda file: file.write(text.encode()))
    temporary.replace(folder / MANIFEST)
    sync_folder(folder)


def _checksum(manifest: dict[str, Any]) -> str:
    text = json.dumps({key: value for key, value in manifest.items() if key != "blake2b"}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read manifest.json, and look whether the folder holds the files that it lists, and none besides that DeepSpeed
    would load.

    Raises:
        ValueError: why the checkpoint is not whole; the message begins with the file's name.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        version, files = manifest["format"], manifest["files"]
        expected = {name: (int(entry["bytes"]), str(entry["blake2b"])) for name, entry in files.items()}
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read: {error!r}") from None
    if version != FORMAT:
        raise ValueError(f"{MANIFEST} has format {version}, this version reads {FORMAT}")
    if manifest.get("blake2b") != _checksum(manifest):
        raise ValueError(f"{MANIFEST} has changed: its checksum differs")
    if "step" in manifest.get("train_state", {}) and folder.name != tag_of(manifest["train_state"]["step"]):
        raise ValueError(f"{MANIFEST} is of step {manifest['train_state']['step']}")
    # DeepSpeed looks for some of its files by pattern, so one too many would be loaded. Others may lie there: a network
    # file system leaves some, and people do.
    found = {path.name for path in folder.iterdir()}
    for name in sorted((expected.keys() - found) | {name for name in found - expected.keys() if name.endswith(".pt")}):
        raise ValueError(f"{name} is {'missing' if name in expected else 'not listed in the manifest'}")
    return manifest


def check_files(folder: Path, manifest: dict[str, Any], *, part: int = 0, num_parts: int = 1) -> str:
    """Check lengths and checksums; each of `num_parts` callers takes about as many bytes.

    Returns:
        What is wrong with the first bad file, "" if all files of this part are whole.
    """
    by_size = sorted(manifest["files"].items(), key=lambda item: (-item[1]["bytes"], item[0]))
    for name, entry in by_size[part::num_parts]:
        if reason := _check_file(folder / name, entry):
            return f"{name} {reason}"
    return ""


def _check_file(path: Path, entry: dict[str, Any]) -> str:
    try:
        found = path.stat().st_size
        if found != entry["bytes"]:
            return f"must have {entry['bytes']} bytes, found {found}"
        with path.open("rb") as file:
            found_hash = hashlib.blake2b(digest_size=32)
            while chunk := file.read(_CHUNK):
                found_hash.update(chunk)
    except OSError as error:
        return f"cannot be read: {error}"
    return "" if found_hash.hexdigest() == entry["blake2b"] else "has changed: its checksum differs"
