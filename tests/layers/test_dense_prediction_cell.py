"""DensePredictionCell against NumPy."""

import json

import numpy as np
import pytest
from helpers import (
    SHAPE,
    assert_close,
    np_batch_norm,
    np_depthwise,
    np_dilated_conv,
    npy,
    randomize,
    relu,
    sample,
)

from keras_aspp.layers import DensePredictionCell

X = sample() + sample(SHAPE[-1:], seed=1)
# dense_prediction_cell_branch5_top1_cityscapes.json of tensorflow/models.
PUBLISHED = """
[{"kernel": 3, "rate": [1, 6], "op": "conv", "input": -1},
 {"kernel": 3, "rate": [18, 15], "op": "conv", "input": 0},
 {"kernel": 3, "rate": [6, 3], "op": "conv", "input": 1},
 {"kernel": 3, "rate": [1, 1], "op": "conv", "input": 0},
 {"kernel": 3, "rate": [6, 21], "op": "conv", "input": 0}]
"""


def built(**kwargs):
    layer = DensePredictionCell(**{"filters": 4, **kwargs})
    layer.build(SHAPE)
    return randomize(layer)


def point(x, layer):
    x = np_dilated_conv(x, npy(layer.conv.kernel))
    return relu(np_batch_norm(x, layer.norm))


def separable(x, layer, rate):
    x = np_depthwise(x, npy(layer.depthwise.kernel), rate)
    return point(relu(np_batch_norm(x, layer.depthwise_norm)), layer)


def test_the_published_cell_is_the_default():
    published = DensePredictionCell(4, json.loads(PUBLISHED))
    assert DensePredictionCell(4).branches == published.branches


def test_values_of_the_published_cell():
    layer = built(atrous_rates=((1, 2), (3, 2), (2, 1), 1, (2, 4)))
    a, b, c, d, e = layer.operations
    first = separable(X, a, (1, 2))
    second = separable(first, b, (3, 2))
    maps = [
        *(first, second, separable(second, c, (2, 1))),
        *(separable(first, d, 1), separable(first, e, (2, 4))),
    ]
    assert_close(layer(X), point(np.concatenate(maps, -1), layer.projection))


def test_values_of_other_operations():
    layer = built(
        branches=[
            {"op": "pyramid_pooling", "grid_size": [1, 1], "input": -1},
            {"op": "conv", "kernel": 1, "input": -1},
            {"op": "conv", "kernel": 5, "rate": 2, "input": 1},
        ]
    )
    pool, narrow, wide = layer.operations
    pooled = point(X.mean((1, 2), keepdims=True), pool.conv)
    first = point(X, narrow)
    maps = [
        *(np.broadcast_to(pooled, first.shape), first),
        separable(first, wide, 2),
    ]
    assert_close(layer(X), point(np.concatenate(maps, -1), layer.projection))
    assert layer.branch_titles == ["0: image pooling", "1: 1x1", "2: rate 2"]


def test_rates_replace_those_of_the_cell():
    layer = DensePredictionCell(4, atrous_rates=[[2, 12], 3, 4, 5, (6, 6)])
    assert layer.atrous_rates == ((2, 12), 3, 4, 5, 6)
    rates = [branch["rate"] for branch in layer.branches]
    assert rates == list(layer.atrous_rates)
    with pytest.raises(ValueError, match=r"5 rates.*atrous_rates=\(6, 12\)"):
        DensePredictionCell(4, atrous_rates=(6, 12))


CONV = {"op": "conv", "kernel": 3, "rate": 1, "input": -1}


@pytest.mark.parametrize(
    "branches, message",
    [
        ([], r"non-empty.*Received: branches=\[\]"),
        (["conv"], r"`branches\[0\]` must be a dict. Received: 'conv'"),
        ([CONV | {"input": 0}], r"earlier branch. Received: input=0"),
        ([CONV | {"op": "pool"}], "Received: op='pool'"),
        ([CONV | {"kernel": 2}], "odd.*Received: kernel_size=2"),
        ([CONV | {"rate": 0}], r"rate of branches\[0\]=0"),
        ([{"op": "conv", "kernel": 3}], r"rate of branches\[0\]=None"),
        (
            [{"op": "pyramid_pooling", "grid_size": [2, 2]}],
            r"image size. Received: grid_size=\[2, 2\]",
        ),
    ],
)
def test_errors(branches, message):
    with pytest.raises(ValueError, match=message):
        DensePredictionCell(4, branches)
