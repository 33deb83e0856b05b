"""A student as a folder that timm loads, from the disk or from the Hugging Face hub, and its way to the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi  # timm's own requirement
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from vitkd_ds.checkpoint.files import write_json, write_text, write_whole
from vitkd_ds.commands.export.card import model_card
from vitkd_ds.commands.predict import Exported
from vitkd_ds.config.run_folder import NOT_OF_THE_MODEL
from vitkd_ds.models.hub import HUB_FILE

OF_TIMM = ("first_conv", "classifier", "fixed_input_size", "pool_size")
"""What timm's configuration of the model says of its architecture; the rest is about weights that these are not."""


def write_hub_folder(
    exported: Exported,
    model: nn.Module,
    weights: Mapping[str, Tensor],
    folder: Path,
    *,
    name: str,
    repository: str,
) -> None:
    """Write config.json, model.safetensors and README.md, a model card, into a folder.

    Args:
        model: the student.
        weights: its tensors, as they are stored.
        name: of the folder, by which the card calls it where there is no repository.
        repository: of the hub, USER/NAME, to which it will be uploaded; "" is none.
    """
    source = f"hf-hub:{repository}" if repository else f"local-dir:{name}"
    content = safetensors_bytes({key: weight.contiguous() for key, weight in weights.items()}, {"format": "pt"})
    write_whole(folder / HUB_FILE, lambda file: file.write(content))
    write_json(folder / "config.json", hub_config(exported, model))
    write_text(folder / "README.md", model_card(exported, name=repository or name, source=source))


def hub_config(exported: Exported, model: nn.Module) -> dict[str, Any]:
    """timm's description of a model: what `timm.create_model("hf-hub:..."` and `"local-dir:..."` read."""
    description = exported.description
    own = {key: model.pretrained_cfg[key] for key in OF_TIMM if key in model.pretrained_cfg}
    size = description["image_size"]
    classes = description["classes"]
    args = {key: value for key, value in description["args"].items() if key != NOT_OF_THE_MODEL[-1]}
    return {
        "architecture": description["model"].partition(".")[0],  # without the tag of the weights that it may name
        "num_classes": len(classes),
        "num_features": model.num_features,
        "model_args": args,
        "pretrained_cfg": own
        | description["normalization"]
        | {
            "input_size": [3, size, size],
            "crop_pct": description["val_crop_fraction"],
            "interpolation": description["interpolation"],
            "num_classes": len(classes),
            "label_names": classes,
        },
    }


def check_repository(repository: str) -> None:
    """Make a private repository of the hub, if there is none. Raises ValueError if there is a public one or one that
    holds anything, or the hub refuses."""
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        found = api.repo_info(repository)
        files = [file.rfilename for file in found.siblings or () if file.rfilename != ".gitattributes"]
    # Of the hub's client, of its HTTP client, whose kinds change between versions, and of the system.
    except Exception as error:
        raise ValueError(
            f"--push must name a repository that you may write, as USER/NAME, found {repository!r}, where "
            f"{_first_line(error)}: see `hf auth login`, or leave --push out"
        ) from error
    if files:
        raise ValueError(
            f"--push must name an empty repository, so that nothing is overwritten, found {files[0]} in {repository}: "
            "give another name"
        )
    if not found.private:
        raise ValueError(
            f"--push must name a private repository, so that nothing is published unseen, found {repository} public: "
            f"give another name, or push the folder yourself with `hf upload {repository} FOLDER`"
        )


def push_folder(folder: Path, repository: str) -> str:
    """Upload a folder as one commit; return its address. Raises ValueError if that fails."""
    try:
        return str(HfApi().upload_folder(repo_id=repository, folder_path=folder, commit_message="Add the student"))
    except Exception as error:  # as above
        raise ValueError(
            f"{folder} is written, but was not uploaded to {repository}: {_first_line(error)}: try again with "
            f"`hf upload {repository} {folder}`"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
