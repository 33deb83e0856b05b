"""The house, checked by a machine: sizes, import direction, outside packages at home, docstrings, DeepSpeed files."""

import ast
import json
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vitkd_ds.engine.ds_config import FORBIDDEN

PACKAGE = ROOT / "vitkd_ds"
SOURCES = sorted(PACKAGE.rglob("*.py"))
EVERYTHING = [*SOURCES, ROOT / "train.py", ROOT / "setup.py", *sorted((ROOT / "tests").rglob("*.py"))]

ROWS = [
    "signals",
    "terms dist features normalization overrides losses weights ds_config optimizer report manifest run_lock watchdog "
    "shards",
    "config clipping shapes hardware measured",
    "models schedule metrics data",
    "engine teacher checkpoint evaluate distiller data.loader",
    "job exported show saver plan",
    "run_folder results",
    "loop recipes doctor plan_inputs",
    "plan_text",
    "cli",
]
"""Bottom to top; a name stands for its folder too, and the longest one counts. Imports go down, or stay in a folder."""

HOMES = {
    "deepspeed": {"engine", "teacher", "shards"},
    "ffcv": {"data"},
    "numba": {"data"},
    "timm": {"models", "features", "data"},
    "fire": {"cli"},
    "torch.distributed": {"dist"},
}
LONG_FUNCTIONS = {"train"}


def tree(path):
    return ast.parse(path.read_text(), filename=str(path))


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def row_of(name):
    best = max(
        (entry for row in ROWS for entry in row.split() if f"{name}.".startswith(f"{entry}.")), key=len, default=""
    )
    return next(i for i, row in enumerate(ROWS) if best in row.split()) if best else None


def imports(path):
    """Dotted names of everything imported, `from a import b` as a.b."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path):
    modules = {name_of(p) for p in SOURCES}
    for full in imports(path):
        if full.startswith("vitkd_ds."):
            inner = full.removeprefix("vitkd_ds.")
            yield inner if inner in modules else inner.rpartition(".")[0]


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    assert len(path.read_text().splitlines()) <= 300
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef) and node.name not in LONG_FUNCTIONS:
            assert node.end_lineno - node.lineno < 60, node.name


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_down_or_stay_in_their_folder(path):
    name = name_of(path)
    if name == "vitkd_ds" or name == "__init__" or not name:
        return
    assert row_of(name) is not None, f"{name} stands in no row"
    for other in own_imports(path):
        same_folder = other.split(".")[0] == name.split(".")[0]
        assert not other or same_folder or row_of(other) < row_of(name), f"{name} imports {other}"


def test_there_is_no_import_cycle():
    graph = {name_of(path): {other for other in own_imports(path) if other} for path in SOURCES if name_of(path)}
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_outside_packages_are_at_home(path):
    name = name_of(path)
    for full in imports(path):
        for package, homes in HOMES.items():
            if full == package or full.startswith(f"{package}."):
                assert name.split(".")[0] in homes, f"{name} imports {full}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_module_and_public_name_has_a_docstring(path):
    module = tree(path)
    assert ast.get_docstring(module)
    public = [node for node in module.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    public += [
        node
        for cls in public
        if isinstance(cls, ast.ClassDef)
        for node in cls.body
        if isinstance(node, ast.FunctionDef)
    ]
    for node in public:
        assert node.name.startswith("_") or ast.get_docstring(node), f"{path}: {node.name}"


@pytest.mark.parametrize("name", ["cross_entropy", "kd", "nkd", "vitkd"])
def test_every_loss_says_its_source_and_where_it_differs(name):
    text = (PACKAGE / "losses" / f"{name}.py").read_text()
    assert "**Source**:" in text and "**Differs**:" in text


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda p: p.name)
def test_deepspeed_files_leave_to_the_recipe_what_it_owns(path):
    config = json.loads(path.read_text())
    assert not FORBIDDEN.keys() & config.keys()
    for key in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    ):
        assert config.get(key, "auto") == "auto"
    if config["zero_optimization"]["stage"] == 3:
        assert config["zero_optimization"]["memory_efficient_linear"] is False, (
            "it would replace torch's linear for all"
        )


def test_no_source_mentions_a_drawer_or_an_unowned_todo():
    assert not [path for path in SOURCES if path.stem in ("utils", "common", "helpers")]
    for path in EVERYTHING:
        for line in path.read_text().splitlines():
            assert "TODO" not in line or "TODO(#" in line or path == Path(__file__)
