"""The examples, as their readers run them."""

import base64
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_aspp as ka
from keras_aspp.workdir import Workdir

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def picture(tmp_path):
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, (9, 12, 3)).astype("uint8")
    image = Image.fromarray(small).resize((120, 90), Image.Resampling.BICUBIC)
    image.save(tmp_path / "image.png")
    return tmp_path / "image.png"


# A module that is None cannot be imported.
_ALONE = """
import runpy, sys
for name in ("tensorflow", "keras", "keras_aspp"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_alone(name, *arguments):
    """Runs an example without TensorFlow, Keras and this package."""
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, EXAMPLES / name, *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_python_runtime_needs_no_keras_and_answers_like_predictor(
    tiny_export, picture, tmp_path
):
    model = tiny_export / "model_float32.tflite"
    output = tmp_path / "labels.png"
    done = run_alone("python_runtime.py", model, picture, "--output", output)
    expected = ka.Predictor(model).predict(picture)
    with Image.open(output) as labels:
        np.testing.assert_array_equal(np.asarray(labels), expected)
    kinds, shares = zip(
        *(line.split() for line in done.stdout.splitlines()), strict=True
    )
    names = ka.Predictor(model).spec.class_names
    assert kinds == tuple(names[i] for i in np.unique(expected))
    assert sum(float(s.rstrip("%")) for s in shares) == pytest.approx(
        100, abs=1
    )
    shutil.copy(model, tmp_path / "alone.tflite")
    done = run_alone("python_runtime.py", tmp_path / "alone.tflite", picture)
    kinds = [line.rsplit(maxsplit=1)[0] for line in done.stdout.splitlines()]
    assert kinds == [f"class {i}" for i in np.unique(expected)]


def test_python_runtime_refuses_masks_that_overlap(picture, tmp_path):
    example = runpy.run_path(str(EXAMPLES / "python_runtime.py"))

    @tf.function(input_signature=[tf.TensorSpec((1, 8, 6, 3), "uint8")])
    def masks(image):
        return {"labels": tf.cast(image[..., :2], "int32")}

    module, saved = tf.Module(), str(tmp_path / "saved")
    tf.saved_model.save(module, saved, signatures=masks)
    converter = tf.lite.TFLiteConverter.from_saved_model(saved)
    model = tmp_path / "model.tflite"
    model.write_bytes(converter.convert())
    with Image.open(picture) as image:
        with pytest.raises(SystemExit, match="model.tflite .*may overlap"):
            example["segment"](model, image)
    # By its manifest too: scores of cells do not show it.
    (tmp_path / "manifest.json").write_text('{"task": "multilabel"}')
    with pytest.raises(SystemExit, match="gpu.tflite .*may overlap"):
        example["main"]([str(tmp_path / "gpu.tflite"), str(picture)])


@pytest.mark.parametrize("bands, pixels", [(3, "float32"), (4, "uint8")])
def test_python_runtime_refuses_what_is_no_rgb_of_8_bits(
    bands, pixels, picture, tmp_path
):
    example = runpy.run_path(str(EXAMPLES / "python_runtime.py"))

    @tf.function(input_signature=[tf.TensorSpec((1, 8, 6, bands), pixels)])
    def labels(image):
        return {"labels": tf.cast(tf.argmax(image, -1), "int32")}

    module, saved = tf.Module(), str(tmp_path / "saved")
    tf.saved_model.save(module, saved, signatures=labels)
    converter = tf.lite.TFLiteConverter.from_saved_model(saved)
    (tmp_path / "model.tflite").write_bytes(converter.convert())
    with pytest.raises(
        SystemExit, match=rf"Received: {bands} bands, {pixels}; .*Predictor$"
    ):
        example["main"]([str(tmp_path / "model.tflite"), str(picture)])


@pytest.mark.parametrize(
    "name, pixels, message",
    [
        ("model_float32.tflite", "uint8", "float32.tflite holds no names of"),
        ("model_logits.tflite", "float32", "Received: 3 bands, float32; use"),
    ],
)
def test_mediapipe_refuses_files_that_it_would_misread(
    name, pixels, message, picture, tmp_path
):
    pytest.importorskip("mediapipe", reason="extra `examples` (2026-12-01)")
    exported = EXAMPLES.parent / "tests/golden/13d0402/exported"
    shutil.copy(exported / name, tmp_path)
    manifest = json.loads((exported / "manifest.json").read_text())
    for entry in manifest["artefacts"]:
        entry["input"]["dtype"] = pixels
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    example = runpy.run_path(str(EXAMPLES / "mediapipe.py"))
    scope = example["main"].__globals__
    scope["segment"] = lambda *_: pytest.fail("run by MediaPipe")
    with pytest.raises(SystemExit, match=message):
        example["main"]([str(tmp_path / name), str(picture)])


def test_mediapipe_agrees_with_predictor(tiny_workdir, tmp_path):
    pytest.importorskip("mediapipe", reason="extra `examples` (2026-11-30)")
    output = tmp_path / "exported"
    Workdir(tiny_workdir).export(output, formats=("tflite_logits",))
    model = output / "model_logits.tflite"
    # At the model's own size, where nobody has to resize.
    pixels = np.random.default_rng(3).integers(0, 256, (64, 96, 3), "uint8")
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    arguments = (tmp_path / "picture.png", "--output", tmp_path / "out.png")
    # MediaPipe imports TensorFlow only where it finds it.
    done = run_alone("mediapipe.py", model, *arguments)
    expected, scores = ka.Predictor(model).predict(pixels, return_scores=True)
    assert scores.shape == (64, 96, 3)
    with Image.open(tmp_path / "out.png") as labels:
        np.testing.assert_array_equal(np.asarray(labels), expected)
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == [
        ka.Predictor(model).spec.class_names[i] for i in np.unique(expected)
    ]


def blocks(name, kind):
    """Code blocks of a Markdown file."""
    text = (EXAMPLES / name).read_text()
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.M | re.S)


def run_block(block, folder):
    os.chdir(folder)
    exec(block, {"__name__": "__main__"})


def run_in(folder, path, *arguments):
    os.chdir(folder)
    sys.argv = [str(path), *map(str, arguments)]
    runpy.run_path(sys.argv[0], run_name="__main__")


def test_serving(tiny_export, picture, tmp_path):
    """The Python blocks run, and the request is what the signature takes."""
    (tmp_path / "saved_models").mkdir()
    (tmp_path / "saved_models" / "mine").symlink_to(tiny_export)
    python = blocks("serving.md", "python")
    assert len(python) == 3
    for i, block in enumerate(python):
        log = tmp_path / f"{i}.log"
        process = forked.start(log, run_block, block, tmp_path)
        (printed,) = forked.finish(process)
        if "predicted classes" in block:
            expected = np.unique(ka.Predictor(tiny_export).predict(picture))
            assert f"predicted classes: {expected}" in printed
    request = json.loads((tmp_path / "request.json").read_text())
    loaded = tf.saved_model.load(str(tiny_export / "saved_model"))
    signature = loaded.signatures[request["signature_name"]]
    _, wanted = signature.structured_input_signature
    assert set(request["inputs"]) == set(wanted)
    content = base64.b64decode(request["inputs"]["image_bytes"]["b64"])
    assert wanted["image_bytes"].is_compatible_with(tf.constant(content))
    labels = signature(image_bytes=tf.constant(content))["labels"]
    assert labels.shape == (90, 120)


def test_saved_model_cli(tiny_export, tmp_path):
    (tmp_path / "saved_models").mkdir()
    (tmp_path / "saved_models" / "mine").symlink_to(tiny_export)
    (commands, *_) = blocks("serving.md", "")
    lines = commands.strip().splitlines()
    for line, name in zip(lines, ("image", "image_bytes"), strict=True):
        command, *arguments = line.split()
        assert command == "saved_model_cli"
        program = Path(sys.executable).with_name(command)
        log = tmp_path / f"{name}.log"
        process = forked.start(log, run_in, tmp_path, program, *arguments)
        (printed,) = forked.finish(process)
        assert f"inputs['{name}']" in printed
        assert "outputs['labels']" in printed


def test_coreml_package_takes_an_image_and_names_classes(tiny_export, tmp_path):
    reason = "extra coreml is not installed (2026-11-29)"
    coremltools = pytest.importorskip("coremltools", reason=reason)
    package = tmp_path / "model.mlpackage"
    arguments = [tiny_export, "--size", "64", "96", "--output", package]
    process = forked.start(
        *(tmp_path / "log", run_in, tmp_path, EXAMPLES / "coreml.py"),
        *arguments,
    )
    forked.finish(process)
    spec = coremltools.utils.load_spec(str(package))
    (taken,), (given,) = spec.description.input, spec.description.output
    assert (taken.name, given.name) == ("image", "labels")
    image = taken.type.imageType
    assert (image.height, image.width) == (64, 96)
    assert list(given.type.multiArrayType.shape) == [1, 64, 96]
    names = spec.description.metadata.userDefined["class_names"]
    assert json.loads(names) == ["ground", "box", "bar"]
