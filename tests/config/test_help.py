"""Output of `train.py --help`: every field with its kind, default and docstring."""

import pytest

from vitkd_ds.config.help import field_help
from vitkd_ds.config.losses import TERMS
from vitkd_ds.config.overrides import settings_of
from vitkd_ds.config.run import Run
from vitkd_ds.recipes import build_run


def fields_in(text):
    """{key: (option line, docstring)}; the width must be large enough to avoid wrapping."""
    lines = text.splitlines()
    return {
        line.split()[0].partition("=")[0].removeprefix("--"): (line.strip(), below.strip())
        for line, below in zip(lines, [*lines[1:], ""])
        if line.startswith("  --")
    }


@pytest.mark.parametrize("recipe", ["demo", "demo_plain"])
def test_every_field_is_listed_once_with_a_docstring(recipe):
    text = field_help(build_run(recipe), width=1000)
    fields = fields_in(text)
    keys = {setting.key for setting in settings_of(Run, build_run("demo"))}
    assert fields.keys() == keys and text.count("\n  --") == len(keys)
    for key, (_, docstring) in fields.items():
        assert len(docstring) > 10 and not docstring.startswith("--"), f"{key} needs a docstring"


def test_options_show_default_and_kind_as_typed_on_the_command_line():
    fields = fields_in(field_help(build_run("deit_tiny_from_deit3_small"), width=1000))
    for key, option in {
        "optim.lr": "--optim.lr=0.001  (a number above 0)",
        "compile": "--compile=default  (one of off, default, max-autotune, reduce-overhead)",
        "student.init": "--student.init=''  (text)",
        "teacher.placement": "--teacher.placement=shard  (one of shard, replica, offload)",
        "losses.kd.schedule": "--losses.kd.schedule=constant  (one of constant, linear, cosine)",
        "data.interpolation": "--data.interpolation=bicubic  (one of bilinear, bicubic, random)",
        "optim.betas": "--optim.betas=0.9,0.999  (two numbers in [0, 1) separated by a comma)",
    }.items():
        assert fields[key][0] == option
    model_args = fields_in(field_help(build_run("demo"), width=1000))["student.model_args"][0]
    assert model_args.startswith("""--student.model_args='{"patch_size": 4, "embed_dim": 64,""")


def test_the_top_level_comes_first_and_each_group_has_a_heading():
    losses = ["losses", *(f"losses.{name}" for name in TERMS)]
    everything = ["run", "student", "teacher", "data", "augment", *losses, "optim", "checkpoint"]
    for topic, expected in (("", everything), ("losses", losses)):
        lines = field_help(build_run("demo"), topic, width=1000).splitlines()
        assert [line.partition(":")[0] for line in lines if line and line[0] != " "] == expected


@pytest.mark.parametrize(
    "topic, keys",
    [
        ("lr", {"optim.lr", "optim.lr_batch_size", "optim.min_lr"}),
        ("warmup", {"optim.warmup_epochs", "optim.warmup_fraction", "optim.warmup_start_factor"}),
        ("knn_val", {"data.knn_val"}),
        ("optim.lr", {"optim.lr"}),
    ],
)
def test_a_word_shows_all_fields_with_this_word_in_their_names(topic, keys):
    assert fields_in(field_help(build_run("demo"), topic, width=1000)).keys() == keys


def test_a_missing_part_is_listed_with_its_own_defaults():
    text = field_help(build_run("demo_plain"), "teacher", width=1000)
    assert "The recipe has none" in text.splitlines()[0]
    assert "\n  --teacher.model  (text)\n" in text and "--teacher.checkpoint=hub" in text
    assert "--teacher.model_args='{}'" in text
    assert "has none" not in field_help(build_run("demo"), "teacher", width=1000)


@pytest.mark.parametrize("topic, keys", [
    ("checkpoint", {"checkpoint.every_steps", "checkpoint.keep_last", "checkpoint.max_failures"}),
    ("losses.kd", {"losses.kd.weight", "losses.kd.schedule", "losses.kd.teacher", "losses.kd.temperature",
                   "losses.kd.standardize"}),
    ("optim.lr", {"optim.lr"}),
    ("seed", {"seed"}),
])  # fmt: skip
def test_help_can_show_one_group_or_field(topic, keys):
    assert fields_in(field_help(build_run("demo"), topic, width=1000)).keys() == keys


@pytest.mark.parametrize("topic, nearest", [
    ("optimm", "optim"), ("losses.nkdd", "losses.nkd"), ("losses.nkd.gama", "losses.nkd.gamma"),
])  # fmt: skip
def test_an_unknown_topic_is_rejected_with_the_nearest(topic, nearest):
    with pytest.raises(ValueError, match=f"--help {topic}: no such group or field; did you mean {nearest}"):
        field_help(build_run("demo"), topic, width=80)


@pytest.mark.parametrize("width", [40, 80, 132])
def test_help_is_wrapped_to_the_width(width):
    lines = field_help(build_run("demo"), width=width).splitlines()
    assert width - 15 < max(len(line) for line in lines) <= width or width == 40
    assert all(len(line) <= width for line in lines if "--" not in line)
