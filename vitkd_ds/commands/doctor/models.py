"""The models of the run: how the ranks share a batch, both models with their weights, both engines.

Weights that would have to be downloaded are not: a node often cannot, and several GB would not fit in two minutes.
Where none are at hand, random ones stand in, so that the engines can still be tried. The engines make real updates, on
random images and without torch.compile, which takes minutes. On a CPU the micro-batch is a tiny one.
"""

from dataclasses import asdict, replace
from itertools import repeat

import torch
from huggingface_hub import try_to_load_from_cache  # timm's own requirement
from torch import Tensor, nn

from vitkd_ds.commands.doctor.patient import Patient, needed
from vitkd_ds.commands.doctor.rows import Row, error, judged, ok, warning
from vitkd_ds.config.run import Run
from vitkd_ds.engine import ranks
from vitkd_ds.engine.processes import peak_memory_gib, synchronised_time
from vitkd_ds.engine.student import student_ds_config
from vitkd_ds.models import build
from vitkd_ds.models.distiller import Distiller
from vitkd_ds.models.features import Features
from vitkd_ds.train.loop import NonFiniteError, train_step
from vitkd_ds.train.parts import Parts, fit_models, split_of, start_engines
from vitkd_ds.train.schedule import make_schedule

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm downloads, by preference."""
CPU_MICRO_BATCH = 2
"""Most images; the speed of a CPU is not judged."""
TIMED_STEPS = 3
"""After one that warms up; a single one on a CPU."""
MOST_MEMORY = 0.92
"""Part of a GPU's memory; above it, the images in flight and fragmentation may exhaust it."""
ROLES = {
    "student": (build.build_student, "init", "", "random weights"),
    "teacher": (build.build_teacher, "checkpoint", "random", "random weights, as this is a debug run"),
}
"""Builder, key of the weights, value of the key that is random weights, and how the row calls them."""


def check_settings(patient: Patient) -> list[Row]:
    """How the ranks share a global batch, and the DeepSpeed file. Collective."""
    run = patient.run
    split = split_of(run)  # the same on all ranks, while a file may be missing on a node
    patient.ds_config = ranks.together(lambda: student_ds_config(run, **asdict(split)))
    patient.split = split
    whole, limit, micro = run.global_batch_size, run.micro_batch_size_per_gpu, split.micro_batch_size
    accumulation = split.accumulation_steps
    found = f"{whole} images per update = {ranks.world_size()} ranks x {accumulation} micro-batches x {micro} images"
    problem = f"though micro_batch_size_per_gpu allows {limit}"
    advice = "choose a --global_batch_size that more ranks can share, or another number of ranks"
    return [judged(accumulation == 1 or micro >= limit / 2, "settings", found, problem=problem, advice=advice)]


def check_models(patient: Patient) -> list[Row]:
    """Build both models, with their weights where those are at hand, and fit them. Collective."""
    run = patient.run
    row, student, _ = load_model("student", run)
    rows, teacher, is_trained = [row], None, False
    if run.teacher:
        row, teacher, is_trained = load_model("teacher", run)
        rows.append(row)
    is_complete = student is not None and (teacher is not None or not run.teacher)
    if not ranks.all_true(is_complete, patient.device):
        return rows
    patient.is_teacher_trained = ranks.all_true(is_trained, patient.device)
    try:
        models = fit_models(run, student, teacher)
    except ValueError as caught:
        return [*rows, error("models", str(caught))]
    distiller = Distiller(student, run.losses, models.pair)
    patient.models = models
    patient.num_trained = sum(p.numel() for p in distiller.parameters() if p.requires_grad)
    return rows


def load_model(role: str, run: Run) -> tuple[Row, nn.Module | None, bool]:
    """Build the student or the teacher; nothing is asked of the network.

    Returns:
        A row, the model, and whether it was given weights. Random ones stand in where they do not load, or would have
        to be downloaded; None if not even the architecture can be built.
    """
    config, (builder, key, random, random_text) = getattr(run, role), ROLES[role]
    stand_in, source = replace(config, **{key: random}), getattr(config, key)
    try:
        if source == "hub":
            with torch.device("meta"):
                hub_id = builder(stand_in, run.data).pretrained_cfg["hf_hub_id"]
            found = (try_to_load_from_cache(hub_id, name) for name in HUB_FILES)
            source = next((file for file in found if isinstance(file, str)), "")
            if not source:
                return missing_row(role, config.model, hub_id), builder(stand_in, run.data), False
            # timm gives a student of the hub a classifier for its own classes, so the file need not fit it.
            config = replace(config, checkpoint=source) if role == "teacher" else stand_in
        model = builder(config, run.data)
    except (OSError, ValueError) as caught:
        model = load_model(role, replace(run, **{role: stand_in}))[1] if config != stand_in else None
        return error(role, str(caught)), model, False
    num_parameters = sum(p.numel() for p in model.parameters())
    weights = {random: random_text, "demo": str(build.DEMO_TEACHER)}.get(source, source)
    return ok(role, f"{config.model}, {num_parameters / 1e6:.1f} M parameters, {weights}"), model, source != random


