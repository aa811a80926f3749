"""input_scale: the backbone sees upsampled images."""

import keras
import numpy as np
import pytest
from helpers import npy, randomize, sample

from keras_aspp.layers import BilinearResize
from keras_aspp.models import (
    DeepLabV3,
    DeepLabV3Plus,
    fold_batch_norm,
    with_dtype,
    with_output_stride,
)


def build(backbone, architecture=DeepLabV3Plus, **kwargs):
    head = {"decoder_filters": 8} if architecture is DeepLabV3Plus else {}
    return architecture(
        3,
        backbone,
        atrous_rates=(2, 4),
        aspp_filters=8,
        dropout=0.0,
        **head,
        **kwargs,
    )


@pytest.mark.parametrize("architecture", [DeepLabV3, DeepLabV3Plus])
def test_equals_an_image_upsampled_by_hand(toy_backbone, architecture):
    plain = randomize(build(toy_backbone(padding=1), architecture))
    model = build(toy_backbone(padding=1), architecture, input_scale=2)
    model.set_weights(plain.get_weights())
    x = sample((2, 61, 50, 3))
    large = npy(plain(BilinearResize(scale=2)(x)))
    logits = npy(model(x))
    assert logits.shape == (2, 61, 50, 3)
    # Between two scores a bilinear map is linear: the middle of four pixels
    # of the large map is the pixel of the small one.
    middle = large.reshape(2, 61, 2, 50, 2, 3).mean(axis=(2, 4))
    error = np.abs(middle - logits).max() / logits.std()
    assert error < 1e-4, error


def test_copies_keep_it(toy_backbone, tmp_path):
    model = randomize(build(toy_backbone(padding=1), input_scale=2))
    x = sample((1, 64, 96, 3))
    expected = npy(model(x))
    model.save(tmp_path / "model.keras")
    copies = (
        keras.saving.load_model(tmp_path / "model.keras"),
        fold_batch_norm(model),
        with_dtype(model, "float32"),
        with_output_stride(with_output_stride(model, 8), 16),
    )
    for copy in copies:
        np.testing.assert_allclose(npy(copy(x)), expected, atol=1e-4)


def test_a_backbone_of_one_size(toy_backbone):
    sized = toy_backbone(padding=1, size=128)
    model = build(sized, input_scale=2)
    assert model.input.shape[1:3] == (64, 64)
    assert model(sample((1, 64, 64, 3))).shape == (1, 64, 64, 3)


def test_degenerate_rates_are_told_in_pixels_of_the_image(toy_backbone):
    message = (
        r"rates \(4,\) reach beyond the 4x4 map of a 32x32 image "
        r"\(8 pixels per cell\)"
    )
    with pytest.warns(UserWarning, match=message):
        build(toy_backbone(padding=1), input_scale=2, input_shape=(32, 32, 3))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"input_scale": 3}, "must divide the 4 pixels"),
        ({"input_scale": 1.5}, "int > 0. Received: input_scale=1.5"),
        ({"input_scale": 2, "align_corners": True}, "half-pixel centers"),
    ],
)
def test_what_does_not_fit(toy_backbone, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(toy_backbone(padding=1), **arguments)
