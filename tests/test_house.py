"""The project's structural rules, checked on the source: one test per rule, naming every place that breaks it."""

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from graphlib import TopologicalSorter

import pytest

from tests.conftest import ROOT
from vitkd_ds.config.losses import TERMS

ROOMS = ["config losses", "models data recipes", "engine", "checkpoint", "train", "commands", "cli", "__main__"]
"""Bottom to top. Imports go down or stay in the same folder."""
ROW_OF = {room: row for row, rooms in enumerate(ROOMS) for room in rooms.split()}
HOMES = {
    "deepspeed": ["engine/"], "torch.distributed": ["engine/ranks.py", "engine/processes.py", "engine/versions.py"],
    "timm": ["models/", "data/"], "ffcv": ["data/beton/"], "numba": ["data/beton/"], "fire": ["cli.py"],
}  # fmt: skip
NO_TORCH = ("config/", "train/signals.py", "train/console.py", "train/statistics.py")
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
FILES = ["train.py", "setup.py"]
FILES += [str(path.relative_to(ROOT)) for top in ("vitkd_ds", "tests", "benchmarks", "fuzz", "slurm", "site")
          for path in sorted((ROOT / top).rglob("*.py"))]  # fmt: skip
TEXT = {name: (ROOT / name).read_text() for name in FILES}
LINES = {name: list(enumerate(text.splitlines(), start=1)) for name, text in TEXT.items()}
TREE = {name: ast.parse(text, name) for name, text in TEXT.items()}
PACKAGE = {name.removeprefix("vitkd_ds/"): name for name in FILES if name.startswith("vitkd_ds/")}


def none_of(offences):
    offences = list(offences)
    assert not offences, "\n".join(["", *offences])


def imports(name):
    """Dotted names of a package file's imports: `from a import b` as a.b."""
    for node in ast.walk(TREE[PACKAGE[name]]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            yield "torch.distributed"  # available wherever torch is


def own_imports(name):
    """Package files that a file imports, without the package's own `__init__`."""
    for full in imports(name):
        if full.startswith("vitkd_ds."):
            inner = full.removeprefix("vitkd_ds.").replace(".", "/")
            folder = inner.rpartition("/")[0]
            candidates = (f"{inner}.py", f"{inner}/__init__.py", f"{folder}.py", f"{folder}/__init__.py")
            yield from [path for path in candidates if path in PACKAGE][:1]


def room_of(name):
    return name.partition("/")[0].removesuffix(".py")


def test_every_file_is_in_a_known_folder_and_imports_go_down_without_cycles():
    assert {room_of(name) for name in PACKAGE} == {*ROW_OF, "__init__"}
    for name in PACKAGE.keys() - {"__init__.py"}:
        room = room_of(name)
        others = {other: room_of(other) for other in own_imports(name) if room_of(other) != room}
        none_of(f"{name} imports {other}" for other, below in others.items()
                if ROW_OF[below] >= ROW_OF[room] or (below == "losses" and room != "models"))  # fmt: skip
    # Raises an error for circular imports.
    list(TopologicalSorter({name: set(own_imports(name)) - {name} for name in PACKAGE}).static_order())


def test_outside_packages_are_imported_only_where_allowed():
    for package, homes in HOMES.items():
        none_of(f"{name} imports {full}" for name in PACKAGE if not name.startswith(tuple(homes))
                for full in imports(name) if f"{full}.".startswith(f"{package}."))  # fmt: skip


@pytest.mark.cold
def test_settings_signals_console_and_statistics_do_not_import_torch():
    names = [name for name in PACKAGE if name.startswith(NO_TORCH)]
    none_of(name for name in names for full in imports(name) if f"{full}.".startswith("torch."))
    modules = [PACKAGE[name].removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in names]
    command = f"import {', '.join(modules)}; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], cwd=ROOT).returncode == 0


def test_only_the_console_and_the_command_line_write_to_stderr():
    writes = re.compile(r"sys\.stderr(?!\.flush)|\bos\.write\(|print\(.*file=")
    speaking = {PACKAGE["train/console.py"], PACKAGE["cli.py"]}
    none_of(f"{name}:{number}: {line.strip()}" for name in {*PACKAGE.values()} - speaking
            for number, line in LINES[name] if writes.search(line))  # fmt: skip


def test_files_functions_and_lines_are_short():
    none_of(f"{name}: {len(lines)} lines" for name, lines in LINES.items() if len(lines) > 300)
    for name, tree in TREE.items():
        functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTION)]
        none_of(f"{name}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
                for node in functions if node.end_lineno - node.lineno >= 60)  # fmt: skip
        none_of(f"{name}:{number}: {len(line)} characters" for number, line in LINES[name] if len(line) > 120)


