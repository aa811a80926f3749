"""MultilabelConfusion: pixel counts of classes that may overlap.

Shape legend: B batch, H x W pixels, K `num_classes`.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_aspp.label_tensors import split_labels
from keras_aspp.labels import check_ignore_label
from keras_aspp.metrics.binary import binary_scores
from keras_aspp.metrics.confusion import (
    ConfusionMatrix,
    check_counts,
    mean_of_known,
)
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import check_int
from keras_aspp.utils.types import Tensor


@keras.saving.register_keras_serializable(package="keras_aspp")
class MultilabelConfusion(keras.metrics.Metric):
    """Accumulates, for each class, pixel counts by (label, prediction).

    The counterpart of `ConfusionMatrix` for masks of 0 and 1. As a metric of
    `model.fit`, its result is the mean IoU over the classes that occur in
    labels or predictions. Compiles under XLA, where no error can be raised:
    invalid labels and predictions are counted, the result becomes NaN, and
    the methods raise an error with their number.

    Args:
        num_classes: int > 0.
        ignore_label: int. Label of pixels that are not counted. Defaults to
            255.
        name: str. Defaults to `"mean_iou"`.
        dtype: Keras dtype of the result.

    Call arguments:
        y_true: int (B, H, W, K) or (H, W, K): 1, 0 or `ignore_label`.
        y_pred: float scores of the same shape, above 0 where the class is
            predicted, as a segmenter's logits are; or int or bool labels.

    Raises:
        ValueError: an argument is not as above.

    Example:
    >>> matrix = MultilabelConfusion(2)
    >>> matrix.update_state([[[1, 255], [1, 1]]], np.array([[[1, 0], [0, 1]]]))
    >>> matrix.per_class_iou()
    array([0.5, 1. ])
    """

    def __init__(
        self,
        num_classes: int,
        ignore_label: int = 255,
        name: str = "mean_iou",
        dtype: str | None = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.num_classes: int = check_int("num_classes", num_classes)
        self.ignore_label: int = check_ignore_label(ignore_label)
        # JAX disables int64 by default.
        on_jax = keras.backend.backend() == "jax"
        count = "int32" if on_jax else "int64"
        self.counts: keras.Variable = self.add_variable(
            name="counts",
            shape=(num_classes, 2, 2),
            initializer="zeros",
            dtype=count,
        )
        self.wrong: keras.Variable = self.add_variable(
            name="pixels_of_no_label",
            shape=(),
            initializer="zeros",
            dtype=count,
        )

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: None = None
    ) -> None:
        y_true, y_pred = map(ops.convert_to_tensor, (y_true, y_pred))
        shapes = tuple(y_true.shape), tuple(y_pred.shape)
        if (
            sample_weight is not None
            or len(shapes[0]) not in (3, 4)
            or len(shapes[0]) != len(shapes[1])
            or {shapes[0][-1], shapes[1][-1]} != {self.num_classes}
        ):
            raise InputError(
                "Labels and predictions must be (B, H, W, K), without "
                f"weights. Received: shapes {shapes[0]} and {shapes[1]}, "
                f"num_classes={self.num_classes}"
            )
        label, valid, known = split_labels(y_true, 2, self.ignore_label)
        if "float" in keras.backend.standardize_dtype(y_pred.dtype):
            predicted, possible = y_pred > 0, ops.isfinite(y_pred)
        else:
            predicted, _, possible = split_labels(y_pred, 2, -1)
        good = ops.logical_and(known, possible)
        wrong = ops.logical_and(valid, ops.logical_not(good))
        self.wrong.assign(
            self.wrong + ops.sum(ops.cast(wrong, self.wrong.dtype))
        )
        counted = ops.cast(ops.logical_and(valid, good), self.counts.dtype)
        axes = tuple(range(len(shapes[0]) - 1))
        label, predicted = (
            ops.cast(x, self.counts.dtype) * counted for x in (label, predicted)
        )
        pixels, labeled, positive, hit = (
            ops.sum(x, axis=axes)
            for x in (counted, label, predicted, label * predicted)
        )
        cells = (
            pixels - labeled - positive + hit,
            positive - hit,
            labeled - hit,
            hit,
        )
        cells = ops.reshape(ops.stack(cells, axis=-1), (-1, 2, 2))
        self.counts.assign(self.counts + cells)

    def result(self) -> Tensor:
        hit = self.counts[:, 1, 1]
        # In integers: in float32, true negatives would hide rare classes.
        union = hit + self.counts[:, 0, 1] + self.counts[:, 1, 0]
        hit, union = (ops.cast(x, "float32") for x in (hit, union))
        present = ops.cast(union > 0, "float32")
        iou = hit / ops.where(union > 0, union, 1.0)
        # 0 / 0 gives NaN if no class occurs.
        mean = ops.sum(iou * present) / ops.sum(present)
        invalid = ops.any(self.counts < 0) | (self.wrong > 0)
        return ops.where(invalid, float("nan"), mean)

    def matrices(self) -> np.ndarray:
        """Returns a confusion matrix for each class, int64 `(K, 2, 2)`.

        Rows are labels, columns predictions, 0 before 1.

        Raises:
            ValueError: labels or predictions were invalid.
            OverflowError: more pixels than JAX can count.
        """
        wrong = int(ops.convert_to_numpy(self.wrong))
        if wrong:
            raise InputError(
                f"Labels must be 0, 1 or ignore_label={self.ignore_label}, "
                "predictions 0 and 1 or finite scores. Received: "
                f"{wrong} others"
            )
        counts = ops.convert_to_numpy(self.counts)
        check_counts(counts)
        return counts.astype("int64")

    def per_class(self) -> list[dict[str, float]]:
        """Returns IoU, Dice, precision and recall; see `binary_scores`."""
        return [binary_scores(matrix) for matrix in self.matrices()]

    def per_class_iou(self) -> np.ndarray:
        """Returns IoU as float `(K,)`; `nan` for classes that do not occur."""
        return np.array([found["iou"] for found in self.per_class()])

    def mean_iou(self) -> float:
        """Returns the mean IoU over classes that occur, or `nan`."""
        return mean_of_known(self.per_class_iou())

    def pixel_accuracy(self) -> float:
        """Returns the share of right decisions, one per class and pixel."""
        counts = self.matrices()
        right, total = np.trace(counts.sum(0)), counts.sum()
        return float(right / total) if total else float("nan")

    def mean_accuracy(self) -> float:
        """Returns the mean recall over labeled classes, or `nan`."""
        return mean_of_known(
            np.array([found["recall"] for found in self.per_class()])
        )

    def frequency_weighted_iou(self) -> float:
        """Returns the mean IoU weighted by the pixels of each class."""
        labeled = self.matrices()[:, 1].sum(-1)
        if not labeled.any():
            return float("nan")
        iou = np.nan_to_num(self.per_class_iou())
        return float(np.average(iou, weights=labeled))

    def get_config(self) -> dict[str, Any]:
        return {
            "num_classes": self.num_classes,
            "ignore_label": self.ignore_label,
            "name": self.name,
            "dtype": self._dtype,
        }


def confusion_of(
    task: str, num_classes: int, ignore_label: int = 255
) -> ConfusionMatrix | MultilabelConfusion:
    """Returns the metric of a task that counts pixels.

    Args:
        task: `"semantic"`, `"binary"` or `"multilabel"`.
        num_classes: int, background included.
        ignore_label: int.
    """
    counts = MultilabelConfusion if task == "multilabel" else ConfusionMatrix
    return counts(num_classes, ignore_label)
