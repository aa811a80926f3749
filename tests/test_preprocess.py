"""Preprocess against hand-written NumPy."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers import npy

from keras_aspp import preprocess
from keras_aspp.preprocess import Preprocess


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (2, 9, 7, 3), dtype="uint8")


def torchvision(image):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return (image.astype("float64") / 255 - mean) / std


def keras_tf(image):
    return image.astype("float64") / 127.5 - 1


def keras_caffe(image):
    bgr = image.astype("float64")[..., ::-1]
    return bgr - (103.939, 116.779, 123.68)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
@pytest.mark.parametrize(
    "ours, oracle",
    [
        (preprocess.TORCHVISION, torchvision),
        (preprocess.KERAS_TF, keras_tf),
        (preprocess.KERAS_CAFFE, keras_caffe),
    ],
)
def test_values(image, ours, oracle, dtype):
    actual = npy(ours(image.astype(dtype)))
    assert actual.dtype == "float32"
    expected = oracle(image)
    assert expected.std() > 0.1
    np.testing.assert_allclose(
        actual, expected, atol=2e-6 * np.abs(expected).max()
    )
    # One picture without a batch, too.
    np.testing.assert_array_equal(npy(ours(image[1].astype(dtype))), actual[1])


@pytest.mark.parametrize("mode", ["tf", "caffe", "torch"])
def test_conventions_are_those_of_keras(image, mode):
    ours = {
        "tf": preprocess.KERAS_TF,
        "caffe": preprocess.KERAS_CAFFE,
        "torch": preprocess.TORCHVISION,
    }[mode]
    module = keras.applications.imagenet_utils
    theirs = module.preprocess_input(image.astype("float32"), mode=mode)
    np.testing.assert_allclose(npy(ours(image)), theirs, atol=1e-4)


def test_numbers_are_in_the_order_of_the_model():
    red = np.zeros((1, 1, 3), "uint8")
    red[..., 0] = 255
    bgr = Preprocess((0.0, 1.0), mean=(0.1, 0.2, 0.3), channel_order="bgr")
    np.testing.assert_allclose(npy(bgr(red))[0, 0], (-0.1, -0.2, 0.7))


def test_any_number_of_channels():
    image = np.full((1, 2, 3, 1), 51, "uint8")
    np.testing.assert_allclose(npy(Preprocess()(image)), -0.6, rtol=1e-6)


def test_config_round_trip():
    original = Preprocess((0.0, 2.0), (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "bgr")
    config = keras.saving.serialize_keras_object(original)
    assert keras.saving.deserialize_keras_object(config) == original
    # JSON has no tuples.
    lists = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in original.get_config().items()
    }
    assert Preprocess.from_config(lists) == original


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Preprocess().std = 2.0


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"std": 0}, "Received: std=0"),
        ({"std": (1.0, -1.0, 1.0)}, r"Received: std=\(1\.0, -1\.0, 1\.0\)"),
        ({"channel_order": "gbr"}, "Received: channel_order='gbr'"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**kwargs)
