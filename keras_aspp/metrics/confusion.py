"""One confusion matrix over a whole set, and every number read from it.

Shape legend: B batch, H x W pixels, K `num_classes`.
"""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="keras_aspp")
class ConfusionMatrix(keras.metrics.MeanIoU):
    """Accumulates pixels by (label, prediction) over all that it sees.

    As a metric of `model.fit` its result is the mean IoU of the classes that
    occur; the other numbers are methods. Safe under XLA.

    Args:
        num_classes: int > 0.
        ignore_label: int. Pixels labelled so are not counted. Defaults to
            255.
        name: str. Defaults to `"mean_iou"`.
        dtype: Keras dtype of the result.

    Call arguments (`update_state`):
        y_true: int (B, H, W), `0..num_classes-1` or `ignore_label`.
        y_pred: float (B, H, W, K) scores, or int (B, H, W) labels.

    Example:
    >>> matrix = ConfusionMatrix(2)
    >>> _ = matrix.update_state([[0, 1, 1, 255]], np.array([[0, 1, 0, 0]]))
    >>> float(matrix.result())
    0.5

    Source: Everingham et al., 2010 (the VOC segmentation measure).
    """

    def __init__(
        self, num_classes, ignore_label=255, name="mean_iou", dtype=None
    ):
        if dtype is None and keras.backend.backend() == "jax":
            dtype = "int32"  # JAX has no int64 unless told to.
        super().__init__(
            num_classes=num_classes,
            ignore_class=ignore_label,
            name=name,
            dtype=dtype,
        )
        self.ignore_label = ignore_label

    def update_state(self, y_true, y_pred, sample_weight=None):
        # MeanIoU decides by a constructor argument; the rank says it too.
        self.sparse_y_pred = len(np.shape(y_pred)) == len(np.shape(y_true))
        return super().update_state(y_true, y_pred, sample_weight)

    def result(self):
        matrix = ops.cast(self.total_cm, "float32")
        hit = ops.diagonal(matrix)
        union = ops.sum(matrix, 0) + ops.sum(matrix, 1) - hit
        present = ops.cast(union > 0, "float32")
        iou = hit / ops.maximum(union, 1)
        # 0 / 0, nan, where no pixel was counted.
        return ops.sum(iou * present) / ops.sum(present)

    def matrix(self):
        """int64 `(K, K)`, in pixels: rows are labels, columns predictions."""
        matrix = np.asarray(ops.convert_to_numpy(self.total_cm), "int64")
        if matrix.min() < 0:
            raise OverflowError(
                "JAX counts in int32: a cell of the confusion matrix holds "
                "2**31 - 1 pixels. Evaluate on TensorFlow, or in parts."
            )
        return matrix

    def per_class_iou(self):
        """Float `(K,)` in [0, 1]; `nan` for a class that does not occur."""
        matrix = self.matrix()
        hit = np.diag(matrix)
        return _ratio(hit, matrix.sum(0) + matrix.sum(1) - hit)

    def mean_iou(self):
        """Mean of `per_class_iou` over classes that occur, or `nan`."""
        iou = self.per_class_iou()
        return _mean(iou[~np.isnan(iou)])

    def pixel_accuracy(self):
        """Share of counted pixels that are right, in [0, 1], or `nan`."""
        matrix = self.matrix()
        return float(_ratio(np.trace(matrix), matrix.sum()))

    def mean_accuracy(self):
        """Mean over labelled classes of their share that is right."""
        matrix = self.matrix()
        recall = _ratio(np.diag(matrix), matrix.sum(1))
        return _mean(recall[~np.isnan(recall)])

    def frequency_weighted_iou(self):
        """Mean of `per_class_iou`, weighted by the classes' pixels."""
        matrix = self.matrix()
        share = _ratio(matrix.sum(1), matrix.sum())
        return float(np.sum(share * np.nan_to_num(self.per_class_iou())))

    def get_config(self):
        return {
            "num_classes": self.num_classes,
            "ignore_label": self.ignore_label,
            "name": self.name,
            "dtype": self._dtype,
        }


def _ratio(part, whole):
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(part, whole, dtype="float64")


def _mean(values):
    return float(values.mean()) if values.size else float("nan")
