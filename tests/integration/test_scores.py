"""Artefacts that return confidence and probabilities beside labels."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from helpers import randomize
from PIL import Image

import keras_aspp as ka
from keras_aspp.export import verify

pytestmark = pytest.mark.usefixtures("saved_models_run_in_forks")
SIZE = (64, 96)
FORMATS = ("tflite_float32", "saved_model", "tflite_int8", "onnx")


def picture(size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (6, 7, 3)).astype("uint8")
    return np.array(Image.fromarray(small).resize(size[::-1]))


@pytest.fixture(scope="module")
def model(toy_backbone):
    made = ka.models.DeepLabV3(
        4, toy_backbone(padding=1), aspp_filters=8, output_stride=8
    )
    return randomize(made)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """Files with confidence and probabilities."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    images = [picture(seed=i) for i in range(3)]
    ka.export.export_model(
        model,
        folder,
        image_size=SIZE,
        class_names=list("abcd"),
        verify_images=images[:1],
        calibration_images=images,
        ignore_label=77,
        formats=FORMATS,
        outputs=("labels", "probabilities", "confidence"),
    )
    return folder


@pytest.fixture(scope="module")
def expected(model):
    """Probabilities of an image, by NumPy from the model's logits."""
    logits = model(model.preprocess(picture()[None]), training=False)
    powers = np.exp(np.float64(logits)[0])
    found = powers / powers.sum(-1, keepdims=True)
    assert found.std() > 0.05
    return found


@pytest.fixture(
    params=[
        "model.keras",
        "model_float32.tflite",
        "saved_model",
        "model_int8.tflite",
        "model.onnx",
    ]
)
def path(request, folder):
    """An exported file or folder."""
    return folder / request.param


def test_probabilities_are_the_softmax_of_the_logits(
    path, expected, predictor_of
):
    name, predictor = path.name, predictor_of(path)
    labels, confidence, found = predictor.predict(
        picture(), return_confidence=True, return_probabilities=True
    )
    near = 0.02 if "int8" in name else 1e-4
    assert np.abs(found - expected).mean() < near
    np.testing.assert_allclose(found.sum(-1), 1, atol=0.05)
    np.testing.assert_allclose(confidence, found.max(-1), atol=1e-6)
    np.testing.assert_array_equal(predictor.probabilities(picture()), found)
    np.testing.assert_array_equal(predictor.predict(picture()), labels)
    if "int8" not in name:
        assert np.mean(labels == expected.argmax(-1)) > 0.999
        assert np.abs(found - expected).max() < 1e-3


def test_pixels_below_the_confidence_get_the_ignore_label(path, predictor_of):
    plain = predictor_of(path)
    labels, confidence = plain.predict(picture(), return_confidence=True)
    share = float(np.median(confidence))
    strict = ka.Predictor(path, min_confidence=share)
    found = strict.predict(picture())
    np.testing.assert_array_equal(
        found, np.where(confidence < share, 77, labels)
    )
    assert 0.3 < np.mean(found == 77) < 0.7
    np.testing.assert_array_equal(
        strict.predict_batch(picture()[None])[0], found
    )


def test_an_image_of_another_size_takes_the_values_of_the_nearest_pixel(
    folder, predictor_of
):
    image = picture((128, 384))
    lite = predictor_of(folder / "model_float32.tflite")
    found = lite.predict(
        image, return_confidence=True, return_probabilities=True
    )
    resized = np.array(Image.fromarray(image).resize((96, 64), Image.BILINEAR))
    # No pixel lies between two others, so that nearest has no ties.
    rows = np.arange(128) // 2
    columns = np.arange(384) // 4
    small = lite.predict(
        resized, return_confidence=True, return_probabilities=True
    )
    for values, there in zip(found, small, strict=True):
        np.testing.assert_array_equal(values, there[rows][:, columns])


def test_windows_and_mirror_images_average_probabilities(folder, predictor_of):
    path = folder / "model.keras"
    image = picture()
    flipped = ka.Predictor(path, flip=True).probabilities(image)
    plain = predictor_of(path)
    mirrored = plain.probabilities(image[:, ::-1].copy())[:, ::-1]
    by_hand = (plain.probabilities(image) + mirrored) / 2
    np.testing.assert_allclose(flipped, by_hand, atol=1e-5)
    windows = ka.Predictor(path, window=48, min_confidence=0.5)
    labels, found = windows.predict(image, return_probabilities=True)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(
        labels, np.where(found.max(-1) < 0.5, 77, found.argmax(-1))
    )


def test_a_saved_model_serves_scores_with_a_threshold(folder, expected):
    loaded = tf.saved_model.load(str(folder / "saved_model"))
    assert sorted(loaded.signatures) == [
        "serve_bytes",
        "serve_bytes_scores",
        "serve_scores",
        "serving_default",
    ]
    default = loaded.signatures["serving_default"]
    assert list(default.structured_outputs) == ["labels"]
    share = np.float32(np.median(expected.max(-1)))
    least = tf.constant(share)
    pixels = loaded.signatures["serve_scores"](
        image=tf.constant(picture()[None]), min_confidence=least
    )
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, format="PNG")
    content = loaded.signatures["serve_bytes_scores"](
        image_bytes=tf.constant(file.getvalue()), min_confidence=least
    )
    confidence = pixels["confidence"].numpy()[0]
    np.testing.assert_allclose(confidence, expected.max(-1), atol=1e-4)
    unsure = pixels["labels"].numpy()[0] == 77
    np.testing.assert_array_equal(unsure, confidence < share)
    assert unsure.any() and not unsure.all()
    for name, values in content.items():
        np.testing.assert_allclose(
            values, pixels[name][0], atol=1e-5, err_msg=name
        )


