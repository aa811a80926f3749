"""Rasters larger than memory: by window, georeferenced."""

import json
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.transform import from_origin
from scipy.special import expit, logit

import keras_aspp as ka
from keras_aspp.cli.main import main
from keras_aspp.export.tflite import convert
from keras_aspp.inference import scenes
from keras_aspp.inference.files import check_scores, predict_files
from keras_aspp.inference.scenes import predict_scene
from keras_aspp.inference.sliding_window import SlidingWindow
from keras_aspp.models.segmenter import load_saved
from keras_aspp.pixels import PixelFormat

TRANSFORM = from_origin(5e5, 5.4e6, 10, 20)


def write_scene(path, image, nodata=None, **options):
    """A GeoTIFF of an image `[H, W, C]`."""
    height, width, count = image.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=count,
        dtype=image.dtype,
        crs="EPSG:32633",
        nodata=nodata,
        **{"transform": TRANSFORM, **options},
    ) as to:
        to.write(np.moveaxis(image, -1, 0))
    return path


def declare_alpha(path):
    """Declares the last band as alpha, as GDAL does for four of uint8."""
    interpretation = rasterio.enums.ColorInterp
    with rasterio.open(path, "r+") as scene:
        gray = [interpretation.gray] * (scene.count - 1)
        scene.colorinterp = [*gray, interpretation.alpha]
    return path


def made_model(path, num_classes=3, **kwargs):
    """Saves a model of four bands of 16 bits."""
    from helpers import make_toy_backbone

    keras.utils.set_random_seed(1)
    made = ka.models.DeepLabV3Plus(
        num_classes,
        make_toy_backbone(channels=4),
        atrous_rates=(3,),
        aspp_filters=8,
        decoder_filters=8,
        projection_filters=4,
        **kwargs,
    )
    rng = np.random.default_rng(6)
    for weight in made.weights:
        if "moving" not in weight.path:
            noise = rng.normal(0, 0.3, weight.shape)
            weight.assign(np.asarray(weight) + noise)
    made.preprocess = made.preprocess.of_images(
        PixelFormat(4, "uint16", (0, 4000))
    )
    made.save(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return made_model(tmp_path_factory.mktemp("model") / "model.keras")


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory):
    """A model of three classes that overlap, with their names beside it."""
    folder = tmp_path_factory.mktemp("overlapping")
    content = {"class_names": ["roof", "road", "tree"], "task": "multilabel"}
    (folder / "dataset.json").write_text(json.dumps(content))
    return made_model(
        folder / "model.keras", task="multilabel", threshold=(0.3, 0.5, 0.9)
    )


