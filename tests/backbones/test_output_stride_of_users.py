"""A network that we did not write, like a user's own."""

import keras
import numpy as np
import pytest
from equality import assert_dense
from helpers import npy, randomize, sample

from keras_aspp.backbones import with_output_stride
from keras_aspp.litert import describe


def users_own():
    """A bit of everything, strides 2 to 32."""
    k = keras.layers

    def stage(x, filters, name):
        inputs = keras.Input(x.shape[1:])
        y = k.SeparableConv2D(filters, 3, padding="same")(inputs)
        y = k.BatchNormalization()(y)
        y = k.MaxPooling2D(3, strides=2, padding="same")(y)
        short = k.Conv2D(filters, 1, strides=2, padding="same")(inputs)
        y = keras.ops.relu(y + short)
        return keras.Model(inputs, y, name=name)(x)

    inputs = keras.Input((None, None, 4))
    x = k.Conv2D(8, 7, strides=2, padding="same", activation="relu")(inputs)
    x = stage(k.MaxPooling2D()(x), 12, "stage1")
    x = stage(x, 16, "stage2")
    x = k.Conv2D(16, (1, 5), padding="same")(k.AveragePooling2D(2)(x))
    x = k.concatenate(
        [k.AveragePooling2D(3, 1, "same")(x), k.LayerNormalization()(x)]
    )
    return randomize(keras.Model(inputs, x, name="own"))


def test_a_users_own(tmp_path):
    model = users_own()
    dense = with_output_stride(model, 4)
    for size in ((64, 96), (77, 107)):
        x = sample((1, *size, 4))
        assert_dense(dense(x), model(x), 8)
    dense.save(tmp_path / "own.keras")
    loaded = keras.saving.load_model(tmp_path / "own.keras")
    np.testing.assert_array_equal(npy(loaded(x)), npy(dense(x)))
    back = with_output_stride(loaded, 32)
    np.testing.assert_array_equal(npy(back(x)), npy(model(x)))


@pytest.mark.slow
def test_a_users_own_in_tflite(tmp_path):
    """Dense pooling takes builtin operators, no detour over batches."""
    import tensorflow as tf

    from keras_aspp.export import tflite
    from keras_aspp.layers.lowering import export_form
    from keras_aspp.utils.native_log import filtered_stderr

    dense = with_output_stride(users_own(), 8)
    x = sample((1, 64, 96, 4))
    archive = keras.export.ExportArchive()
    archive.track(dense)
    archive.add_endpoint(
        "serving_default",
        lambda image: {"features": dense(image, training=False)},
        input_signature=[tf.TensorSpec(x.shape, name="image")],
    )
    with export_form(), filtered_stderr():
        archive.write_out(tmp_path, verbose=False)
        content = tflite._convert_one(str(tmp_path), "tflite_float32")
    path = tmp_path / "own.tflite"
    path.write_bytes(content)
    describe.check_operators(describe.operators(path), path)
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(path)).get_signature_runner("serving_default")
    actual = run(image=x)["features"]
    expected = npy(dense(x))
    assert np.abs(actual - expected).max() < 1e-4 * expected.std()
