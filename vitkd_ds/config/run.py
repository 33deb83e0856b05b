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
from vitkd_ds.config.losses import LossesConfig
from vitkd_ds.config.optim import OptimConfig
from vitkd_ds.config.part import Number, Part, Rule
from vitkd_ds.config.teachers import HasModels, settings_from_file, settings_to_store

Interpolation = Literal["bilinear", "bicubic", "random"]
Modes = Literal["off", "default", "max-autotune", "reduce-overhead"]
CLASSES = Rule(lambda number: number == 0 or number >= 2, "0 (taken from data.train), or 2 or more")
SCALES = Rule(lambda pair: 0 < pair[0] <= pair[1] <= 1, "two numbers with a comma, 0 < low <= high <= 1")
RATIOS = Rule(lambda pair: 0 < pair[0] <= pair[1], "two positive numbers with a comma, low <= high")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio", *(point.name for point in entry_points.installed("trackers")))
"""Built-in trackers, and trackers of other installed packages."""
NAMES_OF_TRACKERS = Rule(
    lambda names: set(names) <= set(TRACKERS) and len(set(names)) == len(names),
    f"names of {', '.join(TRACKERS)}, each once, with commas between",
)


def _mode(value: Any) -> Any:
    """Convert true or false, which `compile` was in an earlier version, to a mode of torch.compile."""
    if str(value).lower() in ("true", "1", "yes", "on"):
        return "default"
    return "off" if str(value).lower() in ("false", "0", "no") else value


@dataclass(frozen=True)
class StudentConfig(Part, place="student"):
    """The trained model."""

    model: str
    """Name of a timm VisionTransformer or Eva. If no loss term compares blocks, any timm model without batch norm."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of timm.create_model, such as {"embed_dim": 64}. The exported student stores them."""
    init: str = ""
    """Initial weights: a file; a run folder, checkpoint or export (which also sets the model); "hub" for timm's
    pretrained weights; or "" for random initialisation. A classifier for other classes is dropped."""
    allow_other_resolution: bool = False
    """Accept weights trained at another resolution than data.image_size, and interpolate their position embedding."""
    drop_path_rate: Annotated[Number, Interval(ge=0, lt=1)] = 0.0
    """Stochastic depth: probability of skipping the last block for an image, rising linearly from 0 at the first
    block; 0 is off."""
    checkpoint_activations: bool = False
    """Store only each block's input for backward and recompute the rest: less memory, more time."""


@dataclass(frozen=True)
class TeacherConfig(Part, place="teacher"):
    """The frozen teacher model; `--teacher none` trains any recipe without a teacher."""

    model: str
    """Name of a timm VisionTransformer or Eva (DINOv3, EUPE, PE, EVA-02). If no loss term compares blocks (as vitkd
    and spectral do), any timm model."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of timm.create_model, such as {"embed_dim": 128}."""
    checkpoint: Annotated[str, Rule(bool, "a file, a folder, hub, demo or random")] = "hub"
    """Weights: a file; a run folder, checkpoint or export (which also sets the model); "hub" for timm's pretrained
    weights; "demo" for the teacher inside the package; or "random" for random weights, which need --debug and are
    noted in summary.json."""
    head: str = ""
    """File with a linear probe that gives class logits to a teacher without a classifier. It holds one weight (for the
    class token, or for the class token and the mean patch token) and a bias; "" is none."""
    image_size: Annotated[int, Interval(ge=0, le=4096)] = 0
    """Height and width of the teacher's input in pixels, resized from data.image_size; 0 is data.image_size."""
    placement: Literal["shard", "replica", "offload"] = "shard"
    """Placement of the weights. shard: partitioned over the ranks (ZeRO-Inference). replica: whole on each rank.
    offload: partitioned and kept in CPU memory."""
    fp8: bool = False
    """Compute matrix products of the blocks in fp8; needs placement=replica, torchao and a GPU with compute capability
    8.9 or higher. A new run logs how much this changes the outputs."""
    keep_tokens: Annotated[int, Ge(0)] = 0
    """MaskedKD: number of patches per image that the teacher sees in training, selected by the attention of the
    student's class token in its last block. Only for losses of logits. 98 of 196 in the paper; 0 is all patches."""
    allow_other_resolution: bool = False
    """Accept a teacher trained at another resolution than data.image_size, and interpolate its position embedding. A
    384-px teacher used at 224 px gave a student worse than its baseline (cls_KD issue 5)."""


