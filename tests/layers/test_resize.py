"""BilinearResize: one geometry at every size."""

import warnings

import keras
import numpy as np
import pytest
from helpers import assert_close, np_resize, npy, sample

from keras_aspp.layers import BilinearResize


def picture(height, width):
    return np.zeros((2, height, width, 3), "float32")


def test_convention_half_pixel_centres():
    x = np.arange(4, dtype="float32").reshape(1, 1, 4, 1)
    expected = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    for layer in (BilinearResize(size=(1, 8)), BilinearResize(scale=2)):
        np.testing.assert_allclose(npy(layer(x))[0, 0, :, 0], expected)


def test_align_corners():
    x = np.arange(4, dtype="float32").reshape(1, 1, 4, 1)
    y = BilinearResize(size=(1, 7), align_corners=True)(x)
    np.testing.assert_allclose(npy(y)[0, 0, :, 0], np.arange(7) / 2, rtol=1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(18, 21), (4, 3), (9, 7), (13, 40)])
def test_values_of_size(size, align_corners):
    x = sample()
    layer = BilinearResize(size=size, align_corners=align_corners)
    assert_close(layer(x), np_resize(x, size, align_corners), 1e-5)


def test_upsample_then_crop_is_the_same_geometry_at_every_size():
    x = sample((2, 4, 5, 3))
    whole = np_resize(x, (32, 40))
    for height in range(25, 33):
        for width in (33, 39, 40):
            y = BilinearResize(scale=8)(x, reference=picture(height, width))
            assert_close(y, whole[:, :height, :width], 1e-5)


def test_a_missing_cell_repeats_the_edge():
    # Keras' own padding gives floor(H / stride) cells where ceil is needed.
    x = sample((2, 4, 5, 3))
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), "edge")
    whole = np_resize(padded, (40, 48))
    y = BilinearResize(scale=8)(x, reference=picture(33, 47))
    assert_close(y, whole[:, :33, :47], 1e-5)
    # Present cells do not move because of it.
    assert_close(y[:, :28, :36], np_resize(x, (32, 40))[:, :28, :36], 1e-5)


def test_align_corners_with_a_reference_meets_the_corners():
    x = sample((2, 4, 5, 3))
    layer = BilinearResize(scale=8, align_corners=True)
    y = npy(layer(x, reference=picture(25, 33)))
    assert_close(y[:, ::8, ::8], x, 1e-5)
    assert_close(y, np_resize(x, (25, 33), align_corners=True), 1e-5)


def test_align_corners_warns_once_where_it_is_inexact():
    x = sample((2, 4, 5, 3))
    layer = BilinearResize(scale=8, align_corners=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x, reference=picture(25, 33))
    with pytest.warns(UserWarning, match=r"Received: size=\(27, 33\)"):
        layer(x, reference=picture(27, 33))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x, reference=picture(28, 33))


@pytest.mark.parametrize("size", [(32, 40), (33, 47), (25, 40)])
def test_dynamic_size(size):
    x = sample((2, 4, 5, 3))
    inputs = keras.Input((None, None, 3))
    reference = keras.Input((None, None, 1))
    layer = BilinearResize(scale=8)
    outputs = layer(inputs, reference=reference)
    assert outputs.shape == (None, None, None, 3)
    model = keras.Model([inputs, reference], outputs)
    zeros = np.zeros((2, *size, 1), "float32")
    expected = layer(x, reference=picture(*size))
    assert_close(model.predict([x, zeros], verbose=0), expected, 1e-6)


def test_shift_repeats_the_edge():
    x = sample((2, 4, 5, 3))
    y = npy(BilinearResize(scale=8, shift=(3, -2))(x))
    plain = np_resize(x, (32, 40))
    rows = (np.arange(32) - 3).clip(0, 31)
    columns = (np.arange(40) + 2).clip(0, 39)
    assert_close(y, plain[:, rows][:, :, columns], 1e-5)


def test_symbolic_shapes():
    x = keras.Input((4, 5, 3))
    assert BilinearResize(size=(9, 7))(x).shape == (None, 9, 7, 3)
    assert BilinearResize(scale=8)(x).shape == (None, 32, 40, 3)
    reference = keras.Input((30, None, 7))
    y = BilinearResize(scale=8)(x, reference=reference)
    assert y.shape == (None, 30, None, 3)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_result_is_float32(policy):
    layer = BilinearResize(scale=2, dtype=policy)
    assert keras.backend.standardize_dtype(layer(sample()).dtype) == "float32"
    assert layer(keras.Input((4, 5, 3))).dtype == "float32"


@pytest.mark.parametrize(
    "arguments", [{"size": (9, 7)}, {"scale": 4, "align_corners": True}]
)
def test_config_round_trip(arguments):
    layer = BilinearResize(**arguments, name="up", dtype="mixed_bfloat16")
    layer(sample())
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == layer.get_config()
    for name in ("size", "scale", "align_corners"):
        assert getattr(copy, name) == getattr(layer, name)
    for name, value in arguments.items():
        assert getattr(copy, name) == value


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({}, "Received: size=None, scale=None"),
        ({"size": (2, 2), "scale": 2}, r"Received: size=\(2, 2\), scale=2"),
        ({"size": (2, 0)}, r"Received: size=\(2, 0\)"),
        ({"size": (2,)}, r"Received: size=\(2,\)"),
        ({"size": 7}, "Received: size=7"),
        ({"scale": 2.0}, r"Received: size=None, scale=2\.0"),
        ({"scale": 0}, "Received: size=None, scale=0"),
        ({"scale": 2, "shift": (0.5, 0)}, r"Received: shift=\(0\.5, 0\)"),
        ({"scale": 2, "shift": 1}, "Received: shift=1"),
        ({"scale": 2, "shift": (1,)}, r"Received: shift=\(1,\)"),
        ({"size": (2, 2), "shift": (1, 0)}, r"Received: shift=\(1, 0\)"),
        (
            {"scale": 2, "shift": (1, 0), "align_corners": True},
            r"Received: shift=\(1, 0\)",
        ),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        BilinearResize(**kwargs)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("pixels", [(33, 25), (41, 17)])
def test_nearest_cells_are_those_that_weigh_most(align_corners, pixels):
    # One cell is missing at 41 rows.
    layer = BilinearResize(scale=8, align_corners=align_corners)
    cells = (5, 4)
    for axis, nearest in enumerate(layer.nearest_cells(cells, pixels)):
        # Each cell alone, seen by every pixel.
        x = np.eye(cells[axis], dtype="float32")
        x = x.reshape(
            (1, -1, 1, cells[axis]) if axis == 0 else (1, 1, -1, cells[axis])
        )
        x = x.repeat(cells[1 - axis], 2 - axis)
        y = npy(layer(x, reference=picture(*pixels)))[0]
        weights = y[:, 0] if axis == 0 else y[0]
        at = np.arange(pixels[axis])
        assert nearest.shape == at.shape
        np.testing.assert_allclose(
            weights[at, nearest], weights.max(-1), atol=1e-5
        )


def test_a_pixel_between_two_cells_has_the_lower_one():
    # Pixel i lies at cell i / 4, so pixels 2 and 6 lie halfway.
    layer = BilinearResize(scale=4, align_corners=True)
    rows, columns = layer.nearest_cells((3, 2), (9, 5))
    np.testing.assert_array_equal(rows, [0, 0, 0, 1, 1, 1, 1, 2, 2])
    np.testing.assert_array_equal(columns, [0, 0, 0, 1, 1])
