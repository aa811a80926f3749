"""Logs that a resumed run continues without a doubled or missing epoch."""

import csv
import io
from pathlib import Path

import keras

from keras_aspp.files import replacing, write_text


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
