"""TFLite export: raw pixels in, labels out, builtin operators only."""

import contextlib
import os
import re
import tempfile

import numpy as np
import tensorflow as tf

from keras_aspp.data.resize import resize_image
from keras_aspp.export.equalize import equalize
from keras_aspp.export.gpu import for_gpu
from keras_aspp.export.saved_model import write_one_picture
from keras_aspp.inference import serving
from keras_aspp.layers.lowering import export_form
from keras_aspp.preprocess import KERAS_TF
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.native_log import filtered_stderr

_FLOAT32 = ("tflite_float32", "tflite_any_size", "tflite_logits", "tflite_gpu")
# Largest number of images on which channels are equalized.
_EQUALIZED_ON = 16


def convert(
    model,
    image_size,
    formats,
    calibration_images=(),
    coarse_labels=False,
    phase=contextlib.nullcontext,
    outputs=("labels",),
):
    """Converts a segmenter at one image size.

    Args:
        model: `Segmenter`.
        image_size: `(height, width)`.
        formats: of `"tflite_float32"`, `"tflite_float16"`,
            `"tflite_dynamic_range"`, `"tflite_int8"`, `"tflite_any_size"`,
            `"tflite_logits"`, `"tflite_gpu"`.
        calibration_images: images `[H, W, C]` that calibrate
            `"tflite_int8"`, which takes float32 for images of more than 8
            bits.
        coarse_labels: bool. Label scores, not pixels; see
            `serving.answer_coarsely`. Not for `"tflite_any_size"`, which
            stays exact.
        phase: function of a format that returns a context manager, within
            which that format is converted.
        outputs: of `serving.OUTPUTS`. Not for `"tflite_logits"` and
            `"tflite_gpu"`.

    Returns:
        dict: format -> bytes of the `.tflite`.

    Raises:
        ValueError: the model needs operators that are not builtin.
    """
    found = {}
    with tempfile.TemporaryDirectory() as work:
        for name in formats:
            size = image_size
            input_type = tf.as_dtype(model.preprocess.input_dtype)
            names, coarse = outputs, coarse_labels
            if name == "tflite_logits":
                names, coarse = ("logits",), False
            if name == "tflite_gpu":
                input_type = tf.float32
                names, coarse = (serving.COARSE,), False
            if name == "tflite_any_size":
                size, coarse = (None, None), False
            if name == "tflite_int8":
                # With a uint8 signature the input tensor would stay float.
                input_type = tf.float32
            folder = f"{input_type.name}_{size[0]}_{names[0]}"
            folder = os.path.join(work, folder)
            with phase(name), filtered_stderr(hold=True):
                if not os.path.exists(folder):
                    with export_form():
                        write_one_picture(
                            model, folder, size, input_type, names, coarse
                        )
                found[name] = _convert_one(
                    folder,
                    name,
                    image_size,
                    calibration_images,
                    model.preprocess,
                )
    return found


def _convert_one(
    folder, name, image_size=None, calibration_images=(), preprocess=KERAS_TF
):
    converter = tf.lite.TFLiteConverter.from_saved_model(
        folder, signature_keys=["serving_default"]
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if name not in _FLOAT32:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if name == "tflite_float16":
        converter.target_spec.supported_types = [tf.float16]
    if name == "tflite_int8":
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        ]
        # A scale of its own per tensor leaves 16 bits to the input.
        if preprocess.input_dtype == "uint8":
            converter.inference_input_type = tf.uint8
        converter.representative_dataset = lambda: _examples(
            calibration_images, image_size, preprocess
        )
        _equalize_before_quantizing(
            converter, calibration_images, image_size, preprocess
        )
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


def _equalize_before_quantizing(converter, images, image_size, preprocess):
    # The converter has no hook between its conversion and its quantization.
    quantize = converter._quantize
    few = images[:: -(-len(images) // _EQUALIZED_ON)]

    def equalize_first(content, *arguments, **options):
        examples = _examples(few, image_size, preprocess)
        content = equalize(content, (example for (example,) in examples))
        return quantize(content, *arguments, **options)

    converter._quantize = equalize_first


def _examples(images, image_size, preprocess=KERAS_TF):
    """Yields the inputs on which the converter calibrates."""
    for image in images:
        yield [resize_image(image, image_size)[None].astype("float32")]
    # The range of pixel values, so that the input's scale is 1.
    channels = images[0].shape[-1]
    for value in preprocess.input_range or (0.0, 255.0):
        yield [
            np.broadcast_to(
                np.float32(value), (1, *image_size, channels)
            ).copy()
        ]
