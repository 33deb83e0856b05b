"""Names of our options in timm, DeiT, lightly-train and other programs, for hints about unknown options."""

from collections.abc import Collection

NAMES = {
    "augment.color_jitter": "jitter color_jitter_prob",
    "augment.cutmix_alpha": "cutmix",
    "augment.interpolation": "train_interpolation",
    "augment.mix_mode": "mixup_mode",
    "augment.mixup_alpha": "mixup",
    "augment.rand_augment": "aa auto_augment autoaugment transform_args randaugment",
    "augment.random_erasing": "reprob re_prob erasing",
    "augment.repeats": "repeated_aug aug_repeats",
    "augment.three_augment": "threeaugment three_aug 3augment",
    "checkpoint.every_steps": "recovery_interval save_every save_steps save_freq save_interval",
    "checkpoint.keep_last": "checkpoint_hist save_total_limit",
    "classes": "class_map",
    "compile": "torchcompile torch_compile",
    "data.crop_ratio": "ratio",
    "data.crop_scale": "scale",
    "data.flip_probability": "hflip",
    "data.image_size": "img_size input_size image_size resolution size imgsz",
    "data.interpolation": "train_interpolation",
    "data.num_classes": "nb_classes num_labels",
    "data.num_workers": "workers j loader_args",
    "data.train": "data data_dir data_path train_dir train_data train_split root dataset data_set",
    "data.val": "data data_dir data_path val_dir val_data val_split dataset data_set",
    "data.val_crop_fraction": "crop_pct eval_crop_ratio",
    "ds_config": "deepspeed_config deepspeed zero",
    "epochs": "num_epochs n_epochs num_train_epochs max_epochs epoch",
    "eval_every_epochs": "eval_interval val_interval val_every",
    "format": "fmt type",
    "global_batch_size": "batch_size train_batch_size total_batch_size bs b",
    "half": "fp16",
    "log_every_steps": "log_interval print_freq logging_steps",
    "losses.ce.label_smoothing": "smoothing label_smoothing",
    "losses.ce.weight": "task_loss_weight",
    "losses.kd.temperature": "kd_temperature distillation_tau kd_temp tau t",
    "losses.kd.weight": "distill_loss_weight distillation_alpha distillation_type kd_distill_type kd_loss_type method",
    "losses.nkd.weight": "distill_loss_weight distillation_alpha distillation_type kd_distill_type method",
    "losses.vitkd.weight": "distillation_type kd_distill_type method method_args",
    "max_steps": "steps max_iters num_steps total_steps",
    "micro_batch_size": "batch_size bs",
    "micro_batch_size_per_gpu": "batch_size per_device_train_batch_size gradient_accumulation_steps bs",
    "optim.betas": "opt_betas beta1 beta2 optim_args",
    "optim.clip_grad_norm": "clip_grad grad_clip max_grad_norm gradient_clip_val gradient_clipping",
    "optim.ema_decay": "model_ema model_ema_decay ema",
    "optim.eps": "opt_eps adam_epsilon",
    "optim.lr": "learning_rate base_lr blr peak_lr max_lr",
    "optim.lr_batch_size": "lr_base lr_base_size unscale_lr",
    "optim.min_lr": "final_lr lr_min",
    "optim.name": "opt optimizer optim",
    "optim.warmup_epochs": "warmup warmup_epoch num_warmup_epochs",
    "optim.warmup_fraction": "warmup_ratio",
    "optim.warmup_start_factor": "warmup_lr",
    "optim.weight_decay": "wd decay",
    "out": "output output_dir o",
    "plot": "curves",
    "recipe": "config cfg experiment preset",
    "resume=none": "overwrite",
    "resume": "resume_interrupted resume_from start_epoch",
    "seed": "random_seed",
    "seeds": "num_seeds",
    "short_side": "resize size image_size",
    "student.checkpoint_activations": "grad_checkpointing gradient_checkpointing",
    "student.drop_path_rate": "drop_path drop_connect stochastic_depth",
    "student.init=hub": "pretrained",
    "student.init": "initial_checkpoint finetune checkpoint pretrained_path weights",
    "student.model": "model student arch model_name architecture",
    "student.model_args": "model_kwargs model_args embed_dim depth num_heads patch_size gp drop",
    "teacher": "teachers",
    "teacher.checkpoint": "teacher_path teacher_weights teacher_url teacher_checkpoint teacher_ckpt checkpoint",
    "teacher.model": "teacher_model kd_model_name teacher_name method_args",
    "teacher.model_args": "kd_model_kwargs",
    "top": "topk top_k k",
    "trackers": "log_wandb loggers wandb report_to tracker tensorboard",
    "trackers=wandb": "log_wandb wandb",
    "val": "data data_dir data_path val_data",
    "workdir": "out output output_dir save_dir log_dir o outdir",
    "workers": "num_workers j",
}
"""Our option (or option=value) -> its names in other programs. One name may stand for several of our options."""

ELSEWHERE = {
    "a run uses the visible GPUs, one per process, or the CPU if there are none; choose with CUDA_VISIBLE_DEVICES or "
    "DS_ACCELERATOR=cpu": "device devices accelerator gpu gpu_id gpus cuda cpu no_cuda",
    "the launcher starts the processes: deepspeed --num_gpus N --num_nodes N train.py, or srun": (
        "num_gpus num_nodes nodes world_size strategy dist_url dist_backend distributed nproc_per_node dist_eval"
    ),
    "precision is set in DeepSpeed's configuration; pass another file with --ds_config": (
        "amp amp_dtype amp_impl native_amp apex_amp precision fp16 bf16 dtype mixed_precision float32_matmul_precision"
    ),
    "the schedule is always cosine, from optim.lr to optim.min_lr": (
        "sched scheduler lr_scheduler decay_epochs decay_rate cooldown_epochs patience_epochs lr_noise"
    ),
    "mean and std come from the student's timm model": "mean std normalize norm",
    "runs evaluate themselves; use vitkd-ds eval for a finished run": "eval evaluate test no_eval eval_metric",
}
"""Hint -> options of other programs that have no equivalent here."""


def advice(name: str, valid: Collection[str], prefix: str) -> str:
    """Return a hint if `name` is an option of another program; otherwise "".

    Args:
        name: the option without leading dashes.
        valid: options of the command.
        prefix: text in front of each of our options in the hint.
    """
    name = name.lower().replace("-", "_")
    ours = [key for key, others in NAMES.items() if name in others.split() and key.partition("=")[0] in valid]
    if ours:
        return f"did you mean {' or '.join(prefix + key for key in ours)}?"
    return next((remedy for remedy, others in ELSEWHERE.items() if name in others.split()), "")
