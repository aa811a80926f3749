"""keras-aspp explain, as it is typed."""

import keras
import numpy as np
import pytest
from helpers import randomize
from PIL import Image

import keras_aspp as ka
from keras_aspp.analysis.report import report
from keras_aspp.cli import explain as command
from keras_aspp.cli.main import main
from keras_aspp.plots import explain as plots


@pytest.fixture
def picture(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (70, 96, 3))
    path = tmp_path / "picture.png"
    Image.fromarray(image.astype("uint8")).save(path)
    return path


def explain(*arguments):
    return main(["explain", *map(str, arguments)])


def test_filters_set_by_hand(picture, tmp_path, capsys):
    output = tmp_path / "out"
    assert explain(picture, "--output", output) == 0
    said = capsys.readouterr().out
    assert "stride 32 and, with the same weights, at stride 8" in said
    names = {"kernel", "dense", "branches"}
    assert {path.stem for path in output.iterdir()} == names
    assert len(list(output.iterdir())) == 6
    for name in names:
        assert str(output / f"{name}.png") in said
        assert Image.open(output / f"{name}.png").width > 500


def test_a_trained_model(tiny_export):
    image = np.random.default_rng(0).integers(0, 255, (70, 96, 3))
    figures, said = command.explain(image.astype("uint8"), str(tiny_export))
    assert set(figures) == {"kernel", "dense", "branches"}
    titles = [ax.get_title() for ax in figures["branches"].axes]
    assert titles[:2] == ["image", "1x1"]
    assert "standard deviations" in said[1]


def test_distances_are_pixels_of_the_image_of_the_user(toy_backbone, tmp_path):
    """Also where the model upsamples the image; `inspect` says the same."""
    toy = randomize(toy_backbone(features=True, padding=1))
    model = ka.models.DeepLabV3(
        3, toy, atrous_rates=(1, 3), aspp_filters=4, input_scale=2
    )
    model.save(tmp_path / "twice.keras")
    image = np.random.default_rng(0).integers(0, 255, (70, 96, 3))
    figures, said = command.explain(
        image.astype("uint8"), tmp_path / "twice.keras"
    )
    titles = [ax.get_title() for ax in figures["kernel"].axes]
    assert [title.split(" apart")[0] for title in titles] == [
        "rate 1: 8 px",
        "rate 3: 24 px",
    ]
    assert titles[1].endswith("9 taps")
    rows = report(model, (70, 96))["atrous"]
    assert [row["spacing_px"] for row in rows if row["rate"] == 3] == [24]
    titles = [ax.get_title() for ax in figures["dense"].axes]
    assert titles[0] == "strided: 5x6 cells of 16 px"
    assert titles[4] == "dense: 18x24 cells of 4 px"
    assert "upsamples images by 2" in said[0]
    assert "features at stride 16" in said[1]
    assert "at stride 4" in said[1]
    assert "dense cells in steps of 4 are the strided ones" in said[2]


def test_pixels_per_cell_need_not_be_whole():
    image = np.zeros((70, 96, 3), "uint8")
    figure = plots.kernel_figure(image, (6,), 16 / 3)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[1] == "rate 6: 32 px apart\n9 taps"


def test_a_model_of_one_size(toy_backbone, tmp_path, picture, capsys):
    """The image is resized to it."""
    toy = toy_backbone(features=True, padding=1, size=64)
    path = tmp_path / "model.keras"
    ka.models.DeepLabV3(3, toy, atrous_rates=(1, 2), aspp_filters=4).save(path)
    assert explain(picture, "--output", tmp_path / "out", "--model", path) == 0
    said = capsys.readouterr().out
    assert "image 70x96 resized to 64x64, the only size" in said
    assert "image 64x64; features at stride 32" in said
    assert (tmp_path / "out" / "branches.png").is_file()


def test_a_model_without_aspp(tmp_path, picture):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(5, 3, strides=4, padding="same")(inputs)
    path = tmp_path / "own.keras"
    keras.Model(inputs, x).save(path)
    image = command.read_image_file(picture)
    figures, said = command.explain(image, path)
    assert set(figures) == {"kernel", "dense"}
    assert "no ASPP" in said[-1]


def test_a_sequential_model(tmp_path, picture, capsys):
    layers = [
        keras.layers.Conv2D(4, 3, padding="same", strides=2, name=name)
        for name in "ab"
    ]
    model = keras.Sequential([keras.Input((70, 96, 3)), *layers])
    model.save(tmp_path / "model.keras")
    output = tmp_path / "out"
    arguments = ["--output", output, "--model", tmp_path / "model.keras"]
    assert explain(picture, *arguments) == 0
    assert "at stride 4 and, with" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="not yet been built"):
        keras.Sequential(layers).save(tmp_path / "model.keras")
    assert explain(picture, *arguments) == 1
    assert "functional Keras model" in capsys.readouterr().err


