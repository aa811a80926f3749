"""Every family of keras.applications is the same network when dense.

The smallest member of each, random weights, both sizes odd and even.
"""

import keras
import pytest
from equality import assert_dense, errors
from helpers import finalized, npy, randomize, sample

from keras_aspp.backbones import with_output_stride

# `randomize` makes them.
pytestmark = pytest.mark.usefixtures("no_random_weights", "two_equal_blocks")

BARE = {"include_preprocessing": False}
# Builder -> its arguments, and whether at even sizes the odd samples are kept.
FAMILIES = {
    "VGG16": ({}, 1),
    "ResNet50": ({}, 0),
    "ResNet50V2": ({}, 0),
    "MobileNet": ({"alpha": 0.25}, 1),
    "MobileNetV2": ({"alpha": 0.35}, 1),
    "MobileNetV3Small": (BARE, 1),
    "EfficientNetB0": ({}, 1),
    "EfficientNetV2B0": (BARE, 1),
    "Xception": ({}, 0),
    "DenseNet121": ({}, 1),
    "InceptionV3": ({}, 0),
    "InceptionResNetV2": ({}, 0),
    "NASNetMobile": ({}, 0),
    "ConvNeXtTiny": (BARE, 1),
}
# Of any size, one family of a kind; the others are converted at one size below,
# and test_zoo.py has them of any size by name.
OF_ANY_SIZE = ("ResNet50", "MobileNetV2", "EfficientNetB0", "InceptionV3")
# Stride 8 dilates all that stride 16 does: one family of a kind shows both.
TO_BOTH = ("ResNet50", "MobileNetV2")
SQUEEZED = ("MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0")


class Remembered(keras.layers.GlobalAveragePooling2D):
    """Gates held fixed: the first mean of each layer is the mean for ever."""

    means = {}

    def call(self, inputs):
        mean = super().call(inputs)
        if not hasattr(mean, "numpy"):  # while a graph is built
            return mean
        return self.means.setdefault(self.name, mean)


def build(name, **fixed):
    arguments, odd = FAMILIES[name]
    arguments = {"input_shape": (None, None, 3), **arguments, **fixed}
    model = getattr(keras.applications, name)(
        weights=None, include_top=False, **arguments
    )
    return randomize(model), odd


def with_fixed_gates(model):
    def clone(layer):
        kind = type(layer)
        if kind is keras.layers.GlobalAveragePooling2D:
            kind = Remembered
        return kind.from_config(layer.get_config())

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return finalized(copy)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_ANY_SIZE)
def test_family_is_exact(name):
    model, odd = build(name)
    sizes = [(64, 96), (75, 99)]
    if name.startswith("Inception"):  # their stems take 75 pixels
        sizes = [(128, 160), (139, 163)]
    if name in SQUEEZED:
        model = with_fixed_gates(model)
    strides = (16, 8) if name in TO_BOTH else (8,)
    dense = {s: with_output_stride(model, s) for s in strides}
    for size in sizes:
        x = sample((1, *size, 3))
        Remembered.means.clear()
        expected = model(x)
        for output_stride, converted in dense.items():
            step = 32 // output_stride
            features = converted(x)
            first = assert_dense(features, expected, step)
            if size == (64, 96):
                assert first == (odd * (step - 1),) * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_family_built_for_one_size_is_exact(name):
    # The stems of the others take more than 64 pixels.
    size = (128, 160) if "ception" in name else (64, 96)
    model, odd = build(name, input_shape=(*size, 3))
    if name in SQUEEZED:
        model = with_fixed_gates(model)
    dense = with_output_stride(model, 8)
    x = sample((1, *size, 3))
    Remembered.means.clear()
    features = dense(x)
    assert assert_dense(features, model(x), 4) == (odd * 3,) * 2
    assert dense.output.shape[1:3] == features.shape[1:3]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV3Small", "EfficientNetB0"])
def test_squeeze_and_excite_sees_more_cells(name):
    """Its means are over more cells: near the original, and not equal."""
    model, odd = build(name)
    # Noise, as it is after many random layers, is the worst case.
    x = sample((1, 128, 160, 3))
    expected = npy(model(x))
    features = with_output_stride(model, 16)(x)
    assert min(errors(features, expected, 2).values()) > 1e-3
