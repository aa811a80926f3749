"""DAPPM and PAPPM against NumPy and against the published modules."""

import numpy as np
import pytest
from helpers import (
    SHAPE,
    assert_close,
    np_batch_norm,
    np_dilated_conv,
    np_resize,
    npy,
    randomize,
    relu,
    sample,
)

from keras_aspp.layers import DAPPM

X = sample() + sample(SHAPE[-1:], seed=1)


def built(shape=SHAPE, **kwargs):
    layer = DAPPM(**{"filters": 6, "branch_filters": 4, **kwargs})
    layer.build(shape)
    return randomize(layer)


def unit(x, layer):
    x = relu(np_batch_norm(x, layer.norm))
    return np_dilated_conv(x, npy(layer.conv.kernel))


def np_pool(x, stride):
    """Means over windows of 2 s + 1 cells, their padding of zeros included."""
    size = 2 * stride + 1
    pad = ((0, 0), (stride, stride), (stride, stride), (0, 0))
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, pad), (size, size), axis=(1, 2)
    )
    return windows[:, ::stride, ::stride].mean((-2, -1))


@pytest.mark.parametrize("parallel", [False, True])
def test_values_at_an_odd_size(parallel):
    layer = built(pool_strides=(2, 3), parallel=parallel)
    maps = [unit(X, layer.scales[0])]
    for i, stride in enumerate((2, 3), start=1):
        pooled = unit(np_pool(X, stride), layer.scales[i])
        assert pooled.shape[1:3] == tuple(-(-n // stride) for n in SHAPE[1:3])
        grid = [n * stride for n in pooled.shape[1:3]]
        x = np_resize(pooled, grid)[:, : SHAPE[1], : SHAPE[2]]
        x = x + maps[0 if parallel else -1]
        maps.append(unit(x, layer.processes[i - 1]))
    pooled = unit(X.mean((1, 2), keepdims=True), layer.scales[3])
    x = pooled + maps[0 if parallel else -1]
    maps.append(unit(x, layer.processes[2]))
    expected = unit(np.concatenate(maps, -1), layer.compression)
    assert_close(layer(X), expected + unit(X, layer.shortcut))


@pytest.mark.parametrize("parallel", [False, True])
def test_the_published_module(parallel):
    """PIDNet's code; PAPPM has one convolution of four groups."""
    torch = pytest.importorskip("torch", reason="extra `peers` (2026-11-30)")
    nn, functional = torch.nn, torch.nn.functional
    x = sample((2, 8, 16, 5)) + X[:1, :1, :1]
    layer = built(x.shape, parallel=parallel)

    def sequence(units, *pools, groups=1):
        """Pool, batch norm, ReLU, convolution; of several units, grouped."""
        kernel = np.concatenate([npy(u.conv.kernel) for u in units], -1)
        kernel = kernel.transpose(3, 2, 0, 1)
        size = kernel.shape[-1]
        channels = kernel.shape[1] * groups
        norm = nn.BatchNorm2d(channels, eps=1e-3)
        conv = nn.Conv2d(
            channels,
            len(kernel),
            size,
            padding=size // 2,
            groups=groups,
            bias=False,
        )
        weights = zip(*(u.norm.weights for u in units), strict=True)
        values = [torch.tensor(np.concatenate([*map(npy, w)])) for w in weights]
        norm.weight.data, norm.bias.data = values[:2]
        norm.running_mean, norm.running_var = values[2:]
        conv.weight.data = torch.tensor(kernel)
        return nn.Sequential(*pools, norm, nn.ReLU(), conv).eval()

    pools = [
        nn.AvgPool2d(kernel_size=5, stride=2, padding=2),
        nn.AvgPool2d(kernel_size=9, stride=4, padding=4),
        nn.AvgPool2d(kernel_size=17, stride=8, padding=8),
        nn.AdaptiveAvgPool2d((1, 1)),
    ]
    image = torch.tensor(x).permute(0, 3, 1, 2)
    with torch.no_grad():
        first = sequence(layer.scales[:1])(image)
        ups = [
            functional.interpolate(
                sequence([scale], pool)(image),
                size=image.shape[2:],
                mode="bilinear",
                align_corners=False,
            )
            for scale, pool in zip(layer.scales[1:], pools, strict=True)
        ]
        if parallel:
            process = sequence(layer.processes, groups=4)
            maps = [first, process(torch.cat([up + first for up in ups], 1))]
        else:
            maps = [first]
            for up, process in zip(ups, layer.processes, strict=True):
                maps.append(sequence([process])(up + maps[-1]))
        expected = sequence([layer.compression])(torch.cat(maps, 1))
        expected = expected + sequence([layer.shortcut])(image)
    assert_close(layer(x), expected.permute(0, 2, 3, 1).numpy())


def test_scales_have_half_the_channels_if_not_said_otherwise():
    layer = DAPPM(10)
    assert layer.scales[0].conv.filters == 5
    assert layer.get_config()["branch_filters"] is None
    assert layer.branch_titles == [
        *("1x1", "pool 5", "pool 9", "pool 17", "image pooling")
    ]


def test_a_map_smaller_than_every_window():
    layer = built()
    assert layer(X[:, :1, :2]).shape == (2, 1, 2, 6)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"pool_strides": ()}, r"Received: pool_strides=\(\)"),
        ({"pool_strides": (2, 0)}, r"Received: pool_strides=\(2, 0\)"),
        ({"pool_strides": 2}, "Received: pool_strides=2"),
        ({"branch_filters": 0}, "Received: branch_filters=0"),
        ({"filters": 0}, "Received: filters=0"),
        ({"dropout": -0.5}, r"Received: dropout=-0\.5"),
        ({"batch_norm": "frozen"}, "Received: batch_norm='frozen'"),
        ({"batch_norm_momentum": 7}, "Received: batch_norm_momentum=7"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DAPPM(**kwargs)
