"""Command line to checked command: text stays text, unknown options are rejected by name; help."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.conftest import ROOT, numerics_of, run_command
from vitkd_ds import cli
from vitkd_ds.cli import parse_run
from vitkd_ds.config.run import as_dict
from vitkd_ds.data.demo import demo_beton
from vitkd_ds.recipes import RECIPES, build_run


def test_the_demo_parses_and_values_keep_their_text_or_convert_by_field_type():
    assert parse_run((), {}) == build_run("demo")
    run = parse_run((), {
        "workdir": "2024_01", "optim.lr": "3e-4", "compile": "True", "seed": "7", "data.crop_scale": "0.5,1",
        "losses.vitkd.blocks": "(1,2)", "student.model_args": '{"depth": 3}', "eval_every_epochs": "0.5",
    })  # fmt: skip
    assert run.workdir == "2024_01" and run.optim.lr == 3e-4 and run.compile == "default" and run.seed == 7
    assert run.data.crop_scale == (0.5, 1.0) and run.losses.vitkd.blocks == (1, 2)
    assert run.student.model_args == {"depth": 3} and run.eval_every_epochs == 0.5


@pytest.mark.parametrize("flags, message", [
    ({"optim.lrr": "1"}, "--optim.lrr is not an option: did you mean --optim.lr"),
    ({"lr": "1"}, r"--lr is not an option: did you mean --optim.lr\?"),
    ({"recipe": "demoo"}, "--recipe demoo is not a recipe: did you mean demo"),
    ({"teacher.placement": "shards"}, "teacher.placement must be one of shard, replica, offload, got 'shards'"),
    ({"optim.lr": "fast"}, "optim.lr must be a number above 0, got 'fast'. Change it in the recipe or"),
    ({"optim.lr": "nan"}, "optim.lr must be a number above 0, got 'nan'"),
    ({"seed": "1.5"}, "seed must be a whole number, 0 or more, got '1.5'"),
    ({"seed": "1_0"}, "seed must be a whole number, 0 or more, got '1_0'"),
    ({"compile": "maybe"}, "compile must be one of off, default, max-autotune, reduce-overhead, got 'maybe'"),
    ({"debug": "maybe"}, "--debug must be true or false"),
    ({"data.crop_scale": "1"}, "data.crop_scale must be two numbers separated by a comma, 0 < low"),
    ({"student.model_args": "[1]"}, "student.model_args must be a JSON object"),
    ({"recipe": "demo_plain", "teacher.placement": "shard"}, "teacher.model is not set, and recipe demo_p"),
    ({"recipe": "demo_plain", "teacher.model": "x"}, "the teacher is not used: none of kd, nkd, vitkd"),
    ({"teacher": "demo"}, "--teacher must be none, got 'demo'. Pass a teacher's weights or run"),
    ({"teacher": "none", "teacher.placement": "shard"}, "--teacher.placement and --teacher none exclude"),
    ({"teacher": "none", "losses.kd.weight": "1"}, "--losses.kd.weight=1 and --teacher none exclude each other"),
    ({"recipe": "images", "data.train": "x", "data.val": "y"}, "teacher.model is not set.* or --teacher none"),
    ({"recipe": "images", "teacher": "none", "data.val": "y"}, "data.train is not set, and recipe images"),
    ({"recipe": "images", "teacher": "none", "data.train": "x"}, "data.val is not set"),
    ({"recipe": "images", "teacher": "none", "data.train": "x.beton", "data.val": "y"}, "x.beton.* does not exist"),
    ({"epochs": "2"}, "optim.warmup_epochs \\(2\\) must be less than epochs \\(2\\)"),
    ({"optim.warmup_fraction": "0.1"}, "optim.warmup_epochs=2 and optim.warmup_fraction=0.1 exclude each other"),
    ({"optim.min_lr": "0.01"}, "optim.min_lr must be at most the peak learning rate, which is 0.0015 for global"),
    ({"optim.lr": "1e-3", "global_batch_size": "12", "optim.min_lr": "3e-4"}, "which is 0.00025 for global_batch"),
    ({"recipe": "demo_plain", "losses.nkd.weight": "1"}, "losses.nkd needs a teacher"),
    ({"losses.nkd.weight": "0", "losses.vitkd.weight": "0"}, "the teacher is not used: none of kd, nkd, vitkd"),
    ({"losses.ce.weight": "0", "recipe": "demo_plain"}, "no loss term is on"),
    ({"teacher.checkpoint": "random"}, "for --debug runs only"),
    ({"augment.rand_augment": "m9"}, "augment.rand_augment must start with rand-"),
    ({"augment.rand_augment": "rand-m9-q3"}, "augment.rand_augment"),
    ({"teacher.fp8": "true"}, "teacher.fp8 needs the whole teacher on each rank, got"),
    ({"teacher.checkpoint": ""}, "teacher.checkpoint must be a file, a folder, hub, demo or random, got ''"),
])  # fmt: skip
def test_invalid_options_are_rejected_with_key_and_value(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_run((), flags)


def test_switches_need_no_value(capsys):
    cli.train(compile="True", deterministic="True", debug="True", print_config="True")
    printed = json.loads(capsys.readouterr().out)
    assert (printed["compile"], printed["deterministic"], printed["debug"]) == ("default", True, True)


def test_own_images_without_a_recipe_get_a_hint(caplog, demo_cache):
    caplog.set_level("INFO", logger="vitkd_ds")
    for flags in ({}, {"data.train": "demo"}, {"recipe": "demo", "data.train": str(demo_beton("train"))}):
        parse_run((), flags)
    assert not caplog.messages
    parse_run((), {"data.train": str(demo_beton("train")), "data.val": "demo"})
    (message,) = caplog.messages
    assert f"{demo_beton('train')} gets the settings of the demo" in message and "Pass --recipe images" in message


@pytest.mark.parametrize("words, message", [
    (["train", "demo"], "unexpected argument 'demo'. Options start with --."),
    (["trian"], "vitkd-ds has no command trian: did you mean train"),
    (["help", "optim"], "vitkd-ds has no command optim: did you mean vitkd-ds train --help optim?"),
    (["--recipe", "demo"], "vitkd-ds has no command --recipe"),
    (["export", "a"], "the command needs RUN DST, got a"),
    (["predict", "a", "--top=2"], "the command needs STUDENT IMAGE [IMAGE ...], got a"),
    (["show"], r"the command needs DATA [DST], got nothing"),
    (["show", "a", "b", "c"], r"the command needs DATA [DST], got a b c"),
    (["compare", "--csv"], "the command needs RUN [RUN ...], got nothing"),
    (["compare", "no-run", "b", "--csv"], "no-run is not a run folder: it has no config.json"),
    (["recipes", "--debug"], "--debug is not an option: there are none"),
    (["pack", "a", "b", "--qualty=3"], "--qualty is not an option: did you mean --quality"),
    (["pack", "a", "b", "--quality=high"], "--quality must be a whole number, got 'high'"),
    (["plan", "--recipe=demo", "--nodes=many"], "--nodes must be a whole number"),
    (["show", "a", "--print_config"], "--print_config is not an option"),
    (["train", "--print_config=maybe"], "--print_config must be true or false"),
    (["train", "--resume"], "--resume has no value. Pass one, such as --resume=auto. Start of training. auto: resume"),
    (["train", "--workdir", "--debug"], "--workdir has no value. Pass one. Run folder."),
    (["doctor", "--optim.lr"], "--optim.lr has no value. Pass a number above 0, such as --optim.lr=0.001. Peak"),
    (["train", "--data.classes"], "--data.classes has no value. Pass one. File that lists"),
    (["train", "--teacher"], "--teacher has no value. Pass --teacher none. Train without a teacher"),
    (["sweep", "--recipes=demo", "--grid.data.order"], "--grid.data.order has no value. Pass one of random, quasi"),
    (["eval", "x", "--val"], "--val has no value. Pass --val PATH. Validation images"),
    (["train", "--normalize"], "--normalize is not an option: mean and std come from the student's timm model"),
    (["plan", "--recipe=demo", "--nodes", "--gpus=2"], "--nodes has no value. Pass --nodes N. Number of nodes"),
    (["eval", "missing"], "missing is not a run, checkpoint or exported student: there is no folder missing. Check"),
    (["watch", __file__], "is not a run folder: it is a file"),
    (["train", "--help", "teachers"], "--help teachers: no such group or field; did you mean teacher?"),
    (["predict", "--model=x", "y.jpg"], "--model is not an option: "),
    (["eval", "x", "--batch_size=3"], "--batch_size is not an option: did you mean --micro_batch_size?"),
    (["report", "x", "--output=y"], "--output is not an option: did you mean --out?"),
    (["train", "--help", "optimm"], "--help optimm: no such group or field; did you mean optim"),
    (["train", "--help", "--recipe", "demoo"], "--recipe demoo is not a recipe"),
    (["train", "--recipe=./none"], "no run at none"),
    (["train", "--recipe=./none", "--debug"], "--debug needs a named recipe, got the stored run ./none"),
    (["show", "demo", "--recipe=no/run"], "no run at no/run"),
    (["doctor", "--recipe=no/run"], "no run at no/run"),
    (["doctor", "--epochs=2"], "optim.warmup_epochs (2) must be less than epochs (2)"),
    (["plan", "--recipe=no/run"], "no run at no/run"),
    (["plan", "--recipe=demo", "--hardware=h10"], "--hardware h10 is unknown: did you mean h100"),
    (["eval", "no-run"], "no-run is not a run, checkpoint or exported student"),
    (["eval", "no-run", "--knn"], "no-run is not a run, checkpoint or exported student"),
    (["predict", "no-run", "x.jpg"], "no-run is not a run, checkpoint or exported student"),
    (["export", "no-run", "new"], "no-run is not a run, checkpoint or exported student"),
    (["export", "no-run", "new", "--format=zip"], "--format zip is unknown: valid names are hf, onnx, timm, torch_exp"),
    (["show", "demo", "no/such.png"], "the folder of DST, 'no', does not exist"),
    (["show", "demo", "x.gif"], "DST must end in .png, got 'x.gif'"),
    (["train", "--ds_config=none.json"], "none.json"),
])  # fmt: skip
def test_a_rejected_command_prints_one_line_and_exits_with_code_2(vitkd_ds, capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        vitkd_ds(*words)
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and message in printed.err and printed.err.count("\n") == 1
    assert not printed.out


@pytest.mark.parametrize("command, target, words, options", [
    (cli.export, "commands.export.export", ("R", "D"), {
        "format": ("onnx", "onnx"), "which": ("best", "best"), "half": ("true", True), "val": ("v", "v"),
        "push": ("a/b", "a/b")}),
    (cli.evaluate, "commands.evaluate.evaluate_exported", ("S",), {
        "val": ("v", "v"), "teacher": ("t", "t"), "teacher_checkpoint": ("c", "c"), "micro_batch_size": ("8", 8)}),
    (cli.compare, "commands.compare.compare", ("A", "B", "C"), {
        "csv": ("true", True), "plot": ("1.png", "1.png"), "speed": ("false", False)}),
    (cli.pack, "commands.pack.pack", ("S", "D"), {
        "passthrough": ("true", True), "max_resolution": ("1", 1), "short_side": ("2", 2), "write_mode": ("raw", "raw"),
        "restart_markers": ("true", True), "quality": ("3", 3), "shuffle": ("1", True), "workers": ("4", 4),
        "skip_bad": ("yes", True),
        "restart": ("no", False), "labels": ("1_0", "1_0"), "classes": ("5", "5"), "split": ("6", "6")}),
])  # fmt: skip
def test_words_and_options_reach_the_command_converted(monkeypatch, command, target, words, options):
    for name in ("check_student", "check_export"):  # of files, which this command does not have
        monkeypatch.setattr(cli, name, lambda *words, **options: None)
    called = Mock(side_effect=ValueError("called"))
    monkeypatch.setattr(f"vitkd_ds.{target}", called)
    with pytest.raises(ValueError, match="called"):
        command(*words, **{name: text for name, (text, _) in options.items()})
    called.assert_called_once_with(*words, **{name: value for name, (_, value) in options.items()})


def test_predict_passes_its_images_on_and_prints_the_result(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(cli, "check_student", lambda *words: None)
    monkeypatch.setattr("vitkd_ds.commands.predict.predict", lambda *words, **own: calls.append((words, own)) or "xy")
    cli.predict("S", "a.png", "b", top="3", features="true")
    assert calls == [(("S", ("a.png", "b")), {"top": 3, "features": True})] and capsys.readouterr().out == "x\ny\n"


def test_show_and_plan_pass_on_the_run_and_their_own_options(monkeypatch):
    calls = []
    monkeypatch.setattr("vitkd_ds.commands.show.show", lambda *words: calls.append(words))
    monkeypatch.setattr("vitkd_ds.commands.plan.text.plan_text", lambda *words, **own: calls.append((*words, own)))
    cli.show("x.beton", "x.png", recipe="demo_plain", seed="3")
    cli.show("demo")
    cli.plan(recipe="demo", nodes="2", gpus="3", hardware="h200", seed="4")
    assert calls == [
        (
            parse_run((), {"recipe": "demo_plain", "seed": "3", "data.train": "x.beton", "data.val": "x.beton"}),
            Path("x.png"),
        ),
        (parse_run((), {}), Path("show.png")),
        (parse_run((), {"seed": "4"}), {"nodes": 2, "gpus": 3, "hardware": "h200"}),
    ]


def test_messages_are_shown_and_train_installs_signal_handlers_first(vitkd_ds, monkeypatch):
    calls = []
    monkeypatch.setattr(cli.signals, "listen", lambda: calls.append("listen"))
    monkeypatch.setattr(cli.console, "install", lambda: calls.append("install"))
    monkeypatch.setattr(cli.fire, "Fire", lambda *args, name, **options: calls.append(name))
    vitkd_ds("train", "--print_config")
    vitkd_ds("recipes")
    assert calls == ["install", "listen", "train", "install", "recipes"], "streams are opened before any pipe"


def test_help_works_anywhere_and_the_launchers_local_rank_is_not_an_option(vitkd_ds):
    for words in ("--local_rank=1 pack --help", "pack --local-rank=1 -h", "--help pack", "pack a --quality=3 --help b"):
        assert vitkd_ds(*words.split()).startswith("Pack images into")
    assert vitkd_ds("help", "pack") == vitkd_ds("pack", "--help")
    assert vitkd_ds("help", "train", "seed") == vitkd_ds("train", "--help", "seed")


def test_help_on_train_lists_the_fields_of_the_given_recipe(vitkd_ds, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    text = vitkd_ds("--help", main=cli.train_main)
    assert text.startswith("Distil") and "--recipe demo." in text and "--optim.weight_decay=0.05" in text
    assert text == vitkd_ds("train", "--help") == vitkd_ds("--help", "train")
    for words in (["--recipe=demo_teacher", "--help", "optim"], ["--help=optim", "--recipe", "demo_teacher"]):
        text = vitkd_ds(*words, main=cli.train_main)
        assert text.startswith("Defaults are those of --recipe demo_teacher.") and "--optim.ema_decay=0.999" in text
        assert "--seed" not in text and 60 < max(map(len, text.splitlines())) <= 70


def test_recipes_are_listed_with_the_first_line_of_their_docstrings(vitkd_ds, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = vitkd_ds("recipes").splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert lines[1].endswith("  The demo's student without a teacher.")


def test_the_printed_config_equals_the_run_and_works_as_a_recipe(vitkd_ds, tmp_path, monkeypatch):
    text = vitkd_ds("train", "--debug", "--optim.lr=0.5", "--data.crop_scale=0.5,1", "--print_config")
    run = parse_run((), {"debug": "true", "optim.lr": "0.5", "data.crop_scale": "0.5,1"})
    assert text == json.dumps(as_dict(run), indent=2) + "\n"
    (tmp_path / "run.json").write_text(text)
    assert vitkd_ds("train", "--recipe", tmp_path / "run.json", "--print_config") == text
    changed = vitkd_ds("train", f"--recipe={tmp_path}/run.json", "--print_config", "--optim.lr=1", "--workdir=x")
    assert json.loads(changed)["optim"]["lr"] == 1 and json.loads(changed)["workdir"] == "x"
    assert parse_run((), {"recipe": f"{tmp_path}/run.json", "seed": "4"}).seed == 4
    monkeypatch.setenv("RANK", "1")  # only rank 0 prints
    assert vitkd_ds("train", "--print_config") == ""


@pytest.mark.parametrize(
    "words",
    ["train --help", "train --print_config", "recipes", "train --optim.lrr=1", "pakc", "compare no-run", "eval no-run",
     "predict no-run x.jpg", "export no-run new", "show demo x.gif", "plan --recipe demo --hardware x", "report no-run",
     "train --ds_config none.json"],
)  # fmt: skip
@pytest.mark.cold
def test_quick_commands_skip_the_slow_imports(words):
    code = "import atexit, sys; from vitkd_ds.cli import main; "
    code += "atexit.register(lambda: print('slow:', {'torch', 'deepspeed', 'timm'} & {*sys.modules})); main()"
    assert "slow: set()" in run_command(sys.executable, "-c", code, *words.split(), check=False).stdout


@pytest.mark.parametrize("words", ["recipes", "train --help", "train --print_config", "--help"])
def test_a_closed_pipe_ends_a_command_without_a_traceback(words):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "vitkd_ds", *words.split()]
    ended = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("command", ["compare", "doctor", "recipes"])
def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch, vitkd_ds, command):
    monkeypatch.setitem(cli.COMMANDS, command, Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(SystemExit) as ended:
        vitkd_ds(command)
    assert ended.value.code == 128 + signal.SIGINT


def test_a_run_is_reproduced_bit_for_bit_from_its_folder(tmp_path, demo_cache):
    first, again = tmp_path / "first", tmp_path / "again"
    train = [sys.executable, ROOT / "train.py"]
    options = ["--debug", "--max_steps=2", "--seed=3", "--augment.mixup_alpha=0.8", f"--workdir={first}"]
    printed = run_command(*train, *options, "--print_config").stdout
    run_command(*train, *options)
    assert json.loads(printed) == json.loads((first / "config.json").read_text())["run"]
    assert "is already finished" in run_command(*train, "--recipe", first).stderr
    run_command(*train, "--recipe", first / "config.json", "--workdir", again)
    assert numerics_of(again) == numerics_of(first) and len(numerics_of(first)) > 1
    assert (again / "student.safetensors").read_bytes() == (first / "student.safetensors").read_bytes()


@pytest.mark.parametrize("workdir", ["{}/file", "{}/file/run", "/dev/null/run", "{}/" + 257 * "x", "{}/loop/run"])
def test_an_impossible_run_folder_is_rejected_so_that_no_job_is_requeued_for_it(vitkd_ds, tmp_path, workdir, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for resume in ("auto", "none", str(tmp_path)):
        words = ["train", f"--workdir={workdir.format(tmp_path)}", f"--resume={resume}"]
        with pytest.raises(SystemExit) as ended:
            vitkd_ds(*words)
        assert ended.value.code == cli.REFUSED
        assert "cannot be created: " in capsys.readouterr().err
