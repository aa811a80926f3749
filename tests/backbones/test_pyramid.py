"""Backbones that state a feature pyramid, given as `backbone=`."""

import warnings

import keras
import numpy as np
import pytest
from equality import assert_dense
from helpers import npy, randomize, sample, tensorflow_only
from model_tester import run_tflite, write_logits

import keras_aspp as ka
from keras_aspp.analysis.report import report
from keras_aspp.backbones import with_output_stride
from keras_aspp.backbones.pyramid import (
    StatedPyramid,
    as_it_is,
    pyramid_of,
    stated_strides,
)
from keras_aspp.backbones.rebuild import compute_dtypes, configure
from keras_aspp.layers.lowering import export_form
from keras_aspp.models.features import as_features, coarsest, end_at
from keras_aspp.models.precision import with_dtype

SIZE = (64, 96)
SQUARE = (64, 64)  # of keras-hub's and keras-cv's MiT
ANY = (None, None, 3)
RESNET = {
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [7],
    "stackwise_num_filters": [64, 24, 32, 40],
    "stackwise_num_blocks": [1, 1, 2, 1],
    "stackwise_num_strides": [1, 2, 2, 2],
    "block_type": "basic_block",
    "image_shape": ANY,
}
MIT = {
    "layerwise_depths": [1, 1, 1, 1],
    "num_layers": 4,
    "layerwise_num_heads": [1, 1, 2, 2],
    "layerwise_sr_ratios": [4, 2, 2, 1],
    "max_drop_path_rate": 0.1,
    "layerwise_patch_sizes": [7, 3, 3, 3],
    "layerwise_strides": [4, 2, 2, 2],
    "image_shape": (*SQUARE, 3),
    "hidden_dims": [8, 12, 16, 24],
}
HUB = {
    "ResNetBackbone": RESNET,
    "ResNetBackbone, pre-activation": {**RESNET, "use_pre_activation": True},
    "DenseNetBackbone": {
        "stackwise_num_repeats": [2, 2, 2, 2],
        "image_shape": ANY,
    },
}
HEAD = {"embed_filters": 6, "aspp_filters": 8, "atrous_rates": (1, 2)}


def from_hub(name, arguments):
    reason = "keras-hub is not installed (2026-11-29)"
    models = pytest.importorskip("keras_hub", reason=reason).models
    return randomize(getattr(models, name.split(",")[0])(**arguments))


