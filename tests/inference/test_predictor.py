"""The same answer from every artefact."""

import multiprocessing
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, assert_close, make_toy_backbone, randomize
from PIL import Image

import keras_aspp as ka
from keras_aspp.data.resize import resize_image
from keras_aspp.inference import serving
from keras_aspp.inference.files import predict_files
from keras_aspp.pixels import PixelFormat
from keras_aspp.utils.exceptions import InputError


def picture(height=70, width=85, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (7, 8, 3)).astype("uint8")
    return np.array(Image.fromarray(small).resize((width, height)))


def test_any_size_artefacts_agree(tiny_export, predictor_of):
    image = picture()
    labels = predictor_of(tiny_export / "model.keras").predict(image)
    assert labels.shape == (70, 85)
    assert labels.dtype == np.int32
    assert len(np.unique(labels)) > 1
    served = predictor_of(tiny_export / "saved_model").predict(image)
    np.testing.assert_array_equal(served, labels)


def test_fixed_size_artefact_answers_at_the_pictures_size(
    tiny_export, predictor_of
):
    image = picture()
    lite = predictor_of(tiny_export / "model_float32.tflite")
    assert lite.image_size == (64, 96)
    reference = predictor_of(tiny_export / "model.keras")
    small = reference.predict(resize_image(image, (64, 96)))
    expected = Image.fromarray(small.astype("uint8")).resize(
        (85, 70), Image.Resampling.NEAREST
    )
    same = lite.predict(image) == np.array(expected)
    assert same.mean() > 0.999


def test_scores_and_labels_agree(tiny_workdir, predictor_of):
    image = picture()
    predictor = predictor_of(tiny_workdir)
    labels, scores = predictor.predict(image, return_scores=True)
    assert scores.shape == (70, 85, 3)
    np.testing.assert_array_equal(labels, scores.argmax(-1))
    np.testing.assert_array_equal(labels, predictor.predict(image))


def test_another_output_stride(tiny_workdir, tiny_export):
    image = picture()
    dense = ka.Predictor(tiny_workdir, output_stride=8)
    _, scores = dense.predict(image, return_scores=True)
    model = keras.saving.load_model(tiny_workdir / "model.keras")
    x = model.preprocess(image[None])
    assert np.abs(scores - model(x)[0]).max() > 1e-3
    expected = ka.models.with_output_stride(model, 8)(x)[0]
    assert_close(scores, expected, least_std=0.05)
    for name in ("saved_model", "model_float32.tflite"):
        with pytest.raises(ValueError, match=f"output_stride=8, .*{name}"):
            ka.Predictor(tiny_export / name, output_stride=8)


def test_exif_orientation_is_respected(tiny_workdir, tmp_path, predictor_of):
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    turned = Image.fromarray(np.rot90(image).copy())
    turned.save(tmp_path / "a.png", exif=exif)
    predictor = predictor_of(tiny_workdir)
    labels = predictor.predict(tmp_path / "a.png")
    np.testing.assert_array_equal(labels, predictor.predict(image))


def test_spec_comes_from_manifest_and_workdir(
    tiny_export, tiny_workdir, predictor_of
):
    for path in (tiny_export, tiny_workdir):
        predictor = predictor_of(path)
        assert predictor.spec.class_names == ("ground", "box", "bar")
        assert predictor.num_classes == 3


def test_saved_model_of_a_folder_is_preferred(tiny_export, predictor_of):
    assert predictor_of(tiny_export).path.name == "saved_model"


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="Received: .*does not exist"):
        ka.Predictor(tmp_path / "no.tflite")
    with pytest.raises(FileNotFoundError, match="SavedModel, a workdir"):
        ka.Predictor(tmp_path)


@pytest.mark.parametrize("name", ["a.keras", "a.tflite"])
def test_broken_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"TFL3 but not really")
    with pytest.raises(ValueError, match=f"Not a loadable.*{name}"):
        ka.Predictor(tmp_path / name)


def test_not_a_picture(tiny_workdir, predictor_of):
    with pytest.raises(ValueError, match=r"shape=\(5, 5\), dtype=uint8"):
        predictor_of(tiny_workdir).predict(np.zeros((5, 5), "uint8"))
    with pytest.raises(ValueError, match="dtype=float64"):
        predictor_of(tiny_workdir).predict(np.zeros((5, 5, 3)))


def test_scores_of_tflite_are_refused(tiny_export, predictor_of):
    predictor = predictor_of(tiny_export / "model_float16.tflite")
    with pytest.raises(
        ValueError, match="Only a .keras model has sc.*model_gpu"
    ):
        predictor.predict(picture(), return_scores=True)


