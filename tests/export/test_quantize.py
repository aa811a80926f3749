"""quantize: integers that compute what the float file computes."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from helpers import randomize

from keras_aspp.export.explain import operator_labels, select
from keras_aspp.export.quantize import (
    prepare,
    quantize,
)
from keras_aspp.litert.graph import float_operators, operator_names

SIZE = (33, 49)


def pictures(count=4):
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (count, 5, 7, 3))
    smooth = tf.image.resize(coarse, SIZE, "bicubic").numpy()
    found = [x[None].clip(0, 255).astype("float32") for x in smooth]
    return [*found, np.zeros_like(found[0]), np.full_like(found[0], 255)]


def labels_of(model, folder):
    return floats_of(
        lambda image: tf.argmax(
            model(image, training=False), -1, output_type=tf.int32
        ),
        folder,
        model,
    )


def floats_of(answer, folder, model=None):
    """A float file, by the way of a SavedModel, which freezes variables."""
    archive = keras.export.ExportArchive()
    archive.track(model or answer)
    archive.add_endpoint(
        "serve", answer, [tf.TensorSpec((1, *SIZE, 3), tf.float32)]
    )
    archive.write_out(str(folder), verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(folder), signature_keys=["serve"]
    )
    return converter.convert()


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A file with hard swish, a gate, a sum and an argmax."""
    layers = keras.layers
    image = keras.Input((*SIZE, 3), batch_size=1)
    first = layers.Conv2D(8, 3, padding="same", name="first")(image / 255)
    x = layers.Activation("hard_swish", name="swish")(first)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(8, 1, activation="sigmoid", name="gate")(gate)
    x = layers.Add(name="sum")([first, layers.Multiply()([x, gate])])
    scores = layers.Conv2D(5, 1, name="scores")(x)
    model = randomize(keras.Model(image, scores))
    return labels_of(model, tmp_path_factory.mktemp("content"))


def operators(content):
    model = schema.ModelT.InitFromPackedBuf(content)
    names = operator_names(model)
    (graph,) = model.subgraphs
    return collections.Counter(names[o.opcodeIndex] for o in graph.operators)


def opened(content):
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    return interpreter


def run(content, images):
    interpreter = opened(content)
    (taken,) = interpreter.get_input_details()
    (given,) = interpreter.get_output_details()
    found = []
    for image in images:
        interpreter.set_tensor(taken["index"], image.astype(taken["dtype"]))
        interpreter.invoke()
        found.append(interpreter.get_tensor(given["index"]))
    return np.stack(found)


@pytest.mark.parametrize("name", ["tflite_int8", "tflite_int16x8"])
def test_labels_of_integers_equal_those_of_floats(content, name):
    images = pictures()
    exact = run(content, images)
    assert len(np.unique(exact)) > 2
    found = quantize(content, name, images, pixels=True)
    assert (run(found, images) == exact).mean() > 0.97
    assert len(found) < len(content) + 20_000


def test_int8_holds_no_floats_and_takes_pixels_as_they_are(content):
    found = opened(quantize(content, "tflite_int8", pictures(), pixels=True))
    (taken,) = found.get_input_details()
    assert (taken["dtype"], taken["quantization"]) == (np.uint8, (1.0, 0))
    dtypes = {t["dtype"] for t in found.get_tensor_details()}
    assert np.float32 not in dtypes


@pytest.mark.parametrize("name", ["tflite_int8", "tflite_int16x8"])
@pytest.mark.parametrize("low, high", [(0, 100), (-77, 300)])
def test_pixels_are_read_as_they_are_whatever_images_calibrate(
    content, name, low, high
):
    images = [low + x / 255 * (high - low) for x in pictures()]
    (taken,) = opened(
        quantize(content, name, images, pixels=True)
    ).get_input_details()
    assert (taken["dtype"], taken["quantization"]) == (np.uint8, (1.0, 0))


def test_int16_spells_hard_swish_out_since_litert_has_no_kernel(content):
    assert operators(content)["HARD_SWISH"] == 1
    images = pictures()
    prepared, _ = prepare(content, "tflite_int16x8", images)
    assert "HARD_SWISH" not in operators(prepared)
    np.testing.assert_array_equal(run(prepared, images), run(content, images))
    found = quantize(content, "tflite_int16x8", images, pixels=True)
    # Only the argmax is left to floats.
    assert operators(found)["DEQUANTIZE"] == 1


