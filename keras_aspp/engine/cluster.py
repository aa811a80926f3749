"""Devices and machines of a run: distribution strategies."""

import json
import os

import tensorflow as tf

from keras_aspp.engine.distributed import FIRST_PORT, PORTS
from keras_aspp.utils.exceptions import InputError

SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST")


def make_strategy(name):
    """Returns the `tf.distribute` strategy of a name.

    `multi_worker` must be created before TensorFlow computes anything.

    Args:
        name: `"none"`: TensorFlow's default, one device; `"mirrored"`: the
            devices of this machine, GPUs if there are any; `"multi_worker"`:
            those of all machines, see `worker`.

    Returns:
        `tf.distribute.Strategy`.

    Raises:
        ValueError: there is only one device, or no description of a cluster.
    """
    if name == "none":
        return tf.distribute.get_strategy()
    if name == "multi_worker":
        worker(name)
        return tf.distribute.MultiWorkerMirroredStrategy()
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    names = [device.name for device in tf.config.list_logical_devices(kind)]
    if len(names) < 2:
        raise InputError(
            "train.strategy=mirrored needs at least two devices; leave it at "
            f"none. Received: {', '.join(names)}"
        )
    return tf.distribute.MirroredStrategy(names)


def worker(name):
    """Returns the index of this process among those of a run.

    Args:
        name: str, the strategy. With `"multi_worker"` the cluster is read from
            `TF_CONFIG`, which Kubernetes' training operator and Ray Train
            set, or from Slurm's variables if it is absent.

    Returns:
        `(index, count)`; 0 is the chief, which alone writes to the workdir.

    Raises:
        ValueError: the description of a cluster is missing or invalid.
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
        raise InputError(
            "TF_CONFIG must describe a cluster of workers and a task in it, "
            'as {"cluster": {"worker": ["host:port", ...]}, "task": '
            f'{{"type": "worker", "index": 0}}}}. Received: TF_CONFIG={text}'
        ) from error


def _slurm_cluster():
    """Returns `TF_CONFIG` from the variables of a Slurm job step.

    TensorFlow's `SlurmClusterResolver` requires GPUs and sorts hosts as text:
    n10 before n2, whereas Slurm's ranks follow the numbers.
    """
    from tensorflow.python.distribute.cluster_resolver import (
        slurm_cluster_resolver,
    )

    missing = [name for name in SLURM if name not in os.environ]
    if missing:
        raise InputError(
            "train.strategy=multi_worker needs TF_CONFIG, or to be started "
            f"by Slurm's srun; see docs/scaling.md. Missing: TF_CONFIG, "
            f"{', '.join(missing)}"
        )
    rank, count, hosts = (os.environ[name] for name in SLURM)
    hosts = slurm_cluster_resolver.expand_hostlist(hosts)
    if len(hosts) != int(count):
        raise InputError(
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
    """Raises `ValueError` for settings that strategies do not support.

    Args:
        config: `TrainConfig`.
        strategy: `tf.distribute.Strategy`.

    Raises:
        ValueError: a setting is not supported; the message has the reason.
    """
    if config.strategy == "none":
        return
    if config.accumulate_steps > 1:
        raise InputError(
            "Keras cannot accumulate gradients under a strategy, where devices "
            "would meet inside a condition; give train.batch_size the whole "
            f"batch. Received: accumulate_steps={config.accumulate_steps}"
        )
    if config.precision == "mixed_float16":
        raise InputError(
            "Under a strategy Keras looks for overflow in the gradients of "
            "the first device only, and that of another spoils the weights; "
            "train.precision=mixed_bfloat16 cannot overflow so. Received: "
            "precision=mixed_float16"
        )
    if config.lr_finder:
        raise InputError(
            "train.lr_finder tries rates on one device; leave train.strategy "
            f"at none for it. Received: strategy={config.strategy}"
        )
    replicas = strategy.num_replicas_in_sync
    if config.batch_size % replicas:
        raise InputError(
            "`train.batch_size` is that of all devices together and must be "
            f"a multiple of their number. Received: batch_size="
            f"{config.batch_size}, {replicas} devices"
        )
