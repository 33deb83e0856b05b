"""Compiled code of this package: its wheel (without FFCV, which takes too long) decodes, and the fuzzer finds nothing.
Compiled code of this package: its wheel (without FFCV, which takes too long) decodes, and the fuzzer finds nothing."""

import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_command

DECODE = """
import io, sys
import numpy as np
from PIL import Image
import vitkd_ds
from vitkd_ds.data.beton.decode import DECODED
from vitkd_ds.data.beton.verify import jpeg_status
file = io.BytesIO()
Image.fromarray(np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)).save(file, "JPEG")
assert jpeg_status(file.getvalue(), height=40, width=50) == DECODED
print(vitkd_ds.__file__)
print(*{line.split()[-1] for line in open("/proc/self/maps") if "libjpeg" in line and "_imaging" not in line})
"""


def fresh_environment(folder):
    """The Python of a virtual environment that borrows all packages of this one, except the package under test."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Python ignores .pth files in borrowed folders, including those of editable installs.
    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "bin" / "python"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="compiles the decoder")
def test_the_wheel_decodes_in_a_fresh_environment_with_the_libraries_it_carries(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    source = tmp_path / "source"  # nothing is built in the checkout
    ignored = shutil.ignore_patterns(".*", "build", "runs", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    builder = fresh_environment(tmp_path / "builds")
    run_command("sh", ROOT / ".ci" / "wheels", builder, tmp_path / "dist", ".", cwd=source)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert "manylinux" in wheel.name
    python = fresh_environment(tmp_path / "uses")
    run_command(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel)
    package, libraries = run_command(python, "-c", DECODE, cwd=tmp_path).stdout.splitlines()
    assert Path(package).is_relative_to(tmp_path / "uses")
    assert f"{tmp_path}/uses/" in libraries and "vitkd_ds.libs/libjpeg" in libraries


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="NOT FUZZED: there is no g++")
def test_the_fuzzer_builds_and_finds_nothing_in_fifteen_seconds(tmp_path):
    compiler = ["g++", "-std=c++17", "-fsanitize=address,undefined"]
    (tmp_path / "empty.cpp").write_text("int main() {}")
    done = run_command(*compiler, "empty.cpp", "-o", "empty", cwd=tmp_path, check=False)
    if done.returncode:
        pytest.skip(f"NOT FUZZED: the sanitizers' runtime is missing: {done.stderr[-200:]}")
    corpus, program = tmp_path / "corpus", tmp_path / "decode_fuzz"
    run_command("python", ROOT / "fuzz" / "corpus.py", corpus)
    sources = sorted((ROOT / "vitkd_ds" / "data" / "beton" / "csrc").glob("*.cpp"))
    options = ["-g", "-O1", "-fno-sanitize-recover=all", "-pthread"]
    sources.append(ROOT / "fuzz" / "decode_fuzz.cpp")
    run_command(*compiler, *options, "-o", program, *sources, "-ljpeg", "-lz")
    done = run_command(program, corpus, "--seconds", "15")
    assert "no failure" in done.stdout and "cases" in done.stdout
