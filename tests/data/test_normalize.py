"""Normalised images of `build_loader`, against training's own normalisation of the raw ones; its length."""

import pytest
import timm
import torch

from tests.data.test_loader import another, config
from vitkd_ds.config.run import AugmentConfig
from vitkd_ds.models.normalization import Normalization

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OTHER = ((0.1, 0.5, 0.9), (0.5, 0.25, 1.0))
"""Mean and std with all different values, so that no mix-up goes unnoticed."""


@pytest.mark.parametrize("backend", ["ffcv", "torchvision"])
@pytest.mark.parametrize(
    "split, options",
    [
        ("train", {"augment": AugmentConfig(color_jitter=0.3, random_erasing=0.5)}),
        ("val", {"world_size": 4, "rank": 3, "micro_batch_size": 4}),
    ],
)
def test_images_match_trainings_own_normalisation_including_padding_rows(beton, backend, split, options):
    data = config(beton, backend=backend)
    raw = list(another(data, split=split, **options).epoch(0))
    assert split == "train" or raw[-1][1].tolist()[-1] == -1, "a padding row"
    for mean, std in ((MEAN, STD), OTHER):
        loader, expected = another(data, split=split, normalize=(mean, std), **options), Normalization(mean, std)
        for (images, labels), (raw_images, raw_labels) in zip(loader.epoch(0), raw, strict=True):
            assert raw_images.dtype == torch.uint8 and images.dtype == torch.float32
            assert images.is_contiguous(memory_format=torch.channels_last) and torch.equal(labels, raw_labels)
            assert torch.allclose(images, expected.apply(raw_images, torch.float32), atol=1e-6, rtol=1e-6)
            by_hand = (raw_images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
            assert torch.allclose(images.double(), by_hand, atol=2e-6)


def test_timms_model_configuration_is_accepted_and_the_state_is_unaffected(beton):
    of_model = timm.data.resolve_model_data_config(timm.create_model("deit3_small_patch16_224", depth=1))
    loaders = [another(config(beton), normalize=pair) for pair in ((of_model["mean"], of_model["std"]), None)]
    first, second = (iter(loader) for loader in loaders)
    expected = Normalization(of_model["mean"], of_model["std"]).apply(next(second)[0], torch.float32)
    assert torch.allclose(next(first)[0], expected, atol=1e-6) and loaders[0].state_dict() == loaders[1].state_dict()


@pytest.mark.parametrize(
    "normalize",
    [
        {"mean": MEAN, "std": STD},
        MEAN,
        (MEAN,),
        (MEAN, STD, STD),
        (MEAN, STD[:2]),
        (MEAN, (0.2, 0.2, 0.0)),
        (MEAN, (0.2, -0.2, 0.2)),
        (0.5, 0.5),
        (MEAN, (0.2, 0.2, float("nan"))),
        "imagenet",
        True,
    ],
    ids=str,
)
def test_an_invalid_mean_or_std_is_rejected_when_the_loader_is_built(beton, normalize):
    with pytest.raises(ValueError, match=r"normalize must be None or a pair \(mean, std\) of 3 numbers each"):
        another(config(beton), normalize=normalize)


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_length_is_the_number_of_micro_batches_per_rank(beton, split):
    for world_size, micro_batch_size, expected in ((1, 2, (10, 11)), (1, 4, (5, 6)), (2, 1, (10, 11)), (2, 2, (5, 6))):
        sizes = {"world_size": world_size, "micro_batch_size": micro_batch_size}
        for rank in range(world_size):
            loader = another(config(beton), split=split, rank=rank, **sizes)
            assert len(loader) == len(list(loader.epoch(0))) == len(list(loader)) == expected[split == "val"]
