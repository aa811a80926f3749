"""keras-aspp inspect, as it is typed."""

import json

import keras
import numpy as np
import pytest
from channels_folder import RANGE, write_bands
from helpers import make_small_backbone
from multilabel_folder import make_folder
from PIL import Image
from tiny_run import write_folder

from keras_aspp.analysis import cost, receptive_fields
from keras_aspp.cli.inspect import model_of
from keras_aspp.cli.main import main
from keras_aspp.config.schema import Config, DataConfig, ModelConfig
from keras_aspp.data import sources
from keras_aspp.models import DeepLabV3, features
from keras_aspp.preprocess import Preprocess


@pytest.fixture
def own_model(tmp_path):
    """A `.keras` file of a user, of a fixed size."""
    inputs = keras.Input((45, 33, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same")(inputs)
    x = keras.layers.Conv2D(4, 3, dilation_rate=40, padding="same")(x)
    path = tmp_path / "own.keras"
    keras.Model(inputs, x, name="own").save(path)
    return path


def inspect(*arguments):
    return main(["inspect", *map(str, arguments)])


@pytest.mark.slow
def test_a_configuration(capsys, tmp_path):
    numbers = tmp_path / "numbers.json"
    status = inspect(
        *("--config", "multiscale_shapes", "--json", numbers),
        *("--model.output_stride", "8", "--image-size", "96", "128"),
        *("--model.atrous_rates", "[[2, 3], 4]"),
    )
    assert status == 0
    said = capsys.readouterr().out
    assert "output stride 8; atrous rates 2x3, 4" in said
    assert "built without its weights, for 8 classes" in said
    assert "aspp/image_pooling" in said
    found = json.loads(numbers.read_text())
    assert found["image_size"] == [96, 128]
    assert found["stages"][-1]["shape"][:2] == [12, 16]
    assert f"{found['cost']['parameters']:,}" in said
    assert str(numbers) in said


@pytest.fixture
def built_of(monkeypatch):
    """The model that `inspect --config` builds for a `DataConfig`."""

    def create(name, output_stride, weights, input_shape, **changes):
        backbone = make_small_backbone(channels=input_shape[-1])
        backbone = features.as_features(backbone, output_stride)
        backbone.preprocess = Preprocess()
        return backbone

    monkeypatch.setattr(features, "create_backbone", create)
    settings = ModelConfig(
        architecture="deeplab_v3", aspp_filters=4, atrous_rates=[1]
    )

    def build(**data):
        model, note = model_of(Config(model=settings, data=DataConfig(**data)))
        assert note.startswith("built without its weights, for ")
        return model, note.removeprefix("built without its weights, for ")

    return build


def outputs_of(model):
    """Number of maps that the classifier writes."""
    return model.output_shape[-1]


def test_a_configuration_with_the_format_of_its_images(built_of, tmp_path):
    root = str(write_bands(tmp_path, channels=5, spec=RANGE | {"channels": 5}))
    for names in (None, ["ground", "box"]):
        model, note = built_of(root=root, class_names=names)
        assert model.input_shape[-1] == 5
        assert outputs_of(model) == 2
        assert note == "2 classes (those of the data set)"


def test_a_configuration_of_a_task(built_of, tmp_path):
    root = make_folder(tmp_path / "several", layout="npy")
    model, _ = built_of(root=str(root))
    assert (model.task, outputs_of(model)) == ("multilabel", 2)
    root = write_folder(tmp_path / "one", sizes=((64, 96),))
    for path in root.glob("masks/*/*.png"):
        labels = np.asarray(Image.open(path))
        Image.fromarray((labels == 1).astype("uint8")).save(path)
    content = {"class_names": ["box"], "task": "binary"}
    (root / "dataset.json").write_text(json.dumps(content))
    model, note = built_of(root=str(root))
    assert (model.task, outputs_of(model)) == ("binary", 2)
    assert note == "2 classes (those of the data set)"


@pytest.mark.parametrize("place", [{}, {"root": "missing"}])
@pytest.mark.parametrize(
    ("said", "num_classes"),
    [
        ({"class_names": ["a", "b", "c"]}, 3),
        ({"class_names": ["cat"], "task": "binary"}, 2),
        ({"task": "binary"}, 2),
        ({"class_names": ["cat"], "task": "multilabel"}, 1),
    ],
)
def test_a_configuration_without_its_data(said, num_classes, place, built_of):
    model, note = built_of(**said, **place)
    assert model.task == said.get("task", "semantic")
    assert outputs_of(model) == num_classes
    assert note == f"{num_classes} classes (those of the configuration)"


def test_a_configuration_of_unknown_classes(built_of, tmp_path):
    assert built_of()[1] == "21 classes (assumed, as no data set is named)"
    note = "21 classes (assumed, as the data set is not here)"
    assert built_of(root="missing")[1] == note
    root = write_folder(tmp_path)
    (root / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match="`class_names` is missing. File"):
        built_of(root=str(root))


def test_a_configuration_of_named_records_downloads_nothing(
    built_of, monkeypatch
):
    monkeypatch.setattr(sources, "open_source", None)
    note = built_of(tfds="any", class_names=["a", "b"])[1]
    assert note == "2 classes (those of the configuration)"


def test_a_model_of_a_user(own_model, capsys):
    assert inspect("--model", own_model) == 0
    said = capsys.readouterr().out
    model = keras.saving.load_model(own_model)
    field = receptive_fields(model, (45, 33))[-1]
    assert f"{field.size[0]}x{field.size[1]} px" in said
    assert "own: Functional, 45x33 image" in said
    assert "acts as a 1x1" in said
    assert f"{cost(model, (45, 33)).parameters:,}" in said


@pytest.mark.parametrize("options", [(), ("--layers",)])
def test_sizes_that_a_layer_leaves_open(options, tmp_path, capsys):
    inputs = keras.Input((None, None, 4))
    tokens = keras.layers.Reshape((-1, 4))(inputs)
    attention = keras.layers.MultiHeadAttention(2, 3)(tokens, tokens)
    keras.Model(inputs, attention).save(tmp_path / "open.keras")
    path = ("--model", tmp_path / "open.keras", "--image-size", 8, 6)
    assert inspect(*path, *options) == 0
    assert "lower bound" in capsys.readouterr().out


def test_the_output_stride_of_upsampled_images(toy_backbone, tmp_path, capsys):
    path = tmp_path / "twice.keras"
    DeepLabV3(
        3,
        toy_backbone(features=True, padding=1),
        atrous_rates=(1,),
        aspp_filters=4,
        input_scale=2,
    ).save(path)
    assert inspect("--model", path, "--image-size", 64, 64) == 0
    said = capsys.readouterr().out
    assert "output stride 16 of images upsampled by 2; atrous rates 1" in said
    row = next(x for x in said.splitlines() if x.startswith("stride_32"))
    assert " 8 " in row


def test_every_layer(own_model, capsys):
    assert inspect("--model", own_model, "--layers") == 0
    said = capsys.readouterr().out
    for layer in keras.saving.load_model(own_model).layers:
        assert layer.name in said
    assert "40x40" in said


def test_json_alone_on_the_terminal(own_model, capsys):
    assert inspect("--model", own_model, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "own"


def test_artefacts_show_what_they_can(tiny_export, capsys, tmp_path):
    numbers = tmp_path / "numbers.json"
    assert inspect("--model", tiny_export / "model.keras") == 0
    assert "512x512 image" in capsys.readouterr().out
    path = tiny_export / "model_float32.tflite"
    assert inspect("--model", path, "--json", numbers) == 0
    said = capsys.readouterr().out
    assert "known of Keras models only" in said
    assert "DEPTHWISE_CONV_2D" in said
    lite = json.loads(numbers.read_text())
    size = lite["inputs"][0]["shape"][1:3]
    model = keras.saving.load_model(tiny_export / "model.keras")
    # The same count from the file's operators as from the Keras layers, but
    # that the file normalizes pixels and projects one pooled cell.
    cells = -(-size[0] // 16) * -(-size[1] // 16)
    filters = model.get_layer("aspp").filters
    more = 3 * size[0] * size[1] - (cells - 1) * filters**2
    assert lite["madds"] == cost(model, tuple(size)).madds + more
    assert lite["bytes"] == path.stat().st_size
    assert lite["manifest"]["num_classes"] == model.num_classes
    assert {row["rate"] for row in lite["atrous"]} >= {2}
    assert inspect("--model", tiny_export / "saved_model") == 0
    said = capsys.readouterr().out
    assert "serving_default" in said
    assert "?x?x?x3" in said


def test_figures(own_model, capsys, tmp_path):
    folder = tmp_path / "figures"
    assert inspect("--model", own_model, "--figures", folder) == 0
    assert str(folder / "cost.png") in capsys.readouterr().out
    names = {path.stem for path in folder.iterdir()}
    assert {path.suffix for path in folder.iterdir()} == {".png", ".svg"}
    assert names == {
        "cost",
        "receptive_fields",
        "effective_fields",
        "valid_taps",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --config --model is required"),
        (["--config", "a", "--model", "b"], "not allowed with"),
        (["--model", "a", "--fast"], "unknown flag --fast"),
        (["--config", "folder", "--fast"], "unknown flag --fast"),
        (["--model", "a", "--model.backbone", "x"], "unknown flag --model."),
        (["--model", "a", "--image-size", "3"], "expected 2 arguments"),
        (["--model", "a", "b"], "unexpected 'b'"),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["inspect", *arguments])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert message in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "no"], "Received: 'no'"),
        (["--config", "folder", "--model.backbon", "x"], "`model.backbone`"),
        (["--model", "none"], "which does not exist"),
        (["--model", "empty"], "a workdir or an exported folder"),
        (
            ["--model", "broken.keras"],
            "broken.keras (not a zip archive, or truncated)",
        ),
        (["--model", "broken.keras", "--figures", "broken.tflite"], "a file"),
        (["--model", "broken.tflite"], "Not a loadable .tflite"),
        (["--model", "broken"], "Not a loadable SavedModel"),
        (["--model", "some.onnx"], ".keras, .tflite and SavedModels"),
        (["--model", "own.keras", "--image-size", "0", "9"], "two ints > 0"),
        (["--model", "own.keras", "--image-size", "9", "9"], "of 45x33"),
        (["--model", "two.keras"], "one input"),
        (["--model", "valid.keras", "--image-size", "8", "2"], "of this size"),
    ],
)
def test_bad_input(
    arguments, message, own_model, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.keras").write_bytes(b"no model")
    (tmp_path / "some.onnx").write_bytes(b"no model")
    (tmp_path / "broken.tflite").write_bytes(b"no model at all, but long")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "saved_model.pb").write_bytes(b"no model")
    a, b = keras.Input((4, 4, 1)), keras.Input((4, 4, 1))
    keras.Model([a, b], keras.layers.Add()([a, b])).save("two.keras")
    x = keras.Input((None, None, 1))
    keras.Model(x, keras.layers.Conv2D(1, 3)(x)).save("valid.keras")
    assert main(["inspect", *arguments]) == 1
    said = capsys.readouterr().err.strip()
    assert said.count("keras-aspp: error:") == 1
    assert "\n" not in said
    assert message in said


def test_figures_and_sizes_need_a_keras_model(tiny_export, capsys, tmp_path):
    path = tiny_export / "model_float32.tflite"
    assert inspect("--model", path, "--figures", tmp_path) == 1
    assert "Keras models only" in capsys.readouterr().err
    assert inspect("--model", path, "--image-size", 9, 9) == 1
    assert "needs a Keras model" in capsys.readouterr().err
