import keras
import numpy as np
import pytest
from helpers import npy, randomize, sample

from keras_aspp.models import DeepLabV3
from keras_aspp.models.precision import with_dtype


def small(twice):
    """DeepLabV3 whose second convolution reads 4 or 8 channels."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, 4, padding="same", name="first")(inputs)
    if twice:
        x = keras.layers.Concatenate()([x, x])
    outputs = {}
    for stride in (8, 16, 32):
        x = keras.layers.Conv2D(4, 3, 2, padding="same", name=f"to_{stride}")(x)
        outputs[f"stride_{stride}"] = x
    backbone = keras.Model(inputs, outputs)
    return DeepLabV3(3, backbone, atrous_rates=(1,), aspp_filters=4)


def test_input_channels_may_differ_at_the_image_alone(tmp_path):
    path = tmp_path / "model.keras"
    small(twice=False).save(path)
    other = small(twice=True)
    with pytest.raises(ValueError, match="belong to another architecture"):
        DeepLabV3(
            3,
            other.backbone,
            weights=path,
            atrous_rates=(1,),
            aspp_filters=4,
        )


@pytest.mark.parametrize("layer", ["BatchNormalization", "LayerNormalization"])
def test_weights_of_other_names_are_refused(layer, tmp_path):
    def normalized(**kwargs):
        norm = getattr(keras.layers, layer)(name="norm", **kwargs)
        inputs = keras.Input((None, None, 3))
        x = keras.layers.Conv2D(4, 3, 16, padding="same", name="first")(inputs)
        return keras.Model(inputs, {"stride_16": norm(x)})

    arguments = {"atrous_rates": (1,), "aspp_filters": 4}
    path = tmp_path / "model.keras"
    DeepLabV3(3, normalized(center=False), **arguments).save(path)
    with pytest.raises(ValueError, match="belong to another architecture"):
        DeepLabV3(3, normalized(scale=False), weights=path, **arguments)


@keras.saving.register_keras_serializable(package="tests")
class Block(keras.layers.Layer):
    """Its layers have names that Keras counts over all models."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.layers = [keras.layers.Conv2D(4, 1), keras.layers.Conv2D(4, 1)]

    def build(self, input_shape):
        for layer in self.layers:
            layer.build((*input_shape[:-1], 4))

    def call(self, inputs):
        return self.layers[1](self.layers[0](inputs))


def test_unnamed_layers_within_a_layer_are_copied(tmp_path):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, 16, padding="same", name="first")(inputs)
    backbone = keras.Model(inputs, {"stride_16": Block(name="block")(x)})
    model = randomize(DeepLabV3(3, backbone, atrous_rates=(1,), aspp_filters=4))
    image = sample((1, 32, 32, 3))
    copy = with_dtype(model, "float64")
    np.testing.assert_allclose(npy(copy(image)), npy(model(image)), atol=1e-5)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = DeepLabV3(
        3, backbone, weights=path, atrous_rates=(1,), aspp_filters=4
    )
    np.testing.assert_array_equal(npy(loaded(image)), npy(model(image)))
