"""Models of other than three channels: what works, and what says so early."""

import keras
import numpy as np
import pytest
from tiny_run import tiny_config, write_folder

import keras_aspp as ka
from keras_aspp.cli.main import main
from keras_aspp.config.load import dump_config


def build(toy_backbone, channels, **kwargs):
    return ka.models.DeepLabV3Plus(
        3,
        toy_backbone(channels=channels),
        atrous_rates=(3,),
        aspp_filters=8,
        decoder_filters=8,
        projection_filters=4,
        separable=True,
        **kwargs,
    )


def images(channels):
    rng = np.random.default_rng(channels)
    return rng.integers(0, 256, (2, 40, 48, channels)).astype("uint8")


@pytest.mark.parametrize("channels", [1, 4])
def test_they_are_built_trained_saved_and_called(
    channels, toy_backbone, tmp_path
):
    """As docs/backbones.md shows."""
    model = build(toy_backbone, channels)
    assert model.input_shape == (None, None, None, channels)
    labels = (images(channels)[..., 0] > 127).astype("int32")
    model.compile("adam", ka.losses.CrossEntropy(), run_eagerly=True)
    x = model.preprocess(images(channels))
    history = model.fit(x, labels, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = np.asarray(model(x, training=False))
    assert expected.shape == (2, 40, 48, 3)
    np.testing.assert_array_equal(loaded(x, training=False), expected)
    dense = ka.models.with_output_stride(loaded, 8)
    assert dense(x, training=False).shape == expected.shape
    with pytest.raises(ValueError, match=f"backbone, {channels}. Received"):
        build(toy_backbone, channels, input_shape=(None, None, 7))


def test_what_needs_rgb_refuses_them_in_one_line(
    toy_backbone, tmp_path, capsys
):
    channels = 4
    model = build(toy_backbone, channels)
    path = tmp_path / "model.keras"
    model.save(path)
    refused = f"three input channels.*backbones.md.*model of {channels} input"
    with pytest.raises(ValueError, match=f"`Predictor` needs .*{refused}"):
        ka.Predictor(path)
    with pytest.raises(ValueError, match=f"An export needs .*{refused}"):
        ka.export.export_model(
            model,
            tmp_path / "exported",
            image_size=(40, 48),
            class_names=list("abc"),
            verify_images=list(images(channels)),
        )
    assert not (tmp_path / "exported").exists()
    root = write_folder(tmp_path / "data", ((64, 96),))
    config = tiny_config(root)
    dump_config(config, tmp_path / "config.yaml")
    flags = ["--config", str(tmp_path / "config.yaml")]
    flags += ["--workdir", str(tmp_path / "run"), "--model.weights", str(path)]
    capsys.readouterr()
    assert main(["train", *flags]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Training by a configuration needs" in said
    assert f"Received: a model of {channels} input channels" in said
    image = str(next(root.glob("images/train/*")))
    flags = ["--model", str(path), "--output", str(tmp_path / "figures")]
    assert main(["explain", image, *flags]) == 1
    assert "`keras-aspp explain` needs" in capsys.readouterr().err