@dataclass(frozen=True)
class DataConfig(Part, place="data"):
    """Source and crops of the images."""

    train: str
    """Training images: a .beton, or a folder with a subfolder per class, which `train` packs into FOLDER.beton next to
    it; "demo" is the data inside the package."""
    val: str
    """Validation images, in the same forms. They need not contain every training class."""
    image_size: Annotated[int, Interval(ge=1, le=4096)]
    """Height and width of the square crop in pixels, for both models."""
    num_classes: Annotated[int, CLASSES]
    """Number of classes; 0 takes the number from data.train (0 classes if packed without labels)."""
    labels: Literal["use", "ignore"] = "use"
    """Labels of the images. use: the stored labels. ignore: train as with unlabelled images, without classes and with
    a headless student."""
    crop_scale: Annotated[tuple[Number, Number], SCALES] = (0.08, 1.0)
    """Minimum and maximum area of the training crop, relative to the image."""
    crop_ratio: Annotated[tuple[Number, Number], RATIOS] = (3 / 4, 4 / 3)
    """Minimum and maximum width / height of the training crop."""
    flip_probability: Annotated[Number, Interval(ge=0, le=1)] = 0.5
    """Probability of a horizontal flip of a training image; 0 is off."""
    val_crop_fraction: Annotated[Number, Interval(ge=0.25, le=1)] = 0.875
    """timm's crop_pct: the shorter side is resized to image_size / val_crop_fraction, then the central square is
    cropped."""
    interpolation: Interpolation = "bicubic"
    """Filter for resizing crops, antialiased as in Pillow. random chooses bilinear or bicubic per training image."""
    backend: Literal["ffcv", "torchvision"] = "ffcv"
    """Image loader. ffcv: our decoder in FFCV's loader. torchvision: Pillow and torch's DataLoader, for machines
    without FFCV; it also reads the unpacked sources of `vitkd-ds pack`."""
    order: Literal["random", "quasi_random", "class_balanced"] = "random"
    """Order of the training images. random: shuffle the whole epoch. quasi_random: shuffle within windows of the file,
    for files larger than the memory that caches them. class_balanced: random, with the same number of images of each
    class; images of rare classes repeat within an epoch with other crops, and some of frequent classes are left out."""
    fraction: Annotated[Number, Interval(gt=0, le=1)] = 1.0
    """Fraction of the training images used per class, at least one image. The choice does not depend on the seed, and a
    smaller fraction is a subset of a larger one."""
    classes: str = ""
    """File that limits training and validation to some classes: class names, one per line in label order, or another
    .beton; "" is all classes."""
    indices: str = ""
    """File with the indices (from 0, one per line) of the training images to use; "" is all images."""
    knn_train: str = ""
    """Labelled neighbours for k-NN evaluation of a run without labels: a .beton, or "demo"; "" means no k-NN. Each
    evaluation runs a forward pass over them. Each rank needs memory for twice their fp32 features plus 1 KiB per
    image."""
    knn_val: str = ""
    """Labelled query images for k-NN evaluation, with the classes of data.knn_train."""
    on_bad: Literal["stop", "skip"] = "stop"
    """Action for an image that cannot be decoded. stop: end the run and name the image. skip: use the next image of
    the file instead, and count it in the log."""
    max_val_images: Annotated[int, Ge(0)] = 0
    """Maximum number of validation images, spread evenly over the file; 0 is all. For debug runs."""
    num_workers: Annotated[int, Ge(0)] = 0
    """Decoder threads per rank. 0 uses the CPUs that Slurm assigned to the task, else an equal share of the CPUs that
    the ranks of a node may use."""


