"""DeepLabV3."""

from helpers import assert_close, npy, sample
from model_tester import SIZE, ModelTester

from keras_aspp.models import DeepLabV3, DeepLabV3Plus


class TestDeepLabV3(ModelTester):
    kind = DeepLabV3
    other = DeepLabV3Plus
    parameters = 4_558_165

    def test_scores_are_the_classifier_on_aspp(self, build):
        model = build()
        x = sample((2, *SIZE, 3))
        features = model.backbone(x)["stride_32"]
        kernel, bias = map(npy, model.get_layer("classifier").weights)
        expected = npy(model.get_layer("aspp")(features)) @ kernel[0, 0] + bias
        assert_close(self.at(model, "classifier")(x), expected)