def test_our_aspp_in_a_model_of_ones_own(tmp_path, picture):
    x = inputs = keras.Input((None, None, 3))
    for _ in range(3):
        x = keras.layers.Conv2D(5, 3, strides=2, padding="same")(x)
    x = ka.layers.ASPP(6, (1, 3), name="pyramid")(x)
    path = tmp_path / "own.keras"
    keras.Model(inputs, keras.layers.Conv2D(2, 1)(x)).save(path)
    figures, said = command.explain(command.read_image_file(picture), path)
    titles = [ax.get_title() for ax in figures["branches"].axes]
    assert {"rate 1", "rate 3"} <= set(titles)
    assert "features at stride 8" in said[0]


def test_squeeze_and_excite_is_named(tmp_path, picture):
    x = inputs = keras.Input((None, None, 3))
    for i in range(3):
        x = keras.layers.Conv2D(
            8, 3, strides=2, padding="same", name=f"conv_{i}"
        )(x)
        gate = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
        gate = keras.layers.Conv2D(8, 1, activation="sigmoid")(gate)
        x = keras.layers.Multiply()([x, gate])
    path = tmp_path / "gated.keras"
    randomize(keras.Model(inputs, x)).save(path)
    _, said = command.explain(command.read_image_file(picture), path)
    assert "squeeze-and-excite" in said[1]


@pytest.mark.slow
def test_a_backbone_that_is_used_as_it_is_is_not_drawn_dense(tmp_path):
    hub = pytest.importorskip(
        "keras_hub", reason="keras-hub is not installed (2026-11-29)"
    )
    mit = hub.models.MiTBackbone(
        layerwise_depths=[1, 1],
        num_layers=2,
        layerwise_num_heads=[1, 1],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        image_shape=(64, 64, 3),
        hidden_dims=[8, 12],
    )
    path = tmp_path / "mit.keras"
    ka.models.DAFormer(3, mit, 8, (1, 2), embed_filters=6, aspp_filters=8).save(
        path
    )
    figures, said = command.explain(np.zeros((64, 64, 3), "uint8"), path)
    assert set(figures) == {"kernel", "branches"}
    assert said == [
        "The backbone cannot be made dense and is used as it is, so its "
        "strided features are not drawn against dense ones."
    ]


def test_large_pictures_are_made_smaller(tmp_path):
    path = tmp_path / "large.png"
    Image.fromarray(np.zeros((900, 1280, 3), "uint8")).save(path)
    assert command.read_image_file(path).shape == (450, 640, 3)


@pytest.mark.parametrize(
    "arguments", [[], ["a.png"], ["a.png", "--output", "b", "--fast"]]
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["explain", *arguments])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert "--help" in said


@pytest.mark.parametrize(
    ("name", "extra", "message"),
    [
        ("none.png", [], "No such image. File: none.png"),
        ("text.png", [], "Unreadable image. File: text.png"),
        ("small.png", [], "smaller than one cell of 32 pixels"),
        ("picture.png", ["--model", "none"], "which does not exist"),
        ("picture.png", ["--model", "a.tflite"], "Keras models only"),
    ],
)
def test_bad_input(
    name, extra, message, picture, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "a.tflite").write_bytes(b"")
    Image.fromarray(np.zeros((31, 99, 3), "uint8")).save("small.png")
    assert explain(name, "--output", "out", *extra) == 1
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert message in said
    assert not (tmp_path / "out").exists()


def test_the_output_is_a_file(picture, capsys):
    assert explain(picture, "--output", picture) == 1
    assert "output must be a folder" in capsys.readouterr().err


def test_rates_of_both_axes_are_drawn(tmp_path, picture):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(5, 3, strides=4, padding="same")(inputs)
    x = ka.layers.ASPP(4, [(2, 5), 3])(x)
    path = tmp_path / "own.keras"
    keras.Model(inputs, x).save(path)
    figures, _ = command.explain(command.read_image_file(picture), path)
    titles = [ax.get_title() for ax in figures["kernel"].axes]
    assert [title.split(" px")[0] for title in titles] == [
        "rate 1: 4",
        "rate 2x5: 8x20",
        "rate 3: 12",
    ]
    titles = [ax.get_title() for ax in figures["branches"].axes]
    assert titles[1:4] == ["1x1", "rate 2x5", "rate 3"]
