"""Several devices, several machines: what `tf.distribute` needs of a run.

Every device sees its part of a batch; the parts of the loss add up to the
loss of the whole batch, and so do the gradients. Model, losses, metrics and
data know nothing of it, or no more than an attribute.
"""

import json
import os

import tensorflow as tf

from keras_aspp.losses import SegmentationLoss, WeightedSum

SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST")
# Of the workers that Slurm starts; jobs that share a machine differ in it.
FIRST_PORT, PORTS = 20_000, 10_000


def make_strategy(name):
    """The `tf.distribute` strategy of a name.

    `multi_worker` must come before anything else that TensorFlow computes.

    Args:
        name: `"none"`: TensorFlow's default, one device; `"mirrored"`: the
            devices of this machine, GPUs if there are any; `"multi_worker"`:
            those of all machines, see `worker`.

    Returns:
        `tf.distribute.Strategy`.

    Raises:
        ValueError: there is but one device, or no description of a cluster.
    """
    if name == "none":
        return tf.distribute.get_strategy()
    if name == "multi_worker":
        worker(name)
        return tf.distribute.MultiWorkerMirroredStrategy()
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    names = [device.name for device in tf.config.list_logical_devices(kind)]
    if len(names) < 2:
        raise ValueError(
            "train.strategy=mirrored needs at least two devices; leave it at "
            f"none. Received: {', '.join(names)}"
        )
    return tf.distribute.MirroredStrategy(names)


def worker(name):
    """This process's place among those of a run.

    Args:
        name: of the strategy. With `"multi_worker"` the cluster is read from
            `TF_CONFIG`, which Kubernetes' training operator and Ray Train
            set, and which is made of Slurm's variables where it is absent.

    Returns:
        `(index, count)`; 0 is the chief, which alone writes to the workdir.

    Raises:
        ValueError: there is no description of a cluster, or it is none.
    """
    if name != "multi_worker":
        return 0, 1
    if "TF_CONFIG" not in os.environ:
        os.environ["TF_CONFIG"] = json.dumps(_slurm_cluster())
    text = os.environ["TF_CONFIG"]
    try:
        config = json.loads(text)
        addresses = config["cluster"]
        kind, index = config["task"]["type"], int(config["task"]["index"])
        kinds = [k for k in ("chief", "worker") if k in addresses]
        known = [(k, i) for k in kinds for i in range(len(addresses[k]))]
        return known.index((kind, index)), len(known)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            "TF_CONFIG must describe a cluster of workers and a task in it, "
            'as {"cluster": {"worker": ["host:port", ...]}, "task": '
            f'{{"type": "worker", "index": 0}}}}. Received: TF_CONFIG={text}'
        ) from error


def _slurm_cluster():
    """`TF_CONFIG` out of the variables of a Slurm job step.

    TensorFlow's `SlurmClusterResolver` wants GPUs, and sorts hosts by their
    letters: n10 before n2, where Slurm's ranks follow the numbers.
    """
    from tensorflow.python.distribute.cluster_resolver import (
        slurm_cluster_resolver,
    )

    missing = [name for name in SLURM if name not in os.environ]
    if missing:
        raise ValueError(
            "train.strategy=multi_worker needs TF_CONFIG, or to be started "
            f"by Slurm's srun; see docs/scaling.md. Missing: TF_CONFIG, "
            f"{', '.join(missing)}"
        )
    rank, count, hosts = (os.environ[name] for name in SLURM)
    hosts = slurm_cluster_resolver.expand_hostlist(hosts)
    if len(hosts) != int(count):
        raise ValueError(
            "One task a machine takes all its devices: srun "
            f"--ntasks-per-node=1. Received: {count} tasks on {len(hosts)} "
            "machines"
        )
    port = FIRST_PORT + int(os.environ.get("SLURM_JOB_ID", 0)) % PORTS
    return {
        "cluster": {"worker": [f"{host}:{port}" for host in hosts]},
        "task": {"type": "worker", "index": int(rank)},
    }


