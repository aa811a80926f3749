"""ONNX export: raw pixels in, labels out, for onnxruntime."""

from __future__ import annotations

import collections
import logging
from collections.abc import Sequence

import tensorflow as tf

from keras_aspp.inference import serving
from keras_aspp.layers.lowering import export_form
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.utils.extras import require
from keras_aspp.utils.types import PathLike, Size


def check_installed() -> None:
    """Raises `ValueError` if the extra `onnx` is not installed."""
    require("The format onnx", "onnx", "tf2onnx", "onnxruntime")


def write_onnx(
    model: Segmenter,
    path: PathLike,
    image_size: Size,
    coarse_labels: bool = False,
    outputs: Sequence[str] = ("labels",),
) -> None:
    """Writes a segmenter at one image size.

    Args:
        model: `Segmenter`, folded.
        path: file to write.
        image_size: `(height, width)`. onnxruntime pads no dilated convolution
            of an open size.
        coarse_labels: bool; see `serving.answer_coarsely`.
        outputs: of `serving.OUTPUTS`.
    """
    import tf2onnx

    answer = serving.answer_coarsely if coarse_labels else serving.answer
    image = serving.image_spec(model, 1, image_size)
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    with export_form():
        tf2onnx.convert.from_function(
            tf.function(
                lambda image: answer(model, image, outputs), autograph=False
            ),
            input_signature=[image],
            opset=18,
            output_path=str(path),
        )


def operators(path: PathLike) -> dict[str, int]:
    """Returns the operators of an `.onnx`, with their counts.

    Args:
        path: file.

    Returns:
        dict: name -> count, sorted by name.
    """
    import onnx

    nodes = onnx.load(path).graph.node
    return dict(sorted(collections.Counter(n.op_type for n in nodes).items()))
