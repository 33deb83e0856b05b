"""Options of other programs are mapped to ours."""

import re

import pytest

from vitkd_ds.commands.manual import PAGES
from vitkd_ds.config.options import apply_options
from vitkd_ds.config.overrides import nearest, settings_of
from vitkd_ds.config.run import Run
from vitkd_ds.config.synonyms import ELSEWHERE, NAMES
from vitkd_ds.recipes import build_run

MEANT = {
    "learning_rate lr": "optim.lr",
    "batch_size batch-size": "global_batch_size or micro_batch_size_per_gpu",
    "num_epochs": "epochs",
    "output output_dir out": "workdir",
    "pretrained": "student.init=hub",
    "model": "student.model",
    "data_dir data-path data": "data.train or data.val",
    "img_size input_size": "data.image_size",
    "crop_pct": "data.val_crop_fraction",
    "opt": "optim.name",
    "opt_betas": "optim.betas",
    "clip_grad": "optim.clip_grad_norm",
    "warmup_lr": "optim.warmup_start_factor",
    "model_ema model_ema_decay": "optim.ema_decay",
    "aa": "augment.rand_augment",
    "reprob": "augment.random_erasing",
    "repeated_aug aug_repeats": "augment.repeats",
    "ThreeAugment": "augment.three_augment",
    "smoothing": "losses.ce.label_smoothing",
    "drop_path": "student.drop_path_rate",
    "grad_checkpointing": "student.checkpoint_activations",
    "initial_checkpoint finetune": "student.init",
    "workers num_workers": "data.num_workers",
    "log_interval": "log_every_steps",
    "checkpoint_hist": "checkpoint.keep_last",
    "log_wandb": "trackers or trackers=wandb",
    "teacher_model kd_model_name": "teacher.model",
    "teacher_path teacher_weights": "teacher.checkpoint",
    "distillation_alpha": "losses.kd.weight or losses.nkd.weight",
    "distillation_tau kd_temperature": "losses.kd.temperature",
    "checkpoint": "student.init or teacher.checkpoint",
    "overwrite": "resume=none",
    "loggers": "trackers",
    "method_args": "losses.vitkd.weight or teacher.model",
    "embed_dim": "student.model_args",
}
"""Options of timm's train.py, DeiT's main.py and lightly-train, mapped to ours."""


@pytest.mark.parametrize("names, ours", MEANT.items())
def test_a_name_from_another_program_leads_to_ours(names, ours):
    with_dashes = " or ".join(f"--{name}" for name in ours.split(" or "))
    for name in names.split():
        with pytest.raises(ValueError, match=re.escape(f"--{name} is not an option: did you mean {with_dashes}?")):
            apply_options(build_run("demo"), {name: "1"})


@pytest.mark.parametrize("names, remedy", [
    ("device devices accelerator", "CUDA_VISIBLE_DEVICES"), ("num_nodes strategy world_size", "deepspeed --num_gpus"),
    ("amp precision", "--ds_config"), ("sched", "optim.min_lr"), ("mean", "timm model"), ("eval", "vitkd-ds eval"),
])  # fmt: skip
def test_an_option_that_is_set_elsewhere_says_where(names, remedy):
    for name in names.split():
        with pytest.raises(ValueError, match=f"--{name} is not an option: .*{remedy}"):
            apply_options(build_run("demo"), {name: "1"})


def test_the_table_lists_existing_options_and_repeats_none_in_a_row():
    keys = {setting.key for setting in settings_of(Run, build_run("demo"))}
    of_commands = {key for page in PAGES.values() for key in page.options}
    assert {key.partition("=")[0] for key in NAMES} <= keys | of_commands
    for others in (*NAMES.values(), *ELSEWHERE.values()):
        assert len({*others.split()}) == len(others.split())
    assert not keys & {name for others in (*NAMES.values(), *ELSEWHERE.values()) for name in others.split()}


def test_a_distant_name_is_not_suggested_with_a_close_one():
    assert nearest("teachers", ["teacher", "trackers", "teacher.fp8"]) == "did you mean teacher?"
    assert nearest("zzzz", map(str, range(30))) == "none of the 30 valid names is similar"
