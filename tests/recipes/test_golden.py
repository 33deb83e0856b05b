"""Every setting that a result depends on, against tests/golden/settings.json: a changed number shows as a changed line.

`python -m tests.recipes.test_golden` rewrites the file after an intended change; its diff belongs into the review.
"""

import importlib
import inspect
import json
import pkgutil
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import get_origin, get_type_hints

import vitkd_ds
from tests.conftest import ROOT
from vitkd_ds.commands.plan.hardware import HARDWARE
from vitkd_ds.config.run import Run, as_dict
from vitkd_ds.engine.ds_config import RECIPE_OWNED, TEACHER_FILES, load_ds_config, most_blocks, resolve_auto
from vitkd_ds.recipes import RECIPES, build_run

GOLDEN = ROOT / "tests" / "golden" / "settings.json"
PLAIN = (bool, int, float, str)


def flat(value, path=""):
    """Nested settings as dotted path to value."""
    if is_dataclass(value):
        value = as_dict(value) if isinstance(value, Run) else asdict(value)
    if isinstance(value, dict) and value:
        return {key: leaf for name, part in value.items() for key, leaf in flat(part, f"{path}.{name}").items()}
    return {path.removeprefix("."): value}


def defaults(kind, path=""):
    """Defaults of a settings class as dotted path to value; a field without one gets its own class's defaults."""
    found = {}
    for field in fields(kind):
        name, hint = f"{path}.{field.name}".removeprefix("."), get_type_hints(kind)[field.name]
        default = field.default if field.default_factory is MISSING else field.default_factory()
        inner = next((each for each in (hint, *getattr(hint, "__args__", ())) if is_dataclass(each)), None)
        name = inner._place if get_origin(hint) is dict else name  # files store a run's only teacher under this name
        if default is not MISSING:
            found |= flat(default, name)
        elif inner:
            found |= defaults(inner, name)
    return found


def changes(run, before):
    """A run's values that differ from other settings, as dotted path to value."""
    return {name: value for name, value in flat(run).items() if name not in before or before[name] != value}


def is_number(value):
    """Whether a constant consists only of numbers and texts, with at least one number."""
    if isinstance(value, (tuple, list, dict)):
        leaves = [*value] if not isinstance(value, dict) else [*value.values()]
        return any(map(is_number, leaves)) and all(isinstance(leaf, (*PLAIN, tuple)) for leaf in leaves)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def numbers_of(room):
    """Numeric constants of a folder's modules, and numeric defaults of their functions."""
    package, found = importlib.import_module(f"vitkd_ds.{room}"), {}
    for info in pkgutil.walk_packages(package.__path__, f"vitkd_ds.{room}."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if name.isupper() and is_number(value):
                named = {str(key): part for key, part in value.items()} if isinstance(value, dict) else value
                found[f"{info.name}.{name}"] = named
            is_own = getattr(value, "__module__", "") == info.name and not is_dataclass(value)  # see `defaults`
            function = vars(value).get("__init__") if inspect.isclass(value) else value
            if is_own and inspect.isfunction(function):
                for parameter in inspect.signature(function).parameters.values():
                    if is_number(parameter.default):
                        found[f"{info.name}.{name}({parameter.name})"] = parameter.default
    return found


def ds_configs():
    """DeepSpeed's settings on one rank and on two, compiled or not."""
    found = {}
    for file in ("zero2.json", "zero2_autocast.json", *sorted({*TEACHER_FILES.values()})):
        for world_size, is_compiled in ((1, False), (2, False), (2, True)):
            config = load_ds_config(f"ds_configs/{file}", dict.fromkeys(RECIPE_OWNED, "auto"))
            resolve_auto(config, world_size=world_size, is_compiled=is_compiled)
            found[f"{file}, {world_size} ranks{', compiled' * is_compiled}"] = config
    blocks = {placement: most_blocks(placement, 100 * 2**20) for placement in TEACHER_FILES}
    return {"files": TEACHER_FILES, "blocks of 100 MiB on a GPU": blocks, "configs": found}


def settings():
    """All recorded values, as JSON stores them."""
    plain = defaults(Run)
    runs = {name: build_run(name) for name in RECIPES}
    small = {name: changes(build_run(name, debug=True), flat(run)) for name, run in runs.items()}
    found = {
        "defaults": plain,
        "recipes": {name: changes(run, plain) for name, run in runs.items()},
        "recipes in debug size": small,
        "deepspeed": ds_configs(),
        "hardware": {name: asdict(card) for name, card in HARDWARE.items()},
        "numbers": {
            name: value for room in ("losses", "models", "recipes", "train", "config", "data.augment", "commands.plan")
            for name, value in numbers_of(room).items()
        },
    }  # fmt: skip
    return json.loads(json.dumps(found))


def test_every_recipe_default_and_published_number_matches_the_record():
    golden, found = json.loads(GOLDEN.read_text()), settings()
    before, now = flat(golden), flat(found)
    different = [f"{name}: {before.get(name, 'nothing')!r} -> {now.get(name, 'nothing')!r}"
                 for name in sorted({*before, *now}) if before.get(name, ...) != now.get(name, ...)]  # fmt: skip
    assert not different, "\n".join(["if intended, python -m tests.recipes.test_golden rewrites them:", *different])
    assert len(found["recipes"]) == len(RECIPES) and len(found["numbers"]) > 50, "otherwise nothing is pinned"


if __name__ == "__main__":
    assert vitkd_ds.__file__.startswith(str(ROOT))
    GOLDEN.write_text(json.dumps(settings(), indent=1, sort_keys=True) + "\n")
