"""Export a student with torch.onnx or torch.export, as a graph that runs without timm and this package.

A graph maps normalised images, in micro-batches of any size, to logits. For a student without a classifier, it maps
them to pooled features. Its metadata is student.json with a description of input and output. Before the new folder gets
its final name, the written graph is loaded again, and its outputs on real images are compared with the student's.
"""

import json
import logging
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

from vitkd_ds.commands.pack.folders import find_packed
from vitkd_ds.commands.predict import Answers, Exported
from vitkd_ds.config.run_folder import DESCRIPTION
from vitkd_ds.data.loader import build_loader
from vitkd_ds.models import build

NUM_IMAGES = 16
SMALLER_BATCHES = (1, 3)
"""Number of images for the comparison with torch, and smaller micro-batch sizes for which it is repeated."""
BOUNDS = {torch.float32: 1e-4, torch.float16: 2e-2}
"""Largest allowed difference from torch in fp32, as a fraction of the largest output, by the graph's dtype.

The measured differences are at most 1.4e-6 for fp32 and 1.7e-3 for fp16 (benchmarks/RESULTS.md). The bounds are higher,
because deeper models and other CPUs round differently."""
ONE_FILE_BYTES = 2**30
"""Weights of up to this total size are stored in the .onnx, which is limited to 2 GiB; larger ones in a second file."""
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch_export": ()}


def check_packages(format: str) -> None:
    """Raise ValueError unless a format's packages are installed."""
    for name in PACKAGES[format]:
        try:
            __import__(name)
        except ImportError as error:
            raise ValueError(f"--format {format} needs {name} ({error}). Run: pip install 'vitkd_ds[onnx]'") from None


def write_graph(exported: Exported, model: nn.Module, folder: Path, *, format: str, half: bool, val: str) -> str:
    """Write a student as model.onnx or model.pt2 into a folder. Return a text about the graph's difference from torch.

    Args:
        format: onnx or torch_export.
        half: store fp16 weights, and take fp16 images.
        val: images for the comparison with torch; "" uses the run's validation images.

    Raises:
        ValueError: there are no images, torch cannot export the model, or the graph's outputs differ from torch's.
    """
    images_BCHW = validation_images(exported, val)
    dtype = torch.float16 if half else torch.float32
    images_BCHW = build.normalization_of(model).apply(images_BCHW, torch.float32)
    answers = Answers(model, features=not exported.classes).eval()
    with torch.no_grad():
        expected_BK = answers(images_BCHW)
    # Two images, because torch.export would treat a micro-batch of one as a constant.
    example = images_BCHW[:1].repeat(2, 1, 1, 1).to(dtype)
    write = {"onnx": _write_onnx, "torch_export": _write_program}[format]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings within torch
            shapes = ({0: torch.export.Dim("batch")},)
            program = torch.export.export(answers.to(dtype), (example,), dynamic_shapes=shapes)
            run = write(program, folder, description_of(exported, dtype))
    # torch's exporters raise many kinds of errors on an unsupported model.
    except Exception as error:
        line = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"torch cannot export {exported.description['model']} as {format} ({type(error).__name__}: {line}). Pass "
            "--format timm or hf."
        ) from error
    return _compare(run, images_BCHW.to(dtype), expected_BK, dtype)


def validation_images(exported: Exported, val: str) -> Tensor:
    """Return up to NUM_IMAGES images of `val`, or of the run's validation data if `val` is "": [B, 3, H, W].

    The images are evenly spaced over the file. They have values in 0..255, and are cropped as in evaluation. Labels are
    not needed. Images that cannot be decoded are left out.
    """
    backend = "ffcv"
    if not val:
        val = exported.own_images("val")
        backend = exported.run.data.backend
    path = val if backend == "torchvision" else find_packed("val", val)
    data = exported.data(
        path, num_classes=0, labels="ignore", max_val_images=NUM_IMAGES, on_bad="skip", backend=backend
    )
    loader = build_loader(data, split="val", micro_batch_size=NUM_IMAGES)
    with closing(loader.epoch(0)) as micro_batches:
        images_BCHW, labels_B = next(micro_batches)
    if not (labels_B >= 0).any():
        raise ValueError(f"none of the images read from {val} can be decoded. Pass other images as --val.")
    return images_BCHW[labels_B >= 0]


def description_of(exported: Exported, dtype: torch.dtype) -> dict[str, object]:
    """Return a graph's metadata: the content of student.json, and descriptions of the graph's input and output."""
    description = exported.description
    size = exported.description["image_size"]
    mean, std = (description["normalization"][name] for name in ("mean", "std"))
    resized = int(size / description["val_crop_fraction"])
    output = "logits" if exported.classes else "features"
    return description | {
        "input": f"images, {str(dtype).removeprefix('torch.')} [batch, 3, {size}, {size}]: RGB in 0..1, minus {mean}, "
        f"divided by {std}, after resizing the shorter side to {resized} pixels ({description['interpolation']}, "
        "antialiased) and cropping the central square",
        "output": f"{output}, [batch, {len(exported.classes) or description['features']['width']}]",
    }


def _write_program(program: torch.export.ExportedProgram, folder: Path, description: dict[str, object]) -> Callable:
    path = folder / "model.pt2"
    torch.export.save(program, path, extra_files={DESCRIPTION: json.dumps(description)})
    return torch.export.load(path).module()


def _write_onnx(program: torch.export.ExportedProgram, folder: Path, description: dict[str, object]) -> Callable:
    import onnxruntime

    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it logs every operation that it does not fold
    path = folder / "model.onnx"
    output = str(description["output"]).partition(",")[0]
    graph = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=[output],
        dynamic_shapes=({0: "batch"},),
    )
    for key, value in description.items():
        graph.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    num_bytes = sum(weight.nbytes for weight in program.state_dict.values())
    graph.save(path, external_data=num_bytes > ONE_FILE_BYTES)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images_BCHW: torch.from_numpy(session.run(None, {"images": images_BCHW.numpy()})[0])


def _compare(run: Callable, images_BCHW: Tensor, expected_BK: Tensor, dtype: torch.dtype) -> str:
    """Compare a graph's outputs with torch's in fp32. Return a text, or raise ValueError if they differ too much."""
    sizes = sorted({size for size in SMALLER_BATCHES if size < len(images_BCHW)} | {len(images_BCHW)})
    with torch.no_grad():
        found = [(run(images_BCHW[:size]).float() - expected_BK[:size]).abs().max() for size in sizes]
    difference = torch.stack(found).max().item()
    largest = expected_BK.abs().max().item()
    said = (
        f"largest difference from torch in fp32 {difference:.2g}, with outputs up to {largest:.3g}, on "
        f"{len(images_BCHW)} images in micro-batches of {', '.join(map(str, sizes))}"
    )
    if not difference <= BOUNDS[dtype] * largest:  # `not <=` also catches nan
        raise ValueError(
            f"the graph's outputs differ from torch's by more than {BOUNDS[dtype]:g} of the largest output ({said}). "
            "Remove --half, or pass --format timm or hf."
        )
    return said
