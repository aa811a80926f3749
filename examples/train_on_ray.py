"""Training on several machines by Ray Train, which starts a worker on each.

    pip install 'ray[train]'
    python examples/train_on_ray.py --workers 2 \
        --config folder --data.root /shared/data --workdir /shared/runs/mine

What follows --workers is for `keras-aspp train`; paths are those of every
machine. Ray sets TF_CONFIG, and with --gpu each worker has one GPU.
"""

import argparse

import ray.train
from ray.train.tensorflow import TensorflowTrainer


def train(config):
    """Trains on one worker."""
    from keras_aspp.cli.main import main

    status = main(
        ["train", *config["arguments"], "--train.strategy", "multi_worker"]
    )
    if status:
        raise SystemExit(status)


def main():
    """Starts the workers and waits for them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--gpu", action="store_true")
    flags, arguments = parser.parse_known_args()
    TensorflowTrainer(
        train,
        train_loop_config={"arguments": arguments},
        scaling_config=ray.train.ScalingConfig(
            num_workers=flags.workers, use_gpu=flags.gpu
        ),
    ).fit()


if __name__ == "__main__":
    main()
