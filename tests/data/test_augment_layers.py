"""keras-cv's layers: alone, and as `data.augment.layers` applies them.

`python -m docs.keras_cv` prints the whole table of
docs/decisions/0010-keras-cv.md. A test of a layer alone that fails with a later
version is good news: that layer has been mended.
"""

import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_aspp.data.augment import Augment, AugmentConfig
from keras_aspp.data.augment_layers import (
    COLOR,
    FILL,
    FIXED,
    GEOMETRIC,
    REFUSED,
    AugmentLayer,
    blur_arguments,
    check_layers,
)
from keras_aspp.data.pipeline import training_dataset
from keras_aspp.data.spec import DatasetSpec

SIZE = (64, 80)
CLASSES = np.array([3, 5, 200], "int32")
IGNORE = 11  # not 255, so that a constant would show
ARGUMENTS = {
    "AutoContrast": {},
    "ChannelShuffle": {},
    "Equalization": {},
    "Grayscale": {},
    "GridMask": {"ratio_factor": [0.4, 0.5]},
    "Posterization": {"bits": 3},
    "RandAugment": {},
    "RandomBrightness": {"factor": 0.3},
    "RandomChannelShift": {"factor": 0.5},
    "RandomColorDegeneration": {"factor": [0.5, 1.0]},
    "RandomColorJitter": {
        "brightness_factor": 0.2,
        "contrast_factor": 0.2,
        "saturation_factor": [0.3, 0.7],
        "hue_factor": 0.2,
    },
    "RandomContrast": {"factor": 0.5},
    "RandomCropAndResize": {
        "crop_area_factor": [0.4, 0.6],
        "aspect_ratio_factor": [0.8, 1.25],
    },
    "RandomCutout": {"height_factor": 0.5, "width_factor": 0.5},
    "RandomFlip": {"mode": "horizontal_and_vertical"},
    "RandomGaussianBlur": {"kernel_size": 5, "factor": [1.0, 2.0]},
    "RandomHue": {"factor": 0.5},
    "RandomJpegQuality": {"factor": [10, 30]},
    "RandomRotation": {"factor": 0.1},
    "RandomSaturation": {"factor": [0.2, 0.4]},
    "RandomSharpness": {"factor": [0.5, 1.0]},
    "RandomShear": {"x_factor": 0.3, "y_factor": 0.3},
    "RandomTranslation": {"height_factor": 0.3, "width_factor": 0.3},
    "RandomZoom": {"height_factor": [0.2, 0.4]},
    "Solarization": {"threshold_factor": [100, 200]},
}
# Layers that leave pixels uncovered, or cover them.
UNCOVER = GEOMETRIC - {"RandomCropAndResize", "RandomFlip"}
BLUR = "RandomGaussianBlur"
# One of each sort: without draws, with draws of both sources, with a range or
# a rim of its own, of layers, geometric.
FAST = {"Grayscale", "RandomChannelShift", "RandomJpegQuality", BLUR}
FAST |= {"RandomColorJitter", "RandomRotation"}


def some_slow(names):
    return [
        pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow])
        for n in sorted(names)
    ]


