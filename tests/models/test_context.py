"""Context modules of DeepLabV3 and DeepLabV3+ by name and as layers."""

import keras
import numpy as np
import pytest
from helpers import assert_close, npy, randomize, sample

import keras_aspp as ka
from keras_aspp.analysis.feature_maps import branches_of
from keras_aspp.analysis.report import report
from keras_aspp.config.schema import ModelConfig
from keras_aspp.context_modules import MODULES
from keras_aspp.layers import (
    ASPP,
    DAPPM,
    AtrousCascade,
    AtrousConv2D,
    DenseASPP,
    DensePredictionCell,
)
from keras_aspp.models import DeepLabV3, DeepLabV3Plus, fold_batch_norm
from keras_aspp.models.factory import build_model

NAMES = tuple(MODULES)
# Layers of which a copy is the whole module.
LAYERS = sorted(set(NAMES) - {"none", "dilated_reparam"})
CELL = ((1, 6), (18, 15), (6, 3), 1, (6, 21))
# Published ones: name, layer, its rates or strides at output stride 16,
# parameters of the module on 24 channels with 8 filters.
PUBLISHED = [
    ("aspp", ASPP, (6, 12, 18), 6_080),
    ("ksac", ASPP, (6, 12, 18), 2_272),
    ("ksac_concat", ASPP, (6, 12, 18), 2_624),
    ("wasp", AtrousCascade, (18, 12, 6), 2_624),
    ("d_linknet", AtrousCascade, (2, 4, 8, 16), 2_656),
    ("dappm", DAPPM, (2, 4, 8), 2_128),
    ("pappm", DAPPM, (2, 4, 8), 2_128),
    ("dpc", DensePredictionCell, CELL, 1_688),
]
PINNED = {name for name, *_ in PUBLISHED} | {"none", "dilated_reparam"}


@pytest.fixture(scope="module")
def build(toy_backbone):
    toy = toy_backbone(padding=1, features=True)

    def build(context, architecture=DeepLabV3, **kwargs):
        kwargs = {"aspp_filters": 8, "backbone": toy, **kwargs}
        return randomize(architecture(5, context=context, **kwargs))

    return build


@pytest.mark.parametrize("name, layer_type, rates, parameters", PUBLISHED)
def test_a_published_module(build, name, layer_type, rates, parameters):
    layer = build(name).get_layer("aspp" if name == "aspp" else "context")
    assert type(layer) is layer_type
    assert getattr(layer, layer.rates_argument) == rates
    assert layer.count_params() == parameters


@pytest.mark.parametrize("name", LAYERS)
def test_a_module_by_its_name(build, name):
    model = build(name, dropout=0.3, batch_norm_momentum=0.7)
    layer = model.get_layer("aspp" if name == "aspp" else "context")
    assert (layer.filters, layer.drop.rate) == (8, 0.3)
    assert layer.batch_norm_momentum == 0.7
    for argument, value in MODULES[name].arguments.items():
        assert getattr(layer, argument) == value
    x = sample((1, 65, 97, 3))
    expected = layer(model.backbone(x)["stride_32"])
    if not layer.normalized:
        expected = model.get_layer("projection")(expected)
    kernel, bias = map(npy, model.get_layer("classifier").weights)
    expected = npy(expected) @ kernel[0, 0] + bias
    scores = keras.Model(model.input, model.get_layer("classifier").output)
    assert_close(scores(x), expected)


# Both architectures build the module by one function.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name, architecture",
    [
        *((name, DeepLabV3) for name in NAMES),
        *((name, DeepLabV3Plus) for name in ("none", "dappm")),
    ],
)
def test_a_file_another_stride_and_folded_batch_norm(
    build, name, architecture, tmp_path
):
    small = {"decoder_filters": 8} if architecture is DeepLabV3Plus else {}
    model = build(name, architecture, output_stride=8, **small)
    x = sample((1, 65, 97, 3))
    logits = npy(model(x))
    assert logits.shape == (1, 65, 97, 5)
    assert ("context" in model.get_config()) == (name != "aspp")
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(npy(copy(x)), logits)
    assert copy.get_layer("classifier") and copy.arguments()["context"] == name

    dense = ka.models.with_output_stride(model, 4)
    back = ka.models.with_output_stride(dense, 8)
    assert back.get_config() == model.get_config()
    np.testing.assert_array_equal(npy(back(x)), logits)

    folded = fold_batch_norm(model)
    assert_close(folded(x), logits, 1e-4, least_std=0.01)
    scales = [w for w in folded.weights if w.path.endswith("gamma")]
    # Batch norm before a convolution stays.
    if name in PINNED:
        assert len(scales) == (11 if name in ("dappm", "pappm") else 0)


