"""How a freshly built head starts: its signals and its gradients.

A kernel that is drawn too small is hidden by the batch norm behind it, and
its gradient is too large by as much. So both are measured.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import npy, sample

from keras_aspp import models
from keras_aspp.context_modules import MODULES

CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
# Convolutions without bias that no normalization follows: LR-ASPP.
LINEAR = {"gate"}
SIZE, CLASSES = (192, 160), 8
CHANNELS = {4: 24, 8: 32, 16: 96}


def rates(module):
    """Small rates, as many as the module has and three at most."""
    count = min(len(module.offsets_px), 3)
    return {"atrous_rates": tuple(range(1, count + 1)) if count else "auto"}


HEADS = [
    ("DeepLabV2", {}),
    ("DeepLabV2", {"fc_filters": 64}),
    ("DeepLabV3", {}),
    ("DeepLabV3", {"separable": True}),
    ("DeepLabV3", {"auxiliary_weight": 0.4}),
    ("CascadedDeepLabV3", {"blocks": 2}),
    ("DeepLabV3Plus", {}),
    ("DeepLabV3Plus", {"separable": True}),
    ("DeepLabV3Plus", {"separable": True, "batch_norm": "group"}),
    *(
        ("DeepLabV3", {"context": name, **rates(module)})
        for name, module in MODULES.items()
        if name != "dpc"
    ),
    ("DeepLabV3Plus", {"context": "ksac", "separable": True}),
    ("DeepLabV3", {"context": "dpc", "atrous_rates": (1, (2, 3), 2, 1, 3)}),
    ("LRASPP", {}),
    ("DAFormer", {}),
    ("DenseASPP", {}),
    ("DenseASPP", {"separable": True}),
]


def test_every_architecture_is_here():
    segmenter = models.Segmenter
    assert {name for name, _ in HEADS} == {
        name
        for name, found in vars(models).items()
        if isinstance(found, type) and issubclass(found, segmenter)
    } - {segmenter.__name__}


@pytest.fixture(scope="module")
def backbone():
    """White noise, convolved, and ReLU: features of unit scale, >= 0."""
    image = keras.Input((None, None, 3), name="image")
    features = {
        f"stride_{stride}": keras.layers.Conv2D(
            channels,
            stride,
            stride,
            activation="relu",
            kernel_initializer=keras.initializers.HeNormal(seed=stride),
            name=f"features_{stride}",
        )(image)
        for stride, channels in CHANNELS.items()
    }
    return keras.Model(image, features)


def with_last_block(backbone):
    """Adds the residual block whose copies a cascade consists of."""

    def conv(x, filters, size, stride):
        x = keras.layers.Conv2D(
            filters,
            size,
            stride,
            padding="same",
            use_bias=False,
            kernel_initializer=keras.initializers.HeNormal(seed=size),
        )(x)
        return keras.layers.BatchNormalization()(x)

    x = backbone.output["stride_16"]
    y = keras.layers.ReLU()(conv(x, 64, 3, 2))
    y = keras.layers.Add()([conv(y, 192, 1, 1), conv(x, 192, 1, 2)])
    features = {**backbone.output, "stride_32": keras.layers.ReLU()(y)}
    return keras.Model(backbone.input, features)


@pytest.mark.parametrize("name, arguments", HEADS, ids=str)
def test_signals_and_gradients_of_a_fresh_head(backbone, name, arguments):
    if name == "CascadedDeepLabV3":
        backbone = with_last_block(backbone)
    elif name != "LRASPP":
        arguments = {"atrous_rates": (1, 2, 3), **arguments}
    model = getattr(models, name)(
        CLASSES, backbone, output_stride=16, dropout=0.0, **arguments
    )
    scales, behind_norm, others = {}, [], []
    inside = {
        id(layer)
        for layer in model.backbone._flatten_layers()
        if not layer.name.startswith("cascade_")
    }
    trained = model._auxiliary.model if model._auxiliary else model
    for layer in trained._flatten_layers():
        if isinstance(layer, CONVOLUTIONS) and id(layer) not in inside:
            record_scale(layer, scales)
            # The ASPP normalizes what DAFormer's linear convolutions give.
            linear = layer.name.startswith("embed_")
            named = LINEAR & {*layer.path.split("/")}
            plain = layer.use_bias and not linear or named
            (others if plain else behind_norm).append(layer.kernel)
    x = sample((4, *SIZE, 3))
    labels = np.random.default_rng(1).integers(0, CLASSES, (4, *SIZE))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # A shared kernel has several convolutions.
    behind_norm = list({k.path: k for k in behind_norm}.values())
    kernels = behind_norm + others
    with tf.GradientTape() as tape:
        found = keras.tree.flatten(trained(x, training=True))
        value = sum(loss(labels, logits) for logits in found)
    gradients = tape.gradient(value, [kernel.value for kernel in kernels])

    assert len(scales) == len(kernels) > 0
    for word in ("auxiliary", "cascade"):
        named = [kernel for kernel in kernels if f"{word}_" in kernel.path]
        assert bool(named) == (word in f"{name} {arguments}".lower())
    for path, scale in scales.items():
        assert 1 / 3 < scale < 3, (path, scale)  # measured: 0.50 to 1.44
    ratios = {
        kernel.path: norm(gradient) / norm(kernel)
        for kernel, gradient in zip(kernels, gradients, strict=True)
    }
    # Behind a normalization the scale of a kernel is free; the gradients of
    # the others are larger for another reason.
    # A last convolution of 3x3 has nine times the gradient of a 1x1.
    most = 1.2 if name == "DAFormer" else 1
    for group in (behind_norm, others):
        found = np.log10([ratios[kernel.path] for kernel in group])
        if found.size:
            assert np.abs(found - found.mean()).max() < most, ratios


def record_scale(layer, scales):
    """Stores the root mean square of the layer's output by its kernel."""
    inner = layer.call

    def call(inputs):
        outputs = inner(inputs)
        scales[layer.kernel.path] = np.sqrt(np.mean(npy(outputs) ** 2))
        return outputs

    layer.call = call


def norm(x):
    return np.linalg.norm(npy(x))
