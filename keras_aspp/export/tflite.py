"""TFLite export: raw pixels in, labels out, builtin operators only."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import tempfile
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_aspp.data.resize import resize_image
from keras_aspp.export.checks import (
    check_segmenter,
    check_size,
    checked_answers,
    checked_images,
)
from keras_aspp.export.explain import (
    OperatorCost,
    operator_costs,
    operator_labels,
    select,
)
from keras_aspp.export.gpu import for_gpu
from keras_aspp.export.quantize import QUANTIZED, quantize
from keras_aspp.export.saved_model import write_one_image
from keras_aspp.inference import serving
from keras_aspp.layers.lowering import export_form
from keras_aspp.models import fold_batch_norm
from keras_aspp.models.precision import in_float32
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.finite import check_weights
from keras_aspp.utils.keras_graph import sublayers
from keras_aspp.utils.native_log import filtered_stderr
from keras_aspp.utils.types import Size

# They take live taps: LiteRT multiplies the padding of a dilated convolution.
# Sums of taps that are rounded to 8 bits would lose accuracy.
_FLOAT_ON_CPU = ("tflite_float32", "tflite_float16", "tflite_logits")


def convert(
    model,
    image_size,
    formats,
    calibration_images=(),
    coarse_labels=False,
    phase=contextlib.nullcontext,
    outputs=("labels",),
    in_float=(),
):
    """Converts a segmenter at one image size.

    Args:
        model: `Segmenter`.
        image_size: `(height, width)`.
        formats: of `"tflite_float32"`, `"tflite_float16"`,
            `"tflite_dynamic_range"`, `"tflite_int8"`, `"tflite_int16x8"`,
            `"tflite_any_size"`, `"tflite_logits"`, `"tflite_gpu"`.
        calibration_images: images `[H, W, C]` that calibrate `"tflite_int8"`
            and `"tflite_int16x8"`, which take float32 for images of more than
            8 bits.
        coarse_labels: bool. Label scores, not pixels; see
            `serving.answer_coarsely`. Not for `"tflite_any_size"`, which
            stays exact.
        phase: function of a format that returns a context manager, within
            which that format is converted.
        outputs: of `serving.OUTPUTS`. Not for `"tflite_logits"` and
            `"tflite_gpu"`.
        in_float: operators that `"tflite_int8"` leaves in float, by the names
            of `explain_int8`.

    Returns:
        dict: format -> bytes of the `.tflite`.

    Raises:
        ValueError: the model needs operators that are not builtin.
    """
    found = {}
    logits, coarse_logits = "logits", serving.COARSE
    if isinstance(serving.threshold_of(model), tuple):
        logits, coarse_logits = serving.MASK_LOGITS, serving.COARSE_MASKS

    @functools.cache
    def calibration():
        return _calibration(model, calibration_images, image_size)

    with tempfile.TemporaryDirectory() as work:
        for name in formats:
            size = image_size
            input_type = tf.as_dtype(model.preprocess.input_dtype)
            names, coarse = outputs, coarse_labels
            if name == "tflite_logits":
                names, coarse = (logits,), False
            if name == "tflite_gpu":
                input_type = tf.float32
                names, coarse = (coarse_logits,), False
            if name == "tflite_any_size":
                size, coarse = (None, None), False
            if name in QUANTIZED:
                # With a uint8 signature the input tensor would stay float.
                input_type = tf.float32
            live_taps = name in _FLOAT_ON_CPU
            folder = f"{input_type.name}_{size[0]}_{names[0]}_{live_taps}"
            folder = os.path.join(work, folder)
            with phase(name), filtered_stderr(hold=True):
                if not os.path.exists(folder):
                    with export_form(live_taps):
                        write_one_image(
                            model, folder, size, input_type, names, coarse
                        )
                content = _convert_one(folder, name)
                if name in QUANTIZED:
                    content = _quantized(
                        model,
                        content,
                        name,
                        calibration(),
                        in_float,
                    )
                found[name] = content
    return found


def explain_int8(
    model: Segmenter,
    image_size: Size,
    calibration_images: Sequence[np.ndarray],
    coarse_labels: bool = False,
    outputs: Sequence[str] = ("labels",),
) -> list[OperatorCost]:
    """Measures which operators of `tflite_int8` cost most.

    Args:
        model: `Segmenter`.
        image_size: `(height, width)`, in pixels.
        calibration_images: images `[H, W, C]` in the model's type, of the
            training split. The first four are compared.
        coarse_labels: bool; see `export_model`.
        outputs: see `export_model`.

    Returns:
        list of `OperatorCost`, the costliest first.

    Raises:
        ValueError: an argument is invalid, or weights are not finite.
    """
    check_segmenter(model)
    check_weights(model, f"model {model.name!r}")
    image_size = check_size("image_size", image_size, model)
    calibration_images = checked_images(
        "calibration_images", calibration_images, model
    )
    if not calibration_images:
        raise InputError(
            "`calibration_images` must hold at least one image, of the "
            "training split (--export.num_calibration_images). Received: none"
        )
    answers = checked_answers(model, coarse_labels, outputs)
    model = fold_batch_norm(in_float32(model))
    with tempfile.TemporaryDirectory() as work, filtered_stderr(hold=True):
        folder = os.path.join(work, "float")
        with export_form():
            outputs = answers["outputs"]
            write_one_image(
                model, folder, image_size, tf.float32, outputs, coarse_labels
            )
        return operator_costs(
            _convert_one(folder, "tflite_float32"),
            *_calibration(model, calibration_images, image_size),
            _layers(model),
        )


def _calibration(model, images, image_size):
    """Returns the inputs that calibrate, and whether they are pixels."""
    examples = list(_examples(images, image_size, model.preprocess))
    # A scale of its own per tensor leaves 16 bits to the input.
    return examples, model.preprocess.input_dtype == "uint8"


def _layers(model):
    """Returns the names of the layers of a model, nested ones included."""
    return {layer.name for layer in sublayers(model, include_self=False)}


def _quantized(model, content, name, calibration, in_float):
    tensors: Sequence[str] = ()
    if in_float and name == "tflite_int8":
        labels = operator_labels(content, _layers(model))
        tensors = select(labels, in_float)
    try:
        return quantize(content, name, *calibration, tensors)
    except (ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())[:300]
        raise InputError(
            f"litert-quantizer cannot write {name} of this model; leave it out "
            f"of the formats. Received: {message}"
        ) from error


def _convert_one(folder, name):
    converter = tf.lite.TFLiteConverter.from_saved_model(
        folder, signature_keys=["serving_default"]
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if name in ("tflite_float16", "tflite_dynamic_range"):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if name == "tflite_float16":
        converter.target_spec.supported_types = [tf.float16]
    try:
        content = converter.convert()
    except Exception as error:
        # The converter raises its own unexported type.
        message = str(error)
        lacking = sorted(set(re.findall(r"'(tf\.\w+)' op is", message)))
        raise InputError(
            "TFLite conversion needs operators that are no builtins, or "
            f"failed: {', '.join(lacking) or ' '.join(message.split())[:300]}"
        ) from error
    return for_gpu(content) if name == "tflite_gpu" else content


def _examples(images, image_size, preprocess):
    """Yields the inputs, float32 `[1, H, W, C]`, that calibrate ranges."""
    for image in images:
        yield resize_image(image, image_size)[None].astype("float32")
    # The darkest and the brightest image.
    channels = images[0].shape[-1]
    for value in preprocess.input_range or (0.0, 255.0):
        if preprocess.input_dtype == "uint8":
            # The range that `mean` and `std` make may lie beyond.
            value = np.round(np.clip(value, 0, 255))
        yield np.broadcast_to(
            np.float32(value), (1, *image_size, channels)
        ).copy()
