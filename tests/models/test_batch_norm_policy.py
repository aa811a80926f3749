"""The policies of batch norm: train, freeze, sync, group."""

import collections

import numpy as np
import pytest
from helpers import npy, randomize, sample

from keras_aspp.layers import GroupNormalization
from keras_aspp.models import DeepLabV3Plus, fold_batch_norm


def build(backbone, batch_norm, **kwargs):
    return DeepLabV3Plus(
        3,
        backbone,
        atrous_rates=(1, 2),
        aspp_filters=8,
        decoder_filters=8,
        dropout=0.0,
        batch_norm=batch_norm,
        **kwargs,
    )


def norms(model):
    """How many layers of each kind normalize, and whether they learn."""
    return collections.Counter(
        (type(layer).__name__.removesuffix("Normalization"), layer.trainable)
        for layer in model._flatten_layers()
        if type(layer).__name__.endswith("Normalization")
    )


@pytest.mark.parametrize(
    "policy, backbone, head",
    [
        ("train", ("Batch", True), ("Batch", True)),
        ("sync", ("Batch", True), ("Batch", True)),
        ("freeze", ("Batch", False), ("Batch", False)),
        ("group", ("Batch", False), ("Group", True)),
    ],
)
def test_of_a_backbone_with_weights(toy_backbone, policy, backbone, head):
    model = build(toy_backbone(padding=1), policy)
    found = norms(model)
    inside = norms(model.backbone)
    assert set(inside) == {backbone}
    assert set(found - inside) == {head}
    synchronized = {
        layer.synchronized
        for layer in model._flatten_layers()
        if type(layer).__name__ == "BatchNormalization"
    }
    assert synchronized == {policy == "sync"}
    again = type(model).from_config(model.get_config())
    assert norms(again) == found
    again.set_weights(model.get_weights())
    x = sample((1, 65, 50, 3))
    np.testing.assert_array_equal(npy(again(x)), npy(model(x)))


def test_group_of_a_fresh_backbone_leaves_no_batch_norm():
    model = build("mobilenet_v2_0.35", "group", backbone_weights=None)
    assert set(norms(model)) == {("Group", True)}
    assert model(sample((1, 64, 64, 3))).shape == (1, 64, 64, 3)


def test_group_norm_sees_each_picture_alone(toy_backbone):
    model = randomize(build(toy_backbone(padding=1), "group"))
    x = sample((2, 64, 64, 3))
    both = npy(model(x, training=True))
    alone = npy(model(x[:1], training=True))
    np.testing.assert_allclose(alone[0], both[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        npy(model(x, training=False)), both, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("channels, groups", [(48, 16), (64, 32), (3, 1)])
def test_groups_divide_the_channels(channels, groups):
    layer = GroupNormalization()
    x = sample((2, 5, 4, channels))
    found = npy(layer(x))
    assert layer.groups == groups
    parts = x.reshape(2, 20, groups, -1)
    mean = parts.mean(axis=(1, 3), keepdims=True)
    variance = parts.var(axis=(1, 3), keepdims=True)
    expected = (parts - mean) / np.sqrt(variance + layer.epsilon)
    np.testing.assert_allclose(
        found, expected.reshape(x.shape), rtol=1e-3, atol=1e-4
    )
    again = GroupNormalization.from_config(layer.get_config())
    assert again.groups == groups


def test_group_norm_is_not_folded(toy_backbone):
    model = randomize(build(toy_backbone(padding=1), "group"))
    folded = fold_batch_norm(model)
    assert "Group" in {kind for kind, _ in norms(folded)}
    x = sample((1, 65, 50, 3))
    np.testing.assert_allclose(
        npy(folded(x)), npy(model(x)), rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow  # a process of its own, with two devices
def test_sync_takes_statistics_of_both_devices():
    code = """
import numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
from keras_aspp.layers import AtrousConv2D
x = np.random.default_rng(0).normal(size=(4, 5, 6, 3)).astype("float32")
x[2:] += 5
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
whole = AtrousConv2D(2, 1, batch_norm="sync", kernel_initializer="ones")
expected = whole(x, training=True)
with strategy.scope():
    layer = AtrousConv2D(2, 1, batch_norm="sync", kernel_initializer="ones")
    layer.build(x.shape)
halves = strategy.experimental_distribute_values_from_function(
    lambda c: tf.constant(x[2 * c.replica_id_in_sync_group:][:2])
)
found = strategy.run(lambda v: layer(v, training=True), (halves,))
found = np.concatenate([v.numpy() for v in found.values])
np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
print("same")
"""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.stdout.strip().endswith("same"), done.stderr[-2000:]


def test_an_unknown_policy(toy_backbone):
    with pytest.raises(ValueError, match="'freeze', 'sync', 'group'"):
        build(toy_backbone(padding=1), "instance")