@pytest.mark.parametrize("name", ["model_float32.tflite", "saved_model"])
def test_an_artefact_that_is_not_the_manifests(tiny_export, tmp_path, name):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_export, folder)
    ka.Predictor(folder / name)
    changed = folder / name
    if name == "saved_model":
        changed /= "saved_model.pb"
    # One byte more, which neither reader minds.
    changed.write_bytes(changed.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=f"manifest.json.*{name}"):
        ka.Predictor(folder / name)


@pytest.mark.slow
def test_sizes_that_share_a_side(tiny_workdir):
    """As of photographs: 500x375, then 500x333."""
    predictor = ka.Predictor(tiny_workdir)
    image = np.random.default_rng(0).integers(0, 256, (70, 101, 3), "uint8")
    for height, width in ((64, 96), (65, 96), (70, 96), (70, 101)):
        labels = predictor.predict(image[:height, :width])
        alone = ka.Predictor(tiny_workdir).predict(image[:height, :width])
        np.testing.assert_array_equal(labels, alone)


@pytest.mark.parametrize("name", ["model.keras", "saved_model"])
def test_images_of_less_than_a_cell_are_refused_on_every_processor(
    tiny_export, name, predictor_of
):
    """oneDNN's kernels compute on where TensorFlow's own raise."""
    predictor = predictor_of(tiny_export / name)
    assert predictor.predict(picture(11, 40)).shape == (11, 40)
    for height, width in ((1, 1), (10, 40), (40, 10)):
        with pytest.raises(ValueError, match="at least 11x11 pixels"):
            predictor.predict(picture(height, width))


@pytest.mark.parametrize("name", ["model.keras", "model_float32.tflite"])
@pytest.mark.parametrize(
    "images",
    [
        np.zeros((0, 64, 96, 3), "uint8"),
        np.zeros((64, 96, 3), "uint8"),
        np.zeros((1, 64, 96, 4), "uint8"),
        np.zeros((1, 64, 96, 3), "float32"),
    ],
)
def test_a_batch_that_is_none_is_refused(
    images, name, tiny_export, predictor_of
):
    """An empty one is no fault of its images."""
    predictor = predictor_of(tiny_export / name)
    for answer in (predictor.predict_batch, predictor.score_batch):
        with pytest.raises(ValueError, match="a batch of at least 1") as error:
            answer(images)
        assert f"Received: shape={images.shape}" in str(error.value)


def test_a_fixed_size_artefact_takes_an_image_of_one_pixel(
    tiny_export, predictor_of
):
    lite = predictor_of(tiny_export / "model_float32.tflite")
    assert lite.predict(np.zeros((1, 1, 3), "uint8")).shape == (1, 1)


def test_the_smallest_scale_counts(tiny_workdir):
    predictor = ka.Predictor(tiny_workdir, scales=(0.5, 1.0))
    assert predictor.predict(picture(22, 30)).shape == (22, 30)
    with pytest.raises(ValueError, match="at least 22x22"):
        predictor.predict(picture(21, 30))
    with pytest.raises(ValueError, match="window=10"):
        ka.Predictor(tiny_workdir, window=10)


@pytest.mark.parametrize(
    "name", ["model.keras", "saved_model", "model_float32.tflite"]
)
def test_threads_share_a_predictor(tiny_export, name, predictor_of):
    predictor = predictor_of(tiny_export / name)
    images = [picture(seed=seed) for seed in range(6)]
    expected = [predictor.predict(image) for image in images]
    assert len({labels.tobytes() for labels in expected}) == len(images)
    jobs = list(range(len(images))) * 8
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda job: predictor.predict(images[job]), jobs)
        for job, labels in zip(jobs, found, strict=True):
            np.testing.assert_array_equal(labels, expected[job])


def _in_a_fork(predictor, queue):
    try:
        queue.put(predictor.predict(picture()))
    except RuntimeError as error:
        queue.put(str(error))


