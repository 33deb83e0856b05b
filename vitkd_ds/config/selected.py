"""The setting `student.init=select:SOURCE`: initial weights that are selected from a larger model. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path

from vitkd_ds.config.run import TeacherConfig
from vitkd_ds.config.run_folder import description_beside, model_of

SELECT = "select:"
HUB = "hub:"
DEMO = "demo"
DEMO_TEACHER = Path(__file__).parents[1] / "data" / "demo" / "teacher.safetensors"
"""Weights of the packaged teacher."""


def is_selected(init: str) -> bool:
    """Return whether a value of `student.init` selects weights from another model."""
    return init.startswith(SELECT)


def selected_file(init: str, teachers: Mapping[str, TeacherConfig]) -> str:
    """Return the path of the weights to select from; "" if SOURCE is a teacher of the run, "demo" or on the hub."""
    source = init.removeprefix(SELECT)
    return "" if not is_selected(init) or source in (*teachers, DEMO) or source.startswith(HUB) else source


def source_of(init: str, teachers: Mapping[str, TeacherConfig]) -> TeacherConfig:
    """Return the model and weights to select from.

    Raises:
        ValueError: SOURCE is a file without a description of its model.
    """
    source = init.removeprefix(SELECT)
    if source in teachers:
        return teachers[source]
    if source.startswith(HUB):
        return TeacherConfig(model=source.removeprefix(HUB))
    described = model_of(description_beside(DEMO_TEACHER if source == DEMO else Path(source)))
    if not described:
        raise ValueError(
            f"student.init={init}: {source} has no description of its model. Pass a run, a checkpoint or an export, or "
            "give the file to a teacher and pass --student.init=select:teacher."
        )
    return TeacherConfig(checkpoint=source, **described)
