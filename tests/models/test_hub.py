"""Pretrained weights that are neither cached nor downloadable."""

import socket

import pytest
from huggingface_hub import constants

from tests.models.test_build import IMAGENET_DATA, TINY
from vitkd_ds.config.run import StudentConfig, TeacherConfig
from vitkd_ds.models import hub
from vitkd_ds.models.build import build_student, build_teacher


def test_an_unreachable_hub_is_asked_once_with_a_short_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections wait for a reply that never comes
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(hub, "REACH_S", 0.2)
        monkeypatch.setattr(hub, "hf_hub_url", lambda repository, file: f"{address}/{repository}/{file}")
        for build_it in (
            lambda: build_teacher(TeacherConfig(model=TINY), IMAGENET_DATA),
            lambda: build_student(StudentConfig(model=TINY, init="hub"), IMAGENET_DATA),
        ):
            with pytest.raises(
                ValueError, match="=hub: the weights of deit_tiny.* are not in this node's cache and cannot be"
            ):
                build_it()
            silent.accept()[0].close()
        silent.settimeout(0)
        with pytest.raises(BlockingIOError):
            silent.accept()
