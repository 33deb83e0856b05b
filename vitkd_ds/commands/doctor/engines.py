"""Both engines as training has them: a gather and forward of the teacher and ZeRO steps of the student.

On random images, without torch.compile, which takes minutes. On a CPU the micro-batch is a tiny one, and says nothing
of speed.
"""

from dataclasses import replace

import torch

from vitkd_ds.commands.doctor.pair import tapped_blocks
from vitkd_ds.commands.doctor.patient import Patient, needed
from vitkd_ds.commands.doctor.rows import Row, error, ok, warning
from vitkd_ds.engine import ranks
from vitkd_ds.engine.processes import peak_memory_gib, synchronised_time
from vitkd_ds.engine.student import StudentEngine
from vitkd_ds.engine.teacher import Teacher
from vitkd_ds.models.build import normalization_of
from vitkd_ds.models.distiller import Distiller

CPU_MICRO_BATCH = 2
TIMED_STEPS = 3
"""After one that warms up; a single one on a CPU."""
MOST_MEMORY = 0.92
"""Part of a GPU's memory; above it, the images in flight and fragmentation may exhaust it."""


def check_engines(patient: Patient) -> list[Row]:
    """Build both engines, then teach and step. Collective."""
    ds_config, micro = needed(patient.ds_config, "the settings"), needed(patient.micro_batch_size, "the settings")
    needed(patient.num_trained, "the models")
    micro = micro if patient.is_gpu else min(micro, CPU_MICRO_BATCH)
    run = replace(patient.run, compile=False)
    distiller = Distiller(patient.student, run.losses, patient.pair)
    # One micro-batch per update: each step here is a whole one.
    sizes = {"train_batch_size": micro * ranks.world_size(), "train_micro_batch_size_per_gpu": micro}
    ds_config = ds_config | sizes | {"gradient_accumulation_steps": 1}
    engine = StudentEngine(distiller, run, ds_config)
    if patient.teacher_model is not None:
        options = {"blocks": tapped_blocks(patient), "device": patient.device, "micro_batch_size": micro}
        patient.teacher = Teacher(patient.teacher_model, run.teacher, **options)
    times = []
    for _ in range(1 + (TIMED_STEPS if patient.is_gpu else 1)):
        terms, is_good, teacher_s, step_s = step(patient, engine, micro)
        times.append((teacher_s, step_s))
    teacher_s, step_s = (min(column) for column in zip(*times[1:]))
    if patient.is_gpu:
        patient.images_per_s = micro / (teacher_s + step_s)
    return step_rows(patient, terms, is_good, micro, teacher_s, step_s)


def step(patient: Patient, engine: StudentEngine, micro: int) -> tuple[dict[str, torch.Tensor], bool, float, float]:
    """One update on random images: the terms, whether all was finite, and the teacher's and student's seconds.
    Collective."""
    data, device = patient.run.data, patient.device
    images_BCHW = 255 * torch.rand(micro, 3, data.image_size, data.image_size, device=device)
    targets_BK = torch.full((micro, data.num_classes), 1 / data.num_classes, device=device)
    weights = {name: torch.tensor(1.0, device=device) for name in patient.run.losses.active()}
    start = synchronised_time()
    features = patient.teacher(images_BCHW) if patient.teacher else None
    taught = synchronised_time()
    images_BCHW = normalization_of(patient.student).apply(images_BCHW, engine.dtype)
    terms = engine(images_BCHW, targets_BK, features, weights)
    engine.backward(terms["total"])
    is_finite = ranks.all_true(torch.isfinite(torch.stack(list(terms.values()))).all(), device)
    is_updated = engine.step()
    return terms, is_finite and is_updated, taught - start, synchronised_time() - taught


def step_rows(
    patient: Patient, terms: dict[str, torch.Tensor], is_good: bool, micro: int, teacher_s: float, step_s: float
) -> list[Row]:
    """What the steps showed on this rank."""
    losses = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
    if not is_good:
        advice = "train without a term (--losses.NAME.weight=0) to see which one it is"
        return [error("engines", f"losses and gradients of random images must be finite, found {losses}", advice)]
    teacher = f"teacher ({patient.run.teacher.placement}) {teacher_s:.2f} s, " if patient.teacher else ""
    memory_gib = peak_memory_gib()
    rows = [ok("engines", f"{micro} random images: {teacher}student's step {step_s:.2f} s, losses finite ({losses})")]
    if patient.is_gpu:
        total_gib = torch.cuda.get_device_properties(patient.device).total_memory / 2**30
        found = f"{memory_gib:.1f} of {total_gib:.0f} GiB at the peak, {patient.images_per_s:,.0f} images/s per GPU"
        rows += [memory_row(found, memory_gib / total_gib)]
    else:
        rows += [ok("memory", f"{memory_gib:.1f} GiB at the peak, with a micro-batch of {micro}")]
    return rows


def memory_row(found: str, part: float) -> Row:
    """The peak memory of a GPU, of which `part` was used."""
    if part > MOST_MEMORY:
        return warning("memory", found, "lower --micro_batch_size_per_gpu: gradients accumulate over the rest")
    return ok("memory", f"{found}, uncompiled")
