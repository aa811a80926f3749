import keras
import pytest

from keras_aspp.models import DeepLabV3


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
