"""Recipe for a data set of your own with 1,000 to 1,000,000 images."""

from vitkd_ds.config.losses import CrossEntropyTerm, LossesConfig, NKDTerm, ViTKDTerm
from vitkd_ds.config.run import AugmentConfig, DataConfig, OptimConfig, Run, StudentConfig, TeacherConfig


def images() -> Run:
    """Your own images: a student distilled from a teacher of your choice, or trained without one (--teacher none).

    Command: `python train.py --recipe images --data.train TRAIN --data.val VAL --student.model MODEL
    --teacher.checkpoint RUN --epochs N`, where TRAIN and VAL are .beton files, or folders with one subfolder per class.
    Expected top-1: it depends on the images. docs/images.md is a walk-through. Hardware: two CPU cores or more.

    The classes are taken from TRAIN. The warm-up takes the first 5 % of the run. ViTKD's alpha and beta are taken from
    the paper, scaled to the student's number of tokens and the teacher's width.
    """
    return Run(
        recipe="images",
        workdir="runs/images",
        student=StudentConfig(model="deit_tiny_patch16_224"),
        teachers={"teacher": TeacherConfig(model="")},
        data=DataConfig(train="", val="", image_size=224, num_classes=0, crop_scale=(0.25, 1.0)),
        augment=AugmentConfig(rand_augment="rand-m7-mstd0.5-inc1", mixup_alpha=0.2, cutmix_alpha=0.2),
        losses=LossesConfig(
            ce=CrossEntropyTerm(weight=1, label_smoothing=0.1),
            nkd=NKDTerm(weight=1),
            vitkd=ViTKDTerm(weight=1, scaled=True),
        ),
        optim=OptimConfig(lr=5e-4, lr_batch_size=128, min_lr=1e-6, warmup_epochs=0, warmup_fraction=0.05),
        global_batch_size=128,  # 1,000 images still give 7 updates per epoch
        micro_batch_size_per_gpu=128,
        epochs=100,
        eval_every_epochs=5,
    )