@pytest.mark.parametrize("name", ["model.keras", "model_float32.tflite"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_answers_or_says_what_to_do(
    tiny_export, name, predictor_of
):
    predictor = predictor_of(tiny_export / name)
    expected = predictor.predict(picture())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_in_a_fork, args=(predictor, queue))
    process.start()
    try:
        found = queue.get(timeout=60)
    finally:
        process.kill()
        process.join()
    if name == "model.keras":
        assert "forked after it was opened" in found and "spawn" in found
    else:
        np.testing.assert_array_equal(found, expected)


def _in_threads_of_a_fork(predictor, images, queue):
    barrier = threading.Barrier(len(images))

    def predict(image):
        barrier.wait()
        try:
            return predictor.predict(image)
        except Exception as error:
            return repr(error)

    with ThreadPoolExecutor(len(images)) as pool:
        queue.put(list(pool.map(predict, images)))


@pytest.mark.parametrize("num_threads, is_busy", [(4, False), (1, True)])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_threads_of_a_forked_process_share_a_predictor(num_threads, is_busy):
    """Also of one that is forked while a thread of the parent predicts."""
    exported = ROOT / "tests/golden/13d0402/exported"
    predictor = ka.Predictor(exported / "model_float32.tflite")
    # Of its own size, so that threads call it at once.
    size = predictor.image_size
    images = [picture(*size, seed) for seed in range(num_threads)]
    expected = [predictor.predict(image) for image in images]
    assert len({labels.tobytes() for labels in expected}) == num_threads
    context = multiprocessing.get_context("fork")
    ended = threading.Event()

    def predict_on():
        while is_busy and not ended.is_set():
            predictor.predict(images[0])

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(predict_on)
        try:
            for _ in range(16):
                queue = context.Queue()
                process = context.Process(
                    target=_in_threads_of_a_fork,
                    args=(predictor, images, queue),
                )
                process.start()
                try:
                    found = queue.get(timeout=30)
                finally:
                    process.kill()
                    process.join()
                for labels, wanted in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(labels, wanted)
        finally:
            ended.set()
        busy.result()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("failed to invoke"),  # as LiteRT has them
        tf.errors.InvalidArgumentError(None, None, "failed to invoke"),
    ],
)
def test_an_image_that_the_runtime_refuses(
    tiny_export, error, monkeypatch, predictor_of
):
    predictor = predictor_of(tiny_export / "model_float32.tflite")

    def refuse(images, outputs):
        raise error

    monkeypatch.setattr(predictor._engine, "answer", refuse)
    message = r"cannot take an image of 64x96 \(failed to invoke\)"
    with pytest.raises(InputError, match=message):
        predictor.predict(np.zeros((64, 96, 3), "uint8"))


@pytest.mark.parametrize("bug", [KeyError("key"), ValueError("broadcast")])
def test_an_error_of_ours_is_not_blamed_on_the_image(
    tiny_export, bug, monkeypatch, predictor_of
):
    predictor = predictor_of(tiny_export / "model_float32.tflite")

    def fail(images, outputs):
        raise bug

    monkeypatch.setattr(predictor._engine, "answer", fail)
    with pytest.raises(type(bug)) as raised:
        predictor.predict(np.zeros((64, 96, 3), "uint8"))
    assert raised.value is bug


@pytest.fixture(scope="module")
def float_model(tmp_path_factory):
    """A model of two float bands, and its path."""
    model = ka.models.DeepLabV3(
        3,
        make_toy_backbone(channels=2),
        atrous_rates=(1,),
        aspp_filters=4,
        dropout=0.0,
    )
    pixels = PixelFormat(2, "float32", value_range=(-1, 5))
    model.preprocess = model.preprocess.of_images(pixels)
    path = tmp_path_factory.mktemp("float") / "model.keras"
    randomize(model).save(path)
    return model, path


