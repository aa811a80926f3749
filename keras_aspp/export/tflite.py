"""TFLite: raw pixels in, class ids out, builtin operators only."""

import contextlib
import os
import tempfile
from pathlib import Path

import tensorflow as tf

from keras_aspp.export.saved_model import write_fixed_size
from keras_aspp.layers.lowering import export_form

# Kernels that a phone lacks, or that cut a dilated convolution in three.
FORBIDDEN = ("Flex", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND")


def convert(model, image_size, formats):
    """Converts a segmenter at one picture size.

    Args:
        model: `Segmenter`.
        image_size: `(height, width)`.
        formats: of `"tflite_float32"`, `"tflite_float16"`.

    Returns:
        dict: format -> bytes of the `.tflite`.

    Raises:
        ValueError: the model needs operators that are no builtins.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        with export_form():
            write_fixed_size(model, folder, image_size)
        return {name: _convert_one(folder, name) for name in formats}


def _convert_one(folder, name):
    converter = tf.lite.TFLiteConverter.from_saved_model(
        folder, signature_keys=["serving_default"]
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if name == "tflite_float16":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    try:
        return converter.convert()
    except Exception as error:
        # The converter raises its own unexported type.
        raise ValueError(
            "TFLite conversion needs operators that are no builtins, or "
            f"failed: {' '.join(str(error).split())[:300]}"
        ) from error


def operators(path):
    """Names of the operators of a `.tflite`, with their counts.

    Args:
        path: file.

    Returns:
        dict: name -> count, sorted by name.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(
        model_path=str(path), experimental_op_resolver_type=plain
    )
    counts = {}
    for operator in interpreter._get_ops_details():
        name = operator["op_name"]
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def check_operators(found, path):
    """Raises `ValueError` where an operator is forbidden."""
    bad = sorted(n for n in found if n.startswith(FORBIDDEN))
    if bad:
        raise ValueError(
            "A TFLite file must hold builtin operators only, and whole "
            f"dilated convolutions. Received: {', '.join(bad)} in "
            f"{Path(path).name}"
        )


@contextlib.contextmanager
def _quiet():
    """Swallows the converter's chatter on the process's stderr."""
    saved = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