def rates_of(model):
    layer = model.get_layer("context")
    return getattr(layer, layer.rates_argument)


def test_a_large_kernel_is_merged(build):
    model = build("dilated_reparam", output_stride=8, dropout=0.3)
    x = sample((1, 65, 97, 3))
    block = model.get_layer("context")
    assert (block.kernel_size, block.atrous_rate) == (13, 2)
    expected = block(model.backbone(x)["stride_32"])
    for name in ("norm", "projection"):
        expected = npy(model.get_layer(name)(expected))
    kernel, bias = map(npy, model.get_layer("classifier").weights)
    scores = keras.Model(model.input, model.get_layer("classifier").output)
    assert_close(scores(x), expected @ kernel[0, 0] + bias)
    folded = fold_batch_norm(model)
    assert folded.get_layer("context").merged
    assert folded.get_layer("context").count_params() == 24 * (13 * 13 + 1)
    assert_close(folded(x), model(x), 1e-4, least_std=0.01)
    with pytest.raises(ValueError, match=r"one atrous rate.*=\(1, 2\)"):
        build("dilated_reparam", atrous_rates=(1, 2))


@pytest.mark.parametrize("name", ["wasp", "d_linknet", "dappm", "dpc"])
def test_distances_follow_the_output_stride(build, name):
    rates, dense = (rates_of(build(name, output_stride=s)) for s in (16, 8))
    assert np.array_equal(
        [2 * np.ravel([a, a])[:2] for a in map(pair, rates)],
        [np.ravel([b, b])[:2] for b in map(pair, dense)],
    )
    model = ka.models.with_output_stride(build(name), 8)
    assert rates_of(model) == dense


def pair(rate):
    return (rate, rate) if isinstance(rate, int) else rate


def test_strides_of_pools_are_no_atrous_rates(build):
    """They neither act as a 1x1 nor are reported as rates."""
    model = build("dappm", input_shape=(64, 64, 3), atrous_rates=(3, 9))
    assert model.atrous_rates == ()
    assert rates_of(model) == (3, 9)
    with pytest.warns(UserWarning, match=r"rates \(9,\) reach beyond the 4x4"):
        build("wasp", input_shape=(64, 64, 3), atrous_rates=(3, 9))


def test_a_layer_of_ones_own_arguments(build, tmp_path):
    mine = AtrousCascade(6, (3, (1, 2)), fusion="sum", name="mine")
    model = build(mine, batch_norm="freeze")
    assert not mine.built  # a copy is used
    assert model.atrous_rates == (3, (1, 2))
    layer = model.get_layer("context")
    assert (layer.filters, layer.fusion) == (6, "sum")
    dense = ka.models.with_output_stride(model, 8)
    assert rates_of(dense) == (6, (2, 4))
    dense.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    x = sample((1, 65, 97, 3))
    np.testing.assert_array_equal(npy(copy(x)), npy(dense(x)))
    assert copy.get_config()["context"] == dense.get_config()["context"]
    back = ka.models.with_output_stride(copy, 16)
    np.testing.assert_array_equal(npy(back(x)), npy(model(x)))


def test_a_pyramid_of_another_output_size(build):
    model = build(DenseASPP(4, 6, (1, 2)))
    assert model.get_layer("context").output.shape[-1] == 24 + 2 * 4
    assert model.atrous_rates == (1, 2)


def test_a_layer_of_keras(build):
    model = build(keras.layers.Conv2D(7, 3, padding="same", name="own"))
    assert model.get_layer("context").kernel.shape == (3, 3, 24, 7)
    assert model.atrous_rates == ()
    with pytest.raises(ValueError, match=r"Conv2D has no atrous rates"):
        build(keras.layers.Conv2D(7, 3), atrous_rates=(1, 2))


def test_a_layer_of_one_rate(build, tmp_path):
    mine = AtrousConv2D(7, atrous_rate=(2, 3))
    model = build(mine)
    assert model.atrous_rates == ((2, 3),)
    dense = ka.models.with_output_stride(model, 8)
    assert dense.get_layer("context").atrous_rate == (4, 6)
    back = ka.models.with_output_stride(dense, 16)
    x = sample((1, 65, 97, 3))
    np.testing.assert_array_equal(npy(back(x)), npy(model(x)))
    # Its weights are found in another model of the same process.
    model.save(tmp_path / "model.keras")
    again = randomize(build(AtrousConv2D(7, atrous_rate=(2, 3))), seed=1)
    again.load_weights(tmp_path / "model.keras")
    np.testing.assert_array_equal(npy(again(x)), npy(model(x)))
    with pytest.raises(ValueError, match=r"AtrousConv2D has one atrous rate"):
        build(mine, atrous_rates=(1, 2))


