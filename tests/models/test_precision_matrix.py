"""Architectures, precisions and ways to run them: the same loss and labels.

The reference is float32 in graph mode. Tolerances are 3 to 10 times what was
measured.
"""

import itertools

import keras
import numpy as np
import pytest
from helpers import make_small_backbone, npy, randomize, sample
from model_tester import SMALL_HEADS

import keras_aspp as ka
from keras_aspp.models import factory

ARCHITECTURES = {
    architecture: SMALL_HEADS.get(architecture, {})
    for architecture in factory.ARCHITECTURES.values()
}
# Loss: relative difference. Labels: share of pixels that must agree.
TOLERANCES = {
    "float32": (1e-5, 0.9999),
    "mixed_bfloat16": (3e-2, 0.9),
    "mixed_float16": (4e-3, 0.98),
}
SIZE = (64, 96)
# DeepLabV3 on few layers would label all pixels alike.
WITH_ALL_LAYERS = (ka.models.CascadedDeepLabV3, ka.models.DeepLabV3)


@pytest.fixture
def numbers(toy_backbone):
    """Losses of two training steps, and labels."""

    def numbers(architecture, dtype, jit_compile):
        if architecture in WITH_ALL_LAYERS:
            backbone = toy_backbone(padding=1, features=True, dtype=dtype)
        else:
            backbone = make_small_backbone(dtype)
        model = architecture(
            5, backbone, dropout=0.0, dtype=dtype, **ARCHITECTURES[architecture]
        )
        randomize(model)
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 5, (2, *SIZE)).astype("int32")
        labels[0, :20] = 255
        x = sample((2, *SIZE, 3))
        model.compile(
            keras.optimizers.SGD(0.01),
            ka.losses.CrossEntropy(),
            jit_compile=jit_compile,
        )
        predicted = np.argmax(model.predict(x, verbose=0), -1)
        trained = [model.train_on_batch(x, labels) for _ in range(2)]
        assert model.jit_compile is jit_compile
        return np.array(trained), predicted

    return numbers


def ways(architecture):
    """`(dtype, with XLA)` of an architecture, beside float32 without.

    Each pair of architecture, precision and way to run is in one of them.
    """
    index = list(ARCHITECTURES).index(architecture)
    even = index % 2 == 0
    found = [("mixed_bfloat16", even), ("mixed_float16", not even)]
    return [*found, ("float32", True)] if index == 0 else found


def test_every_pair_is_in_one_of_the_ways():
    found = {
        (architecture, dtype, jit)
        for architecture in ARCHITECTURES
        for dtype, jit in [("float32", False), *ways(architecture)]
    }
    axes = (ARCHITECTURES, TOLERANCES, (False, True))
    for i, j in itertools.combinations(range(3), 2):
        pairs = set(itertools.product(axes[i], axes[j]))
        assert {(row[i], row[j]) for row in found} == pairs


@pytest.mark.slow  # compiled by XLA
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_same_loss_and_labels(numbers, architecture):
    expected, labels = numbers(architecture, "float32", False)
    assert len(np.unique(labels)) > 1
    assert expected[1] < expected[0]
    for dtype, jit_compile in ways(architecture):
        rough, agreement = TOLERANCES[dtype]
        found, predicted = numbers(architecture, dtype, jit_compile)
        where = f"{architecture.__name__} {dtype} XLA {jit_compile}"
        worst = np.abs(found / expected - 1).max()
        share = np.mean(predicted == labels)
        print(f"{where}: loss {worst:.1e}, labels {share:.5f}")
        assert worst <= rough, where
        assert share >= agreement, where


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_keras_may_compile_it(architecture, toy_backbone):
    """`compile(jit_compile="auto")` finds no layer that XLA cannot take."""
    model = architecture(5, toy_backbone(), **ARCHITECTURES[architecture])
    assert not [
        layer.name
        for layer in model._flatten_layers()
        if not layer.supports_jit
    ]
    model.compile("sgd", ka.losses.CrossEntropy(), jit_compile="auto")
    assert isinstance(model.jit_compile, bool)


@pytest.mark.parametrize(
    "dtype", ["float32", "mixed_bfloat16", "mixed_float16"]
)
def test_loss_is_scaled_for_float16_only(toy_backbone, dtype):
    scaled = keras.optimizers.LossScaleOptimizer
    model = ka.models.LRASPP(
        3, toy_backbone(dtype=dtype), gate_filters=4, dtype=dtype
    )
    model.compile("sgd", ka.losses.CrossEntropy())
    assert isinstance(model.optimizer, scaled) == (dtype == "mixed_float16")
    model.compile("sgd", ka.losses.CrossEntropy(), auto_scale_loss=False)
    assert not isinstance(model.optimizer, scaled)
    model.compile(scaled(keras.optimizers.SGD()), ka.losses.CrossEntropy())
    assert not isinstance(model.optimizer.inner_optimizer, scaled)


def test_gradients_below_float16_are_not_lost(toy_backbone):
    """Without a scale they would round to 0, and the weights stay."""
    model = randomize(
        ka.models.LRASPP(
            3,
            toy_backbone(padding=1, dtype="mixed_float16"),
            gate_filters=4,
            dtype="mixed_float16",
        )
    )
    tiny = ka.losses.WeightedSum([ka.losses.CrossEntropy()], [1e-6])
    model.compile(keras.optimizers.SGD(1e4), tiny, jit_compile=False)
    stem = model.backbone.get_layer("stem").kernel
    before = npy(stem)
    labels = np.zeros((2, *SIZE), "int32")
    model.train_on_batch(sample((2, *SIZE, 3)), labels)
    assert np.mean(npy(stem) != before) > 0.9
