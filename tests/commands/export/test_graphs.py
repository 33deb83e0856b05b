"""ONNX and torch.export: each graph is loaded without our reader, fed by its metadata, and compared with timm."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from tests.commands.test_evaluate import write_export
from tests.commands.test_probe import write_student
from tests.tiers import costly
from vitkd_ds.commands.export import export, graphs
from vitkd_ds.config.run import as_dict
from vitkd_ds.recipes import build_run

PARTS = {torch.float32: 1e-5, torch.float16: 5e-3}
"""Largest allowed difference, relative to the largest output."""


TEXTS = ("model", "interpolation", "input", "output")
"""Metadata keys with text values; the others are JSON."""


def export_graph(student, out, **options):
    return export(str(student), str(out), **options)


def read_onnx(folder):
    """A function that runs a .onnx file, and its metadata."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    described = {key: value if key in TEXTS else json.loads(value) for key, value in metadata.items()}
    (entry,) = session.get_inputs()
    (answer,) = session.get_outputs()
    assert entry.name == "images" and answer.name in described["output"]
    assert entry.shape[0] == answer.shape[0] == "batch"
    return lambda images_BCHW: torch.from_numpy(session.run(None, {"images": images_BCHW.numpy()})[0]), described


def read_program(folder):
    """The same for a .pt2 file."""
    extra_files = {"student.json": ""}
    program = torch.export.load(folder / "model.pt2", extra_files=extra_files)
    return program.module(), json.loads(extra_files["student.json"])


READERS = {"onnx": read_onnx, "torch_export": read_program}


def preprocessed(described, images):
    """Images preprocessed as the metadata says, with torchvision only."""
    size = described["image_size"]
    filters = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}
    transform = Compose(
        [
            Resize(int(size / described["val_crop_fraction"]), filters[described["interpolation"]]),
            CenterCrop(size),
            ToTensor(),
            Normalize(**described["normalization"]),
        ]
    )
    return torch.stack([transform(image) for image in images])


KINDS = [("onnx", 10, False), ("torch_export", 0, True)]
OTHER_KINDS = sorted(set(product(("onnx", "torch_export"), (0, 10), (False, True))) - set(KINDS))


@pytest.mark.parametrize("format, num_classes, half", [*KINDS, *costly(OTHER_KINDS)])
def test_a_graph_matches_timm_for_any_number_of_images_and_describes_its_inputs(
    tmp_path, small_beton, format, num_classes, half
):
    model = write_student(tmp_path / "student", num_classes=num_classes)
    described = json.loads((tmp_path / "student" / "student.json").read_text())
    described |= {"val_crop_fraction": 0.875, "features": {"width": 64}}
    (tmp_path / "student" / "student.json").write_text(json.dumps(described))
    options = {"format": format, "half": half, "val": str(small_beton)}
    said = export_graph(tmp_path / "student", tmp_path / "out", **options)
    assert said.startswith(f"{tmp_path / 'out'}: largest difference from torch in fp32 ")
    assert said.endswith("on 16 images in micro-batches of 1, 3, 16")
    run, found = READERS[format](tmp_path / "out")
    assert {key: found[key] for key in described} == described
    what = "float16" if half else "float32"
    assert f"images, {what} [batch, 3, 28, 28]: RGB in 0..1, minus [0.1, 0.2, 0.3]" in found["input"]
    assert "resizing the shorter side to 32 pixels (bicubic" in found["input"]
    assert found["output"] == ("logits, [batch, 10]" if num_classes else "features, [batch, 64]")
    pixels = np.random.default_rng(5).integers(0, 256, (7, 50, 40, 3), dtype=np.uint8)
    images_BCHW = preprocessed(found, map(Image.fromarray, pixels))
    with torch.no_grad():
        expected_BK = model(images_BCHW)
    dtype = torch.float16 if half else torch.float32
    for size in (1, 7):
        answers_BK = run(images_BCHW[:size].to(dtype))
        assert answers_BK.dtype == dtype
        difference = (answers_BK.float() - expected_BK[:size]).abs().max() / expected_BK.abs().max()
        assert difference < PARTS[dtype], difference


def test_large_weights_are_stored_next_to_the_onnx_file_and_found_there(tmp_path, small_beton, monkeypatch):
    monkeypatch.setattr(graphs, "ONE_FILE_BYTES", 0)
    write_export(tmp_path / "student")
    export_graph(tmp_path / "student", tmp_path / "out", format="onnx", val=str(small_beton))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "model.onnx.data"}
    run, _ = read_onnx(tmp_path / "out")
    assert run(torch.zeros(2, 3, 28, 28)).shape == (2, 10)
    onnx.checker.check_model(tmp_path / "out" / "model.onnx")


def test_a_graph_that_overflows_in_fp16_is_rejected_and_leaves_no_files(tmp_path, small_beton):
    write_export(tmp_path / "student")
    weights = load_file(tmp_path / "student" / "student.safetensors")
    weights["head.weight"] *= 1e6
    save_file(weights, tmp_path / "student" / "student.safetensors")
    options = {"format": "torch_export", "val": str(small_beton)}
    refusal = "the graph's outputs differ from torch's by more than 0.02 of the largest output .* Remove --half"
    with pytest.raises(ValueError, match=refusal):
        export_graph(tmp_path / "student", tmp_path / "out", half=True, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    export_graph(tmp_path / "student", tmp_path / "out", **options)


def test_the_bound_is_relative_to_the_largest_output_and_every_micro_batch_counts(tmp_path):
    images_BCHW, expected_BK = torch.zeros(16, 3, 4, 4), torch.full((16, 2), 50.0)
    for size in (1, 3, 16):

        def run(images_BCHW, size=size):
            wrong = 50.01 if len(images_BCHW) == size else 50.0
            return torch.full((len(images_BCHW), 2), wrong)

        with pytest.raises(ValueError, match="more than 0.0001 of the largest output .largest difference .* 0.01"):
            graphs._compare(run, images_BCHW, expected_BK, torch.float32)
        assert "difference from torch in fp32 0.01, with" in graphs._compare(
            run, images_BCHW, expected_BK, torch.float16
        )


@pytest.mark.parametrize("backend", ["ffcv", "torchvision"])
def test_a_run_knows_its_images_even_from_a_folder_never_packed(tmp_path, small_beton, backend):
    write_export(tmp_path / "run")
    folder = str(small_beton.parent / "images") if backend == "torchvision" else str(small_beton)
    run = build_run("demo")
    run = replace(run, data=replace(run.data, train=folder, val=folder, backend=backend))
    (tmp_path / "run" / "config.json").write_text(json.dumps({"run": as_dict(run)}))
    assert "on 16 images" in export_graph(tmp_path / "run", tmp_path / "out", format="torch_export")


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "no images: .*student does not belong to a run. Pass --val"),
        (
            {"val": "{}/student"},
            "val must be a .beton or a folder with a folder per class, got .*. Pack it first",
        ),
    ],
)
def test_a_graph_without_images_is_rejected(tmp_path, options, message):
    write_export(tmp_path / "student")
    options = {key: value.format(tmp_path) for key, value in options.items()}
    with pytest.raises(ValueError, match=message):
        export_graph(tmp_path / "student", tmp_path / "out", format="onnx", **options)
    assert not (tmp_path / "out").exists()


def test_without_its_packages_onnx_is_rejected_with_the_install_command(tmp_path, monkeypatch):
    write_export(tmp_path / "student")
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"--format onnx needs onnxscript .*. Run: pip install 'vitkd_ds\[onnx\]'"):
        export_graph(tmp_path / "student", tmp_path / "out", format="onnx", val="demo")
