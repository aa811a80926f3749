"""Strided against dense features, and the branches of ASPP."""

import keras
import numpy as np
import pytest
from helpers import npy, randomize, sample

import keras_aspp as ka
from keras_aspp.analysis import feature_maps
from keras_aspp.plots import explain

IMAGE = np.abs(sample((97, 131, 3))).clip(0, 1)


def test_dense_features_hold_the_strided_ones():
    found = feature_maps.strided_and_dense(feature_maps.filter_bank(), IMAGE)
    assert found["strides"] == (32, 8)
    assert found["strided"].shape == (4, 5, 4)
    assert found["dense"].shape == (13, 17, 4)
    np.testing.assert_allclose(
        found["dense"][::4, ::4], found["strided"], atol=1e-5
    )
    assert found["strided"].std() > 0.01
    assert found["difference"] < 1e-4


@pytest.mark.parametrize("padding", [1, ((0, 1), (0, 1))])
def test_cells_are_matched_whatever_the_padding(toy_backbone, padding):
    """Keras' own padding keeps the odd cells, symmetric padding the even."""
    model = randomize(toy_backbone(padding=padding, features=True))
    image = sample((128, 96, 3))
    found = feature_maps.strided_and_dense(model, image)
    assert found["difference"] < 1e-4
    assert found["dense"].shape[-1] == 24


def test_the_coarsest_feature_of_a_nested_backbone(toy_backbone):
    inner = randomize(toy_backbone(padding=1, features=True))
    inputs = keras.Input((None, None, 3))
    nested = keras.Model(inputs, inner(inputs))
    plain, found = (
        feature_maps.strided_and_dense(model, sample((128, 96, 3)))
        for model in (inner, nested)
    )
    assert found["strides"] == plain["strides"] == (32, 8)
    np.testing.assert_allclose(found["dense"], plain["dense"], atol=1e-5)


def test_filters_answer_to_what_they_are_called():
    image = np.zeros((128, 128, 3), "float32")
    image[64:] = 1  # an edge from left to right
    bank = feature_maps.filter_bank()
    flat = npy(bank(image[None]))[0][1:-1, 1:-1]
    upright = npy(bank(image.transpose(1, 0, 2)[None]))[0][1:-1, 1:-1]
    assert abs(flat[..., 1]).max() > 10 * abs(flat[..., 2]).max()
    assert abs(upright[..., 2]).max() > 10 * abs(upright[..., 1]).max()
    assert feature_maps.FILTERS[1:3] == ("edges, flat", "edges, upright")


def test_surroundings_answer_to_their_own_size():
    feature = np.zeros((31, 31))
    feature[13:18, 13:18] = 1
    maps = feature_maps.surroundings(feature, rates=(1, 5))
    assert maps["rate 1"][15, 15] == pytest.approx(0)
    assert maps["rate 5"][15, 15] == pytest.approx(1)


def test_branches_of_a_segmenter(toy_backbone):
    model = ka.models.DeepLabV3(
        3,
        backbone=toy_backbone(features=True),
        atrous_rates=(1, 2),
        aspp_filters=4,
    )
    maps = feature_maps.branches_of(model, IMAGE)
    assert list(maps) == [
        "1x1",
        "rate 1",
        "rate 2",
        "image pooling",
        "together",
    ]
    assert maps["image pooling"].std() < 1e-6
    assert {values.shape for values in maps.values()} == {(6, 8)}
    assert feature_maps.branches_of(toy_backbone(), IMAGE) == {}


def test_branches_of_equal_rates_are_told_apart(toy_backbone):
    toy = toy_backbone(features=True)
    model = ka.models.DeepLabV3(3, toy, atrous_rates=(2, 2), aspp_filters=4)
    titles = ["1x1", "rate 2", "rate 2 (2)", "image pooling", "together"]
    assert [*feature_maps.branches_of(model, IMAGE)] == titles


def test_channels_that_vary_most():
    features = sample((5, 6, 4)) * np.array([1, 0, 3, 2])
    assert explain.channels_to_show(features) == [2, 3, 0]


def test_a_picture_smaller_than_a_cell():
    with pytest.raises(ValueError, match=r"one cell of 32.*Received: 31x131"):
        feature_maps.strided_and_dense(feature_maps.filter_bank(), IMAGE[:31])


def test_a_network_of_small_stride():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same")(inputs)
    found = feature_maps.strided_and_dense(
        keras.Model(inputs, x), IMAGE[:96, :96].astype("float32")
    )
    assert found["strides"] == (2, 1)
