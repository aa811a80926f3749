"""Runtimes that a model can be predicted by, and how one is chosen."""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import flatbuffers
import keras
import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

import keras_aspp as ka
from keras_aspp.export.onnx import write_onnx
from keras_aspp.inference import artefacts, runtimes
from keras_aspp.litert.edit import add_constant
from keras_aspp.litert.graph import unpacked
from keras_aspp.models import fold_batch_norm
from keras_aspp.models.segmenter import load_saved

TFLITE = ROOT / "tests/golden/13d0402/exported/model_float32.tflite"
ABSENT = "extra openvino is not installed (2026-11-29)"


def picture(height=64, width=96, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (7, 8, 3)).astype("uint8")
    return np.array(Image.fromarray(small).resize((width, height)))


def test_batch_norm_is_folded_with_equal_scores(tiny_export):
    path = tiny_export / "model.keras"
    image = picture()
    model = load_saved(path)
    assert any("gamma" in weight.path for weight in model.weights)
    expected = np.asarray(model(model.preprocess(image[None]), training=False))
    assert expected.std() > 0.1
    predictor = ka.Predictor(path)
    graph = predictor._engine._graph(("labels",)).get_concrete_function()
    assert 0 < len(graph.variables) < len(model.weights)
    found = predictor.score_batch(image[None])
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())


@pytest.mark.slow
def test_bfloat16_of_a_keras_model_differs_a_little(tiny_export):
    image = picture()
    path = tiny_export / "model.keras"
    exact = ka.Predictor(path)
    coarse = ka.Predictor(path, precision="bfloat16")
    assert (coarse.runtime, coarse.precision) == ("keras", "bfloat16")
    expected = exact.score_batch(image[None])
    difference = np.abs(coarse.score_batch(image[None]) - expected).mean()
    assert 1e-4 < difference / expected.std() < 0.1
    assert (coarse.predict(image) == exact.predict(image)).mean() > 0.9


def with_a_number(value, is_behind):
    """The bytes of a `.tflite` with one more constant.

    Args:
        value: float.
        is_behind: bool. Its data are behind the graph, as some writers put it.
    """
    file = unpacked(TFLITE.read_bytes())
    graph = file.subgraphs[0]
    buffer = file.buffers[
        graph.tensors[
            add_constant(file, graph, np.float32([value]), b"bias")
        ].buffer
    ]
    start = 2
    if is_behind:
        buffer.data, buffer.size = None, 4
    for _ in range(2):
        buffer.offset = start if is_behind else 0
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(file.Pack(builder), b"TFL3")
        content = bytes(builder.Output())
        content += bytes(-len(content) % 16)
        start = len(content)
    return content + np.float32([value]).tobytes() * is_behind


@pytest.mark.parametrize("is_behind", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.5])
def test_a_tflite_with_a_single_number_that_is_not_finite(
    tmp_path, value, is_behind
):
    """As the bias of a binary model is; -inf pads max pooling."""
    path = tmp_path / "model.tflite"
    path.write_bytes(with_a_number(value, is_behind))
    if value in (-np.inf, 0.5):
        np.testing.assert_array_equal(
            ka.Predictor(path).predict(picture()),
            ka.Predictor(TFLITE).predict(picture()),
        )
    else:
        with pytest.raises(ValueError, match=r"infinity in 1 of \d+.*: bias"):
            ka.Predictor(path)


def test_openvino_predicts_a_tflite_as_litert_does(tiny_export):
    pytest.importorskip("openvino", reason=ABSENT)
    image = picture()
    path = tiny_export / "model_float32.tflite"
    found = ka.Predictor(path, runtime="openvino")
    assert (found.runtime, found.image_size) == ("openvino", (64, 96))
    labels = found.predict(image)
    assert len(np.unique(labels)) > 1
    assert (labels == ka.Predictor(path).predict(image)).mean() > 0.999
    coarse = ka.Predictor(path, runtime="openvino", precision="bfloat16")
    assert (coarse.predict(image) == labels).mean() > 0.9


@pytest.mark.slow
def test_openvino_predicts_an_onnx_as_onnxruntime_does(tiny_export, tmp_path):
    pytest.importorskip("openvino", reason=ABSENT)
    for name in ("onnx", "onnxruntime", "tf2onnx"):
        pytest.importorskip(name, reason=f"{name} is absent (2026-11-29)")
    image, path = picture(80, 70), tmp_path / "model.onnx"
    model = load_saved(tiny_export / "model.keras")
    write_onnx(
        fold_batch_norm(model),
        path,
        (64, 96),
        outputs=("labels", "confidence"),
    )
    own = ka.Predictor(path)
    found = ka.Predictor(path, runtime="openvino")
    assert (own.runtime, found.runtime) == ("onnxruntime", "openvino")
    assert found.image_size == (64, 96)
    labels, sure = found.predict(image, return_confidence=True)
    expected, as_sure = own.predict(image, return_confidence=True)
    assert labels.shape == sure.shape == (80, 70)
    assert len(np.unique(labels)) > 1
    assert (labels == expected).mean() > 0.999
    assert as_sure.std() > 0.01
    np.testing.assert_allclose(sure, as_sure, atol=1e-3)
    # `auto` takes it, too.
    assert ka.Predictor(path, runtime="auto").runtime == "openvino"


