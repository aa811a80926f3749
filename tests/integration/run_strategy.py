"""One process of a tiny run: STRATEGY ROOT WORKDIR [--resume].

`mirrored` gets two logical CPUs. The last confusion matrix of validation,
which devices count together, is written to WORKDIR/validation.npy.
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_run import replace, tiny_config, toy_segmenter  # noqa: E402

from keras_aspp.cli.log import printed_messages
from keras_aspp.config.schema import LossConfig  # noqa: E402
from keras_aspp.engine import monitor, run  # noqa: E402
from keras_aspp.engine.cluster import worker  # noqa: E402

# Not Lovász: of pixels that are equally wrong, rounding decides its slopes.
LOSSES = LossConfig(
    cross_entropy=1.0,
    dice=0.5,
    tversky=0.3,
    class_weights=[1.0, 2.0, 3.0],
    boundary_weight=2.0,
)


def train(strategy, root, workdir, resume=False):
    config = tiny_config(
        Path(root),
        strategy=strategy,
        loss=LOSSES,
        ema_momentum=0.9,
        learning_rate=0.003,
        distill_from=toy_segmenter(Path(root)),
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
        return run.train(config, workdir, resume)
    finally:
        monitor.TrainingMonitor._check_collapse = before


if __name__ == "__main__":
    name, *folders = sys.argv[1:4]
    if name == "mirrored":
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 2,
        )
    with printed_messages():
        train(name, *folders, "--resume" in sys.argv)
