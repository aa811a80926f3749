"""The Lovász hinge of one object, against NumPy in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import npy, tensorflow_only, value_and_gradients

from keras_aspp.losses import LovaszHinge

SHAPE = (2, 5, 7)


def batch(seed=0, shape=SHAPE, spread=2.5):
    """Labels, some ignored, and logits whose errors differ clearly."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 255], shape, p=[0.5, 0.25, 0.25])
    labels[0, 0, 0] = 1
    count = labels.size
    # Some errors are 0; the others keep a distance of spread / count.
    errors = rng.permutation(np.linspace(-0.4, spread, count)).reshape(shape)
    score = (1 - errors) * np.where(labels == 1, 1, -1)
    background = rng.normal(0, 3, shape)
    logits = np.stack([background, background + score], -1)
    return labels.astype("int32"), logits.astype("float32")


def np_hinge(labels, logits):
    """The Lovász extension by its definition, from sets of wrong pixels."""
    valid = labels != 255
    logits = logits[valid].astype("float64")
    truth = labels[valid] == 1
    if not truth.any():
        return 0.0
    score = logits[:, 1] - logits[:, 0]
    errors = np.maximum(0, 1 - np.where(truth, score, -score))
    wrong, before, loss = np.zeros(len(truth), bool), 0.0, 0.0
    for i in np.argsort(-errors):
        wrong[i] = True
        found = truth ^ wrong
        now = 1 - (truth & found).sum() / (truth | found).sum()
        loss, before = loss + errors[i] * (now - before), now
    return loss


def with_gradient(loss, labels, logits, *weights):
    value, (gradient,) = value_and_gradients(
        lambda x: loss(labels, x, *weights), logits
    )
    return float(value), npy(gradient)


@pytest.mark.parametrize("seed", range(4))
def test_equals_numpy(seed):
    labels, logits = batch(seed)
    expected = np_hinge(labels, logits)
    assert expected > 0.5
    assert float(LovaszHinge()(labels, logits)) == pytest.approx(
        expected, rel=1e-5
    )


def test_errors_without_distance_are_nearly_sorted():
    labels, logits = batch(5, (4, 64, 64), spread=9)
    truth = labels[labels != 255] == 1
    score = np.diff(logits[labels != 255].astype("float64"))[:, 0]
    errors = np.maximum(0, 1 - np.where(truth, score, -score))
    order = np.argsort(-errors)
    left = truth.sum() - np.cumsum(truth[order])
    jaccard = 1 - left / (truth.sum() + np.cumsum(~truth[order]))
    expected = (errors[order] * np.diff(jaccard, prepend=0)).sum()
    assert float(LovaszHinge()(labels, logits)) == pytest.approx(
        expected, rel=1e-4
    )


def test_gradient_equals_finite_differences():
    labels, logits = batch(1)
    _, gradient = with_gradient(LovaszHinge(), labels, logits)
    rng = np.random.default_rng(1)
    for _ in range(3):
        direction = rng.normal(size=logits.shape)
        ahead, behind = (
            np_hinge(labels, logits.astype("float64") + step)
            for step in (1e-6 * direction, -1e-6 * direction)
        )
        slope = (ahead - behind) / 2e-6
        assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-3)


def test_ignored_pixels_count_for_nothing():
    labels, logits = batch()
    value, gradient = with_gradient(LovaszHinge(), labels, logits)
    ignored = labels == 255
    assert ignored.sum() > 10
    assert not gradient[ignored].any() and gradient[~ignored].any()
    logits[ignored] = 50.0
    assert float(LovaszHinge()(labels, logits)) == value
    other = np.where(ignored, 9, labels)
    assert float(LovaszHinge(9)(other, logits)) == value


@pytest.mark.parametrize("label", [0, 255])
def test_a_batch_without_the_object_is_0(label):
    labels, logits = batch()
    value, gradient = with_gradient(
        LovaszHinge(), np.full_like(labels, label), logits
    )
    assert value == 0.0 and not gradient.any()


def test_certain_and_right_costs_nothing():
    labels, _ = batch()
    logits = 9.0 * np.eye(2, dtype="float32")[labels % 255]
    assert float(LovaszHinge()(labels, logits)) == 0.0
    # All wrong by a score of 9: the union of errors is everything.
    wrong = float(LovaszHinge()(labels, -logits))
    assert wrong == pytest.approx(10, rel=1e-5)


def test_extreme_logits_stay_finite_and_no_number_stays_none():
    labels, logits = batch()
    value, gradient = with_gradient(LovaszHinge(), labels, logits * 1e6)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert np.isnan(float(LovaszHinge()(labels, logits * np.nan)))
    labels[1, 2, 3] = 2
    assert np.isnan(float(LovaszHinge()(labels, logits)))


@pytest.mark.parametrize("shape", [SHAPE, (2,)])
def test_a_weight_is_a_number_of_pixels(shape):
    labels, logits = batch()
    weights = np.random.default_rng(7).choice([0.0, 0.5, 1.0, 2.0], shape)
    weights.ravel()[:2] = 0.5, 2.0
    each = weights.reshape(*shape, *[1] * (3 - len(shape))) * np.ones(SHAPE)
    times = np.where(labels == 255, 0, 2 * each).astype(int).ravel()
    expected = np_hinge(
        np.repeat(labels.ravel(), times),
        np.repeat(logits.reshape(-1, 2), times, axis=0),
    )
    expected *= each[labels != 255].mean()
    found = LovaszHinge()(labels, logits, weights)
    assert float(found) == pytest.approx(expected, rel=1e-4)


@tensorflow_only
@pytest.mark.slow  # compiling takes seconds
def test_xla_computes_the_same():
    labels, logits = batch()
    loss = LovaszHinge()

    def step(y, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = loss(y, x)
        return value, tape.gradient(value, x)

    plain, compiled = (
        tf.function(step, jit_compile=jit)(labels, tf.constant(logits))
        for jit in (False, True)
    )
    for a, b in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(npy(b), npy(a), rtol=1e-4, atol=1e-6)


def test_config_round_trip():
    loss = LovaszHinge(9, name="hinge")
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert type(copy) is LovaszHinge
    assert copy.get_config() == {"ignore_label": 9, "name": "hinge"}


def test_logits_of_other_than_two_classes_are_refused():
    labels, logits = batch()
    with pytest.raises(ValueError, match="Received: 1 classes"):
        LovaszHinge()(labels, logits[..., :1])
