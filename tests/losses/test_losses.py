"""What every loss must do, against NumPy in float64."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ON_TENSORFLOW, npy, tensorflow_only, value_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_aspp.losses import (
    CrossEntropy,
    Dice,
    Distillation,
    LovaszSoftmax,
    Tversky,
    WeightedSum,
)

CLASSES = 4
WEIGHTS = (0.5, 2.0, 1.0, 3.0)
SHAPE = (2, 7, 5)
EXAMPLES = 6 if ON_TENSORFLOW else 1  # JAX compiles for each shape


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def np_cross_entropy(
    labels,
    logits,
    class_weights=(1,) * CLASSES,
    focal_gamma=0,
    label_smoothing=0,
    hard_share=1,
    boundary_weight=1,
    boundary_px=2,
):
    """Pixel by pixel."""
    losses, weights = [], []
    p = softmax(logits.astype("float64"))
    for b, y, x in np.argwhere(labels != 255):
        label, all_p = labels[b, y, x], p[b, y, x]
        target = np.full(CLASSES, label_smoothing / CLASSES)
        target[label] += 1 - label_smoothing
        loss = -(target * np.log(all_p)).sum()
        losses.append(loss * (1 - all_p[label]) ** focal_gamma)
        rows, columns = (
            slice(max(n - boundary_px, 0), n + boundary_px + 1) for n in (y, x)
        )
        near = set(labels[b, rows, columns].ravel()) - {255, label}
        weights.append(class_weights[label] * (boundary_weight if near else 1))
    losses, weights = np.array(losses), np.array(weights)
    least = np.sort(losses)[-int(np.ceil(hard_share * len(losses)))]
    losses, weights = losses[losses >= least], weights[losses >= least]
    return (losses * weights).sum() / weights.sum()


def np_tversky(
    labels, logits, alpha=0.3, beta=0.7, class_weights=(1,) * CLASSES
):
    valid = labels != 255
    p, labels = softmax(logits.astype("float64"))[valid], labels[valid]
    losses, weights = [], []
    for c in set(labels):
        hit = p[labels == c, c].sum()
        false = p[labels != c, c].sum()
        missed = (1 - p[labels == c, c]).sum()
        losses.append(1 - hit / (hit + alpha * false + beta * missed))
        weights.append(class_weights[c])
    return np.average(losses, weights=weights)


def np_dice(labels, logits, **kwargs):
    return np_tversky(labels, logits, 0.5, 0.5, **kwargs)


def np_lovasz(labels, logits, class_weights=(1,) * CLASSES):
    """The Lovász extension by its definition, from sets of wrong pixels."""
    valid = labels != 255
    p, labels = softmax(logits.astype("float64"))[valid], labels[valid]
    losses, weights = [], []
    for c in set(labels):
        truth = labels == c
        errors = np.abs(truth - p[:, c])
        wrong, before, loss = np.zeros(len(labels), bool), 0.0, 0.0
        for i in np.argsort(-errors):
            wrong[i] = True
            found = truth ^ wrong
            now = 1 - (truth & found).sum() / (truth | found).sum()
            loss, before = loss + errors[i] * (now - before), now
        losses.append(loss)
        weights.append(class_weights[c])
    return np.average(losses, weights=weights)


def np_sum(labels, logits):
    return np_cross_entropy(labels, logits) + 0.5 * np_dice(labels, logits)


# name: loss, its oracle, arguments of both
LOSSES = {
    "cross_entropy": (CrossEntropy, np_cross_entropy, {}),
    "class_weights": (
        CrossEntropy,
        np_cross_entropy,
        {"class_weights": WEIGHTS},
    ),
    "focal": (CrossEntropy, np_cross_entropy, {"focal_gamma": 2.0}),
    "focal_below_1": (CrossEntropy, np_cross_entropy, {"focal_gamma": 0.5}),
    "smooth": (CrossEntropy, np_cross_entropy, {"label_smoothing": 0.2}),
    "hard": (CrossEntropy, np_cross_entropy, {"hard_share": 0.3}),
    "boundary": (
        CrossEntropy,
        np_cross_entropy,
        {"boundary_weight": 5.0, "boundary_px": 1},
    ),
    "all_of_it": (
        CrossEntropy,
        np_cross_entropy,
        {
            "class_weights": WEIGHTS,
            "focal_gamma": 1.5,
            "label_smoothing": 0.1,
            "hard_share": 0.6,
            "boundary_weight": 3.0,
        },
    ),
    "tversky": (Tversky, np_tversky, {"alpha": 0.2, "beta": 0.9}),
    "weighted_tversky": (Tversky, np_tversky, {"class_weights": WEIGHTS}),
    "dice": (Dice, np_dice, {}),
    "weighted_dice": (Dice, np_dice, {"class_weights": WEIGHTS}),
    "lovasz": (LovaszSoftmax, np_lovasz, {}),
    "weighted_lovasz": (LovaszSoftmax, np_lovasz, {"class_weights": WEIGHTS}),
    "sum": (
        lambda: WeightedSum([CrossEntropy(), Dice()], [1.0, 0.5]),
        np_sum,
        {},
    ),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def build(name):
    kind, _, arguments = LOSSES[name]
    return kind(**arguments)


def batch(seed=0, shape=SHAPE, ignored=0.3):
    """Labels in patches, some ignored, and logits."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES - 1, shape)  # one class never occurs
    labels[:, : shape[1] // 2] = labels[:, :1, :1]
    labels[rng.random(shape) < ignored] = 255
    labels[0, 0, 0] = 1  # not all are ignored
    logits = rng.normal(0, 2, (*shape, CLASSES)).astype("float32")
    return labels.astype("int32"), logits


def with_gradient(loss, labels, logits):
    value, (gradient,) = value_and_gradients(lambda x: loss(labels, x), logits)
    return value, gradient


def test_lovasz_without_sorting_equals_sorting():
    # So many pixels that most have company of nearly their error.
    labels, logits = batch(seed=3, shape=(4, 96, 96))
    labels[labels == 3] = 255
    truth = np.eye(CLASSES)[labels[labels != 255]]
    errors = np.abs(truth - softmax(logits.astype("float64"))[labels != 255])
    expected = []
    for c in range(3):
        order = np.argsort(-errors[:, c])
        wanted, error = truth[order, c], errors[order, c]
        left = wanted.sum() - np.cumsum(wanted)
        jaccard = 1 - left / (wanted.sum() + np.cumsum(1 - wanted))
        expected.append((error * np.diff(jaccard, prepend=0)).sum())
    assert float(LovaszSoftmax()(labels, logits)) == pytest.approx(
        np.mean(expected), abs=1e-6
    )


@every_loss
# JAX compiles each operation for each shape.
@settings(
    max_examples=6 if ON_TENSORFLOW else 1, deadline=None, derandomize=True
)
@given(
    seed=st.integers(0, 1000),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    ignored=st.sampled_from([0.0, 0.3, 0.95]),
)
def test_equals_numpy(name, seed, shape, ignored):
    _, oracle, arguments = LOSSES[name]
    labels, logits = batch(seed, shape, ignored)
    expected = oracle(labels, logits, **arguments)
    found = float(build(name)(labels, logits))
    assert found == pytest.approx(expected, rel=2e-5, abs=2e-6)


@every_loss
def test_gradient_equals_finite_differences(name):
    _, oracle, arguments = LOSSES[name]
    labels, logits = batch()
    gradient = npy(with_gradient(build(name), labels, logits)[1])
    rng = np.random.default_rng(1)
    for _ in range(3):
        direction = rng.normal(size=logits.shape)
        step = 1e-6 * direction
        ahead, behind = (
            oracle(labels, logits.astype("float64") + s, **arguments)
            for s in (step, -step)
        )
        slope = (ahead - behind) / 2e-6
        assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-3)


