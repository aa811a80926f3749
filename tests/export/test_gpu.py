"""Graphs for GPUs: the same function, by operators and sums that GPUs take."""

import collections

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from keras_aspp.export.gpu import for_gpu
from keras_aspp.litert.float16 import LARGEST, run_in_float16
from keras_aspp.litert.graph import operator_names
from tests.litert.test_float16 import converted, interpreted

SIDE = 160


def operators(content):
    model = schema.ModelT.InitFromPackedBuf(content)
    names = operator_names(model)
    (graph,) = model.subgraphs
    return collections.Counter(names[o.opcodeIndex] for o in graph.operators)


@pytest.mark.parametrize("keepdims", [True, False])
def test_mean_of_a_large_map_does_not_overflow(keepdims):
    def mean(x):
        return tf.reduce_mean(x, (1, 2), keepdims=keepdims)

    plain = converted(mean, (1, SIDE, SIDE, 3))
    content = for_gpu(plain)
    x = np.random.default_rng(1).uniform(0, 6, (1, SIDE, SIDE, 3))
    x = x.astype("float32")
    expected = x.mean((1, 2), keepdims=keepdims)
    assert operators(content) == {"MEAN": 2}
    np.testing.assert_allclose(interpreted(content, x), expected, rtol=1e-5)
    assert run_in_float16(plain, x).largest_sum > LARGEST
    run = run_in_float16(content, x)
    assert run.largest_sum < 4 * SIDE
    np.testing.assert_allclose(run.output, expected, rtol=5e-3)


def test_other_means_stay_as_they_are():
    content = converted(lambda x: tf.reduce_mean(x, (1,)), (1, 4, 5, 2))
    assert operators(for_gpu(content)) == {"MEAN": 1}


def test_broadcast_of_a_cell_becomes_a_resize():
    def spread(x):
        mean = tf.reduce_mean(x, (1, 2), keepdims=True)
        return tf.concat([tf.broadcast_to(mean, (1, 4, 5, 2)), x], -1)

    plain = converted(spread, (1, 4, 5, 2))
    assert "BROADCAST_TO" in operators(plain)
    content = for_gpu(plain)
    assert operators(content)["RESIZE_BILINEAR"] == 1
    assert "BROADCAST_TO" not in operators(content)
    x = np.random.default_rng(2).normal(0, 1, (1, 4, 5, 2)).astype("float32")
    np.testing.assert_allclose(
        interpreted(content, x), interpreted(plain, x), atol=1e-6
    )


@pytest.mark.parametrize(
    "function, said",
    [
        # Not of one cell, so no resize.
        (lambda x: tf.broadcast_to(x[:, :1], (1, 2, 2, 4)), "BROADCAST_TO"),
        (lambda x: tf.argmax(x, -1, tf.int32), "ARG_MAX"),
        (lambda x: tf.reverse(x, [-1]), "REVERSE_V2"),
        (lambda x: tf.reshape(x, (1, 2, 2, 2, 2)), "RESHAPE of rank 5"),
    ],
)
def test_what_gpus_refuse_is_refused(function, said):
    with pytest.raises(ValueError, match=f"Received: {said}"):
        for_gpu(converted(function, (1, 2, 2, 4)))
