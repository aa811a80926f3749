"""DAFormer."""

import keras
import numpy as np
import pytest
from helpers import assert_close, np_resize, npy, randomize, sample
from model_tester import ODD, SIZE, TOY, ModelTester

import keras_aspp as ka
from keras_aspp.models import DAFormer

STRIDES = (4, 8, 16, 32)


class TestDAFormer(ModelTester):
    architecture = DAFormer
    # Linear convolutions of 68 channels in all; the ASPP: 1x1, two separable
    # branches, 3x3; classifier.
    parameters = TOY + (68 + 4) * 6 + (224 + 2 * 536 + 1_760) + 45
    auto = (6, 12, 18)
    head = {"atrous_rates": (1, 2), "embed_filters": 6, "aspp_filters": 8}
    changed = {
        "atrous_rates": (2, (3, 5)),
        "embed_filters": 10,
        "aspp_filters": 12,
        "separable": False,
        "fusion_stride": 8,
    }
    decoder_stride = 4
    rates_follow = False
    dense = ({}, "embed_stride_32")

    @pytest.mark.parametrize("size, output_stride", [(SIZE, 32), (ODD, 16)])
    def test_fused_map_is_the_linear_features_at_the_finest_size(
        self, build, size, output_stride
    ):
        model = build(output_stride=output_stride)
        x = sample((2, *size, 3))
        features = model.backbone(x)
        height, width = features["stride_4"].shape[1:3]
        expected = []
        for nominal in STRIDES:
            embed = model.get_layer(f"embed_stride_{nominal}")
            kernel, bias = map(npy, embed.weights)
            y = npy(features[f"stride_{nominal}"]) @ kernel[0, 0] + bias
            scale = min(nominal, output_stride) // 4
            y = np_resize(y, [n * scale for n in y.shape[1:3]])
            expected.append(y[:, :height, :width])
        fused = self.at(model, "concat")(x)
        assert_close(fused, np.concatenate(expected, -1))
        scores = model.get_layer("aspp")(fused)
        kernel, bias = map(npy, model.get_layer("classifier").weights)
        assert_close(
            self.at(model, "classifier")(x), npy(scores) @ kernel[0, 0] + bias
        )

    def test_arguments_of_the_head(self, build):
        model = build(**self.changed, dropout=0.3)
        aspp = model.get_layer("aspp")
        assert (aspp.filters, aspp.separable) == (12, False)
        assert aspp.atrous_rates == (2, (3, 5))
        assert (aspp.image_pooling, aspp.dropout) == (False, 0.3)
        assert aspp.projection.kernel_size == 3
        assert model.get_layer("embed_stride_8").filters == 10
        assert "embed_stride_4" not in [layer.name for layer in model.layers]
        assert model.atrous_stride == 8

    def test_denser_features_are_shifted_to_where_they_were_in_training(
        self, build
    ):
        model = build(output_stride=32)
        dense = ka.models.with_output_stride(model, 8)
        assert dense.get_layer("resize_stride_8").shift == (0, 0)
        # (16 - 8) / 2 and (32 - 8) / 2 pixels, in cells of 4.
        assert dense.get_layer("resize_stride_16").shift == (1, 1)
        assert dense.get_layer("resize_stride_32").shift == (3, 3)

    @pytest.mark.parametrize("fusion_stride, dense", [(16, 8), (4, 2)])
    def test_a_denser_finest_map_is_shifted_too(
        self, build, fusion_stride, dense
    ):
        model = build(fusion_stride=fusion_stride, output_stride=32)
        key = f"stride_{fusion_stride}"
        assert f"resize_{key}" not in [layer.name for layer in model.layers]
        model = ka.models.with_output_stride(model, dense)
        x = sample((1, *SIZE, 3))
        y = npy(self.at(model, f"embed_{key}")(x))
        # Half a cell down and right: (16 - 8) / 2 and (4 - 2) / 2 pixels.
        y = (y[:, 1:] + y[:, :-1]) / 2
        expected = (y[:, :, 1:] + y[:, :, :-1]) / 2
        found = npy(self.at(model, "concat")(x))[..., : expected.shape[-1]]
        assert_close(found[:, 1:, 1:], expected)

    def test_a_backbone_that_is_not_dense_is_left_as_it_is(self, toy_backbone):
        toy = toy_backbone(padding=1, features=True)
        model = DAFormer(5, toy, **self.head)
        assert model.output_stride == 32
        for layer in model.backbone.layers:
            assert not getattr(layer, "original", None)

    @pytest.mark.parametrize(
        "kwargs, message",
        [
            ({"fusion_stride": 5}, "Received: fusion_stride=5"),
            ({"fusion_stride": 64}, "no feature `stride_64`"),
            ({"atrous_rates": ()}, r"atrous_rates=\(\)"),
            ({"embed_filters": 0}, "filters=0"),
        ],
    )
    def test_errors(self, build, kwargs, message):
        with pytest.raises(ValueError, match=message):
            build(**kwargs)


@pytest.mark.parametrize("separable", [True, False])
def test_published_head(separable):
    """The head of the published code, in plain PyTorch, same weights."""
    torch = pytest.importorskip(
        "torch", reason="PyTorch is not installed (2026-11-29)"
    )
    nn, image = torch.nn, keras.Input((64, 96, 3))
    features = {
        f"stride_{n}": keras.layers.Conv2D(c, n, n, name=f"p{n}")(image)
        for n, c in zip(STRIDES, (8, 10, 12, 14), strict=True)
    }
    model = randomize(
        DAFormer(
            5,
            keras.Model(image, features),
            atrous_rates=(2, 3, 5),
            embed_filters=6,
            aspp_filters=7,
            separable=separable,
        )
    )

    def tensor(x):
        x = npy(x)
        axes = (3, 2, 0, 1) if x.shape[:2] in ((1, 1), (3, 3)) else (0, 3, 1, 2)
        return torch.tensor(x.transpose(axes) if x.ndim == 4 else x)

    def conv(x, layer, groups=1):
        kernel = tensor(layer.kernel)
        if groups > 1:
            kernel = kernel.transpose(0, 1)
        rate = layer.dilation_rate[0]
        return nn.functional.conv2d(
            x,
            kernel,
            tensor(layer.bias) if layer.use_bias else None,
            padding=rate * (kernel.shape[-1] // 2),
            dilation=rate,
            groups=groups,
        )

    def norm(x, layer):
        gamma, beta, mean, variance = map(tensor, layer.weights)
        y = nn.functional.batch_norm(x, mean, variance, gamma, beta, eps=1e-3)
        return torch.relu(y)

    x = sample((2, 64, 96, 3))
    maps, seen = [], model.backbone(x)
    for n in STRIDES:
        y = conv(
            tensor(seen[f"stride_{n}"]), model.get_layer(f"embed_stride_{n}")
        )
        maps.append(
            nn.functional.interpolate(
                y, (16, 24), mode="bilinear", align_corners=False
            )
        )
    fused = torch.cat(maps, 1)
    aspp = model.get_layer("aspp")
    outputs = []
    for branch in aspp.branches:
        y = fused
        if branch.separable:
            y = norm(
                conv(y, branch.depthwise, y.shape[1]), branch.depthwise_norm
            )
        outputs.append(norm(conv(y, branch.conv), branch.norm))
    y = norm(
        conv(torch.cat(outputs, 1), aspp.projection.conv), aspp.projection.norm
    )
    expected = conv(y, model.get_layer("classifier")).numpy()
    scores = keras.Model(model.input, model.get_layer("classifier").output)(x)
    assert_close(scores, expected.transpose(0, 2, 3, 1))
