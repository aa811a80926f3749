"""distill: lets a segmenter learn from the scores of another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops

from keras_aspp.losses.distillation import Distillation
from keras_aspp.models.auxiliary import LOGITS, TrainingTerm, add_teacher
from keras_aspp.models.precision import with_dtype
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import check_number
from keras_aspp.utils.types import Tensor


class Teacher(TrainingTerm):
    """Frozen segmenter whose scores a student learns in training.

    It reads the batch that the student reads, in inference mode. Logits of
    segmenters have the size of the image, so `input_scale` and output stride
    of the two may differ.

    It is not a Keras layer, so that the student does not track it: weights,
    checkpoints, saved files and exports of the student are those without it.

    Args:
        model: `Segmenter`, the teacher.
        student: `Segmenter` that learns from it.
        weight: float > 0, factor of the divergence.
        loss: `losses.Distillation`.
    """

    def __init__(
        self,
        model: Segmenter,
        student: Segmenter,
        weight: float,
        loss: Distillation,
    ) -> None:
        super().__init__("distillation_loss", weight)
        # The copy computes in the student's precision; `model` is unchanged.
        self.model = with_dtype(model, student.arguments()["dtype"])
        self.model.trainable = False
        if model.task == "binary":
            # Students learn the probability, which no threshold moves.
            self.model.threshold = 0.5
        self.loss = loss
        self._preprocess = _between(student, model)

    def compute(
        self,
        model: Any,
        x: Tensor,
        y: Tensor,
        y_pred: Mapping[str, Tensor],
        sample_weight: Tensor | None,
    ) -> Tensor:
        soft = self.model(self._preprocess(x), training=False)
        return self.loss(y, (y_pred[LOGITS], soft), sample_weight)


def distill(
    student: Segmenter,
    teacher: Segmenter,
    weight: float = 1.0,
    temperature: float = 1.0,
    ignore_label: int = 255,
) -> None:
    """Adds the teacher's soft labels to the loss of a student.

    `student.fit` and `train_on_batch` then add `weight` times
    `losses.Distillation` to the compiled loss, and log it as
    `distillation_loss`. The teacher is copied in the student's precision, runs
    in inference mode, and is never trained or saved. `keras-aspp train` does
    this for `train.distill_from`.

    Args:
        student: `Segmenter`, before or after `compile`.
        teacher: `Segmenter` of the same classes; the order of the classes is
            the caller's to check.
        weight: float > 0. Defaults to 1.
        temperature: float > 0, see `losses.Distillation`. Defaults to 1.
        ignore_label: int, label of ignored pixels. Defaults to 255.

    Raises:
        ValueError: the two differ in task, classes or input channels; the task
            is `"multilabel"`; the teacher takes images of one size only; or a
            number is out of range.
    """
    check_number("weight", weight, "(0, inf)")
    if "multilabel" in (student.task, teacher.task):
        raise InputError(
            "Distillation needs one class per pixel, task semantic or binary. "
            f"Received: a student of task={student.task!r} and a teacher of "
            f"task={teacher.task!r}"
        )
    for name in ("task", "num_classes", "input_channels"):
        own, other = (getattr(model, name) for model in (student, teacher))
        if own != other:
            raise InputError(
                f"Student and teacher must have the same `{name}`. Received: "
                f"{own!r} of the student, {other!r} of the teacher"
            )
    size = teacher.input.shape[1:3]
    if size not in ((None, None), student.input.shape[1:3]):
        raise InputError(
            "The teacher must take images of the student's size. Received: a "
            f"teacher of {size[0]}x{size[1]} images"
        )
    loss = Distillation(temperature, ignore_label)
    add_teacher(student, Teacher(teacher, student, float(weight), loss))


def _between(student, teacher):
    """Returns the map from the student's input to the teacher's."""
    given, wanted = student.preprocess, teacher.preprocess
    if given.input_dtype != wanted.input_dtype:
        # Stored values of different types may have different units.
        given, wanted = given.of_pixels(), wanted.of_pixels()
    given, wanted = (p.affine(student.input_channels) for p in (given, wanted))
    matrix = np.linalg.inv(given[0].astype("float64")) @ wanted[0]
    shift = wanted[1] - given[1] @ matrix
    if np.allclose(matrix, np.eye(len(shift))) and np.allclose(shift, 0):
        return lambda x: x
    matrix, shift = matrix.astype("float32"), shift.astype("float32")
    return lambda x: ops.matmul(x, matrix) + shift
