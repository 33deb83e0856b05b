"""Check the batch split, models, weights, engines, and the teachers' top-1.

Nothing is downloaded, because many nodes have no network, and a download of several GB takes longer than two minutes.
Models without weights on this node get random weights, so that the engines can still be tested. The engines make
real updates on random images. They do not use torch.compile, because compiling takes minutes. On a CPU, the micro-batch
is small.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import repeat
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache  # timm's own requirement
from torch import Tensor, nn

from vitkd_ds.commands.doctor.rows import Patient, Row, Skipped, error, judged, needed, ok, warning
from vitkd_ds.config.run import Run, StudentConfig, TeacherConfig
from vitkd_ds.config.selected import is_selected, source_of
from vitkd_ds.config.teachers import called, role_of
from vitkd_ds.engine import ranks
from vitkd_ds.engine.optimizers.base import state_bytes
from vitkd_ds.engine.processes import peak_memory_gib, synchronised_time
from vitkd_ds.engine.student import student_ds_config
from vitkd_ds.models import build
from vitkd_ds.models.cost import num_parameters
from vitkd_ds.models.distiller import Distiller
from vitkd_ds.models.features import Features
from vitkd_ds.train import parts as training
from vitkd_ds.train.schedule import make_schedule
from vitkd_ds.train.step import NonFiniteError, settle, train_step
from vitkd_ds.train.teacher_check import ADVICE, count_right, judge

HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # files that timm downloads, in its order of preference
KEYS = {StudentConfig: ("init", ""), TeacherConfig: ("checkpoint", "random")}
"""Name of the setting for a model's weights, and the setting's value for random weights."""
CPU_MICRO_BATCH = 2
TIMED_STEPS = {"cuda": 3, "cpu": 1}  # after one warm-up step
MOST_MEMORY = 0.92
"""Peak fraction of a GPU's memory above which doctor warns. Prefetched images and fragmentation may fill the rest."""


def check_settings(patient: Patient) -> Iterator[Row]:
    """Check that the global batch can be divided among the ranks, and that the DeepSpeed file is valid. Collective."""
    run = patient.run
    split = training.split_of(run)  # fails on all ranks or on none, unlike the next line, which reads a file
    patient.ds_config = ranks.together(lambda: student_ds_config(run, **asdict(split)))
    patient.split = split
    shares = f"{ranks.world_size()} ranks x {split.accumulation_steps} micro-batches x {split.micro_batch_size} images"
    is_good = split.accumulation_steps == 1 or split.micro_batch_size >= run.micro_batch_size_per_gpu / 2
    problem = f"though micro_batch_size_per_gpu allows {run.micro_batch_size_per_gpu}"
    advice = "pass a --global_batch_size that divides into larger micro-batches, or use another number of ranks"
    yield judged(is_good, "settings", f"{run.global_batch_size} images per update = {shares}", problem, advice)


def check_models(patient: Patient) -> Iterator[Row]:
    """Build all models with the weights that are on this node, and build the losses. Collective."""
    run = patient.run
    torch.manual_seed(run.seed)  # the same student on every rank
    loaded = {role: load_model(role, run) for role in run.models}
    yield from [row for row, _, _ in loaded.values()]
    student = loaded["student"][1]
    teachers = {name: loaded[role_of(name)][1] for name in run.teachers}
    # An unknown architecture fails on all ranks, but a file may be missing on one node only. The engines cannot start
    # if some ranks have the teacher's file and others random weights.
    is_alike = len(set(ranks.from_all(tuple(hasattr(model, "weight_stream") for model in teachers.values())))) == 1
    if ranks.all_true(student is not None and None not in teachers.values(), patient.device) and is_alike:
        trained = [name for name in teachers if ranks.all_true(loaded[role_of(name)][2], patient.device)]
        patient.trained_teachers = trained
        fitting = training.fit_models(run, student, teachers)
        distiller = Distiller(fitting.student, run.losses, fitting.pairs)
        patient.num_trained = sum(p.numel() for p in distiller.parameters() if p.requires_grad)
        patient.state_bytes = state_bytes(distiller, run.optim)
        patient.models = fitting


def load_model(role: str, run: Run) -> tuple[Row, nn.Module | None, bool]:
    """Build the student or a teacher without using the network.

    Returns:
        A row about the model; the model, or None if its architecture cannot be built; and whether weights other than
        random ones are available for it.
    """
    config = run.models[role]
    key, random = KEYS[type(config)]
    source = getattr(config, key)
    try:
        if source == "hub":
            source = _cached_file(role, run)
            if not source:
                fetch = f"python -c \"import timm; timm.create_model('{config.model}', pretrained=True)\""
                advice = f"run {fetch} on a machine with a network and the nodes' HF_HOME, or pass a file of weights"
                found = f"weights of {config.model} are not in this node's cache (doctor downloads nothing)"
                return warning(role, found, advice), _build(role, run, random), False
        elif is_selected(source) and source_of(source, run.teachers).checkpoint == "hub":
            found = f"{role}.{key}={source} was not tried, because doctor downloads nothing"
            return warning(role, found, "start the run on this node to try it"), _build(role, run, random), False
        # timm replaces the classifier of a student from the hub, so the file itself need not fit.
        is_kept = role == "student" and getattr(config, key) == "hub"
        model = _build(role, run, random if is_kept else source)
    except (OSError, ValueError) as caught:
        return error(role, str(caught)), _build_or_none(role, run, random), False
    size = f"{config.model}, {num_parameters(model) / 1e6:.1f} M parameters"
    weights = {random: "random weights", "demo": str(build.DEMO_TEACHER)}.get(source, source)
    return ok(role, f"{size}, {weights}"), model, source != random


