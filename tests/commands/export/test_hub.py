"""The folder for the Hugging Face Hub: timm loads it from disk, and from a fake Hub after a push."""

import json
import sys

import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.commands.export.hub_server import TOKEN, hub_server
from tests.commands.test_evaluate import MEAN, STD, write_export
from tests.commands.test_probe import write_student
from tests.conftest import run_command
from vitkd_ds.commands.evaluate import evaluate_exported
from vitkd_ds.commands.export import export
from vitkd_ds.commands.predict import load_student, predict
from vitkd_ds.config.options import apply_options
from vitkd_ds.data.demo import CLASSES
from vitkd_ds.models.build import build_teacher
from vitkd_ds.recipes import build_run
from vitkd_ds.recipes.demo import STUDENT_ARGS

FAMILIES = {
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "num_classes": 10},
    "vit_small_patch16_dinov3": {"img_size": 64, "depth": 1, "num_classes": 0},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 1, "num_classes": 10},
    "vit_base_patch16_siglip_224.webli": {
        "img_size": 64,
        "depth": 1,
        "embed_dim": 48,
        "num_heads": 2,
        "num_classes": 10,
    },
}
LOAD = """
import sys, timm, torch
model = timm.create_model(sys.argv[1], pretrained=True).eval()
torch.save((model(torch.load(sys.argv[2])), model.pretrained_cfg["label_names"]), sys.argv[3])
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A fake Hub that the commands under test talk to."""
    with hub_server() as running:
        # Xet is a separate service; the client would upload the weights there instead of over the HTTP API.
        settings = {"HF_ENDPOINT": running.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        for name, value in (settings | {"HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf_home")}).items():
            monkeypatch.setenv(name, value)
        # This process has already read these variables.
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield running


def write_family(folder, model_name):
    """An exported student of another family, and the model itself."""
    torch.manual_seed(0)
    args = FAMILIES[model_name]
    model, size = timm.create_model(model_name, **args).eval(), args.get("img_size", 64)
    description = {
        "model": model_name,
        "args": args,
        "normalization": {"mean": MEAN, "std": STD},
        "image_size": size,
        "val_crop_fraction": 0.9,
        "interpolation": "bilinear",
        "features": {"width": model.num_features},
        "classes": [f"class {i}" for i in range(args["num_classes"])],
    }
    folder.mkdir()
    save_file(
        {name: weight.contiguous() for name, weight in model.state_dict().items()}, folder / "student.safetensors"
    )
    (folder / "student.json").write_text(json.dumps(description))
    return model


