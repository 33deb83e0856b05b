"""The ViTKD paper's three pairs on ImageNet-1k, with the settings of its code (cls_KD).

Optimizer: AdamW with learning rate 1e-3 at a global batch size of 1,024, betas 0.9 and 0.999, weight decay 0.05, and
gradient clipping at 5.
Schedule: 300 epochs. In the first 20, the learning rate rises from a thousandth of its peak. Then it decays to 1e-5
along a cosine. Here it changes at every update; in the official code, it changes once per epoch.
Augmentation: random resized crop and flip, RandAugment, random erasing, and either Mixup 0.8 or CutMix 1.0 for each
micro-batch.
Losses: cross-entropy with weight 1 and label smoothing 0.1, plus ViTKD (alpha 3e-5, beta 3e-6, lambda 0.5) and NKD
(temperature 1, gamma 1).
The DeiT-Base pair also has drop path 0.1 and a moving average of the weights with momentum 4e-5.
Source: arXiv 2209.02432 and its code.
"""

from dataclasses import replace

from vitkd_ds.config.losses import CrossEntropyTerm, LossesConfig, NKDTerm, ViTKDTerm
from vitkd_ds.config.run import AugmentConfig, DataConfig, OptimConfig, Run, StudentConfig, TeacherConfig


def deit_tiny_from_deit3_small() -> Run:
    """DeiT-Tiny from DeiT III-Small.

    Command: `deepspeed --quiet train.py --recipe deit_tiny_from_deit3_small --data.train train.beton --data.val
    val.beton`. Published top-1: 77.78 (74.42 without distillation, 76.06 with only ViTKD); not yet reproduced here. The
    paper's hardware: 4 GPUs with 256 images each.
    """
    return _paper_run("deit_tiny_from_deit3_small", "deit_tiny_patch16_224", "deit3_small")


def deit_small_from_deit3_base() -> Run:
    """DeiT-Small from DeiT III-Base.

    Command: as for `deit_tiny_from_deit3_small`, with `--recipe deit_small_from_deit3_base`. Published top-1: 83.59
    (80.55 without distillation, 81.95 with only ViTKD); not yet reproduced here. The paper's hardware: 4 GPUs with 256
    images each.
    """
    return _paper_run("deit_small_from_deit3_base", "deit_small_patch16_224", "deit3_base")


def deit_base_from_deit3_large() -> Run:
    """DeiT-Base from DeiT III-Large, with drop path and a moving average of the weights.

    Command: `sbatch slurm/vitkd_base.sh`, or as for `deit_tiny_from_deit3_small` with `--recipe
    deit_base_from_deit3_large`. Published top-1: 85.41 (81.76 without distillation, 83.46 with only ViTKD); not yet
    reproduced here. The paper's hardware: 16 GPUs with 64 images each.
    """
    run = _paper_run("deit_base_from_deit3_large", "deit_base_patch16_224", "deit3_large")
    student = replace(run.student, drop_path_rate=0.1)
    return replace(run, student=student, optim=replace(run.optim, ema_decay=1 - 4e-5))


def deit_small_from_deit3_base_3augment() -> Run:
    """Experimental: the Small pair with DeiT III's augmentation instead of the paper's.

    As in DeiT III (arXiv 2204.07118), it uses 3-Augment and colour jitter 0.3 instead of RandAugment, no random
    erasing, no label smoothing, each image three times per epoch (repeated augmentation), and a crop fraction of 1.0
    for evaluation. Unlike in DeiT III, which uses LAMB and binary cross-entropy, the optimizer, the losses and the
    number of epochs are as in the ViTKD paper.

    Command: as for `deit_tiny_from_deit3_small`, with `--recipe deit_small_from_deit3_base_3augment`. Expected top-1:
    unknown, because no results of ViTKD with this augmentation are published. Hardware: as for
    `deit_small_from_deit3_base`.
    """
    run = _paper_run("deit_small_from_deit3_base_3augment", "deit_small_patch16_224", "deit3_base")
    return replace(
        run,
        data=replace(run.data, val_crop_fraction=1.0),
        augment=AugmentConfig(repeats=3, three_augment=True, color_jitter=0.3, mixup_alpha=0.8, cutmix_alpha=1.0),
        losses=replace(run.losses, ce=CrossEntropyTerm(weight=1)),
    )


def _paper_run(recipe: str, student: str, teacher: str) -> Run:
    return Run(
        recipe=recipe,
        workdir=f"runs/{recipe}",
        student=StudentConfig(model=student),
        teachers={"teacher": TeacherConfig(model=f"{teacher}_patch16_224.fb_in22k_ft_in1k")},
        data=DataConfig(
            train="data/imagenet_train.beton", val="data/imagenet_val.beton", image_size=224, num_classes=1000
        ),
        augment=AugmentConfig(
            rand_augment="rand-m9-mstd0.5-inc1",
            interpolation="bicubic",
            random_erasing=0.25,
            mixup_alpha=0.8,
            cutmix_alpha=1.0,
        ),
        losses=LossesConfig(
            ce=CrossEntropyTerm(weight=1, label_smoothing=0.1), nkd=NKDTerm(weight=1), vitkd=ViTKDTerm(weight=1)
        ),
        optim=OptimConfig(),
        global_batch_size=1024,
        micro_batch_size_per_gpu=256,  # an upper limit: on 16 GPUs, a rank gets the paper's 64
        epochs=300,
        compile="default",
    )
