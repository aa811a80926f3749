"""ConfusionMatrix against a NumPy count."""

import keras
import numpy as np
import pytest
from helpers import npy, tensorflow_only
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_aspp.metrics import ConfusionMatrix

NUMBERS = (
    "mean_iou",
    "pixel_accuracy",
    "mean_accuracy",
    "frequency_weighted_iou",
)


def count(labels, predictions, num_classes, ignore_label):
    matrix = np.zeros((num_classes, num_classes), "int64")
    for label, prediction in zip(
        labels.ravel(), predictions.ravel(), strict=True
    ):
        if label != ignore_label:
            matrix[label, prediction] += 1
    return matrix


def numbers_of(matrix):
    """Every number, class by class, from its definition."""
    ious, accuracies, weighted = [], [], 0.0
    for k in range(len(matrix)):
        labelled, predicted = matrix[k].sum(), matrix[:, k].sum()
        union = labelled + predicted - matrix[k, k]
        ious.append(matrix[k, k] / union if union else np.nan)
        if labelled:
            accuracies.append(matrix[k, k] / labelled)
            weighted += labelled * ious[-1]
    if not matrix.sum():
        return np.array(ious), dict.fromkeys(NUMBERS, np.nan)
    return np.array(ious), {
        "mean_iou": np.nanmean(ious),
        "pixel_accuracy": np.trace(matrix) / matrix.sum(),
        "mean_accuracy": np.mean(accuracies),
        "frequency_weighted_iou": weighted / matrix.sum(),
    }


def check(metric, labels, predictions):
    expected = count(
        labels, predictions, metric.num_classes, metric.ignore_label
    )
    np.testing.assert_array_equal(metric.matrix(), expected)
    ious, numbers = numbers_of(expected)
    np.testing.assert_allclose(metric.per_class_iou(), ious, rtol=1e-12)
    for name, value in numbers.items():
        np.testing.assert_allclose(
            getattr(metric, name)(), value, rtol=1e-12, err_msg=name
        )
    np.testing.assert_allclose(
        npy(metric.result()), numbers["mean_iou"], rtol=1e-5
    )


def scores_of(predictions, num_classes, rng):
    """Scores whose arg max is `predictions`."""
    scores = rng.uniform(-1, 1, (*predictions.shape, num_classes))
    np.put_along_axis(scores, predictions[..., None], 2, axis=-1)
    return scores.astype("float32")


@given(
    seed=st.integers(0, 2**31),
    num_classes=st.integers(1, 7),
    ignore_label=st.sampled_from([255, 0, 3, -1]),
    as_scores=st.booleans(),
    batches=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_any_labels(seed, num_classes, ignore_label, as_scores, batches):
    rng = np.random.default_rng(seed)
    metric = ConfusionMatrix(num_classes, ignore_label)
    labels = rng.integers(0, num_classes, (batches, 2, 5, 4))
    labels[rng.uniform(size=labels.shape) < 0.3] = ignore_label
    predictions = rng.integers(0, num_classes, labels.shape)
    for a, b in zip(labels, predictions, strict=True):
        if as_scores:
            b = scores_of(b, num_classes, rng)
        metric.update_state(a.astype("int32"), b)
    check(metric, labels, predictions)


def test_rows_are_labels():
    metric = ConfusionMatrix(3)
    metric.update_state([[0, 0, 1, 255]], np.array([[2, 2, 1, 1]]))
    np.testing.assert_array_equal(
        metric.matrix(), [[0, 0, 2], [0, 1, 0], [0, 0, 0]]
    )
    assert metric.matrix().dtype == "int64"


def test_an_absent_class_is_left_out_of_the_mean():
    metric = ConfusionMatrix(4)
    metric.update_state([[0, 0, 1, 1]], np.array([[0, 0, 1, 0]]))
    np.testing.assert_allclose(
        metric.per_class_iou(), [2 / 3, 1 / 2, np.nan, np.nan]
    )
    assert metric.mean_iou() == pytest.approx(7 / 12)
    assert float(metric.result()) == pytest.approx(7 / 12)
    # Predicted but never labelled: it counts, with 0, but has no accuracy.
    metric.update_state([[0]], np.array([[3]]))
    assert metric.mean_iou() == pytest.approx((2 / 4 + 1 / 2 + 0) / 3)
    assert metric.mean_accuracy() == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_nothing_counted_is_nan():
    metric = ConfusionMatrix(3)
    for _ in range(2):
        assert np.isnan(npy(metric.result()))
        assert np.isnan(metric.per_class_iou()).all()
        for name in NUMBERS:
            assert np.isnan(getattr(metric, name)()), name
        metric.update_state([[255, 255]], np.array([[0, 1]]))
    assert metric.matrix().sum() == 0


def test_reset():
    metric = ConfusionMatrix(3)
    metric.update_state([[0, 1]], np.array([[0, 1]]))
    metric.reset_state()
    assert metric.matrix().sum() == 0


@tensorflow_only  # JAX counts in int32
def test_counts_beyond_float32():
    # 2**24 + 1 is no float32: a sum in float32 would lose the last pixel.
    metric = ConfusionMatrix(2)
    metric.total_cm.assign([[2**24, 0], [0, 2**40]])
    metric.update_state([[0]], np.array([[0]]))
    np.testing.assert_array_equal(metric.matrix(), [[2**24 + 1, 0], [0, 2**40]])


def test_counts_that_int32_cannot_hold():
    metric = ConfusionMatrix(2)
    metric.total_cm.assign([[-(2**31), 0], [0, 0]])  # 2**31 on JAX
    with pytest.raises(OverflowError, match="Evaluate on TensorFlow"):
        metric.matrix()


@pytest.mark.parametrize("jit_compile", [True, False])
def test_under_fit(jit_compile):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (4, 6, 5))
    labels[rng.uniform(size=labels.shape) < 0.3] = 255
    predictions = rng.integers(0, 3, labels.shape)
    scores = scores_of(predictions, 3, rng)
    # A layer that changes nothing, so that the predictions are known.
    layer = keras.layers.Rescaling(1.0)
    inputs = keras.Input((6, 5, 3))
    model = keras.Model(inputs, layer(inputs))
    metric = ConfusionMatrix(3)
    model.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=255
        ),
        metrics=[metric],
        jit_compile=jit_compile,
    )
    logs = model.evaluate(
        scores,
        labels.astype("int32"),
        batch_size=3,
        verbose=0,
        return_dict=True,
    )
    check(metric, labels, predictions)
    assert logs["mean_iou"] == pytest.approx(metric.mean_iou(), rel=1e-5)


def test_config_round_trip():
    metric = ConfusionMatrix(5, ignore_label=7, name="iou", dtype="float64")
    config = keras.saving.serialize_keras_object(metric)
    copy = keras.saving.deserialize_keras_object(config)
    assert isinstance(copy, ConfusionMatrix)
    assert copy.get_config() == metric.get_config()
    assert (copy.num_classes, copy.ignore_label, copy.name) == (5, 7, "iou")
    assert copy.dtype == "float64"
    copy.update_state([[7, 4]], np.array([[4, 4]]))
    assert copy.matrix().sum() == 1
