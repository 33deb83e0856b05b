"""The package's metadata agree with each other and with the pages."""

import re
import sys

import setuptools

import vitkd_ds
from tests.conftest import ROOT


def metadata(monkeypatch):
    """The arguments that setup.py gives to `setup`."""
    given = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("VITKD_DS_WITHOUT_FFCV", raising=False)
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    exec(compile((ROOT / "setup.py").read_text(), "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    return given


def test_the_citation_has_the_version_and_the_licence_of_the_package(monkeypatch):
    cited = dict(re.findall(r"^(version|license): (.+)$", (ROOT / "CITATION.cff").read_text(), re.M))
    assert cited["version"] == vitkd_ds.__version__ == metadata(monkeypatch)["version"]
    assert cited["license"] == metadata(monkeypatch)["license_expression"]


def test_the_package_ships_its_licence_and_those_of_others(monkeypatch):
    shipped = metadata(monkeypatch)["license_files"]
    assert {"LICENSE", "THIRD_PARTY.md", "vitkd_ds/data/demo/LICENSE"} <= {*shipped}


def test_the_licence_of_every_dependency_is_listed(monkeypatch):
    given = metadata(monkeypatch)
    page = (ROOT / "THIRD_PARTY.md").read_text()
    listed = {
        *re.findall(r"^\| ([\w-]+)[^|]* \| [^|]+ \|$", page, re.M),
        *re.findall(r"[\w-]+", page.rpartition("\n\n")[2]),
    }
    wanted = [*given["install_requires"], *(one for extra in given["extras_require"].values() for one in extra)]
    names = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in wanted}
    assert names and not names - listed


def test_an_editable_install_needs_only_the_clone_on_the_path_and_no_deprecated_mode(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["setup.py", "editable_wheel"])
    given = metadata(monkeypatch)
    assert {*given["package_dir"]} == {""}
    paths = {name: ROOT / given["package_dir"][""] / name.replace(".", "/") for name in given["packages"]}
    assert paths and all((path / "__init__.py").is_file() for path in paths.values())
    assert "editable_mode" not in (ROOT / "Makefile").read_text()


def test_a_wheel_contains_the_deepspeed_files(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["setup.py", "bdist_wheel"])
    given = metadata(monkeypatch)
    assert "vitkd_ds.ds_configs" in given["packages"] and given["package_dir"] == {"vitkd_ds.ds_configs": "ds_configs"}