@every_loss
def test_ignored_pixels_count_for_nothing(name):
    labels, logits = batch()
    value, gradient = with_gradient(build(name), labels, logits)
    ignored = labels == 255
    assert ignored.sum() > 10
    assert not npy(gradient)[ignored].any()
    assert npy(gradient)[~ignored].any()
    logits[ignored] = 50.0 * np.arange(CLASSES)
    assert float(build(name)(labels, logits)) == pytest.approx(
        float(value), rel=1e-6
    )


@every_loss
def test_a_batch_without_valid_pixels_is_0(name):
    labels, logits = batch()
    value, gradient = with_gradient(
        build(name), np.full_like(labels, 255), logits
    )
    assert float(value) == 0.0
    assert not npy(gradient).any()


@every_loss
def test_extreme_logits_stay_finite(name):
    labels, logits = batch()
    for scale in (0.0, 1e4):
        value, gradient = with_gradient(build(name), labels, logits * scale)
        assert np.isfinite(float(value))
        assert np.isfinite(npy(gradient)).all()


@every_loss
def test_a_loss_of_no_numbers_is_none(name):
    labels, logits = batch()
    assert np.isnan(float(build(name)(labels, logits * np.nan)))


# Smoothing wants no certainty.
@pytest.mark.parametrize(
    "name", sorted(LOSSES.keys() - {"smooth", "all_of_it"})
)
def test_certain_and_right_costs_nothing(name):
    labels, _ = batch()
    logits = 100.0 * np.eye(CLASSES, dtype="float32")[labels % 255]
    assert float(build(name)(labels, logits)) == pytest.approx(0, abs=1e-5)


