"""Cost: by hand, against TensorFlow's profiler, against the papers."""

import keras
import numpy as np
import pytest
from helpers import npy

import keras_aspp as ka
from keras_aspp.analysis import cost

# Multiply-adds in millions at 224x224 (Xception 299x299), as the papers have
# them; ResNet v1 strides on the 1x1 convolution, as He et al. describe it.
PUBLISHED = {
    "MobileNetV2": (224, 300, 3.4),  # Sandler et al., 2018, table 4
    "MobileNetV3Large": (224, 219, 5.4),  # Howard et al., 2019, table 3
    "ResNet50": (224, 3.8e3, None),  # He et al., 2015, table 1
    "ResNet101": (224, 7.6e3, None),
    "EfficientNetB0": (224, 390, 5.3),  # Tan and Le, 2019, table 2
    "DenseNet121": (224, 2.87e3, None),  # Huang et al., reference code
    "Xception": (299, 8.4e3, 22.9),  # Zoph et al., 2018, table 2
    "NASNetMobile": (224, 564, 5.3),  # Zoph et al., 2018, table 3
    "ConvNeXtTiny": (224, 4.5e3, 29),  # Liu et al., 2022, table 1
}


def network(bias=False):
    """Layers of every kind that is counted."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", use_bias=bias)(
        inputs
    )
    x = keras.layers.DepthwiseConv2D(5, depth_multiplier=2, use_bias=bias)(x)
    x = keras.layers.Conv2D(12, (1, 3), groups=4, use_bias=bias)(x)
    x = keras.layers.SeparableConv2D(10, 3, padding="same", use_bias=bias)(x)
    x = keras.layers.Conv2DTranspose(6, 3, strides=2, use_bias=bias)(x)
    x = keras.layers.Dense(7, use_bias=bias)(x)
    return keras.Model(inputs, x)


def profiled(model, image_size):
    """Multiply-adds as TensorFlow's profiler counts them, halved."""
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    function = tf.function(lambda x: model(x, training=False))
    concrete = function.get_concrete_function(
        tf.TensorSpec((1, *image_size, model.inputs[0].shape[-1]))
    )
    _, frozen = convert_to_constants.convert_variables_to_constants_v2_as_graph(
        concrete
    )
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(frozen, name="")
        counted = tf.compat.v1.profiler.profile(graph, options=options)
    return counted.total_float_ops / 2


def test_by_hand():
    found = cost(network(bias=True), (31, 25))
    by_kind = {layer.layer_type: layer for layer in found.layers}
    assert by_kind["Conv2D"].shape == (12, 7, 12)
    assert {kind: layer.madds for kind, layer in by_kind.items()} == {
        "InputLayer": 0,
        "DepthwiseConv2D": 12 * 9 * 25 * 16,
        "Conv2D": 12 * 7 * (3 * 4 * 12),  # the grouped one
        "SeparableConv2D": 12 * 7 * (9 * 12 + 12 * 10),
        "Conv2DTranspose": 12 * 7 * (9 * 10 * 6),
        "Dense": 25 * 15 * 6 * 7,
    }
    assert found.layers[1].madds == 16 * 13 * (9 * 3 * 8)
    assert found.madds == sum(layer.madds for layer in found.layers)
    assert by_kind["Dense"].parameters == 6 * 7 + 7
    assert by_kind["Dense"].activation_bytes == 25 * 15 * 7 * 4


def test_tensorflow_counts_the_same():
    # Not transposed or grouped ones: the profiler has those wrong.
    inputs = keras.Input((None, None, 3))
    x = inputs
    for layer in (
        keras.layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False),
        keras.layers.DepthwiseConv2D(5, depth_multiplier=2, use_bias=False),
        keras.layers.SeparableConv2D(10, 3, use_bias=False),
        keras.layers.Dense(7, use_bias=False),
    ):
        x = layer(x)
    model = keras.Model(inputs, x)
    assert cost(model, (31, 25)).madds == profiled(model, (31, 25))


def test_composite_layers_count_at_the_size_that_they_see():
    inputs = keras.Input((None, None, 5))
    aspp = ka.layers.ASPP(filters=4, atrous_rates=(2, 3))
    model = keras.Model(inputs, aspp(inputs))
    found = cost(model, (9, 7))
    branches = 9 * 7 * (5 * 4 + 2 * 9 * 5 * 4)
    pooling, projection = 5 * 4, 9 * 7 * 16 * 4
    assert found.madds == branches + pooling + projection
    assert found.parameters == aspp.count_params()
    assert sum(layer.parameters for layer in found.layers) == found.parameters


def test_shared_weights_are_counted_once_and_calls_each_time():
    inputs = keras.Input((None, None, 3))
    layer = keras.layers.Conv2D(3, 3, padding="same", name="twice")
    model = keras.Model(inputs, layer(layer(inputs)))
    found = cost(model, (9, 7))
    rows = [row for row in found.layers if row.path == "twice"]
    assert [row.parameters for row in rows] == [84, 0]
    assert [row.madds for row in rows] == [9 * 7 * 81] * 2


