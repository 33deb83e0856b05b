"""Settings of one run as a tree of frozen dataclasses, which recipes return and ``config.json`` stores.

The string under a field gives its unit and special values; ``train.py --help`` prints it. Each class checks its own
fields at construction (see `vitkd_ds.config.part`), and `vitkd_ds.config.check` checks relations between fields. This
module imports no torch, so an invalid configuration fails before heavy imports. Engine mechanics (ZeRO stage,
precision, buckets) belong in ``ds_configs/*.json``.
"""

from dataclasses import asdict, field
from typing import Annotated, Any, Literal, Mapping

from annotated_types import Ge, Gt, Interval
from pydantic import BeforeValidator, model_validator
from pydantic.dataclasses import dataclass

from vitkd_ds.config import entry_points
from vitkd_ds.config.image_sizes import SIZES
from vitkd_ds.config.losses import LossesConfig
from vitkd_ds.config.optim import OptimConfig
from vitkd_ds.config.part import Number, Part, Rule
from vitkd_ds.config.teachers import HasModels, settings_from_file, settings_to_store

Interpolation = Literal["bilinear", "bicubic", "random"]
Modes = Literal["off", "default", "max-autotune", "reduce-overhead"]
CLASSES = Rule(lambda number: number == 0 or number >= 2, "0 (taken from data.train), or 2 or more")
SCALES = Rule(lambda pair: 0 < pair[0] <= pair[1] <= 1, "two numbers separated by a comma, 0 < low <= high <= 1")
RATIOS = Rule(lambda pair: 0 < pair[0] <= pair[1], "two positive numbers separated by a comma, low <= high")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio", *(point.name for point in entry_points.installed("trackers")))
"""Built-in trackers, and trackers of other installed packages."""
NAMES_OF_TRACKERS = Rule(
    lambda names: set(names) <= set(TRACKERS) and len(set(names)) == len(names),
    f"names of {', '.join(TRACKERS)}, each once, separated by commas",
)


def _mode(value: Any) -> Any:
    """Convert true or false, which earlier versions used for `compile`, to a mode of torch.compile."""
    if str(value).lower() in ("true", "1", "yes", "on"):
        return "default"
    return "off" if str(value).lower() in ("false", "0", "no") else value


@dataclass(frozen=True)
class StudentConfig(Part, place="student"):
    """The model to train."""

    model: str
    """Name of a timm model without batch norm. Loss terms that compare blocks need a VisionTransformer or Eva."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    """Additional arguments of timm.create_model, such as {"embed_dim": 64}. The exported student stores them."""
    init: str = ""
    """Initial weights: the path of a weight file, or of a run folder, checkpoint or exported student (these also set
    the model). hub: timm's pretrained weights. "": random weights. select:SOURCE: weights selected from a larger model,
    where SOURCE is a teacher of the run, demo (the packaged teacher), hub:NAME, or a path. A classifier for other
    classes is replaced by a random one."""
    select_heads: Literal["whole", "even"] = "whole"
    """For init=select:SOURCE: select whole attention heads, or evenly spaced channels of all heads."""
    select_blocks: Literal["first", "even"] = "first"
    """For init=select:SOURCE: select the first blocks, or blocks spread evenly over the depth."""
    allow_other_resolution: bool = False
    """Accept weights trained at another resolution than data.image_size, and interpolate their position embedding."""
    drop_path_rate: Annotated[Number, Interval(ge=0, lt=1)] = 0.0
    """Stochastic depth: probability that an image skips the last block; 0 is off. The probability grows linearly with
    depth, from 0 at the first block."""
    checkpoint_activations: bool = False
    """Keep only each block's input for backward, and recompute the rest. This takes less memory and more time."""


