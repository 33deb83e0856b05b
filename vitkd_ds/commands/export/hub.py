"""Write a student as a folder that timm loads from disk or the Hugging Face hub, and upload it."""

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
"""Keys of timm's pretrained_cfg that describe the architecture. Its other keys describe timm's own weights."""


def write_hub_folder(
    exported: Exported,
    model: nn.Module,
    weights: Mapping[str, Tensor],
    folder: Path,
    *,
    name: str,
    repository: str,
) -> None:
    """Write config.json, model.safetensors and README.md (the model card) into a folder.

    Args:
        exported: the student.
        model: the student's model.
        weights: tensors to store.
        folder: the folder to fill.
        name: final name of the folder. The card uses it if there is no repository.
        repository: hub repository (USER/NAME) that will receive the folder; "" if it will not be uploaded.
    """
    source = f"hf-hub:{repository}" if repository else f"local-dir:{name}"
    content = safetensors_bytes({key: weight.contiguous() for key, weight in weights.items()}, {"format": "pt"})
    write_whole(folder / HUB_FILE, lambda file: file.write(content))
    write_json(folder / "config.json", hub_config(exported, model))
    write_text(folder / "README.md", model_card(exported, name=repository or name, source=source))


def hub_config(exported: Exported, model: nn.Module) -> dict[str, Any]:
    """Return the content of config.json, which timm.create_model reads for "hf-hub:..." and "local-dir:..."."""
    description = exported.description
    own = {key: model.pretrained_cfg[key] for key in OF_TIMM if key in model.pretrained_cfg}
    size = description["image_size"]
    classes = description["classes"]
    args = {key: value for key, value in description["args"].items() if key != NOT_OF_THE_MODEL[-1]}
    return {
        "architecture": description["model"].partition(".")[0],  # without a tag of pretrained weights
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
    """Create a private hub repository, unless an empty private one of this name exists.

    Raises:
        ValueError: the repository is public or not empty, or the hub returns an error.
    """
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        found = api.repo_info(repository)
        files = [file.rfilename for file in found.siblings or () if file.rfilename != ".gitattributes"]
    # The hub's client and its HTTP client raise different error types in different versions.
    except Exception as error:
        raise ValueError(
            f"cannot create or read the repository {repository!r}: {_first_line(error)}. Pass --push USER/NAME with a "
            "repository that you can write to, after `hf auth login`, or remove --push."
        ) from error
    if files:
        raise ValueError(
            f"the repository {repository} is not empty (it has {files[0]}), and --push overwrites nothing. Pass the "
            "name of another repository."
        )
    if not found.private:
        raise ValueError(
            f"the repository {repository} is public, and --push uploads only to private ones. Pass another name, or "
            f"run `hf upload {repository} FOLDER` after checking the folder."
        )


def push_folder(folder: Path, repository: str) -> str:
    """Upload a folder as one commit and return its URL. Raise ValueError if the upload fails."""
    try:
        return str(HfApi().upload_folder(repo_id=repository, folder_path=folder, commit_message="Add the student"))
    except Exception as error:  # as above
        raise ValueError(
            f"wrote {folder}, but could not upload it to {repository}: {_first_line(error)}. Retry with "
            f"`hf upload {repository} {folder}`."
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
