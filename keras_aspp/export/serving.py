"""What is served: Preprocess + model + argmax, as TensorFlow functions."""

import keras
import tensorflow as tf

# 4096 x 4096; the network takes some 30 GB to see them.
MAX_SERVED_PIXELS = 2**24


def segment(model, image):
    """Labels of pictures as they come.

    Args:
        model: `Segmenter`.
        image: tensor `[B, H, W, 3]`, values 0..255, any dtype.

    Returns:
        int32 `[B, H, W]`.
    """
    return tf.argmax(
        score(model, image), axis=-1, output_type=tf.int32, name="labels"
    )


def segment_coarsely(model, image):
    """Labels of the scores as they are, before they are resized.

    Each pixel takes the label of the nearest score: much less to compute, and
    outlines in steps of the scores' stride.

    Args:
        model: functional `keras.Model` that ends in a segmenter's resize, with
            its `preprocess`.
        image: tensor `[B, H, W, 3]` of known size, values 0..255, any dtype.

    Returns:
        int32 `[B, H, W]`.
    """
    resize = model.get_layer("logits")
    before = keras.Model(model.input, resize.input[0])
    scores = before(model.preprocess(image), training=False)
    rows, columns = resize.nearest_cells(scores.shape[1:3], image.shape[1:3])
    labels = tf.argmax(scores, axis=-1, output_type=tf.int32)
    labels = tf.gather(labels, rows, axis=1)
    return tf.gather(labels, columns, axis=2, name="labels")


def score(model, image):
    """float32 logits `[B, H, W, K]` of pictures as they come."""
    # `training=False` by name: a Keras export has normalized with batch
    # statistics when a layer upstream set the context otherwise.
    return model(model.preprocess(image), training=False)


def decode_bytes(image_bytes):
    """JPEG or PNG bytes -> uint8 `[H, W, 3]`, as Pillow decodes them.

    EXIF is not read. Whoever serves gets bytes from strangers, so a picture's
    size is taken from its header and held to `MAX_SERVED_PIXELS` before it is
    decoded; an error of TensorFlow's is the answer to others.
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
    small = tf.debugging.Assert(
        tf.reduce_prod(tf.cast(size, tf.int64)) <= MAX_SERVED_PIXELS,
        [f"Pictures must have at most {MAX_SERVED_PIXELS} pixels."],
    )
    with tf.control_dependencies([small]):
        image = tf.cond(
            is_jpeg,
            lambda: tf.io.decode_jpeg(
                image_bytes, channels=3, dct_method="INTEGER_ACCURATE"
            ),
            lambda: tf.io.decode_png(image_bytes, channels=3),
        )
    return tf.ensure_shape(image, (None, None, 3))
