"""equalize: the same function, and less lost in 8 bits."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from helpers import randomize

from keras_aspp.backbones import create_backbone
from keras_aspp.export.equalize import channel_ranges, equalize
from keras_aspp.export.quantize import quantize_prepared
from keras_aspp.models import LRASPP, DeepLabV3Plus, fold_batch_norm

SIZE = (33, 49)


def pictures(count=3):
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (count, 5, 7, 3))
    smooth = tf.image.resize(coarse, SIZE, "bicubic").numpy()
    return list(smooth.clip(0, 255).astype("uint8"))


def floats(images):
    return [image[None].astype("float32") for image in images]


def bottleneck(maximum):
    """A residual bottleneck whose hidden channels are e^4 times unlike."""
    layers = keras.layers
    image = keras.Input((*SIZE, 3), batch_size=1)
    first = layers.Conv2D(8, 3, padding="same", name="first")(image / 255)
    x = layers.Conv2D(24, 1, name="expand")(first)
    x = layers.ReLU(maximum)(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.ReLU(maximum)(x)
    x = layers.Conv2D(8, 1, name="project")(x)
    scores = layers.Conv2D(5, 1, name="scores")(layers.Add()([first, x]))
    model = randomize(keras.Model(image, scores))
    factors = np.exp(np.random.default_rng(1).uniform(-4, 0, (2, 24)))
    for before, factor, after in (
        ("expand", factors[0], "depthwise"),
        ("depthwise", factors[1], "project"),
    ):
        kernel, bias = model.get_layer(before).get_weights()
        wide = factor[:, None] if before == "depthwise" else factor
        # No channel is 0 on all images.
        bias = np.abs(bias) * factor
        model.get_layer(before).set_weights([kernel * wide, bias])
        kernel, bias = model.get_layer(after).get_weights()
        model.get_layer(after).set_weights([kernel / factor[:, None], bias])
    return model


def converter_of(model, folder):
    """The converter, by the way of a SavedModel, which freezes variables."""
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serve",
        lambda image: model(image, training=False),
        [tf.TensorSpec((1, *SIZE, 3), tf.float32)],
    )
    archive.write_out(str(folder), verbose=False)
    return tf.lite.TFLiteConverter.from_saved_model(
        str(folder), signature_keys=["serve"]
    )


def run(content, images):
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (door,) = interpreter.get_input_details()
    (end,) = interpreter.get_output_details()
    outputs = []
    for image in images:
        interpreter.set_tensor(door["index"], image)
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(end["index"]))
    return np.stack(outputs)


def equalized(content, images):
    content, ranges = equalize(content, channel_ranges(content, images))
    measured = channel_ranges(content, images)
    assert ranges.keys() == measured.keys()
    for name, ends in measured.items():
        atol = 1e-4 * max(np.abs(ends).max(), 1)
        np.testing.assert_allclose(ranges[name], ends, rtol=1e-3, atol=atol)
    return content


@pytest.mark.parametrize("maximum", [None, 6.0])
@pytest.mark.slow
def test_unlike_channels_lose_less_in_8_bits(tmp_path, maximum):
    model = bottleneck(maximum)
    images = floats(pictures())
    exact = np.stack([model(image) for image in images])

    def error(content):
        ranges = channel_ranges(content, images)
        content = quantize_prepared(content, "tflite_int8", ranges, False)
        return np.abs(run(content, images) - exact).mean()

    content = converter_of(model, tmp_path / "model").convert()
    assert error(equalized(content, images)) < 0.5 * error(content)


@pytest.mark.parametrize("maximum", [None, 6.0])
def test_the_function_stays(tmp_path, maximum):
    content = converter_of(bottleneck(maximum), tmp_path / "model").convert()
    images = floats(pictures())
    equal = equalized(content, images)
    assert equal != content
    np.testing.assert_allclose(
        run(equal, images), run(content, images), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("rarely", [0.0, 0.1])
def test_channels_that_calibration_hardly_shows_are_not_clipped(
    tmp_path, rarely
):
    layers = keras.layers
    image = keras.Input((*SIZE, 3), batch_size=1)
    x = layers.Conv2D(2, 1, activation="relu6", name="first")(image / 255)
    x = layers.DepthwiseConv2D(1, activation="relu6", name="depthwise")(x)
    scores = layers.Conv2D(2, 1, name="scores")(x)
    model = keras.Model(image, scores)
    # The second channel is positive only where red exceeds green.
    kernel = np.float32([[5, 5], [0, -5], [0, 0]])[None, None]
    model.get_layer("first").set_weights([kernel, np.float32([0.1, 0])])
    model.get_layer("depthwise").set_weights(
        [np.ones((1, 1, 2, 1)), np.float32([0.5, 0.1])]
    )
    model.get_layer("scores").set_weights([np.eye(2)[None, None], np.ones(2)])
    gray = [image.mean(-1, keepdims=True) for image in floats(pictures())]
    calibration = [image * np.float32([1, 1 - rarely, 1]) for image in gray]
    others = [image * np.float32([1, 1 - 1.3 * rarely, 1]) for image in gray]
    if not rarely:
        others = [image * np.float32([1, 0, 0]) for image in gray]
    content = converter_of(model, tmp_path / "model").convert()
    equal = equalized(content, calibration)
    np.testing.assert_allclose(
        run(equal, others), run(content, others), rtol=1e-4, atol=1e-5
    )


def test_a_map_without_values_stays(tmp_path):
    model = bottleneck(None)
    for name in ("expand", "project"):
        kernel, bias = model.get_layer(name).get_weights()
        model.get_layer(name).set_weights([0 * kernel, 0 * bias])
    content = converter_of(model, tmp_path / "model").convert()
    images = floats(pictures())
    found = run(equalized(content, images), images)
    np.testing.assert_allclose(
        found, run(content, images), rtol=1e-4, atol=1e-5
    )


# With gates, hard swish and two readers of a map; with sums and concatenations.
@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture, backbone",
    [(LRASPP, "mobilenet_v3_small"), (DeepLabV3Plus, "toy")],
)
def test_the_function_of_a_segmenter_stays(
    toy_backbone, tmp_path, architecture, backbone
):
    if backbone == "toy":
        made = toy_backbone(padding=1, features=True)
    else:
        made = create_backbone(backbone, 16, None)
    model = architecture(5, made, output_stride=16)
    model = fold_batch_norm(randomize(model))
    content = converter_of(model, tmp_path / "model").convert()
    images = floats(pictures(2))
    exact = run(content, images)
    equal = equalized(content, images)
    assert equal != content
    found = run(equal, images)
    assert np.abs(found - exact).max() < 1e-4 * exact.std()
