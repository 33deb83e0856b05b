"""The whole augmentation: the laws it keeps, and each recipe against the libraries with the same draws."""

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.data.augment.samples import by_timm, in_pillow, levels_apart, micro_batch
from vitkd_ds.config.run import AugmentConfig
from vitkd_ds.data.augment import augmenter, blends
from vitkd_ds.data.augment.augmenter import Augmenter
from vitkd_ds.data.augment.policy import NO_OP, OPS
from vitkd_ds.data.draws import image_keys

RAND = "rand-m9-mstd0.5-inc1"
EVERYTHING = AugmentConfig(rand_augment=RAND, three_augment=True, color_jitter=0.3, random_erasing=0.5)
RECIPES = {
    "rand_augment": AugmentConfig(rand_augment=RAND),
    "rand_augment_bilinear": AugmentConfig(rand_augment="rand-m5-n3-p0.9-mstd2", interpolation="bilinear"),
    "three_augment": AugmentConfig(three_augment=True),
    "color_jitter": AugmentConfig(color_jitter=0.3),
    "deit3": AugmentConfig(three_augment=True, color_jitter=0.3),
}


def keys(count, epoch=0):
    return image_keys(np.arange(count), np.zeros(count, np.int64), seed=5, epoch=epoch)


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_equals_the_libraries_with_the_same_draws(name):
    images, augmenter = micro_batch(40, 56, copies=32), Augmenter(RECIPES[name])
    ours = augmenter(images, keys(128))
    layers = augmenter.layers(keys(128))

    def by_the_libraries(image, i):
        for layer in layers:
            if layer.op_B[i] != NO_OP:
                image = by_timm(OPS[layer.op_B[i]], image, float(layer.argument_B[i]), bool(layer.is_cubic_B[i]))
        return image

    theirs = in_pillow(images.permute(0, 2, 3, 1), by_the_libraries).permute(0, 3, 1, 2)
    if "rand" not in name:
        assert torch.equal(ours, theirs)
        return
    # A single level more or less before Equalize, Posterize or Solarize becomes many; before none it stays one.
    largest_of_image = (ours.int() - theirs.int()).abs().flatten(1).amax(1)
    assert (largest_of_image <= 1).sum() >= 120
    assert levels_apart(ours, theirs)[1] < 2e-3


def test_an_image_becomes_the_same_alone_and_elsewhere_and_another_key_gives_another_result():
    images, augmenter = micro_batch(33, 47, copies=8), Augmenter(EVERYTHING)
    together = augmenter(images, keys(32))
    order = np.random.default_rng(0).permutation(32)
    assert torch.equal(augmenter(images[order], keys(32)[order]), together[order])
    assert torch.equal(augmenter(images[:7], keys(32)[:7]), together[:7])
    for i in range(32):
        assert torch.equal(augmenter(images[i : i + 1], keys(32)[i : i + 1])[0], together[i])
    image = images[1:2].repeat(64, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    result = augmenter(image, keys(64))
    assert len(torch.unique(result.flatten(1), dim=0)) == 64
    assert torch.equal(augmenter(image, keys(64)), result)
    assert not torch.equal(augmenter(image, keys(64, epoch=1)), result)


@pytest.mark.parametrize("num_pixels", [1, 10**9])
def test_it_does_not_matter_how_many_images_a_kernel_gets_at_once(num_pixels, monkeypatch):
    images = micro_batch(33, 47, copies=32)
    usual = Augmenter(EVERYTHING)(images, keys(128))
    monkeypatch.setattr(augmenter, "CPU_PIXELS", num_pixels)
    if num_pixels > 1:
        monkeypatch.setattr(augmenter, "CPU_RECTANGLES", 10**9)  # all in one list, as on a GPU
    assert torch.equal(Augmenter(EVERYTHING)(images, keys(128)), usual)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_input_is_not_altered_and_the_memory_format_is_kept(memory_format):
    images = micro_batch(33, 47, copies=8).contiguous(memory_format=memory_format)
    before = images.clone()
    result = Augmenter(EVERYTHING)(images, keys(32))
    assert torch.equal(images, before) and not torch.equal(result, before)
    assert result.dtype == torch.uint8 and result.shape == images.shape
    assert result.is_contiguous(memory_format=memory_format)
    assert torch.equal(result, Augmenter(EVERYTHING)(micro_batch(33, 47, copies=8), keys(32)))


def test_with_nothing_on_the_input_itself_is_returned_and_unknown_settings_are_refused():
    images, augmenter = micro_batch(), Augmenter(AugmentConfig(repeats=3, mixup_alpha=0.8))
    assert augmenter.is_identity and augmenter(images, keys(4)) is images
    for config in (EVERYTHING, *RECIPES.values(), AugmentConfig(random_erasing=0.1)):
        assert not Augmenter(config).is_identity
    with pytest.raises(ValueError, match="augment.rand_augment"):
        Augmenter(AugmentConfig(rand_augment="rand-m9-w0"))


@pytest.mark.parametrize("height, width", [(1, 1), (1, 5), (2, 2), (7, 3), (3, 200)])
def test_ugly_sizes_and_an_empty_micro_batch_pass(height, width):
    images, augmenter = micro_batch(height, width, copies=16), Augmenter(EVERYTHING)
    result = augmenter(images, keys(64))
    assert result.shape == images.shape and torch.equal(augmenter(images[5:6], keys(64)[5:6])[0], result[5])
    assert augmenter(images[:0], keys(0)).shape == (0, 3, height, width)


def test_no_kernel_needs_a_value_on_the_cpu_so_nothing_waits_for_the_device():
    """Tensors without data refuse every operation whose result's shape, or Python's next step, depends on values."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        images = mode.from_tensor(micro_batch(33, 47, copies=32))
        assert Augmenter(EVERYTHING)(images, keys(128)).shape == images.shape
        with pytest.raises(DataDependentOutputException):
            images.max().item()


def test_compiled_it_gives_the_same_for_micro_batches_of_several_sizes():
    """Two kernels only: compiling all takes minutes on a busy CPU (all were compared once, without a difference)."""
    config = AugmentConfig(random_erasing=0.5)
    images, compiled = micro_batch(12, 16, copies=4), Augmenter(config, compile=True)
    pixels_BHWC, factors = images.permute(0, 2, 3, 1), torch.linspace(0, 2, 16)
    for count in (16, 7):
        assert torch.equal(compiled(images[:count], keys(count)), Augmenter(config)(images[:count], keys(count)))
        result = compiled._kernel(blends.color)(pixels_BHWC[:count], factors[:count])
        assert torch.equal(result, blends.color(pixels_BHWC[:count], factors[:count]))


def test_compiled_it_meets_no_new_graph_after_the_first_micro_batches():
    """Groups of any number of images, one among them, use the graphs that there are; traced, and run as it is."""
    augmenter = Augmenter(AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25), compile=True)
    images, graphs = micro_batch(16, 16, copies=16), []
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(debug_backend_override=">=0:eager"):
        for epoch in range(40):
            count = (64, 7, 3, 1)[epoch % 4]
            augmenter(images[:count], image_keys(np.arange(count), np.zeros(count, int), seed=0, epoch=epoch))
            graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[7] == graphs[-1] > 5
