"""trace: follows a model at one image size, layer by layer.

Nothing is computed: symbolic tensors of fixed shape go through the model, and
composite layers are opened until only layers and operations are left that do
one thing. Cost, receptive field and feature sizes are read from one trace.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import keras

from keras_aspp.models.steps import Step, Tracer
from keras_aspp.utils.errors import first_line
from keras_aspp.utils.exceptions import InputError, InputTypeError
from keras_aspp.utils.keras_graph import calls_forgotten, producer
from keras_aspp.utils.types import Size


@dataclasses.dataclass(frozen=True)
class Trace:
    """Record of the computation of one image.

    Attributes:
        model: what was followed.
        image_size: `(height, width)` in pixels.
        image: symbolic tensor, the image.
        steps: tuple of `Step` in the order of computation; a composite layer
            follows its parts.
        outputs: tuple of symbolic tensors, the model's results.
    """

    model: keras.Model
    image_size: tuple[int, int]
    image: keras.KerasTensor
    steps: tuple[Step, ...]
    outputs: tuple[keras.KerasTensor, ...]

    @property
    def leaves(self) -> tuple[Step, ...]:
        """Steps that are not composite layers."""
        return tuple(step for step in self.steps if not step.opened)


def operation_type(step: Step) -> str | None:
    """Returns the class name of an operation of `keras.ops`, else `None`.

    A layer of the user may have the same name.
    """
    if isinstance(step.operation, keras.layers.Layer):
        return None
    return step.layer_type


def trace(model: keras.Model, image_size: Size) -> Trace:
    """Traces one image through a model.

    Args:
        model: `keras.Model` with one image as its input, channels last:
            functional, sequential, or one of `keras_aspp.models`. Layers
            inside may be subclassed; those whose `call` leaves `keras.ops`
            stay closed and are marked `opaque`.
        image_size: `(height, width)`, ints > 0, in pixels.

    Returns:
        `Trace`.

    Raises:
        TypeError: `model` is not a Keras model, or has no fixed input.
        ValueError: `image_size` is not as above, contradicts the model's
            input, or is too small for it.

    Example:
    >>> inputs = keras.Input((None, None, 3))
    >>> outputs = keras.layers.Conv2D(4, 3, strides=2)(inputs)
    >>> found = trace(keras.Model(inputs, outputs), (9, 7))
    >>> [(step.layer_type, step.shape) for step in found.steps]
    [('InputLayer', (9, 7, 3)), ('Conv2D', (4, 3, 4))]
    """
    image = _symbolic_image(model, check_image_size(image_size))
    tracer = Tracer()
    with calls_forgotten(model):
        try:
            outputs = tracer.open(model, (image,), {}, "")
        except ValueError as error:
            raise InputError(
                f"The model cannot take an image of this size: "
                f"{_reason(error)}. Received: image_size={tuple(image_size)}"
            ) from error
    for step in tracer.steps:
        if any(0 in tensor.shape for tensor in step.outputs):
            raise InputError(
                f"The image is smaller than one cell of layer {step.path}. "
                f"Received: image_size={tuple(image_size)}"
            )
    source = Step(image.name, producer(image), (), (image,))
    return Trace(
        model, tuple(image_size), image, (source, *tracer.steps), outputs
    )


def check_image_size(image_size: Size) -> tuple[int, int]:
    """Returns `image_size` as a tuple, or raises `ValueError`."""
    size = tuple(image_size) if isinstance(image_size, (list, tuple)) else ()
    if len(size) != 2 or any(type(n) is not int or n < 1 for n in size):
        raise InputError(
            "`image_size` must be (height, width), two ints > 0. "
            f"Received: image_size={image_size!r}"
        )
    return size


def _symbolic_image(model, image_size):
    """A symbolic image that the model takes."""
    inputs = getattr(model, "inputs", None)
    if not isinstance(model, keras.Model) or not inputs:
        raise InputTypeError(
            "`model` must be a functional Keras model, built from "
            f"`keras.Input`. Received: model={model!r} of type "
            f"{type(model).__name__}"
        )
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        shapes = [tuple(tensor.shape) for tensor in inputs]
        raise InputError(
            "`model` must have one input (batch, height, width, channels). "
            f"Received: inputs={shapes}"
        )
    shape = inputs[0].shape
    for own, asked in zip(shape[1:3], image_size, strict=True):
        if own not in (None, asked):
            raise InputError(
                f"The model is built for images of {shape[1]}x{shape[2]}. "
                f"Received: image_size={image_size}"
            )
    return keras.Input(
        batch_shape=(1, *image_size, shape[-1]),
        dtype=inputs[0].dtype,
        name=inputs[0].name,
    )


def _reason(error):
    """Returns the bold part of an error of Keras, or its first line."""
    bold = re.search(r"\x1b\[1m(.*?)\x1b", str(error), re.DOTALL)
    text = bold[1] if bold else first_line(error)
    return text.split(" Received")[0].rstrip(".")


def output_of(model: keras.Model) -> Any:
    """Returns the output of a model in its structure: tensor, list or dict."""
    # A sequential model has no call of its own to ask.
    if isinstance(model, keras.Sequential):
        return model.outputs[0]
    return model.output
