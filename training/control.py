"""Control of training/ablation.py: the same training in plain PyTorch.

    KERAS_ASPP_SHARED=../shared python -m training.control \
        --config ablation_shapes --workdir runs/control \
        --variants aspp_pooling v3_plus --seeds 0 1

Trains each variant, of the ablation or `lr_aspp` and `dense_aspp`, in both
frameworks, from the same weights, on the same batches, with the same loss and
schedule; in PyTorch by `torch.optim.SGD`, and by the update of Keras' SGD.
`--starts` draws the kernels of the head as other packages do; `ours` keeps
those of the layers. The workdir gets the numbers and configuration of each run
(JSON, YAML) and table.md; finished runs are kept. Needs PyTorch: `pip install
keras-aspp[peers]`.
"""

import argparse
import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path

import keras
import numpy as np
import torch

from keras_aspp.cli.main import guarded
from keras_aspp.config.load import config_path, dump_config, load_config
from keras_aspp.config.schema import ModelConfig
from keras_aspp.data.pipeline import evaluation_dataset
from keras_aspp.engine.compile import WarmupPolynomial, compile_model
from keras_aspp.engine.run import Run
from keras_aspp.metrics import ConfusionMatrix
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.files import write_json
from training.ablation import check_same, spread, variants
from training.control_networks import (
    NETWORKS,
    MobileNetV2,
    tensors_of,
    to_torch,
)

# Steps whose losses are averaged for the curve.
CURVE_STEPS = 25


def normal(std):
    """Drawn from a normal distribution."""
    return lambda rng, shape: rng.normal(0, std, shape)


def truncated(std):
    """Drawn from a normal distribution cut off at two deviations."""

    def draw(rng, shape):
        values = rng.normal(0, std, (64, *shape))
        index = np.argmax(np.abs(values) < 2 * std, axis=0)
        return np.take_along_axis(values, index[None], 0)[0]

    return draw


def uniform(limit):
    """Drawn from a uniform distribution."""
    return lambda rng, shape: rng.uniform(-limit, limit, shape)


def of_torch(shape, depthwise, classifier):
    """As `torch.nn.Conv2d`: uniform, variance 1 / (3 fan in); torchvision's."""
    return uniform(_fan_in(shape, depthwise) ** -0.5)


def of_mmseg(shape, depthwise, classifier):
    """Draws as mmcv's `ConvModule`: normal, variance 2 / fan out.

    A depthwise kernel's fan out is counted over all channels. Classifiers
    have deviation 0.01.
    """
    outputs = shape[2] if depthwise else shape[3]
    return normal(
        0.01 if classifier else (2 / (shape[0] * shape[1] * outputs)) ** 0.5
    )


def of_deeplab(shape, depthwise, classifier):
    """Draws as tensorflow/models' deeplab: truncated normal, fixed deviations.

    Depthwise 0.33, the 1x1 after it 0.06, classifier 0.01. Convolutions that
    are not separable (there Glorot's) have 0.06 too.
    """
    return truncated(0.01 if classifier else 0.33 if depthwise else 0.06)


def _fan_in(shape, depthwise):
    return shape[0] * shape[1] * (1 if depthwise else shape[2])


# "ours" keeps what the layers drew, which is also what
# segmentation_models.pytorch draws: variance 2 / fan in, Glorot's classifier.
STARTS = {
    "ours": None,
    "torch": of_torch,
    "mmseg": of_mmseg,
    "deeplab": of_deeplab,
}


def other_heads(model):
    """Returns segmenters beside DeepLab: name -> `ModelConfig`.

    They keep the fields of a DeepLabV3 but those that are its head's.
    """
    own = ModelConfig()
    dense_aspp = dataclasses.replace(
        model,
        architecture="dense_aspp",
        aspp_filters=own.aspp_filters,
        image_pooling=own.image_pooling,
        separable=own.separable,
    )
    lr_aspp = dataclasses.replace(
        dense_aspp, architecture="lr_aspp", atrous_rates=own.atrous_rates
    )
    return {"lr_aspp": lr_aspp, "dense_aspp": dense_aspp}


def kernels_of_head(model):
    """Yields `(layer, variable, is_depthwise)` of the head's convolutions."""
    inside = {id(weight) for weight in model.backbone.weights}
    for layer in model.layers:
        for weight in layer.weights:
            if len(weight.shape) == 4 and id(weight) not in inside:
                # No other kernel of these heads is larger than 1x1.
                yield layer, weight, weight.shape[0] > 1


