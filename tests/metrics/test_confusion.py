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
    num_classes=st.integers(2, 7),
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
    assert np.isnan(metric.result())
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


def one_hot(labels, num_classes):
    """Ignored pixels are zeros, as `tf.one_hot(255, ...)` makes them."""
    return (labels[..., None] == np.arange(num_classes)).astype("float32")


@pytest.mark.parametrize("width", [5, 3])  # 3 is the number of classes too
@pytest.mark.parametrize(
    "form", ["map", "channel", "float", "one_hot", "int_one_hot", "uint8"]
)
def test_every_form_of_labels_counts_the_same(form, width):
    rng = np.random.default_rng(2)
    labels = rng.choice([0, 1, 2, 255], (3, 4, width))
    predictions = rng.integers(0, 3, labels.shape)
    given = {
        "map": labels,
        "channel": labels[..., None],
        "float": labels.astype("float32"),
        "one_hot": one_hot(labels, 3),
        "int_one_hot": one_hot(labels, 3).astype("int64"),
        "uint8": labels.astype("uint8"),
    }[form]
    for scale in (0.5, 5.0):
        scores = scale * scores_of(predictions, 3, rng)
        for predicted in (scores, predictions, predictions[..., None]):
            metric = ConfusionMatrix(3)
            metric.update_state(given, predicted)
            check(metric, labels, predictions)


@pytest.mark.parametrize(
    "labels, predicted, message",
    [
        ((2, 4, 5, 4), (2, 4, 5, 3), r"float32 \(2, 4, 5, 4\), y_pred"),
        ((2, 4, 5), (2, 4, 5), r"y_pred float32 \(2, 4, 5\)"),
        ((2, 4, 3), (2, 4, 3), r"y_pred float32 \(2, 4, 3\)"),
        ((2, 4, 5), (2, 4, 5, 4), r"y_pred float32 \(2, 4, 5, 4\)"),
        ((2, 4, 6), (2, 4, 5, 3), r"y_true float32 \(2, 4, 6\)"),
    ],
)
def test_other_forms_are_refused(labels, predicted, message):
    with pytest.raises(ValueError, match=f"Received: num_classes=3.*{message}"):
        ConfusionMatrix(3).update_state(
            np.zeros(labels, "float32"), np.zeros(predicted, "float32")
        )


def updated(metric, jit, *arguments):
    """The metric after an update, eager (None), in a graph, or under XLA."""
    if jit is None:
        metric.update_state(*arguments)
        return metric
    import tensorflow as tf

    step = tf.function(lambda *x: metric.update_state(*x), jit_compile=jit)
    step(*map(tf.constant, arguments))
    return metric


WAYS = [
    None,
    pytest.param(False, marks=tensorflow_only),
    pytest.param(True, marks=tensorflow_only),
]


@pytest.mark.parametrize("jit", WAYS)
@pytest.mark.parametrize("value", [128, -1, 3, 0.5, np.nan])
def test_labels_of_no_class_are_counted_and_reported(jit, value):
    labels = np.array([[[0, 1, value], [255, value, 2]]])
    metric = updated(
        ConfusionMatrix(3), jit, labels, np.zeros((1, 2, 3), "int32")
    )
    assert np.isnan(npy(metric.result()))
    for method in (metric.matrix, metric.per_class_iou, metric.mean_iou):
        with pytest.raises(ValueError, match="2 pixels with other labels, 0"):
            method()
    metric.reset_state()
    metric.update_state([[[0, 1]]], np.array([[[0, 1]]]))
    assert metric.mean_iou() == float(metric.result()) == 1.0


def test_predictions_of_no_class_are_counted_and_reported():
    metric = ConfusionMatrix(3)
    # Where the label is ignored, any prediction is.
    metric.update_state([[[0, 255, 1, 1]]], np.array([[[7, 7, -1, 1]]]))
    assert np.isnan(npy(metric.result()))
    with pytest.raises(ValueError, match="0 .*labels, 2 with other pred"):
        metric.matrix()


@pytest.mark.parametrize("jit", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scores_that_are_nan_are_no_prediction(jit, dtype):
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, (2, 4, 5)).astype("int32")
    predictions = rng.integers(0, 3, labels.shape)
    scores = scores_of(predictions, 3, rng).astype(dtype)
    labels[1, 2, 3] = 255  # where no prediction counts
    scores[1, 2, 3] = np.nan
    metric = updated(ConfusionMatrix(3), jit, labels, scores)
    check(metric, labels, predictions)
    # In each class once, and in all.
    for pixel in np.ndindex(1, 1, 3):
        scores[(*pixel, pixel[-1])] = np.nan
    scores[0, 1] = np.nan
    metric = updated(ConfusionMatrix(3), jit, labels, scores)
    assert np.isnan(npy(metric.result()))
    with pytest.raises(ValueError, match="0 pixels with other labels, 8 with"):
        metric.matrix()