def test_without_a_module(build):
    model = build("none")
    x = sample((1, 65, 97, 3))
    kernel, bias = map(npy, model.get_layer("classifier").weights)
    scores = keras.Model(model.input, model.get_layer("classifier").output)
    expected = npy(model.backbone(x)["stride_32"]) @ kernel[0, 0] + bias
    assert_close(scores(x), expected)
    with pytest.raises(ValueError, match=r"no atrous branches.*\(1, 2\)"):
        build("none", atrous_rates=(1, 2))


def test_an_unknown_module(build):
    with pytest.raises(ValueError, match=r"'pappm'.*Received: context='psp'"):
        build("psp")


@pytest.mark.slow
def test_from_a_configuration():
    config = ModelConfig(
        "deeplab_v3",
        "mobilenet_v2_0.1",
        backbone_weights=None,
        context="dappm",
        aspp_filters=8,
        output_stride=8,
    )
    model = build_model(config, 5)
    assert rates_of(model) == (4, 8, 16)
    config = ModelConfig("lr_aspp", backbone_weights=None, context="dpc")
    with pytest.raises(ValueError, match="Received: model.context='dpc'"):
        build_model(config, 5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_every_module_is_understood(build, name):
    """Sizes by hand: strides of 16 px; the field of the backbone is 159 px."""
    model = build(name)
    found = report(model, (512, 512))
    assert found["cost"]["uncounted"] == []
    assert not any(row["assumed"] for row in found["layers"])
    parts = {row["name"]: row for row in found["parts"]}
    rows = {row["name"]: row for row in found["head"]}
    if name in ("none", "dilated_reparam"):
        assert branches_of(model, sample((64, 96, 3))) == {}
        return
    part = "aspp" if name == "aspp" else "context"
    layer = model.get_layer(part)
    assert parts[part]["parameters"] == layer.count_params()
    reach = {
        **dict.fromkeys(("aspp", "ksac", "ksac_concat"), 18),
        **{"wasp": 18 + 12 + 6, "d_linknet": 2 + 4 + 8 + 16},
        # Pool, bilinear resize by the stride, 3x3, of the largest ones.
        "dpc": max(1 + 18 + 6, 1 + 6),
    }
    if name in reach:
        size = rows[part]["receptive_field"]
        high = 159 + 2 * 16 * reach[name]
        wide = high if name != "dpc" else 159 + 2 * 16 * (6 + 21)
        assert size == [high, wide]
    if name in PINNED:
        assert rows[part]["global"] == (name not in ("d_linknet", "dpc"))
    maps = branches_of(model, sample((64, 96, 3)))
    assert [*maps] == [*layer.branch_titles, "together"]
    assert {values.shape for values in maps.values()} == {(4, 6)}


@pytest.mark.slow
def test_a_file_from_before_the_normalization(build, tmp_path):
    old = build("dappm", normalize_context=False)
    assert "normalize_context" not in old.get_config()
    old.save(tmp_path / "model.keras")
    x = sample((1, 65, 97, 3))
    for copy in (
        keras.saving.load_model(tmp_path / "model.keras"),
        ka.models.with_output_stride(ka.models.with_output_stride(old, 8), 16),
    ):
        np.testing.assert_array_equal(npy(copy(x)), npy(old(x)))
        assert copy.get_config() == old.get_config()
    new = build("dappm").get_config()
    assert new["normalize_context"] and DeepLabV3.from_config(new).get_layer(
        "projection"
    )


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"none"}))
def test_what_the_classifier_reads_is_of_unit_scale(build, name):
    model = build(name, aspp_filters=32, dropout=0.0)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights(
                [
                    np.full(w.shape, w.path.endswith(("gamma", "variance")))
                    for w in layer.weights
                ]
            )
    read = keras.Model(model.input, model.get_layer("classifier").input)
    x = read(sample((4, 193, 161, 3)), training=True)
    # ReLU of a normal variable has a mean square of 1/2.
    assert 0.2 < np.mean(npy(x) ** 2) < 1, name