def _build(role: str, run: Run, weights: str) -> nn.Module:
    config = run.models[role]
    config = replace(config, **{KEYS[type(config)][0]: weights})
    if role == "student":
        return build.build_student(config, run.data, **training.student_needs(run))
    name = next(name for name in run.teachers if role_of(name) == role)
    return build.build_teacher(config, run.data, role=role, **training.teacher_needs(run, name))


def _build_or_none(role: str, run: Run, weights: str) -> nn.Module | None:
    try:
        return _build(role, run, weights)
    except (OSError, ValueError):
        return None


def _cached_file(role: str, run: Run) -> str:
    """Return the path of a model's weights in this node's hub cache; "" if the cache does not have them."""
    with torch.device("meta"):
        hub_id = _build(role, run, KEYS[type(run.models[role])][1]).pretrained_cfg["hf_hub_id"]
    found = (try_to_load_from_cache(hub_id, name) for name in HUB_FILES)
    return next((file for file in found if isinstance(file, str)), "")


def check_engines(patient: Patient) -> Iterator[Row]:
    """Start the engines as training does, and run a few training steps. Collective."""
    split = needed(patient.split, "the settings")
    models = needed(patient.models, "the models")
    device = patient.device
    micro = split.micro_batch_size if device.type == "cuda" else min(split.micro_batch_size, CPU_MICRO_BATCH)
    # One micro-batch per update, so that gather, reduction and update all run within seconds.
    whole = micro * ranks.world_size()
    run = replace(patient.run, compile="off", global_batch_size=whole, micro_batch_size_per_gpu=micro)
    sizes = {"train_batch_size": whole, "train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": 1}
    schedule = make_schedule(run, steps_per_epoch=1, accumulation_steps=1)
    patient.parts = training.start_engines(run, patient.ds_config | sizes, models, schedule, device)
    try:
        terms, step_s, teachers_s = timed_steps(patient.parts)
    except NonFiniteError as caught:
        found = f"on random images {str(caught).partition(': ')[2]}"  # without the step
        yield error("engines", found, "disable one term at a time (--losses.NAME.weight=0) to find the cause")
        return
    losses = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
    taught = [(role_of(name), run.teachers[name].placement, seconds) for name, seconds in teachers_s.items()]
    teachers = "".join(f"{role} ({placement}) {seconds:.2f} s, " for role, placement, seconds in taught)
    student_s = step_s - sum(teachers_s.values())
    found = f"{micro} random images: {teachers}student step {student_s:.2f} s, losses finite ({losses})"
    yield ok("engines", found)
    peak = f"{peak_memory_gib():.1f} GiB peak with a micro-batch of {micro}"
    if device.type != "cuda":
        yield ok("memory", peak)
        return
    patient.images_per_s = micro / step_s
    most_gib = MOST_MEMORY * torch.cuda.get_device_properties(device).total_memory / 2**30
    found = f"{peak}, {micro / step_s:,.0f} images/s per GPU, uncompiled"
    advice = "lower --micro_batch_size_per_gpu; gradient accumulation keeps the global batch size"
    yield judged(peak_memory_gib() <= most_gib, "memory", found, f"expected at most {most_gib:.1f} GiB", advice)


def timed_steps(parts: training.Parts) -> tuple[dict[str, Tensor], float, dict[str, float]]:
    """Run a few steps on random images with training's own `train_step`. Collective.

    Returns:
        The loss terms of the last step, the seconds of the fastest step, and for each teacher the seconds of its
        fastest forward pass. The first step is a warm-up and is not timed.
    """
    data = parts.run.data
    micro = parts.run.micro_batch_size_per_gpu
    device = parts.device
    step_s = []
    teachers_s = {name: [] for name in parts.teachers}
    images_BCHW = torch.randint(256, (micro, 3, data.image_size, data.image_size), dtype=torch.uint8, device=device)
    labels_B = torch.randint(max(1, data.num_classes), (micro,), device=device)

    def teach(images_BCHW: Tensor, name: str, **options: Any) -> Features:
        start = synchronised_time()
        features = parts.teachers[name](images_BCHW, **options)
        teachers_s[name].append(synchronised_time() - start)
        return features

    # Always step 0, so that the schedule of a short run does not end here.
    timed = replace(parts, teachers={name: partial(teach, name=name) for name in parts.teachers})
    for _ in range(1 + TIMED_STEPS[device.type]):
        start = synchronised_time()
        update = train_step(timed, repeat((images_BCHW, labels_B)), 0)
        step_s.append(synchronised_time() - start)
        settle(update, parts.run)
    return update.terms, min(step_s[1:]), {name: min(seconds[1:]) for name, seconds in teachers_s.items()}


def check_top1(patient: Patient) -> Iterator[Row]:
    """Measure each teacher's top-1 on validation images, as training does at the start of a run. Collective.

    Compare each value with the published one.
    """
    run = patient.run
    if not run.teachers:
        raise Skipped("the recipe has no teacher")
    for name, teacher in run.teachers.items():
        row = f"{role_of(name)} top-1"
        if name not in patient.trained_teachers:
            yield Row("skipped", row, f"needs the weights of {called(name)}, which are not available here")
            continue
        parts = needed(patient.parts, "the engines")
        classes = needed(patient.loaders.get("val"), "data.val").classes
        knows = ranks.together(partial(training.check_teacher_classes, run, name, classes))
        if not knows or name not in parts.answering:
            yield Row("skipped", row, f"{called(name)} has no logits for these classes, and no loss term uses them")
            continue
        counts = count_right(run, parts.teachers[name], patient.device, classes=classes)
        level, found = judge(run, teacher, *counts)
        yield Row(level, row, found, "" if level == "ok" else ADVICE)