def test_openvino_answers_threads(tiny_export):
    pytest.importorskip("openvino", reason=ABSENT)
    predictor = ka.Predictor(
        tiny_export / "model_float32.tflite", runtime="openvino"
    )
    images = [picture(seed=seed) for seed in range(8)]
    expected = [predictor.predict(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(
            pool.map(predictor.predict, images), expected, strict=True
        ):
            np.testing.assert_array_equal(found, wanted)


def test_auto_takes_the_fastest_file_and_runtime(tiny_export, monkeypatch):
    predictor = ka.Predictor(tiny_export, runtime="auto")
    assert predictor.path.name == "model_float32.tflite"
    assert predictor.runtime == "litert"
    tflite, onnx = Path("a.tflite"), Path("a.onnx")
    for has, of_onnx in ((True, "openvino"), (False, "onnxruntime")):
        monkeypatch.setattr(runtimes, "is_installed", lambda _, has=has: has)
        assert runtimes.choose(tflite, "auto", "float32") == "litert"
        assert runtimes.choose(onnx, "auto", "float32") == of_onnx
    monkeypatch.setattr(runtimes, "is_installed", lambda _: True)
    assert runtimes.choose(tflite, "auto", "bfloat16") == "openvino"


def test_auto_in_bfloat16_without_openvino_is_keras(tiny_export, monkeypatch):
    for module in (runtimes, artefacts):
        monkeypatch.setattr(module, "is_installed", lambda _: False)
    found = ka.Predictor(tiny_export, runtime="auto", precision="bfloat16")
    assert (found.runtime, found.path.name) == ("keras", "model.keras")
    with pytest.raises(ValueError, match=r"keras and openvino \(pip install"):
        ka.Predictor(
            tiny_export / "model_float32.tflite",
            runtime="auto",
            precision="bfloat16",
        )


def test_auto_takes_what_is_installed(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").touch()
    (tmp_path / "model.keras").touch()
    for has, name in ((True, "model.onnx"), (False, "model.keras")):
        monkeypatch.setattr(artefacts, "is_installed", lambda _, has=has: has)
        assert artefacts.resolve(tmp_path, runtime="auto").name == name


def test_auto_takes_no_integers(tmp_path):
    (tmp_path / "model_int8.tflite").touch()
    with pytest.raises(ValueError, match="8 bits predict other labels"):
        artefacts.resolve(tmp_path, runtime="auto")


def test_a_saved_model_in_a_folder_with_a_dot_in_its_name(
    tiny_export, tmp_path
):
    folder = tmp_path / "roads_v1.2"
    shutil.copytree(tiny_export / "saved_model", folder)
    for runtime in (None, "saved_model"):
        assert ka.Predictor(folder, runtime=runtime).runtime == "saved_model"


def test_auto_takes_keras_for_what_keras_alone_does(tiny_export):
    predictor = ka.Predictor(tiny_export, runtime="auto", flip=True)
    assert (predictor.runtime, predictor.path.name) == ("keras", "model.keras")


def test_a_runtime_takes_the_file_of_a_folder_that_it_reads(tiny_export):
    for runtime, name in (
        ("keras", "model.keras"),
        ("saved_model", "saved_model"),
        ("litert", "model_float32.tflite"),
    ):
        predictor = ka.Predictor(tiny_export, runtime=runtime)
        assert (predictor.runtime, predictor.path.name) == (runtime, name)


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("", {"runtime": "tensorrt"}, "must be one of .*Received: 'tensorrt'"),
        ("", {"runtime": "onnxruntime"}, "onnxruntime reads .onnx. Received"),
        (
            "model.keras",
            {"runtime": "openvino"},
            "openvino reads .tflite or .onnx. Received: .*model.keras",
        ),
        (
            "model.keras",
            {"precision": "float16"},
            "`precision` must be one of .*Received: 'float16'",
        ),
        (
            "model_float32.tflite",
            {"precision": "bfloat16"},
            "Only the runtimes keras and openvino.*runtime='litert'",
        ),
    ],
)
def test_wrong_choices_are_one_line(tiny_export, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        ka.Predictor(tiny_export / name, **arguments)


def test_openvino_without_its_extra(tiny_export, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"keras-aspp\[openvino\]"):
        ka.Predictor(tiny_export / "model_float32.tflite", runtime="openvino")


def test_a_file_that_openvino_cannot_read(tmp_path, tiny_export):
    pytest.importorskip("openvino", reason=ABSENT)
    path = tmp_path / "broken.tflite"
    content = (tiny_export / "model_float32.tflite").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="Not a loadable .tflite.*broken"):
        ka.Predictor(path, runtime="openvino")


def test_another_backend_than_tensorflow_is_named(tiny_export, monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="KERAS_BACKEND=tensorflow, what"):
        ka.Predictor(tiny_export / "model.keras")
