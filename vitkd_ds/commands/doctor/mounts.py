"""Which file system a path lies on."""

import os
import re
from pathlib import Path

NETWORK = {
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "9p", "afs", "panfs", "wekafs", "pvfs2",
    "glusterfs", "virtiofs",
}  # fmt: skip
"""File systems that nodes share; FUSE's (fuse.sshfs, fuse.juicefs, ...) count as such too."""


def file_system(path: Path, mountinfo: str | None = None) -> str:
    """The kind of file system that a path lies on, such as ext4 or nfs4; "unknown" outside Linux.

    Args:
        mountinfo: the text of /proc/self/mountinfo, None to read it.
    """
    if mountinfo is None:
        try:
            mountinfo = Path("/proc/self/mountinfo").read_text()
        except OSError:
            return "unknown"
    real, best, kind = os.path.realpath(path), "", "unknown"
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        mount = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), before.split()[4])  # a space is \040
        if len(mount) >= len(best) and f"{real}/".startswith(f"{mount.rstrip('/')}/"):
            best, kind = mount, after.split()[0]
    return kind


def is_network(kind: str) -> bool:
    """Whether a file system of this kind is shared between nodes."""
    return kind in NETWORK or kind.startswith("fuse.")
