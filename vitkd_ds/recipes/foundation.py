"""Students distilled from DINOv3.

None of these recipes has been run at full size, so their top-1 is unknown. The teachers' weights were published by
Meta. A run prints the licence of the weights at its start and stores it with the student. Only accounts that have
accepted this licence can download the weights from the hub, after `hf auth login`.
"""

from dataclasses import replace

from vitkd_ds.config.losses import CrossEntropyTerm, FeatureTerm, LossesConfig, NKDTerm, RelationTerm, ViTKDTerm
from vitkd_ds.config.run import AugmentConfig, Run, StudentConfig, TeacherConfig
from vitkd_ds.recipes.imagenet import deit_tiny_from_deit3_small

LARGE = "vit_large_patch16_dinov3.lvd1689m"


def deit_tiny_from_dinov3_large_probe() -> Run:
    """DeiT-Tiny from DINOv3 ViT-L with a linear probe as head: labels, logits and tokens in one pass.

    All settings except the teacher are as in the ViTKD paper. Probes for ImageNet-1k are published
    (yberreby/dinov3-in1k-probes); the one for ViT-L has 87.44 % top-1 at 512 px. Here, the teacher gets 224-px images,
    so that it has the same 14 x 14 grid of patches as the student. This lowers its accuracy, which a run measures at
    its start. With `--teacher.image_size=512`, the teacher gets images of the size that the probe was trained for, at
    nearly six times the FLOPs.

    Command: as for `deit_tiny_from_deit3_small`, with `--recipe deit_tiny_from_dinov3_large_probe --teacher.head
    head.safetensors`. Expected top-1: unknown.
    """
    run = deit_tiny_from_deit3_small()
    return replace(
        run,
        recipe="deit_tiny_from_dinov3_large_probe",
        workdir="runs/deit_tiny_from_dinov3_large_probe",
        teachers={"teacher": TeacherConfig(model=LARGE)},
        losses=LossesConfig(ce=run.losses.ce, nkd=NKDTerm(weight=1), vitkd=ViTKDTerm(weight=1, scaled=True)),
    )


def vit_small_from_dinov3_large() -> Run:
    """ViT-Small from the features of DINOv3 ViT-L, without labels: class token, patches, and their relations.

    There are two losses, each with weight 1. The loss of EUPE (arXiv 2603.22387) compares standardised features through
    adapters. The loss of lightly-train's third version of distillation compares cosine similarities among tokens and
    among images. The other settings are our choice: 100 epochs, 3-Augment with colour jitter as in DeiT III, no Mixup
    or CutMix, AdamW with learning rate 1e-3 at 1,024 images. ImageNet-1k is only an example: pass your own images with
    `--data.train` and `--data.val`. The images may be unpacked, or packed with `--labels none`.

    Command: as for `deit_tiny_from_deit3_small`, with `--recipe vit_small_from_dinov3_large`; then `vitkd-ds eval
    runs/vit_small_from_dinov3_large --knn --probe --train TRAIN --val VAL`. Expected accuracy: unknown.
    """
    run = deit_tiny_from_deit3_small()
    return replace(
        run,
        recipe="vit_small_from_dinov3_large",
        workdir="runs/vit_small_from_dinov3_large",
        student=StudentConfig(model="vit_small_patch16_224"),
        teachers={"teacher": TeacherConfig(model=LARGE)},
        data=replace(run.data, labels="ignore", num_classes=0),
        augment=AugmentConfig(three_augment=True, color_jitter=0.3),
        losses=LossesConfig(
            ce=CrossEntropyTerm(weight=0), feature=FeatureTerm(weight=1), relation=RelationTerm(weight=1)
        ),
        optim=replace(run.optim, warmup_epochs=5),
        epochs=100,
    )


def vit_small_from_dinov3_7b() -> Run:
    """ViT-Small from the features of DINOv3 ViT-7B, without labels.

    The teacher has 6,716 M parameters (12.5 GiB in bf16). Each rank holds a shard of them. The blocks of the teacher
    are loaded one at a time, so no rank ever holds the whole teacher. With `--debug`, the teacher has only two blocks.
    All other settings are as in `vit_small_from_dinov3_large`.

    Command: as for `vit_small_from_dinov3_large`, with `--recipe vit_small_from_dinov3_7b`; `vitkd-ds plan --recipe
    vit_small_from_dinov3_7b` predicts speed and memory. Expected accuracy: unknown.
    """
    name = "vit_small_from_dinov3_7b"
    teachers = {"teacher": TeacherConfig(model="vit_7b_patch16_dinov3.lvd1689m")}
    return replace(vit_small_from_dinov3_large(), recipe=name, workdir=f"runs/{name}", teachers=teachers)