def redraw(model, start, seed):
    """Draws new kernels of a head, as another package does."""
    rule = STARTS[start]
    if rule is None:
        return
    rng = np.random.default_rng(seed)
    for layer, kernel, depthwise in kernels_of_head(model):
        classifier = layer.name.startswith("classifier")
        draw = rule(tuple(kernel.shape), depthwise, classifier)
        kernel.assign(draw(rng, tuple(kernel.shape)).astype("float32"))


def to_network(model, settings):
    """Returns the PyTorch network of a segmenter, with its weights.

    Args:
        model: `Segmenter` with a MobileNetV2.
        settings: its `ModelConfig`, `separable`; the backbone's name has its
            width.
    """
    width = float(settings.backbone.removeprefix("mobilenet_v2")[1:] or 1)
    eps = next(
        layer.epsilon
        for layer in model.backbone.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    )
    network = NETWORKS[settings.architecture](
        MobileNetV2(settings.output_stride, eps, width),
        settings,
        model.num_classes,
        model.atrous_rates,
    ).to(getattr(torch, model.backbone.weights[0].dtype))
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1 - settings.batch_norm_momentum
    with torch.no_grad():
        for tensor, depthwise, weight in pairs(model, network):
            array = keras.ops.convert_to_numpy(weight)
            tensor.copy_(torch.tensor(to_torch(array, depthwise)))
    return network


def pairs(model, network):
    """Yields `(tensor, is_depthwise, variable)` of one weight in both."""
    layers = {"backbone": model.backbone}
    for name, _ in network.named_children():
        if name != "backbone":
            layers[name] = None
    for layer in model.layers:
        if layer.name in layers:
            layers[layer.name] = layer
    for name, layer in layers.items():
        weights = layer.weights if layer is not None else []
        weights = [w for w in weights if "seed_generator" not in w.path]
        tensors = tensors_of(getattr(network, name))
        for (tensor, depthwise), weight in zip(tensors, weights, strict=True):
            yield tensor, depthwise, weight


def loss_of(network, images, labels, ignore_label):
    """Mean cross entropy over the pixels that are not ignored."""
    scores = network(images)
    return torch.nn.functional.cross_entropy(
        scores, labels, ignore_index=ignore_label
    )


def to_tensors(images, labels):
    """A batch of Keras as tensors of PyTorch."""
    images = torch.tensor(np.asarray(images))
    # A view in memory format "channels last", which is faster.
    return images.movedim(-1, 1), torch.tensor(np.asarray(labels, "int64"))


class KerasSGD(torch.optim.Optimizer):
    """Keras' SGD: the rate is in the velocity, and decay is decoupled.

    `torch.optim.SGD` multiplies the velocity by the rate of the step, and adds
    decay to the gradient, where momentum 0.9 makes it ten times as large.
    """

    def __init__(self, groups, lr, momentum):
        """Takes arguments as `torch.optim.SGD` does."""
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": 0.0}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self):
        """Updates all parameters."""
        for group in self.param_groups:
            rate = group["lr"]
            for weight in group["params"]:
                velocity = self.state[weight].setdefault(
                    "velocity", torch.zeros_like(weight)
                )
                weight.mul_(1 - rate * group["weight_decay"])
                velocity.mul_(group["momentum"]).sub_(rate * weight.grad)
                weight.add_(velocity)


OPTIMIZERS = {"torch": torch.optim.SGD, "torch_keras_sgd": KerasSGD}


def report_step(step, losses):
    """Prints the loss now and then."""
    if step % 100 == 99:
        print(f"{step + 1}: {np.mean(losses[-CURVE_STEPS:]):.3f}", flush=True)


def train_torch(run, network, batches, optimizer):
    """Trains with an optimizer class; returns losses and a function."""
    config = run.config.train
    total = run.epochs * run.steps
    schedule = WarmupPolynomial(
        config.learning_rate, total, config.warmup_steps, config.schedule_power
    )
    kernels = [p for p in network.parameters() if p.ndim == 4]
    rest = [p for p in network.parameters() if p.ndim != 4]
    optimizer = optimizer(
        [
            {"params": kernels, "weight_decay": config.weight_decay},
            {"params": rest},
        ],
        lr=1.0,
        momentum=0.9,
    )
    network.to(memory_format=torch.channels_last).train()
    losses = []
    for step, (images, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(step))
        optimizer.zero_grad()
        loss = loss_of(
            network, *to_tensors(images, labels), run.spec.ignore_label
        )
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        report_step(step, losses)
    network.eval()

    def predict(images):
        with torch.no_grad():
            scores = network(to_tensors(images, ())[0])
        return np.moveaxis(scores.numpy(), 1, -1)

    return losses, predict


