"""Checks for NaN and infinity in weights, which predict class 0 everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_aspp.utils.exceptions import InputError

_SHOWN = 5


def check_finite(
    tensors: Iterable[tuple[str, np.ndarray]], source: str
) -> None:
    """Raises if weights contain NaN or infinity.

    Args:
        tensors: iterable of `(name, array)`.
        source: str, where they come from, for the message.

    Raises:
        ValueError: some are not finite; it names them.
    """
    count, broken = 0, []
    for name, array in tensors:
        count += 1
        if not np.isfinite(array).all():
            broken.append(name)
    if not broken:
        return
    named = ", ".join(broken[:_SHOWN])
    if len(broken) > _SHOWN:
        named += f" and {len(broken) - _SHOWN} more"
    raise InputError(
        "Weights must be finite; take an earlier checkpoint, or train again "
        f"with a smaller learning rate. Received: {source} with NaN or "
        f"infinity in {len(broken)} of {count} tensors: {named}"
    )


def check_weights(model: Any, source: str) -> None:
    """Applies `check_finite` to a Keras model.

    Args:
        model: Keras model.
        source: str, where it comes from, for the message.

    Raises:
        ValueError: a weight is not finite.
    """
    check_finite(
        ((weight.path, weight.numpy()) for weight in model.weights),
        source,
    )
