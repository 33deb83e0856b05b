"""Export a student as a timm state dict, an ONNX or torch.export graph, or a Hugging Face folder."""

import logging
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from vitkd_ds.checkpoint.export import check_is_new, export_student, find_source, new_folder, read_weights
from vitkd_ds.commands.early import GRAPHS, check_export
from vitkd_ds.commands.predict import Exported, open_exported
from vitkd_ds.config.run_folder import read_student

logger = logging.getLogger(__name__)
OPENED_BY = {
    "timm": 'vitkd_ds.load_student("{}")',
    "onnx": 'onnxruntime.InferenceSession("{}/model.onnx")',
    "torch_export": 'torch.export.load("{}/model.pt2").module()',
    "hf": 'timm.create_model("local-dir:{}", pretrained=True)',
}
"""Python expression that loads each format from its folder."""


def export(
    source: str,
    destination: str,
    *,
    format: str = "timm",
    which: str = "last",
    half: bool = False,
    val: str = "",
    push: str = "",
) -> str:
    """Write a student into the new folder `destination`. Return the text to print.

    Args:
        source: a run folder, a checkpoint or an exported student.
        destination: the new folder.
        format: timm, onnx, torch_export or hf. The code is in `vitkd_ds.checkpoint.export` (timm), `graphs` (onnx,
            torch_export) and `hub` (hf).
        which: checkpoint of a run folder: last or best.
        half: store fp16 weights.
        val: images for comparing an onnx or torch_export graph with torch; "" uses the run's validation images.
        push: hub repository (USER/NAME) to upload to. It is created as a private repository if it does not exist. ""
            uploads nothing.

    Raises:
        ValueError: there is nothing to export; `destination` exists; options conflict; a graph's outputs differ from
            torch's; or the hub returns an error.
    """
    check_export(source, destination, format, val, push)
    if format == "timm":
        return _told(export_student(source, destination, which=which, half=half), format)
    find = partial(find_source, source, which)
    target = Path(destination)
    exported, model, weights = read_student(find, partial(_read, half=half))
    check_is_new(target)  # before work that may take minutes
    # Import per format, so that a format does not need the packages of another.
    if format in GRAPHS:
        from vitkd_ds.commands.export.graphs import check_packages, write_graph

        check_packages(format)
        with new_folder(target) as folder:
            said = write_graph(exported, model, folder, format=format, half=half, val=val)
        return f"{_told(target, format)}: {said}"
    from vitkd_ds.commands.export.hub import check_repository, push_folder, write_hub_folder

    if push:
        check_repository(push)
    with new_folder(target) as folder:
        write_hub_folder(exported, model, weights, folder, name=target.resolve().name, repository=push)
    told = _told(target, format)
    return f"{told}\n{push_folder(target, push)}" if push else told


def _told(folder: Path, format: str) -> str:
    """Log the written files and the Python code that loads them. Return the folder as text."""
    logger.info("wrote %s to %s", ", ".join(sorted(path.name for path in folder.iterdir())), folder)
    logger.info("load it in Python: %s", OPENED_BY[format].format(folder))
    return str(folder)


def _read(folder: Path, *, half: bool) -> tuple[Exported, nn.Module, dict[str, Tensor]]:
    """Read an exported student completely, because the run may delete its checkpoint soon.

    With `half`, the returned weights are fp16.
    """
    exported = open_exported(str(folder))
    weights = read_weights(folder, half=half)
    return exported, exported.build(), weights  # reads its file before building the model
