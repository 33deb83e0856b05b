"""One run as a tree of frozen dataclasses: what a recipe returns and what ``config.json`` stores.

The string under a field says its unit and special values and is what ``train.py --help`` shows. Each class checks its
own fields when it is made (see `vitkd_ds.config.part`), and `vitkd_ds.config.check` checks the relations between them.
Nothing here imports torch, so a bad configuration is refused before anything heavy loads. How the engine works (ZeRO
stage, precision, buckets) belongs to ``ds_configs/*.json``.
"""

from dataclasses import asdict, field
from typing import Annotated, Any, Literal, Mapping

from annotated_types import Ge, Gt, Interval
from pydantic import BeforeValidator, model_validator
from pydantic.dataclasses import dataclass

from vitkd_ds.config import entry_points
from vitkd_ds.config.losses import LossesConfig
from vitkd_ds.config.part import Number, Part, Rule
from vitkd_ds.config.teachers import HasModels, settings_from_file, settings_to_store

Interpolation = Literal["bilinear", "bicubic", "random"]
Modes = Literal["off", "default", "max-autotune", "reduce-overhead"]
CLASSES = Rule(lambda number: number == 0 or number >= 2, "0 (those of data.train), or 2 or more")
SCALES = Rule(lambda pair: 0 < pair[0] <= pair[1] <= 1, "two numbers with a comma, 0 < low <= high <= 1")
RATIOS = Rule(lambda pair: 0 < pair[0] <= pair[1], "two positive numbers with a comma, low <= high")
FRACTIONS = Rule(lambda pair: all(0 <= value < 1 for value in pair), "two numbers in [0, 1) with a comma")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio", *(point.name for point in entry_points.installed("trackers")))
"""Trackers here, and those of other installed packages."""
NAMES_OF_TRACKERS = Rule(
    lambda names: set(names) <= set(TRACKERS) and len(set(names)) == len(names),
    f"names of {', '.join(TRACKERS)}, each once, with commas between",
)


def _mode(value: Any) -> Any:
    """Read a switch, as `compile` was in an earlier version, as a mode of torch.compile."""
    if str(value).lower() in ("true", "1", "yes", "on"):
        return "default"
    return "off" if str(value).lower() in ("false", "0", "no") else value


@dataclass(frozen=True)
class StudentConfig(Part, place="student"):
    """The model that trains."""

    model: str
    """Name of any timm VisionTransformer or Eva; of any timm model without batch norm where no term compares blocks."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of timm.create_model, such as {"embed_dim": 64}; the exported student stores them."""
    init: str = ""
    """Weights to start from: a local file, or a run folder, checkpoint or export, which also says the model; "hub" for
    timm's pretrained weights, "" for random initialisation. A classifier for other classes is left out."""
    allow_other_resolution: bool = False
    """Accept weights that were trained at another resolution than data.image_size; their position embedding is
    interpolated."""
    drop_path_rate: Annotated[Number, Interval(ge=0, lt=1)] = 0.0
    """Stochastic depth: probability that the last block is skipped for an image, 0 at the first; 0 is off."""
    checkpoint_activations: bool = False
    """Keep only each block's input for the backward pass and compute the rest again, which takes less memory and more
    time."""


@dataclass(frozen=True)
class TeacherConfig(Part, place="teacher"):
    """The frozen model that is imitated; `--teacher none` trains any recipe without one."""

    model: str
    """Name of any timm VisionTransformer or Eva (DINOv3, EUPE, PE, EVA-02); of any timm model where no term compares
    blocks, as vitkd and spectral do."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of timm.create_model, such as {"embed_dim": 128}."""
    checkpoint: Annotated[str, Rule(bool, "a file, a folder, hub, demo or random")] = "hub"
    """Weights: a local file, or a run folder, checkpoint or export, which also says the model; "hub" for timm's
    pretrained weights, "demo" for the teacher inside the package, or "random" for a random initialisation, which only a
    debug run may have and summary.json marks."""
    head: str = ""
    """File of a linear probe that gives a model without classifier logits: a weight of the class token, or of the class
    token and the mean of the patches, and a bias."""
    image_size: Annotated[int, Interval(ge=0, le=4096)] = 0
    """Height and width of the images that it sees, in pixels, resized from those of data.image_size; 0 is these."""
    placement: Literal["shard", "replica", "offload"] = "shard"
    """Place of the weights. shard: partitioned over the ranks (ZeRO-Inference). replica: whole on each rank. offload:
    partitioned and kept in CPU memory."""
    fp8: bool = False
    """Multiply in fp8 in a replica's blocks, which takes torchao and a GPU of compute capability 8.9 or more. A new run
    says how much the outputs change."""
    keep_tokens: Annotated[int, Ge(0)] = 0
    """MaskedKD: number of patches that the teacher sees of an image in training, those that the student's class token
    attends to most in its last block; for losses of logits alone. 98 of 196 is the paper's; 0 is all."""
    allow_other_resolution: bool = False
    """Accept a teacher that was trained at another resolution than data.image_size; its position embedding is
    interpolated. A 384-pixel teacher used at 224 gave a student below its own baseline (cls_KD issue 5)."""


