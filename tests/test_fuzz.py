"""The fuzzer builds and finds nothing in a few seconds; `make fuzz` lets it run for ten minutes."""

import shutil
import subprocess

import pytest

from tests.conftest import ROOT, run_command

SANITIZED = ("-std=c++17", "-fsanitize=address,undefined")


def why_not(tmp_path):
    """Why the fuzzer cannot be built here; empty if it can."""
    if not shutil.which("g++"):
        return "there is no g++"
    (tmp_path / "empty.cpp").write_text("int main() {}")
    command = ["g++", *SANITIZED, "empty.cpp", "-o", "empty"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"the sanitizers' runtime is missing: {done.stderr[-200:]}"


@pytest.mark.slow
def test_the_fuzzer_builds_and_finds_nothing_in_fifteen_seconds(tmp_path):
    if reason := why_not(tmp_path):
        pytest.skip(f"NOT FUZZED: {reason}")
    corpus, program = tmp_path / "corpus", tmp_path / "decode_fuzz"
    run_command("python", ROOT / "fuzz" / "corpus.py", corpus)
    sources = [ROOT / "vitkd_ds" / "data" / "beton" / "csrc" / name for name in ("decode.cpp", "resize.cpp")]
    options = ["-g", "-O1", "-fno-sanitize-recover=all", "-pthread"]
    run_command(
        "g++", *SANITIZED, *options, "-o", program, ROOT / "fuzz" / "decode_fuzz.cpp", *sources, "-ljpeg", "-lz"
    )
    done = run_command(program, corpus, "--seconds", "15")
    assert "no finding" in done.stdout and "cases" in done.stdout
