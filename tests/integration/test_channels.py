"""Models of other than three channels: what works, and what says so early."""

import json

import keras
import numpy as np
import pytest
from channels_folder import write_bands
from PIL import Image
from tifffile import imread
from tiny_run import tiny_config, toy_model, write_folder

import keras_aspp as ka
from keras_aspp.cli.main import main
from keras_aspp.config.load import dump_config

pytestmark = pytest.mark.usefixtures("saved_models_run_in_forks")
TFLITE = "model_float32.tflite"


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


def test_a_model_of_other_channels_fits_its_own_data_only(
    toy_backbone, tmp_path, capsys
):
    path = tmp_path / "model.keras"
    build(toy_backbone, 4).save(path)
    predictor = ka.Predictor(path)
    assert predictor.predict(images(4)[0]).shape == (40, 48)
    message = r"uint8 array \(height, width, 4\) or a path.*\(40, 48, 3\)"
    with pytest.raises(ValueError, match=message):
        predictor.predict(images(3)[0])
    root = write_folder(tmp_path / "data", ((64, 96),))
    dump_config(tiny_config(root), tmp_path / "config.yaml")
    flags = ["--config", str(tmp_path / "config.yaml")]
    flags += ["--workdir", str(tmp_path / "run"), "--model.weights", str(path)]
    capsys.readouterr()
    assert main(["train", *flags]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "as many input channels as the data set has, 3" in said
    assert "Received: a model of 4 input channels" in said
    image = str(next(root.glob("images/train/*")))
    flags = ["--model", str(path), "--output", str(tmp_path / "figures")]
    assert main(["explain", image, *flags]) == 1
    assert "`keras-aspp explain` needs" in capsys.readouterr().err


def test_four_bands_of_16_bits_are_learned_exported_and_predicted(
    tmp_path, capsys
):
    """A model of RGB is spread over the bands, of which the last one tells."""
    root = write_bands(tmp_path / "data", num_train=20)
    config = tiny_config(root, total_epochs=4, jit_compile=False)
    # Of five starts, 40 steps reach 0.88 to 0.98.
    keras.utils.set_random_seed(0)
    toy_model(2).save(tmp_path / "toy.keras")
    path = tmp_path / "config.yaml"
    dump_config(config, path)
    run, exported = tmp_path / "run", tmp_path / "exported"
    flags = ["--config", str(path), "--workdir", str(run)]
    flags += ["--model.weights", str(tmp_path / "toy.keras")]
    assert main(["train", *flags]) == 0
    assert "3 -> 4 input channels" in capsys.readouterr().out
    flags = ["--model", str(run), "--output", str(exported)]
    flags += ["--export.max_int8_loss", "100", "--formats", "saved_model"]
    assert main(["export", *flags, "tflite_float32", "tflite_int8"]) == 0
    manifest = json.loads((exported / "manifest.json").read_text())
    taken = {a["format"]: a["input"] for a in manifest["artefacts"]}
    for kind, dtype in (("saved_model", "uint16"), ("tflite_int8", "float32")):
        assert taken[kind]["shape"][-1] == 4
        assert taken[kind]["dtype"] == dtype
        assert taken[kind]["range"] == [1000, 9000]
    (image,) = root.glob("images/val/val_0.tif")
    mask = np.array(Image.open(root / "masks/val/val_0.png"))
    # Ground alone is 0.853; the file of one size sees the image stretched.
    files = (run, 0.92), (exported, 0.92), (exported / TFLITE, 0.87)
    for file, least in files:
        predictor = ka.Predictor(file)
        assert predictor.pixels.describe() == "4 bands of uint16"
        labels = predictor.predict(image)
        np.testing.assert_array_equal(labels, predictor.predict(imread(image)))
        assert (labels == mask).mean() > least
    flags = ["--model", str(run), "--output", str(tmp_path / "out")]
    assert main(["predict", *flags, str(image)]) == 0
    overlay = Image.open(tmp_path / "out/val_0_overlay.png")
    assert (overlay.mode, overlay.size) == ("RGB", (96, 64))
