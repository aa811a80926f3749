"""Teacher of a run: the model of `train.distill_from`."""

from __future__ import annotations

import os
from pathlib import Path

from keras_aspp.config.schema import TrainConfig
from keras_aspp.data.spec import DatasetSpec, other_class
from keras_aspp.inference.artefacts import find_spec, resolve
from keras_aspp.models.distillation import distill
from keras_aspp.models.segmenter import Segmenter, load_saved
from keras_aspp.utils.exceptions import InputError


def teacher_path(config: TrainConfig) -> Path | None:
    """Returns the file of `train.distill_from`, or `None` without a teacher.

    Raises:
        FileNotFoundError: the path holds no model.
    """
    if config.distill_from is None:
        return None
    return resolve(os.path.expandvars(config.distill_from), keras_only=True)


def distill_from(
    student: Segmenter, config: TrainConfig, spec: DatasetSpec
) -> None:
    """Lets a student learn from the model of `train.distill_from`, if any.

    Args:
        student: `Segmenter` that the run trains.
        config: `TrainConfig`.
        spec: `DatasetSpec` of the data.

    Raises:
        FileNotFoundError: the path holds no model.
        ValueError: the teacher's classes are not those of the data, or the
            teacher does not fit the student; see `models.distill`.
    """
    path = teacher_path(config)
    if path is None:
        return
    known = find_spec(path)
    if known is not None:
        _check_class_names(path, known.class_names, spec.class_names)
    distill(
        student,
        load_saved(path),
        config.distill_weight,
        config.distill_temperature,
        spec.ignore_label,
    )


def _check_class_names(path, teacher, student):
    """Raises `ValueError` at the first class that differs."""
    different = other_class(teacher, student)
    if different is None:
        return
    raise InputError(
        "`train.distill_from` must have the classes of the data, in the same "
        f"order. Received: {path} with {len(teacher)} classes, the data with "
        f"{len(student)}; {different}"
    )