def test_an_input_of_more_than_8_bits_stays_float(content):
    found = opened(quantize(content, "tflite_int8", pictures(), pixels=False))
    assert found.get_input_details()[0]["dtype"] == np.float32


def test_an_operator_stays_in_float(content):
    labels = operator_labels(content, {"scores", "gate"})
    (scores,) = (t for t in select(labels, ["scores"]))
    found = quantize(content, "tflite_int8", pictures(), True, [scores])
    names = [t["name"] for t in opened(found).get_tensor_details()]
    dtypes = [
        t["dtype"]
        for t in opened(found).get_tensor_details()
        if t["name"] == scores
    ]
    assert dtypes == [np.float32], names
    assert float_operators(found) == {"CONV_2D": 1}
    whole = quantize(content, "tflite_int8", pictures(), True)
    assert float_operators(whole) == {}


def test_a_layer_within_others_is_selected():
    labels = {"a": "net/first/Conv", "b": "net/first_2/Conv", "c": "first/Add"}
    assert select(labels, ["first"]) == ["a", "c"]
    assert select(labels, ["first/Add"]) == ["c"]


def test_unknown_operators_are_named(content):
    labels = operator_labels(content, {"scores"})
    with pytest.raises(ValueError, match="Received: 'no_layer'"):
        select(labels, ["no_layer"])
    with pytest.raises(ValueError, match="no_tensor"):
        quantize(content, "tflite_int8", pictures(), True, ["no_tensor"])


@pytest.mark.parametrize("name", ["tflite_int8", "tflite_int16x8"])
def test_scores_stay_floats_and_keep_their_name(tmp_path, name):
    layers = keras.layers
    image = keras.Input((*SIZE, 3), batch_size=1)
    x = layers.Conv2D(6, 3, padding="same")(image / 255)
    model = randomize(keras.Model(image, layers.Softmax()(x)))
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serve",
        lambda image: {"odds": model(image, training=False)},
        [tf.TensorSpec((1, *SIZE, 3), tf.float32, "image")],
    )
    archive.write_out(str(tmp_path), verbose=False)
    content = tf.lite.TFLiteConverter.from_saved_model(
        str(tmp_path), signature_keys=["serve"]
    ).convert()
    images = pictures()
    runner = opened(
        quantize(content, name, images, True)
    ).get_signature_runner()
    found = runner(image=images[0].astype("uint8"))["odds"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, model(images[0]), atol=0.02)


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e-5])
@pytest.mark.parametrize("name", ["tflite_int8", "tflite_int16x8"])
def test_filters_that_are_tiny_keep_their_bias(tmp_path, name, value):
    layers = keras.layers
    image = keras.Input((*SIZE, 3), batch_size=1)
    pixels = layers.Conv2D(3, 1)(image / 255)
    dense = layers.Dense(3)
    parts = [
        layers.Conv2D(3, 3, padding="same"),
        layers.DepthwiseConv2D(3, padding="same"),
        layers.Conv2DTranspose(3, 3, padding="same"),
    ]
    gate = dense(layers.GlobalAveragePooling2D()(pixels))
    maps = [part(pixels) for part in parts]
    maps.append(maps[0] + layers.Reshape((1, 1, 3))(gate))
    model = randomize(keras.Model(image, layers.Concatenate()(maps)))
    for part, filters in zip([*parts, dense], (3, 2, 2, 1), strict=True):
        kernel, bias = part.get_weights()
        np.moveaxis(kernel, filters, 0)[0] = value
        bias[0] = 3
        part.set_weights([kernel, bias])
    images = pictures()
    floats = floats_of(model, tmp_path)
    exact = run(floats, images)[..., ::3]
    found = run(quantize(floats, name, images, pixels=True), images)[..., ::3]
    np.testing.assert_allclose(exact.mean((0, 1, 2, 3)), [3, 3, 3, 6], atol=0.1)
    np.testing.assert_allclose(found, exact, atol=0.1)
