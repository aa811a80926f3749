"""Training on several devices and machines with `tf.distribute`.

Each device computes its part of a batch. The parts of the loss add up to the
loss of the whole batch, and so do the gradients. Model, metrics and data are
independent of it; losses have two attributes for it.
"""

import tensorflow as tf

from keras_aspp.losses import PerClass, SegmentationLoss, WeightedSum
from keras_aspp.utils.exceptions import InputError, InputTypeError

# Ports of workers that Slurm starts; jobs that share a machine differ in it.
FIRST_PORT, PORTS = 20_000, 10_000


def training_batches(strategy, make, batch_size):
    """Returns training data of which each device reads its own examples only.

    Args:
        strategy: `tf.distribute.Strategy`.
        make: function `(batch_size, shard)` that returns an endless data set of
            the batches of one device; `shard` is `(index, count)` among the
            machines.
        batch_size: int, examples of all devices together.

    Returns:
        Data set for `model.fit`, distributed.
    """

    def of_worker(context):
        return make(
            context.get_per_replica_batch_size(batch_size),
            (context.input_pipeline_id, context.num_input_pipelines),
        )

    return strategy.distribute_datasets_from_function(of_worker)


def validation_batches(strategy, dataset, ignore_label):
    """Returns validation data of which each device gets a part of each batch.

    A batch that cannot be divided is padded with images that are ignored as a
    whole, so that all parts are equal and each image counts once.

    Args:
        strategy: `tf.distribute.Strategy`.
        dataset: `tf.data.Dataset` of `(images, labels)` in batches.
        ignore_label: int.

    Returns:
        Data set for `model.evaluate`, distributed.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return dataset

    def shared(x, fill, context):
        here = replicas // context.num_input_pipelines
        missing = -tf.shape(x)[0] % replicas
        pad = [[0, missing], *([[0, 0]] * (len(x.shape) - 1))]
        x = tf.pad(x, pad, constant_values=tf.cast(fill, x.dtype))
        parts = tf.stack(tf.split(x, replicas))
        return parts[context.input_pipeline_id * here :][:here]

    def of_worker(context):
        return dataset.map(
            lambda images, labels: (
                shared(images, 0, context),
                shared(labels, ignore_label, context),
            )
        ).unbatch()

    return strategy.distribute_datasets_from_function(of_worker)


def share(loss, strategy):
    """Makes the losses of several devices add up to the loss of the batch.

    Args:
        loss: `SegmentationLoss`, or `WeightedSum` or `PerClass` of them.
        strategy: `tf.distribute.Strategy`.

    Returns:
        `loss`.

    Raises:
        TypeError: the loss is of another class, which averages on each device.
    """
    if isinstance(loss, (WeightedSum, PerClass)):
        for part in getattr(loss, "losses", None) or [loss.loss]:
            share(part, strategy)
        return loss
    if not isinstance(loss, SegmentationLoss):
        raise InputTypeError(
            "Only losses of keras_aspp.losses can be normalized over all "
            "devices; CrossEntropy() is Keras' own. Received: a "
            f"{type(loss).__name__}"
        )
    loss.num_replicas = strategy.num_replicas_in_sync
    loss.all_reduce_sum = _sum_over_devices
    return loss


def _sum_over_devices(x):
    context = tf.distribute.get_replica_context()
    if context is None:
        return x  # Keras builds a loss outside of any device.
    return context.all_reduce(tf.distribute.ReduceOp.SUM, x)


def prepare(model):
    """Prepares a compiled model for `fit` under its strategy.

    `MultiWorkerMirroredStrategy` needs it with Keras 3
    (github.com/keras-team/keras/issues/20585); under other strategies, and
    under none, it only checks.

    Args:
        model: `keras.Model`, made and compiled in the scope of the strategy.

    Returns:
        `model`.

    Raises:
        ValueError: it was compiled with options that strategies do not support.
    """
    strategy = model.distribute_strategy
    if not isinstance(
        strategy,
        (
            tf.distribute.MirroredStrategy,
            tf.distribute.MultiWorkerMirroredStrategy,
        ),
    ):
        return model
    if model.jit_compile:
        raise InputError(
            "XLA cannot compile a step that devices do together: "
            "compile(jit_compile=False). Received: jit_compile=True"
        )
    if model.steps_per_execution > 1:
        raise InputError(
            "`steps_per_execution` does not go with a strategy: Keras loses "
            "the devices' results in its loop. Received: "
            f"steps_per_execution={model.steps_per_execution}"
        )
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        model._maybe_symbolic_build = _LocalBuild(model)
        model.train_step = _with_rank_1(model.train_step)
        model.test_step = _with_rank_1(model.test_step)
    return model


class _LocalBuild:
    """Builds metrics and optimizer from a batch of the first local device.

    Keras would average the batches of all devices, and fail.
    """

    def __init__(self, model):
        self.model = model

    def __call__(self, iterator=None, data_batch=None):
        strategy = self.model.distribute_strategy
        if iterator is not None:
            for _, _, batches in iterator:
                data_batch = tf.nest.map_structure(
                    lambda x: strategy.experimental_local_results(x)[0],
                    next(batches),
                )
                break
        with strategy.scope():
            self.model._symbolic_build(data_batch=data_batch)


def _with_rank_1(step):
    """Returns a step whose logs have an axis, over which Keras averages."""

    def wrapped(data):
        return {
            name: tf.reshape(value, (1,)) for name, value in step(data).items()
        }

    return wrapped
