"""Images that the models classify differently: how they are stored, and when they cannot be shown."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.commands.compare.conftest import change
from tests.commands.report.written import written
from vitkd_ds.commands.compare.runs import read_results
from vitkd_ds.commands.report import examples
from vitkd_ds.commands.report.answers import Answers, read_answers


def test_large_photographs_are_jpegs_of_quality_85_and_small_images_are_png():
    photo = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    kinds = {}
    for pixels in (photo, photo[:28, :28]):
        head, _, text = examples._uri(pixels).partition(";base64,")
        kinds[head] = Image.open(io.BytesIO(base64.b64decode(text)))
    expected = io.BytesIO()
    Image.fromarray(photo).save(expected, "JPEG", quality=85)
    assert kinds["data:image/jpeg"].quantization == Image.open(expected).quantization
    np.testing.assert_array_equal(np.array(kinds["data:image/png"]), photo[:28, :28])


@pytest.mark.parametrize("pixels, kind", [(64, "png"), (65, "jpeg")])
def test_images_of_at_most_64_pixels_are_stored_without_loss_and_enlarged_pixel_by_pixel(pixels, kind):
    one = np.zeros(1, np.int64)
    own = Answers(7, ["a", "b", "c"], one + 1234, one, one + 1, np.array([0.75]), one + 2, np.array([0.5]))
    figure = examples._figure(own, 0, "neither", np.zeros((pixels, pixels, 3), np.uint8))
    assert figure.pop("uri").startswith(f"data:image/{kind};base64,")
    assert figure == {
        "outcome": "neither",
        "about": "neither is right",
        "truth": "a",
        "number": 1234,
        "answers": [("student", "b", 0.75), ("teacher", "c", 0.5)],
        "is_small": kind == "png",
    }


def test_shown_images_are_spread_evenly_over_the_candidates(runs):
    (result,) = read_results([str(runs / "plain")])
    own = read_answers(runs / "plain")
    is_right = np.arange(64) < 4
    own = replace(own, label=np.zeros_like(own.label), student=np.where(is_right, 0, 1))
    found = examples.examples(result, own)
    rows = [4 + 60 * place // 16 for place in range(16)]
    assert [figure["number"] for figure in found["figures"]] == own.image[rows].tolist()
    expected_BHWC = examples.read_pixels(result, own, own.image[rows])
    assert [figure["uri"] for figure in found["figures"]] == [examples._uri(image) for image in expected_BHWC]
    assert found["about"].startswith("There is no teacher. The student gets 60 of 64 images wrong. 16 of these images ")
    assert found["title"] == "Where the student is wrong" and found["choices"] == {} and found["error"] == ""
    assert {figure["about"] for figure in found["figures"]} == {"the student is wrong"}


def test_missing_or_changed_images_give_a_clear_message(runs):
    change(runs / "taught", images={"train": 1, "val": 2})
    assert "the images in demo have changed since the evaluation" in written(runs / "taught")
    change(runs / "taught", run__data__val=str(runs / "gone.beton"))
    text = written(runs / "taught")
    assert "The images cannot be shown: " in text and "gone.beton" in text and "<img" not in text
