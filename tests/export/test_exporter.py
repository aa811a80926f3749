"""Exports: equal to the model, whole, or not there."""

import ctypes.util
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from flatbuffers.number_types import Int8Flags
from flatbuffers.table import Table
from helpers import ROOT, make_small_backbone, randomize
from PIL import Image

import keras_aspp as ka
from keras_aspp.backbones.rebuild import compute_dtypes
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.export import exporter, formats, measure, tflite, verify
from keras_aspp.export.card import ABOUT, artefact_table, card, size_costs
from keras_aspp.export.image_size import choose_image_size
from keras_aspp.export.metadata import add_metadata, with_metadata
from keras_aspp.export.onnx import write_onnx
from keras_aspp.export.saved_model import write_saved_model
from keras_aspp.litert import describe
from keras_aspp.litert.graph import float_operators
from keras_aspp.litert.sandbox import check_runs
from keras_aspp.models import fold_batch_norm
from keras_aspp.preprocess import KERAS_CAFFE
from keras_aspp.utils.exceptions import UnavailableError
from keras_aspp.utils.files import sha256
from keras_aspp.utils.native_log import filtered_stderr
from keras_aspp.utils.progress import timed

# Those of the repository; users export theirs beside them.
SAVED = ("camvid_mobile", "camvid_mobilenet_v2", "multiscale_shapes")


def pictures(count=2, size=(64, 96)):
    rng = np.random.default_rng(8)
    return list(rng.integers(0, 255, (count, *size, 3)).astype("uint8"))


@pytest.fixture(scope="module")
def model(toy_backbone):
    """Exports leave it as it is."""
    made = ka.models.DeepLabV3(
        4, toy_backbone(padding=1), aspp_filters=8, output_stride=8
    )
    return randomize(made)


def export(model, directory, **changes):
    arguments = {
        "image_size": (64, 96),
        "class_names": list("abcd"),
        "verify_images": pictures(),
        "formats": ("tflite_float32",),
        **changes,
    }
    return ka.export.export_model(model, directory, **arguments)


def test_manifest_is_true_of_the_folder(tiny_export):
    manifest = json.loads((tiny_export / "manifest.json").read_text())
    assert manifest["class_names"] == ["ground", "box", "bar"]
    assert manifest["preprocess"]["value_range"] == [-1.0, 1.0]
    formats = [a["format"] for a in manifest["artefacts"]]
    assert formats == [
        "keras",
        "saved_model",
        "tflite_float32",
        "tflite_float16",
    ]
    for entry in manifest["artefacts"]:
        assert sha256(tiny_export / entry["path"]) == entry["sha256"]
        assert entry["agreement_with_keras"] >= 0.995
        assert 0 < entry["mean_iou"] <= 1
        assert entry["latency_ms"]["median"] > 0
    for name in ("labels.txt", "README.md", "preview.png"):
        assert (tiny_export / name).stat().st_size > 0


