"""fit: the training loop of a run, from its newest checkpoint to its end."""

import logging

import tensorflow as tf
from keras import ops

from keras_aspp.data.pipeline import evaluation_dataset
from keras_aspp.engine.callbacks import reading_params, skipping
from keras_aspp.engine.distributed import training_batches, validation_batches
from keras_aspp.engine.monitor import TrainingMonitor
from keras_aspp.engine.progress import Progress
from keras_aspp.engine.quantize_aware import (
    QuantizeAwarePhase,
    first_quantized_epoch,
)
from keras_aspp.engine.tensorboard import (
    Compilations,
    TensorBoard,
    ValidationImages,
    cut_events,
)
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.signals import stop_signals

# XLA compiles once per image size; with more sizes, graph mode is faster.
MAX_XLA_SIZES = 4
_NUM_SHOWN = 4  # validation images in TensorBoard
_log = logging.getLogger(__name__)


def fit(run, checkpoints, xla, chief=True, own_callbacks=()):
    """Trains to the end of the run, or until it stops early or is interrupted.

    Args:
        run: `Run`, its model compiled.
        checkpoints: `Checkpoints` of the run, restored if it is resumed.
        xla: str, whether XLA compiles the steps and why.
        chief: bool. Show the progress line.
        own_callbacks: those of `train.callbacks`.

    Raises:
        KeyboardInterrupt: a signal came; a checkpoint is saved.
    """
    iterations = int(ops.convert_to_numpy(run.model.optimizer.iterations))
    cut_events(_logs(checkpoints), checkpoints.epochs, iterations)
    compilations = Compilations(xla, _logs(checkpoints))
    # Before the validation data, which may build the test function.
    compilations.set_model(run.model)
    validation = _validation_data(run)
    monitor = TrainingMonitor(
        run.spec,
        run.files_of_batch,
        run.steps,
        checkpoints.epochs,
        checkpoints.steps,
        run.config.train.loss,
        is_trained=run.config.model.weights is not None,
    )
    callbacks = _callbacks(
        run, checkpoints, validation, monitor, compilations, chief
    )
    # The checkpoints are the last, so that they save what others have done.
    callbacks[-1:-1] = own_callbacks
    parts = run, checkpoints, validation, monitor, callbacks

    def goes_on():
        # Each fit of Keras forgets `stop_training` of the one before.
        return checkpoints.epochs < run.epochs and not run.model.stop_training

    with stop_signals(checkpoints.request_stop):
        begun = []  # callbacks to which both fits are one training
        if checkpoints.steps:
            begun = own_callbacks
            # The rest of an epoch; Keras ends each fit with the averages as
            # weights, so the weights are restored after it.
            whole = reading_params(begun, epochs=run.epochs, steps=run.steps)
            with whole, skipping(begun, "on_train_end", goes_on):
                _fit(*parts, part=True)
            with run.strategy.scope():
                checkpoints.restore(run.model)
        if goes_on():
            with skipping(begun, "on_train_begin"):
                _fit(*parts)
        checkpoints.end_if_requested()


def _fit(run, checkpoints, validation, monitor, callbacks, part=False):
    """Calls `model.fit` once, for all epochs left or the rest of one."""
    model, config = run.model, run.config.train
    first, steps = checkpoints.epochs, checkpoints.steps
    epochs = first + 1 if part else run.epochs
    if first >= epochs or checkpoints.out_of_patience() or checkpoints.stopped:
        return
    model.fit(
        training_batches(
            run.strategy,
            lambda batch_size, shard: run.batches(
                first * run.steps + steps, batch_size, shard
            ).map(monitor.check_batch),
            config.batch_size,
        ),
        validation_data=validation_batches(
            run.strategy,
            validation.map(lambda x, y: (model.preprocess(x), y)),
            run.spec.ignore_label,
        ),
        validation_freq=_validation_epochs(config, run.epochs),
        initial_epoch=first,
        epochs=epochs,
        steps_per_epoch=run.steps - steps,
        shuffle=False,
        verbose=0,  # see Progress
        callbacks=callbacks,
    )


def _callbacks(run, checkpoints, validation, monitor, compilations, chief):
    """Callbacks in the order in which they are called."""
    logs = _logs(checkpoints)
    images, labels = next(iter(validation.take(1)))
    averages, settings = checkpoints.averages, run.config.train
    first = first_quantized_epoch(settings, run.epochs)
    return [
        # The first, since the others save and show what it changes.
        *(
            [QuantizeAwarePhase(checkpoints, first)]
            if settings.quantize_aware
            else []
        ),
        *([_progress(run, checkpoints)] if chief else []),
        ValidationImages(
            images[:_NUM_SHOWN].numpy(),
            labels[:_NUM_SHOWN].numpy(),
            run.spec,
            logs / "images",
        ),
        *([averages] if averages else []),
        monitor,
        TensorBoard(logs),
        compilations,
        checkpoints,
    ]


def _progress(run, checkpoints):
    validated = _validation_epochs(run.config.train, run.epochs)
    return Progress(checkpoints, run.epochs, validated)


def _logs(checkpoints):
    return checkpoints.store.workdir / "logs"


def _validation_data(run):
    """Validation data that knows its number of batches.

    Of many image sizes, the model tests in graph mode.

    Raises:
        ValueError: all labels are ignored, so that no epoch would be the best.
    """
    split = run.config.data.validation_split
    data = evaluation_dataset(run.source, split, run.config.train.batch_size)
    sizes, ignored, any_valid = [], run.spec.ignore_label, False
    for _, labels in data:
        sizes.append(tuple(labels.shape[1:]))
        any_valid = any_valid or bool(tf.reduce_any(labels != ignored))
    if not any_valid:
        raise InputError(
            f"Split `{split}` has no valid pixel: all labels are ignored. "
            "Mend the labels, or name another data.validation_split. "
            f"Received: ignore_label={ignored}"
        )
    num_sizes = len(set(sizes))
    if run.model.jit_compile and num_sizes > MAX_XLA_SIZES:
        _log.info("Validation in graph mode: %d image sizes.", num_sizes)
        _test_in_graph_mode(run.model)
    return data.apply(tf.data.experimental.assert_cardinality(len(sizes)))


def _test_in_graph_mode(model):
    # Keras reads jit_compile when it builds the function, which fit reuses.
    model.jit_compile = False
    model.make_test_function(force=True)
    model.jit_compile = True


def _validation_epochs(config, epochs):
    # The last epoch too, whatever the interval.
    every = config.validate_every_epochs
    return sorted({*range(every, epochs + 1, every), epochs})
