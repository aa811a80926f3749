"""DenseASPP, the segmenter."""

import pytest
from helpers import assert_close, npy, sample
from model_tester import ODD, TOY, ModelTester

import keras_aspp as ka
from keras_aspp.models import DenseASPP


class TestDenseASPP(ModelTester):
    architecture = DenseASPP
    parameters = TOY + 168 + 232 + 192 + 232 + 165
    auto = (3, 6, 12, 18, 24)
    head = {
        "atrous_rates": (1, 2),
        "growth_filters": 4,
        "bottleneck_filters": 6,
    }
    changed = {
        "atrous_rates": (2, 3, 5),
        "growth_filters": 6,
        "bottleneck_filters": 10,
        "separable": True,
    }

    def test_scores_are_the_classifier_on_the_layer(self, build):
        model = build()
        x = sample((2, *ODD, 3))
        features = model.backbone(x)["stride_32"]
        kernel, bias = map(npy, model.get_layer("classifier").weights)
        seen = npy(model.get_layer("dense_aspp")(features))
        assert seen.shape[-1] == 24 + 2 * 4
        expected = seen @ kernel[0, 0] + bias
        assert_close(self.at(model, "classifier")(x), expected)

    def test_arguments_of_the_head(self, build):
        layer = build(**self.changed, dropout=0.3).get_layer("dense_aspp")
        assert (layer.filters, layer.bottleneck_filters) == (6, 10)
        assert (layer.atrous_rates, layer.separable) == ((2, 3, 5), True)
        assert layer.drop.rate == 0.3

    def test_default_stride_is_the_papers(self, toy_backbone):
        model = DenseASPP(5, toy_backbone())
        assert model.output_stride == 8
        message = r"\[1, 2, 4, 8\].*Received: output_stride=16"
        with pytest.raises(ValueError, match=message):
            DenseASPP(5, toy_backbone(), output_stride=16)
        with pytest.raises(ValueError, match=message):
            ka.models.with_output_stride(model, 16)

    def test_errors(self, build):
        with pytest.raises(ValueError, match=r"atrous_rates=\(\)"):
            build(atrous_rates=())