@dataclass(frozen=True)
class TeacherConfig(Part, place="teacher"):
    """The frozen teacher model. `--teacher none` trains any recipe without a teacher."""

    model: str
    """Name of a timm model. Loss terms that compare blocks (such as vitkd and spectral) need a VisionTransformer or Eva
    (DINOv3, EUPE, PE, EVA-02)."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    """Additional arguments of timm.create_model, such as {"embed_dim": 128}."""
    checkpoint: Annotated[str, Rule(bool, "a file, a folder, hub, demo or random")] = "hub"
    """Weights: the path of a weight file, or of a run folder, checkpoint or exported student (these also set the
    model). hub: timm's pretrained weights. demo: the teacher inside the package. random: random weights, for --debug
    runs only; summary.json records their use."""
    head: str = ""
    """File with a linear probe, which computes class logits from the features of the teacher. The file contains a
    weight and possibly a bias. The probe's input is the class token, or the class token followed by the mean patch
    token. "" means no probe."""
    image_size: Annotated[int, Interval(ge=0, le=4096)] = 0
    """Height and width of the teacher's input in pixels. The crops are resized to it; 0 means data.image_size."""
    placement: Literal["shard", "replica", "offload"] = "shard"
    """Placement of the weights. shard: partitioned over the ranks (ZeRO-Inference). replica: complete on each rank.
    offload: partitioned over the ranks and kept in CPU memory."""
    fp8: bool = False
    """Compute matrix products of the blocks in fp8. This needs placement=replica, torchao and a GPU with compute
    capability 8.9 or higher. A new run logs how much fp8 changes the outputs."""
    keep_tokens: Annotated[int, Ge(0)] = 0
    """MaskedKD: number of patches per image that the teacher sees in training. They are the patches with the most
    attention from the class token in the student's last block. All loss terms must compare only logits. The paper uses
    98 of 196 patches; 0 means all patches."""
    allow_other_resolution: bool = False
    """Accept a teacher trained at another resolution than data.image_size, and interpolate its position embedding. A
    384-px teacher used at 224 px gave a student worse than its baseline (cls_KD issue 5)."""


@dataclass(frozen=True)
class DataConfig(Part, place="data"):
    """Files, crops and loading of the images."""

    train: str
    """Training images: a .beton file, or a folder with one subfolder per class, which `train` packs into the file
    FOLDER.beton next to it. demo: the images inside the package."""
    val: str
    """Validation images, given in the same way as data.train. Some training classes may have no validation images."""
    image_size: Annotated[int, Interval(ge=1, le=4096)]
    """Height and width of the square crop in pixels, for both models."""
    num_classes: Annotated[int, CLASSES]
    """Number of classes. 0 takes the number from data.train; images that were packed without labels have 0 classes."""
    image_sizes: Annotated[str, SIZES] = ""
    """Progressive resolution: sizes of the training crops in successive phases of the run, and each phase's part of the
    run, such as 96:2,160:4,192:2,224:2. Phases end at epoch ends. The last size must be image_size. RandAugment's
    magnitude rises from 0 to its setting. "" trains at image_size."""
    labels: Literal["use", "ignore"] = "use"
    """Labels of the images. use: train with the stored labels. ignore: train as with unlabelled images, so the student
    has no classifier."""
    crop_scale: Annotated[tuple[Number, Number], SCALES] = (0.08, 1.0)
    """Minimum and maximum area of the training crop, as fractions of the image's area."""
    crop_ratio: Annotated[tuple[Number, Number], RATIOS] = (3 / 4, 4 / 3)
    """Minimum and maximum width / height of the training crop."""
    flip_probability: Annotated[Number, Interval(ge=0, le=1)] = 0.5
    """Probability of a horizontal flip of a training image; 0 is off."""
    val_crop_fraction: Annotated[Number, Interval(ge=0.25, le=1)] = 0.875
    """timm's crop_pct: the shorter side of a validation image is resized to image_size / val_crop_fraction pixels, and
    then the central square is cropped."""
    interpolation: Interpolation = "bicubic"
    """Filter for resizing crops, antialiased as in Pillow. random chooses bilinear or bicubic per training image."""
    backend: Literal["ffcv", "torchvision"] = "ffcv"
    """Image loader. ffcv: our decoder in FFCV's loader. torchvision: Pillow and torch's DataLoader, for machines
    without FFCV; it also reads the unpacked sources of `vitkd-ds pack`."""
    order: Literal["random", "quasi_random", "class_balanced"] = "random"
    """Order of the training images. random: shuffle the whole epoch. quasi_random: shuffle within windows of the file,
    for a file that does not fit in memory. class_balanced: as random, but an epoch has the same number of images of
    each class. Images of rare classes then repeat with different crops, and some images of frequent classes are left
    out."""
    fraction: Annotated[Number, Interval(gt=0, le=1)] = 1.0
    """Fraction of each class's training images to use, at least one image per class. The choice does not depend on the
    seed. A smaller fraction uses a subset of the images of a larger one."""
    classes: str = ""
    """File that lists the classes to use for training and validation: a text file with one class name per line, in
    label order, or another .beton file to take the classes from. "" uses all classes."""
    indices: str = ""
    """Text file with the indices (one per line, from 0) of the training images to use; "" uses all images."""
    knn_train: str = ""
    """Labelled images in which k-NN evaluation searches for neighbours, for a run without labels: a .beton file, or
    demo; "" means no k-NN. Each evaluation computes the features of all these images. Each rank needs twice the memory
    of these features in fp32, plus 1 KiB per image."""
    knn_val: str = ""
    """Labelled images that k-NN evaluation classifies. They have the classes of data.knn_train."""
    on_bad: Literal["stop", "skip"] = "stop"
    """Action for an image that cannot be decoded. stop: end the run and name the image. skip: use the next image of
    the file instead, and log the number of skipped images."""
    max_val_images: Annotated[int, Ge(0)] = 0
    """Maximum number of validation images, spread evenly over the file; 0 is all. For debug runs."""
    num_workers: Annotated[int, Ge(0)] = 0
    """Number of decoder threads per rank. 0 means one per CPU of the rank: the CPUs that Slurm assigned to the
    task, or, without Slurm, an equal share of the node's usable CPUs."""