def blocks(seed=0):
    """An image of blocks, a color for each class, and their mask."""
    rng = np.random.default_rng(seed)
    places = rng.integers(0, 3, (SIZE[0] // 8, SIZE[1] // 8))
    places = np.kron(places, np.ones((8, 8), "int32"))
    image = np.eye(3, dtype="float32")[places] * 255
    return tf.constant(image), tf.constant(CLASSES[places])


def noise(size=SIZE):
    rng = np.random.default_rng(1)
    return tf.constant(rng.uniform(30, 200, (*size, 3)).astype("float32"))


def seed_of(number):
    return tf.constant([3, number], "int64")


@pytest.fixture(scope="module")
def layers():
    """Layers by name, each built once."""
    built = {}

    def get(name):
        if name not in built:
            arguments = ARGUMENTS[name]
            built[name] = AugmentLayer(name, arguments, SIZE, IGNORE)
        return built[name]

    return get


def test_each_selectable_layer_is_tested():
    assert set(ARGUMENTS) == COLOR | GEOMETRIC
    assert not COLOR & GEOMETRIC
    assert not set(REFUSED) & set(ARGUMENTS)
    assert FIXED < COLOR


def stateful_operations(graph):
    """Operations that draw from a state, those of functions included."""
    definition = graph.as_graph_def()
    nodes = [*definition.node]
    for function in definition.library.function:
        nodes += function.node_def
    return {
        node.op
        for node in nodes
        if node.op.startswith(("Random", "Rng", "Stateful"))
        and node.op != "StatefulPartitionedCall"
    }


def trace(layer):
    specs = tf.TensorSpec((*SIZE, 3)), tf.TensorSpec(SIZE, "int32")
    traced = tf.function(layer)
    return traced.get_concrete_function(*specs, tf.TensorSpec(2, "int64"))


@pytest.mark.parametrize("name", some_slow(ARGUMENTS))
def test_layer_draws_from_the_seed_alone(layers, name):
    traced, image = trace(layers(name)), noise()
    assert stateful_operations(traced.graph) == set()
    _, labels = blocks()
    outs = [traced(image, labels, seed_of(i))[0].numpy() for i in range(8)]
    again = [traced(image, labels, seed_of(i))[0].numpy() for i in (5, 2)]
    np.testing.assert_array_equal(again, [outs[5], outs[2]])
    # Built anew, as after a resume, and in eager mode, as in the preview.
    anew = AugmentLayer(name, ARGUMENTS[name], SIZE, IGNORE)
    same, _ = anew(image, labels, seed_of(5))
    np.testing.assert_allclose(same, outs[5], atol=1e-3)
    # A second trace, which a seed of another type asks for, draws no other way.
    retraced, _ = layers(name)(image, labels, tf.cast(seed_of(5), "int32"))
    np.testing.assert_allclose(retraced, outs[5], atol=1e-3)
    unlike = len({out.tobytes() for out in outs})
    assert unlike == 1 if name in FIXED else unlike > 1
    assert -1e-3 < np.min(outs) and np.max(outs) < 255.001
    assert np.abs(outs - image.numpy()).mean() > 1


@pytest.mark.parametrize("name", some_slow(COLOR))
def test_color_layer_leaves_the_mask_alone(layers, name):
    image, labels = blocks()
    out, mask = layers(name)(image, labels, seed_of(0))
    assert out.shape == image.shape
    assert np.asarray(mask).dtype == np.int32
    np.testing.assert_array_equal(mask, labels)


@pytest.mark.parametrize("name", some_slow(GEOMETRIC))
def test_mask_is_the_nearest_pixel_of_the_image(layers, name):
    """A label's color has at least the share that the nearest pixel has.

    Bilinear interpolation gives the nearest of four pixels at least 1/4.
    """
    ignored, shares = [], []
    for i in range(12):
        out, mask = (
            part.numpy() for part in layers(name)(*blocks(i), seed_of(i))
        )
        assert mask.dtype == np.int32
        assert {*np.unique(mask)} <= {*CLASSES, IGNORE}
        for channel, class_id in enumerate(CLASSES):
            shares.append(out[mask == class_id, channel] / 255)
        ignored.append(np.mean(mask == IGNORE))
        # An ignored pixel shows a share of the fill that is as large.
        off = np.abs(out - FILL).max(-1)[mask == IGNORE]
        assert off.max(initial=0) <= 0.751 * FILL
    shares = np.concatenate(shares)
    assert 0.2499 < shares.min()
    # Most pixels lie within a block, and show its color alone.
    assert np.mean(shares > 0.999) > 0.5
    assert (np.mean(ignored) > 0.02) == (name in UNCOVER)


def test_draws_of_one_layer_are_independent(layers):
    image, labels = noise(), blocks()[1]
    shifts = np.array(
        [
            np.median(
                layers("RandomChannelShift")(image, labels, seed_of(i))[0]
                - image,
                axis=(0, 1),
            )
            for i in range(60)
        ]
    )
    assert np.abs(shifts).max() < 0.25 * 255 + 1e-3
    assert np.all(shifts.max(axis=0) > 40) and np.all(shifts.min(axis=0) < -40)
    between = np.corrcoef(shifts.T)[np.triu_indices(3, 1)]
    assert np.abs(between).max() < 0.4


def test_rotation_turns_the_mask_as_the_image():
    """Known geometry: a quarter turn is a transposed, mirrored square."""
    rng = np.random.default_rng(0)
    labels = rng.choice(CLASSES, (64, 64)).astype("int32")
    image = np.eye(3)[np.searchsorted(CLASSES, labels)].astype("float32") * 255
    # 1/4 of a turn, as a constant and as a range that is next to one.
    layer = AugmentLayer(
        "RandomRotation", {"factor": [0.25, 0.25]}, (64, 64), IGNORE
    )
    out, mask = layer(image, tf.constant(labels), seed_of(0))
    np.testing.assert_array_equal(mask, np.rot90(labels))
    np.testing.assert_allclose(out, np.rot90(image), atol=0.1)


def test_probability_is_the_share_of_changed_crops():
    layer = AugmentLayer("Grayscale", {"probability": 0.25}, SIZE, IGNORE)
    image, labels = noise(), blocks()[1]
    traced = trace(layer)
    changed = []
    for i in range(200):
        out, mask = traced(image, labels, seed_of(i))
        changed.append(np.any(out.numpy() != image.numpy()))
        np.testing.assert_array_equal(mask, labels)
    assert 0.15 < np.mean(changed) < 0.35


def test_layers_follow_in_their_order_and_change_no_other_draw():
    image = noise((70, 90)).numpy().astype("uint8")
    labels = np.ones((70, 90), "int32")

    def crop(**fields):
        augment = Augment(AugmentConfig(**fields), SIZE, IGNORE)
        return [part.numpy() for part in augment(image, labels, seed_of(0))]

    hue, turn = {"RandomHue": {"factor": 0.5}}, {"RandomFlip": {"rate": 1.0}}
    plain, flipped = crop(), crop(layers=turn)
    # The last step, of colors, is pixel by pixel: it commutes with a flip.
    np.testing.assert_allclose(flipped[0], plain[0][:, ::-1], atol=1e-3)
    np.testing.assert_array_equal(flipped[1], plain[1][:, ::-1])
    colored = crop(layers=hue)[0]
    assert np.abs(colored - plain[0]).mean() > 1
    both = crop(layers={**hue, **turn})[0]
    np.testing.assert_allclose(both, colored[:, ::-1], atol=1e-3)
    # Blur comes first, and has its own stream.
    blurred = crop(blur=1.0)
    again = crop(blur=1.0, layers=turn)
    np.testing.assert_allclose(again[0], blurred[0][:, ::-1], atol=1e-3)


class Images:
    """A source in memory: seven images of noise."""

    spec = DatasetSpec(["ground", "box"], ignore_label=IGNORE)

    def size(self, split):
        return 7

    def records(self, split):
        return tf.data.Dataset.from_tensor_slices(([*"0123456"],))

    def decode(self, record):
        rng = np.random.default_rng(int(record))
        image = rng.integers(0, 256, (40, 50, 3)).astype("uint8")
        return image, rng.integers(0, 2, (40, 50)).astype("int32")


@pytest.mark.slow
def test_resumed_run_repeats_the_batches_of_layers():
    names = ("RandomChannelShift", "RandomRotation")
    layers = {name: ARGUMENTS[name] for name in names}

    def batches(first_example, count):
        tf.random.set_seed(count)  # no global state matters
        data = training_dataset(
            Images(),
            "train",
            AugmentConfig(layers=layers),
            (32, 32),
            2,
            preprocess=lambda image: image,
            seed=5,
            first_example=first_example,
        )
        return [[part.numpy() for part in batch] for batch in data.take(count)]

    whole, resumed = batches(0, 9), batches(10, 4)
    for expected, ours in zip(whole[5:], resumed, strict=True):
        for one, other in zip(expected, ours, strict=True):
            np.testing.assert_array_equal(one, other)
    # An image looks otherwise in the next epoch: every batch is its own.
    assert len({batch[0].tobytes() for batch in whole}) == 9


def test_layers_compute_in_float32_under_any_policy():
    """In bfloat16, class 201 would be 200 or 202."""
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        layer = AugmentLayer("RandomFlip", {"rate": 1.0}, SIZE, IGNORE)
        labels = np.full(SIZE, 201, "int32")
        out, mask = layer(noise(), tf.constant(labels), seed_of(0))
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    np.testing.assert_array_equal(mask, labels)
    np.testing.assert_array_equal(out, noise()[:, ::-1])


# The blur.


def np_blur(image, sigma, radius):
    x = np.arange(-radius, radius + 1)
    kernel = np.exp(-(x**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(image.astype("float64"), pad, "symmetric")
        image = sum(
            k * np.take(padded, range(i, i + image.shape[axis]), axis)
            for i, k in enumerate(kernel)
        )
    return image


@pytest.mark.parametrize("sigma", [0.4, 1.5])
def test_blur_is_gaussian_up_to_the_rim(sigma):
    size = (20, 31)
    layer = AugmentLayer(BLUR, blur_arguments(sigma), size, IGNORE)
    image, labels = noise(size), tf.zeros(size, "int32")
    for number in range(3):
        ours, _ = layer(image, labels, seed_of(number))
        drawn = tf.random.stateless_uniform((), seed_of(number)) * sigma
        radius = int(np.ceil(3 * sigma))
        expected = np_blur(image.numpy(), drawn.numpy(), radius)
        np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_smallest_blur_is_none():
    layer = AugmentLayer(
        BLUR, {"kernel_size": 3, "factor": [0.0, 0.0]}, SIZE, IGNORE
    )
    ours, _ = layer(noise(), blocks()[1], seed_of(0))
    np.testing.assert_array_equal(ours, noise())


def test_keras_cv_is_imported_only_for_its_layers(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_cv", None)  # importing it fails
    Augment(AugmentConfig(), (32, 32), IGNORE)
    with pytest.raises(ImportError):
        Augment(AugmentConfig(blur=0.5), (32, 32), IGNORE)


# Messages.


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"RandomHu": {}}, "Did you mean RandomHue.*Received: 'RandomHu'"),
        ({"MixUp": {}}, r"cannot use keras-cv's MixUp: it av.*layers={MixUp"),
        ({"RandomHue": None}, "mapping of arguments, {} for none. Received: R"),
        ({"RandomHue": {}}, "refused by keras-cv: .*'factor'"),
        ({"RandomHue": {"factor": 2}}, "refused by keras-cv: .*range"),
        ({"RandomHue": {"facto": 1}}, "no argument `facto`. Valid .*factor"),
        ({"RandomHue": {"factor": 1, "seed": 3}}, "no argument `seed`"),
        ({"RandomZoom": {"fill_mode": "wrap"}}, "no argument `fill_mode`"),
        ({"RandomZoom": {"height_factor": 1e9}}, r"in -255..255. Received"),
        ({"RandomRotation": {"factor": float("nan")}}, "factor=nan"),
        ({BLUR: {"kernel_size": 4, "factor": 1}}, "must be odd. Received"),
        ({BLUR: {"kernel_size": 99, "factor": 1}}, r"in -63..63. Received"),
        ({"RandomShear": {}}, "perform no augmentation"),
        ({"Grayscale": {}}, "a `probability` below 1. Received: Grayscale={}"),
        ({"Grayscale": {"probability": 2}}, r"in \(0, 1\]. Received: prob"),
        ({"Grayscale": {"probability": "a"}}, r"Received: probability='a'"),
    ],
)
def test_wrong_layers_are_refused_in_one_line(layers, message):
    with pytest.raises(ValueError, match=message) as caught:
        AugmentConfig(layers=layers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_layers_exist_and_are_refused_with_a_reason(name):
    import keras_cv

    assert hasattr(keras_cv.layers, name)
    with pytest.raises(ValueError) as caught:
        check_layers({name: {}})
    assert REFUSED[name] in str(caught.value)


def test_every_layer_of_keras_cv_that_augments_is_classified():
    import keras_cv

    layers = keras_cv.layers
    bases = (
        layers.BaseImageAugmentationLayer,
        layers.VectorizedBaseImageAugmentationLayer,
    )
    augmenting = {
        name
        for name, layer_type in vars(layers).items()
        if isinstance(layer_type, type)
        and issubclass(layer_type, bases)
        and layer_type not in bases
    }
    assert augmenting <= COLOR | GEOMETRIC | set(REFUSED)


# Layers of Keras and keras-cv alone, and so why masks are not theirs to
# change. Measured with Keras 3.15.1 and keras-cv 0.9.0.


def through(layer):
    """The mask that a layer makes of one with the classes 3, 5 and 7."""
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (1, 8, 10, 3)).astype("float32")
    mask = rng.choice([3, 5, 7], (1, 8, 10, 1)).astype("int32")
    data = {
        "images": tf.constant(image),
        "segmentation_masks": tf.constant(mask),
    }
    out = layer(data, training=True)
    return mask, np.asarray(out["segmentation_masks"])


def keras_layer(name, *args, **kwargs):
    return getattr(keras.layers, name)(*args, **kwargs)


def cv_layer(name, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at its import
        import keras_cv

    return getattr(keras_cv.layers, name)(*args, **kwargs)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda: keras_layer("RandomCrop", 4, 5), "float32"),
        (lambda: keras_layer("CenterCrop", 4, 5), "float32"),
        (lambda: keras_layer("Resizing", 16, 20), "int32"),
        (lambda: cv_layer("RandomFlip"), "float32"),
        (
            lambda: cv_layer(
                "RandomCropAndResize", (8, 10), (0.3, 0.5), (0.8, 1.2)
            ),
            "float32",
        ),
    ],
    ids=["RandomCrop", "CenterCrop", "Resizing", "cv.Flip", "cv.CropAndResize"],
)
def test_layers_that_never_leave_the_image_keep_the_classes(make, dtype):
    # They cannot show a picture smaller than it is, which a scale below 1
    # does; most change the dtype.
    _, mask = through(make())
    assert mask.dtype == dtype
    assert set(np.unique(mask)) == {3, 5, 7}


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras_layer("RandomBrightness", 0.5),
        lambda: keras_layer("RandomContrast", 0.5),
        lambda: keras_layer("RandomSaturation", 0.5),
        lambda: keras_layer("RandomHue", 0.5),
        lambda: cv_layer("RandomGaussianBlur", 3, 1.0),
    ],
    ids=["brightness", "contrast", "saturation", "hue", "cv.blur"],
)
def test_color_layers_leave_masks_alone(make):
    before, after = through(make())
    assert after.dtype == np.int32
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("RandomZoom", ((0.5, 0.5),)),
        ("RandomTranslation", ((0.3, 0.3), (0.3, 0.3))),
        ("RandomRotation", ((0.1, 0.1),)),
        ("RandomShear", (0.5, 0.5)),
    ],
)
@pytest.mark.parametrize("make", [keras_layer, cv_layer], ids=["keras", "cv"])
def test_geometric_layers_fill_masks_with_the_images_value(
    make, name, arguments
):
    # One `fill_value` for both: mid-grey becomes class 128. With a fill of
    # 255 the mask would be right and the surroundings of pictures white.
    # Keras' RandomZoom and RandomTranslation may replace Augment._crop when
    # they take a fill value for masks.
    layer = make(name, *arguments, fill_mode="constant", fill_value=FILL)
    if make is cv_layer and name == "RandomRotation":
        with pytest.raises(ValueError, match="segmentation_classes"):
            through(layer)
        return
    _, mask = through(layer)
    assert mask.dtype == ("int32" if make is keras_layer else "float32")
    assert set(np.unique(mask)) == {3, 5, 7, FILL}


def test_random_crop_of_a_small_image_averages_class_ids():
    # It enlarges the picture to the crop, and the mask bilinearly with it.
    _, mask = through(keras_layer("RandomCrop", 16, 20))
    assert len(np.unique(mask)) > 20


@pytest.mark.parametrize(
    "make",
    [
        lambda: cv_layer("JitteredResize", (16, 20), (0.5, 0.5)),
        lambda: cv_layer("Resizing", 16, 16, pad_to_aspect_ratio=True),
    ],
    ids=["JitteredResize", "Resizing"],
)
def test_keras_cv_pads_masks_with_class_0(make):
    # JitteredResize is just the scaling and cropping wanted here, but for
    # this 0, which is a class.
    _, mask = through(make())
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) == {0, 3, 5, 7}


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras_layer("RandomElasticTransform", 1.0),
        lambda: keras_layer("Resizing", 16, 16, pad_to_aspect_ratio=True),
    ],
    ids=["RandomElasticTransform", "Resizing with padding"],
)
def test_keras_layers_that_fail_with_masks(make):
    with pytest.raises(TypeError):
        through(make())
