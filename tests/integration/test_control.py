"""Our training beside the same network and training in plain PyTorch."""

import keras
import numpy as np
import pytest
from helpers import npy, randomize, tensorflow_only
from tiny_run import replace, tiny_config, write_folder

from keras_aspp.config.load import dump_config
from keras_aspp.config.schema import ModelConfig, TrainConfig
from keras_aspp.engine.compile import compile_model
from keras_aspp.models.factory import build_model
from keras_aspp.utils.exceptions import InputError

torch = pytest.importorskip("torch")
from training import control  # noqa: E402
from training.control_networks import MobileNetV2, unit  # noqa: E402

IGNORED, CLASSES, RATE, MOMENTUM = 255, 5, 0.005, 0.9
WIDTH = 0.1
HEADS = {
    "deeplab_v3": {"aspp_filters": 16, "atrous_rates": [1, 2]},
    "deeplab_v3_plus": {
        "aspp_filters": 16,
        "atrous_rates": [1, 2],
        "decoder_filters": 16,
        "projection_filters": 8,
    },
    "lr_aspp": {"gate_filters": 16},
    "dense_aspp": {
        "growth_filters": 8,
        "bottleneck_filters": 16,
        "atrous_rates": [1, 2],
    },
}

pytestmark = tensorflow_only


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A state dict, so that ours pads as PyTorch does."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("control") / "narrow.pth"
    network = MobileNetV2(16, width=WIDTH)
    # torchvision has one more convolution, which is not used.
    network.features.append(unit(network.channels[-1], 1280))
    torch.save(network.state_dict(), path)
    return str(path)


def both(architecture, weights, dtype="float32"):
    """A segmenter, and the same network in PyTorch."""
    settings = ModelConfig(
        architecture=architecture,
        backbone=f"mobilenet_v2_{WIDTH}",
        backbone_weights=weights,
        batch_norm_momentum=MOMENTUM,
        dropout=0.0,
        **HEADS[architecture],
    )
    model = randomize(build_model(settings, CLASSES, dtype=dtype))
    return model, control.to_network(model, settings)


