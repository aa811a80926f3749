"""TensorBoard logs and `history.csv`, continued by a resumed run."""

import csv
import io
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_aspp.plots.labels import hatched
from keras_aspp.utils.files import replacing, write_text


class Compilations(keras.callbacks.Callback):
    """Counts how often the steps of a model are traced, and says so.

    TensorFlow makes a graph of a step when it first sees it, and again for
    batches of another shape; under XLA each shape is compiled besides. More
    traces than a run has shapes of batches are time lost. Counts and what XLA
    resolved to are printed at the end of training, and go to TensorBoard.

    Args:
        model: compiled `keras.Model`, before its first step.
        xla: str, whether XLA is on and why.
        log_dir: folder, or `None` to write nothing.

    Attributes:
        traces: dict, name of the step -> int.
    """

    def __init__(self, model, xla, log_dir=None):
        super().__init__()
        self.xla, self.log_dir = xla, log_dir
        self.traces = {}
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
        print(f"Steps traced: {text}; {self.xla}.")
        if self.log_dir is None:
            return
        with tf.summary.create_file_writer(str(self.log_dir)).as_default(0):
            tf.summary.text("xla", self.xla)
            for name, n in self.traces.items():
                tf.summary.scalar(f"traces/{name}", n)


def write_history(path, rows):
    """Writes `history.csv` whole, in the form of `keras.callbacks.CSVLogger`.

    Args:
        path: of the file.
        rows: list of dict, one for each epoch, `epoch` among the keys.
    """
    columns = sorted({name for row in rows for name in row} - {"epoch"})
    text = io.StringIO()
    writer = csv.DictWriter(text, ["epoch", *columns], restval="NA")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras' own, written before the epoch's checkpoint is."""

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        for writer in self._writers.values():
            writer.flush()


def cut_events(folder, epochs, steps):
    """Takes out of event files what comes after the epochs that are done.

    Args:
        folder: with event files at any depth.
        epochs: int, how many are done.
        steps: int, batches of an epoch.
    """
    import tensorflow as tf

    for path in sorted(Path(folder).rglob("events.out.tfevents.*")):
        kept, whole = [], True
        try:
            for record in tf.data.TFRecordDataset(str(path)):
                record = record.numpy()
                if _is_done(
                    tf.compat.v1.Event.FromString(record), epochs, steps
                ):
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


def _is_done(event, epochs, steps):
    # Keras counts some of its summaries in optimizer steps.
    return all(
        event.step <= epochs * steps
        if value.tag.endswith("_vs_iterations")
        else event.step < epochs
        for value in event.summary.value
    )


class ValidationPictures(keras.callbacks.Callback):
    """Writes images, and labels and predictions over them, to TensorBoard.

    It draws at the end of each validation, by the weights that are validated:
    among callbacks it comes before the one that swaps averaged weights.

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
        self.writer, self.epoch = None, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_test_end(self, logs=None):
        import tensorflow as tf

        if self.writer is None:
            self.writer = tf.summary.create_file_writer(self.log_dir)
        logits = self.model(self.model.preprocess(self.images), training=False)
        predicted = np.argmax(logits, axis=-1)
        rows = [
            np.concatenate(
                [image, *(hatched(image, m, self.spec) for m in maps)], axis=1
            )
            for image, *maps in zip(
                self.images, self.labels, predicted, strict=True
            )
        ]
        with self.writer.as_default():
            tf.summary.image(
                "image, label, prediction",
                np.stack(rows),
                step=self.epoch,
                max_outputs=8,
            )
        self.writer.flush()
