"""Networks that we did not write: keras-cv's, and one like a user's own."""

import warnings

import keras
import numpy as np
import pytest
from equality import assert_dense
from helpers import npy, randomize, sample

from keras_aspp.backbones import stage_ends, with_output_stride
from keras_aspp.litert import describe

BARE = {"include_rescaling": False, "input_shape": (None, None, 3)}
STAGES = {
    "stackwise_filters": [16, 32, 48, 64],
    "stackwise_blocks": [1, 2, 1, 2],
    "stackwise_strides": [1, 2, 2, 2],
}


@pytest.fixture(scope="module")
def backbones():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at its import
        import keras_cv
    return keras_cv.models


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, arguments",
    [
        ("ResNetBackbone", {"block_type": "block", **STAGES}),
        # It names the blocks of a stage of one block alike, and then fails.
        ("ResNetV2Backbone", {**STAGES, "stackwise_blocks": [2, 2, 3, 2]}),
        ("DenseNetBackbone", {"stackwise_num_repeats": [2, 2, 2, 2]}),
        (
            "MobileNetV3Backbone",
            {
                "stackwise_expansion": [1, 4, 6, 6],
                "stackwise_filters": [16, 24, 40, 64],
                "stackwise_kernel_size": [3, 3, 5, 5],
                "stackwise_stride": [2, 2, 2, 2],
                "stackwise_se_ratio": [None] * 4,
                "stackwise_activation": ["relu"] * 4,
                "filters": 128,
            },
        ),
    ],
)
def test_keras_cv(backbones, name, arguments):
    model = randomize(getattr(backbones, name)(**arguments, **BARE))
    dense = with_output_stride(model, 8)
    assert list(stage_ends(dense)) == [f"stride_{2**n}" for n in range(1, 6)]
    for size in ((128, 160), (113, 139)):
        x = sample((1, *size, 3))
        assert_dense(dense(x), model(x), 4)


@pytest.mark.slow
def test_keras_cv_of_closed_blocks(backbones):
    model = backbones.CSPDarkNetBackbone(
        stackwise_channels=[16, 32, 48, 64],
        stackwise_depth=[1, 1, 2, 1],
        use_depthwise=False,
        **BARE,
    )
    with pytest.raises(
        ValueError, match="`dark4_csp` .CrossStagePartial. holds"
    ):
        with_output_stride(model, 8)


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
