"""ASPP against NumPy."""

import keras
import numpy as np
import pytest
from helpers import (
    SHAPE,
    assert_close,
    compute_dtypes,
    np_batch_norm,
    np_depthwise,
    np_dilated_conv,
    npy,
    randomize,
    relu,
    sample,
    tensorflow_only,
)

from keras_aspp.layers import ASPP, AtrousConv2D
from keras_aspp.layers.lowering import export_form

X = sample() + sample(SHAPE[-1:], seed=1)


def built(**kwargs):
    layer = ASPP(**{"filters": 4, "atrous_rates": (1, 2), **kwargs})
    layer.build(SHAPE)
    return randomize(layer)


def unit(x, layer, epsilon):
    """Convolution, batch norm, ReLU of one AtrousConv2D."""
    rate = layer.atrous_rate
    if layer.separable:
        x = np_depthwise(x, npy(layer.depthwise.kernel), rate)
        x, rate = relu(np_batch_norm(x, layer.depthwise_norm, epsilon)), 1
    x = np_dilated_conv(x, npy(layer.conv.kernel), rate)
    if layer.norm is None:
        return relu(x + npy(layer.conv.bias))
    return relu(np_batch_norm(x, layer.norm, epsilon))


def oracle(layer, x, epsilon=1e-3):
    branches = list(layer.branches)
    outputs = []
    if layer.image_pooling:
        mean = x.mean((1, 2), keepdims=True)
        pooled = unit(mean, branches.pop().conv, epsilon)
        outputs = [np.broadcast_to(pooled, (*x.shape[:3], layer.filters))]
    # The order that published weights have: point, rates, image.
    outputs = [unit(x, branch, epsilon) for branch in branches] + outputs
    if layer.fusion == "sum":
        return sum(outputs)
    return unit(np.concatenate(outputs, axis=-1), layer.projection, epsilon)


@pytest.mark.parametrize(
    "given, kept",
    [(1, True), (np.True_, True), (0, False), (None, False), ("bias", "bias")],
)
def test_image_pooling_of_files_and_numpy(given, kept):
    assert ASPP(4, (1,), image_pooling=given).image_pooling is kept


@pytest.mark.parametrize("fusion", ["concat", "sum"])
@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("image_pooling", [True, False, "bias"])
def test_values(fusion, separable, image_pooling):
    layer = built(
        fusion=fusion,
        separable=separable,
        image_pooling=image_pooling,
        batch_norm_epsilon=0.1,
    )
    assert_close(layer(X), oracle(layer, X, epsilon=0.1))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
def test_any_number_of_rates(count):
    rates = (1, 2, 3, 4, 6)[:count]
    layer = built(atrous_rates=rates)
    assert len(layer.branches) == count + 2
    assert [b.atrous_rate for b in layer.branches[1:-1]] == list(rates)
    assert_close(layer(X), oracle(layer, X))


def test_without_batch_norm():
    layer = built(batch_norm=False, image_pooling=False)
    assert len(layer.weights) == 2 * (3 + 1)
    outputs = [
        relu(
            np_dilated_conv(X, npy(branch.conv.kernel), branch.atrous_rate)
            + npy(branch.conv.bias)
        )
        for branch in layer.branches
    ]
    last = layer.projection.conv
    fused = np.concatenate(outputs, -1) @ npy(last.kernel)[0, 0]
    assert_close(layer(X), relu(fused + npy(last.bias)))


def test_a_rate_beyond_the_map_is_the_centre_tap():
    layer = built(atrous_rates=(50,))
    branch = layer.branches[1]
    centre = npy(branch.conv.kernel)[1, 1]
    expected = relu(np_batch_norm(X @ centre, branch.norm))
    assert_close(branch(X), expected)
    assert_close(layer(X), oracle(layer, X))


