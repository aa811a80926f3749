"""ConfusionMatrix: pixel counts over a data set and the metrics from them.

Shape legend: B batch, H x W pixels, K `num_classes`.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_aspp.label_tensors import pixel_weights, split_labels
from keras_aspp.labels import check_ignore_label, check_num_classes
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import Tensor

# Compute dtypes that count pixels; float32 does so for models of that policy.
_COUNTS = ("int32", "int64", "uint32", "uint64", "float32", "float64")


@keras.saving.register_keras_serializable(package="keras_aspp")
class ConfusionMatrix(keras.metrics.MeanIoU):
    """Accumulates pixel counts by (label, prediction).

    As a metric of `model.fit`, its result is the mean IoU over the classes
    that occur; further metrics are methods. Compiles under XLA, where no
    error can be raised: invalid labels and predictions are counted, the
    result becomes NaN, and the methods raise an error with their number.

    Args:
        num_classes: int > 1, background included.
        ignore_label: int or `None`. Label of pixels that are not counted.
            Defaults to 255.
        name: str. Defaults to `"mean_iou"`.
        dtype: Keras dtype of the counts: an int or float of at least 32 bits,
            since others cannot count pixels; or `None` for int64.

    Call arguments (`update_state`):
        y_true: int (B, H, W) or (B, H, W, 1), `0..num_classes-1` or
            `ignore_label`; or one-hot (B, H, W, K), where a pixel of zeros is
            ignored.
        y_pred: float (B, H, W, K) scores, or int labels, (B, H, W) or
            (B, H, W, 1). A pixel with a score of NaN is invalid.
        sample_weight: float >= 0, (B,) or (B, H, W), or `None`. A pixel counts
            by its weight; weight 0 means ignored. Keras passes weights only
            to the `weighted_metrics` of `compile`.

    Raises:
        ValueError: an argument is not as above.

    Example:
    >>> matrix = ConfusionMatrix(2)
    >>> _ = matrix.update_state([[0, 1, 1, 255]], np.array([[0, 1, 0, 0]]))
    >>> float(matrix.result())
    0.5

    Source: Everingham et al., 2010 (the VOC segmentation measure).
    """

    def __init__(
        self,
        num_classes: int,
        ignore_label: int | None = 255,
        name: str = "mean_iou",
        dtype: str | None = None,
    ) -> None:
        # JAX disables int64 and float64 by default.
        on_jax = keras.backend.backend() == "jax"
        if dtype is None and on_jax:
            dtype = "int32"
        counts = keras.dtype_policies.get(dtype or "int64").compute_dtype
        if counts not in _COUNTS:
            raise InputError(
                "`dtype` must be one that counts pixels: one of "
                f"{', '.join(_COUNTS)}. Received: dtype={dtype!r}"
            )
        super().__init__(
            num_classes=check_num_classes(num_classes),
            ignore_class=(
                None
                if ignore_label is None
                else check_ignore_label(ignore_label)
            ),
            name=name,
            dtype=dtype,
        )
        self.ignore_label = self.ignore_class

        # A second matrix, since weights are fractions while pixels are counted
        # exactly, in integers.
        self.weighted_cm = self.add_variable(
            name="weighted_confusion_matrix",
            shape=(self.num_classes, self.num_classes),
            initializer="zeros",
            dtype="float32" if on_jax else "float64",
        )
        # Pixels with an invalid label, and with only an invalid prediction.
        self.wrong = self.add_variable(
            name="pixels_of_no_class",
            shape=(2,),
            initializer="zeros",
            dtype="int32" if on_jax else "int64",
        )

    def update_state(
        self,
        y_true: Tensor,
        y_pred: Tensor,
        sample_weight: Tensor | None = None,
    ) -> None:
        y_true, y_pred = _as_label_maps(
            ops.convert_to_tensor(y_true),
            ops.convert_to_tensor(y_pred),
            self.num_classes,
            self.ignore_label,
        )
        label, counted, known = split_labels(
            y_true, self.num_classes, self.ignore_label
        )
        # A prediction may be any class, `ignore_label` included if it is one.
        predicted, _, possible = split_labels(y_pred, self.num_classes, -1)
        if sample_weight is not None:
            weights = pixel_weights(sample_weight, label)
            counted = ops.logical_and(counted, weights != 0)
        good = ops.logical_and(known, possible)
        wrong = (
            ops.logical_and(counted, ops.logical_not(known)),
            ops.logical_and(
                counted, ops.logical_and(known, ops.logical_not(possible))
            ),
        )
        self.wrong.assign(
            self.wrong
            + ops.stack([ops.sum(ops.cast(w, self.wrong.dtype)) for w in wrong])
        )
        counted = ops.logical_and(counted, good)
        matrix = self.total_cm if sample_weight is None else self.weighted_cm
        values = ops.cast(counted, matrix.dtype)
        if sample_weight is not None:
            values = ops.where(counted, ops.cast(weights, matrix.dtype), values)
        cells = ops.stack(
            [ops.reshape(x, (-1,)) for x in (label, predicted)], axis=1
        )
        matrix.assign(
            matrix
            + ops.scatter(
                cells,
                ops.reshape(values, (-1,)),
                (self.num_classes, self.num_classes),
            )
        )

    def reset_state(self) -> None:
        for variable in self.variables:
            variable.assign(ops.zeros(variable.shape, variable.dtype))

    def result(self) -> Tensor:
        matrix = ops.cast(self.total_cm, "float32") + ops.cast(
            self.weighted_cm, "float32"
        )
        hit = ops.diagonal(matrix)
        union = ops.sum(matrix, 0) + ops.sum(matrix, 1) - hit
        present = ops.cast(union > 0, "float32")
        iou = hit / ops.where(union > 0, union, 1.0)
        # 0 / 0 gives NaN if no pixel was counted.
        mean = ops.sum(iou * present) / ops.sum(present)
        invalid = ops.any(self.total_cm < 0) | ops.any(self.wrong > 0)
        return ops.where(invalid, float("nan"), mean)

    def matrix(self) -> np.ndarray:
        """Returns the confusion matrix, rows labels, columns predictions.

        Returns:
            int64 array `(K, K)`, in pixels; float64, in sums of weights, if
            weights were passed.

        Raises:
            ValueError: labels or predictions were invalid, or weights below 0.
            OverflowError: more pixels than JAX can count.
        """
        pixels, weights, wrong = (
            ops.convert_to_numpy(x)
            for x in (self.total_cm, self.weighted_cm, self.wrong)
        )
        if wrong.any():
            raise InputError(
                f"Labels must be in 0..{self.num_classes - 1} or "
                f"ignore_label={self.ignore_label}, predictions in "
                f"0..{self.num_classes - 1} or scores without NaN. "
                f"Received: {wrong[0]} pixels with "
                f"other labels, {wrong[1]} with other predictions"
            )
        if np.isnan(weights).any():
            raise InputError(
                "`sample_weight` must be >= 0. Received: weights below 0 or NaN"
            )
        check_counts(pixels)
        if weights.any():
            return pixels + weights.astype("float64")
        return pixels.astype("int64")

    def per_class_iou(self) -> np.ndarray:
        """Returns IoU as float `(K,)`; `nan` for classes that do not occur."""
        matrix = self.matrix()
        hit = np.diag(matrix)
        return _ratio(hit, matrix.sum(0) + matrix.sum(1) - hit)

    def mean_iou(self) -> float:
        """Returns the mean IoU over classes that occur, or `nan`."""
        return mean_of_known(self.per_class_iou())

    def pixel_accuracy(self) -> float:
        """Returns the share of pixels predicted correctly, or `nan`."""
        matrix = self.matrix()
        return float(_ratio(np.trace(matrix), matrix.sum()))

    def mean_accuracy(self) -> float:
        """Returns the mean accuracy over labeled classes, or `nan`."""
        matrix = self.matrix()
        return mean_of_known(_ratio(np.diag(matrix), matrix.sum(1)))

    def frequency_weighted_iou(self) -> float:
        """Returns the mean IoU weighted by the pixels of each class."""
        matrix = self.matrix()
        share = _ratio(matrix.sum(1), matrix.sum())
        return float(np.sum(share * np.nan_to_num(self.per_class_iou())))

    def get_config(self) -> dict[str, Any]:
        return {
            "num_classes": self.num_classes,
            "ignore_label": self.ignore_label,
            "name": self.name,
            "dtype": self._dtype,
        }


def check_counts(counts: np.ndarray) -> None:
    """Raises `OverflowError` for counts of pixels that became negative."""
    if counts.min() < 0:
        raise OverflowError(
            "JAX counts in int32: a cell of the confusion matrix holds "
            "2**31 - 1 pixels. Evaluate on TensorFlow, or in parts."
        )


def _as_label_maps(y_true, y_pred, num_classes, ignore_label):
    """Converts labels and predictions to label maps of one shape.

    A label map has up to three axes and scores have four, so that a width or
    a batch of size `num_classes` is never mistaken for the axis of classes.
    """
    given = [
        f"{keras.backend.standardize_dtype(x.dtype)} {tuple(x.shape)}"
        for x in (y_true, y_pred)
    ]
    dtype = keras.backend.standardize_dtype(y_pred.dtype)
    axes, last = len(y_pred.shape), y_pred.shape[-1:]
    if axes == 4 and last == (num_classes,):
        y_pred = _highest(y_pred)
    elif axes == 4 and last == (1,) and "float" not in dtype:
        y_pred = ops.squeeze(y_pred, -1)
    # The scores of one image; floats are never labels.
    elif "float" in dtype and axes == 3 and last == (num_classes,):
        if len(y_true.shape) == 2:
            y_pred = _highest(y_pred)
    axes, last = len(y_true.shape), y_true.shape[-1:]
    if axes == 4 and last == (num_classes,):
        y_true = _from_one_hot(y_true, ignore_label)
    elif axes == len(y_pred.shape) + 1 and last == (1,):
        y_true = ops.squeeze(y_true, -1)
    is_scores = "float" in keras.backend.standardize_dtype(y_pred.dtype)
    shapes = tuple(y_true.shape), tuple(y_pred.shape)
    differ = len(shapes[0]) != len(shapes[1]) or any(
        None not in sizes and len(set(sizes)) > 1
        for sizes in zip(*shapes, strict=False)
    )
    if is_scores or differ or len(shapes[0]) > 3:
        raise InputError(
            "Labels must be (B, H, W), (B, H, W, 1) or one-hot (B, H, W, K); "
            "predictions must be scores, (B, H, W, K), or int labels, "
            f"(B, H, W), with K=num_classes. Received: num_classes="
            f"{num_classes}, y_true {given[0]}, y_pred {given[1]}"
        )
    return y_true, y_pred


def _highest(scores):
    """Returns the class of the highest score, -1 where a score is NaN."""
    labels = ops.cast(ops.argmax(scores, axis=-1), "int32")
    # An argmax returns the NaN or skips it, as the backend does.
    return ops.where(ops.any(ops.isnan(scores), axis=-1), -1, labels)


def _from_one_hot(one_hot, ignore_label):
    """Returns class ids, `ignore_label` for zeros, invalid if ambiguous."""
    highest = ops.max(one_hot, axis=-1, keepdims=True)
    count = ops.sum(ops.cast(one_hot == highest, "int32"), axis=-1)
    class_id = ops.cast(ops.argmax(one_hot, axis=-1), "int32")
    # NaN is unequal to itself, so its count is 0.
    no_class = -2 if ignore_label == -1 else -1
    class_id = ops.where(count == 1, class_id, no_class)
    return ops.where(highest[..., 0] == 0, ignore_label, class_id)


def _ratio(part, whole):
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(part, whole, dtype="float64")


def mean_of_known(values: np.ndarray) -> float:
    """Returns the mean of the values that are not NaN, or NaN."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
