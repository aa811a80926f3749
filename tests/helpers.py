"""Oracles in NumPy, and weights that are neutral nowhere."""

import pathlib
import random

import keras
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
SHAPE = (2, 9, 7, 5)  # odd, non-square, no axis equal to another

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
tensorflow_only = pytest.mark.skipif(
    not ON_TENSORFLOW,
    reason="about TensorFlow itself: its graphs, its XLA, its files "
    "(2026-11-28)",
)


def set_seed(seed):
    """Seeds what initializers, dropout and NumPy draw from.

    `keras.utils.set_random_seed` would also clear TensorFlow's cache of
    kernels, which takes a fifth of the time of small models to refill.
    """
    random.seed(seed)
    np.random.seed(seed)


def npy(x):
    """A tensor or variable as a NumPy array."""
    return keras.ops.convert_to_numpy(x)


class Counter(keras.layers.Layer):
    """A layer that assigns: it counts its calls."""

    def build(self, input_shape):
        self.calls = self.add_weight(shape=(), initializer="zeros")

    def call(self, inputs):
        self.calls.assign_add(1.0)
        return inputs


def sample(shape=SHAPE, seed=0):
    """Standard normal numbers, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomize(layer, seed=0):
    """Gives every weight of a layer or model a value that is not neutral.

    Kernels are scaled by their number of inputs, so that signals stay O(1).

    Returns:
        `layer`.
    """
    rng = np.random.default_rng(seed)
    depthwise = {
        id(inner.kernel)
        for inner in layer._flatten_layers()
        if isinstance(inner, keras.layers.DepthwiseConv2D)
    }
    for weight in layer.weights:
        name, shape = weight.path.rsplit("/", 1)[-1], tuple(weight.shape)
        if name == "gamma":
            value = rng.uniform(0.7, 1.3, shape)
        elif name in ("moving_variance", "variance"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name == "kernel":
            axes = shape[:2] if id(weight) in depthwise else shape[:-1]
            value = rng.normal(0, np.sqrt(2 / np.prod(axes)), shape)
        elif "seed_generator" in weight.path:
            continue
        else:
            value = rng.normal(0, 0.3, shape)
        weight.assign(value)
    return finalized(layer)


def finalized(layer):
    """Updates what `keras.layers.Normalization` derives from its weights."""
    for inner in layer._flatten_layers():
        if hasattr(inner, "finalize_state"):
            inner.finalize_state()
    return layer


def value_and_gradients(function, *inputs):
    """Value of a scalar function, and its gradients, on either backend."""
    inputs = [keras.ops.convert_to_tensor(x) for x in inputs]
    if not ON_TENSORFLOW:
        import jax

        which = tuple(range(len(inputs)))
        return jax.value_and_grad(function, which)(*inputs)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(inputs)
        value = function(*inputs)
    return value, tape.gradient(value, inputs)


def relu(x):
    return np.maximum(x, 0)


def np_taps(x, size, rate):
    """The map as each tap of a 'same' kernel sees it: (i, j), array."""
    rows, columns = (rate, rate) if np.isscalar(rate) else rate
    high, wide = (n * (size - 1) // 2 for n in (rows, columns))
    p = np.pad(x, ((0, 0), (high, high), (wide, wide), (0, 0)))
    for i in range(size):
        for j in range(size):
            tap = p[:, i * rows :, j * columns :]
            yield (i, j), tap[:, : x.shape[1], : x.shape[2]]


def np_dilated_conv(x, kernel, rate=1):
    """'same' dilated convolution, one tap at a time."""
    return sum(
        tap @ kernel[at] for at, tap in np_taps(x, kernel.shape[0], rate)
    )


def np_depthwise(x, kernel, rate=1):
    """'same' dilated depthwise convolution, multiplier inside channel."""
    total = sum(
        tap[..., None] * kernel[at]
        for at, tap in np_taps(x, kernel.shape[0], rate)
    )
    return total.reshape(*x.shape[:3], -1)


def np_batch_norm(x, norm, epsilon=1e-3):
    """Batch norm at inference, from the layer's weights."""
    gamma, beta, mean, variance = (npy(w) for w in norm.weights)
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def np_resize(x, grid, align_corners=False):
    """Bilinear resize to `grid`, by gathering the two neighbours."""
    for axis, n_out in zip((1, 2), grid, strict=True):
        n_in, i = x.shape[axis], np.arange(n_out)
        if align_corners:
            position = i * (n_in - 1) / (n_out - 1)
        else:
            position = (i + 0.5) * n_in / n_out - 0.5
        position = position.clip(0, n_in - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, n_in - 1)
        share = (position - low).reshape([-1] + [1] * (3 - axis))
        x = x.take(low, axis) * (1 - share) + x.take(high, axis) * share
    return x