def batches(count):
    """Images of colored squares, and their labels, some of them ignored."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        images = rng.normal(0, 0.3, (4, 64, 64, 3)).astype("float32")
        labels = np.zeros((4, 64, 64), "int32")
        for image, label in zip(images, labels, strict=True):
            for k in range(1, CLASSES):
                y, x = rng.integers(0, 44, 2)
                image[y : y + 20, x : x + 20] += (k % 2, k // 2, k - 2)
                label[y : y + 20, x : x + 20] = k
        labels[:, :5] = IGNORED
        yield images, labels


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("architecture", HEADS)
def test_gradients_are_those_of_pytorch(architecture, weights):
    """In float64: in float32, cells near a kink of ReLU differ by rounding."""
    import tensorflow as tf

    model, network = both(architecture, weights, "float64")
    images, labels = next(batches(1))
    pixels = labels != IGNORED
    with tf.GradientTape() as tape:
        scores = model(images, training=True)
        loss = keras.losses.sparse_categorical_crossentropy(
            labels[pixels], scores[pixels], from_logits=True
        )
        loss = keras.ops.mean(loss)
    gradients = tape.gradient(
        loss, [weight.value for weight in model.trainable_weights]
    )
    ours = {
        weight.path: npy(gradient)
        for weight, gradient in zip(
            model.trainable_weights, gradients, strict=True
        )
    }
    expected = control.loss_of(
        network.train(),
        *control.to_tensors(images.astype("float64"), labels),
        IGNORED,
    )
    expected.backward()
    np.testing.assert_allclose(float(loss), expected.item(), rtol=1e-5)
    compared = 0
    for tensor, depthwise, weight in control.pairs(model, network):
        if tensor.requires_grad:
            found = control.to_torch(ours[weight.path], depthwise)
            wanted = tensor.grad.numpy()
            # Batch norm makes the gradient of some offsets 0.
            if np.linalg.norm(wanted) > 1e-6:
                assert distance(found, wanted) < 1e-5, weight.path
                compared += 1
    assert compared > 100


@pytest.mark.parametrize(
    "architecture, dtype, steps, tolerance",
    [
        # Later steps differ: rounding that moves a cell across a kink of
        # ReLU grows a thousandfold at every step. Gradients of the other
        # architectures are compared above.
        ("deeplab_v3_plus", "float64", 3, 1e-4),
        # The fused kernels.
        ("deeplab_v3_plus", "float32", 1, 1e-4),
    ],
)
def test_training_is_that_of_pytorch(
    architecture, dtype, steps, tolerance, weights
):
    """The compiled step: loss, ignored pixels, batch norm and momentum."""
    model, network = both(architecture, weights, dtype)
    network.train()
    total = 10**9  # so that the rate stays at its peak
    config = TrainConfig(
        total_steps=total, learning_rate=RATE, weight_decay=0.0
    )
    compile_model(model, config, total, IGNORED)
    optimizer = torch.optim.SGD(network.parameters(), RATE, MOMENTUM)
    correct = population_variances(network)
    losses, expected = [], []
    for images, labels in batches(steps):
        losses.append(model.train_on_batch(images, labels)[0])
        optimizer.zero_grad()
        loss = control.loss_of(
            network, *control.to_tensors(images.astype(dtype), labels), IGNORED
        )
        loss.backward()
        optimizer.step()
        correct()
        expected.append(loss.item())
    np.testing.assert_allclose(losses, expected, rtol=tolerance)
    for tensor, depthwise, weight in control.pairs(model, network):
        if dtype == "float32" and weight.trainable:
            continue  # see the gradients, in float64
        found = control.to_torch(npy(weight), depthwise)
        wanted = tensor.detach().numpy()
        np.testing.assert_allclose(
            found, wanted, rtol=1e-3, atol=1e-3, err_msg=weight.path
        )


def population_variances(network):
    """Returns a function that makes PyTorch average what Keras averages.

    PyTorch normalizes by the variance of the batch, but averages the one of a
    sample, which is n / (n - 1) larger. The function is called after a step.
    """
    sizes, before = {}, {}
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            before[part] = part.running_var.clone()
            part.register_forward_hook(
                lambda part, inputs, _: sizes.update(
                    {part: inputs[0][:, 0].numel()}
                )
            )

    def correct():
        for part, n in sizes.items():
            old = (1 - part.momentum) * before[part]
            part.running_var.copy_(old + (part.running_var - old) * (n - 1) / n)
            before[part] = part.running_var.clone()

    return correct


def test_the_update_of_keras_is_that_of_keras():
    start = np.array([1.0, -2.0], "float32")
    theirs, ours = (
        torch.nn.Parameter(torch.tensor(start)),
        keras.Variable(start),
    )
    group = {"params": [theirs], "weight_decay": 0.1}
    copy = control.KerasSGD([group], lr=1.0, momentum=MOMENTUM)
    optimizer = keras.optimizers.SGD(0.1, momentum=MOMENTUM, weight_decay=0.1)
    for step, rate in enumerate((0.1, 0.3, 0.2)):
        gradient = np.array([0.5, step], "float32")
        theirs.grad = torch.tensor(gradient)
        copy.param_groups[0]["lr"] = optimizer.learning_rate = rate
        copy.step()
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [ours])
    np.testing.assert_allclose(theirs.detach().numpy(), npy(ours), rtol=1e-6)
    assert np.abs(npy(ours) - start).min() > 0.1


def test_starts_have_the_variances_of_other_packages():
    """Of a depthwise kernel, the 1x1 after it and a classifier."""
    shapes = {(3, 3, 64, 1): True, (1, 1, 64, 96): False}
    expected = {
        # variances: depthwise, 1x1, classifier
        "torch": (1 / 27, 1 / 192, 1 / 192),
        "mmseg": (2 / 576, 2 / 96, 1e-4),
        # A normal distribution cut off at two deviations: 0.774 of its own.
        "deeplab": (0.774 * 0.33**2, 0.774 * 0.06**2, 0.774e-4),
    }
    rng = np.random.default_rng(0)
    for name, variances in expected.items():
        for (shape, depthwise), classifier, variance in zip(
            [*shapes.items(), ((1, 1, 64, 96), False)],
            (False, False, True),
            variances,
            strict=True,
        ):
            draw = control.STARTS[name](shape, depthwise, classifier)
            found = draw(rng, shape).var()
            np.testing.assert_allclose(found, variance, rtol=0.15)


def test_a_run_is_compared_and_kept(tmp_path, weights, capsys):
    # Of one size, since each is traced.
    root = write_folder(tmp_path / "data", sizes=((64, 64),) * 2)
    config = replace(
        tiny_config(root, total_epochs=1),
        model={
            "architecture": "deeplab_v3",
            "backbone": f"mobilenet_v2_{WIDTH}",
            "backbone_weights": weights,
            "weights": None,
            "atrous_rates": [1, 2],
            "decoder_filters": 256,
            "projection_filters": 48,
        },
    )
    dump_config(config, tmp_path / "small.yaml")
    arguments = [
        *("--config", str(tmp_path / "small.yaml")),
        *("--workdir", str(tmp_path / "runs")),
        *("--variants", "v3_plus", "--seeds", "0", "--starts", "mmseg"),
    ]
    assert control.run(arguments) == 0
    table = (tmp_path / "runs" / "table.md").read_text()
    assert table.count("| v3_plus | ") == 3 and "| mmseg |" in table
    before = capsys.readouterr().out
    assert control.run(arguments) == 0
    assert "seed0" in before and "seed0" not in capsys.readouterr().out
    with pytest.raises(InputError, match=r"learning_rate: 0.05 -> 0\.02$"):
        control.run([*arguments, "--train.learning_rate", "0.02"])
