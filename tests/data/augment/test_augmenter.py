"""The complete augmentation: invariants, and each recipe against the libraries with the same random draws."""

from dataclasses import replace

import numpy as np
import pytest

from tests.data.augment.samples import augmented, layers_by_timm, pixels, plan_of, samples
from vitkd_ds.config.run import AugmentConfig
from vitkd_ds.data.augment import pillow
from vitkd_ds.data.augment.augmenter import Augmenter
from vitkd_ds.data.augment.policy import OPS
from vitkd_ds.data.beton import decode

RAND = "rand-m9-mstd0.5-inc1"
EVERYTHING = {"rand_augment": RAND, "three_augment": True, "color_jitter": 0.3, "random_erasing": 0.5}
RECIPES = {
    "rand_augment": {"rand_augment": RAND},
    "rand_augment_bilinear": {"rand_augment": "rand-m5-n3-p0.9-mstd2", "interpolation": "bilinear"},
    "three_augment": {"three_augment": True},
    "color_jitter": {"color_jitter": 0.3},
    "deit3": {"three_augment": True, "color_jitter": 0.3},
}


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_equals_the_libraries_with_the_same_draws(name):
    images = pixels(40, 56, copies=32)
    plan = plan_of(images, samples(128), **RECIPES[name])
    np.testing.assert_array_equal(augmented(images, plan), layers_by_timm(images, plan))


def test_every_operation_occurs_and_equals_the_torchvision_backend():
    images = pixels(copies=128)
    plan = plan_of(images, samples(512), **EVERYTHING)
    assert min(sum(len(layer.members(op)) for layer in plan.layers) for op in OPS) >= 10
    assert 200 < np.count_nonzero(plan.rectangles["height"]) < 300
    theirs = np.stack([pillow.augment(image, plan, i) for i, image in enumerate(images)])
    np.testing.assert_array_equal(augmented(images, plan), theirs)


def test_an_image_is_augmented_alike_alone_and_in_any_micro_batch():
    images, chosen = pixels(copies=8), samples(32)
    together = augmented(images, plan_of(images, chosen, **EVERYTHING))
    assert not np.array_equal(together, images)
    order = np.random.default_rng(0).permutation(32)
    assert np.array_equal(augmented(images[order], plan_of(images, chosen[order], **EVERYTHING)), together[order])
    for i in range(32):
        alone = images[i : i + 1]
        assert np.array_equal(augmented(alone, plan_of(alone, chosen[i : i + 1], **EVERYTHING))[0], together[i])


@pytest.mark.parametrize("change", [{"seed": 6}, {"epoch": 1}, {"repeat": 1}, {"index": 64}])
def test_another_seed_epoch_repeat_or_image_gives_another_result(change):
    images, others = np.repeat(pixels()[1:2], 64, axis=0), samples(64)
    usual = augmented(images, plan_of(images, samples(64), **EVERYTHING))
    assert len(np.unique(usual.reshape(64, -1), axis=0)) == 64
    for name in set(change) & set(others.dtype.names):
        others[name] += change[name]
    other = augmented(images, plan_of(images, others, seed=change.get("seed", 5), **EVERYTHING))
    assert (usual != other).any(axis=(1, 2, 3)).mean() > 0.9


def test_uncovered_pixels_have_the_models_mean_colour_as_timm_rounds_it():
    images = np.zeros((400, 28, 28, 3), np.uint8)
    statistics = ((0.5, 0.25, 1.0), (0.5, 0.5, 0.5))
    plan = plan_of(images, samples(400), statistics=statistics, rand_augment="rand-m9-n1-p1")
    moved = np.flatnonzero(np.isin(plan.layers[0].op_B, [OPS.index("TranslateXRel"), OPS.index("Rotate")]))
    assert len(moved) > 30 and plan.fill == (128, 64, 255)
    for image in augmented(images, plan)[moved]:
        colours = np.unique(image.reshape(-1, 3), axis=0).tolist()
        assert colours == [[0, 0, 0], [128, 64, 255]]


@pytest.mark.parametrize("interpolation, part", [("bilinear", 0), ("bicubic", 1), ("random", 0.5)])
def test_the_interpolation_is_chosen_from_the_settings(interpolation, part):
    plan = plan_of(pixels(), samples(400), rand_augment=RAND, interpolation=interpolation)
    assert np.mean([layer.is_cubic_B for layer in plan.layers]) == pytest.approx(part, abs=0.06)


def test_layers_follow_the_order_of_the_settings():
    first, second, three, *jitter = plan_of(pixels(), samples(400), **EVERYTHING).layers
    assert {OPS[op] for op in three.op_B} == {"Color", "Solarize", "GaussianBlur"}
    assert {OPS[op] for layer in jitter for op in layer.op_B} == {"Brightness", "Contrast", "Color"}
    assert min(len(set(layer.op_B)) for layer in (first, second)) > 10 and len(jitter) == 3


def test_an_augmenter_knows_whether_it_has_work():
    assert not Augmenter.has_work(AugmentConfig(repeats=3, mixup_alpha=0.8, cutmix_alpha=1.0))
    for config in (EVERYTHING, *RECIPES.values(), {"random_erasing": 0.1}):
        assert Augmenter.has_work(AugmentConfig(**config))
    with pytest.raises(ValueError, match="augment.rand_augment"):
        plan_of(pixels(), samples(4), rand_augment="rand-m9-w0")


def test_the_compiled_code_rejects_a_plan_for_other_images():
    images = pixels()
    plan = plan_of(images, samples(4), **EVERYTHING)
    with pytest.raises(ValueError, match="plan.operations must be .* shape"):
        decode.augment(images[:3].copy(), plan)
    for name in ("operations", "rectangles", "levels"):
        with pytest.raises(ValueError, match=f"plan.{name} must be"):
            decode.augment(images.copy(), replace(plan, **{name: getattr(plan, name)[:2].copy()}))
    for field, value in (("top", -1), ("left", 40), ("height", 34), ("width", -2)):
        rectangles = plan.rectangles.copy()
        rectangles[2] = (7, 1, 1, 5, 10)
        rectangles[field][2] = value
        with pytest.raises(ValueError, match="the plan does not fit images of shape"):
            decode.augment(images.copy(), replace(plan, rectangles=rectangles))