@dataclass(frozen=True)
class DataConfig(Part, place="data"):
    """Source and crops of the images."""

    train: str
    """Path of the training .beton, or of a folder that holds a folder per class, which `train` packs, once, into
    FOLDER.beton beside it; "demo" is the data inside the package."""
    val: str
    """The same for the validation images, which may lack classes of the training images."""
    image_size: Annotated[int, Interval(ge=1, le=4096)]
    """Height and width of the square that both models see, in pixels."""
    num_classes: Annotated[int, CLASSES]
    """Number of classes of the data; 0 takes that of data.train, which has none if it was packed without labels."""
    labels: Literal["use", "ignore"] = "use"
    """Labels of the images. use: as they are stored. ignore: no label is looked at, so there are no classes, and the
    student has no classifier, as with images that have no labels."""
    crop_scale: Annotated[tuple[Number, Number], SCALES] = (0.08, 1.0)
    """Area of the training crop relative to the image, smallest and largest."""
    crop_ratio: Annotated[tuple[Number, Number], RATIOS] = (3 / 4, 4 / 3)
    """Width / height of the training crop, smallest and largest."""
    flip_probability: Annotated[Number, Interval(ge=0, le=1)] = 0.5
    """Probability that a training image is mirrored left to right; 0 is off."""
    val_crop_fraction: Annotated[Number, Interval(ge=0.25, le=1)] = 0.875
    """timm's crop_pct: the shorter side is resized to image_size / this, and the central square is cut out."""
    interpolation: Interpolation = "bicubic"
    """Filter that resizes crops, antialiased as in Pillow; random takes bilinear or bicubic for each training image."""
    backend: Literal["ffcv", "torchvision"] = "ffcv"
    """Reader of images. ffcv: our decoder inside FFCV's loader. torchvision: Pillow and torch's DataLoader, for
    machines without FFCV; it reads .betons and, unpacked, what `vitkd-ds pack` reads."""
    order: Literal["random", "quasi_random", "class_balanced"] = "random"
    """Order of the training images. random: the whole epoch is shuffled. quasi_random: windows of the file are, for
    files that are larger than the memory that could cache them. class_balanced: random, with as many images of each
    class, so that those of rare classes come several times an epoch, each time cut anew, and others not at all."""
    fraction: Annotated[Number, Interval(gt=0, le=1)] = 1.0
    """Part of the training images of each class that is used, at least one; the same at each seed, and a smaller part
    is a part of a larger one."""
    classes: str = ""
    """File with the names of the classes whose images are used, in training and validation, in label order: a name per
    line, or another .beton; "" is all."""
    indices: str = ""
    """File with the numbers, from 0 on, of the training images that are used, one per line; "" is all."""
    knn_train: str = ""
    """In a run without labels, labelled images that k-NN has as neighbours in each evaluation: a .beton, or "demo"; ""
    is no k-NN. It costs their forward pass each time, and in the memory of each rank twice their features in fp32 and
    1 KiB an image."""
    knn_val: str = ""
    """Labelled images that k-NN is asked for, of the classes of data.knn_train."""
    on_bad: Literal["stop", "skip"] = "stop"
    """What an image that cannot be decoded does. stop: it ends the run, which names it. skip: the next image of the
    file takes its place, and the log counts it."""
    max_val_images: Annotated[int, Ge(0)] = 0
    """Number of validation images to evaluate on, spread evenly over the file; 0 is all. For debug runs."""
    num_workers: Annotated[int, Ge(0)] = 0
    """Decoder threads per rank. 0 takes the CPUs that Slurm gave the task, or else divides those that this process may
    use among the ranks of its node."""