def test_an_export_to_a_full_disk_is_one_line_and_leaves_nothing(
    model, tmp_path
):
    """A limit on the size of files fails writes just as a full disk does."""
    resource = pytest.importorskip(
        "resource", reason="only Unix limits file sizes (2026-11-29)"
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        message = r"A file cannot be written: File too large.*model\.keras"
        with pytest.raises(UnavailableError, match=message):
            export(model, tmp_path / "out")
        message = "A SavedModel cannot be written: File too large.*saved_model"
        with pytest.raises(UnavailableError, match=message):
            write_saved_model(model, tmp_path / "work" / "saved_model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


def test_card_is_of_the_manifest(tiny_export, tiny_folder):
    manifest = json.loads((tiny_export / "manifest.json").read_text())
    text = (tiny_export / "README.md").read_text()
    assert artefact_table(manifest) in text
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["pipeline_tag"] == "image-segmentation"
    ((result,),) = (found["results"] for found in front["model-index"])
    assert result["dataset"]["name"] == tiny_folder.name
    (score,) = result["metrics"]
    assert score["value"] == manifest["artefacts"][0]["mean_iou"]


def test_a_card_tells_of_the_files_that_are_there(tiny_export):
    manifest = json.loads((tiny_export / "manifest.json").read_text())
    about = dict.fromkeys(ABOUT, "")
    first, *_ = manifest["artefacts"]

    def text(*names):
        others = [{**first, "format": name} for name in names]
        return card({**manifest, "artefacts": [first, *others]}, about)

    assert "SavedModel" not in text("tflite_int8")
    assert "serve_bytes" in text("saved_model")
    assert "TFLite" not in text("saved_model")
    assert "size; other" in text("tflite_int8")
    assert "(but model_any_size" in text("tflite_int8", "tflite_any_size")


def test_the_saved_models_are_those_of_the_repository():
    git = ["git", "ls-files", "-z", "saved_models"]
    try:
        found = subprocess.run(git, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        found = None
    if not (found and found.stdout):
        pytest.skip("git or its repository is absent (2026-11-29)")
    paths = filter(None, found.stdout.decode().split("\0"))
    assert {Path(path).parts[1] for path in paths} == {*SAVED}


@pytest.mark.parametrize("name", SAVED)
def test_files_of_a_saved_model_are_those_of_its_manifest(name):
    """What git holds; SavedModels and large files are made anew."""
    folder = ROOT / "saved_models" / name
    manifest = json.loads((folder / "manifest.json").read_text())
    names = (folder / "labels.txt").read_text().split("\n")[:-1]
    assert names == manifest["class_names"]
    listed = {entry["path"]: entry for entry in manifest["artefacts"]}
    present = {
        path.name: path
        for path in folder.iterdir()
        if path.suffix in (".keras", ".tflite")
    }
    assert "model_float16.tflite" in present
    for file, path in present.items():
        assert sha256(path) == listed[file]["sha256"]
        assert path.stat().st_size < 10e6


@pytest.mark.parametrize("name", [n for n in SAVED if "camvid" in n])
def test_table_of_card_and_results_is_that_of_the_saved_model(name):
    folder = ROOT / "saved_models" / name
    table = artefact_table(json.loads((folder / "manifest.json").read_text()))
    assert table in (folder / "README.md").read_text()
    assert table in (ROOT / "docs/results.md").read_text()


def test_mean_iou_of_the_manifest_is_that_of_the_run(tiny_export, tiny_workdir):
    manifest = json.loads((tiny_export / "manifest.json").read_text())
    metrics = json.loads((tiny_workdir / "metrics.json").read_text())
    for entry in manifest["artefacts"][:2]:
        assert entry["mean_iou"] == pytest.approx(metrics["mean_iou"], abs=1e-5)


def test_keras_is_evaluated_at_the_size_of_a_file(
    tiny_export, tiny_folder, reference
):
    """Counted by NumPy, on images and labels that PIL resizes."""
    manifest = json.loads((tiny_export / "manifest.json").read_text())
    counts = np.zeros((3, 3), int)
    for path in sorted((tiny_folder / "images" / "val").iterdir()):
        image = Image.open(path)
        mask = Image.open(tiny_folder / "masks" / "val" / path.name)
        labels, resized = np.array(mask), image.resize((96, 64), Image.BILINEAR)
        found = Image.fromarray(
            reference.predict(np.array(resized)).astype("uint8")
        )
        found = np.array(found.resize(image.size, Image.NEAREST))
        counted = labels != 255
        np.add.at(counts, (labels[counted], found[counted]), 1)
    hits = np.diag(counts)
    unions = counts.sum(0) + counts.sum(1) - hits
    expected = np.mean(hits[unions > 0] / unions[unions > 0])
    of_format = {entry["format"]: entry for entry in manifest["artefacts"]}
    entry = of_format["tflite_float32"]
    assert entry["keras_mean_iou"] == pytest.approx(expected, abs=2e-6)
    points = 100 * (entry["keras_mean_iou"] - entry["mean_iou"])
    assert entry["loss_points"] == pytest.approx(points, abs=0.006)
    for name in ("keras", "saved_model"):
        own = of_format["keras"]["mean_iou"]
        assert of_format[name]["keras_mean_iou"] == own
    cost = size_costs(manifest)[64, 96]
    assert cost == pytest.approx(100 * (own - expected), abs=0.006)
    card = (tiny_export / "README.md").read_text()
    assert f"64x96 alone changes Keras' mean IoU by {0.0 - cost:+.2f}" in card


def test_a_table_of_a_manifest_of_before_has_its_columns(tiny_export):
    manifest = json.loads((tiny_export / "manifest.json").read_text())
    now = artefact_table(manifest).splitlines()
    for entry in manifest["artefacts"]:
        del entry["keras_mean_iou"]
    before = artefact_table(manifest).splitlines()
    assert size_costs(manifest) == {}
    for line, shorter in zip(now, before, strict=True):
        cells = line.split("|")
        assert "|".join(cells[:5] + cells[6:]) == shorter
    assert now[0].split("|")[5] == " Keras at its size "


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({(360, 480): 3}, (352, 480)),  # 11.25 and 15 steps
        ({(140, 140): 5, (900, 900): 4}, (128, 128)),
        ({(176, 208): 1}, (192, 224)),  # halves go up
        ({(100, 200): 1, (300, 600): 1}, (192, 416)),  # 200 x 400
        ({(1024, 2048): 2}, (512, 1024)),
        ({(3000, 4000): 1}, (768, 1024)),
        ({(20, 3000): 1}, (128, 1024)),
    ],
)
def test_the_default_size_is_the_median_in_multiples_of_32(sizes, expected):
    size, reason = choose_image_size(sizes)
    assert size == expected
    assert [type(n) for n in size] == [int, int]
    count = sum(sizes.values())
    images = "1 image" if count == 1 else f"{count} images"
    assert reason.startswith(f"the median of {images} is ")


def test_the_default_size_of_a_model_of_one_size_is_its_own():
    size, reason = choose_image_size({(500, 600): 1}, (160, 224))
    assert (size, reason) == ((160, 224), "the size of the model's input")
    assert choose_image_size({(500, 600): 1}, (None, 224))[0] == (512, 224)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """A folder with a `.tflite` of the model, and its manifest."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    return folder, export(model, folder)


@pytest.mark.slow
def test_an_export_reports_its_phases_if_asked(model, tmp_path, capfd):
    reported = []
    arguments = {
        "image_size": None,
        "verify_images": pictures(2, (150, 130)),
        "evaluation_data": [(pictures()[0], np.zeros((64, 96), int))],
    }
    manifest = export(
        model,
        tmp_path / "out",
        progress=lambda *report: reported.append(report),
        **arguments,
    )
    assert capfd.readouterr() == ("", "")
    (entry,) = manifest["artefacts"][1:]
    assert entry["input"]["shape"] == [1, 160, 128, 3]
    assert [phase for phase, seconds in reported if seconds is None] == [
        "model_float32.tflite: converting",
        "model.keras: comparing with the model",
        "model_float32.tflite: comparing with the model",
        "model.keras: mean IoU",
        "model.keras: mean IoU at 160x128",
        "model_float32.tflite: mean IoU",
    ]
    # Each ends before the next begins.
    assert [phase for phase, _ in reported[::2]] == [
        phase for phase, seconds in reported[1::2] if seconds > 0
    ]


def test_a_phase_is_one_line_written_while_it_runs(capsys):
    with pytest.raises(ValueError, match="fails"):
        with timed(ka.export.print_progress, "a: converting"):
            assert capsys.readouterr().out == "a: converting ..."
            raise ValueError("it fails")
    assert re.fullmatch(r" 0\.\d s\n", capsys.readouterr().out)
    ka.export.print_progress("b", 12.4)
    assert capsys.readouterr().out == " 12 s\n"


def test_a_failed_conversion_names_operators_in_its_error_alone(
    tmp_path, capfd
):
    module = tf.Module()
    module.call = tf.function(
        lambda image: {"labels": tf.math.bessel_i0(image)},
        input_signature=[tf.TensorSpec((4,), tf.float32, "image")],
    )
    tf.saved_model.save(
        module, tmp_path, signatures={"serving_default": module.call}
    )
    with pytest.raises(ValueError, match=r"or failed: tf\.BesselI0$"):
        with filtered_stderr(hold=True):
            tflite._convert_one(str(tmp_path), "tflite_float32")
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_dilated_convolutions_stay_whole(exported):
    _, manifest = exported
    assert manifest["artefacts"][0]["gpu_compatible"] is None
    verdict = manifest["artefacts"][1]["gpu_static_verdict"]
    assert verdict["compatible"] is True
    assert verdict["by"] == f"analyzer of TensorFlow {tf.__version__}"
    found = manifest["artefacts"][1]["operators"]
    assert not any(name.startswith(describe.FORBIDDEN) for name in found)
    assert found["CONV_2D"] > 5
    # One of them normalizes the pixels.
    assert found["DEPTHWISE_CONV_2D"] == 3
    # What image pooling says is added, not spread and convolved.
    assert "BROADCAST_TO" not in found
    assert found["ARG_MAX"] == 1


@pytest.mark.slow
def test_files_in_floats_for_a_cpu_multiply_no_padding(tmp_path):
    image = keras.Input((None, None, 3))
    cells = keras.layers.Conv2D(128, 8, 8)(image)
    model = ka.models.DeepLabV3(
        4,
        keras.Model(image, {"stride_8": cells}),
        output_stride=8,
        atrous_rates=(4, (6, 3)),
        aspp_filters=16,
    )
    size = (64, 96)
    randomize(model)
    in_floats = ("tflite_float32", "tflite_float16", "tflite_logits")
    plain = ("tflite_int8", "tflite_dynamic_range", "tflite_gpu")
    found = {}
    files = tflite.convert(
        fold_batch_norm(model), size, in_floats + plain, pictures()
    )
    for name, content in files.items():
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(content)
        found[name] = describe.describe_tflite(path)
        rows = found[name]["atrous"]
        assert all(row["map"] == [8, 12] for row in rows)
        assert sorted(str(row["rate"]) for row in rows) == ["4", "[6, 3]"]
        is_live = all(row["operator"].endswith("tap") for row in rows)
        assert is_live == (name in in_floats)
    dead = sum(
        1 - ka.analysis.valid_taps(rate, (8, 12)).mean for rate in (4, (6, 3))
    )
    saved = found["tflite_dynamic_range"]["madds"]
    saved -= found["tflite_float32"]["madds"]
    assert saved == pytest.approx(dead * 9 * 128 * 16 * 8 * 12)
    # Each weight is stored once.
    weights = {name: found[name]["weights_bytes"] for name in found}
    assert weights["tflite_float32"] == pytest.approx(
        weights["tflite_gpu"], rel=0.02
    )
    model.save(tmp_path / "model.keras")
    (image,) = pictures(1)
    labels, expected = (
        ka.Predictor(tmp_path / name).predict(image)
        for name in ("tflite_float32.tflite", "model.keras")
    )
    assert (labels == expected).mean() > 0.999


@pytest.fixture(scope="module")
def signatures(tiny_export):
    """Those of a SavedModel, which is loaded once."""
    return tf.saved_model.load(str(tiny_export / "saved_model")).signatures


@pytest.fixture(scope="module")
def reference(tiny_export):
    """The predictor of the `.keras` in the same folder."""
    return ka.Predictor(tiny_export / "model.keras")


def test_saved_model_does_not_use_batch_statistics(signatures, tiny_workdir):
    serve = signatures["serving_default"]
    first, second = pictures()
    # Batch statistics would make one picture's labels depend on the other.
    alone = serve(image=tf.constant(first[None]))["labels"][0]
    beside = serve(image=tf.constant(np.stack([first, second])))["labels"][0]
    np.testing.assert_array_equal(alone, beside)
    model = keras.saving.load_model(tiny_workdir / "model.keras")
    logits = model(model.preprocess(first[None]), training=False)
    np.testing.assert_array_equal(alone, np.argmax(logits, -1)[0])


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_serve_bytes_equals_predictor(signatures, reference, tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(pictures(1, (50, 75))[0]).save(path)
    serve = signatures["serve_bytes"]
    labels = serve(image_bytes=tf.constant(path.read_bytes()))["labels"]
    assert labels.shape == (50, 75)
    expected = reference.predict(path)
    np.testing.assert_array_equal(labels, expected)


def test_signatures(signatures):
    serve = signatures["serving_default"]
    image = serve.structured_input_signature[1]["image"]
    assert image.dtype == tf.uint8
    assert image.shape.as_list() == [None, None, None, 3]
    assert serve.structured_outputs["labels"].dtype == tf.int32


def test_too_little_agreement_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "compare", lambda *_: (0.9985, {}))
    with pytest.raises(ValueError, match=r"99\.9%.*Received: 99\.850%"):
        export(model, tmp_path / "out", formats=())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def converted(exported, monkeypatch):
    """Lets each conversion return the file that is there."""
    content = (exported[0] / "model_float32.tflite").read_bytes()
    monkeypatch.setattr(
        tflite, "convert", lambda *_, **__: {"tflite_float32": content}
    )


@pytest.mark.parametrize("name", ["FlexErf", "SPACE_TO_BATCH_ND"])
def test_operators_that_are_forbidden(name):
    found = {"CONV_2D": 3, name: 1}
    with pytest.raises(ValueError, match=f"Received: {name} in model_float32"):
        describe.check_operators(found, Path("of/model_float32.tflite"))


def test_forbidden_operator_leaves_nothing(
    model, converted, tmp_path, monkeypatch
):
    found = {"CONV_2D": 3, "FlexErf": 1}
    monkeypatch.setattr(describe, "operators", lambda path: found)
    with pytest.raises(ValueError, match="Received: FlexErf in model_float32"):
        export(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_agreement_is_measured(model, exported):
    other = type(model).from_config(model.get_config())
    randomize(other, seed=9)

    def answer(image, outputs):
        assert outputs == ("labels",)
        scores = other(other.preprocess(image[None]), training=False)
        return {"labels": np.argmax(scores, -1)[0]}

    path = exported[0] / "model_float32.tflite"
    run = verify.run_alone(path, pictures(), "interpreter", "cpu")
    found = [
        verify.compare(answers, answer, pictures())
        for answers in run.outputs.values()
    ]
    (agreement, differences) = found[0]
    assert found[1] == found[0]
    assert agreement < 0.95
    assert differences == {}


def test_an_artefact_that_does_not_run_alone(tmp_path):
    broken = tmp_path / "model.tflite"
    broken.write_bytes(b"no model")
    with pytest.raises(ValueError, match="model.tflite does not run without"):
        verify.run_alone(broken, pictures(), "interpreter")


def test_existing_folder_is_refused_then_replaced(model, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="did not write"):
            export(model, out, overwrite=overwrite)
    assert (out / "mine.txt").read_text() == "keep"
    (out / "mine.txt").rename(out / "int8_operators.json")  # of --explain-int8
    export(model, out, overwrite=True, formats=())
    assert not (out / "int8_operators.json").exists()
    with pytest.raises(FileExistsError, match="--overwrite"):
        export(model, out)
    export(model, out, overwrite=True, formats=())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_current_folder_is_refused_before_it_converts(
    model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(exporter, "_write_artefacts", None)
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="the current folder"):
            export(model, ".", overwrite=overwrite)


def test_a_manifest_has_the_name_of_its_folder(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert export(model, "out/new/..", formats=())["name"] == "out"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["a", "b"]}, "model's 4 classes. Received: 2 names"),
        ({"verify_images": []}, "at least one image"),
        ({"formats": ("coreml",)}, r"Received: \['coreml'\]"),
        ({"image_size": (64, 0)}, r"Received: image_size=\(64, 0\)"),
        ({"verify_images": [np.zeros((4, 4, 3))]}, "dtype=float64"),
        ({"calibration_images": pictures()}, "not among the formats"),
        ({"formats": ("tflite_int8",)}, "training split for tflite_int8"),
        (
            {"formats": ("tflite_int8",), "calibration_images": [[1, 2]]},
            r"`calibration_images` must be uint8.*shape=\(2,\)",
        ),
        (
            {"preview_image": np.zeros((8, 9), "uint8")},
            r"`preview_image` must be uint8.*shape=\(8, 9\)",
        ),
    ],
)
def test_wrong_arguments(model, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "out", **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["path", "folded"])
def test_what_is_no_segmenter_is_not_exported(model, tmp_path, wrong):
    given = {"path": "runs/mine", "folded": fold_batch_norm(model)}[wrong]
    message = "`model` must be a Segmenter; .* Received: model="
    with pytest.raises(ValueError, match=message):
        export(given, tmp_path / "out")


def test_images_may_come_from_a_generator(model, tmp_path):
    images = (image for image in pictures())
    manifest = export(model, tmp_path / "out", verify_images=images, formats=())
    assert manifest["artefacts"][0]["agreement_with_keras"] == 1


def test_formats_are_the_contract():
    assert formats.FORMATS == (
        "saved_model",
        "tflite_float32",
        "tflite_float16",
        "tflite_dynamic_range",
        "tflite_int8",
        "tflite_int16x8",
        "tflite_any_size",
        "tflite_logits",
        "tflite_gpu",
        "onnx",
    )


@pytest.fixture(scope="module")
def gpu_file(model, tmp_path_factory):
    """The path of a `tflite_gpu` and its entry, on a machine without GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VK_ICD_FILENAMES", "/none")
        out = tmp_path_factory.mktemp("gpu") / "out"
        manifest = export(model, out, formats=("tflite_gpu",))
    return out / "model_gpu.tflite", manifest["artefacts"][1]


@pytest.mark.slow
def test_file_for_gpus_answers_with_scores_of_cells(model, gpu_file):
    path, entry = gpu_file
    assert entry["input"]["dtype"] == "float32"
    assert entry["input"]["range"] == [-1, 1]
    # The stride of the head is 8.
    assert entry["output"]["shape"] == [1, 8, 12, 4]
    assert entry["agreement_with_keras"] >= 0.99
    assert entry["compiled_model"]["cpu"]["agreement_with_keras"] >= 0.99
    assert entry["float16"]["agreement_with_keras"] >= 0.99
    (image,) = pictures(1)
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    interpreter.set_tensor(
        interpreter.get_input_details()[0]["index"],
        (image[None] / 127.5 - 1).astype("float32"),
    )
    interpreter.invoke()
    index = interpreter.get_output_details()[0]["index"]
    cells = keras.Model(model.input, model.get_layer("logits").input[0])
    expected = cells(model.preprocess(image[None]), training=False)
    found = interpreter.get_tensor(index)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    labels, scores = ka.Predictor(path).predict(image, return_scores=True)
    resized = tf.image.resize(expected, (64, 96))[0]
    np.testing.assert_allclose(scores, resized, atol=1e-3)
    np.testing.assert_array_equal(labels, scores.argmax(-1))


def test_machine_without_a_gpu_says_so(gpu_file):
    _, entry = gpu_file
    assert entry["gpu_compatible"] is None
    assert entry["gpu_reason"].startswith("no GPU that LiteRT can use")
    assert entry["compiled_model"]["gpu"] is None


# Chromium's Vulkan driver in software, which `.ci/run` installs, with a loader.
SOFTWARE_GPU = "/usr/lib/chromium/vk_swiftshader_icd.json"


@pytest.mark.slow
def test_gpu_of_litert_computes_the_file_for_gpus(model, tmp_path, monkeypatch):
    if not os.path.exists(SOFTWARE_GPU):
        pytest.skip("no Vulkan driver of Chromium (2026-11-29)")
    if ctypes.util.find_library("vulkan") is None:
        pytest.skip("no loader of Vulkan drivers, libvulkan1 (2026-11-30)")
    monkeypatch.setenv("VK_ICD_FILENAMES", SOFTWARE_GPU)
    monkeypatch.setattr(verify, "_no_gpu", threading.Event())
    kinds = ("tflite_float32", "tflite_gpu")
    manifest = export(model, tmp_path / "out", formats=kinds)
    for entry in manifest["artefacts"][1:]:
        assert entry["gpu_compatible"] is True, entry["gpu_reason"]
        gpu = entry["compiled_model"]["gpu"]
        assert gpu["is_fully_accelerated"] is True
        assert gpu["agreement_with_keras"] >= 0.99


def partly(*_):
    raise verify.NotRunError("Some ops are not accelerated.")


def elsewhere(*_):
    labels = np.full((64, 96), 3, "int32")
    return verify.Run({"gpu": [{"labels": labels}]}, True)


@pytest.mark.parametrize(
    "run, reason",
    [
        (partly, "Some ops are not accelerated."),
        (elsewhere, r"the GPU agrees with Keras on \d+\.\d% of the pixels"),
        (
            lambda *_: dataclasses.replace(
                elsewhere(), fully_accelerated=False
            ),
            "the GPU runs a part of it",
        ),
    ],
)
def test_gpu_that_fails_is_told_from_no_gpu(monkeypatch, run, reason):
    monkeypatch.setattr(verify, "run_on_gpu", run)
    (image,) = pictures(1)

    def on_gpu(kind):
        path = Path(formats.FILE_NAMES[kind])
        labels = np.arange(image[..., 0].size).reshape(64, 96) % 4
        return measure._on_gpu(
            measure.Artefact(kind, path, None),
            image,
            lambda image, outputs: {"labels": labels},
        )

    found, compatible, said = on_gpu("tflite_float32")
    assert compatible is False
    assert re.search(reason, said)
    if found is not None:
        assert found["agreement_with_keras"] == 0.25
    with pytest.raises(ValueError, match=reason):
        on_gpu("tflite_gpu")


def test_manifest_says_why_a_gpu_fails(model, converted, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "run_on_gpu", elsewhere)
    entry = export(model, tmp_path / "out")["artefacts"][1]
    assert entry["gpu_compatible"] is False
    assert re.search("the GPU agrees with Keras on", entry["gpu_reason"])
    gpu = entry["compiled_model"]["gpu"]
    assert 0 <= gpu["agreement_with_keras"] < 0.95
    assert gpu["is_fully_accelerated"] is True


def test_a_file_for_gpus_has_half_pixel_centers(toy_backbone, tmp_path):
    made = ka.models.DeepLabV3(
        4,
        toy_backbone(padding=1),
        atrous_rates=(1,),
        aspp_filters=4,
        align_corners=True,
    )
    message = "last resize.*tflite_logits. Received: .*align_corners=True$"
    with pytest.raises(ValueError, match=message):
        export(made, tmp_path / "out", formats=("tflite_gpu",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "sizes, received",
    [
        ([(65, 96)], "65x96 pixels, 9x12 cells"),
        ([(64, 97)], "64x97 pixels, 8x13 cells"),
        ([(64, 96), (72, 100)], "72x100 pixels, 9x13 cells"),
    ],
)
def test_cells_of_a_file_for_gpus_fill_the_image(
    model, tmp_path, sizes, received
):
    # Half-pixel centers of the cells that Keras and an app resize to 65 pixels
    # differ by up to 7 pixels, at the far edge.
    message = rf"8x8 pixels must fill it. Use multiples of 8,.*: {received}$"
    with pytest.raises(ValueError, match=message):
        export(
            model,
            tmp_path / "out",
            image_size=sizes[0],
            more_image_sizes=sizes[1:],
            formats=("tflite_gpu",),
        )
    assert list(tmp_path.iterdir()) == []


def test_cells_of_a_backbone_that_does_not_pad_fill_no_image(tmp_path):
    made = ka.models.DeepLabV3(
        4, valid_backbone(), aspp_filters=4, output_stride=8
    )
    message = "tflite_logits. Received: 64x96 pixels, 7x11 cells$"
    with pytest.raises(ValueError, match=message):
        export(made, tmp_path / "out", formats=("tflite_gpu",))


def test_a_file_for_gpus_shifts_no_scores(toy_backbone, tmp_path):
    made = ka.models.DeepLabV3(
        4, toy_backbone(), aspp_filters=4, output_stride=16
    )
    made = ka.models.with_output_stride(made, 8)
    shift = re.escape(str(made.get_layer("logits").shift))
    assert shift != re.escape("(0, 0)")
    message = f"tflite_logits. Received: .* shifts scores by {shift} pixels$"
    with pytest.raises(ValueError, match=message):
        export(made, tmp_path / "out", formats=("tflite_gpu",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_file_for_gpus_takes_channels_in_any_order(toy_backbone, tmp_path):
    """By one convolution: GPUs take no reversal."""
    made = ka.models.DeepLabV3(
        4,
        toy_backbone(padding=1),
        aspp_filters=8,
        output_stride=8,
        # A range of its own, as a data set may state it.
        preprocess=dataclasses.replace(KERAS_CAFFE, input_range=(10.0, 200.0)),
    )
    manifest = export(
        randomize(made), tmp_path / "out", formats=("tflite_gpu",)
    )
    entry = manifest["artefacts"][1]
    assert not {"REVERSE_V2", "STRIDED_SLICE"} & set(entry["operators"])
    assert entry["agreement_with_keras"] >= 0.99


@pytest.mark.slow
def test_logits_and_their_metadata(model, tmp_path):
    manifest = export(
        model, tmp_path / "out", formats=("tflite_logits",), image_size=(50, 70)
    )
    entry = manifest["artefacts"][1]
    assert entry["output"]["name"] == "logits"
    assert entry["output"]["shape"] == [1, 50, 70, 4]
    assert 0 < entry["max_abs_logit_difference"] < 1e-3
    path = tmp_path / "out" / "model_logits.tflite"
    image = pictures(1, (50, 70))[0]
    labels, scores = ka.Predictor(path).predict(image, return_scores=True)
    logits = model(model.preprocess(image[None]), training=False)[0]
    np.testing.assert_allclose(scores, logits, atol=1e-3)
    np.testing.assert_array_equal(labels, np.argmax(logits, -1))
    with pytest.raises(ValueError, match="of its own size"):
        ka.Predictor(path).predict(pictures()[0], return_scores=True)
    content = path.read_bytes()
    assert b"TFLITE_METADATA" in content
    assert b"M001" in content
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt") == b"a\nb\nc\nd\n"


# MediaPipe in a process of its own, as it brings its own LiteRT.
_CONFIDENCE = """
import gc, sys
gc.disable()
# It would be imported for decorators of documentation.
sys.modules["tensorflow"] = None
import mediapipe as mp
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision

image, *models = sys.argv[1:]
for model in models:
    options = vision.ImageSegmenterOptions(
        base_options=BaseOptions(model_asset_path=model),
        output_confidence_masks=True,
    )
    with vision.ImageSegmenter.create_from_options(options) as segmenter:
        pixels = mp.Image(
            image_format=mp.ImageFormat.SRGB, data=np.load(image)
        )
        masks = segmenter.segment(pixels).confidence_masks
        masks = [np.squeeze(mask.numpy_view()) for mask in masks]
        np.save(model + ".npy", masks)
"""
KINDS = ("tflite_logits", "tflite_gpu")


@pytest.fixture(scope="module")
def overlapping():
    """A multilabel model."""
    made = ka.models.DeepLabV3(
        4,
        make_small_backbone(),
        aspp_filters=8,
        output_stride=8,
        task="multilabel",
        threshold=(0.2, 0.5, 0.5, 0.8),
    )
    return randomize(made)


@pytest.fixture(scope="module")
def confidence_masks(model, overlapping, tmp_path_factory):
    """MediaPipe's confidence masks `[H, W, K]` by task and kind of file."""
    pytest.importorskip("mediapipe", reason="extra `examples` (2026-11-29)")
    folder = tmp_path_factory.mktemp("mediapipe")
    (pixels,) = pictures(1)
    np.save(folder / "image.npy", pixels)
    paths = {}
    for made in (model, overlapping):
        for kind, content in tflite.convert(
            made, pixels.shape[:2], KINDS
        ).items():
            path = folder / f"{made.task}_{kind}.tflite"
            path.write_bytes(content)
            many = made.task == "multilabel"
            add_metadata([(kind, path)], "one", list("abcd"), many)
            paths[made.task, kind] = path
    done = subprocess.run(
        [sys.executable, "-c", _CONFIDENCE, "image.npy", *paths.values()],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {
        key: np.moveaxis(np.load(f"{path}.npy"), 0, -1)
        for key, path in paths.items()
    }


def logits_of(model, kind):
    """Logits of the image, or of cells as in a file for GPUs."""
    scores = model
    if kind == "tflite_gpu":
        scores = keras.Model(model.input, model.get_layer("logits").input[0])
    pixels = model.preprocess(pictures(1)[0][None])
    return np.asarray(scores(pixels, training=False))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_confidence_masks_of_mediapipe_are_softmax(
    model, confidence_masks, kind
):
    """Of a file for GPUs it resizes the probabilities of cells."""
    masks = confidence_masks["semantic", kind]
    powers = np.exp(logits_of(model, kind))
    expected = powers / powers.sum(-1, keepdims=True)
    expected = tf.image.resize(expected, (64, 96))[0]
    np.testing.assert_allclose(masks, expected, atol=1e-4)
    np.testing.assert_allclose(masks.sum(-1), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_confidence_masks_of_classes_that_overlap_are_sigmoids(
    overlapping, confidence_masks, kind
):
    masks = confidence_masks["multilabel", kind]
    expected = 1 / (1 + np.exp(-logits_of(overlapping, kind)))
    expected = tf.image.resize(expected, (64, 96))[0]
    np.testing.assert_allclose(masks, expected, atol=1e-4)
    # Not those of a softmax.
    assert abs(masks.sum(-1) - 1).max() > 0.1


def segmenter_options(model):
    """The custom metadata of a `.tflite`, read table by table by flatbuffers.

    Slots are those of MediaPipe's metadata_schema.fbs: subgraph_metadata 3,
    custom_metadata 9; CustomMetadata: name 0, data 1.
    """
    content = schema.ModelT.InitFromPackedBuf(model)
    (buffer,) = (
        bytes(content.buffers[entry.buffer].data)
        for entry in content.metadata
        if entry.name == b"TFLITE_METADATA"
    )

    def root(data):
        return Table(data, int.from_bytes(data[:4], "little"))

    def at(table, slot):
        return table.Offset(4 + 2 * slot)

    def only(table, slot):
        """The table in a vector of one."""
        field = at(table, slot)
        assert table.VectorLen(field) == 1
        return Table(table.Bytes, table.Indirect(table.Vector(field)))

    entry = only(only(root(buffer), 3), 9)
    name = entry.String(entry.Pos + at(entry, 0))
    start, field = entry.Vector(at(entry, 1)), at(entry, 1)
    data = buffer[start : start + entry.VectorLen(field)]
    options = root(data)
    activation = options.Get(Int8Flags, options.Pos + at(options, 0))
    return name, start % 16, data[4:8], activation


def test_metadata_declares_the_activation(tiny_export):
    model = (tiny_export / "model_float32.tflite").read_bytes()
    found = segmenter_options(with_metadata(model, "one", ["a", "b"]))
    # Aligned to 16 bytes in the metadata; SOFTMAX = 2.
    assert found == (b"SEGMENTER_METADATA", 0, b"V001", 2)
    overlapping = with_metadata(model, "one", ["a", "b"], is_multilabel=True)
    # SIGMOID = 1.
    assert segmenter_options(overlapping)[2:] == (b"V001", 1)


def test_metadata_is_the_same_each_time(tiny_export):
    model = (tiny_export / "model_float32.tflite").read_bytes()
    first, second = (with_metadata(model, "one", ["a", "b"]) for _ in range(2))
    assert first == second
    assert len(first) > len(model)


@pytest.mark.slow
def test_any_size_is_right_at_odd_sizes(model, tmp_path):
    export(model, tmp_path / "out", formats=("tflite_any_size",))
    path = tmp_path / "out" / "model_any_size.tflite"
    found = describe.operators(path)
    assert not any(name.startswith(describe.FORBIDDEN) for name in found)
    predictor = ka.Predictor(path)
    assert predictor.image_size is None
    for size in ((64, 96), (97, 51), (33, 130), (97, 51), (10, 40), (1, 1)):
        images = np.stack(pictures(2, size))
        logits = model(model.preprocess(images), training=False)
        np.testing.assert_array_equal(
            predictor.predict_batch(images), np.argmax(logits, -1)
        )


def of_any_size(path, function):
    """Writes a `.tflite` of a function of images of any size."""
    image = tf.TensorSpec((1, None, None, 3))
    traced = tf.function(function).get_concrete_function(image)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced])
    path.write_bytes(converter.convert())
    return path


def convolutions_to_one_cell(side):
    """Strided convolutions without padding, until one cell is left."""
    kernel = tf.ones((3, 3, 3, 3))

    def function(image):
        for _ in range(int(np.log2(side + 1)) - 1):
            image = tf.nn.conv2d(image, kernel, 2, "VALID")
        # XNNPACK refuses a map of no cell here.
        return tf.image.resize(image, (2, 2))

    return function


@pytest.mark.parametrize("least", [3, 63, 255])
def test_a_file_of_any_size_is_tried_where_cells_are_left(tmp_path, least):
    function = convolutions_to_one_cell(least)
    path = of_any_size(tmp_path / "any.tflite", function)
    interpreter = Interpreter(model_path=str(path))
    assert interpreter.get_input_details()[0]["shape"].tolist() == [1, 1, 1, 3]
    with pytest.raises(RuntimeError, match="failed to prepare"):
        interpreter.allocate_tensors()
    check_runs(path)


def valid_backbone():
    """Keras' own padding, strides 2, 4, 8: a cell is left of 15 pixels."""
    inputs = x = keras.Input((None, None, 3))
    for _ in range(3):
        x = keras.layers.Conv2D(4, 3, strides=2, activation="relu")(x)
    return keras.Model(inputs, x)


@pytest.mark.slow
def test_any_size_of_a_backbone_that_does_not_pad(tmp_path):
    made = ka.models.DeepLabV3(
        4, valid_backbone(), aspp_filters=4, output_stride=8
    )
    export(randomize(made), tmp_path / "out", formats=("tflite_any_size",))
    predictor = ka.Predictor(tmp_path / "out" / "model_any_size.tflite")
    for size in ((15, 15), (35, 40)):
        # A refused size leaves the next as it would be.
        with pytest.raises(ValueError, match="no feature cell is left"):
            predictor.predict(pictures(1, (14, 40))[0])
        image = pictures(1, size)[0]
        logits = made(made.preprocess(image[None]), training=False)[0]
        np.testing.assert_array_equal(
            predictor.predict(image), np.argmax(logits, -1)
        )


@pytest.mark.slow
def test_several_sizes(model, tmp_path):
    manifest = export(model, tmp_path / "out", more_image_sizes=[(48, 56)])
    assert [e["path"] for e in manifest["artefacts"]] == [
        "model.keras",
        "model_float32.tflite",
        "model_float32_48x56.tflite",
    ]
    for entry in manifest["artefacts"][1:]:
        predictor = ka.Predictor(tmp_path / "out" / entry["path"])
        assert [1, *predictor.image_size, 3] == entry["input"]["shape"]
        assert entry["agreement_with_keras"] >= 0.999


@pytest.mark.slow
def test_onnx(model, tmp_path, recwarn):
    for module in ("onnxruntime", "tf2onnx"):
        pytest.importorskip(
            module, reason="extra onnx is not installed (2026-11-28)"
        )
    manifest = export(model, tmp_path / "out", formats=("onnx",))
    entry = manifest["artefacts"][1]
    assert entry["path"] == "model.onnx"
    assert entry["agreement_with_keras"] >= 0.999
    assert entry["operators"]["Conv"] > 5
    predictor = ka.Predictor(tmp_path / "out" / "model.onnx")
    assert predictor.image_size == (64, 96)
    reference = ka.Predictor(tmp_path / "out" / "model.keras")
    image = pictures()[0]
    same = predictor.predict(image) == reference.predict(image)
    assert same.mean() >= 0.999


def test_onnx_whose_weights_are_not_finite(model, tmp_path):
    reason = "extra onnx is not installed (2026-11-29)"
    onnx = pytest.importorskip("onnx", reason=reason)
    pytest.importorskip("tf2onnx", reason=reason)
    write_onnx(model, tmp_path / "model.onnx", (64, 96))
    file = onnx.load(tmp_path / "model.onnx")
    for weight in file.graph.initializer:
        array = onnx.numpy_helper.to_array(weight).copy()
        if array.dtype == np.float32 and array.ndim == 4:
            array.flat[0] = np.nan
            weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
            break
    onnx.save(file, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"must be finite.*model\.onnx"):
        ka.Predictor(tmp_path / "model.onnx")


def test_onnx_without_its_extra(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(ValueError, match=r"keras-aspp\[onnx\]"):
        export(model, tmp_path / "out", formats=("onnx",))
    assert list(tmp_path.iterdir()) == []


def test_a_size_twice(model, tmp_path):
    with pytest.raises(ValueError, match="must all differ"):
        export(model, tmp_path / "out", more_image_sizes=[(64, 96)])


def test_the_bound_of_integers_leaves_out_what_coarse_labels_cost():
    entry = {
        "path": "model_int8.tflite",
        "format": "tflite_int8",
        "loss_points": 1.29,
        "conversion_loss_points": 0.44,
    }
    verify.check_loss(entry, 0.5)
    with pytest.raises(ValueError, match=r"may lose 0.4 .*Received: 0.44 "):
        verify.check_loss(entry, 0.4)
    # Of a file in float nothing is bounded.
    verify.check_loss({**entry, "format": "tflite_float16"}, 0.4)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (iter([(pictures()[0], np.zeros((64, 96), int))]), "once for each"),
        ([], "must have labeled pixels"),
        ([(pictures()[0], np.full((64, 96), 255))], "must have labeled"),
    ],
)
def test_evaluation_data_that_give_no_number_are_refused(
    model, tmp_path, wrong, message
):
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "out", formats=(), evaluation_data=wrong)
    assert not (tmp_path / "out").exists()


class Restarting:
    """Examples whose iterator is the object itself, and begins again."""

    def __iter__(self):
        self.left = [(pictures()[0], np.zeros((64, 96), int))]
        return self

    def __next__(self):
        if not self.left:
            raise StopIteration
        return self.left.pop()


def test_evaluation_data_may_be_an_iterator_that_begins_again(model, tmp_path):
    manifest = export(
        model, tmp_path / "out", formats=(), evaluation_data=Restarting()
    )
    assert 0 <= manifest["artefacts"][0]["mean_iou"] <= 1


def test_the_mean_iou_leaves_out_pixels_without_data():
    image = np.zeros((1, 4, 3), "float32")
    image[0, 0, 1] = np.nan
    labels, predicted = np.array([[1, 0, 1, 1]]), np.array([[255, 0, 0, 1]])
    found = verify.mean_iou(
        lambda _: predicted, [(image, labels)], DatasetSpec(("a", "b"))
    )
    # Of the other three, one 0 of two predicted, and one 1 of two labeled.
    assert found == 0.5
    assert labels[0, 0] == 1


@pytest.mark.slow
def float_pictures(count, size=(64, 96)):
    """Smooth bands in 0..1, a corner of each without data in one band."""
    coarse = np.random.default_rng(5).uniform(0, 1, (count, 5, 7, 2))
    images = tf.image.resize(coarse, size, "bicubic").numpy()
    images[:, :20, :30, 1] = np.nan
    return list(images.astype("float32"))


@pytest.mark.slow
def test_images_with_pixels_without_data(toy_backbone, tmp_path, monkeypatch):
    made = ka.models.DeepLabV3(
        4,
        toy_backbone(channels=2, padding=1),
        aspp_filters=8,
        output_stride=8,
        preprocess=ka.Preprocess(input_dtype="float32", input_range=(0.0, 1.0)),
    )
    randomize(made)
    images = float_pictures(2)
    gaps = np.isnan(images).any(-1)
    whole = np.where(gaps[..., None], np.float32(0), images)
    labels = np.argmax(made(made.preprocess(whole)), -1)
    assert len(np.unique(labels)) > 2
    shown = []
    monkeypatch.setattr(
        exporter, "write_preview", lambda path, *given: shown.append(given)
    )
    manifest = export(
        made,
        tmp_path / "out",
        verify_images=images,
        # Labels of pixels without data are not counted.
        evaluation_data=list(
            zip(images, np.where(gaps, 0, labels), strict=True)
        ),
        ignore_label=9,
        coarse_labels=True,
        formats=("saved_model", "tflite_float32"),
    )
    for entry in manifest["artefacts"]:
        assert entry["agreement_with_keras"] == 1.0
        assert entry["keras_mean_iou"] == 1.0
        assert entry["conversion_loss_points"] == 0.0
    assert manifest["artefacts"][2]["mean_iou"] < 1
    ((image, labels, _),) = shown
    np.testing.assert_array_equal(image, whole[0])
    np.testing.assert_array_equal(labels == 9, gaps[0])
    monkeypatch.setattr(tflite, "operator_costs", lambda *given: given[1])
    examples = ka.export.explain_int8(made, (64, 96), iter(images))
    np.testing.assert_array_equal(np.stack(examples)[:2, 0], whole)


def test_coarse_labels(model, tmp_path):
    manifest = export(
        model,
        tmp_path / "out",
        coarse_labels=True,
        evaluation_data=evaluation(model),
    )
    entry = manifest["artefacts"][1]
    assert "RESIZE_BILINEAR" not in entry["operators"]
    # Equal to Keras doing the same, and the price is told, apart from that of
    # the conversion, which alone `max_int8_loss` bounds.
    assert entry["agreement_with_keras"] >= 0.999
    assert entry["loss_points"] > 1
    assert abs(entry["conversion_loss_points"]) < 0.1
    head, _, own, row = artefact_table(manifest).splitlines()
    assert "| points lost | by conversion |" in head
    assert f"| {entry['loss_points']:.2f} | 0.0" in row
    assert "| 0.00 | 0.00 |" in own
    labels = ka.Predictor(tmp_path / "out" / entry["path"]).predict(
        pictures()[0]
    )
    scores = keras.Model(model.input, model.get_layer("logits").input[0])(
        model.preprocess(pictures()[:1])
    )
    cells = np.argmax(scores, -1)[0]
    by_hand = cells.repeat(8, 0).repeat(8, 1)[:64, :96]
    assert np.mean(labels == by_hand) > 0.999


def test_a_model_of_one_size(toy_backbone, tmp_path):
    fixed = ka.models.DeepLabV3(
        4,
        toy_backbone(padding=1),
        atrous_rates=(1, 2),
        aspp_filters=8,
        input_shape=(64, 96, 3),
    )
    manifest = export(randomize(fixed), tmp_path / "out", formats=())
    assert manifest["artefacts"][0]["agreement_with_keras"] == 1
    for sizes in (
        {"image_size": (32, 96)},
        {"image_size": (64, 96), "more_image_sizes": [(64, 48)]},
    ):
        with pytest.raises(
            ValueError, match=r"`input_shape`, \(64, 96\); for other sizes"
        ):
            export(fixed, tmp_path / "no", formats=(), **sizes)
    assert not (tmp_path / "no").exists()


def test_parts_of_a_picture_have_odd_sizes():
    sizes = [x.shape[:2] for x in verify.sizes_of(np.zeros((64, 96, 3)))]
    # Never below what a model needs: 50 pixels, and the next odd number.
    few = [x.shape[:2] for x in verify.sizes_of(np.zeros((64, 96, 3)), 50)]
    assert few == [(64, 96), (51, 51), (51, 77)]
    assert sizes == [(64, 96), (45, 49), (33, 77)]


def mixed(toy_backbone, of_backbone, of_model):
    backbone = toy_backbone(padding=1, dtype=of_backbone)
    made = ka.models.DeepLabV3(
        4, backbone, aspp_filters=8, output_stride=8, dtype=of_model
    )
    return randomize(made)


# What is written in float32 is converted as any model.
@pytest.mark.parametrize(
    "policies, kinds",
    [
        (("mixed_float16", "mixed_float16"), ["tflite_float32"]),
        pytest.param(
            ("mixed_bfloat16", "mixed_bfloat16"), [], marks=pytest.mark.slow
        ),
        pytest.param(("mixed_float16", "float32"), [], marks=pytest.mark.slow),
    ],
)
def test_mixed_precision_is_exported_in_float32(
    toy_backbone, tmp_path, policies, kinds
):
    made = mixed(toy_backbone, *policies)
    half = policies[0].removeprefix("mixed_")
    with pytest.warns(UserWarning, match=f"computes in {half}; .* float32"):
        manifest = export(made, tmp_path / "out", formats=kinds)
    found = [entry["format"] for entry in manifest["artefacts"]]
    assert found == ["keras", *kinds]
    written = keras.saving.load_model(tmp_path / "out" / "model.keras")
    assert compute_dtypes(written) == {"float32"}
    for ours, theirs in zip(written.weights, made.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert made.backbone.layers[-1].compute_dtype == half


def test_predictor_of_mixed_precision_computes_in_float32(
    toy_backbone, tmp_path
):
    made = mixed(toy_backbone, "mixed_float16", "mixed_float16")
    made.save(tmp_path / "half.keras")
    image = pictures(1, (40, 50))[0]
    with pytest.warns(UserWarning, match="computes in float16"):
        predictor = ka.Predictor(tmp_path / "half.keras")
    _, scores = predictor.predict(image, return_scores=True)
    exact = ka.models.with_dtype(made, "float32")
    expected = exact(exact.preprocess(image[None]), training=False)[0]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    half = made(made.preprocess(image[None]), training=False)[0]
    assert np.abs(np.asarray(half) - expected).max() > 1e-3


def evaluation(model):
    """Pictures that Keras labels without fault."""
    preprocess = model.preprocess
    return [
        (image, np.argmax(model(preprocess(image[None])), -1)[0])
        for image in pictures(4, (64, 96))
    ]


@pytest.mark.slow
def test_formats_in_8_bits(model, tmp_path):
    manifest = export(
        model,
        tmp_path / "out",
        formats=("tflite_float32", "tflite_dynamic_range", "tflite_int8"),
        calibration_images=np.stack(pictures(3, (80, 70))),
        evaluation_data=evaluation(model),
        max_int8_loss=60.0,
    )
    entries = {e["format"]: e for e in manifest["artefacts"]}
    assert manifest["calibration_images"] == 3
    assert entries["keras"]["mean_iou"] == 1
    for entry in entries.values():
        lost = 100 * (1 - entry["mean_iou"])
        assert entry["loss_points"] == pytest.approx(lost, abs=6e-3)
    assert entries["tflite_float32"]["loss_points"] < 0.1
    assert 0 < entries["tflite_int8"]["loss_points"] < 60
    sizes = [e["bytes"] for e in entries.values()][1:]
    assert max(sizes[1:]) < sizes[0]
    # The door takes pixels as they are, and all within is whole numbers.
    interpreter = Interpreter(str(tmp_path / "out" / "model_int8.tflite"))
    (door,) = interpreter.get_input_details()
    assert (door["dtype"], door["quantization"]) == (np.uint8, (1.0, 0))
    (end,) = interpreter.get_output_details()
    assert end["dtype"] == np.int32
    dtypes = {d["dtype"] for d in interpreter.get_tensor_details()}
    assert np.float32 not in dtypes
    labels = ka.Predictor(tmp_path / "out" / "model_int8.tflite").predict(
        pictures()[0]
    )
    assert labels.shape == (64, 96)


# Ends within 0..255, and beyond: those of a mean and a standard deviation.
RANGES = [(10.0, 100.4), ((-77.0, 5.0, -1.0), (300.0, 200.0, 255.0))]


@pytest.mark.parametrize(
    "input_range, expected",
    [
        (None, ((0, 0, 0), (255, 255, 255))),
        (RANGES[0], ((10, 10, 10), (100, 100, 100))),
        (RANGES[1], ((0, 5, 0), (255, 200, 255))),
    ],
)
def test_the_ends_of_the_range_that_calibrate_are_pixels(input_range, expected):
    preprocess = ka.Preprocess(input_range=input_range)
    *_, dark, bright = tflite._examples(pictures(1), (4, 5), preprocess)
    for image, value in zip((dark, bright), expected, strict=True):
        assert image.shape == (1, 4, 5, 3)
        assert (image == np.float32(value)).all()


@pytest.mark.slow
@pytest.mark.parametrize("input_range", RANGES)
def test_integers_read_pixels_of_any_range_as_they_are(
    toy_backbone, input_range
):
    made = ka.models.DeepLabV3(
        4,
        toy_backbone(padding=1),
        aspp_filters=8,
        output_stride=8,
        preprocess=ka.Preprocess(input_range=input_range),
    )
    # Smooth, since 8 bits round noise.
    images = [
        tf.image.resize(image, (64, 96), "bicubic").numpy().clip(0, 255)
        for image in pictures(4, (6, 9))
    ]
    images = [(image * 0.39).astype("uint8") for image in images]
    found = tflite.convert(
        fold_batch_norm(randomize(made)),
        (64, 96),
        ("tflite_float32", "tflite_int8", "tflite_int16x8"),
        images,
    )
    labels = {}
    for kind, content in found.items():
        interpreter = Interpreter(model_content=content)
        interpreter.allocate_tensors()
        (taken,) = interpreter.get_input_details()
        if kind != "tflite_float32":
            assert taken["dtype"] == np.uint8
            assert taken["quantization"] == (1.0, 0)
        (given,) = interpreter.get_output_details()
        labels[kind] = []
        for image in images:
            interpreter.set_tensor(taken["index"], image[None])
            interpreter.invoke()
            labels[kind].append(interpreter.get_tensor(given["index"]))
    exact = np.stack(labels["tflite_float32"])
    assert len(np.unique(exact)) > 2
    for kind in ("tflite_int8", "tflite_int16x8"):
        assert (np.stack(labels[kind]) == exact).mean() > 0.9, kind


@pytest.mark.slow
def test_a_layer_that_costs_much_stays_in_float(model):
    images = pictures(3, (80, 70))
    costs = ka.export.explain_int8(model, (64, 96), images)
    assert any("classifier" in cost.name.split("/") for cost in costs)
    found = tflite.convert(
        fold_batch_norm(model),
        (64, 96),
        ("tflite_int8",),
        images,
        in_float=("classifier",),
    )
    assert float_operators(found["tflite_int8"]) == {"CONV_2D": 1}


@pytest.mark.slow
def test_8_bits_that_agree_too_little(model, tmp_path, monkeypatch):
    agreements = iter([1.0])  # of model.keras, the first
    monkeypatch.setattr(
        verify, "compare", lambda *_: (next(agreements, 0.89), {})
    )
    with pytest.raises(ValueError, match=r"90\.0%.*Received: 89\.000%"):
        export(model, tmp_path / "out", formats=("tflite_dynamic_range",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_int8_that_loses_too_much_leaves_nothing(model, tmp_path):
    with pytest.raises(ValueError, match="may lose 0.0 points.*Received: "):
        export(
            model,
            tmp_path / "out",
            formats=("tflite_int8",),
            calibration_images=pictures(1),
            evaluation_data=evaluation(model),
            max_int8_loss=0.0,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_works_leaves_nothing(
    model, tmp_path, number, monkeypatch
):
    before = signal.getsignal(number)
    monkeypatch.setattr(
        exporter, "_write_artefacts", lambda *_: signal.raise_signal(number)
    )
    with pytest.raises(KeyboardInterrupt, match="Nothing was exported"):
        export(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(number) is before


def test_files_of_one_size_are_compared_in_openvino(tiny_export):
    pytest.importorskip(
        "openvino", reason="extra openvino is not installed (2026-11-29)"
    )
    manifest = json.loads((tiny_export / "manifest.json").read_text())
    entries = {entry["path"]: entry for entry in manifest["artefacts"]}
    found = entries["model_float32.tflite"]["openvino"]
    assert found["agreement_with_keras"] > 0.999
    assert "openvino" not in entries["saved_model"]
