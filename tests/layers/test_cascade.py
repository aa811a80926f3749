"""AtrousCascade against NumPy and against the published modules."""

import keras
import numpy as np
import pytest
from helpers import (
    SHAPE,
    assert_close,
    np_batch_norm,
    np_dilated_conv,
    npy,
    randomize,
    relu,
    sample,
)

from keras_aspp.layers import AtrousCascade

X = sample() + sample(SHAPE[-1:], seed=1)


def built(**kwargs):
    layer = AtrousCascade(**{"filters": 4, "atrous_rates": (2, 1), **kwargs})
    layer.build(SHAPE)
    return randomize(layer)


def unit(x, layer, epsilon=1e-3):
    x = np_dilated_conv(x, npy(layer.conv.kernel), layer.atrous_rate)
    if layer.norm is None:
        return relu(x + npy(layer.conv.bias))
    return relu(np_batch_norm(x, layer.norm, epsilon))


@pytest.mark.parametrize("fusion", ["concat", "sum"])
@pytest.mark.parametrize("image_pooling", [True, False, "bias"])
def test_values(fusion, image_pooling):
    layer = built(fusion=fusion, image_pooling=image_pooling)
    maps = [unit(X, layer.first)]
    for stage in layer.stages:
        maps.append(unit(maps[-1], stage))
    if image_pooling:
        pooled = unit(X.mean((1, 2), keepdims=True), layer.pooling.conv)
        maps.append(np.broadcast_to(pooled, maps[0].shape))
    if fusion == "sum":
        expected = sum(maps)
    else:
        expected = unit(np.concatenate(maps, -1), layer.projection)
    assert_close(layer(X), expected)


def torch_norm(torch, norm):
    copy = torch.nn.BatchNorm2d(norm.gamma.shape[0], eps=norm.epsilon).eval()
    names = ("weight", "bias", "running_mean", "running_var")
    for name, weight in zip(names, norm.weights, strict=True):
        getattr(copy, name).data = torch.tensor(npy(weight))
    return copy


def torch_conv(torch, layer, rate=1):
    kernel = torch.tensor(npy(layer.kernel)).permute(3, 2, 0, 1)
    bias = torch.tensor(npy(layer.bias)) if layer.use_bias else None
    pad = rate * (kernel.shape[-1] // 2)
    return lambda x: torch.nn.functional.conv2d(
        x, kernel, bias, padding=pad, dilation=rate
    )


def test_wasp_of_unipose():
    """Its shared linear 1x1, applied twice, is part of our projection."""
    torch = pytest.importorskip("torch", reason="extra `peers` (2026-11-30)")
    layer = built(atrous_rates=(3, 2, 1))
    functional = torch.nn.functional
    x = torch.tensor(X).permute(0, 3, 1, 2)

    def module(block, rate=1):
        conv = torch_conv(torch, block.conv, rate)
        norm = torch_norm(torch, block.norm)
        return lambda x: functional.relu(norm(conv(x)))

    shared = sample((4, 4, 1, 1), seed=3)
    convolve = lambda x: functional.conv2d(x, torch.tensor(shared))  # noqa: E731
    stages = [module(layer.first)(x)]
    for stage in layer.stages:
        stages.append(module(stage, stage.atrous_rate)(stages[-1]))
    pooled = module(layer.pooling.conv)(functional.adaptive_avg_pool2d(x, 1))
    pooled = functional.interpolate(
        pooled, x.shape[2:], mode="bilinear", align_corners=True
    )
    maps = [convolve(convolve(stage)) for stage in stages]
    project = torch_conv(torch, layer.projection.conv)
    norm = torch_norm(torch, layer.projection.norm)
    expected = functional.relu(norm(project(torch.cat([*maps, pooled], 1))))
    expected = expected.detach()

    kernel = npy(layer.projection.conv.kernel).copy()
    twice = np.linalg.matrix_power(shared[:, :, 0, 0].T, 2)
    for i in range(4):
        part = kernel[0, 0, 4 * i : 4 * i + 4]
        kernel[0, 0, 4 * i : 4 * i + 4] = twice @ part
    layer.projection.conv.kernel.assign(kernel)
    assert_close(layer(X), expected.permute(0, 2, 3, 1).numpy())


def test_center_of_d_linknet():
    torch = pytest.importorskip("torch", reason="extra `peers` (2026-11-30)")
    layer = built(
        filters=5,
        atrous_rates=(1, 2, 4, 8),
        fusion="sum",
        point=False,
        image_pooling=False,
        batch_norm=False,
    )
    x = expected = torch.tensor(X).permute(0, 3, 1, 2)
    for stage, rate in zip(layer.stages, (1, 2, 4, 8), strict=True):
        x = torch.relu(torch_conv(torch, stage.conv, rate)(x))
        expected = expected + x
    assert_close(layer(X), expected.permute(0, 2, 3, 1).numpy())


def test_the_field_of_the_last_stage_is_that_of_all_rates():
    layer = built(atrous_rates=(3, 1), activation="softplus")
    x = np.zeros((1, 21, 21, 5), "float32")
    silent = npy(layer.branch_maps(x)[-2])
    x[0, 10, 10] = 1
    touched = np.abs(npy(layer.branch_maps(x)[-2]) - silent).max(-1)[0] > 1e-6
    rows = np.flatnonzero(touched.any(1))
    assert (rows.min(), rows.max()) == (10 - 4, 10 + 4)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"atrous_rates": ()}, r"non-empty.*Received: atrous_rates=\(\)"),
        ({"fusion": "linear_sum"}, "Received: fusion='linear_sum'"),
        ({"dropout": 1.0}, r"Received: dropout=1\.0"),
        ({"filters": 0}, "Received: filters=0"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AtrousCascade(**kwargs)


def test_an_input_of_other_channels_takes_a_point():
    with pytest.raises(ValueError, match="filters=4, an input of 5 channels"):
        AtrousCascade(4, (1,), point=False)(keras.Input((None, None, 5)))
