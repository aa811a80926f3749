"""The simulated GPU: float16 results, and a sum that overflows."""

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from keras_aspp.litert.float16 import (
    LARGEST,
    NotSimulatedError,
    run_in_float16,
)
from keras_aspp.litert.graph import operator_names, packed, unpacked

FUSED = schema.ActivationFunctionType


def fused(content):
    """Codes of the activations that are fused into operators."""
    (graph,) = unpacked(content).subgraphs
    options = (operator.builtinOptions for operator in graph.operators)
    return {getattr(o, "fusedActivationFunction", FUSED.NONE) for o in options}


def converted(function, shape):
    """A float `.tflite` of a function of one map."""
    traced = tf.function(function, [tf.TensorSpec(shape, tf.float32)])
    concrete = traced.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [concrete], traced
    )
    return converter.convert()


def interpreted(content, x):
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def test_result_is_that_of_litert_up_to_float16():
    rng = np.random.default_rng(0)
    kernel, depthwise = (
        rng.normal(0, 0.3, shape).astype("float32")
        for shape in ((3, 3, 4, 6), (3, 3, 6, 1))
    )

    def network(x):
        y = tf.nn.relu(tf.nn.conv2d(x, kernel, 2, "SAME") + 0.1)
        y = tf.nn.relu6(
            tf.nn.depthwise_conv2d(
                y, depthwise, (1, 1, 1, 1), "SAME", dilations=(2, 2)
            )
        )
        gate = tf.sigmoid(tf.reduce_mean(y, (1, 2), keepdims=True))
        pooled = tf.nn.max_pool2d(y * gate, 3, 1, "SAME")
        up = tf.image.resize(pooled, (22, 26))
        return tf.concat([up, tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))], -1)

    content = converted(network, (1, 20, 24, 4))
    x = rng.normal(0, 1, (1, 20, 24, 4)).astype("float32")
    found = run_in_float16(content, x).output
    expected = interpreted(content, x)
    assert found.shape == expected.shape == (1, 22, 26, 10)
    np.testing.assert_allclose(found, expected, atol=2e-2)
    assert np.abs(found - expected).max() > 0
    np.testing.assert_array_equal(found, found.astype("float16"))


@pytest.mark.parametrize("side, overflows", [(60, False), (160, True)])
def test_sum_of_a_large_map_overflows(side, overflows):
    content = converted(
        lambda x: tf.reduce_mean(x, (1, 2), keepdims=True), (1, side, side, 2)
    )
    x = np.full((1, side, side, 2), 3.0, "float32")
    run = run_in_float16(content, x)
    # 3 * 60^2 = 10,800 and 3 * 160^2 = 76,800.
    assert run.largest_sum == 3 * side**2
    assert (run.largest_sum > LARGEST) is overflows
    assert np.isinf(run.output).all() == overflows
    if not overflows:
        np.testing.assert_allclose(run.output, 3, rtol=2e-3)


def clipped_sum(x):
    """A clip that is fused into the sum before it, and one that is not."""
    y = tf.clip_by_value(x + tf.tanh(x), -1, 1)
    return tf.clip_by_value(tf.concat([x, y], -1), -1, 1)


def test_hard_tanh_is_that_of_litert():
    content = converted(clipped_sum, (1, 5, 7, 2))
    assert "RELU_N1_TO_1" in operator_names(unpacked(content))
    assert FUSED.RELU_N1_TO_1 in fused(content)
    x = np.random.default_rng(0).normal(0, 1, (1, 5, 7, 2)).astype("float32")
    expected = interpreted(content, x)
    assert (np.abs(expected) == 1).any()
    found = run_in_float16(content, x).output
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_activation_that_is_not_simulated_is_named():
    model = unpacked(converted(clipped_sum, (1, 5, 7, 2)))
    for operator in model.subgraphs[0].operators:
        if hasattr(operator.builtinOptions, "fusedActivationFunction"):
            operator.builtinOptions.fusedActivationFunction = FUSED.SIGN_BIT
    x = np.zeros((1, 5, 7, 2), "float32")
    message = "fused activation 5 is not simulated in float16"
    with pytest.raises(NotSimulatedError, match=message):
        run_in_float16(packed(model), x)


def test_operator_that_is_not_simulated_is_named():
    content = converted(lambda x: tf.math.cumsum(x, 1), (1, 4, 4, 1))
    with pytest.raises(NotSimulatedError, match="CUMSUM"):
        run_in_float16(content, np.zeros((1, 4, 4, 1), "float32"))
