"""Demo on Fashion-MNIST: a small packaged teacher and a much smaller student.

The student trains on 6,000 images (600 per class) and is evaluated on 2,000 of the 10,000 test images. The teacher saw
no test image in training. EXPERIMENTS.md describes how the settings were chosen and measured.
"""

from dataclasses import replace

from vitkd_ds.config.losses import CrossEntropyTerm, FeatureTerm, LossesConfig, NKDTerm, RelationTerm, ViTKDTerm
from vitkd_ds.config.run import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    OptimConfig,
    Run,
    StudentConfig,
    TeacherConfig,
)

TEACHER_ARGS = {"patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4, "init_values": 0.1}
STUDENT_ARGS = {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 2}


def demo() -> Run:
    """A 0.2 M-parameter ViT distilled with ViTKD and NKD from the packaged 1.2 M-parameter teacher.

    Command: `python train.py`. It takes about six minutes on two CPU cores. EXPERIMENTS.md gives the top-1 on 2,000
    images for this recipe, for `demo_plain` and for the teacher.
    """
    plain = demo_plain()
    return replace(
        plain,
        recipe="demo",
        workdir="runs/demo",
        teachers={
            "teacher": TeacherConfig(model="deit3_small_patch16_224", model_args=TEACHER_ARGS, checkpoint="demo")
        },
        # The paper's alpha and beta are for sums over 196 tokens of width 384 or more. The demo's 49 tokens of width
        # 128 give a twelfth of the summands; the remaining factor of eight was tuned on seed 0 (EXPERIMENTS.md).
        losses=replace(plain.losses, nkd=NKDTerm(weight=1), vitkd=ViTKDTerm(weight=1, alpha=3e-3, beta=3e-4)),
    )


def demo_plain() -> Run:
    """The demo's student without a teacher.

    Command: `python train.py --recipe demo_plain`. It takes about three minutes on two CPU cores. Top-1: see `demo`.
    """
    return Run(
        recipe="demo_plain",
        workdir="runs/demo_plain",
        student=StudentConfig(model="deit_tiny_patch16_224", model_args=STUDENT_ARGS),
        teachers={},
        data=DataConfig(
            train="demo",
            val="demo",
            image_size=28,
            num_classes=10,
            crop_scale=(0.8, 1.0),
            crop_ratio=(0.9, 1.1),
            val_crop_fraction=1.0,
        ),
        augment=AugmentConfig(),
        losses=LossesConfig(ce=CrossEntropyTerm(weight=1, label_smoothing=0.1)),
        optim=OptimConfig(lr=1.5e-3, lr_batch_size=48, warmup_epochs=2),
        global_batch_size=48,  # divisible by 1, 2, 3, 4, 6, 8, 12, 16 and 24 ranks
        micro_batch_size_per_gpu=48,
        epochs=20,
        eval_every_epochs=10,
        checkpoint=CheckpointConfig(every_steps=1250),
    )


def demo_fast() -> Run:
    """The demo's student in half the epochs and without a teacher: selected weights and Muon.

    Command: `python train.py --recipe demo_fast`. It takes about two minutes on a CPU core. EXPERIMENTS.md compares its
    top-1 and its computing time with those of `demo` and `demo_plain`.
    """
    plain = demo_plain()
    return replace(
        plain,
        recipe="demo_fast",
        workdir="runs/demo_fast",
        student=replace(plain.student, init="select:demo"),
        optim=replace(plain.optim, name="muon", lr=3e-3, warmup_epochs=1),
        epochs=10,
    )


def demo_label_free() -> Run:
    """The demo's student, trained without labels on features of the packaged teacher.

    Command: `python train.py --recipe demo_label_free`, then `vitkd-ds eval runs/demo_label_free --knn --probe --train
    demo --val demo`. It takes 10 minutes on a CPU core. docs/label_free.md gives the top-1 by k-NN and by a linear
    probe, for this student before and after training and for the teacher.
    """
    run = demo()
    return replace(
        run,
        recipe="demo_label_free",
        workdir="runs/demo_label_free",
        data=replace(run.data, labels="ignore", num_classes=0),
        losses=LossesConfig(
            ce=CrossEntropyTerm(weight=0), feature=FeatureTerm(weight=1), relation=RelationTerm(weight=1)
        ),
    )


def demo_teacher() -> Run:
    """The packaged teacher, trained without distillation on all 60,000 images.

    Top-1 on the 10,000 test images: 92.07 (n = 1).

    First write the images with `python benchmarks/fashion_mnist.py folders data/fashion_mnist`. Pack them with
    `vitkd-ds pack DIR DIR.beton --write_mode raw`, where DIR is data/fashion_mnist/train and then
    data/fashion_mnist/val. Command: `deepspeed --quiet --num_accelerators 2 train.py --recipe demo_teacher`.
    Afterwards, export the student with `vitkd-ds export runs/demo_teacher DST --half`.
    """
    plain = demo_plain()
    return replace(
        plain,
        recipe="demo_teacher",
        workdir="runs/demo_teacher",
        student=StudentConfig(model="deit3_small_patch16_224", model_args=TEACHER_ARGS),
        data=replace(plain.data, train="data/fashion_mnist/train.beton", val="data/fashion_mnist/val.beton"),
        optim=OptimConfig(lr=1e-3, lr_batch_size=128, warmup_epochs=1, ema_decay=0.999),
        global_batch_size=128,
        micro_batch_size_per_gpu=64,
        epochs=40,
        eval_every_epochs=2,
        log_every_steps=50,
        checkpoint=CheckpointConfig(),
    )
