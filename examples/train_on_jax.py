"""Training on JAX: XLA stays on, on one device or on all of them.

    pip install 'keras-aspp[jax]'
    python examples/train_on_jax.py my_data --output my_model.keras

`my_data` is a folder data set (README). On several machines start it on each,
with --coordinator HOST:PORT, --processes N and --process 0..N-1. What it saves
loads, evaluates and exports on TensorFlow.
"""

import argparse
import os

os.environ["KERAS_BACKEND"] = "jax"

import keras  # noqa: E402

import keras_aspp as ka  # noqa: E402
from keras_aspp.config.schema import DataConfig  # noqa: E402
from keras_aspp.data.pipeline import training_dataset  # noqa: E402
from keras_aspp.data.sources import open_source  # noqa: E402


def main(arguments=None):
    """Trains DeepLabV3+ on a folder data set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", help="folder data set")
    parser.add_argument("--output", required=True, help="NAME.keras")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--backbone-weights", default=None)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--steps", type=int, default=100, help="per epoch")
    parser.add_argument("--batch-size", type=int, default=8, help="of all")
    parser.add_argument("--crop", type=int, default=320, help="pixels")
    parser.add_argument("--coordinator", help="HOST:PORT of process 0")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    flags = parser.parse_args(arguments)

    if flags.processes > 1:
        keras.distribution.initialize(
            flags.coordinator, flags.processes, flags.process
        )
    devices = keras.distribution.DataParallel(auto_shard_dataset=True)
    keras.distribution.set_distribution(devices)
    keras.utils.set_random_seed(0)

    config = DataConfig(root=flags.data, crop_size=(flags.crop, flags.crop))
    source = open_source(config)
    model = ka.models.DeepLabV3Plus(
        source.spec.num_classes,
        flags.backbone,
        backbone_weights=flags.backbone_weights,
    )
    model.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.PolynomialDecay(
                0.03, flags.epochs * flags.steps, 0.0, power=0.9
            ),
            momentum=0.9,
        ),
        ka.losses.CrossEntropy(source.spec.ignore_label),
        metrics=[
            ka.metrics.ConfusionMatrix(
                source.spec.num_classes, source.spec.ignore_label
            )
        ],
    )
    print(f"{len(keras.distribution.list_devices())} devices, XLA on (JAX)")
    model.fit(
        training_dataset(
            source,
            config.train_split,
            config.augment,
            config.crop_size,
            flags.batch_size,
            model.preprocess,
        ),
        steps_per_epoch=flags.steps,
        shuffle=False,
        epochs=flags.epochs,
    )
    if flags.process == 0:
        model.save(flags.output)
        print(f"model  {flags.output}")


if __name__ == "__main__":
    main()