@dataclass(frozen=True)
class AugmentConfig(Part, place="augment"):
    """Changes of training images after the crop and flip, in this order; the same for both models."""

    repeats: Annotated[int, Ge(1)] = 1
    """Repeated augmentation: number of differently augmented copies of an image in the same epoch, which then shows
    1 / repeats of the images; 1 is off."""
    rand_augment: str = ""
    """RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1; "" is off."""
    three_augment: bool = False
    """3-Augment of DeiT III: each image becomes grey, solarized, or blurred."""
    color_jitter: Annotated[Number, Interval(ge=0, lt=1)] = 0.0
    """Brightness, contrast and saturation each change by a factor within 1 +- this; 0 is off."""
    interpolation: Interpolation = "random"
    """How RandAugment's geometric operations resample; random (timm's default) takes bilinear or bicubic for each
    image. What they uncover is filled with the student's mean colour."""
    random_erasing: Annotated[Number, Interval(ge=0, le=1)] = 0.0
    """Probability that a rectangle of an image is replaced by noise; 0 is off."""
    mixup_alpha: Annotated[Number, Ge(0)] = 0.0
    """Beta(alpha, alpha) of Mixup; 0 is off."""
    cutmix_alpha: Annotated[Number, Ge(0)] = 0.0
    """Beta(alpha, alpha) of CutMix; 0 is off. With both on, one of the two is drawn at even odds."""
    mix_mode: Literal["batch", "element"] = "batch"
    """Scope of a draw of Mixup or CutMix. batch: a whole micro-batch. element: each image has its own."""


@dataclass(frozen=True)
class OptimConfig(Part, place="optim"):
    """Optimizer, warm-up and cosine, clipping, EMA."""

    name: Literal["adamw", "muon"] = "adamw"
    """Optimizer. muon: Muon for the matrices in the student's blocks, AdamW for all other parameters."""
    qkv: Literal["whole", "thirds"] = "whole"
    """Muon's view of a fused qkv weight: one matrix, or the three of queries, keys and values."""
    lr: Annotated[Number, Gt(0)] = 1e-3
    """Peak learning rate at lr_batch_size; the run's is lr * global_batch_size / lr_batch_size."""
    lr_batch_size: Annotated[int, Gt(0)] = 1024
    """Images per optimizer update that lr is given for."""
    min_lr: Annotated[Number, Ge(0)] = 1e-5
    """Learning rate at the last step; not scaled by the batch size."""
    warmup_epochs: Annotated[Number, Ge(0)] = 20
    """Epochs over which the learning rate rises to its peak; 0 starts there."""
    warmup_fraction: Annotated[Number, Interval(ge=0, lt=1)] = 0.0
    """Part of the run over which it rises, in place of warmup_epochs, which must be 0 then; 0 takes warmup_epochs."""
    warmup_start_factor: Annotated[Number, Interval(gt=0, le=1)] = 1e-3
    """Learning rate of the first step relative to the peak."""
    weight_decay: Annotated[Number, Ge(0)] = 0.05
    """Decoupled decay of AdamW, multiplied by the learning rate of the step; 0 is off. Norms, biases, LayerScale,
    class, distillation and register tokens and position embeddings do not decay."""
    betas: Annotated[tuple[Number, Number], FRACTIONS] = (0.9, 0.999)
    """Part of AdamW's two moving averages (of the gradient, of its square) that is kept at each step."""
    eps: Annotated[Number, Gt(0)] = 1e-8
    """Added to the root of AdamW's second average, so that nothing is divided by 0."""
    clip_grad_norm: Annotated[Number, Ge(0)] = 5.0
    """Largest norm of the whole gradient; 0 is no clipping."""
    ema_decay: Annotated[Number, Interval(ge=0, lt=1)] = 0.0
    """Part of the weights' fp32 moving average that is kept at each step, such as 0.99996; 0 is no average. If there is
    one, it is what is evaluated and exported."""


@dataclass(frozen=True)
class CheckpointConfig(Part, place="checkpoint"):
    """When the state is saved and how much of it is kept."""

    every_steps: Annotated[int, Ge(0)] = 0
    """Optimizer updates between checkpoints; 0 saves at the end of each epoch. The last step is always saved."""
    keep_last: Annotated[int, Ge(1)] = 2
    """Number of newest checkpoints that are kept; the best by validation top-1 is kept besides, without labels the best
    by cka."""
    max_failures: Annotated[int, Ge(1)] = 3
    """Failed saves in a row (disk full, permission lost) at which the run stops on all ranks; with fewer it warns and
    trains on. 1 stops at the first."""


