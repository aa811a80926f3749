"""Distillation: divergence of a model's scores from those of a teacher.

Shape legend: B batch, H x W pixels, K classes.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_aspp.label_tensors import pixel_weights, split_labels
from keras_aspp.losses.base import SegmentationLoss, label_maps, nan_if_unknown
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import check_number
from keras_aspp.utils.types import Tensor


@keras.saving.register_keras_serializable(package="keras_aspp")
class Distillation(SegmentationLoss):
    """Mean divergence of a student from its teacher over valid pixels.

    Each pixel counts `KL(softmax(teacher / T), softmax(student / T)) * T**2`,
    with the temperature T. The factor keeps the size of the gradient when T
    changes. The labels only tell which pixels are ignored.

    Args:
        temperature: float > 0. A higher one weights the teacher's less
            probable classes more. Defaults to 1.
        ignore_label: see `SegmentationLoss`.
        name: str or `None`.

    Call arguments:
        y_true: int (B, H, W) or (B, H, W, 1), class ids or `ignore_label`.
        y_pred: pair of float (B, H, W, K) logits, the student's and the
            teacher's. The teacher's get no gradient.
        sample_weight: see `SegmentationLoss`.

    Raises:
        ValueError: `temperature` is not > 0.

    Example:
    >>> loss = Distillation()
    >>> pair = [[[[0.0, 0.0]]]], [[[[2.0, 0.0]]]]
    >>> round(float(loss([[[0]]], pair)), 4)
    0.3278

    Reference:
        [Liu et al., 2019](https://arxiv.org/abs/1903.04197), section 3.1,
        pixel-wise distillation; T and its factor are those of [Hinton et al.,
        2015](https://arxiv.org/abs/1503.02531), section 2. Differs from them
        in: ignored pixels do not count.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        ignore_label: int = 255,
        name: str | None = "distillation",
    ) -> None:
        super().__init__(ignore_label, name=name)
        self.temperature: float = check_number(
            "temperature", temperature, "(0, inf)"
        )

    def call(
        self,
        y_true: Tensor,
        y_pred: tuple[Tensor, Tensor],
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        pair = y_pred if isinstance(y_pred, (list, tuple)) else (y_pred,)
        pair = [ops.convert_to_tensor(one, dtype=self.dtype) for one in pair]
        shapes = [tuple(one.shape) for one in pair]
        classes = {shape[-1] for shape in shapes if shape} - {None}
        if len(pair) != 2 or len(classes) > 1:
            raise InputError(
                "`y_pred` must be the logits of student and teacher, of the "
                f"same classes. Received: {len(pair)} of shapes {shapes}"
            )
        for logits in pair:
            labels = label_maps(y_true, logits)
        student, teacher = (
            ops.log_softmax(logits / self.temperature) for logits in pair
        )
        teacher = ops.stop_gradient(teacher)
        divergence = ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)
        _, valid, known = split_labels(
            labels, student.shape[-1], self.ignore_label
        )
        weights = pixels = ops.cast(valid, "float32")
        if sample_weight is not None:
            weights = ops.where(valid, pixel_weights(sample_weight, labels), 0)
        count = ops.maximum(self.all_reduce_sum(ops.sum(pixels)), 1.0)
        loss = self.temperature**2 * ops.sum(divergence * weights) / count
        return nan_if_unknown(loss, weights != 0, known)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["class_weights"]
        return {"temperature": self.temperature, **config}