def missing_row(role: str, model: str, hub_id: str) -> Row:
    """Say that weights are not in the cache of the hub, and how to get them there."""
    fetch = f"python -c \"import timm; timm.create_model('{model}', pretrained=True)\""
    return warning(
        role,
        f"weights of {hub_id} are not in this node's cache: train would download them, which the doctor does not",
        f"{fetch} where there is a network, with the HF_HOME that the nodes share; or give the file",
    )


def check_engines(patient: Patient) -> list[Row]:
    """Start both engines as training has them, and make a few updates on random images. Collective."""
    split, models = needed(patient.split, "the settings"), needed(patient.models, "the models")
    micro = split.micro_batch_size if patient.is_gpu else min(split.micro_batch_size, CPU_MICRO_BATCH)
    # One micro-batch per update, so that a few seconds show the gather, the reduction and the update.
    whole = micro * ranks.world_size()
    run = replace(patient.run, compile=False, global_batch_size=whole, micro_batch_size_per_gpu=micro)
    sizes = {"train_batch_size": whole, "train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": 1}
    schedule = make_schedule(run, steps_per_epoch=1, accumulation_steps=1)
    parts = start_engines(run, patient.ds_config | sizes, models, schedule, patient.device)
    patient.parts = parts
    try:
        terms, teacher_s, step_s = timed_steps(parts)
    except NonFiniteError as caught:
        found = str(caught).partition(": ")[2]  # without the place in a run
        advice = "train without a term (--losses.NAME.weight=0) to see which one it is"
        return [error("engines", f"on random images {found}", advice)]
    losses = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
    teacher = f"teacher ({run.teacher.placement}) {teacher_s:.2f} s, " if parts.teacher else ""
    found = f"{micro} random images: {teacher}student's step {step_s - teacher_s:.2f} s, losses finite ({losses})"
    return [ok("engines", found), memory_row(patient, micro, step_s)]


def timed_steps(parts: Parts) -> tuple[dict[str, Tensor], float, float]:
    """Make updates with training's own step, on random images and labels. Collective.

    Returns:
        The terms of the last one, and the seconds of the fastest: of the teacher within it, and of it as a whole.

    Raises:
        NonFiniteError: a loss or gradient is not finite.
    """
    run, device, seconds = parts.run, parts.device, []
    shape = run.micro_batch_size_per_gpu, 3, run.data.image_size, run.data.image_size
    images_BCHW = torch.randint(256, shape, dtype=torch.uint8, device=device)
    labels_B = torch.randint(run.data.num_classes, shape[:1], device=device)

    def teach(images_BCHW: Tensor) -> Features:
        start = synchronised_time()
        features = parts.teacher(images_BCHW)
        teacher_s.append(synchronised_time() - start)
        return features

    timed = replace(parts, teacher=teach if parts.teacher else None)
    for _ in range(1 + (TIMED_STEPS if device.type == "cuda" else 1)):
        teacher_s, start = [], synchronised_time()
        terms, _ = train_step(timed, repeat((images_BCHW, labels_B)), 0)
        seconds.append((synchronised_time() - start, sum(teacher_s)))
    step_s, teacher_s = min(seconds[1:])
    return terms, teacher_s, step_s


def memory_row(patient: Patient, micro: int, step_s: float) -> Row:
    """The peak memory of the steps, on a GPU with its speed."""
    peak_gib = peak_memory_gib()
    if not patient.is_gpu:
        return ok("memory", f"{peak_gib:.1f} GiB at the peak, with a micro-batch of {micro}")
    patient.images_per_s = micro / step_s
    total_gib = torch.cuda.get_device_properties(patient.device).total_memory / 2**30
    found = f"{peak_gib:.1f} of {total_gib:.0f} GiB at the peak, {patient.images_per_s:,.0f} images/s per GPU"
    if peak_gib > MOST_MEMORY * total_gib:
        return warning("memory", found, "lower --micro_batch_size_per_gpu: gradients accumulate over the rest")
    return ok("memory", f"{found}, uncompiled")
