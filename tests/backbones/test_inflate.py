"""Pretrained backbones of RGB for images of other channels."""

import logging

import keras
import numpy as np
import pytest

from keras_aspp.backbones import create_backbone
from keras_aspp.backbones.inflate import inflate, with_channels
from keras_aspp.preprocess import KERAS_CAFFE, TORCHVISION, Preprocess


def features(model, images):
    found = model(model.preprocess(images), training=False)
    return [np.asarray(one) for one in keras.tree.flatten(found)]


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_equal_channels_give_the_features_of_a_gray_image(
    channels, toy_backbone, caplog
):
    gray = np.random.default_rng(2).integers(0, 256, (1, 64, 96, 1), "uint8")
    rgb = toy_backbone(features=True)
    randomize(rgb)
    rgb.preprocess = Preprocess()
    with caplog.at_level(logging.INFO, "keras_aspp"):
        spread, _ = with_channels(rgb, channels, rgb.preprocess)
    assert f"3 -> {channels} input channels" in caplog.text
    assert spread.input_shape == (None, None, None, channels)
    expected = features(rgb, np.repeat(gray, 3, -1))
    found = features(spread, np.repeat(gray, channels, -1))
    for one, other in zip(found, expected, strict=True):
        assert other.std() > 1e-3
        np.testing.assert_allclose(one, other, atol=1e-4 * other.std())


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("preprocess", [KERAS_CAFFE, TORCHVISION])
def test_with_a_mean_per_color_equal_normalized_channels_give_the_same(
    preprocess, channels, toy_backbone
):
    rgb = toy_backbone(features=True)
    randomize(rgb)
    rgb.preprocess = preprocess
    spread, _ = with_channels(rgb, channels, preprocess)

    def errors(one, other):
        pairs = zip(one, other, strict=True)
        return [np.abs(a - b).max() / b.std() for a, b in pairs]

    gray = np.random.default_rng(2).integers(0, 256, (1, 64, 96, 1), "uint8")
    values = (gray.astype("float32") - 128) / 64
    found, expected = (
        [np.asarray(x) for x in keras.tree.flatten(model(values.repeat(n, -1)))]
        for model, n in ((spread, channels), (rgb, 3))
    )
    assert max(errors(found, expected)) < 1e-4
    # Before normalization they are only close.
    found = features(spread, gray.repeat(channels, -1))
    expected = features(rgb, gray.repeat(3, -1))
    assert 1e-3 < max(errors(found, expected)) < 0.5


def randomize(model):
    rng = np.random.default_rng(1)
    for weight in model.weights:
        noise = rng.uniform(0, 0.1, weight.shape)
        weight.assign(np.asarray(weight) + noise)


def test_a_named_backbone_gets_a_file_of_rgb(tmp_path):
    arguments = {"alpha": 0.25, "include_top": False, "weights": None}
    published = keras.applications.MobileNet(**arguments)
    path = tmp_path / "m.weights.h5"
    published.save_weights(path)
    spread = create_backbone("mobilenet_0.25", 16, path, (None, None, 4))
    kernels = [m.get_layer("conv1").get_weights() for m in (published, spread)]
    np.testing.assert_array_equal(kernels[1][0], inflate(kernels[0][0], 4))
    last = [m.get_layer("conv_pw_13") for m in (published, spread)]
    np.testing.assert_array_equal(*(layer.get_weights()[0] for layer in last))
    assert spread.preprocess == Preprocess()


def test_further_channels_get_the_mean_and_all_are_scaled():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 2))
    found = inflate(kernel, 5)
    np.testing.assert_allclose(found[:, :, :3], kernel * 3 / 5)
    for i in (3, 4):
        np.testing.assert_allclose(found[:, :, i], kernel.mean(2) * 3 / 5)
    np.testing.assert_allclose(inflate(kernel, 1)[:, :, 0], kernel.sum(2))


@pytest.mark.parametrize("preprocess", [KERAS_CAFFE, TORCHVISION])
def test_red_green_and_blue_keep_their_weights_and_means(
    preprocess, toy_backbone
):
    """Of four bands of which the last is dark, the scale alone differs."""
    model = toy_backbone()
    spread, own = with_channels(model, 4, preprocess)
    assert (own.channel_order, len(own.mean)) == ("rgb", 4)
    image = np.random.default_rng(4).integers(0, 256, (1, 5, 7, 4), "uint8")
    # The convolution is linear, so that the last band's part is taken off.
    kernels = [m.layers[1].get_weights()[0] for m in (model, spread)]
    rgb = np.tensordot(preprocess(image[..., :3]), kernels[0].sum((0, 1)), 1)
    four = np.tensordot(own(image), kernels[1].sum((0, 1)), 1)
    last = np.asarray(own(image))[..., 3:] * kernels[1].sum((0, 1))[3]
    np.testing.assert_allclose(four - last, rgb * 3 / 4, rtol=1e-4, atol=1e-3)


def test_only_three_channels_are_spread(toy_backbone):
    message = "three input channels are spread.*a model of 4 input channels"
    with pytest.raises(ValueError, match=message):
        with_channels(toy_backbone(channels=4), 5, Preprocess())