def test_scores_of_one_image_that_are_nan_are_no_prediction():
    metric = ConfusionMatrix(3)
    metric.update_state([[0, 1]], np.float32([[[0, np.nan, 1], [0, 1, 0]]]))
    with pytest.raises(ValueError, match="1 with other predictions"):
        metric.matrix()


def test_several_hot_classes_are_none():
    metric = ConfusionMatrix(3)
    labels = np.array([[[[1, 1, 0], [0, 1, 0]]]])
    metric.update_state(labels, np.array([[[1, 1]]]))
    with pytest.raises(ValueError, match="1 pixels with other labels"):
        metric.matrix()


@pytest.mark.parametrize("jit", WAYS)
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 1), (2,), (2, 1)])
def test_sample_weights_count(jit, shape):
    rng = np.random.default_rng(3)
    labels = rng.choice([0, 1, 2, 255], (2, 3, 4)).astype("int32")
    predictions = rng.integers(0, 3, labels.shape).astype("int32")
    weights = rng.choice([0.0, 0.5, 1.0, 2.5], shape)
    weights.ravel()[0] = 0
    labels[0, 0, 0] = 128  # no matter, for its weight is 0
    metric = updated(ConfusionMatrix(3), jit, labels, predictions, weights)
    each = weights.reshape(2, -1) * np.ones((2, 12 // weights[0].size))
    expected = np.zeros((3, 3))
    for label, predicted, weight in zip(
        labels.ravel(), predictions.ravel(), each.ravel(), strict=True
    ):
        if label < 3:
            expected[label, predicted] += weight
    np.testing.assert_allclose(metric.matrix(), expected, rtol=1e-6)
    assert expected.sum() > 1
    np.testing.assert_allclose(
        npy(metric.result()), numbers_of(expected)[1]["mean_iou"], rtol=1e-5
    )


def test_weights_below_0_are_refused():
    metric = ConfusionMatrix(2)
    metric.update_state([[[0, 1]]], np.array([[[0, 1]]]), [[[1.0, -1.0]]])
    assert np.isnan(npy(metric.result()))
    with pytest.raises(ValueError, match="Received: weights below 0"):
        metric.matrix()


@pytest.mark.parametrize("number", [1, 0, True, 2.0])
def test_one_class_is_no_task(number):
    with pytest.raises(ValueError, match=f"background.*num_classes={number}"):
        ConfusionMatrix(number)


@pytest.mark.parametrize(
    "dtype",
    ["float16", "mixed_bfloat16", "int16", "uint16", "uint8", "bool"],
)
def test_few_bits_do_not_count(dtype):
    with pytest.raises(ValueError, match=f"counts pixels.*dtype='{dtype}'"):
        ConfusionMatrix(2, dtype=dtype)


@pytest.mark.parametrize("dtype", ["int32", "uint32", "float32", "float64"])
def test_other_dtypes_count(dtype):
    metric = ConfusionMatrix(2, dtype=dtype)
    labels = np.zeros((1, 300, 300), "int32")  # more than 16 bits hold
    metric.update_state(labels, labels)
    np.testing.assert_array_equal(metric.matrix(), [[90000, 0], [0, 0]])


def test_a_metric_saved_before_still_loads():
    config = {"num_classes": 3, "ignore_label": 255, "name": "mean_iou"}
    metric = ConfusionMatrix.from_config({**config, "dtype": "int64"})
    metric.update_state([[[0, 1]]], np.array([[[0, 0]]]), [[[0.5, 0.25]]])
    np.testing.assert_array_equal(metric.matrix()[:2, 0], [0.5, 0.25])


def test_no_label_is_ignored_as_in_keras():
    labels, predicted = np.array([[0, 1, 1, 2]]), np.array([[0, 1, 0, 2]])
    ours, theirs = (
        ConfusionMatrix(3, ignore_label=None),
        keras.metrics.MeanIoU(3),
    )
    again = ConfusionMatrix.from_config(ours.get_config())
    for metric in (ours, theirs, again):
        metric.update_state(labels, predicted)
    assert float(ours.result()) == pytest.approx(float(theirs.result()))
    assert float(again.result()) == float(ours.result())
