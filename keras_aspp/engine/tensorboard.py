"""TensorBoard logs, continued by a resumed run."""

import itertools
import logging
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_aspp.inference.sliding_window import decide
from keras_aspp.pixels import to_rgb
from keras_aspp.plots.labels import hatched
from keras_aspp.utils.files import replacing

# Folders below logs/ and summaries that a run writes. Callbacks of the user may
# write other ones, also into these folders, and count other steps.
_FOLDERS = ("", "train", "validation", "images")
_IMAGES = "image, label, prediction"
_log = logging.getLogger(__name__)


class Compilations(keras.callbacks.Callback):
    """Counts how often the steps of a model are traced.

    TensorFlow traces a step once per batch shape; XLA compiles each shape as
    well. More traces than batch shapes are wasted time. Counts and the XLA
    setting are logged at the end of training and written to TensorBoard.

    Args:
        xla: str, whether XLA is on and why.
        log_dir: folder, or `None` to write nothing.

    Attributes:
        traces: dict, name of the step -> int.
    """

    def __init__(self, xla, log_dir=None):
        super().__init__()
        self.xla, self.log_dir = xla, log_dir
        self.traces, self._counted_model = {}, None

    def set_model(self, model):
        super().set_model(model)
        # Not in on_train_begin: fit looks the step up before it. The counters
        # stay on the model, whose traced functions outlive one fit.
        if self._counted_model is model:
            return
        self._counted_model = model
        for name in ("train_step", "test_step", "predict_step"):
            setattr(model, name, self._counted(name, getattr(model, name)))

    def _counted(self, name, step):
        graph = None

        def wrapped(data):
            # Python runs this once for each trace, on each device.
            nonlocal graph
            before, graph = graph, tf.compat.v1.get_default_graph()
            if graph is not before:
                self.traces[name] = self.traces.get(name, 0) + 1
            return step(data)

        return wrapped

    def on_train_end(self, logs=None):
        text = ", ".join(f"{name} {n}" for name, n in self.traces.items())
        _log.info("Steps traced: %s; %s.", text, self.xla)
        if self.log_dir is None:
            return
        with tf.summary.create_file_writer(str(self.log_dir)).as_default(0):
            tf.summary.text("xla", self.xla)
            for name, n in self.traces.items():
                tf.summary.scalar(f"traces/{name}", n)


class TensorBoard(keras.callbacks.TensorBoard):
    """`keras.callbacks.TensorBoard`, flushed before the epoch's checkpoint."""

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        for writer in self._writers.values():
            writer.flush()


def cut_events(folder, epochs, iterations):
    """Removes a run's events after the last finished epoch from its files.

    Args:
        folder: `logs/` of the run.
        epochs: int, number of finished epochs.
        iterations: int, `optimizer.iterations` of the state to go on from.
    """
    folders = [Path(folder, name) for name in _FOLDERS]
    files = (path.glob("events.out.tfevents.*") for path in folders)
    for path in sorted(itertools.chain(*files)):
        kept, whole = [], True
        try:
            for record in tf.data.TFRecordDataset(str(path)):
                record = record.numpy()
                event = tf.compat.v1.Event.FromString(record)
                if _is_done(event, epochs, iterations):
                    kept.append(record)
                else:
                    whole = False
        except tf.errors.DataLossError:  # killed within a record
            whole = False
        if whole:
            continue
        with (
            replacing(path) as temporary,
            tf.io.TFRecordWriter(str(temporary)) as writer,
        ):
            for record in kept:
                writer.write(record)


def _is_done(event, epochs, iterations):
    def is_done(tag):
        # Keras counts some of its summaries in iterations of the optimizer:
        # updates or, with a learning rate of the backbone, batches.
        if tag.endswith("_vs_iterations"):
            return event.step <= iterations
        return event.step < epochs or not tag.startswith(("epoch_", _IMAGES))

    return all(is_done(value.tag) for value in event.summary.value)


class ValidationImages(keras.callbacks.Callback):
    """Writes images with overlays of labels and predictions to TensorBoard.

    It predicts at the end of each validation with the validated weights, so it
    must come before the callback that swaps averaged weights.

    Args:
        images: `[N, H, W, C]`, as stored.
        labels: int `[N, H, W]`.
        spec: `DatasetSpec`.
        log_dir: folder.
    """

    def __init__(self, images, labels, spec, log_dir):
        super().__init__()
        self.images, self.labels = images, labels
        self.spec, self.log_dir = spec, str(log_dir)
        self.writer, self.epoch = None, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_test_end(self, logs=None):
        if self.writer is None:
            self.writer = tf.summary.create_file_writer(self.log_dir)
        logits = self.model(self.model.preprocess(self.images), training=False)
        threshold = getattr(self.model, "threshold", None)
        predicted = decide(np.asarray(logits), threshold)
        rows = [
            np.concatenate(
                [to_rgb(image), *(hatched(image, m, self.spec) for m in maps)],
                axis=1,
            )
            for image, *maps in zip(
                self.images, self.labels, predicted, strict=True
            )
        ]
        with self.writer.as_default():
            tf.summary.image(
                _IMAGES,
                np.stack(rows),
                step=self.epoch,
                max_outputs=8,
            )
        self.writer.flush()
