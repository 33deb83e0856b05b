"""Evaluate an exported student's pooled features on labelled images by k-NN and a linear probe."""

from torch import Tensor, nn

from vitkd_ds.commands.early import check_has_images
from vitkd_ds.commands.pack.folders import find_packed
from vitkd_ds.commands.predict import Exported, first_device, open_exported
from vitkd_ds.data.beton.format import check_beton
from vitkd_ds.data.demo import demo_beton
from vitkd_ds.data.epochs import Loader
from vitkd_ds.data.loader import build_loader
from vitkd_ds.data.sources.class_list import read_classes
from vitkd_ds.models import build
from vitkd_ds.train.evaluate import pooled_features
from vitkd_ds.train.probe import knn_votes, linear_probe, top1


def probe_exported(
    student: str, *, knn: bool, probe: bool, train: str = "", val: str = "", micro_batch_size: int = 64, seed: int = 0
) -> dict[str, float]:
    """Classify validation images by a student's pooled features. The student's own classifier is not used.

    Args:
        student: a run folder, a checkpoint or an exported student.
        knn: classify each validation image by the nearest training images.
        probe: train a linear classifier on the training images' features.
        train, val: labelled training and validation images, each a .beton, a packed class folder or "demo". "" uses
            the run's data.knn_train and data.knn_val if they are set. If not, "" uses the run's data.train and
            data.val, restricted to the classes in its data.classes.
        micro_batch_size: images per forward pass.
        seed: determines which training images the probe holds out, and the order of the other images.

    Returns:
        `num_train` and `num_images`: numbers of training and validation images used. With `knn`, also `knn_top1` in
        percent. With `probe`, also `probe_top1` in percent and `probe_lr`, the learning rate that the probe selected.

    Raises:
        ValueError: a file is missing, has no labels or does not fit the other files.
    """
    exported = open_exported(student)
    own = exported.run.data if exported.run and not train else None
    kept = own.classes if own and not own.knn_train else ""
    train, val = (_labelled(exported, split, path) for split, path in (("train", train), ("val", val)))
    # Both splits are cropped as in validation. The labels of val are indices into the classes of train.
    classes = read_classes(kept) if kept else check_beton(train).classes
    model = exported.model()
    (train_ND, labels_N), (val_MD, labels_M) = (
        _features_of(model, _loader(exported, path, classes, kept, micro_batch_size)) for path in (train, val)
    )
    result = {"num_train": len(train_ND), "num_images": len(val_MD)}
    if knn:
        votes_MK = knn_votes(train_ND, labels_N, val_MD, num_classes=len(classes))
        result["knn_top1"] = top1(votes_MK, labels_M)
    if probe:
        found = linear_probe(train_ND, labels_N, val_MD, num_classes=len(classes), seed=seed)
        result |= {"probe_top1": top1(found.logits_MK, labels_M), "probe_lr": found.lr}
    return result


def _labelled(exported: Exported, split: str, path: str) -> str:
    """Return the path of the .beton for train or val. Raise ValueError if it is missing or has no labels."""
    if not path:
        check_has_images(exported.source, f"--{split}")
    # A run without labels may have separate labelled images for k-NN.
    path = path or exported.own_images(f"knn_{split}" if getattr(exported.run.data, f"knn_{split}") else split)
    found = str(demo_beton(split)) if path == "demo" else find_packed(split, path)
    if len(check_beton(found).classes) < 2:
        raise ValueError(
            f"{found!r} has no labels of two or more classes, which k-NN and the probe need. Pass labelled images as "
            f"--{split}."
        )
    return found


def _loader(exported: Exported, path: str, classes: tuple[str, ...], kept: str, micro_batch_size: int) -> Loader:
    """Return a loader that reads each image of `path` once. `kept` is a file with the classes to use; "" uses all."""
    data = exported.data(path, num_classes=len(classes), train=path, classes=kept)
    return build_loader(data, split="val", micro_batch_size=micro_batch_size, classes=classes, device=first_device())


def _features_of(model: nn.Module, loader: Loader) -> tuple[Tensor, Tensor]:
    """Return pooled features and labels of all images that can be decoded. Raise ValueError if there is none."""
    features_ND, labels_N = pooled_features(model, loader, normalization=build.normalization_of(model))
    if not (labels_N >= 0).any():
        raise ValueError(f"none of the images in {loader.path} can be decoded")
    return features_ND[labels_N >= 0], labels_N[labels_N >= 0]
