"""Effective receptive field of networks whose gradients are known."""

import keras
import numpy as np
import pytest
from helpers import randomize, sample

from keras_aspp.analysis import effective_receptive_field, receptive_fields

PICTURES = sample((3, 41, 35, 2))


def linear(depth, rate=1, **kwargs):
    inputs = x = keras.Input((None, None, 2))
    for i in range(depth):
        x = keras.layers.Conv2D(
            2 if i < depth - 1 else 1,
            3,
            padding="same",
            dilation_rate=rate,
            use_bias=False,
            kernel_initializer="ones",
            **kwargs,
        )(x)
    return keras.Model(inputs, x)


def test_a_row_of_box_filters_tends_to_a_gaussian():
    found = effective_receptive_field(linear(6), PICTURES)
    # Six box filters of width 3: variances add, 6 * 2/3.
    assert found.std == pytest.approx((2, 2), rel=1e-4)
    assert found.center == pytest.approx((20, 17), rel=1e-4)
    assert found.cell == (20, 17)
    assert found.map.sum() == pytest.approx(1)
    reached = np.argwhere(found.map > 0)
    np.testing.assert_array_equal(np.ptp(reached, axis=0) + 1, (13, 13))
    assert found.side() < 13


def test_mass_of_a_square():
    found = effective_receptive_field(linear(1), PICTURES)
    assert [found.side(share) for share in (0.1, 0.5, 0.95)] == [1, 3, 3]


def test_dilation_spreads_it():
    narrow = effective_receptive_field(linear(2), PICTURES)
    wide = effective_receptive_field(linear(2, rate=3), PICTURES)
    assert wide.std == pytest.approx(3 * np.array(narrow.std), rel=1e-4)


def test_it_lies_within_the_theoretical_field(toy_backbone):
    model = randomize(toy_backbone(features=True, padding=1))
    pictures = sample((2, 129, 97, 3))
    found = effective_receptive_field(model, pictures, layer="stride_16")
    fields = receptive_fields(model, (129, 97))
    field = next(f for f in fields if f.path == "block3_add")
    for axis, share in enumerate((found.map.sum(1), found.map.sum(0))):
        low, high = field.axes[axis].pixels(found.cell[axis])
        reached = np.flatnonzero(share)
        assert low <= reached[0] <= reached[-1] <= high
    assert found.side() <= field.size[0]


@pytest.mark.parametrize("layer", ["none", None])
def test_unknown_layers(toy_backbone, layer):
    with pytest.raises(
        ValueError, match=f"stride_2.*Received: layer={layer!r}"
    ):
        effective_receptive_field(toy_backbone(features=True), PICTURES, layer)


def test_a_cell_that_sees_nothing():
    inputs = keras.Input((None, None, 2))
    zero = keras.layers.Conv2D(1, 3, kernel_initializer="zeros", name="zero")
    model = keras.Model(inputs, zero(inputs))
    with pytest.raises(ValueError, match="depends on no pixel"):
        effective_receptive_field(model, PICTURES)
    pooled = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs))
    with pytest.raises(ValueError, match="must have one map"):
        effective_receptive_field(pooled, PICTURES)
