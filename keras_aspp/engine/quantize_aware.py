"""The part of a run that trains with the rounding of int8."""

import logging
import math

import keras

from keras_aspp.utils.files import write_json

RANGES_FILE = "ranges.json"
_log = logging.getLogger(__name__)


def first_quantized_epoch(config, epochs):
    """Returns the epochs of a run before it rounds.

    Args:
        config: `TrainConfig`.
        epochs: int, epochs of the run.
    """
    last = config.quantize_aware_epochs
    return 0 if last is None else max(epochs - last, 0)


def prepare_quantized(model, config, epochs, steps):
    """Gives a segmenter the quantized form of its run, if it has one.

    Ranges of activations are observed for the first half of its steps.

    Args:
        model: `Segmenter`.
        config: `TrainConfig`.
        epochs: int, epochs of the run.
        steps: int, batches of an epoch.
    """
    if not config.quantize_aware:
        return
    first = first_quantized_epoch(config, epochs)
    observed = max((epochs - first) * steps // 2, 1)
    form = model.prepare_quantized(observed)
    _log.info(
        "Quantization-aware from epoch %d of %d: %d activations and %s "
        "round to 8 bits; ranges are observed for %d steps.",
        first + 1,
        epochs,
        len(form.quantizers),
        "the kernels of most layers" if form.in_float else "all kernels",
        observed,
    )


class QuantizeAwarePhase(keras.callbacks.Callback):
    """Begins to round at an epoch, also of a resumed run.

    From then on validation rounds too, so its best epoch is that of the int8
    model: scores of earlier epochs no longer count.

    Args:
        checkpoints: `Checkpoints` of the run.
        first: int, epochs before it rounds.
    """

    def __init__(self, checkpoints, first):
        super().__init__()
        self.checkpoints, self.first = checkpoints, first

    def on_epoch_begin(self, epoch, logs=None):
        if epoch < self.first:
            return
        if epoch == self.first:
            self.checkpoints.best = -math.inf
        if self.model.is_quantized:
            return
        self.model.is_quantized = True
        # Compiled steps hold the form before; fit reads them for each batch.
        self.model.make_train_function(force=True)
        if self.model.test_function is not None:
            self.model.make_test_function(force=True)


def write_ranges(model, workdir):
    """Writes the ranges of a model that rounds to `ranges.json`."""
    if getattr(model, "is_quantized", False):
        write_json(workdir / RANGES_FILE, model.ranges())