def from_cv(name, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at its import
        import keras_cv
    return randomize(
        getattr(keras_cv.models, name)(include_rescaling=False, **arguments)
    )


@pytest.fixture(scope="module")
def mit():
    return from_hub("MiTBackbone", MIT)


@pytest.fixture(scope="module")
def daformer(mit):
    """A segmenter of that backbone; each copy of a MiT takes seconds."""
    return ka.models.DAFormer(3, backbone=mit, auxiliary_weight=0.4, **HEAD)


@pytest.mark.slow
@pytest.mark.parametrize("name", HUB)
def test_pyramid_of_keras_hub_is_read_and_made_dense(name):
    backbone = from_hub(name, HUB[name])
    stated = keras.Model(backbone.input, backbone.pyramid_outputs)
    x = sample((1, *SIZE, 3))
    expected = {
        f"stride_{2 ** int(key[1:])}": y for key, y in stated(x).items()
    }
    seen = as_features(backbone, 32)(x)
    for key, y in expected.items():
        np.testing.assert_allclose(npy(seen[key]), npy(y), atol=1e-5)
    dense = as_features(backbone, 8)
    assert {y.shape[1:3] for y in list(dense(x).values())[-3:]} == {(8, 12)}
    for key, y in expected.items():
        step = max(SIZE[0] // 8 // y.shape[1], 1)
        assert_dense(dense(x)[key], y, step)


def test_strides_are_measured_and_not_read_from_the_names(mit):
    # MiT calls its stride 4 "P1".
    assert {key: y.shape[1:3] for key, y in pyramid_of(mit).items()} == {
        "stride_4": (16, 16),
        "stride_8": (8, 8),
        "stride_16": (4, 4),
        "stride_32": (2, 2),
    }


@pytest.mark.slow
def test_attention_backbone_is_used_at_its_own_stride(mit, daformer, tmp_path):
    model = daformer
    assert model.input.shape == (None, *SQUARE, 3)
    x = sample((2, *SQUARE, 3))
    stated = keras.Model(mit.input, mit.pyramid_outputs)(x)
    seen = model.backbone(x)
    for level, key in zip(sorted(stated), pyramid_of(mit), strict=True):
        np.testing.assert_allclose(
            npy(seen[key]), npy(stated[level]), atol=1e-5
        )
    # A copy: training it leaves the given backbone alone.
    ids = {id(weight) for weight in mit.weights}
    assert not ids & {id(weight) for weight in model.weights}
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(npy(loaded(x)), npy(model(x)), atol=1e-5)
    same = ka.models.with_output_stride(loaded, 32)
    np.testing.assert_allclose(npy(same(x)), npy(model(x)), atol=1e-5)
    with pytest.raises(ValueError, match="output_stride=32, it is used as it"):
        ka.models.with_output_stride(loaded, 16)
    found = report(model, SQUARE)
    assert [row["shape"][:2] for row in found["stages"]] == [
        *([16, 16], [8, 8], [4, 4], [2, 2]),
    ]


def test_strides_of_an_attention_backbone_are_those_it_states(mit, daformer):
    assert daformer.auxiliary_feature == "stride_16"
    fine = daformer.backbone
    ended = end_at(fine, "stride_32", 32)
    assert [*ended.output] == [*fine.output] == [*pyramid_of(mit)]
    assert stated_strides(ended)["stride_16"] == 16
    assert stated_strides(mit) == {}
    fine = keras.Model(
        fine.input, {key: fine.output[key] for key in ("stride_8", "stride_4")}
    )
    assert coarsest(fine) == "stride_8"


@pytest.mark.slow
def test_attention_backbone_is_refused_at_another_stride_by_name(mit):
    message = (
        r"`patch_and_embed_0` .OverlappingPatchingAndEmbedding.*"
        r"output_stride=32, it is used as it is; models.DAFormer"
    )
    for stride in (8, 16):
        with pytest.raises(ValueError, match=message) as caught:
            ka.models.DeepLabV3Plus(3, backbone=mit, output_stride=stride)
        assert "\n" not in str(caught.value)
    model = ka.models.DeepLabV3Plus(
        3, backbone=mit, output_stride=32, atrous_rates=(1,)
    )
    assert model(sample((1, *SQUARE, 3))).shape == (1, *SQUARE, 3)


@pytest.mark.slow
def test_attention_backbone_is_copied_to_another_dtype(mit):
    half = from_hub("MiTBackbone", {**MIT, "dtype": "mixed_float16"})
    half.set_weights(mit.get_weights())
    model = ka.models.DAFormer(3, half, dtype="mixed_float16", **HEAD)
    assert compute_dtypes(model.backbone) == {"float16"}
    copy = with_dtype(model, "float32")
    assert compute_dtypes(copy) == {"float32"}
    x = sample((1, *SQUARE, 3))
    expected = as_features(mit, 32)(x)
    for key, y in copy.backbone(x).items():
        np.testing.assert_allclose(npy(y), npy(expected[key]), atol=1e-5)


@keras.saving.register_keras_serializable("test_pyramid")
class Closed(keras.Model):
    """A backbone that takes no dtype."""

    def __init__(self, name=None):
        image = keras.Input((*SQUARE, 3))
        x = keras.layers.Conv2D(4, 3, 2, "same", dtype="float32")(image)
        super().__init__(image, x, name=name)
        self.pyramid_outputs = {"P1": x}

    def get_config(self):
        return {"name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def test_the_dtype_is_that_of_the_backbone_whatever_the_global_one_is():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = as_it_is(Closed())
    finally:
        keras.config.set_dtype_policy(before)
    assert model.get_layer("pyramid").compute_dtype == "float32"
    with pytest.raises(ValueError, match="Closed cannot be copied to another"):
        configure(model, dtype="mixed_bfloat16")


@keras.saving.register_keras_serializable("test_pyramid")
class Pair(keras.layers.Layer):
    """Two convolutions that its configuration does not describe."""

    def build(self, input_shape):
        self.first = keras.layers.Conv2D(4, 1)
        self.second = keras.layers.Conv2D(4, 1)
        self.first.build(input_shape)
        self.second.build((*input_shape[:-1], 4))

    def call(self, inputs):
        return self.second(self.first(inputs))


@keras.saving.register_keras_serializable("test_pyramid")
class Pairs(keras.Model):
    """A backbone whose configuration contains arguments only, as MiT's."""

    def __init__(self, name=None):
        image = x = keras.Input((*SQUARE, 3))
        levels = {}
        for at in (1, 2):
            x = keras.layers.Conv2D(4, 3, 2, "same", name=f"conv{at}")(x)
            x = levels[f"P{at}"] = Pair(name=f"pair{at}")(x)
        super().__init__(image, levels, name=name)
        self.pyramid_outputs = levels

    def get_config(self):
        return {"name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def freeze_all(backbone):
    backbone.trainable = False


def freeze_some(backbone):
    backbone.get_layer("conv1").trainable = False
    backbone.get_layer("pair1").trainable = False
    backbone.get_layer("pair2").first.trainable = False


def freeze_all_but_one(backbone):
    backbone.trainable = False
    backbone.get_layer("pair2").trainable = True


def trained(model):
    return [weight.trainable for weight in model.weights]


# Kernel and bias of conv1, pair1 (two layers), conv2 and pair2 (two layers).
FROZEN = {
    freeze_all: [False] * 12,
    freeze_some: [False] * 6 + [True] * 2 + [False] * 2 + [True] * 2,
    freeze_all_but_one: [False] * 8 + [True] * 4,
}


@pytest.mark.parametrize("freeze", FROZEN)
def test_a_frozen_backbone_used_as_it_is_stays_frozen(freeze, tmp_path):
    backbone = Pairs()
    freeze(backbone)
    assert trained(backbone) == FROZEN[freeze]
    copy = as_it_is(backbone)
    copy.save(tmp_path / "copy.keras")
    loaded = keras.saving.load_model(tmp_path / "copy.keras")
    for model in (copy, loaded, configure(loaded), as_it_is(loaded)):
        assert trained(model) == FROZEN[freeze]
        own = model.get_layer("pyramid").backbone
        for name in ("conv1", "pair1", "conv2", "pair2"):
            assert (
                own.get_layer(name).trainable
                is backbone.get_layer(name).trainable
            )


@pytest.mark.parametrize("outer", ["model", "pyramid", "backbone"])
def test_what_is_frozen_after_the_copy_is_frozen_in_files(outer, tmp_path):
    model = as_it_is(Pairs())
    pyramid = model.get_layer("pyramid")
    {"model": model, "pyramid": pyramid, "backbone": pyramid.backbone}[
        outer
    ].trainable = False
    # A layer within a frozen one, which Keras counts in the outer model.
    pyramid.backbone.get_layer("conv2").trainable = True
    expected = [False] * 6 + [True] * 2 + [False] * 4
    assert trained(model) == expected
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert trained(loaded) == trained(configure(loaded)) == expected
    assert len(loaded.trainable_weights) == len(model.trainable_weights)


def test_a_pyramid_of_an_older_file_loads_as_before():
    pyramid = as_it_is(Pairs()).get_layer("pyramid")
    pyramid.backbone.trainable = False
    config = pyramid.get_config()
    del config["trainable_within"]
    assert all(trained(StatedPyramid.from_config(config)))


@tensorflow_only
@pytest.mark.slow  # TFLite
def test_attention_backbone_exports_to_builtins(daformer, tmp_path):
    model = ka.models.fold_batch_norm(daformer)
    x = sample((1, *SQUARE, 3))
    expected = npy(model(x))
    with export_form():
        write_logits(model, tmp_path / "one", x.shape)
    error = np.abs(run_tflite(tmp_path / "one", x) - expected).max()
    assert error < 1e-3 * expected.std()


CV = {
    "MiTBackbone": {
        "depths": [1, 1, 1, 1],
        "embedding_dims": [16, 32, 40, 64],
        "input_shape": (*SQUARE, 3),
    },
    "CSPDarkNetBackbone": {
        "stackwise_channels": [16, 32, 48, 64],
        "stackwise_depth": [1, 1, 2, 1],
        "input_shape": ANY,
    },
}


@pytest.mark.slow  # imports keras-cv
@pytest.mark.parametrize("name", CV)
def test_closed_backbone_of_keras_cv_is_used_at_its_own_stride(name, tmp_path):
    backbone = from_cv(name, **CV[name])
    model = ka.models.DAFormer(3, backbone=backbone, **HEAD)
    x = sample((1, *SQUARE, 3))
    *_, layer = backbone.pyramid_level_inputs.values()
    last = keras.Model(backbone.input, backbone.get_layer(layer).output)
    np.testing.assert_allclose(
        npy(model.backbone(x)["stride_32"]), npy(last(x)), atol=1e-5
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(npy(loaded(x)), npy(model(x)), atol=1e-5)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    "size", [(512, 512), (513, 513), (299, 300), (300, 513), (224, 33)]
)
def test_strides_of_one_size_need_not_divide_it(size, padding):
    x = image = keras.Input((*size, 3))
    levels = {}
    for at in range(1, 6):
        kernel = 3 if padding == "same" else 2
        x = keras.layers.Conv2D(2, kernel, 2, padding)(x)
        levels[f"P{at}"] = x
    model = keras.Model(image, levels)
    model.pyramid_outputs = levels
    assert [*pyramid_of(model)] == [f"stride_{2**at}" for at in range(1, 6)]


@pytest.mark.parametrize("size", [(96, 96), (513, 513), (300, 96)])
def test_strides_that_are_no_power_of_two_are_refused(size):
    image = keras.Input((*size, 3))
    x = keras.layers.Conv2D(2, 3, 3, "same")(image)
    model = keras.Model(image, x)
    model.pyramid_outputs = {"P1": x}
    with pytest.raises(ValueError, match="power of two"):
        pyramid_of(model)


@pytest.mark.slow  # imports keras-hub
@pytest.mark.parametrize("size", [513, 299])
def test_segmenters_of_a_backbone_of_one_size(size):
    arguments = {**RESNET, "image_shape": (size, size, 3)}
    model = ka.models.DeepLabV3Plus(
        3,
        backbone=from_hub("ResNetBackbone", arguments),
        output_stride=16,
        preprocess=ka.Preprocess(),
        aspp_filters=4,
        decoder_filters=4,
    )
    assert model.output.shape == (None, size, size, 3)


def test_tokens_are_no_maps():
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 8, 8)(image)
    tokens = keras.layers.Reshape((16, 4))(x)
    model = keras.Model(image, tokens)
    model.pyramid_outputs = {"stage1": tokens}
    with pytest.raises(ValueError, match=r"stage1 of shape \(None, 16, 4\)"):
        pyramid_of(model)
    assert pyramid_of(keras.Model(image, x)) == {}
    with pytest.raises(ValueError):
        with_output_stride(model, 4)
