"""Serving functions in TensorFlow: preprocessing, model, outputs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_aspp.data.decode import MAX_SCANS, SCAN_STARTS
from keras_aspp.data.resize import resize_image
from keras_aspp.layers.background_logit import BackgroundLogit, logit
from keras_aspp.layers.class_thresholds import ClassThresholds
from keras_aspp.layers.lowering import convolve
from keras_aspp.preprocess import Preprocess
from keras_aspp.utils.backend import require_tensorflow
from keras_aspp.utils.types import Size, Tensor

# 4096 x 4096, for which the network needs about 30 GB.
MAX_SERVED_PIXELS = 2**24
# Outputs that artefacts may have, of each pixel.
OUTPUTS = ("labels", "confidence", "probabilities")
# Those of masks that may overlap, of which a pixel has several.
MASK_OUTPUTS = ("labels", "probabilities")
# Output of files for GPUs: float32 `[1, h, w, K]` at the decoder's stride. They
# take float32 pixels in [-1, 1].
COARSE = "coarse_logits"
# Names of `"logits"` and `COARSE` of masks that may overlap: a class is where
# its logit is above 0, and a file without a manifest must not be read as an
# argmax.
MASK_LOGITS, COARSE_MASKS = "mask_logits", "coarse_mask_logits"


def smallest_side(model: keras.Model) -> int:
    """Returns the least height and width of an image that a model segments.

    A convolution that pads too little leaves nothing of a few pixels. Some
    kernels of TensorFlow raise then, and others compute on: oneDNN's, which
    processors with AVX512 use. So it is found from shapes.

    Args:
        model: functional `keras.Model`, images -> scores.

    Returns:
        int > 0, in pixels: the side of the smallest square image of which
        every feature map has a cell. 1 for a model of fixed size.
    """
    if None not in model.input.shape[1:3]:
        return 1
    # Inputs of all layers. A nested model's own input belongs to another graph.
    read = {
        id(tensor): tensor
        for layer in model.layers
        if not isinstance(layer, (keras.Model, keras.layers.InputLayer))
        for tensor in keras.tree.flatten(layer.input)
    }
    maps = keras.Model(model.input, list(read.values()))
    channels = model.input.shape[-1]

    def has_cells(side):
        try:
            shapes = maps.compute_output_shape((1, side, side, channels))
        except ValueError:  # Keras' own, of a convolution that finds no cell
            return False
        return all(0 not in shape for shape in shapes)

    return next(side for side in itertools.count(1) if has_cells(side))


def image_spec(
    model: keras.Model, batch: int | None = None, size: Any = (None, None)
) -> tf.TensorSpec:
    """Returns the signature of the images of a model, as stored.

    Args:
        model: `Segmenter`, or a folded one.
        batch: int, or `None` for any.
        size: `(height, width)`, `None` for any.

    Raises:
        ValueError: Keras runs on another backend, whose models no function of
            TensorFlow can call.
    """
    require_tensorflow("Predicting or exporting a Keras model")
    shape = (batch, *size, model.input.shape[-1])
    return tf.TensorSpec(shape, model.preprocess.input_dtype, "image")


def answer(
    model: keras.Model, image: Tensor, outputs: Sequence[str] = ("labels",)
) -> dict[str, Tensor]:
    """Computes outputs of unprocessed images.

    Args:
        model: `Segmenter`.
        image: tensor `[B, H, W, C]` as stored, any dtype.
        outputs: see `classify`.

    Returns:
        dict: name -> tensor `[B, H, W]` or `[B, H, W, K]`.
    """
    return classify(score(model, image), outputs, threshold_of(model))


def classify(
    scores: Tensor,
    outputs: Sequence[str] = ("labels",),
    threshold: float | tuple[float, ...] | None = None,
) -> dict[str, Tensor]:
    """Computes outputs from logits.

    Args:
        scores: float32 `[B, H, W, K]`.
        outputs: of `"labels"` (int32), `"confidence"` (float32 in 0..1, the
            probability of the label), `"probabilities"` (float32, the softmax
            over classes) and `"logits"`, or `MASK_LOGITS` of masks.
        threshold: float, of a binary model, whose logits contain it, or
            `None`. Probabilities do not depend on it. For a multilabel model, a
            tuple: `labels` are uint8 `[B, H, W, K]`, and `probabilities` the
            sigmoids.

    Returns:
        dict: name -> tensor, as in `outputs`.
    """
    found = {"logits": scores}
    if isinstance(threshold, tuple):
        shift = [logit(one) for one in threshold]
        found[MASK_LOGITS] = scores
        if "labels" in outputs:
            found["labels"] = tf.cast(scores > 0.0, tf.uint8, name="labels")
        if "probabilities" in outputs:
            found["probabilities"] = tf.sigmoid(scores + shift)
        return {name: found[name] for name in outputs}
    if "labels" in outputs:
        found["labels"] = tf.argmax(
            scores, axis=-1, output_type=tf.int32, name="labels"
        )
    if {"confidence", "probabilities"} & set(outputs):
        logits = scores
        if threshold is not None:
            logits -= [logit(threshold), 0.0]
        found["probabilities"] = tf.nn.softmax(logits)
        found["confidence"] = tf.reduce_max(found["probabilities"], axis=-1)
        if threshold is not None:
            background, thing = tf.unstack(found["probabilities"], axis=-1)
            above = scores[..., 1] > scores[..., 0]
            found["confidence"] = tf.where(above, thing, background)
    return {name: found[name] for name in outputs}


def threshold_of(model: keras.Model) -> float | tuple[float, ...] | None:
    """Returns the threshold of a model, as `classify` takes it."""
    for layer in model.layers:
        if isinstance(layer, BackgroundLogit):
            return layer.threshold
        if isinstance(layer, ClassThresholds):
            return layer.thresholds
    return None


def without_unsure(
    found: dict[str, Tensor], min_confidence: Tensor, ignore_label: int
) -> Tensor:
    """Returns labels, with `ignore_label` where confidence is too low.

    Args:
        found: dict with `labels` and `confidence`.
        min_confidence: scalar float.
        ignore_label: int.
    """
    # NaN is never sure.
    sure = found["confidence"] >= min_confidence
    return tf.where(sure, found["labels"], ignore_label)


def answer_coarsely(
    model: keras.Model, image: Tensor, outputs: Sequence[str] = ("labels",)
) -> dict[str, Tensor]:
    """Computes outputs from the scores before they are resized.

    Each pixel takes the values of the nearest score: much less to compute, and
    outlines in steps of the scores' stride.

    Args:
        model: functional `keras.Model` that ends in a segmenter's resize, with
            its `preprocess`.
        image: tensor `[B, H, W, C]` of known size, as stored, any dtype.
        outputs: see `classify`.

    Returns:
        dict: name -> tensor `[B, H, W]` or `[B, H, W, K]`.
    """
    scores = score_coarsely(model, model.preprocess(image))
    resize = model.get_layer("logits")
    rows, columns = resize.nearest_cells(scores.shape[1:3], image.shape[1:3])
    return {
        name: tf.gather(
            tf.gather(values, rows, axis=1), columns, axis=2, name=name
        )
        for name, values in classify(
            scores, outputs, threshold_of(model)
        ).items()
    }


def score_coarsely(model: keras.Model, inputs: Tensor) -> Tensor:
    """Computes float32 logits `[B, h, w, K]` before they are resized.

    Args:
        model: functional `keras.Model` that ends in a segmenter's resize.
        inputs: float tensor `[B, H, W, C]`, preprocessed images.
    """
    before = keras.Model(model.input, model.get_layer("logits").input[0])
    return before(inputs, training=False)


def to_unit_pixels(image: np.ndarray) -> np.ndarray:
    """Maps pixels 0..255 to [-1, 1], float32, as many apps do."""
    return (image / 127.5 - 1).astype("float32")


def from_unit_pixels(preprocess: Preprocess, image: Tensor) -> Tensor:
    """Converts an RGB image that `to_unit_pixels` returns.

    One convolution, since GPUs of phones take no reversal of channels.

    Args:
        preprocess: `Preprocess` of the model.
        image: float32 `[B, H, W, 3]`.
    """
    low, high = map(np.asarray, preprocess.input_range or (0.0, 255.0))
    unit = dataclasses.replace(
        preprocess,
        input_dtype="float32",
        input_range=(low / 127.5 - 1, high / 127.5 - 1),
    )
    matrix, shift = unit.affine(3)
    if np.allclose(matrix, np.eye(3)) and np.allclose(shift, 0):
        return image
    kernel = ops.convert_to_tensor(matrix[None, None])
    return convolve(image, kernel, (1, 1), "valid", (1, 1)) + shift


def full_scores(scores: np.ndarray, size: Size) -> np.ndarray:
    """Returns the scores of pixels from those of cells, as an app resizes them.

    Args:
        scores: float32 `[h, w, K]`, the output `COARSE`.
        size: `(height, width)` of the image.
    """
    return resize_image(scores, size)


def with_size_checked(model: keras.Model, image: Tensor) -> Tensor:
    """Returns images as they are; running the graph fails for too small ones.

    Args:
        model: functional `keras.Model`, images -> scores.
        image: tensor `[B, H, W, C]`.
    """
    least = smallest_side(model)
    if least == 1:
        return image
    height, width = tf.unstack(tf.shape(image)[1:3])
    message = (
        f"images must have at least {least}x{least} pixels; resize them first"
    )
    large = tf.debugging.Assert(
        tf.minimum(height, width) >= least, [message, height, width]
    )
    with tf.control_dependencies([large]):
        return tf.identity(image)


def score(model: keras.Model, image: Tensor) -> Tensor:
    """Computes float32 logits `[B, H, W, K]` of unprocessed images."""
    # `training=False` by name: a Keras export has normalized with batch
    # statistics when a layer upstream set the context otherwise.
    return model(model.preprocess(image), training=False)


def decode_bytes(image_bytes: Tensor) -> Tensor:
    """Decodes JPEG or PNG bytes to uint8 `[H, W, 3]`, as Pillow does.

    EXIF is not read. Servers receive bytes from strangers, so the graph checks
    an image before it decodes it: at most `MAX_SERVED_PIXELS` by its header
    and, in a JPEG, at most `MAX_SCANS` scans. Otherwise it fails with an
    `InvalidArgumentError`.
    """
    is_jpeg = tf.strings.substr(image_bytes, 0, 3) == b"\xff\xd8\xff"
    is_png = tf.strings.substr(image_bytes, 0, 8) == b"\x89PNG\r\n\x1a\n"
    # TensorFlow's PNG decoder takes other formats too.
    known = tf.debugging.Assert(
        is_jpeg | is_png, ["image_bytes must be those of a JPEG or PNG."]
    )
    with tf.control_dependencies([known]):
        size = tf.cond(
            is_jpeg,
            lambda: tf.io.extract_jpeg_shape(image_bytes)[:2],
            lambda: tf.io.decode_raw(
                tf.strings.substr(image_bytes, 16, 8),
                tf.int32,
                little_endian=False,
            ),
        )
        scans = tf.cond(is_jpeg, lambda: _count_scans(image_bytes), lambda: 0)
    small = tf.debugging.Assert(
        tf.reduce_prod(tf.cast(size, tf.int64)) <= MAX_SERVED_PIXELS,
        [f"Images must have at most {MAX_SERVED_PIXELS} pixels."],
    )
    few_scans = tf.debugging.Assert(
        scans <= MAX_SCANS,
        [f"A JPEG must have at most {MAX_SCANS} scans. Received:", scans],
    )
    with tf.control_dependencies([small, few_scans]):
        image = tf.cond(
            is_jpeg,
            lambda: tf.io.decode_jpeg(
                image_bytes, channels=3, dct_method="INTEGER_ACCURATE"
            ),
            lambda: tf.io.decode_png(image_bytes, channels=3),
        )
    return tf.ensure_shape(image, (None, None, 3))


def _count_scans(image_bytes):
    """Counts the scans of a JPEG, as `data.decode` does."""
    # `split` is the one operator of TensorFlow's that finds arbitrary bytes;
    # regular expressions take UTF-8 only.
    pieces = [tf.strings.split(image_bytes, start) for start in SCAN_STARTS]
    return tf.add_n([tf.size(parts) - 1 for parts in pieces])
