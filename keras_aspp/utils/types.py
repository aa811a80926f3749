"""Names of the types in public signatures.

No module of this package imports TensorFlow for a type: a tensor belongs to
whichever backend Keras runs on.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

PathLike: TypeAlias = str | os.PathLike[str]
# A tensor of Keras' backend, or a `keras.KerasTensor` while a model is built.
# Keras' own stubs have no common type for them.
Tensor: TypeAlias = Any
# A `tf.data.Dataset`.
Dataset: TypeAlias = Any
# `None` for an axis of unknown size.
Shape: TypeAlias = tuple[int | None, ...]
# Height and width.
Size: TypeAlias = Sequence[int]
# Atrous rate in cells: of both axes, or `(height, width)`.
Rate: TypeAlias = int | tuple[int, int]
# `((top, bottom), (left, right))`.
Pads: TypeAlias = Sequence[Sequence[int]]
Activation: TypeAlias = str | Callable[..., Any] | None
# A Keras initializer, its name, or its configuration.
Initializer: TypeAlias = str | Callable[..., Any] | dict[str, Any]
# A Keras regularizer or constraint, its name, or its configuration.
Regularizer: TypeAlias = Initializer | None
Constraint: TypeAlias = Initializer | None
BatchNorm: TypeAlias = bool | Literal["freeze", "sync", "group"]
ImagePoolingMode: TypeAlias = bool | Literal["bias"]
