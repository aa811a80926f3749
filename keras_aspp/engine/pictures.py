"""Label maps as pictures, and the TensorBoard page of them."""

import keras
import numpy as np


def color_labels(labels, spec):
    """Labels `[..., H, W]` -> uint8 `[..., H, W, 3]`; ignored is black."""
    table = np.zeros((256, 3), "uint8")
    table[: spec.num_classes] = spec.colors()
    table[spec.ignore_label] = 0
    return table[np.asarray(labels)]


def overlay(image, labels, spec, opacity=0.55):
    """uint8 `[H, W, 3]`: the picture with its labels' colours over it."""
    colors = color_labels(labels, spec).astype("float32")
    blend = (1 - opacity) * image.astype("float32") + opacity * colors
    return np.round(blend).astype("uint8")


class ValidationPictures(keras.callbacks.Callback):
    """Writes picture, label and prediction to TensorBoard.

    Args:
        images: uint8 `[N, H, W, 3]`.
        labels: int `[N, H, W]`.
        spec: `DatasetSpec`.
        log_dir: folder.
    """

    def __init__(self, images, labels, spec, log_dir):
        super().__init__()
        self.images, self.labels = images, labels
        self.spec, self.log_dir = spec, str(log_dir)
        self.writer = None

    def on_epoch_end(self, epoch, logs=None):
        if "val_mean_iou" not in (logs or {}):
            return
        import tensorflow as tf

        if self.writer is None:
            self.writer = tf.summary.create_file_writer(self.log_dir)
        logits = self.model(self.model.preprocess(self.images), training=False)
        predicted = np.argmax(logits, axis=-1)
        rows = np.concatenate(
            [
                self.images,
                color_labels(self.labels, self.spec),
                color_labels(predicted, self.spec),
            ],
            axis=2,
        )
        with self.writer.as_default():
            tf.summary.image(
                "picture, label, prediction", rows, step=epoch, max_outputs=8
            )
        self.writer.flush()