def test_half_precision_halves_the_memory(toy_backbone):
    whole = cost(toy_backbone(), (65, 97))
    half = cost(toy_backbone(dtype="float16"), (65, 97))
    picture = 65 * 97 * 3 * 4  # is float32 in both
    assert half.madds == whole.madds
    assert half.activation_bytes < 0.6 * whole.activation_bytes + picture


def test_peak_memory_frees_after_the_last_use():
    inputs = keras.Input((8, 8, 1))
    wide = keras.layers.Conv2D(10, 1)(inputs)
    narrow = keras.layers.Conv2D(2, 1)(wide)
    again = keras.layers.Conv2D(2, 1)(narrow)
    chain = keras.Model(inputs, again)
    assert cost(chain, (8, 8)).peak_activation_bytes == 64 * 4 * (10 + 2)
    joined = keras.layers.Concatenate()([again, wide])
    held = keras.Model(inputs, joined)
    assert cost(held, (8, 8)).peak_activation_bytes == 64 * 4 * (12 + 2 + 10)


def test_closed_layers_are_named():
    class Closed(keras.layers.Layer):
        def call(self, inputs):
            import tensorflow as tf

            return tf.nn.relu(inputs)

        def compute_output_shape(self, input_shape):
            return input_shape

    inputs = keras.Input((9, 7, 3))
    model = keras.Model(inputs, Closed(name="closed")(inputs))
    assert cost(model, (9, 7)).uncounted == ("closed",)


def applied(function):
    inputs = keras.Input((8, 6, 4))
    return cost(keras.Model(inputs, function(inputs)), (8, 6))


def test_operations_cost_what_their_layers_cost():
    separable = keras.layers.SeparableConv2D(5, 3, use_bias=False)
    transposed = keras.layers.Conv2DTranspose(5, 3, 2, use_bias=False)
    for layer, operation in (
        (separable, keras.ops.separable_conv),
        (transposed, keras.ops.conv_transpose),
    ):
        of_layer = applied(layer)
        strides = layer.strides
        of_operation = applied(
            lambda x, layer=layer, operation=operation, strides=strides: (
                operation(x, *map(npy, layer.weights), strides)
            )
        )
        assert of_operation.madds == of_layer.madds > 0
        assert of_operation.uncounted == of_layer.uncounted == ()


def permuted(layer, data_format):
    """Cost of a layer that gets the same map in either order of its axes."""
    order = {"channels_first": (3, 1, 2), "channels_last": (1, 2, 3)}
    to_format = keras.layers.Permute(order[data_format])
    return applied(lambda x: layer(to_format(x)))


@pytest.mark.parametrize(
    "kind", ["Conv2D", "Conv2DTranspose", "SeparableConv2D", "DepthwiseConv2D"]
)
def test_the_order_of_axes_changes_no_cost(kind):
    first, last = (
        permuted(
            getattr(keras.layers, kind)(
                **{} if kind == "DepthwiseConv2D" else {"filters": 5},
                kernel_size=3,
                padding="same",
                data_format=data_format,
            ),
            data_format,
        )
        for data_format in ("channels_first", "channels_last")
    )
    assert first.madds == last.madds > 0


def test_the_order_of_axes_of_an_operation_changes_no_cost():
    kernel = np.ones((3, 3, 4, 5), "float32")
    first, last = (
        permuted(
            lambda x, data_format=data_format: keras.ops.conv(
                x, kernel, data_format=data_format
            ),
            data_format,
        )
        for data_format in ("channels_first", "channels_last")
    )
    assert first.madds == last.madds == 6 * 4 * kernel.size


@pytest.mark.parametrize(
    ("name", "function"),
    [
        (
            "gaussianblur",
            lambda x: keras.ops.image.gaussian_blur(x, (3, 3), (1.0, 1.0)),
        ),
        ("matmul", lambda x: keras.ops.matmul(x, np.ones((4, 4), "float32"))),
        ("dot", lambda x: keras.layers.Dot(-1, name="dot")([x, x])),
    ],
)
def test_multiplications_without_a_rule_are_named(name, function):
    assert applied(function).uncounted == (name,)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name):
    size, madds, parameters = PUBLISHED[name]
    model = getattr(keras.applications, name)(weights=None)
    found = cost(model, (size, size))
    assert found.madds / 1e6 == pytest.approx(madds, rel=0.02)
    assert not found.uncounted
    if parameters:
        trained = sum(np.prod(w.shape) for w in model.trainable_weights)
        assert trained / 1e6 == pytest.approx(parameters, rel=0.04)


@pytest.mark.slow
def test_tensorflow_counts_little_more_for_a_whole_network():
    # Bias, batch norm and activations, which we leave out.
    model = keras.applications.MobileNetV2(weights=None)
    ratio = profiled(model, (224, 224)) / cost(model, (224, 224)).madds
    assert 1 < ratio < 1.03
