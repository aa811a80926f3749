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


@pytest.mark.parametrize("name, arguments", HEADS, ids=str)
def test_signals_and_gradients_of_a_fresh_head(backbone, name, arguments):
    if name != "LRASPP":
        arguments = {"atrous_rates": (1, 2, 3), **arguments}
    model = getattr(models, name)(
        CLASSES, backbone, output_stride=16, dropout=0.0, **arguments
    )
    scales, behind_norm, others = {}, [], []
    inside = {id(layer) for layer in model.backbone._flatten_layers()}
    for layer in model._flatten_layers():
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
        value = loss(labels, model(x, training=True))
    gradients = tape.gradient(value, [kernel.value for kernel in kernels])

    assert len(scales) == len(kernels) > 0
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
