"""A public TFLite DeepLab as a Keras model: LiteRT's logits, golden mask."""

import pathlib

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from helpers import npy
from PIL import Image
from quantize import rewrite, write_hybrid, write_quantized

import keras_aspp as ka
from keras_aspp.weights import tflite

SAVED_MODELS = pathlib.Path(__file__).parents[2] / "saved_models"


@pytest.fixture(scope="module")
def file(shared):
    return shared / "vectors/deeplabv3_257_mv_gpu.tflite"


@pytest.fixture(scope="module")
def model(file):
    return ka.weights.from_tflite(file)


@pytest.fixture(scope="module")
def picture(shared):
    folder = shared / "vectors/tflite_support"
    picture = Image.open(folder / "segmentation_input_rotation0.jpg")
    golden = Image.open(folder / "segmentation_golden_rotation0.png")
    return np.array(picture), np.array(golden) // 10


def run(file, x):
    interpreter = Interpreter(str(file))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.slow
def test_golden_mask(model, picture):
    image, golden = picture
    logits = npy(model(model.preprocess(image[None].astype("float32"))))
    assert set(np.unique(golden)) == {0, 13, 15}
    assert (logits[0].argmax(-1) != golden).sum() == 0


def test_logits_are_those_of_litert(file, model, picture):
    x = picture[0][None].astype("float32") / 127.5 - 1
    expected = run(file, x)
    assert expected.std() > 1
    assert np.abs(npy(model(x)) - expected).max() <= 1e-4


@pytest.mark.slow
def test_it_is_one_of_ours(model, tmp_path):
    assert type(model) is ka.models.DeepLabV3
    assert (model.num_classes, model.output_stride) == (21, 8)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(1, 65, 97, 3)).astype("float32")
    np.testing.assert_array_equal(npy(copy(x)), npy(model(x)))
    # What is learned is the kernels; what was folded stays as it is.
    names = {w.path.rsplit("/", 1)[-1] for w in copy.trainable_weights}
    assert names == {"kernel", "bias"}
    assert len(copy.trainable_weights) == 56


def test_another_graph_is_refused(file, model):
    interpreter, _ = tflite._read(file)
    bias = model.get_layer("classifier").bias
    before = npy(bias)
    bias.assign_add(np.eye(21, dtype="float32")[3])
    try:
        with pytest.raises(ValueError, match="computes something else.*mv_gpu"):
            tflite._compare(model, interpreter, file)
    finally:
        bias.assign(before)


def labels_of(file, picture):
    """What a quantized file says of a picture."""
    interpreter = Interpreter(str(file))
    interpreter.allocate_tensors()
    (entry,) = interpreter.get_input_details()
    x = picture[None].astype("float32") / 127.5 - 1
    if entry["dtype"] is not np.float32:
        scale, zero = entry["quantization"]
        x = np.clip(np.round(x / scale) + zero, 0, 255).astype("uint8")
    return run(file, x)[0].argmax(-1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["uint8", "hybrid"])
def test_quantized_files_come_dequantized(
    file, picture, tmp_path, capsys, kind
):
    image, golden = picture
    output = tmp_path / f"{kind}.tflite"
    if kind == "uint8":
        x = image[None].astype("float32") / 127.5 - 1
        write_quantized(file, x, output)
    else:
        write_hybrid(file, output)
    model = ka.weights.from_tflite(output)
    said = capsys.readouterr().out
    assert f"{output}: dequantized; on an image of noise" in said
    share = float(said.rpartition(" noise ")[2].partition("%")[0])
    assert 90 < share <= 100
    logits = npy(model(model.preprocess(image[None].astype("float32"))))
    found = logits[0].argmax(-1)
    expected = labels_of(output, image)
    assert (expected != golden).any()  # quantization costs something
    assert np.mean(found == expected) > 0.99
    assert np.mean(found == golden) > 0.9


@pytest.mark.slow
def test_a_quantized_file_of_another_graph(
    file, picture, tmp_path, monkeypatch
):
    output = write_hybrid(file, tmp_path / "hybrid.tflite")
    # Every channel's scale taken for the next one's.
    real = tflite._real

    def wrong(values, tensor, path):
        return np.roll(real(values, tensor, path), 1, axis=0)

    monkeypatch.setattr(tflite, "_real", wrong)
    with pytest.raises(ValueError, match="computes something else.*agree"):
        ka.weights.from_tflite(output)


def test_a_convolution_without_a_bias(file, tmp_path):
    def drop(graph, model):
        first = graph.operators[1]
        first.inputs = first.inputs[:2]

    output = rewrite(file, tmp_path / "bare.tflite", drop)
    with pytest.raises(ValueError, match="without one|crashes the interpreter"):
        ka.weights.from_tflite(output)


def test_a_single_row_of_logits(file, monkeypatch):
    real = tflite._read

    def low(path):
        interpreter, layers = real(path)
        layers["logits/semantic"].cells = (1, 33)
        return interpreter, layers

    monkeypatch.setattr(tflite, "_read", low)
    with pytest.raises(ValueError, match="a single row of logits"):
        ka.weights.from_tflite(file)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        ka.weights.from_tflite(tmp_path / "nothing.tflite")
    (tmp_path / "text.tflite").write_text("no model, but long enough to be one")
    with pytest.raises(ValueError, match="Not a loadable.*text.tflite"):
        ka.weights.from_tflite(tmp_path / "text.tflite")
    ours = SAVED_MODELS / "camvid_mobilenet_v2" / "model_float16.tflite"
    with pytest.raises(
        ValueError, match="Not a mobile DeepLabV3.*float16.tflite"
    ):
        ka.weights.from_tflite(ours)