@tensorflow_only
@pytest.mark.slow  # compiling them takes seconds each
@every_loss
def test_xla_computes_the_same(name):
    labels, logits = batch()
    loss = build(name)
    plain, compiled = (
        tf.function(lambda y, x: with_gradient(loss, y, x), jit_compile=jit)(
            labels, tf.constant(logits)
        )
        for jit in (False, True)
    )
    for a, b in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(npy(b), npy(a), rtol=1e-4, atol=1e-6)


@every_loss
@pytest.mark.parametrize("floatx", ["float64", "float16"])
def test_losses_are_float32_whatever_floatx_is(name, floatx):
    labels, logits = batch()
    weights, _ = weights_of(labels, SHAPE)
    loss = build(name)
    plain = [float(loss(labels, logits, w)) for w in (None, weights)]
    before = keras.config.floatx()
    keras.config.set_floatx(floatx)
    try:
        loss = build(name)
        found = [loss(labels, logits, w) for w in (None, weights)]
    finally:
        keras.config.set_floatx(before)
    assert [keras.backend.standardize_dtype(x.dtype) for x in found] == [
        "float32"
    ] * 2
    assert [float(x) for x in found] == pytest.approx(plain, rel=1e-6)


@tensorflow_only
@every_loss
def test_sizes_may_be_open(name):
    """As in `fit`, whose last batch may be smaller."""
    labels, logits = batch()
    loss = build(name)
    open_sizes = (None, None, None)
    signature = (
        tf.TensorSpec(open_sizes, labels.dtype),
        tf.TensorSpec((*open_sizes, CLASSES), "float32"),
    )
    found = tf.function(loss, input_signature=signature)(labels, logits)
    assert float(found) == pytest.approx(float(loss(labels, logits)), rel=1e-5)


@every_loss
def test_an_empty_batch_costs_nothing(name):
    labels, logits = batch()
    assert float(build(name)(labels[:0], logits[:0])) == 0.0


@every_loss
def test_config_round_trip(name):
    loss = build(name)
    config = keras.saving.serialize_keras_object(loss)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(loss)
    assert copy.get_config() == loss.get_config()
    labels, logits = batch()
    assert float(copy(labels, logits)) == float(loss(labels, logits))


@every_loss
def test_bfloat16_logits_are_summed_in_float32(name):
    labels, logits = batch()
    rounded = ops.cast(logits, "bfloat16")
    value = build(name)(labels, rounded)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert float(value) == float(
        build(name)(labels, ops.cast(rounded, "float32"))
    )


def test_another_ignore_label():
    labels, logits = batch()
    other = np.where(labels == 255, 17, labels)
    assert float(Dice(17)(other, logits)) == float(Dice()(labels, logits))


