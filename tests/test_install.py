"""The editable install that `make setup` makes."""

import sys

import pytest

from tests.conftest import ROOT, run_command


@pytest.mark.cold
def test_python_started_next_to_the_clone_imports_the_package_and_not_the_clone(tmp_path):
    (tmp_path / "vitkd_ds").symlink_to(ROOT)
    done = run_command(sys.executable, "-c", "import vitkd_ds; print(vitkd_ds.__file__)", cwd=tmp_path, PYTHONPATH="")
    assert done.stdout.strip() == f"{ROOT}/vitkd_ds/__init__.py"