@dataclass(frozen=True)
class AugmentConfig(Part, place="augment"):
    """Augmentation of training images, after crop and flip. Both models see the same augmented images."""

    repeats: Annotated[int, Ge(1)] = 1
    """Repeated augmentation: number of times that an image appears in an epoch, each time augmented differently. An
    epoch then contains only 1 / repeats of the images; 1 is off."""
    rand_augment: str = ""
    """RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1; "" is off."""
    three_augment: bool = False
    """3-Augment of DeiT III: each image is made grey, solarized or blurred, with equal probabilities."""
    color_jitter: Annotated[Number, Interval(ge=0, lt=1)] = 0.0
    """Maximum relative change of brightness, contrast and saturation. Each is multiplied by a factor between
    1 - color_jitter and 1 + color_jitter; 0 is off."""
    interpolation: Interpolation = "random"
    """Resampling filter of RandAugment's geometric operations. random (timm's default) chooses bilinear or bicubic per
    image. Areas outside the original image get the mean colour of the student's normalisation."""
    random_erasing: Annotated[Number, Interval(ge=0, le=1)] = 0.0
    """Probability that a rectangle of an image is replaced by noise; 0 is off."""
    mixup_alpha: Annotated[Number, Ge(0)] = 0.0
    """Alpha of Mixup's distribution Beta(alpha, alpha); 0 is off."""
    cutmix_alpha: Annotated[Number, Ge(0)] = 0.0
    """Alpha of CutMix's distribution Beta(alpha, alpha); 0 is off. If Mixup is also on, each of the two is used half of
    the time."""
    mix_mode: Literal["batch", "element"] = "batch"
    """Random draws of Mixup and CutMix. batch: one draw for a whole micro-batch. element: one draw for each image."""


@dataclass(frozen=True)
class CheckpointConfig(Part, place="checkpoint"):
    """Checkpoint interval and number of kept checkpoints."""

    every_steps: Annotated[int, Ge(0)] = 0
    """Optimizer updates between checkpoints; 0 saves at the end of each epoch. The last step is always saved."""
    keep_last: Annotated[int, Ge(1)] = 2
    """Number of newest checkpoints to keep. The best checkpoint (by validation top-1, or by cka without labels) is also
    kept."""
    max_failures: Annotated[int, Ge(1)] = 3
    """Number of consecutive failed saves (for example, on a full disk) after which the run stops on all ranks. Earlier
    failures only log a warning. 1 stops at the first failure."""


