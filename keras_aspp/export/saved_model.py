"""SavedModel: pictures of any size in, labels out."""

import keras
import tensorflow as tf

from keras_aspp.export import serving


def write_saved_model(model, path):
    """Writes a SavedModel with `serving_default` and `serve_bytes`.

    Args:
        model: `Segmenter`.
        path: folder to write.
    """
    archive = keras.export.ExportArchive()
    archive.track(model)

    def serving_default(image):
        return {"labels": serving.segment(model, image)}

    def serve_bytes(image_bytes):
        image = serving.decode_bytes(image_bytes)
        return {"labels": serving.segment(model, image[None])[0]}

    image = tf.TensorSpec((None, None, None, 3), tf.uint8, "image")
    archive.add_endpoint("serving_default", serving_default, [image])
    archive.add_endpoint(
        "serve_bytes",
        serve_bytes,
        [tf.TensorSpec((), tf.string, "image_bytes")],
    )
    archive.write_out(str(path), verbose=False)


# What a TFLite file answers with.
ANSWERS = {
    "labels": serving.segment,
    "coarse_labels": serving.segment_coarsely,
    "logits": serving.score,
}


def write_one_picture(model, path, image_size, dtype=tf.uint8, answer="labels"):
    """Writes a SavedModel for the TFLite converter.

    A batch of one lets the converter keep every dilated convolution as one
    operator.

    Args:
        model: `Segmenter`.
        path: folder to write.
        image_size: `(height, width)`, or two `None` for any.
        dtype: of the pixels, 0..255 in either case.
        answer: of `ANSWERS`.
    """
    archive = keras.export.ExportArchive()
    archive.track(model)

    def serving_default(image):
        name = answer.removeprefix("coarse_")
        return {name: ANSWERS[answer](model, image)}

    image = tf.TensorSpec((1, *image_size, 3), dtype, "image")
    archive.add_endpoint("serving_default", serving_default, [image])
    archive.write_out(str(path), verbose=False)