@pytest.mark.parametrize("model_name", FAMILIES)
def test_timm_loads_the_folder_with_the_same_answers_preprocessing_and_classes(tmp_path, model_name):
    model = write_family(tmp_path / "student", model_name)
    assert export(str(tmp_path / "student"), str(tmp_path / "out"), format="hf") == str(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    size = FAMILIES[model_name].get("img_size", 64)
    images_BCHW = torch.randn(2, 3, size, size)
    assert torch.equal(loaded(images_BCHW), model(images_BCHW))
    found = timm.data.resolve_model_data_config(loaded)
    assert (list(found["mean"]), list(found["std"]), list(found["input_size"])) == (MEAN, STD, [3, size, size])
    assert (found["crop_pct"], found["interpolation"]) == (0.9, "bilinear")
    assert loaded.pretrained_cfg["label_names"] == [f"class {i}" for i in range(FAMILIES[model_name]["num_classes"])]
    assert "license" not in loaded.pretrained_cfg or loaded.pretrained_cfg["license"] is None


def test_half_precision_halves_the_file_and_the_folder_is_not_overwritten(tmp_path):
    write_export(tmp_path / "student")
    export(str(tmp_path / "student"), str(tmp_path / "out"), format="hf", half=True)
    whole, halves = (
        load_file(path)
        for path in (tmp_path / "student" / "student.safetensors", tmp_path / "out" / "model.safetensors")
    )
    assert all(torch.equal(halves[name], weight.half()) for name, weight in whole.items())
    with pytest.raises(ValueError, match="out already exists and is not overwritten. Pass another folder"):
        export(str(tmp_path / "student"), str(tmp_path / "out"), format="hf")


def test_a_pushed_student_is_private_and_loads_from_the_hub_and_no_push_replaces_another(tmp_path, hub):
    model = write_student(tmp_path / "student", num_classes=10)
    command = ["vitkd-ds", "export", tmp_path / "student", tmp_path / "out", "--format", "hf", "--push", "me/small"]
    printed = run_command(*command).stdout.splitlines()
    assert printed[0] == str(tmp_path / "out") and printed[1].startswith(hub.url)
    stored = hub.repositories["me/small"]
    assert stored["private"]
    assert stored["files"] == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert 'timm.create_model("hf-hub:me/small", pretrained=True)' in stored["files"]["README.md"].decode()
    images_BCHW = torch.randn(2, 3, 28, 28)
    torch.save(images_BCHW, tmp_path / "images.pt")
    files = [tmp_path / "images.pt", tmp_path / "answers.pt"]
    run_command(sys.executable, "-c", LOAD, "hf-hub:me/small", *files)
    logits_BK, names = torch.load(tmp_path / "answers.pt")
    assert torch.equal(logits_BK, model(images_BCHW))
    assert names == list(CLASSES)
    others = {
        "me/public": ({"private": False, "files": {}}, "the repository me/public is public"),
        "me/notes": (
            {"private": True, "files": {"README.md": b"mine"}},
            "the repository me/no.* is not empty .it has README.md",
        ),
        "me/small": (stored, "the repository me/small is not empty"),
    }
    hub.repositories |= {name: repository for name, (repository, _) in others.items()}
    for name, (_, message) in others.items():
        with pytest.raises(ValueError, match=message):
            export(str(tmp_path / "student"), str(tmp_path / "again"), format="hf", push=name)
    assert not (tmp_path / "again").exists()
    assert hub.repositories == {name: repository for name, (repository, _) in others.items()}


def test_a_rejecting_hub_gives_a_clear_error_and_leaves_nothing(tmp_path, hub, monkeypatch):
    write_export(tmp_path / "student")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refusal = "cannot create or read the repository 'me/small': .*401.*`hf auth login`"
    with pytest.raises(ValueError, match=refusal):
        export(str(tmp_path / "student"), str(tmp_path / "out"), format="hf", push="me/small")
    assert not (tmp_path / "out").exists() and not hub.repositories


def test_a_failed_push_keeps_the_student_and_the_message_says_how_to_continue(tmp_path, hub):
    write_export(tmp_path / "student")
    hub.takes_commits = False
    message = f"wrote .*out, but could not upload it to me/small: .*Retry with `hf upload me/small {tmp_path}/out`"
    with pytest.raises(ValueError, match=message):
        export(str(tmp_path / "student"), str(tmp_path / "out"), format="hf", push="me/small")
    assert (tmp_path / "out" / "model.safetensors").is_file() and not hub.repositories["me/small"]["files"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"format": "onxx"}, "--format onxx is unknown: did you mean onnx"),
        ({"val": "demo"}, "--val needs --format onnx or torch_export, got --format timm. Remove"),
        ({"format": "onnx", "push": "me/x"}, "--push needs --format hf, got --format onnx"),
        ({"format": "hf", "which": "first"}, "--which must be last or best, got first"),
    ],
)
def test_options_that_do_not_fit_are_rejected(tmp_path, options, message):
    write_export(tmp_path / "student")
    with pytest.raises(ValueError, match=message):
        export(str(tmp_path / "student"), str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_a_hub_export_can_predict_be_evaluated_teach_and_be_exported_again(tmp_path, small_beton):
    preprocessing = {"mean": MEAN, "std": STD, "input_size": [3, 28, 28], "crop_pct": 1.0, "interpolation": "bicubic"}
    overlay = preprocessing | {"num_classes": len(CLASSES), "label_names": list(CLASSES)}
    args = {"img_size": 28, "num_classes": 10, **STUDENT_ARGS, "pretrained_cfg_overlay": overlay}
    model = write_export(tmp_path / "student", args=args)
    export(str(tmp_path / "student"), str(tmp_path / "hf"), format="hf")
    ours, theirs = (str(tmp_path / name) for name in ("student", "hf"))
    loaded = load_student(theirs)
    images_BCHW = torch.randn(2, 3, 28, 28)
    assert torch.equal(loaded(images_BCHW), model(images_BCHW))
    assert loaded.pretrained_cfg == load_student(ours).pretrained_cfg
    assert loaded.pretrained_cfg["label_names"] == list(CLASSES) and loaded.pretrained_cfg["input_size"] == [3, 28, 28]
    image = str(tmp_path / "image.png")
    Image.new("RGB", (40, 30), "teal").save(image)
    assert [*predict(theirs, [image])] == [*predict(ours, [image])]
    expected = evaluate_exported(ours, val=str(small_beton), teacher=ours)
    assert evaluate_exported(theirs, val=str(small_beton), teacher=theirs) == expected
    assert evaluate_exported(f"{theirs}/model.safetensors", val=str(small_beton), teacher=ours) == expected
    # As a teacher: the option finds its model, its arguments and its normalisation.
    options = {"teacher.checkpoint": theirs, "workdir": str(tmp_path / "run")}
    config = apply_options(build_run("demo"), options).teachers["teacher"]
    assert (config.model, config.checkpoint) == ("deit_tiny_patch16_224", f"{theirs}/model.safetensors")
    teacher = build_teacher(config, build_run("demo").data)
    assert list(teacher.pretrained_cfg["mean"]) == MEAN
    assert torch.equal(teacher(images_BCHW), model(images_BCHW))
    export(theirs, str(tmp_path / "again"))
    again = json.loads((tmp_path / "again" / "student.json").read_text())
    assert again == json.loads((tmp_path / "student" / "student.json").read_text())
    assert export(theirs, str(tmp_path / "hf_again"), format="hf")