@dataclass(frozen=True)
class Run(HasModels, Part, place=""):
    """Everything that defines a run."""

    recipe: str
    """Recipe that the run starts from: a name that `vitkd-ds recipes` lists, or the path of a config.json, of a run
    folder that holds one, or of what --print_config printed."""
    workdir: str
    """Run folder. A folder that holds an unfinished run of the same settings is continued."""
    student: StudentConfig
    teachers: dict[str, TeacherConfig]
    """Teachers by name; without any it is plain training, and no loss term may need one then."""
    data: DataConfig
    augment: AugmentConfig
    losses: LossesConfig
    optim: OptimConfig
    global_batch_size: Annotated[int, Gt(0)]
    """Images per optimizer update over all ranks."""
    micro_batch_size_per_gpu: Annotated[int, Gt(0)]
    """Most images per forward on each rank: the largest divisor of its share of the global batch up to this is taken,
    and gradients accumulate over the rest."""
    epochs: Annotated[Number, Gt(0)]
    """Times that the training images are seen; a fraction stops within one."""
    max_steps: Annotated[int, Ge(0)] = 0
    """Optimizer updates after which the run and its schedules end; 0 runs all epochs. A warm-up that would fill them is
    shortened in proportion."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    ds_config: str = "ds_configs/zero2.json"
    """DeepSpeed's configuration of the student engine."""
    resume: str = "auto"
    """Start of training. auto: continue what lies in workdir, else start. none: start, and refuse a used workdir.
    Else the path of a run folder or of one checkpoint (runs/x/checkpoints/step00001234) of the same settings, from
    which this run goes on. Checkpoints are unpickled, so name only folders that you trust. A stored run that --recipe
    takes has auto, whatever it had then."""
    eval_every_epochs: Annotated[Number, Ge(0)] = 1
    """Epochs between evaluations; 0 evaluates only at the end."""
    log_every_steps: Annotated[int, Gt(0)] = 10
    """Optimizer updates between lines of metrics.jsonl."""
    timeout_minutes: Annotated[Number, Gt(0)] = 10
    """Longest time without progress, in minutes: a rank that stays so long in one phase (start, data, forward, a
    validation micro-batch, a checkpoint) says where it is and ends the run. Raise it if models are fetched slowly."""
    extend: bool = False
    """Go on with more epochs or max_steps than the run in workdir was begun with, finished or not. Its schedules become
    those of the longer run from the next step on. A stored run that --recipe takes has false."""
    seed: Annotated[int, Ge(0)] = 0
    """Key of every random draw: initial weights, order, crops, augmentation, mixing, masks."""
    compile: Annotated[Modes, BeforeValidator(_mode)] = "off"
    """How torch.compile runs the student with its losses, and the teacher. max-autotune tries kernels at the start, for
    minutes; reduce-overhead records CUDA graphs, of the student and of a replica teacher. true is default, false
    off."""
    deterministic: bool = False
    """Use only algorithms that give the same bits each time; on a GPU it costs speed. What has none is an error."""
    trackers: Annotated[tuple[str, ...], NAMES_OF_TRACKERS] = ("tensorboard",)
    """Where the values of metrics.jsonl go besides: tensorboard, wandb, mlflow, trackio, with commas between; empty is
    nowhere. Without a network or a login they stay in the run folder. A run that goes on continues the tracked run."""
    profile: Annotated[int, Ge(0)] = 0
    """Updates that torch's profiler traces, after the first eight of a start, into RUN/profile; 0 is off."""
    debug: bool = False
    """Run a few steps of the same code on the images in the package; summary.json marks it."""

    @property
    def is_compiled(self) -> bool:
        """Whether torch.compile runs the models."""
        return self.compile != "off"

    _from_file = model_validator(mode="before")(classmethod(settings_from_file))


def peak_lr(run: Run) -> float:
    """The highest learning rate of a run, at its global batch."""
    return run.optim.lr * run.global_batch_size / run.optim.lr_batch_size


def as_dict(run: Run) -> dict[str, Any]:
    """The run as nested plain dicts and tuples, for config.json."""
    return settings_to_store(asdict(run))
