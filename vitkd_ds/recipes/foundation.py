"""Students of DINOv3. None of these has run at full size, and no top-1 of them is known.

The teacher's weights are Meta's: a run prints their licence at its start and stores it beside the student. The hub
gives them to accounts that have accepted it (`hf auth login`).
"""

from dataclasses import replace

from vitkd_ds.config.losses import CrossEntropyTerm, FeatureTerm, LossesConfig, NKDTerm, RelationTerm, ViTKDTerm
from vitkd_ds.config.run import AugmentConfig, Run, StudentConfig, TeacherConfig
from vitkd_ds.recipes.imagenet import deit_tiny_from_deit3_small

LARGE = "vit_large_patch16_dinov3.lvd1689m"


def deit_tiny_from_dinov3_large_probe() -> Run:
    """DeiT-Tiny from DINOv3 ViT-L with a linear probe as its head: labels, logits and tokens in one pass.

    Everything but the teacher is the paper's recipe. Probes for ImageNet-1k are published (yberreby/dinov3-in1k-probes,
    87.44 % for L at 512 pixels); at the 224 pixels that the teacher sees here, on the student's grid of 14 x 14, it
    has less, which the check at the start shows. `--teacher.image_size=512` gives it what it was trained for, for
    nearly six times the operations.

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
    """ViT-Small from the features of DINOv3 ViT-L, with no label looked at: class token, patches, and their relations.

    The losses are EUPE's (arXiv 2603.22387: standardised features through adapters) and lightly-train's third version
    of distillation (cosines among tokens and images), each with weight 1. The rest is ours: 100 epochs, 3-Augment with
    colour jitter as DeiT III has them, nothing mixed, AdamW 1e-3 at 1,024 images. ImageNet-1k is only an example: give
    your own images with `--data.train` and `--data.val`, packed with `--labels none` or as they are.

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
    """ViT-Small from the features of DINOv3 ViT-7B, with no label looked at.

    A teacher of 6,716 M parameters, 12.5 GiB in bf16, each rank of which holds a part: its blocks are read one by one
    and are never whole on a rank. `--debug` takes its first two blocks. All else is `vit_small_from_dinov3_large`.

    Command: as there, with `--recipe vit_small_from_dinov3_7b`; `vitkd-ds plan --recipe vit_small_from_dinov3_7b`
    predicts speed and memory. Expected accuracy: unknown.
    """
    name = "vit_small_from_dinov3_7b"
    teachers = {"teacher": TeacherConfig(model="vit_7b_patch16_dinov3.lvd1689m")}
    return replace(vit_small_from_dinov3_large(), recipe=name, workdir=f"runs/{name}", teachers=teachers)
