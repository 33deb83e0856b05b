"""The pages: commands parse, links resolve, Python runs, numbers match RESULTS, the tree matches the code."""

import inspect
import json
import pickle
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import vitkd_ds
from tests.conftest import ROOT, run_command
from vitkd_ds import cli
from vitkd_ds.commands import manual
from vitkd_ds.commands.parse import own_options
from vitkd_ds.config.check import check_run
from vitkd_ds.config.overrides import apply_overrides
from vitkd_ds.config.run import as_dict
from vitkd_ds.data.beton.side_file import SIDE_FORMAT, SIDE_KEYS, SOURCE_KEY, TABLE_KEYS
from vitkd_ds.data.demo import CLASSES
from vitkd_ds.recipes import RECIPES, build_run

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("slurm/*.md"), *ROOT.glob("ds_configs/*.md")]
TEXT = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(PAGES)}
RESULTS = (ROOT / "benchmarks/RESULTS.md").read_text()
SCRIPTS = {f"slurm/{path.name}": re.search(r"RECIPE=(\w+)", path.read_text()).group(1)
           for path in ROOT.glob("slurm/vitkd_*.sh")}  # fmt: skip
STARTS_NOTHING = {"--help", "--version", "--print_config", "recipes", "--list"}
"""Words that make a command safe to run here."""
OURS = ("train.py", "make", "vitkd-ds", "python")
STUDENT_ARGS = {"img_size": 28, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 10}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT[page], re.S)


def commands():
    """(page, words) of each of the project's command lines; other programs are only checked as bash."""
    for page in TEXT:
        lines = "".join(blocks(page, "bash")).replace("\\\n", "").splitlines()
        for words in (shlex.split(line, comments=True) for line in lines):
            if "-c" in words:
                words = shlex.split(words[words.index("-c") + 1])
            first = next((i for i, word in enumerate(words) if word in OURS or word in SCRIPTS), None)
            if first is not None:
                yield page, words[first:]
    for name, page in manual.PAGES.items():
        for example in page.examples:
            words = shlex.split(example)
            yield f"help {name}", words[words.index("vitkd-ds") :] if "vitkd-ds" in words else ["vitkd-ds", name]


COMMANDS = list(commands())


def flags_of(words):
    """{"optim.lr": "1e-3"} for --optim.lr=1e-3 or --optim.lr 1e-3; words without dashes are skipped."""
    flags = {}
    for word, after in zip(words, [*words[1:], "--"]):
        name, _, value = word.partition("=")
        if name.startswith("--"):
            flags[name.removeprefix("--")] = value or ("True" if after.startswith("--") else after)
    return flags


@pytest.fixture
def finished_run(tmp_path, monkeypatch):
    """Work in a folder with runs/demo and the run of `make demo`, as the pages assume."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    model = timm.create_model("deit_tiny_patch16_224", **STUDENT_ARGS)
    save_file(model.state_dict(), folder / "student.safetensors")
    described = {"image_size": 28, "val_crop_fraction": 1.0, "interpolation": "bicubic", "classes": CLASSES}
    described |= {"normalization": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    overlay = {"pretrained_cfg_overlay": {"label_names": CLASSES, "num_classes": 10}}
    made = {"model": "deit_tiny_patch16_224", "args": STUDENT_ARGS | overlay}
    (folder / "student.json").write_text(json.dumps(made | described))
    (folder / "config.json").write_text(json.dumps({"run": as_dict(build_run("demo"))}))
    shutil.copytree(folder, tmp_path / "runs" / "make_demo" / "distilled")
    return tmp_path


@pytest.mark.parametrize("page, words", COMMANDS, ids=[f"{page}: {' '.join(words)}" for page, words in COMMANDS])
def test_commands_are_accepted(page, words, finished_run):
    program, *rest = words[1:] if words[0] == "python" else words
    rest += ["--list"] if rest[:1] == ["sweep"] else []
    if STARTS_NOTHING & {*rest} and "|" not in rest:
        command = [program] if program == "vitkd-ds" else ["python", ROOT / program]
        assert run_command(*command, *rest, cwd=finished_run).stdout
    elif program == "train.py":
        assert cli.parse_run((), _on_the_demos_data(flags_of(rest)))
    elif program in SCRIPTS:
        check_run(apply_overrides(build_run(SCRIPTS[program], debug=True), flags_of(rest)))
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in rest if "=" not in word} <= set(targets)
    elif program == "vitkd-ds":
        takes_run = manual.PAGES[rest[0]].takes_run
        flags = {key: value for key, value in flags_of(rest[1:]).items() if not key.startswith("grid.")}
        of_a_run = {key: value for key, value in flags.items() if key not in own_options(rest[0])}
        of_a_run.pop("workdir", None)
        if rest[0] == "plan" and "data.train" in of_a_run:
            of_a_run.setdefault("data.val", of_a_run["data.train"])  # as `plan` itself does
        assert not of_a_run or (takes_run and cli.parse_run((), _on_the_demos_data(of_a_run)))
    else:
        assert (ROOT / program).is_file()


def _on_the_demos_data(flags):
    """The flags without files that the page creates; tests/test_own_images.py runs docs/images.md completely."""
    files = {key: "demo" for key, value in flags.items() if value.startswith("photos/")}
    is_made = flags.get("teacher.checkpoint") == "runs/teacher"
    teacher = {"teacher.model": "deit3_small_patch16_224", "teacher.checkpoint": "hub"} if is_made else {}
    return flags | files | teacher


def test_shell_blocks_are_bash():
    for block in (block for page in TEXT for block in blocks(page, "bash")):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def anchors(text):
    """GitHub's anchors of the headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXT)