def test_a_tflite_names_its_outputs(folder, expected):
    runner = Interpreter(
        str(folder / "model_float32.tflite")
    ).get_signature_runner()
    found = runner(image=picture()[None])
    assert {name: (x.dtype, x.shape) for name, x in found.items()} == {
        "labels": (np.int32, (1, *SIZE)),
        "confidence": (np.float32, (1, *SIZE)),
        "probabilities": (np.float32, (1, *SIZE, 4)),
    }
    np.testing.assert_allclose(found["probabilities"][0], expected, atol=1e-3)


def test_the_manifest_describes_each_output(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    entries = {entry["format"]: entry for entry in manifest["artefacts"]}
    assert [out["name"] for out in entries["keras"]["outputs"]] == ["labels"]
    for kind in FORMATS:
        entry = entries[kind]
        labels, *further = entry["outputs"]
        assert labels == entry["output"]
        assert sorted(out["name"] for out in further) == [
            "confidence",
            "probabilities",
        ]
        for out in further:
            assert (out["dtype"], out["range"]) == ("float32", [0, 1])
            assert ("signature" in out) == (kind == "saved_model")
            least = entry["score_difference"][out["name"]]
            limit = 0.1 if kind == "tflite_int8" else 1e-3
            assert 0 <= least["mean"] <= limit
            assert least["mean"] <= least["max"]


def test_wrong_scores_fail_the_export(folder, model):
    def wrong(image, outputs):
        scores = model(model.preprocess(image[None]), training=False)[0]
        found = {"labels": np.argmax(scores, -1)}
        # A common mistake: the softmax taken twice.
        twice = tf.nn.softmax(tf.nn.softmax(scores)).numpy()
        return {
            **found,
            "probabilities": twice,
            "confidence": twice.max(-1),
        }

    path = folder / "model_float32.tflite"
    (answers,) = verify.run_alone(path, [picture()], "cpu").outputs.values()
    agreement, differences = verify.compare(answers, wrong, [picture()])
    assert agreement > 0.999
    with pytest.raises(ValueError, match="differ from Keras' by 0.001 on"):
        verify.check_differences(differences, "tflite_float32", path.name)


def test_files_of_labels_alone_have_no_confidence(tiny_export, predictor_of):
    for name in ("saved_model", "model_float32.tflite"):
        predictor = predictor_of(tiny_export / name)
        assert not predictor.has_confidence
        for option in ("confidence", "probabilities"):
            with pytest.raises(
                ValueError, match=rf'outputs "\[labels, {option}\]".*{name}'
            ):
                predictor.predict(picture(), **{f"return_{option}": True})
        with pytest.raises(ValueError, match="Received: min_confidence=0.5, "):
            ka.Predictor(tiny_export / name, min_confidence=0.5)


@pytest.mark.parametrize("value", [1.0, -0.1, True, float("nan")])
def test_confidence_out_of_range(folder, value):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\). Received"):
        ka.Predictor(folder / "model_float32.tflite", min_confidence=value)


@pytest.mark.parametrize(
    "outputs", [(), ("confidence",), ("labels", "logits"), ("labels",) * 2]
)
def test_outputs_that_cannot_be(model, tmp_path, outputs):
    with pytest.raises(ValueError, match="`outputs` must be different names"):
        ka.export.export_model(
            model,
            tmp_path / "out",
            class_names=list("abcd"),
            verify_images=[picture()],
            formats=(),
            outputs=outputs,
        )


def test_scores_of_a_binary_model_do_not_depend_on_its_threshold(
    toy_backbone, tmp_path
):
    made = randomize(
        ka.models.DeepLabV3(
            2,
            toy_backbone(padding=1),
            aspp_filters=8,
            output_stride=8,
            task="binary",
        )
    )
    logits = np.float64(made(made.preprocess(picture()[None]), training=False))
    thing = 1 / (1 + np.exp(-logits[0, ..., 1]))
    threshold = float(np.quantile(thing, 0.3))
    made.threshold = threshold
    ka.export.export_model(
        made,
        tmp_path / "out",
        image_size=SIZE,
        class_names=["background", "thing"],
        verify_images=[picture()],
        formats=("saved_model", "tflite_float32", "tflite_logits"),
        outputs=("labels", "confidence", "probabilities"),
    )
    for name in ("model.keras", "saved_model", "model_float32.tflite"):
        labels, confidence, found = ka.Predictor(
            tmp_path / "out" / name
        ).predict(picture(), return_confidence=True, return_probabilities=True)
        np.testing.assert_allclose(found[..., 1], thing, atol=1e-3)
        assert np.mean(labels == (thing > threshold)) > 0.999
        of_label = np.where(labels, found[..., 1], found[..., 0])
        np.testing.assert_allclose(confidence, of_label, atol=1e-5)
    lite = ka.Predictor(tmp_path / "out" / "model_logits.tflite")
    np.testing.assert_allclose(
        lite.probabilities(picture())[..., 1], thing, atol=1e-3
    )