def train_keras(run, batches):
    """Trains as `keras-aspp train` does; returns losses and a function."""
    model = run.model
    compile_model(
        model, run.config.train, run.epochs * run.steps, run.spec.ignore_label
    )
    losses = []
    for step, (images, labels) in enumerate(batches):
        losses.append(float(model.train_on_batch(images, labels)[0]))
        report_step(step, losses)
    return losses, model.predict_on_batch


def mean_iou(run, predict):
    """Mean IoU on the test split, with the moving statistics."""
    data = run.config.data
    matrix = ConfusionMatrix(run.spec.num_classes, run.spec.ignore_label)
    for images, labels in evaluation_dataset(
        run.source, data.test_split or data.validation_split, 8
    ):
        scores = predict(np.asarray(run.model.preprocess(images)))
        matrix.update_state(labels, scores)
    return float(matrix.mean_iou())


def run_one(config, framework, start):
    """Trains once; returns numbers."""
    begin = time.perf_counter()
    run = Run(config)
    redraw(run.model, start, config.train.seed)
    batches = run.batches().take(run.epochs * run.steps).as_numpy_iterator()
    if framework in OPTIMIZERS:
        torch.manual_seed(config.train.seed)
        network = to_network(run.model, config.model)
        losses, predict = train_torch(
            run, network, batches, OPTIMIZERS[framework]
        )
    else:
        losses, predict = train_keras(run, batches)
    curve = [
        float(np.mean(losses[i : i + CURVE_STEPS]))
        for i in range(0, len(losses), CURVE_STEPS)
    ]
    return {
        "mean_iou": mean_iou(run, predict),
        "loss": float(np.mean(losses[-4 * CURVE_STEPS :])),
        "curve": curve,
        "minutes": (time.perf_counter() - begin) / 60,
    }


def run(arguments):
    """Trains what is missing, then reports on all that is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ablation_shapes")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--variants", nargs="+", default=["aspp_pooling", "v3_plus"]
    )
    frameworks = [*OPTIMIZERS, "keras"]
    parser.add_argument(
        "--frameworks", nargs="+", default=frameworks, choices=frameworks
    )
    parser.add_argument("--starts", nargs="+", default=["ours"], choices=STARTS)
    flags, overrides = parser.parse_known_args(arguments)
    config = load_config(config_path(flags.config), overrides)
    known = {name: model for name, (_, model) in variants(config.model).items()}
    known |= other_heads(config.model)
    unknown = sorted(set(flags.variants) - set(known))
    if unknown:
        raise InputError(
            f"--variants must be among {', '.join(known)}. Received: {unknown}"
        )
    flags.workdir.mkdir(parents=True, exist_ok=True)
    for seed, start, variant, framework in itertools.product(
        flags.seeds, flags.starts, flags.variants, flags.frameworks
    ):
        name = f"{variant}-{framework}-{start}-seed{seed}"
        file = flags.workdir / f"{name}.json"
        one = dataclasses.replace(
            config,
            model=known[variant],
            train=dataclasses.replace(config.train, seed=seed),
        )
        if file.exists():
            check_same(file.with_suffix(".yaml"), one)
            continue
        print(name, flush=True)
        dump_config(one, file.with_suffix(".yaml"))
        write_json(file, run_one(one, framework, start))
        keras.backend.clear_session()
    print(table(flags.workdir))
    return 0


def table(workdir):
    """Writes table.md: mean and deviation over seeds; returns it."""
    rows = {}
    for file in sorted(workdir.glob("*-seed*.json")):
        name = tuple(file.stem.rsplit("-", 1)[0].split("-"))
        rows.setdefault(name, []).append(json.loads(file.read_text()))
    lines = [
        "| variant | framework | start | mean IoU | loss | runs |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in rows.items():
        cells = [
            spread([numbers[key] for numbers in runs])
            for key in ("mean_iou", "loss")
        ]
        lines.append(f"| {' | '.join([*name, *cells])} | {len(runs)} |")
    text = "\n".join(lines) + "\n"
    (workdir / "table.md").write_text(text)
    return text


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