@dataclass(frozen=True)
class Run(HasModels, Part, place=""):
    """All settings of a run."""

    recipe: str
    """Recipe with the run's defaults: a name from `vitkd-ds recipes`, or the path of a run folder, a config.json, or a
    file with the output of --print_config."""
    workdir: str
    """Run folder. If it contains an unfinished run with the same settings, that run is resumed."""
    student: StudentConfig
    teachers: dict[str, TeacherConfig]
    """Settings of the teachers by name. In a run without teachers, no loss term may need one."""
    data: DataConfig
    augment: AugmentConfig
    losses: LossesConfig
    optim: OptimConfig
    global_batch_size: Annotated[int, Gt(0)]
    """Images per optimizer update over all ranks."""
    micro_batch_size_per_gpu: Annotated[int, Gt(0)]
    """Maximum number of images per forward pass and rank. The micro-batch size is the largest number up to this
    maximum that divides a rank's share of global_batch_size. Gradients are accumulated over the micro-batches."""
    epochs: Annotated[Number, Gt(0)]
    """Passes over the training images; a fractional value stops within an epoch."""
    max_steps: Annotated[int, Ge(0)] = 0
    """Number of optimizer updates after which the run and its schedules end; 0 runs all epochs. If the warm-up does not
    fit, it is shortened in proportion."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    ds_config: str = "ds_configs/zero2.json"
    """DeepSpeed configuration file of the student engine."""
    resume: str = "auto"
    """Start of training. auto: resume the run in workdir, or start a new one. none: start a new run, which needs an
    unused workdir. PATH: continue from another run folder or checkpoint (runs/x/checkpoints/step00001234) with the same
    settings. Checkpoints are unpickled, so use only folders that you trust. Reset to auto when --recipe loads a stored
    run."""
    eval_every_epochs: Annotated[Number, Ge(0)] = 1
    """Epochs between evaluations; 0 evaluates only at the end."""
    log_every_steps: Annotated[int, Gt(0)] = 10
    """Number of optimizer updates between two lines of metrics.jsonl."""
    timeout_minutes: Annotated[Number, Gt(0)] = 10
    """Maximum minutes without progress. A rank that stays longer in one phase (start, data, forward, a validation
    micro-batch, a checkpoint) logs where it hangs and ends the run. Raise this if model downloads are slow."""
    extend: bool = False
    """Continue the run in workdir, finished or not, to more epochs or max_steps than it was started with. From the next
    step on, it follows the schedules of the longer run. Reset to false when --recipe loads a stored run."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of all random numbers: initial weights, order, crops, augmentation, mixing, masks."""
    compile: Annotated[Modes, BeforeValidator(_mode)] = "off"
    """Mode of torch.compile for the student with its losses, and for the teacher. max-autotune benchmarks kernels for
    minutes at the start. reduce-overhead records CUDA graphs of the student and of a replica teacher. true means
    default, false means off."""
    deterministic: bool = False
    """Use only deterministic algorithms, which are slower on a GPU. An operation without such an algorithm raises an
    error."""
    trackers: Annotated[tuple[str, ...], NAMES_OF_TRACKERS] = ("tensorboard",)
    """Names of trackers, separated by commas: tensorboard, wandb, mlflow, trackio; empty means none. They receive the
    values of metrics.jsonl. Without a network or login, they write to the run folder. A resumed run continues the same
    run in the tracker."""
    profile: Annotated[int, Ge(0)] = 0
    """Number of updates that torch's profiler records in RUN/profile, after the first eight of a launch; 0 is off."""
    debug: bool = False
    """Run a few steps of the same code on the images inside the package. summary.json records that it was a debug
    run."""

    @property
    def is_compiled(self) -> bool:
        """Whether torch.compile runs the models."""
        return self.compile != "off"

    _from_file = model_validator(mode="before")(classmethod(settings_from_file))


def peak_lr(run: Run) -> float:
    """Return the peak learning rate, scaled to the global batch."""
    return run.optim.lr * run.global_batch_size / run.optim.lr_batch_size


def as_dict(run: Run) -> dict[str, Any]:
    """Return the run as nested plain dicts and tuples, for config.json."""
    return settings_to_store(asdict(run))