def assert_close(actual, expected, tolerance=1e-4, least_std=0.1):
    """Equal within `tolerance` standard deviations of the expected."""
    actual, expected = (
        np.asarray(npy(x), "float64") for x in (actual, expected)
    )
    assert actual.shape == expected.shape
    assert expected.std() > least_std, "too flat to compare"
    assert np.abs(actual - expected).max() <= tolerance * expected.std()


def compute_dtypes(layer):
    """Compute dtypes of a layer and all that is in it, by path."""
    return {
        inner.path or inner.name: inner.compute_dtype
        for inner in layer._flatten_layers()
        if not isinstance(inner, (keras.layers.InputLayer, keras.Model))
    }


def zero_padded_depthwise(x, padding, name, dtype):
    """ZeroPadding2D and a strided `valid` depthwise convolution."""
    x = keras.layers.ZeroPadding2D(padding, dtype=dtype, name=f"{name}_pad")(x)
    return keras.layers.DepthwiseConv2D(
        3, strides=2, use_bias=False, dtype=dtype, name=name
    )(x)


def make_toy_backbone(
    channels=3,
    padding=((0, 1), (0, 1)),
    features=False,
    dtype=None,
    size=None,
):
    """Functional model of plain Keras layers, strides 2, 4, 8, 16, 32.

    Args:
        channels: int, of the picture.
        padding: before the strided `valid` layers: Keras' own ((0, 1), (0, 1))
            or symmetric 1. With 1, no layer pads by the size of its input.
        features: bool. Dict outputs by nominal stride, or the last tensor.
        dtype: Keras dtype policy of every layer.
        size: height and width that it is made for, or any.
    """

    def unit(x, layer, name, activate=True):
        x = layer(x)
        x = keras.layers.BatchNormalization(dtype=dtype, name=f"{name}_bn")(x)
        if activate:
            x = keras.layers.ReLU(dtype=dtype, name=f"{name}_relu")(x)
        return x

    def conv(filters, size, name, **kwargs):
        return keras.layers.Conv2D(
            filters, size, use_bias=False, dtype=dtype, name=name, **kwargs
        )

    def strided(x, filters, name):
        if padding != 1:
            layer = conv(filters, 3, name, strides=2, padding="same")
            return unit(x, layer, name)
        x = keras.layers.ZeroPadding2D(1, dtype=dtype, name=f"{name}_pad")(x)
        return unit(x, conv(filters, 3, name, strides=2), name)

    outputs = {}
    inputs = x = keras.Input((size, size, channels), name="picture")
    outputs["stride_2"] = x = strided(x, 8, "stem")
    x = zero_padded_depthwise(x, padding, "block1_depthwise", dtype)
    outputs["stride_4"] = x = unit(x, conv(12, 1, "block1"), "block1")
    outputs["stride_8"] = x = strided(x, 16, "block2")
    x = zero_padded_depthwise(x, padding, "block3_depthwise", dtype)
    x = short = unit(x, conv(16, 1, "block3"), "block3", activate=False)
    x = unit(x, conv(16, 3, "block3_inner", padding="same"), "block3_inner")
    add = keras.layers.Add(dtype=dtype, name="block3_add")
    outputs["stride_16"] = x = add([x, short])
    x = strided(x, 24, "block4")
    x = unit(x, conv(24, 3, "block4_inner", padding="same"), "block4_inner")
    outputs["stride_32"] = x
    return keras.Model(inputs, outputs if features else x, name="toy")


def make_small_backbone(dtype=None, channels=3):
    """Functional model of few layers, strides 2 to 32, by stride.

    It has a third of the toy's, for tests that trace, compile or convert what
    is not about layers.
    """
    x = inputs = keras.Input((None, None, channels))
    features = {}
    for stride in (2, 4, 8, 16, 32):
        x = keras.layers.Conv2D(4, 3, strides=2, padding="same", dtype=dtype)(x)
        if stride == 8:
            x = keras.layers.BatchNormalization(dtype=dtype)(x)
        features[f"stride_{stride}"] = x = keras.layers.ReLU(dtype=dtype)(x)
    return keras.Model(inputs, features, name="small")


def event_steps(folder):
    """Tag -> steps of the summaries in the event files of a folder."""
    import tensorflow as tf

    found = {}
    for path in sorted(folder.rglob("events*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    return found