def test_plain_is_keras():
    labels, logits = batch()
    theirs = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=255
    )
    assert float(CrossEntropy()(labels, logits)) == pytest.approx(
        float(theirs(labels, logits)), rel=1e-6
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: CrossEntropy(hard_share=0.0), "hard_share=0.0"),
        (lambda: CrossEntropy(focal_gamma=-1), "focal_gamma=-1"),
        (lambda: CrossEntropy(label_smoothing=1.0), "label_smoothing=1.0"),
        (lambda: CrossEntropy(boundary_px=0), "boundary_px=0"),
        (lambda: CrossEntropy(boundary_weight=-2), "boundary_weight=-2"),
        (lambda: CrossEntropy(class_weights=(1, -1)), r"\(1, -1\)"),
        (lambda: Tversky(alpha=-0.1), "alpha=-0.1"),
        (lambda: WeightedSum([], []), "0 losses"),
        (lambda: WeightedSum([Dice()], [1, 2]), r"1 losses, weights=\[1, 2\]"),
        (
            lambda: Dice(class_weights=(1, 2))(*batch()),
            "2 weights for 4 classes",
        ),
        (
            lambda: Dice()(np.eye(4)[batch()[0] % 4], batch()[1]),
            r"shapes \(2, 7, 5, 4\)",
        ),
        (lambda: CrossEntropy(class_weights=(1, np.nan)), "nan"),
        # Iterated, a dict would be its keys.
        (lambda: Dice(class_weights={0: 5, 1: 1}), r"class_weights=\{0: 5"),
        (lambda: Dice(class_weights="512"), "class_weights='512'"),
        (lambda: Dice(ignore_label=None), "ignore_label=None"),
        (lambda: Dice()(batch()[0][:1], batch()[1]), r"shapes \(1, 7, 5\)"),
        (
            lambda: Dice()(batch()[0], batch()[1][:, :1, :1]),
            r"shapes \(2, 7, 5\) and \(2, 1, 1, 4\)",
        ),
        (lambda: Distillation()(*batch()), r"1 of shapes \[\(2, 7, 5, 4\)\]"),
        (
            lambda: Distillation()(batch()[0], [np.zeros((2, 7, 5, 4))] * 3),
            "3 of shapes",
        ),
        (
            lambda: Distillation()(
                batch()[0], (batch()[1], np.zeros((2, 7, 5, 1)))
            ),
            "2 of shapes",
        ),
        (
            lambda: Distillation()(
                batch()[0], (batch()[1], np.zeros((2, 1, 5, 4)))
            ),
            r"shapes \(2, 7, 5\) and \(2, 1, 5, 4\)",
        ),
        (
            lambda: Dice()(*batch(), np.ones((2, 7))),
            r"sample_weight of shape \(2, 7\) for labels of shape \(2, 7, 5\)",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        make()


def weights_of(labels, shape):
    """Multiples of a half, 0 among them; the shape broadcasts to labels'."""
    rng = np.random.default_rng(7)
    weights = rng.choice([0.0, 0.5, 1.0, 2.0], shape).astype("float32")
    weights.ravel()[:2] = 0.5, 2.0
    axes = len(labels.shape) - len(shape)
    each = weights.reshape(*shape, *[1] * axes) * np.ones(labels.shape)
    return weights, each


# Neighbors are not of single pixels.
@pytest.mark.parametrize(
    "name", sorted(LOSSES.keys() - {"boundary", "all_of_it"})
)
@pytest.mark.parametrize("shape", [SHAPE, (2,)])
def test_a_weight_is_a_number_of_pixels(name, shape):
    """Against the oracle of a batch in which pixels occur several times."""
    _, oracle, arguments = LOSSES[name]
    labels, logits = batch()
    weights, each = weights_of(labels, shape)
    times = np.where(labels == 255, 0, 2 * each).astype(int).ravel()
    expected = oracle(
        np.repeat(labels.reshape(1, 1, -1), times, axis=2),
        np.repeat(logits.reshape(1, 1, -1, CLASSES), times, axis=2),
        **arguments,
    )
    expected *= each[labels != 255].mean()
    found = build(name)(labels, logits, sample_weight=weights)
    assert float(found) == pytest.approx(expected, rel=2e-5)
    assert tuple(found.shape) == ()


@every_loss
def test_weights_of_1_and_2(name):
    labels, logits = batch()
    loss, ones = build(name), np.ones(SHAPE, "float32")
    plain, gradient = with_gradient(loss, labels, logits)
    for factor in (1.0, 2.0):
        value, doubled = with_gradient(
            lambda y, x, w=factor * ones: loss(y, x, w), labels, logits
        )
        assert float(value) == pytest.approx(factor * float(plain), rel=1e-5)
        np.testing.assert_allclose(
            npy(doubled), factor * npy(gradient), rtol=2e-3, atol=1e-7
        )


@every_loss
def test_pixels_of_weight_0_have_no_influence(name):
    labels, logits = batch()
    weights = np.ones(SHAPE, "float32")
    weights[0, 3:] = weights[1, 2, 2:] = 0
    other, moved = labels.copy(), logits.copy()
    hidden = (weights == 0) & (labels != 255)
    other[hidden] = 128
    moved[hidden] += 3 * np.arange(CLASSES)
    loss = build(name)
    value, gradient = with_gradient(
        lambda y, x: loss(y, x, weights), labels, logits
    )
    assert float(loss(other, moved, weights)) == pytest.approx(
        float(value), rel=1e-6
    )
    assert not npy(gradient)[hidden].any() and npy(gradient).any()
    assert float(loss(labels, logits, 0 * weights)) == 0.0


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean"])
def test_weighted_is_keras(reduction):
    labels, logits = batch()
    weights, each = weights_of(labels, SHAPE)
    theirs = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=255, reduction=reduction
    )
    value, gradient = with_gradient(
        lambda y, x: CrossEntropy()(y, x, weights), labels, logits
    )
    expected, slope = with_gradient(
        lambda y, x: theirs(y, x, weights), labels, logits
    )
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(npy(gradient), npy(slope), atol=1e-7)


