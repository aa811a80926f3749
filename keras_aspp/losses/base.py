"""SegmentationLoss: the base class of all losses.

Shape legend: B batch, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_aspp.label_tensors import pixel_weights, split_labels
from keras_aspp.labels import check_ignore_label
from keras_aspp.utils.deprecation import renamed_attribute, warn_renamed
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import check_numbers
from keras_aspp.utils.types import Shape, Tensor

# Old name -> name of the methods that subclasses override.
_RENAMED_METHODS = {"of_valid": "compute", "of_weighted": "compute_weighted"}


def check_class_weights(
    class_weights: Sequence[float] | None,
) -> tuple[float, ...] | None:
    """Returns class weights as a tuple; `None` stays `None`.

    Raises:
        ValueError: they are not floats >= 0, or all are 0.
    """
    if class_weights is None:
        return None
    given = check_numbers("class_weights", class_weights, "[0, inf)")
    weights = tuple(map(float, given))
    if not any(weights):
        raise InputError(
            "`class_weights` must be floats >= 0, one for each class, and not "
            f"all 0. Received: class_weights={weights}"
        )
    return weights


class WholeLoss(keras.losses.Loss):
    """Base class of losses whose `call` returns the loss of the batch.

    `call` takes `sample_weight` too: Keras would weight its result, which is
    already a mean, and its own mean would count ignored pixels.

    Args:
        name: str or `None`.
    """

    def __init__(self, name: str | None) -> None:
        super().__init__(name=name, reduction=None, dtype="float32")

    def __call__(
        self,
        y_true: Tensor,
        y_pred: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        with keras.name_scope(self.name):
            return self.call(y_true, y_pred, sample_weight)


class SegmentationLoss(WholeLoss):
    """Base class of losses that reduce a batch over its valid pixels.

    Subclasses implement `compute`. The loss of a batch without a valid pixel
    is 0. A label that is neither a class nor `ignore_label` makes loss and
    gradient NaN, in eager mode, in a graph and under XLA.

    `sample_weight`, as `fit`, `evaluate` and `train_on_batch` pass it, weights
    images or pixels. Two rules hold for every loss:

    - A pixel of weight 2 counts as two pixels of weight 1, in means and in
      areas. A pixel of weight 0 only enters the second rule; its label is not
      checked.
    - The loss is then multiplied by the mean weight of the valid pixels, so
      weights of 2 on all pixels double it.

    For cross entropy this is Keras' own definition: the sum of weight times
    loss over the number of valid pixels. For region losses (Dice, Tversky,
    Lovász) no single definition is published.

    Args:
        ignore_label: int. Label of pixels to leave out. Defaults to 255.
        class_weights: floats >= 0, weight of each class in the mean, or
            `None` for equal weights. Defaults to `None`.
        name: str or `None`.

    Call arguments:
        y_true: int (B, H, W) or (B, H, W, 1), `0..K-1` or `ignore_label`.
        y_pred: float (B, H, W, K) logits.
        sample_weight: float >= 0, (B,) or (B, H, W), or `None`.

    Attributes:
        num_replicas: int, number of replicas that share a batch. Each replica
            returns its part; the parts add up to the loss of the batch.
        all_reduce_sum: function that sums a tensor over those replicas.
    """

    num_replicas: int = 1
    # Old names.
    of_valid: property = renamed_attribute("of_valid", "compute")
    of_weighted: property = renamed_attribute("of_weighted", "compute_weighted")
    mean_of_labelled: property = renamed_attribute(
        "mean_of_labelled", "mean_over_present_classes"
    )
    devices: property = renamed_attribute("devices", "num_replicas")
    everywhere: property = renamed_attribute("everywhere", "all_reduce_sum")

    @staticmethod
    def all_reduce_sum(x: Tensor) -> Tensor:
        """Sums a tensor over the replicas; the identity for one replica."""
        return x

    def __init__(
        self,
        ignore_label: int = 255,
        class_weights: Sequence[float] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.ignore_label: int = check_ignore_label(ignore_label)
        self.class_weights: tuple[float, ...] | None = check_class_weights(
            class_weights
        )

    def call(
        self,
        y_true: Tensor,
        y_pred: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        logits = ops.convert_to_tensor(y_pred, dtype=self.dtype)
        labels = label_maps(y_true, logits)
        labels, valid, known = split_labels(
            labels, logits.shape[-1], self.ignore_label
        )
        if sample_weight is None:
            loss = self.compute(labels, logits, ops.cast(valid, "float32"))
        else:
            weights = ops.where(valid, pixel_weights(sample_weight, labels), 0)
            pixels = ops.cast(valid, "float32")
            total, count = ops.unstack(
                self.all_reduce_sum(
                    ops.stack([ops.sum(weights), ops.sum(pixels)])
                )
            )
            mean = total / ops.maximum(count, 1.0)
            # Scaled to mean 1, so that constants in pixels keep their meaning.
            relative = weights / ops.where(mean == 0, 1.0, mean)
            loss = mean * self.compute_weighted(labels, logits, relative)
            valid = weights != 0
        return nan_if_unknown(loss, valid, known)

    def compute(self, labels: Tensor, logits: Tensor, valid: Tensor) -> Tensor:
        """Computes the loss.

        Args:
            labels: int32 (B, H, W), 0 where ignored.
            logits: float32 (B, H, W, K).
            valid: float32 (B, H, W), 0 where ignored, else 1.

        Returns:
            float32 scalar.
        """
        raise NotImplementedError

    def compute_weighted(
        self, labels: Tensor, logits: Tensor, weights: Tensor
    ) -> Tensor:
        """Computes the loss of weighted pixels.

        Defaults to `compute`, which fits losses that use `valid` only as a
        factor of each pixel.

        Args:
            labels: int32 (B, H, W), 0 where ignored.
            logits: float32 (B, H, W, K).
            weights: float32 (B, H, W), 0 where ignored, of mean 1 over the
                valid pixels.

        Returns:
            float32 scalar.
        """
        return self.compute(labels, logits, weights)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Subclasses written for the old names of the methods.
        for old, new in _RENAMED_METHODS.items():
            if old in cls.__dict__:
                warn_renamed(f"{cls.__name__}.{old}", new)
                setattr(cls, new, cls.__dict__[old])

    def weights_of(self, num_classes: int) -> Tensor:
        """Returns class weights as a tensor (K,), ones by default."""
        if self.class_weights is None:
            return ops.ones(num_classes, dtype="float32")
        if len(self.class_weights) != num_classes:
            raise InputError(
                "`class_weights` must hold one weight for each class. "
                f"Received: {len(self.class_weights)} weights for "
                f"{num_classes} classes"
            )
        return ops.convert_to_tensor(self.class_weights, "float32")

    def mean_over_present_classes(
        self, losses: Tensor, pixels: Tensor
    ) -> Tensor:
        """Computes the weighted mean over classes with pixels.

        Args:
            losses: float32 (K,).
            pixels: (K,), number of labeled pixels of each class.

        Returns:
            float32 scalar.
        """
        present = ops.cast(pixels > 0, "float32")
        return weighted_mean(losses, self.weights_of(losses.shape[0]) * present)

    def get_config(self) -> dict[str, Any]:
        return {
            "ignore_label": self.ignore_label,
            "class_weights": self.class_weights,
            "name": self.name,
        }


def label_maps(y_true: Tensor, logits: Tensor) -> Tensor:
    """Returns labels as a tensor (B, H, W).

    Args:
        y_true: int (B, H, W) or (B, H, W, 1).
        logits: (B, H, W, K).

    Raises:
        ValueError: other shapes, or labels and logits of other pixels.
    """
    labels = ops.convert_to_tensor(y_true)
    shapes = tuple(labels.shape), tuple(logits.shape)
    if len(shapes[0]) == 4 and shapes[0][-1] == 1:
        labels = ops.squeeze(labels, -1)
    if len(labels.shape) != 3 or len(logits.shape) != 4:
        raise InputError(
            "Labels must be (B, H, W) or (B, H, W, 1) and logits "
            "(B, H, W, K); convert one-hot labels by "
            "`keras.ops.argmax(labels, -1)`. Received: "
            f"shapes {shapes[0]} and {shapes[1]}"
        )
    _check_same_pixels(*shapes)
    return labels


def nan_if_unknown(loss: Tensor, counted: Tensor, known: Tensor) -> Tensor:
    """Returns the loss, NaN if a pixel that counts has an unknown label.

    Args:
        loss: float scalar.
        counted: bool (B, H, W), pixels that have a weight.
        known: bool (B, H, W), see `label_tensors.split_labels`.
    """
    wrong = ops.any(ops.logical_and(counted, ops.logical_not(known)))
    # Multiplied by NaN, not replaced, so that the gradient is NaN too.
    nan = ops.cast(float("nan"), loss.dtype)
    return loss * ops.where(wrong, nan, ops.ones_like(loss))


def _check_same_pixels(labels: Shape, logits: Shape) -> None:
    """Raises `ValueError` for shapes that differ in batch, height or width.

    Sizes of `None` are not known here. The sum of a loss would broadcast sizes
    of 1.
    """
    for n, m in zip(labels[:3], logits[:3], strict=True):
        if n != m and None not in (n, m):
            raise InputError(
                "Labels and logits must have the same pixels, (B, H, W); "
                "resize the logits to the labels. Received: "
                f"shapes {labels} and {logits}"
            )


def weighted_mean(
    values: Tensor,
    weights: Tensor,
    all_reduce_sum: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """Computes a weighted mean, 0 if all weights are 0.

    Args:
        values: float tensor.
        weights: float tensor of the same shape.
        all_reduce_sum: function that sums a tensor over replicas.

    Returns:
        Scalar, the replica's part of the mean over all replicas.
    """
    total = all_reduce_sum(ops.sum(weights))
    return ops.sum(values * weights) / ops.where(total > 0, total, 1.0)