def test_relative_links_and_paths_resolve(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT[page]):
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists() and (not anchor or anchor in anchors(path.read_text())), target
    for name in re.findall(r"`((?:vitkd_ds|tests|ds_configs|slurm|benchmarks)/[\w./]+\.(?:py|json|sh))`", TEXT[page]):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", [page for page in TEXT if blocks(page, "python") and page != "docs/images.md"])
def test_python_runs(page, finished_run, demo_cache):
    torch.manual_seed(0)
    exec(compile("\n".join(blocks(page, "python")), page, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("name", vitkd_ds.__all__)
def test_signatures_on_the_page_match_the_code(name):
    written = re.search(rf"^## {name}\n\n`{name}\((.*)\)`$", TEXT["docs/python.md"], re.M).group(1)
    found = inspect.signature(getattr(vitkd_ds, name))
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in found.parameters.values()]
    assert inspect.signature(eval(f"lambda {written}: 0")) == inspect.Signature(bare)


def listed_as_stable(heading):
    """The code at the start of each list item in a section of docs/stability.md."""
    section = TEXT["docs/stability.md"].partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^- `(.+?)`", section, re.M)


def test_the_stable_python_names_match_the_packages_exports():
    assert sorted(listed_as_stable("Python names")) == sorted(vitkd_ds.__all__)


def test_the_stable_commands_match_the_command_line():
    assert sorted(listed_as_stable("Command line")) == sorted(f"vitkd-ds {name}" for name in cli.COMMANDS)


def test_the_stable_keys_of_the_side_file_match_the_keys_that_pack_writes():
    keys = listed_as_stable("The side file of a `.beton`")
    assert sorted(keys) == sorted(["format", *SIDE_KEYS, *TABLE_KEYS, SOURCE_KEY])
    assert f"has format {SIDE_FORMAT} and these keys" in TEXT["docs/stability.md"]


@pytest.mark.parametrize("page", TEXT)
def test_numbers_that_cite_results_are_in_results(page):
    """In each paragraph and table row that cites RESULTS.md or names a row of it: numbers with three digits or a
    point."""
    known = set(re.findall(r"\d[\d,.]*\d", RESULTS))
    text = re.sub(r"```.*?```", "", TEXT[page], flags=re.S)
    for part in re.split(r"\n\n|\n(?=[|-])", text):
        if re.search(r"RESULTS\.md|\b[SKC]\d+\b", part) and page not in ("CHANGELOG.md", "EXPERIMENTS.md"):
            words = re.sub(r"`[^`]*`|\]\([^)]*\)|\b\d[\d.]*e\d+|\b[SKC]\d+", "", part)
            found = {number for number in re.findall(r"\d[\d,.]*\d", words) if re.search(r"[.,]|\d{3}", number)}
            assert found <= known, (part, found - known)


def test_the_table_of_formats_follows_from_its_rows():
    pattern = r"^\| .* \| `(ours-\w+)` \| ([\d,]+) \| (\d+) GB \| ([\d,]+) \| .* \| (\d+) / (\d+) / (\d+) \|$"
    rows = re.findall(pattern, TEXT["docs/data.md"], re.M)
    assert len(rows) == 6
    for name, num_bytes, gigabytes, speed, *cores in rows:
        assert re.search(rf"^\| {name}\b[^|]*\| {speed} ", RESULTS, re.M), name
        num_bytes, speed = (float(number.replace(",", "")) for number in (num_bytes, speed))
        assert round(num_bytes * 1_281_167 / 1e9) == int(gigabytes)
        assert [round(8 * images_per_s / speed) for images_per_s in (7000, 3800, 1500)] == list(map(int, cores))


def test_published_accuracies_match_the_recipes():
    rows = re.findall(r"^\| \[`(\w+)`\].* \| (.*) \| (.*) \| (.*) \|$", TEXT["README.md"], re.M)
    assert len(rows) == 3
    for recipe, *accuracies in rows:
        assert all(accuracy in inspect.getdoc(RECIPES[recipe]) for accuracy in accuracies), recipe


def test_the_readme_starts_with_own_images_and_the_command_tested_under_launchers():
    """`tests/test_end_to_end.py` runs the default with --debug, under two launchers."""
    section = TEXT["README.md"].partition("## First commands")[2].partition("\n## ")[0]
    (own,) = re.findall(r"^vitkd-ds train --recipe images .*--data.train \S+ --data.val \S+", section, re.M)
    assert "deepspeed train.py --ds_config ds_configs/zero2.json" in section and own
    run = (ROOT / "tests/test_end_to_end.py").read_text()
    assert '["train.py", "--ds_config", "ds_configs/zero2.json", "--debug"' in run


def test_the_small_student_on_the_page_is_smaller():
    (args,) = re.findall(r"^\| a smaller student \| `--student.model_args='(.*)'`", TEXT["docs/images.md"], re.M)
    sizes = [
        sum(weight.numel() for weight in timm.create_model("deit_tiny_patch16_224", **made).parameters())
        for made in (json.loads(args), {})
    ]
    assert json.loads(args).keys() == {"embed_dim", "depth", "num_heads"} and sizes[0] < sizes[1] / 2


def test_the_readme_is_short_and_the_tree_of_contributing_is_the_package():
    assert len(TEXT["README.md"].splitlines()) <= 100
    (tree,) = re.findall(r"## Layout\n\n```\n(.*?)```", TEXT["CONTRIBUTING.md"], re.S)
    rooms, room = {}, ""
    for first, description in re.findall(r"^(\S*) +(.*)$", tree, re.M):
        room = first or room
        rooms[room] = rooms.get(room, "") + description
    for room, description in rooms.items():
        assert (ROOT / room).exists(), room
        for name in re.findall(r"[\w/]+\.(?:py|md)|\w+/(?= )", description):
            assert (ROOT / room / name).exists() or (ROOT / name).exists(), (room, name)
    folders = {f"{path.parent.relative_to(ROOT)}/" for path in (ROOT / "vitkd_ds").rglob("*.py")}
    assert folders <= rooms.keys(), "a folder of the package is missing from the tree"
    top = [path for pattern in ("*.py", "*.toml", "*.yml", "Makefile", "vitkd_ds/*.py") for path in ROOT.glob(pattern)]
    assert [path.name for path in top if not re.search(rf"\b{path.name}\b", tree)] == []


class Marked:
    """Unpickling it creates a file."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("hostile", [
    {"checkpoint_path": "evil.pth"}, {"pretrained": True, "pretrained_cfg": {"file": "evil.pth", "num_classes": 3}},
], ids=["checkpoint", "pretrained"])  # fmt: skip
def test_the_readmes_loader_runs_no_code_of_a_student(tmp_path, monkeypatch, hostile):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "make_demo" / "distilled"
    folder.mkdir(parents=True)
    args = {"depth": 1, "embed_dim": 12, "num_heads": 1, "num_classes": 3, "img_size": 32}
    model = timm.create_model("deit_tiny_patch16_224", **args)
    save_file(model.state_dict(), folder / "student.safetensors")
    made = {"model": "deit_tiny_patch16_224", "args": args | hostile}
    (folder / "student.json").write_text(json.dumps(made))
    Path("evil.pth").write_bytes(pickle.dumps(Marked()))
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", TEXT["README.md"], re.S) if "load_file" in block]
    loaded = {}
    exec(code, loaded)
    assert not Path("ran").exists()
    assert torch.equal(loaded["model"].head.weight, model.head.weight)
