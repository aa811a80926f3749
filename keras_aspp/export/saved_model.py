"""SavedModel export: images of any size in, labels and scores out."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from keras_aspp.inference import serving
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.utils.exceptions import UnavailableError
from keras_aspp.utils.types import PathLike


def write_saved_model(
    model: Segmenter,
    path: PathLike,
    outputs: Sequence[str] = ("labels",),
    ignore_label: int = 255,
) -> None:
    """Writes a SavedModel with `serving_default` and, for RGB, `serve_bytes`.

    Both return labels alone. Further outputs have signatures of their own,
    `serve_scores` and `serve_bytes_scores`, which take `min_confidence` and
    return labels, confidence and the further outputs. For a multilabel
    model, which has no confidence, they take the image alone.

    Args:
        model: `Segmenter`.
        path: folder to write.
        outputs: of `serving.OUTPUTS`.
        ignore_label: int, label of pixels below `min_confidence`.
    """
    is_multilabel = isinstance(serving.threshold_of(model), tuple)
    names = ("labels", *(() if is_multilabel else ("confidence",)), *outputs)
    names = tuple(dict.fromkeys(names))

    def answer(image, names):
        image = serving.with_size_checked(model, image)
        return serving.answer(model, image, names)

    def answer_one(image_bytes, names):
        image = serving.decode_bytes(image_bytes)
        found = answer(image[None], names)
        return {name: values[0] for name, values in found.items()}

    def without_unsure(found, min_confidence):
        labels = serving.without_unsure(found, min_confidence, ignore_label)
        return {**found, "labels": labels}

    def serving_default(image):
        return answer(image, ("labels",))

    def serve_bytes(image_bytes):
        return answer_one(image_bytes, ("labels",))

    # Signatures have the names of functions, and their arguments.
    if is_multilabel:
        share = ()

        def serve_scores(image):
            return answer(image, names)

        def serve_bytes_scores(image_bytes):
            return answer_one(image_bytes, names)

    else:
        share = (tf.TensorSpec((), tf.float32, "min_confidence"),)

        def serve_scores(image, min_confidence):
            return without_unsure(answer(image, names), min_confidence)

        def serve_bytes_scores(image_bytes, min_confidence):
            found = answer_one(image_bytes, names)
            return without_unsure(found, min_confidence)

    image = serving.image_spec(model)
    endpoints = [(serving_default, image)]
    scored = [(serve_scores, image, *share)]
    # TensorFlow decodes RGB of 8 bits as Pillow does.
    if image.shape[-1] == 3 and image.dtype == tf.uint8:
        image_bytes = tf.TensorSpec((), tf.string, "image_bytes")
        endpoints.append((serve_bytes, image_bytes))
        scored.append((serve_bytes_scores, image_bytes, *share))
    if tuple(outputs) != ("labels",):
        endpoints += scored
    _save(model, path, *endpoints)


def write_one_image(
    model, path, image_size, dtype=None, outputs=("labels",), coarse=False
):
    """Writes a SavedModel for the TFLite converter.

    A batch of one lets the converter keep a dilated convolution that is one
    operator as one.

    Args:
        model: `Segmenter`.
        path: folder to write.
        image_size: `(height, width)`, or two `None` for any.
        dtype: of the image, with the same values; `None` for the model's.
        outputs: of `serving.OUTPUTS`, or `"logits"`, or `serving.COARSE` for
            a float32 image in [-1, 1]. A multilabel model has
            `serving.MASK_LOGITS` and `serving.COARSE_MASKS` instead.
        coarse: bool; see `serving.answer_coarsely`.
    """
    answer = serving.answer_coarsely if coarse else serving.answer

    def serving_default(image):
        if outputs[0] in (serving.COARSE, serving.COARSE_MASKS):
            image = serving.from_unit_pixels(model.preprocess, image)
            return {outputs[0]: serving.score_coarsely(model, image)}
        return answer(model, image, outputs)

    image = serving.image_spec(model, 1, image_size)
    image = tf.TensorSpec(image.shape, dtype or image.dtype, "image")
    _save(model, path, (serving_default, image))


def _save(model, path, *endpoints):
    """Writes functions, and the weights they use, once.

    Args:
        model: `Segmenter`.
        path: folder to write.
        *endpoints: `(function, *specs)`, one spec for each argument.

    Keras' `ExportArchive` writes every weight twice (3.15.1).

    Raises:
        OSError: it cannot be written.
    """
    module = tf.Module()
    module.weights = [weight.value for weight in model.variables]
    try:
        tf.saved_model.save(
            module,
            str(path),
            signatures={
                function.__name__: tf.function(
                    function, input_signature=specs, autograph=False
                )
                for function, *specs in endpoints
            },
        )
    # Of a full disk, or a share of it.
    except (
        tf.errors.ResourceExhaustedError,
        tf.errors.OutOfRangeError,
    ) as error:
        reason = error.message.rsplit("; ", 1)[-1]
        raise UnavailableError(
            f"A SavedModel cannot be written: {reason}. Received: {path}"
        ) from error