def pixels(height, width):
    rng = np.random.default_rng(height)
    steps = rng.integers(0, 4000, (height // 8 + 1, width // 8 + 1, 4))
    found = steps.repeat(8, 0).repeat(8, 1)[:height, :width]
    return (found + rng.integers(0, 500, found.shape)).astype("uint16")


@pytest.mark.parametrize("cache", [0, 2**26])
@pytest.mark.parametrize("room", [200, 2000])
def test_a_full_disk_leaves_no_raster_and_names_it(
    model, tmp_path, predictor_of, monkeypatch, room, cache
):
    """A limit on the size of files fails writes just as a full disk does.

    Blocks are written at once, or when the raster is closed.
    """
    resource = pytest.importorskip(
        "resource", reason="only Unix limits file sizes (2026-11-29)"
    )
    monkeypatch.setattr(scenes, "_MAX_CACHE_BYTES", cache)
    path = write_scene(tmp_path / "scene.tif", pixels(300, 520))
    predictor = predictor_of(model, window=64, overlap=0.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        rows, messages = predict_files(
            predictor, [path], tmp_path / "out", scores=room > 200
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert rows == []
    assert len(messages) == 1
    assert "A raster cannot be written; the disk may be full" in messages[0]
    assert f"Received: {tmp_path / 'out' / 'scene_'}" in messages[0]
    assert "Unreadable" not in messages[0]
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert names == [".predict.sha256"]  # of files that a next call may write
    predict_scene(predictor, path, tmp_path / "out" / "scene_labels.tif")
    assert (tmp_path / "out" / "scene_labels.tif").stat().st_size > 2000


def test_a_block_that_was_lost_is_noticed(
    model, tmp_path, predictor_of, monkeypatch
):
    """A raster whose other blocks were written can be read."""
    path = write_scene(tmp_path / "scene.tif", pixels(100, 90))
    (tmp_path / "out.tif").write_text("the earlier one")
    write = rasterio.io.DatasetWriter.write

    def lose_one(raster, values, window):
        if (window.row_off, window.col_off) == (0, 0):
            values = np.zeros_like(values)
        write(raster, values, window=window)

    monkeypatch.setattr(rasterio.io.DatasetWriter, "write", lose_one)
    predictor = predictor_of(model, window=64)
    with pytest.raises(OSError, match=r"be full\. Received: .*out\.tif"):
        predict_scene(predictor, path, tmp_path / "out.tif")
    assert (tmp_path / "out.tif").read_text() == "the earlier one"


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("size", [(150, 211), (64, 300), (50, 40)])
def test_a_scene_is_what_one_image_in_windows_is(
    model, tmp_path, size, overlap, predictor_of
):
    image = pixels(*size)
    path = write_scene(tmp_path / "scene.tif", image)
    predictor = predictor_of(model, window=64, overlap=overlap)
    steps = []
    counts = predict_scene(
        predictor, path, tmp_path / "out.tif", lambda *step: steps.append(step)
    )
    scores = predictor.score_batch(image[None])[0]
    expected = scores.argmax(-1)
    assert len(np.unique(expected)) > 1
    with rasterio.open(tmp_path / "out.tif") as out:
        labels = out.read(1)
        assert (out.crs, out.transform) == ("EPSG:32633", TRANSFORM)
        assert (out.dtypes, out.nodata) == (("uint8",), 255)
        assert out.compression.name == "deflate"
        assert out.colormap(1)[1][3] == 255
    # The sums of float32 differ in their order where classes are equal.
    top = np.sort(scores, -1)
    clear = top[..., -1] - top[..., -2] > 1e-4
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(labels[clear], expected[clear])
    assert counts.sum() == labels.size
    assert steps[-1][0] == steps[-1][1] == len(steps)
    assert isinstance(predictor._engine, SlidingWindow)


def test_pixels_without_data_are_ignored(model, tmp_path, predictor_of):
    image = pixels(100, 130)
    image[:70, :90] = 0  # whole windows
    path = write_scene(tmp_path / "scene.tif", image, nodata=0)
    predict_scene(predictor_of(model, window=64), path, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as out:
        empty = out.read(1) == 255
        np.testing.assert_array_equal(out.dataset_mask() == 0, empty)
    np.testing.assert_array_equal(empty, (image == 0).all(-1))


def test_the_position_may_be_of_control_points(model, tmp_path, predictor_of):
    points = [
        GroundControlPoint(row, column, 5e5 + column, 5e6 - row)
        for row, column in ((0, 0), (0, 70), (80, 0))
    ]
    image, path = pixels(80, 70), tmp_path / "scene.tif"
    write_scene(path, image, transform=None, gcps=points)
    predict_scene(predictor_of(model), path, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as out:
        found, crs = out.gcps
    assert crs.to_epsg() == 32633
    for point, expected in zip(found, points, strict=True):
        assert (point.row, point.col) == (expected.row, expected.col)
        assert (point.x, point.y) == (expected.x, expected.y)


def test_a_name_that_gdal_cannot_read_is_refused(model, tmp_path, predictor_of):
    path = write_scene(tmp_path / "scene.tif", pixels(80, 70))
    path = path.rename(tmp_path / os.fsdecode(b"caf\xe9.tif"))
    with pytest.raises(ValueError, match="names are UTF-8; rename"):
        predict_scene(predictor_of(model), path, tmp_path / "out.tif")


def test_alpha_is_no_band(model, tmp_path, predictor_of):
    alpha = np.full((80, 70, 1), 65535, "uint16")
    alpha[3, 5] = 0
    image = np.concatenate([pixels(80, 70), alpha], -1)
    path = declare_alpha(write_scene(tmp_path / "scene.tif", image))
    predict_scene(predictor_of(model), path, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as out:
        assert np.argwhere(out.read(1) == 255).tolist() == [[3, 5]]


def test_alpha_that_the_model_reads_is_a_band(model, tmp_path, predictor_of):
    image = pixels(80, 70)
    image[3, 5, 3] = 0
    path = declare_alpha(write_scene(tmp_path / "scene.tif", image))
    counts = predict_scene(predictor_of(model), path, tmp_path / "out.tif")
    assert counts[255] == 0


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (pixels(9, 9)[..., :3], r"4 bands of uint16.*\(3 bands of uint16\)"),
        (pixels(9, 9).astype("float32"), r"\(4 bands of float32\)"),
    ],
)
def test_bands_that_do_not_fit_fail_at_once(
    model, tmp_path, image, message, predictor_of
):
    path = write_scene(tmp_path / "scene.tif", image)
    with pytest.raises(ValueError, match=message):
        predict_scene(predictor_of(model), path, tmp_path / "out.tif")
    assert not (tmp_path / "out.tif").exists()


@pytest.mark.slow
def test_the_command_writes_a_raster_beside_other_images(
    model, tmp_path, capsys, monkeypatch
):
    image = pixels(90, 110)
    scene = write_scene(tmp_path / "scene.tif", image)
    broken = tmp_path / "broken.tif"
    broken.write_bytes(scene.read_bytes()[:200])
    flags = ["--model", str(model), "--output", str(tmp_path / "out")]
    assert main(["predict", *flags, str(scene), str(broken)]) == 1
    said = capsys.readouterr()
    assert "scene_labels.tif" in said.out
    assert "broken.tif" in said.err
    with rasterio.open(tmp_path / "out/scene_labels.tif") as out:
        assert out.shape == (90, 110)
    assert main(["predict", *flags, "--format", "coco", str(scene)]) == 1
    first, _ = capsys.readouterr().err.strip().splitlines()[-2:]
    assert "`--format` does not support scenes (TIFFs with a geo" in first
    assert "scene.tif" in first
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert main(["predict", *flags, str(scene)]) == 1
    assert "pip install 'keras-aspp[geo]'" in capsys.readouterr().err


def read(path):
    """Bands `[H, W, K]` of a raster, and what it declares."""
    with rasterio.open(path) as raster:
        about = raster.dtypes[0], raster.nodata, raster.descriptions
        assert raster.transform == TRANSFORM
        assert raster.compression.name == "deflate"
        assert {raster.colorinterp[0].name} <= {"gray", "palette"}
        return np.moveaxis(raster.read(), 0, -1), about


def test_classes_that_overlap_have_a_band_each(
    overlapping, tmp_path, predictor_of
):
    image = pixels(150, 211)
    image[:70, :90] = 0
    scene = write_scene(tmp_path / "scene.tif", image, nodata=0)
    predictor = predictor_of(overlapping, window=64)
    scores = tmp_path / "scores.tif"
    counts = predict_scene(
        predictor, scene, tmp_path / "out.tif", probabilities=scores
    )
    labels, about = read(tmp_path / "out.tif")
    names = ("roof", "road", "tree")
    assert about == ("uint8", 255.0, names)
    gaps = (image == 0).all(-1)
    assert (labels[gaps] == 255).all()
    found, (dtype, nodata, described) = read(scores)
    assert (dtype, described) == ("float32", names) and np.isnan(nodata)
    np.testing.assert_array_equal(np.isnan(found), gaps[..., None].repeat(3, 2))
    above = found[~gaps] > np.float32([0.3, 0.5, 0.9])
    np.testing.assert_array_equal(labels[~gaps] == 1, above)
    assert (above.sum(-1) > 1).any() and not above.all()
    # Windows of the gap count for nothing, so compare away from it.
    expected = predictor.probability_batch(image[None])[0]
    np.testing.assert_allclose(found[80:], expected[80:], atol=1e-5)
    for band, values in zip(counts, np.moveaxis(labels, -1, 0), strict=True):
        assert band[[0, 1, 255]].tolist() == [
            (values == value).sum() for value in (0, 1, 255)
        ]


def test_scores_of_a_scene_are_those_of_one_image(
    model, tmp_path, predictor_of
):
    image = pixels(150, 211)
    scene = write_scene(tmp_path / "scene.tif", image)
    predictor = predictor_of(model, window=64)
    paths = [tmp_path / name for name in ("out.tif", "scores.tif")]
    predict_scene(predictor, scene, paths[0], probabilities=paths[1])
    found, about = read(paths[1])
    assert about[2] == ("class_0", "class_1", "class_2")
    expected = predictor.probability_batch(image[None])[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(read(paths[0])[0][..., 0], found.argmax(-1))


def test_the_command_writes_scores_and_names_of_classes(
    overlapping, tmp_path, capsys
):
    scene = write_scene(tmp_path / "scene.tif", pixels(90, 110))
    flags = ["--model", str(overlapping), "--output", str(tmp_path / "out")]
    assert main(["predict", *flags, "--scores", str(scene)]) == 0
    assert re.search(r"(roof|road|tree) \d+%", capsys.readouterr().out)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".predict.sha256",
        "scene_labels.tif",
        "scene_probabilities.tif",
    ]


@pytest.mark.parametrize("outputs", [("labels",), ("labels", "probabilities")])
@pytest.mark.slow
def test_masks_of_an_artefact_vote_unless_it_has_probabilities(
    outputs, overlapping, tmp_path
):
    model = load_saved(overlapping)
    content = convert(model, (64, 64), ["tflite_float32"], outputs=outputs)
    path = tmp_path / "model.tflite"
    path.write_bytes(content["tflite_float32"])
    predictor = ka.Predictor(path, overlap=0.0)
    image = pixels(128, 192)
    scene = write_scene(tmp_path / "scene.tif", image)
    predict_scene(predictor, scene, tmp_path / "out.tif")
    labels, _ = read(tmp_path / "out.tif")
    for y in (0, 64):
        for x in (0, 64, 128):
            cut = np.s_[y : y + 64, x : x + 64]
            np.testing.assert_array_equal(
                labels[cut], predictor.predict(image[cut])
            )
    # Without a manifest nobody knows the thresholds of probabilities.
    with pytest.raises(ValueError, match=r"--scores\) need a .keras model"):
        predict_scene(
            predictor,
            scene,
            tmp_path / "out.tif",
            probabilities=tmp_path / "scores.tif",
        )
    assert not (tmp_path / "scores.tif").exists()
    if outputs == ("labels",):
        return
    manifest = {
        "class_names": ["roof", "road", "tree"],
        "task": "multilabel",
        "threshold": [0.3, 0.5, 0.9],
        "artefacts": [],
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    predictor = ka.Predictor(path, overlap=0.5)
    small = write_scene(tmp_path / "small.tif", image[:50, :70])
    for name in (small, scene):
        scores, out = tmp_path / "scores.tif", tmp_path / "out.tif"
        predict_scene(predictor, name, out, probabilities=scores)
        above = read(scores)[0] > np.float32([0.3, 0.5, 0.9])
        np.testing.assert_array_equal(read(out)[0], above)


@pytest.mark.parametrize(
    ("task", "threshold"),
    [("multilabel", [0.3, 0.9]), ("binary", 0.2)],
)
@pytest.mark.slow
def test_logits_of_unknown_thresholds_vote(task, threshold, tmp_path):
    """A file's logits are above 0, or highest, where its labels are."""
    model = load_saved(
        made_model(
            tmp_path / "model.keras",
            2,
            task=task,
            threshold=tuple(threshold) if task == "multilabel" else threshold,
        )
    )
    content = convert(model, (64, 64), ["tflite_logits"])["tflite_logits"]
    path = tmp_path / "a" / "model_logits.tflite"
    path.parent.mkdir()
    path.write_bytes(content)
    image = pixels(64, 128)
    scene = write_scene(tmp_path / "scene.tif", image)
    out, scores = tmp_path / "out.tif", tmp_path / "scores.tif"
    alone = ka.Predictor(path, overlap=0.0)
    assert alone.has_scores and not alone.has_probabilities
    assert alone.threshold is None and not alone.has_confidence
    predict_scene(alone, scene, out)
    whole = ka.Predictor(tmp_path / "model.keras")
    tiles = [whole.score_batch(image[None, :, x : x + 64]) for x in (0, 64)]
    logits = np.concatenate(tiles, 2)[0]
    if task == "multilabel":
        expected = (logits > 0).astype("uint8")
        chance = expit(logits + logit(threshold))
    else:
        odds = logits[..., 1:] - logits[..., :1]
        expected = (odds > 0).astype("uint8")
        chance = expit([-1, 1] * (odds + logit(threshold)))
    assert ((chance > 0.01) & (chance < 0.99)).any()
    assert 0.05 < expected.mean() < 0.95
    assert (read(out)[0] == expected).mean() > 0.999
    for answer in (
        lambda: predict_scene(alone, scene, out, probabilities=scores),
        lambda: alone.predict(image, return_probabilities=True),
        lambda: alone.probability_batch(image[None, :, :64]),
        lambda: check_scores(alone),
    ):
        with pytest.raises(ValueError, match="manifest.json") as error:
            answer()
        assert "\n" not in str(error.value)
    manifest = {
        "class_names": ["roof", "road"],
        "task": task,
        "threshold": threshold,
        "artefacts": [],
    }
    (path.parent / "manifest.json").write_text(json.dumps(manifest))
    described = ka.Predictor(path, overlap=0.0)
    predict_scene(described, scene, out, probabilities=scores)
    np.testing.assert_allclose(read(scores)[0], chance, atol=1e-3)
    assert (read(out)[0] == expected).mean() > 0.999


PEAK = """
import resource, sys
from keras_aspp.inference import Predictor
from keras_aspp.inference.scenes import predict_scene
predictor = Predictor(sys.argv[1], window=64)
peaks = []
for scene in sys.argv[2:]:
    predict_scene(predictor, scene, scene + ".out.tif")
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(*peaks)
"""


@pytest.mark.slow  # a second TensorFlow
def test_memory_does_not_grow_with_the_raster(model, tmp_path):
    """Of the larger one, uint16 in four bands alone takes 134 MB."""
    scenes = []
    for side in (512, 4096):
        with rasterio.open(
            tmp_path / f"{side}.tif",
            "w",
            driver="GTiff",
            height=side,
            width=side,
            count=4,
            dtype="uint16",
            nodata=0,
            crs="EPSG:32633",
            transform=TRANSFORM,
            tiled=True,
            sparse_ok=True,
        ) as to:
            # All else is no data, which takes no network.
            window = rasterio.windows.Window(0, 0, 256, 256)
            to.write(np.moveaxis(pixels(256, 256), -1, 0), window=window)
        scenes.append(str(tmp_path / f"{side}.tif"))
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(model), *scenes],
        capture_output=True,
        text=True,
        check=True,
    )
    small, large = map(int, done.stdout.split()[-2:])  # KiB
    assert large - small < 60 * 1024


def test_a_probability_that_is_no_number_is_never_sure(
    model, tmp_path, monkeypatch
):
    scene = write_scene(tmp_path / "scene.tif", pixels(60, 50))
    predictor = ka.Predictor(model, window=64, min_confidence=0.1)
    probability_batch = predictor.probability_batch

    def some_missing(images):
        found = np.array(probability_batch(images))
        found[0, 5, 6], found[0, 7, 8, 1] = np.nan, np.nan
        return found

    monkeypatch.setattr(predictor, "probability_batch", some_missing)
    counts = predict_scene(predictor, scene, tmp_path / "out.tif")
    labels, _ = read(tmp_path / "out.tif")
    assert np.argwhere(labels[..., 0] == 255).tolist() == [[5, 6], [7, 8]]
    assert counts[255] == 2


def test_only_rasters_that_nobody_changed_are_replaced(
    model, tmp_path, predictor_of
):
    scene = write_scene(tmp_path / "scene.tif", pixels(60, 50))
    predictor, output = predictor_of(model, window=64), tmp_path / "out"
    for _ in range(2):
        rows, _ = predict_files(predictor, [scene], output, scores=True)
        assert len(rows) == 1
    with rasterio.open(output / "scene_labels.tif", "r+") as raster:
        raster.write(1 - raster.read(1).clip(0, 1), 1)
    before = (output / "scene_labels.tif").read_bytes()
    with pytest.raises(FileExistsError, match="since.*scene_labels.tif$"):
        predict_files(predictor, [scene], output, scores=True)
    assert (output / "scene_labels.tif").read_bytes() == before