def check_supported(config, strategy):
    """Raises where a `TrainConfig` asks for what no strategy does.

    Args:
        config: `TrainConfig`.
        strategy: `tf.distribute.Strategy`.

    Raises:
        ValueError: as above, with the reason.
    """
    if config.strategy == "none":
        return
    if config.accumulate_steps > 1:
        raise ValueError(
            "Keras cannot accumulate gradients under a strategy, where devices "
            "would meet inside a condition; give train.batch_size the whole "
            f"batch. Received: accumulate_steps={config.accumulate_steps}"
        )
    if config.precision == "mixed_float16":
        raise ValueError(
            "Under a strategy Keras looks for overflow in the gradients of "
            "the first device only, and that of another spoils the weights; "
            "train.precision=mixed_bfloat16 cannot overflow so. Received: "
            "precision=mixed_float16"
        )
    if config.lr_finder:
        raise ValueError(
            "train.lr_finder tries rates on one device; leave train.strategy "
            f"at none for it. Received: strategy={config.strategy}"
        )
    replicas = strategy.num_replicas_in_sync
    if config.batch_size % replicas:
        raise ValueError(
            "`train.batch_size` is that of all devices together and must be "
            f"a multiple of their number. Received: batch_size="
            f"{config.batch_size}, {replicas} devices"
        )


def training_batches(strategy, make, batch_size):
    """Training data in which every device reads its own examples only.

    Args:
        strategy: `tf.distribute.Strategy`.
        make: function `(batch_size, shard)` that makes an endless data set of
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
    """Validation data of which every device gets its share of each batch.

    A batch that cannot be shared out is filled with pictures that are ignored
    as a whole: each device has as many, and each picture counts once.

    Args:
        strategy: `tf.distribute.Strategy`.
        dataset: `tf.data.Dataset` of `(pictures, labels)` in batches.
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
    """Makes the parts of a loss on several devices add up to that of all.

    Args:
        loss: `SegmentationLoss`, or `WeightedSum` of them.
        strategy: `tf.distribute.Strategy`.

    Returns:
        `loss`.

    Raises:
        TypeError: it is another loss, which averages on each device.
    """
    if isinstance(loss, WeightedSum):
        for part in loss.losses:
            share(part, strategy)
        return loss
    if not isinstance(loss, SegmentationLoss):
        raise TypeError(
            "Only losses of keras_aspp.losses can be normalized over all "
            "devices; CrossEntropy() is Keras' own. Received: a "
            f"{type(loss).__name__}"
        )
    loss.devices = strategy.num_replicas_in_sync
    loss.everywhere = _sum_over_devices
    return loss


def _sum_over_devices(x):
    context = tf.distribute.get_replica_context()
    if context is None:
        return x  # Keras builds a loss outside of any device.
    return context.all_reduce(tf.distribute.ReduceOp.SUM, x)


def prepare(model):
    """Makes a compiled model fit for `fit` under its strategy.

    `MultiWorkerMirroredStrategy` needs it with Keras 3
    (github.com/keras-team/keras/issues/20585); under other strategies, and
    under none, nothing changes but for the checks.

    Args:
        model: `keras.Model`, made and compiled in the scope of the strategy.

    Returns:
        `model`.

    Raises:
        ValueError: it was compiled for what does not work under a strategy.
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
        raise ValueError(
            "XLA cannot compile a step that devices do together: "
            "compile(jit_compile=False). Received: jit_compile=True"
        )
    if model.steps_per_execution > 1:
        raise ValueError(
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
    """Builds metrics and optimizer by a batch of this machine's first device.

    Keras averages the batches of all devices for it, and fails.
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
    """Keras averages the logs of machines over their first axis."""

    def wrapped(data):
        return {
            name: tf.reshape(value, (1,)) for name, value in step(data).items()
        }

    return wrapped