@dataclass(frozen=True)
class AugmentConfig(Part, place="augment"):
    """Augmentation of training images after crop and flip, in this order, the same for both models."""

    repeats: Annotated[int, Ge(1)] = 1
    """Repeated augmentation: number of differently augmented copies of an image per epoch. An epoch then shows
    1 / repeats of the images; 1 is off."""
    rand_augment: str = ""
    """RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1; "" is off."""
    three_augment: bool = False
    """3-Augment of DeiT III: each image becomes grey, solarized, or blurred."""
    color_jitter: Annotated[Number, Interval(ge=0, lt=1)] = 0.0
    """Maximum relative change of brightness, contrast and saturation: each factor is within 1 +- this; 0 is off."""
    interpolation: Interpolation = "random"
    """Resampling filter of RandAugment's geometric operations. random (timm's default) chooses bilinear or bicubic per
    image. Uncovered areas get the student's mean colour."""
    random_erasing: Annotated[Number, Interval(ge=0, le=1)] = 0.0
    """Probability that a rectangle of an image is replaced by noise; 0 is off."""
    mixup_alpha: Annotated[Number, Ge(0)] = 0.0
    """Alpha of Mixup's distribution Beta(alpha, alpha); 0 is off."""
    cutmix_alpha: Annotated[Number, Ge(0)] = 0.0
    """Alpha of CutMix's distribution Beta(alpha, alpha); 0 is off. If Mixup is also on, each is used half of the
    time."""
    mix_mode: Literal["batch", "element"] = "batch"
    """Scope of one random draw of Mixup or CutMix. batch: a whole micro-batch. element: one image."""


@dataclass(frozen=True)
class CheckpointConfig(Part, place="checkpoint"):
    """Checkpoint interval and number of kept checkpoints."""

    every_steps: Annotated[int, Ge(0)] = 0
    """Optimizer updates between checkpoints; 0 saves at the end of each epoch. The last step is always saved."""
    keep_last: Annotated[int, Ge(1)] = 2
    """Number of newest checkpoints to keep. The best one (by validation top-1, or by cka without labels) is also
    kept."""
    max_failures: Annotated[int, Ge(1)] = 3
    """Consecutive failed saves (disk full, permission lost) after which the run stops on all ranks. Earlier failures
    only log a warning. 1 stops at the first."""


@dataclass(frozen=True)
class Run(HasModels, Part, place=""):
    """All settings of a run."""

    recipe: str
    """Recipe with the run's defaults: a name from `vitkd-ds recipes`, or the path of a run folder, a config.json, or a
    file with the output of --print_config."""
    workdir: str
    """Run folder. An unfinished run with the same settings in it is resumed."""
    student: StudentConfig
    teachers: dict[str, TeacherConfig]
    """Teachers by name. Without any, this is plain training, and no loss term may need a teacher."""
    data: DataConfig
    augment: AugmentConfig
    losses: LossesConfig
    optim: OptimConfig
    global_batch_size: Annotated[int, Gt(0)]
    """Images per optimizer update over all ranks."""
    micro_batch_size_per_gpu: Annotated[int, Gt(0)]
    """Maximum number of images per forward pass and rank. The run uses the largest divisor, up to this number, of the
    rank's share of the global batch, and accumulates gradients."""
    epochs: Annotated[Number, Gt(0)]
    """Passes over the training images; a fractional value stops within an epoch."""
    max_steps: Annotated[int, Ge(0)] = 0
    """Optimizer updates after which the run and its schedules end; 0 runs all epochs. A longer warm-up is shortened in
    proportion."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    ds_config: str = "ds_configs/zero2.json"
    """DeepSpeed configuration file of the student engine."""
    resume: str = "auto"
    """Start of training. auto: resume the run in workdir, or start a new one. none: start a new run, and reject a used
    workdir. PATH: continue from another run folder or checkpoint (runs/x/checkpoints/step00001234) with the same
    settings. Checkpoints are unpickled, so use only folders that you trust. Reset to auto when --recipe loads a stored
    run."""
    eval_every_epochs: Annotated[Number, Ge(0)] = 1
    """Epochs between evaluations; 0 evaluates only at the end."""
    log_every_steps: Annotated[int, Gt(0)] = 10
    """Optimizer updates between lines of metrics.jsonl."""
    timeout_minutes: Annotated[Number, Gt(0)] = 10
    """Maximum minutes without progress. A rank that stays longer in one phase (start, data, forward, a validation
    micro-batch, a checkpoint) logs where it hangs and ends the run. Raise this for slow model downloads."""
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
    """Use only deterministic algorithms; slower on a GPU. An operation without one raises an error."""
    trackers: Annotated[tuple[str, ...], NAMES_OF_TRACKERS] = ("tensorboard",)
    """Trackers that also receive the values of metrics.jsonl, separated by commas: tensorboard, wandb, mlflow, trackio;
    empty is none. Without a network or login, they write to the run folder. A resumed run continues its tracked run."""
    profile: Annotated[int, Ge(0)] = 0
    """Number of updates traced by torch's profiler into RUN/profile, after the first eight of a launch; 0 is off."""
    debug: bool = False
    """Run a few steps of the same code on the images inside the package; summary.json notes it."""

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
