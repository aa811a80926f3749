"""Arguments of exports are named, with what was received."""

import types

import numpy as np
import pytest
from tiny_run import toy_model

import keras_aspp as ka
from keras_aspp.export.checks import checked_answers, checked_images

IMAGE = np.zeros((40, 50, 3), "uint8")


@pytest.fixture(scope="module")
def model():
    return toy_model(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 64}, r"`image_size` must hold .* image_size=64$"),
        ({"image_size": (64, 0)}, r"ints > 0. Received: image_size=\(64, 0\)"),
        ({"image_size": (64, 9.5)}, r"Received: image_size=\(64, 9.5\)"),
        ({"calibration_images": []}, "at least one image.* Received: none"),
        (
            {"calibration_images": iter([IMAGE, IMAGE[..., 0]])},
            r"uint8 arrays \(height, width, 3\). Received: shape=\(40, 50\)",
        ),
        ({"calibration_images": [IMAGE / 255]}, "Received: .*dtype=float64"),
        ({"outputs": ("scores",)}, r"Received: outputs=\('scores',\)"),
        ({"outputs": ("confidence",)}, "labels among them. Received"),
        ({"model": "model.keras"}, "Segmenter.*Received: model='model.keras'"),
    ],
)
def test_explaining_int8_names_a_bad_argument(model, arguments, message):
    valid = {
        "model": model,
        "image_size": (64, 96),
        "calibration_images": [IMAGE],
    }
    with pytest.raises(ValueError, match=message):
        ka.export.explain_int8(**{**valid, **arguments})


@pytest.mark.parametrize("gap", [np.nan, np.inf])
def test_pixels_without_data_are_0(gap):
    model = types.SimpleNamespace(
        input_channels=2, preprocess=ka.Preprocess(input_dtype="float32")
    )
    image = np.full((3, 4, 2), 5, "float32")
    image[1, 2, 0] = gap
    expected = np.full((3, 4, 2), 5)
    expected[1, 2] = 0
    whole = np.full((3, 4, 2), 7, "uint16")
    found = checked_images("images", [image, whole], model)
    np.testing.assert_array_equal(found, [expected, whole])
    assert {image.dtype.name for image in found} == {"float32"}


def test_classes_that_overlap_have_no_common_confidence():
    model = types.SimpleNamespace(task="multilabel")
    with pytest.raises(ValueError, match="no common confidence. Received"):
        checked_answers(model, False, ("labels", "confidence"))


def test_weights_that_are_not_finite_are_named():
    broken = toy_model(3)
    broken.weights[0].assign(np.full(broken.weights[0].shape, np.nan))
    with pytest.raises(ValueError, match="finite|NaN"):
        ka.export.explain_int8(broken, (64, 96), [IMAGE])