def test_every_module_and_public_name_has_a_docstring():
    none_of(name for name, tree in TREE.items() if tree.body and not ast.get_docstring(tree))
    for name in PACKAGE.values():
        nodes = [*TREE[name].body]
        nodes += [node for cls in nodes if isinstance(cls, ast.ClassDef) and cls.name[0] != "_" for node in cls.body]
        public = [node for node in nodes if isinstance(node, (*FUNCTION, ast.ClassDef)) and node.name[0] != "_"]
        none_of(f"{name}:{node.lineno}: {node.name}" for node in public if not ast.get_docstring(node))


def lines_without_a_chapter(name):
    """Functions of a file with more than 25 lines of code (without docstrings) and no explanatory comment."""
    tokens = list(tokenize.generate_tokens(io.StringIO(TEXT[name]).readline))
    comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT
                and not re.match(r"# ?(fmt:|noqa|type:)", token.string)}  # fmt: skip
    empty = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    code = {line for token in tokens if token.type not in empty
            for line in range(token.start[0], token.end[0] + 1)}  # fmt: skip
    for node in [node for node in ast.walk(TREE[name]) if isinstance(node, FUNCTION)]:
        body = node.body[1:] if ast.get_docstring(node) else node.body
        lines = range(body[0].lineno, node.end_lineno + 1) if body else range(0)
        if len(code & {*lines}) > 25 and not comments & {*lines}:
            yield f"{name}:{node.lineno}: {node.name}, {len(code & {*lines})} lines of code"


def test_every_long_function_has_a_comment_that_says_why():
    none_of(found for name in PACKAGE.values() for found in lines_without_a_chapter(name))


def test_every_loss_states_its_source_and_differences():
    names = {name[7:-3] for name in PACKAGE if name.startswith("losses/")} - {"__init__", "part", "precision"}
    assert len(names) > 10
    for name in names:
        text = TEXT[f"vitkd_ds/losses/{name}.py"]
        assert "**Source**:" in text and "**Differs**:" in text, name


def test_only_losses_their_settings_and_recipes_name_a_term():
    homes = ("losses/", "recipes/", "config/losses.py")
    names_of = {ast.Constant: "value", ast.Attribute: "attr", ast.keyword: "arg"}
    for name in [name for name in PACKAGE if not name.startswith(homes)]:
        nodes = [node for node in ast.walk(TREE[PACKAGE[name]]) if type(node) in names_of]
        found = ((node.lineno, getattr(node, names_of[type(node)])) for node in nodes)
        none_of(f"{name}:{line}: {term}" for line, term in found if isinstance(term, str) and term in TERMS)


def test_deepspeed_files_leave_the_recipes_values_open():
    foreign = {"optimizer", "scheduler", "fp16", "amp", "elasticity", "data_efficiency", "curriculum_learning"}
    owned = ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"]
    configs = {path.name: json.loads(path.read_text()) for path in (ROOT / "ds_configs").glob("*.json")}
    assert {"zero2.json", "teacher_zero3.json", "teacher_zero3_offload.json"} <= set(configs)
    for name, config in configs.items():
        assert not foreign & set(config), name
        assert {config.get(key, "auto") for key in owned} == {"auto"}, name
        zero = config["zero_optimization"]
        is_safe = zero["stage"] < 3 or zero["memory_efficient_linear"] is False
        assert is_safe, f"{name} would replace torch's linear for the whole process"


def test_files_of_a_run_folder_are_named_once():
    owner, hub = PACKAGE["config/run_folder.py"], PACKAGE["commands/export/hub.py"]  # the Hub also has a config.json
    named = {"config.json", "metrics.jsonl", "summary.json", "predictions.json", "student.json", "student.safetensors"}
    none_of(f"{name}:{node.lineno}: {node.value}" for name in {*PACKAGE.values()} - {owner, hub}
            for node in ast.walk(TREE[name]) if isinstance(node, ast.Constant) and node.value in named)  # fmt: skip


def test_there_is_no_utils_module_and_no_todo_without_an_issue():
    none_of(name for name in PACKAGE.values() if re.search(r"/(utils|common|helpers)\b", name))
    none_of(name for name, text in TEXT.items() if re.search(r"TOD[O](?!\(#\d)", text))
