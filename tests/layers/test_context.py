"""What holds for every context layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    SHAPE,
    assert_close,
    compute_dtypes,
    npy,
    randomize,
    sample,
    tensorflow_only,
)
from model_tester import run_tflite, write_logits

from keras_aspp import layers
from keras_aspp.context_modules import MODULES
from keras_aspp.layers import (
    ASPP,
    DAPPM,
    AtrousCascade,
    DenseASPP,
    DensePredictionCell,
)
from keras_aspp.layers.context import ContextLayer
from keras_aspp.layers.lowering import export_form

X = sample() + sample(SHAPE[-1:], seed=1)
# Arguments that are no defaults; with `atrous_rates`, of a size that fits.
LAYERS = {
    "aspp": (ASPP, {"atrous_rates": (1, 2), "fusion": "sum"}),
    "dense_aspp": (DenseASPP, {"atrous_rates": (1, 2)}),
    "ksac": (
        ASPP,
        {"atrous_rates": (1, 2), "shared": True, "fusion": "linear_sum"},
    ),
    "ksac_separable": (
        ASPP,
        {"atrous_rates": (1, (2, 1)), "shared": True, "separable": True},
    ),
    "cascade": (AtrousCascade, {"atrous_rates": (3, (1, 2))}),
    "cascade_sum": (
        AtrousCascade,
        {
            "filters": 5,
            "atrous_rates": (1, 2),
            "fusion": "sum",
            "point": False,
            "image_pooling": False,
            "separable": True,
        },
    ),
    "dappm": (DAPPM, {"branch_filters": 3, "pool_strides": (2, 3)}),
    "pappm": (DAPPM, {"parallel": True}),
    "dpc": (
        DensePredictionCell,
        {
            "branches": [
                {"op": "conv", "kernel": 3, "rate": [1, 2], "input": -1},
                {"op": "pyramid_pooling", "grid_size": [1, 1], "input": -1},
                {"op": "conv", "kernel": [1, 1], "input": 0},
            ]
        },
    ),
}


def others():
    """Named modules whose layer is not above, with small rates."""
    for name, module in MODULES.items():
        layer_type = getattr(layers, module.layer or "", keras.layers.Layer)
        if issubclass(layer_type, ContextLayer) and layer_type not in {
            known for known, _ in LAYERS.values()
        }:
            rates = tuple(range(1, len(module.offsets_px) + 1))
            arguments = {layer_type.rates_argument: rates, **module.arguments}
            yield name, (layer_type, arguments)


LAYERS |= dict(others())
every_layer = pytest.mark.parametrize("name", LAYERS)


def built(name, **kwargs):
    layer_type, arguments = LAYERS[name]
    layer = layer_type(**{"filters": 4, **arguments, **kwargs})
    layer.build(SHAPE)
    return randomize(layer)


@every_layer
@pytest.mark.slow
def test_a_model_of_any_size_in_a_file(name, tmp_path):
    layer = built(name, activation="gelu", dropout=0.3)
    inputs = keras.Input((None, None, SHAPE[-1]))
    model = keras.Model(inputs, layer(inputs))
    assert model.output.shape == layer.compute_output_shape(inputs.shape)
    expected = npy(layer(X))
    assert_close(model.predict(X, verbose=0), expected, 1e-5)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras").layers[-1]
    assert type(copy) is type(layer)
    assert copy.get_config() == layer.get_config()
    assert copy.activation is keras.activations.gelu
    assert copy.drop.rate == 0.3
    np.testing.assert_array_equal(npy(copy(X)), expected)


@every_layer
def test_inference_leaves_batch_norm_alone_and_training_does_not(name):
    layer = built(name)
    moving = [v for v in layer.non_trainable_variables if "moving_" in v.path]
    norms = [
        inner
        for inner in layer._flatten_layers()
        if isinstance(inner, keras.layers.BatchNormalization)
    ]
    assert len(moving) == 2 * len(norms) > 0
    before = [npy(v) for v in moving]
    layer(X)  # no `training` argument, on purpose
    for a, b in zip(before, moving, strict=True):
        np.testing.assert_array_equal(a, npy(b))
    layer(X, training=True)
    for a, b in zip(before, moving, strict=True):
        assert np.abs(a - npy(b)).max() > 1e-4, b.path


@every_layer
def test_dropout_is_for_training_only(name):
    layer = built(name, dropout=0.5)
    np.testing.assert_array_equal(npy(layer(X)), npy(layer(X)))
    first, second = (npy(layer(X, training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 0.1


@every_layer
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_dtype_policy_reaches_every_sublayer(name, policy):
    layer = built(name, dtype=policy)
    dtypes = compute_dtypes(layer)
    # Sums over many cells are of float32.
    inner = {d for n, d in dtypes.items() if "pool_" not in n}
    assert inner == {policy[6:]}
    assert keras.backend.standardize_dtype(layer(X).dtype) == policy[6:]
    exact = npy(built(name)(X))
    error = np.abs(npy(layer(X)).astype("float32") - exact).max()
    assert error < (0.3 if policy == "mixed_bfloat16" else 0.05) * exact.std()


@every_layer
def test_batch_norm_policies(name):
    frozen = built(name, batch_norm="freeze")
    before = [npy(v) for v in frozen.weights]
    frozen(X, training=True)
    for a, b in zip(before, frozen.weights, strict=True):
        np.testing.assert_array_equal(a, npy(b))
    for policy, kind in (
        (False, None),
        ("group", keras.layers.GroupNormalization),
    ):
        # Several channels for each group, unless the input is added.
        wide = {} if "sum" in name else {"filters": 12}
        layer = built(name, batch_norm=policy, **wide)
        kinds = {
            type(inner)
            for inner in layer._flatten_layers()
            if "Normalization" in type(inner).__name__
        }
        assert all(kind and issubclass(found, kind) for found in kinds)
        assert bool(kinds) == bool(policy)
        assert npy(layer(X)).std() > 0.01


@every_layer
def test_a_title_for_each_branch(name):
    layer = built(name)
    maps = layer.branch_maps(X, training=False)
    assert len(layer.branch_titles) == len(maps) > 1
    assert_close(layer.fuse(maps, X, False), layer(X), 1e-6)


@every_layer
def test_a_copy_with_other_rates(name):
    layer = built(name)
    count = len(getattr(layer, layer.rates_argument))
    copy = layer.with_rates((5, 7, 9)[:count], name="other")
    assert copy.name == "other"
    changed = {
        key
        for key, value in copy.get_config().items()
        if value != layer.get_config()[key]
    }
    assert changed - {"branches"} == {"name", layer.rates_argument}
    assert getattr(copy, layer.rates_argument) == (5, 7, 9)[:count]


@tensorflow_only
@pytest.mark.slow  # a compilation each
@every_layer
def test_xla_computes_the_same(name):
    layer = built(name)
    compiled = tf.function(lambda x: layer(x), jit_compile=True)
    assert_close(compiled(X), layer(X))


@tensorflow_only
@pytest.mark.slow  # a conversion each
@every_layer
def test_tflite_of_builtin_operators(name, tmp_path):
    inputs = keras.Input((None, None, SHAPE[-1]))
    layer = built(name)
    model = keras.Model(inputs, layer(inputs))
    x = X[:1]
    with export_form():
        write_logits(model, tmp_path / "one", x.shape)
    assert_close(run_tflite(tmp_path / "one", x), layer(x))
