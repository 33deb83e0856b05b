"""Student and teacher for data without classes: models without a classifier, from files with one."""

import dataclasses

import torch

from tests.models.families import FAMILIES, source_model
from tests.models.test_build import DATA, save
from vitkd_ds.config.run import StudentConfig, TeacherConfig
from vitkd_ds.models.build import build_student, build_teacher


def test_for_data_without_classes_everything_but_the_classifier_is_loaded(tmp_path, caplog):
    source, data = source_model("deit"), dataclasses.replace(DATA, num_classes=0)
    path = save(source.state_dict(), tmp_path)
    with caplog.at_level("INFO", "vitkd_ds"):
        student = build_student(StudentConfig(*FAMILIES["deit"], init=str(path)), data, classes=())
        teacher = build_teacher(TeacherConfig(*FAMILIES["deit"], checkpoint=str(path)), data, needs_logits=False)
    for role, key, model in (("student", "init", student), ("teacher", "checkpoint", teacher)):
        assert f"{role}.{key}={path} has 5 classes, but the {role} has none: dropping its classifier" in caplog.text
        expected = {name: value for name, value in source.state_dict().items() if not name.startswith("head.")}
        assert model.num_classes == 0 and model.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    headless = save(student.state_dict(), tmp_path)
    caplog.clear()
    build_student(StudentConfig(*FAMILIES["deit"], init=str(headless)), data, classes=())
    assert "classifier" not in caplog.text
