"""The container recipes copy every file that `make setup` reads, and a fresh checkout finds the image's decoder."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

DOCKERFILE = (ROOT / "slurm" / "Dockerfile").read_text()
DEFINITION = (ROOT / "slurm" / "vitkd_ds.def").read_text()
FOLDER = re.search(r"^WORKDIR (\S+)", DOCKERFILE, re.M).group(1)
COPIED = [word for words in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.M) for word in words.split()]


def copy_to(folder):
    """The files that the recipes copy, without ignored files, as in a fresh checkout."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder / name)


def test_both_recipes_copy_the_same_files_and_name_the_same_decoder():
    files = dict(re.findall(rf"^    (\S+) {FOLDER}/(\S+)$", DEFINITION, re.M))
    assert files == {name: name for name in COPIED}
    for text in (DOCKERFILE, DEFINITION):
        assert f"VITKD_DS_DECODER={FOLDER}/vitkd_ds/data/beton" in text and f"PATH={FOLDER}/.venv/bin:$PATH" in text
        assert "rm -f vitkd_ds/data/beton/_decode*.so && make setup" in text


def test_the_copied_files_include_all_that_make_setup_reads(tmp_path):
    copy_to(tmp_path)
    clean = {"cwd": tmp_path, "env": {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}, "check": True, "text": True}
    told = subprocess.run(["make", "--dry-run", "setup"], stdout=subprocess.PIPE, **clean).stdout
    assert all((tmp_path / name).exists() for name in re.findall(r"\.ci/\w+", told))
    subprocess.run([sys.executable, "setup.py", "-q", "egg_info"], **clean)
    sources = (tmp_path / "vitkd_ds.egg-info" / "SOURCES.txt").read_text().splitlines()
    own = {f"{path.relative_to(ROOT)}" for path in (ROOT / "vitkd_ds").rglob("*.py")}
    own |= {f"{path.relative_to(ROOT)}" for path in (ROOT / "vitkd_ds" / "data" / "beton" / "csrc").iterdir()}
    assert own <= set(sources) and all((tmp_path / source).exists() for source in sources)


def test_a_fresh_checkout_decodes_with_the_images_decoder_and_without_one_names_the_folders(tmp_path):
    fresh, built = tmp_path / "fresh", tmp_path / "image"
    fresh.mkdir()
    copy_to(fresh)
    shutil.copytree(ROOT / "vitkd_ds" / "data" / "beton", built)

    def decode(decoder):
        text = "import vitkd_ds.data.beton.decode as d; print(d.__file__, d._library._name)"
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(fresh), "PYTHONDONTWRITEBYTECODE": "1"}
        environ["VITKD_DS_DECODER"] = str(decoder)
        return subprocess.run([sys.executable, "-c", text], cwd="/", env=environ, text=True, capture_output=True)

    done = decode(built)
    assert done.returncode == 0, done.stderr
    module, library = done.stdout.split()
    assert module.startswith(str(fresh)) and library.startswith(str(built))
    missing = f"is not in /opt/nothing or {fresh}/vitkd_ds/data/beton"
    error = decode("/opt/nothing").stderr
    assert missing in error and "Run `make setup`" in error
