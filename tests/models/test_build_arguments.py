"""Arguments from a stored run or an exported student reach the model's architecture and cannot name files."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from vitkd_ds.config.run import DataConfig, TeacherConfig
from vitkd_ds.models.build import build_exported, build_teacher

DATA = DataConfig(train="demo", val="demo", image_size=32, num_classes=5)
TINY = "deit_tiny_patch16_224"


@pytest.mark.parametrize("name", ["regnetx_002", "convnext_atto", "resnet18"])
@pytest.mark.parametrize("argument", ["checkpoint_path", "pretrained_cfg", "cache_dir", "pretrained", "features_only"])
def test_no_create_model_argument_that_names_files_reaches_any_teacher(name, argument):
    with pytest.raises(ValueError, match=f": {argument} is no"):
        config = TeacherConfig(model=name, model_args={argument: "x"}, checkpoint="random")
        build_teacher(config, DATA, needs_blocks=False)


def test_the_fields_of_a_models_configuration_are_arguments():
    args = {"depth": 6, "group_size": 4, "w0": 16}
    config = TeacherConfig(model="regnetx_002", model_args=args, checkpoint="random")
    built = build_teacher(config, DATA, needs_blocks=False)
    assert built.stem.conv.out_channels == 32
    other = replace(config, model_args=args | {"stem_width": 16})
    assert build_teacher(other, DATA, needs_blocks=False).stem.conv.out_channels == 16


@pytest.mark.parametrize("change", [
    {"args": {"num_classes": 5, "checkpoint_path": "x.pth"}},
    {"args": {"num_classes": 5, "pretrained_cfg_overlay": {"file": "x.pth"}}},
    {"normalization": {"mean": [0.5] * 3, "std": [0.5] * 3, "hf_hub_id": "someone/model"}},
], ids=["argument", "overlay", "normalization"])  # fmt: skip
def test_a_description_that_names_files_is_rejected(tmp_path, change):
    description = {"model": TINY, "args": {"num_classes": 5}, "image_size": 32,
                   "normalization": {"mean": [0.5] * 3, "std": [0.5] * 3}} | change  # fmt: skip
    save_file({"weight": torch.zeros(1)}, tmp_path / "student.safetensors")
    with pytest.raises(ValueError, match="(: checkpoint_path is no|got (file|hf_hub_id))"):
        build_exported(description, tmp_path / "student.safetensors")
