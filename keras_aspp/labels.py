"""Checks of class counts and label maps on the host.

Shape legend: H x W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import as_int

BACKGROUND = "background is a class, so one object class makes two"
# What a pixel is: one of several classes, an object or not, or any number of
# classes. Labels of the last have an axis of classes, with 0, 1 and ignored.
TASKS = ("semantic", "binary", "multilabel")


def check_task(task: Any) -> str:
    """Returns a task, or raises `ValueError` if it is unknown."""
    if task not in TASKS:
        raise InputError(
            "`task` must be 'semantic', 'binary' or 'multilabel'. "
            f"Received: task={task!r}"
        )
    return task


def check_num_classes(num_classes: Any) -> int:
    """Returns `num_classes` as an int, or raises `ValueError` below 2."""
    found = as_int(num_classes)
    if found is None or found < 2:
        raise InputError(
            f"`num_classes` must be an int > 1; {BACKGROUND} (or pass "
            "task='binary'). "
            f"Received: num_classes={num_classes!r}"
        )
    return found


def check_ignore_label(ignore_label: Any) -> int:
    """Returns `ignore_label` as an int, or raises `ValueError`."""
    found = as_int(ignore_label)
    if found is None:
        raise InputError(
            "`ignore_label` must be an int; to leave no pixel out, one that no "
            f"pixel has, such as -1. Received: ignore_label={ignore_label!r}"
        )
    return found


def check_pair(
    labels: ArrayLike, predicted: ArrayLike, num_classes: int, ignore_label: int
) -> tuple[np.ndarray, np.ndarray]:
    """Checks a label map and its prediction.

    Args:
        labels: int array `(H, W)`, `0..num_classes-1` or `ignore_label`.
        predicted: int array `(H, W)`, `0..num_classes-1` where not ignored.
        num_classes: int > 1.
        ignore_label: int.

    Returns:
        Both as int64 arrays; ignored pixels are `ignore_label` in both.

    Raises:
        ValueError: shapes differ, or values are invalid.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if labels.ndim != 2 or labels.shape != predicted.shape:
        raise InputError(
            "Labels and predictions must be (height, width). Received: "
            f"shapes {labels.shape} and {predicted.shape}"
        )
    predicted = np.where(labels == ignore_label, ignore_label, predicted)
    check_values("labels", labels, num_classes, ignore_label)
    check_values("predicted", predicted, num_classes, ignore_label)
    return labels.astype("int64"), predicted.astype("int64")


def check_values(
    name: str, labels: np.ndarray, num_classes: int | None, ignore_label: int
) -> None:
    """Raises `ValueError` for values that are neither class nor ignored.

    Args:
        name: str, name of the argument for the message.
        labels: array of any shape.
        num_classes: int, or `None` if any int >= 0 is a class id.
        ignore_label: int.
    """
    known = (labels >= 0) & (labels == np.floor(labels))
    if num_classes is not None:
        known &= labels < num_classes
    wrong = labels[~known & (labels != ignore_label)]
    if wrong.size:
        classes = ">= 0" if num_classes is None else f"0..{num_classes - 1}"
        raise InputError(
            f"`{name}` must be in {classes} or ignore_label={ignore_label}. "
            f"Received: {wrong.size} pixels of other values, first {wrong[0]}"
        )
