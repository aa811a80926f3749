"""SavedModel export: images of any size in, labels out."""

from __future__ import annotations

import tensorflow as tf

from keras_aspp.inference import serving
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.utils.types import PathLike


def write_saved_model(model: Segmenter, path: PathLike) -> None:
    """Writes a SavedModel with `serving_default` and, for RGB, `serve_bytes`.

    Args:
        model: `Segmenter`.
        path: folder to write.
    """

    def segment(image):
        image = serving.with_size_checked(model, image)
        return serving.segment(model, image)

    def serving_default(image):
        return {"labels": segment(image)}

    def serve_bytes(image_bytes):
        image = serving.decode_bytes(image_bytes)
        return {"labels": segment(image[None])[0]}

    image = serving.image_spec(model)
    endpoints = [(serving_default, image)]
    # TensorFlow decodes RGB of 8 bits as Pillow does.
    if image.shape[-1] == 3 and image.dtype == tf.uint8:
        image_bytes = tf.TensorSpec((), tf.string, "image_bytes")
        endpoints.append((serve_bytes, image_bytes))
    _save(model, path, *endpoints)


# Outputs of a TFLite file.
ANSWERS = {
    "labels": serving.segment,
    "coarse_labels": serving.segment_coarsely,
    "logits": serving.score,
}


def write_one_picture(model, path, image_size, dtype=None, answer="labels"):
    """Writes a SavedModel for the TFLite converter.

    A batch of one lets the converter keep every dilated convolution as one
    operator.

    Args:
        model: `Segmenter`.
        path: folder to write.
        image_size: `(height, width)`, or two `None` for any.
        dtype: of the image, with the same values; `None` for the model's.
        answer: of `ANSWERS`.
    """

    def serving_default(image):
        name = answer.removeprefix("coarse_")
        return {name: ANSWERS[answer](model, image)}

    image = serving.image_spec(model, 1, image_size)
    image = tf.TensorSpec(image.shape, dtype or image.dtype, "image")
    _save(model, path, (serving_default, image))


def _save(model, path, *endpoints):
    """Writes functions of one argument, and the weights they use, once.

    Keras' `ExportArchive` writes every weight twice (3.15.1).
    """
    module = tf.Module()
    module.weights = [weight.value for weight in model.variables]
    tf.saved_model.save(
        module,
        str(path),
        signatures={
            function.__name__: tf.function(function, input_signature=[spec])
            for function, spec in endpoints
        },
    )