def test_a_sum_gives_weights_of_images_to_losses_of_keras():
    labels, logits = batch()
    theirs = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=255
    )
    weights = np.array([0.5, 2.0])
    assert float(
        WeightedSum([theirs], [3.0])(labels, logits, weights)
    ) == pytest.approx(3 * float(CrossEntropy()(labels, logits, weights)))


@every_loss
def test_labels_with_a_channel(name):
    labels, logits = batch()
    loss = build(name)
    assert float(loss(labels[..., None], logits)) == float(loss(labels, logits))


@functools.cache  # values of one dtype share a compilation
def compiled_step(name, jit_compile):
    loss = build(name)
    return tf.function(
        lambda y, x: with_gradient(loss, y, x), jit_compile=jit_compile
    )


@pytest.mark.parametrize(
    "name, value",
    [
        *[("cross_entropy", v) for v in (128, -1, CLASSES, 0.5, np.nan)],
        *[(name, 128) for name in ("dice", "tversky", "lovasz", "sum")],
        ("dice", 2.0**32),
    ],
)
def test_labels_of_no_class_make_loss_and_gradient_nan(name, value):
    labels, logits = batch()
    labels = labels.astype("float64" if value != 128 else "uint8")
    labels[1, 2, 3] = value
    found = []
    # The check is common to all; how numbers become integers is the compiler's.
    compiled = ON_TENSORFLOW and (name == "cross_entropy" or value > 128)
    logits = ops.convert_to_tensor(logits)
    for jit in (False, True) if compiled else ():
        found.append(compiled_step(name, jit)(labels, logits))
    found.append(with_gradient(build(name), labels, logits))
    for loss_value, gradient in found:
        assert np.isnan(npy(loss_value))
        assert np.isnan(npy(gradient)[1, 2, 3]).any()


def test_labels_of_no_class_make_distillation_nan():
    labels, logits = batch()
    labels[1, 2, 3] = CLASSES
    value, gradient = with_gradient(
        lambda y, x: Distillation()(y, [x, 2 * logits]), labels, logits
    )
    assert np.isnan(npy(value))
    assert np.isnan(npy(gradient)[1, 2, 3]).any()
    labels[1, 2, 3] = 255
    assert np.isfinite(float(Distillation()(labels, [logits, 2 * logits])))


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "lovasz"])
def test_weights_below_0_make_the_loss_nan(name):
    labels, logits = batch()
    weights = np.ones(SHAPE)
    weights[0, 0, 0] = -1
    assert np.isnan(float(build(name)(labels, logits, weights)))


@tensorflow_only
@pytest.mark.parametrize(
    "shape, jit_compile",
    [
        ((4, 6, 5), False),
        ((4,), False),
        pytest.param((4,), True, marks=pytest.mark.slow),  # XLA compiles
    ],
)
def test_fit_weighs_as_with_the_loss_of_keras(shape, jit_compile):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 6, 5, 2)).astype("float32")
    y = rng.choice([0, 1, 2, 255], (4, 6, 5))
    w, each = weights_of(y, shape)
    trained = []
    for loss, weights in (
        (CrossEntropy(), w),
        (
            keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, ignore_class=255
            ),
            each,
        ),
    ):
        keras.utils.set_random_seed(3)
        inputs = keras.Input((6, 5, 2))
        model = keras.Model(inputs, keras.layers.Conv2D(3, 1)(inputs))
        model.compile(keras.optimizers.SGD(1.0), loss, jit_compile=jit_compile)
        history = model.fit(x, y, 2, 2, 0, sample_weight=weights)
        model.train_on_batch(x, y, weights)
        score = model.evaluate(x, y, 2, 0, sample_weight=weights)
        trained.append([*history.history["loss"], score, *model.get_weights()])
    for ours, theirs in zip(*trained, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
