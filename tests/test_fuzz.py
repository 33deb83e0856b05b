"""The fuzzer builds and finds nothing in a few seconds; `make fuzz` lets it run for ten minutes."""

import shutil

import pytest

from tests.conftest import ROOT, run_command


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
    sources = [ROOT / "vitkd_ds" / "data" / "beton" / "csrc" / name for name in ("decode.cpp", "resize.cpp")]
    options = ["-g", "-O1", "-fno-sanitize-recover=all", "-pthread"]
    sources.append(ROOT / "fuzz" / "decode_fuzz.cpp")
    run_command(*compiler, *options, "-o", program, *sources, "-ljpeg", "-lz")
    done = run_command(program, corpus, "--seconds", "15")
    assert "no finding" in done.stdout and "cases" in done.stdout
