"""A short run on devices and processes of a strategy."""

from pathlib import Path

import numpy as np
import tensorflow as tf
from tiny_run import replace, small_config

from keras_aspp.cli.log import printed_messages
from keras_aspp.config.schema import LossConfig
from keras_aspp.engine import monitor, run
from keras_aspp.engine.cluster import worker

# Not Lovász: of pixels that are equally wrong, rounding decides its slopes.
LOSSES = LossConfig(
    cross_entropy=1.0,
    dice=0.5,
    tversky=0.3,
    class_weights=[1.0, 2.0, 3.0],
    boundary_weight=2.0,
)


def train(strategy, root, workdir, resume=False):
    """Trains, with two logical CPUs if `strategy` is `mirrored`.

    The last confusion matrix of validation, which devices count together, is
    written to `validation.npy` in the workdir.
    """
    if strategy == "mirrored":
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 2,
        )
    config = small_config(
        Path(root),
        strategy=strategy,
        loss=LOSSES,
        ema_momentum=0.9,
        learning_rate=0.003,
        distill_from=str(Path(root) / "small.keras"),
    )
    model = {"batch_norm": "sync", "auxiliary_weight": 0.4}
    config = replace(config, model=model)
    chief = worker(strategy)[0] == 0

    def keep(self, matrix):
        if chief:
            np.save(Path(workdir) / "validation.npy", matrix)

    before = monitor.TrainingMonitor._check_collapse
    monitor.TrainingMonitor._check_collapse = keep
    try:
        with printed_messages():
            return run.train(config, workdir, resume)
    finally:
        monitor.TrainingMonitor._check_collapse = before
