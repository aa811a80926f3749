"""keras-cv's backbones, taken as they are: dense is exact, or refused."""

import warnings

import keras
import numpy as np
import pytest
from equality import assert_dense, errors
from helpers import npy, randomize, sample

import keras_aspp as ka
from keras_aspp.backbones import stage_ends, with_output_stride

STAGES = {
    "stackwise_filters": [16, 32, 48, 64],
    # Of a stage of one block, ResNetV2 names the block twice, and fails.
    "stackwise_blocks": [2, 2, 3, 2],
    "stackwise_strides": [1, 2, 2, 2],
}
CHANNELS = {
    "stackwise_channels": [16, 32, 48, 64],
    "stackwise_depth": [1, 1, 2, 1],
}
EFFICIENT = {
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "stackwise_kernel_sizes": [3, 3, 5, 3, 5],
    "stackwise_num_repeats": [1, 2, 1, 2, 2],
    "stackwise_input_filters": [16, 8, 12, 16, 24],
    "stackwise_output_filters": [8, 12, 16, 24, 32],
    "stackwise_expansion_ratios": [1, 4, 4, 4, 4],
    "stackwise_strides": [1, 2, 2, 2, 2],
}
MOBILE = {
    "stackwise_expansion": [1, 4, 6, 6],
    "stackwise_filters": [16, 24, 40, 64],
    "stackwise_kernel_size": [3, 3, 5, 5],
    "stackwise_stride": [2, 2, 2, 2],
    "stackwise_se_ratio": [None] * 4,
    "stackwise_activation": ["relu", "relu", "hard_swish", "hard_swish"],
    "filters": 128,
}
EXACT = {
    "ResNetBackbone": {"block_type": "block", **STAGES},
    "ResNetV2Backbone": STAGES,
    "DenseNetBackbone": {"stackwise_num_repeats": [2, 2, 2, 2]},
    "EfficientNetLiteBackbone": EFFICIENT,
    "MobileNetV3Backbone": MOBILE,
    "VGG16Backbone": {"include_top": False},
    "YOLOV8Backbone": CHANNELS,
}
# With squeeze-and-excite, whose means are over more cells.
GATED = {
    **EFFICIENT,
    "stackwise_squeeze_and_excite_ratios": [0.25] * 5,
}
REFUSED = {
    "CSPDarkNetBackbone": (
        CHANNELS,
        "`dark4_csp` .CrossStagePartial. holds a Conv2D that a rewrite",
    ),
    "EfficientNetV2Backbone": (
        {
            **EFFICIENT,
            "stackwise_squeeze_and_excite_ratios": [0, 0, 0, 0.25, 0.25],
            "stackwise_conv_types": [*["fused"] * 3, *["unfused"] * 2],
        },
        # Blocks before keep their stride.
        "`block4a_` .MBConvBlock. holds a DepthwiseConv2D that a rewrite",
    ),
    # Its gates are one closed layer, and Keras cannot load their activation:
    # `mobilenet_v3_large` of `create_backbone` is the same network.
    "MobileNetV3Backbone": (
        {**MOBILE, "stackwise_se_ratio": [0.25, None, 0.25, 0.25]},
        ".SqueezeAndExcite2D. mixes cells and cannot be dilated",
    ),
    "MiTBackbone": (
        {
            "depths": [1, 1, 1, 1],
            "embedding_dims": [16, 32, 40, 64],
            "input_shape": (128, 160, 3),
        },
        "`patch_and_embed_0` .OverlappingPatchingAndEmbedding. holds a Conv2D",
    ),
    "ViTDetBackbone": (
        {
            "input_shape": (128, 128, 3),
            "embed_dim": 32,
            "depth": 2,
            "mlp_dim": 64,
            "num_heads": 2,
            "out_chans": 16,
            "global_attention_indices": [1],
        },
        ".ViTDetPatchingAndEmbedding. holds a Conv2D that a rewrite",
    ),
    "VideoSwinBackbone": (
        {
            "input_shape": (4, 64, 64, 3),
            "embed_dim": 12,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 3, 3],
        },
        r"must take an image.* of input shape \(None, 4, 64, 64, 3\)",
    ),
}
FAST = ("ResNetBackbone", "VideoSwinBackbone")


def some_slow(names):
    return [
        pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow])
        for n in names
    ]


def build(name, arguments, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at its import
        import keras_cv
    defaults = {"include_rescaling": False, "input_shape": (None, None, 3)}
    backbone = getattr(keras_cv.models, name)
    return randomize(backbone(**{**defaults, **arguments, **kwargs}))


@pytest.mark.parametrize("name", some_slow(EXACT))
def test_dense_backbone_is_exact(name):
    model = build(name, EXACT[name])
    for output_stride in (16, 8):
        dense = with_output_stride(model, output_stride)
        strides = [f"stride_{2**n}" for n in range(1, 6)]
        assert list(stage_ends(dense)) == strides
        for size in ((128, 160), (113, 139)):
            x = sample((1, *size, 3))
            assert_dense(dense(x), model(x), 32 // output_stride)


@pytest.mark.slow
def test_gated_backbone_is_exact_but_for_the_means_of_its_gates():
    model = build("EfficientNetV1Backbone", GATED)
    x = sample((1, 128, 160, 3))
    found = errors(with_output_stride(model, 16)(x), model(x), 2)
    assert 1e-3 < min(found.values()) < 0.1
    # Gates that do not depend on their means make it exact.
    for layer in model.layers:
        if layer.name.endswith("se_expand"):
            layer.kernel.assign(np.zeros(layer.kernel.shape))
    assert_dense(with_output_stride(model, 16)(x), model(x), 2)


@pytest.mark.parametrize("name", some_slow(REFUSED))
def test_backbone_that_cannot_be_dense_is_refused_in_one_line(name):
    arguments, message = REFUSED[name]
    model = build(name, arguments)
    with pytest.raises(ValueError, match=message) as caught:
        with_output_stride(model, 8)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        ka.models.DeepLabV3Plus(3, backbone=model, output_stride=8)


@pytest.mark.parametrize(
    "architecture",
    [
        "DeepLabV3Plus",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("DeepLabV2", "DeepLabV3", "DenseASPP", "LRASPP")
        ),
    ],
)
def test_segmenter_on_a_backbone_that_rescales(architecture, tmp_path):
    """It takes 0..255, as the backbone does, also after saving."""
    backbone = build("EfficientNetV1Backbone", GATED, include_rescaling=True)
    model = getattr(ka.models, architecture)(3, backbone=backbone)
    assert model.preprocess.value_range == (0.0, 255.0)
    assert (model.preprocess.mean, model.preprocess.std) == (0.0, 1.0)
    image = np.random.default_rng(0).uniform(0, 255, (1, 64, 96, 3))
    image = image.astype("float32")
    logits = npy(model(image))
    assert logits.shape == (1, 64, 96, 3)
    assert logits.std() > 1e-3
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(npy(loaded(image)), logits)
