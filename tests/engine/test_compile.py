"""Optimizer, schedule, weight decay, learning-rate factor, XLA."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import npy, randomize

from keras_aspp.config.schema import TrainConfig
from keras_aspp.engine.compile import (
    WarmupPolynomial,
    build_optimizer,
    compile_model,
    resolve_jit,
)
from keras_aspp.models import DeepLabV3


def tiny_model(backbone):
    return DeepLabV3(
        3, backbone, atrous_rates=(1, 2), aspp_filters=8, dropout=0.0
    )


def test_schedule_warms_up_then_decays_to_zero():
    schedule = WarmupPolynomial(0.2, total_steps=50, warmup_steps=10)
    rate = [float(schedule(step)) for step in range(51)]
    np.testing.assert_allclose(rate[:10], 0.02 * np.arange(1, 11), rtol=1e-5)
    expected = 0.2 * (1 - np.arange(41) / 40) ** 0.9
    np.testing.assert_allclose(rate[10:], expected, rtol=1e-5, atol=1e-7)


def test_schedule_round_trip():
    schedule = WarmupPolynomial(0.2, 50, 10, 0.7)
    again = WarmupPolynomial.from_config(schedule.get_config())
    assert float(again(30)) == float(schedule(30))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_spares_batch_norm_and_biases(name):
    config = TrainConfig(total_steps=10, optimizer=name, weight_decay=0.5)
    optimizer = build_optimizer(config, 10)
    layers = keras.Sequential(
        [keras.layers.Conv2D(2, 1), keras.layers.BatchNormalization()]
    )
    layers.build((None, 4, 4, 3))
    randomize(layers)
    before = {v.path: npy(v).copy() for v in layers.trainable_variables}
    zeros = [keras.ops.zeros_like(v) for v in layers.trainable_variables]
    optimizer.apply(zeros, layers.trainable_variables)
    for variable in layers.trainable_variables:
        shrunk = 1 - 0.5 * 0.03 if "kernel" in variable.name else 1
        np.testing.assert_allclose(
            npy(variable), before[variable.path] * shrunk, rtol=1e-4
        )


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_without_weight_decay_nothing_shrinks(name):
    config = TrainConfig(total_steps=10, optimizer=name, weight_decay=0.0)
    variable = keras.Variable([3.0], name="kernel")
    build_optimizer(config, 10).apply([keras.ops.zeros(1)], [variable])
    assert npy(variable) == 3


def test_backbone_learning_rate_factor(toy_backbone):
    model = tiny_model(toy_backbone(padding=1))
    config = TrainConfig(
        total_steps=10,
        weight_decay=0.0,
        backbone_learning_rate_factor=0.1,
    )
    optimizer = build_optimizer(config, 10, model.backbone)
    before = [npy(v).copy() for v in model.trainable_variables]
    ones = [keras.ops.ones_like(v) for v in model.trainable_variables]
    optimizer.apply(ones, model.trainable_variables)
    slow = {id(v) for v in model.backbone.trainable_variables}
    assert slow
    for old, variable in zip(before, model.trainable_variables, strict=True):
        step = 0.003 if id(variable) in slow else 0.03
        np.testing.assert_allclose(
            old - npy(variable), np.full(old.shape, step), rtol=1e-3, atol=1e-6
        )


def test_accumulation_equals_a_larger_batch():
    results = []
    for accumulate, batch in ((2, 1), (1, 2)):
        keras.utils.set_random_seed(3)
        dense = keras.Sequential([keras.layers.Dense(2)])
        dense.build((None, 3))
        config = TrainConfig(
            total_steps=2 * accumulate,
            accumulate_steps=accumulate,
            schedule_power=1e-9,
        )
        dense.compile(
            build_optimizer(config, 2 * accumulate), "mse", jit_compile=False
        )
        x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
        y = x[:, :2] * 2
        dense.fit(x, y, batch_size=batch, shuffle=False, verbose=0)
        results.append(npy(dense.layers[0].kernel))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-6)


def by_hand(config, gradients, value, total_steps):
    """Weights and their average after each batch, in NumPy float64."""
    rate = WarmupPolynomial(config.learning_rate, total_steps, 2)
    momentum, square, average, pending = 0.0, 0.0, None, []
    updates = 0
    start = value
    for batch, gradient in enumerate(gradients):
        pending.append(gradient)
        if len(pending) == config.accumulate_steps:
            mean, pending = np.mean(pending, 0), []
            lr = float(rate(batch))
            updates += 1
            value = value * (1 - lr * config.weight_decay)
            if config.optimizer == "sgd":
                momentum = 0.9 * momentum - lr * mean
                value = value + momentum
            else:
                momentum = 0.9 * momentum + 0.1 * mean
                square = 0.999 * square + 0.001 * mean**2
                first = momentum / (1 - 0.9**updates)
                second = square / (1 - 0.999**updates)
                value = value - lr * first / (np.sqrt(second) + 1e-7)
            kept = 0 if average is None else config.ema_momentum or 0
            average = kept * (0 if average is None else average)
            average = average + (1 - kept) * value
        # Until the first update, validation sees the first weights.
        yield value, start if average is None else average


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_updates_averages_decay_and_schedule_by_hand(
    name, accumulate, scaled, in_graph
):
    config = TrainConfig(
        total_steps=9,
        optimizer=name,
        learning_rate=0.1,
        warmup_steps=2,
        weight_decay=0.2,
        accumulate_steps=accumulate,
        ema_momentum=0.7,
    )
    optimizer = inner = build_optimizer(config, 9)
    scale = 1.0
    if scaled:
        scale = 2.0**15
        optimizer = keras.optimizers.LossScaleOptimizer(inner)
    rng = np.random.default_rng(4)
    start = rng.normal(size=(2, 3))
    gradients = rng.normal(size=(9, 2, 3))
    kernel = keras.Variable(start, dtype="float32", name="kernel")
    optimizer.build([kernel])
    apply = lambda g: optimizer.apply([g], [kernel])  # noqa: E731
    if in_graph:
        apply = tf.function(apply)
    expected = by_hand(config, gradients, start, 9)
    for gradient, (value, average) in zip(gradients, expected, strict=True):
        apply(tf.constant(gradient * scale, "float32"))
        np.testing.assert_allclose(npy(kernel), value, rtol=1e-4, atol=1e-5)
        (found,) = inner._model_variables_moving_average
        np.testing.assert_allclose(npy(found), average, 1e-4, 1e-5)


@pytest.mark.slow
def test_xla_and_graph_train_alike(toy_backbone):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 64, 64, 3)).astype("float32")
    y = rng.integers(0, 3, (2, 64, 64)).astype("int32")
    y[:, :9] = 255
    losses = {}
    for jit in (False, True):
        keras.utils.set_random_seed(7)
        model = tiny_model(toy_backbone(padding=1))
        config = TrainConfig(total_steps=10, jit_compile=jit)
        said = compile_model(model, config, 10, ignore_label=255)
        assert f"XLA {'on' if jit else 'off'}" in said
        losses[jit] = [
            float(model.train_on_batch(x, y, return_dict=True)["loss"])
            for _ in range(10)
        ]
        assert model.jit_compile is jit
    assert losses[False][-1] < losses[False][0] - 0.05
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-3)


def test_auto_means_graph_without_a_gpu():
    on, why = resolve_jit("auto")
    assert on is False
    assert "no GPU" in why
    assert resolve_jit(True)[0] is True
