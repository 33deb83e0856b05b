"""Unpack the folder of `make gpu-kit` on a machine without pip: python unpack.py

Packages that this machine already has are left out, so its torch and everything that fits its torch stay in use.
"""

import importlib.metadata
import re
import sys
import tarfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def is_installed(wheel: Path) -> bool:
    """Return whether any version of a wheel's package is installed."""
    try:
        importlib.metadata.version(re.sub("_", "-", wheel.name.split("-")[0]))
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main() -> None:
    packages = HERE / "packages"
    for wheel in sorted(HERE.glob("wheels/*.whl")):
        if is_installed(wheel):
            print(f"using this machine's {wheel.name.split('-')[0]}", file=sys.stderr)
            continue
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
    with tarfile.open(HERE / "project.tar.gz") as archive:
        archive.extractall(HERE / "project", filter="data")
    print(f"cd {HERE / 'project'}")
    print(f"export PYTHONPATH={packages}")
    print("python benchmarks/gpu.py --backend torchvision --minutes 10 --only checks")


if __name__ == "__main__":
    main()