def test_inference_leaves_batch_norm_alone():
    layer = built()
    before = [npy(v) for v in layer.non_trainable_variables]
    layer(X)  # no `training` argument, on purpose
    for a, b in zip(before, layer.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(a, npy(b))


@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_training_reaches_every_sublayer(fusion):
    layer = built(separable=True, fusion=fusion)
    moving = {
        v.path: npy(v)
        for v in layer.non_trainable_variables
        if "moving_" in v.path
    }
    # 1 point, 2 x 2 separable, 1 image; the projection with "concat".
    assert len(moving) == 2 * (6 + (fusion == "concat"))
    layer(X, training=True)
    for v in layer.non_trainable_variables:
        if v.path in moving:
            assert np.abs(npy(v) - moving[v.path]).max() > 1e-4, v.path


def test_dropout_is_for_training_only():
    layer = built(dropout=0.5, activation="softplus")  # so 0 is dropped
    assert npy(layer(X)).min() > 0
    dropped = (npy(layer(X, training=True)) == 0).mean()
    assert 0.3 < dropped < 0.7


def test_config_round_trip():
    layer = built(
        filters=6,
        atrous_rates=[3, 5, 8, 9],
        fusion="sum",
        separable=True,
        image_pooling=False,
        dropout=0.3,
        activation="gelu",
        batch_norm_momentum=0.7,
        batch_norm_epsilon=1e-4,
        name="pyramid",
        dtype="mixed_bfloat16",
    )
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == layer.get_config()
    assert copy.filters == 6
    assert copy.atrous_rates == (3, 5, 8, 9)
    assert copy.fusion == "sum" and copy.projection is None
    assert copy.separable and not copy.image_pooling
    assert copy.drop.rate == 0.3
    for branch in copy.branches:
        assert branch.activation is keras.activations.gelu
        assert branch.norm.momentum == 0.7
        assert branch.norm.epsilon == 1e-4
    assert copy.dtype_policy.name == "mixed_bfloat16"
    without = ASPP(4, (1,), batch_norm=False).get_config()
    assert ASPP.from_config(without).projection.norm is None


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_dtype_policy_reaches_every_sublayer(policy):
    layer = built(separable=True, dtype=policy)
    dtypes = compute_dtypes(layer)
    assert len(dtypes) > 20
    assert set(dtypes.values()) == {policy[6:]}
    assert keras.backend.standardize_dtype(layer(X).dtype) == policy[6:]


def test_dynamic_size():
    layer = built(separable=True)
    inputs = keras.Input((None, None, SHAPE[-1]))
    model = keras.Model(inputs, layer(inputs))
    assert model.output.shape == (None, None, None, 4)
    assert_close(model.predict(X, verbose=0), oracle(layer, X))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"atrous_rates": (6, 0)}, r"Received: atrous_rates=\(6, 0\)"),
        (
            {"atrous_rates": (), "image_pooling": False},
            r"non-empty.*Received: atrous_rates=\(\)",
        ),
        ({"atrous_rates": 6}, "Received: atrous_rates=6"),
        ({"atrous_rates": (1.5,)}, r"Received: atrous_rates=\(1\.5,\)"),
        ({"fusion": "mean"}, "Received: fusion='mean'"),
        ({"dropout": 1.0}, r"Received: dropout=1\.0"),
        ({"dropout": -0.1}, r"Received: dropout=-0\.1"),
        ({"dropout": None}, "Received: dropout=None"),
        ({"image_pooling": "mean"}, "Received: image_pooling='mean'"),
        ({"filters": 0}, "Received: filters=0"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ASPP(**kwargs)


@tensorflow_only
@pytest.mark.parametrize("atrous_rates", [(1, 2), ()])
def test_pooling_as_a_bias_is_the_same_block(atrous_rates):
    layer = built(batch_norm=False, atrous_rates=atrous_rates)
    expected = layer(X)
    with export_form():
        assert layer._pooling_is_a_bias()
        found = layer(X)
    assert_close(found, expected, 1e-5)


def test_shared_kernels_against_the_published_form():
    """ReLU(BN(1x1 x) + sum of BN_r(conv(x, W, r)) + BN(1x1 mean x))."""
    layer = built(atrous_rates=(1, (2, 3), 4), shared=True, fusion="linear_sum")
    point, *atrous, pooling = layer.branches
    kernel = npy(atrous[0].conv.kernel)
    total = np_batch_norm(X @ npy(point.conv.kernel)[0, 0], point.norm)
    for branch, rate in zip(atrous, (1, (2, 3), 4), strict=True):
        total = total + np_batch_norm(
            np_dilated_conv(X, kernel, rate), branch.norm
        )
    mean = X.mean((1, 2), keepdims=True) @ npy(pooling.conv.conv.kernel)[0, 0]
    total = total + np_batch_norm(mean, pooling.conv.norm)
    assert_close(layer(X), relu(total))


@pytest.mark.parametrize("separable", [False, True])
def test_shared_kernels_are_one_variable(separable, tmp_path):
    shared = built(separable=separable, shared=True, atrous_rates=(1, 2, 3))
    own = built(separable=separable, atrous_rates=(1, 2, 3))
    kernels = 9 * 5 + 5 * 4 if separable else 9 * 5 * 4
    assert own.count_params() - shared.count_params() == 2 * kernels
    first, second, _ = shared.branches[1:4]
    assert second.conv.kernel is first.conv.kernel
    assert second.norm.gamma is not first.norm.gamma
    # Equal kernels of an ASPP give an equal result.
    for mine, theirs in zip(own.branches, shared.branches, strict=True):
        for a, b in zip(mine.weights, theirs.weights, strict=True):
            a.assign(b)
    own.projection.set_weights(shared.projection.get_weights())
    assert_close(shared(X), own(X), 1e-6)


def test_a_file_contains_a_shared_kernel_once(tmp_path):
    import h5py

    layer = built(shared=True, batch_norm=False, atrous_rates=(1, 2))
    inputs = keras.Input(SHAPE[1:])
    model = keras.Model(inputs, layer(inputs))
    model.save_weights(tmp_path / "model.weights.h5")
    sizes = []
    with h5py.File(tmp_path / "model.weights.h5") as file:
        file.visititems(lambda _, item: sizes.append(getattr(item, "size", 0)))
    assert sum(sizes) == layer.count_params()
    expected = npy(layer(X))
    randomize(layer, seed=1)
    model.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(npy(layer(X)), expected)


@tensorflow_only
def test_a_shared_kernel_has_the_gradient_of_all_rates():
    import tensorflow as tf

    layer = built(shared=True, fusion="linear_sum", image_pooling=False)
    (kernel,) = (
        v for v in layer.trainable_variables if tuple(v.shape[:2]) == (3, 3)
    )
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer(X) ** 2)
    gradient = tape.gradient(value, kernel.value)
    step = sample(kernel.shape, seed=2) * 1e-3
    before = npy(kernel)
    values = []
    for sign in (1, -1):
        kernel.assign(before + sign * step)
        values.append(npy(layer(X)).astype("float64"))
    slope = (values[0] ** 2).sum() - (values[1] ** 2).sum()
    assert slope / 2 == pytest.approx((npy(gradient) * step).sum(), rel=1e-2)


def test_the_configuration_of_an_unchanged_layer_is_unchanged():
    assert "shared" not in ASPP().get_config()
    assert ASPP.from_config(ASPP(shared=True).get_config()).shared


def test_a_seed_gives_the_weights_of_branches_created_from_left_to_right():
    keras.utils.set_random_seed(1)
    layer = ASPP(4, (1, 2), image_pooling=False)
    layer.build(SHAPE)
    keras.utils.set_random_seed(1)
    plain = [AtrousConv2D(4, k, rate) for k, rate in ((1, 1), (3, 1), (3, 2))]
    for branch, alone in zip(layer.branches, plain, strict=True):
        alone.build(SHAPE)
        np.testing.assert_array_equal(
            npy(branch.conv.kernel), npy(alone.conv.kernel)
        )