def test_pixels_that_are_no_numbers_get_the_ignore_label(
    float_model, predictor_of, tmp_path
):
    model, path = float_model
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 5, (40, 50, 2)).astype("float32")
    image[3, 4, 0], image[7, 8, 1], image[20:30, 25] = np.nan, np.inf, np.nan
    gaps = np.zeros((40, 50), bool)
    gaps[3, 4] = gaps[7, 8] = gaps[20:30, 25] = True
    zeroed = np.where(gaps[..., None], 0, image).astype("float32")
    scores = np.array(model(model.preprocess(zeroed[None])))[0]
    expected = np.where(gaps, 255, scores.argmax(-1))
    assert len(np.unique(expected)) > 2
    predictor = predictor_of(path)
    labels, *found = predictor.predict(
        image, True, return_confidence=True, return_probabilities=True
    )
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.int32
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    shares = powers / powers.sum(-1, keepdims=True)
    for values, known in zip(
        found, (scores, shares.max(-1), shares), strict=True
    ):
        assert values.dtype == np.float32
        known[gaps] = np.nan
        np.testing.assert_allclose(values, known, atol=1e-4)
    batch = predictor.predict_batch(np.stack([zeroed, image]))
    np.testing.assert_array_equal(batch[1], expected)
    assert batch[0].max() < 3
    assert np.isfinite(predictor.score_batch(image[None])).all()
    # At another size, and from a file.
    at = predictor.predict_at(image, (32, 48))
    np.testing.assert_array_equal(
        at, np.where(gaps, 255, predictor.predict_at(zeroed, (32, 48)))
    )
    tifffile = pytest.importorskip(
        "tifffile", reason="extra `tiff` is not installed (2026-11-30)"
    )
    tifffile.imwrite(
        tmp_path / "a.tif",
        image,
        photometric="minisblack",
        planarconfig="contig",
    )
    read, probabilities = predictor.predict(
        tmp_path / "a.tif", return_probabilities=True
    )
    np.testing.assert_array_equal(read, expected)
    np.testing.assert_allclose(probabilities, shares, atol=1e-4)
    # Its files have no scores there either.
    rows, messages = predict_files(
        predictor, [tmp_path / "a.tif"], tmp_path / "out", scores=True
    )
    assert (len(rows), messages) == (1, [])
    with np.load(tmp_path / "out" / "a_probabilities.npz") as arrays:
        np.testing.assert_allclose(arrays["probabilities"], shares, atol=1e-3)
    with Image.open(tmp_path / "out" / "a_confidence.png") as gray:
        known = np.where(gaps, 0, 255 * shares.max(-1))
        assert np.abs(np.array(gray) - known).max() < 0.6
    with Image.open(tmp_path / "out" / "a_labels.png") as written:
        np.testing.assert_array_equal(np.array(written), expected)


def test_masks_of_pixels_that_are_no_numbers(float_model):
    _, path = float_model
    predictor = ka.Predictor(path)
    predictor.is_multilabel = True
    masks = np.ones((1, 40, 50, 3), "uint8")
    predictor._in_memory = lambda *_: {"labels": masks}
    image = np.zeros((40, 50, 2), "float32")
    image[5, 6, 1] = np.nan
    found = predictor.predict(image)
    assert found.dtype == np.uint8
    assert np.argwhere(found != 1).tolist() == [[5, 6, k] for k in range(3)]
    assert found[5, 6].tolist() == [255] * 3


def test_a_confidence_that_is_no_number_is_never_sure(float_model):
    _, path = float_model
    predictor = ka.Predictor(path, min_confidence=0.5)
    labels = np.ones((1, 2, 3), "int32")
    confidence = np.float32([[[0.4, 0.5, 0.6], [np.nan, 1, np.nan]]])
    found = {"labels": labels, "confidence": confidence}
    expected = [[[255, 1, 1], [255, 1, 255]]]
    assert predictor._finished(found)["labels"].tolist() == expected
    served = serving.without_unsure(found, 0.5, 255)
    assert served.numpy().tolist() == expected


@pytest.mark.parametrize("shape", [(5, 0), (0, 5)])
def test_an_image_without_pixels(shape, float_model, predictor_of):
    """Also for a file of fixed size, which resizes."""
    exported = ROOT / "tests/golden/13d0402/exported"
    of_any_size = predictor_of(float_model[1])
    of_fixed_size = predictor_of(exported / "model_float32.tflite")
    assert of_fixed_size.image_size is not None
    for predictor in (of_any_size, of_fixed_size):
        pixels = predictor.pixels
        image = np.zeros((*shape, pixels.channels), pixels.dtype)
        message = rf"of at least 1 pixel.*Received: shape=\({shape[0]}, "
        with pytest.raises(InputError, match=message):
            predictor.predict(image)
        with pytest.raises(InputError, match="Received: shape=.1, "):
            predictor.predict_batch(image[None])


@pytest.mark.parametrize(
    "name, value",
    [
        ("scales", 0.5),
        ("scales", "0.5"),
        ("scales", ("a",)),
        ("scales", (0.5, None)),
        ("scales", ()),
        ("min_confidence", "0.5"),
        ("min_confidence", None),
        ("min_confidence", True),
        ("min_confidence", float("nan")),
        ("overlap", "0.2"),
        ("overlap", 1.0),
        ("overlap", [0.2]),
    ],
)
def test_values_of_other_types_are_refused_in_one_line(
    float_model, name, value
):
    _, path = float_model
    with pytest.raises(InputError) as error:
        ka.Predictor(path, **{name: value})
    assert f"`{name}` must be" in str(error.value)
    assert str(error.value).endswith(f"Received: {name}={value!r}")
