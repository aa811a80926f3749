import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_aspp.data import pipeline
from keras_aspp.data.augment import FILL, AugmentConfig
from keras_aspp.data.folder import FolderSource
from keras_aspp.data.pipeline import evaluation_dataset, training_dataset
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.preprocess import Preprocess

COUNT = 7  # divisible by no batch size below
AS_IT_IS = AugmentConfig((1.0, 1.0), False, 0.0, 0.0, 0.0, 0.0)


def raw(image):
    return image


class Pictures:
    """A source in memory: picture `i` is `10 i` everywhere, or noise."""

    spec = DatasetSpec(["ground", "box"], ignore_label=200)

    def __init__(self, sizes=((8, 12),) * COUNT, noise=False):
        self.sizes, self.noise, self.decoded = sizes, noise, []

    def size(self, split):
        return len(self.sizes)

    def records(self, split):
        numbers = [str(i) for i in range(len(self.sizes))]
        return tf.data.Dataset.from_tensor_slices((numbers, numbers))

    def decode(self, image, mask):
        number = int(image)
        self.decoded.append(number)
        rng = np.random.default_rng(number)
        picture = np.full((*self.sizes[number], 3), 10 * number, "uint8")
        if self.noise:
            picture = rng.integers(0, 256, picture.shape).astype("uint8")
        labels = rng.integers(0, 2, self.sizes[number]).astype("int32")
        return picture, labels


def training(source, batch_size=3, augment=AS_IT_IS, **kwargs):
    kwargs = {"crop_size": (8, 12), "preprocess": raw, **kwargs}
    return training_dataset(
        source, "train", augment, batch_size=batch_size, **kwargs
    )


def batches(count, **kwargs):
    source = Pictures(noise=True)
    dataset = training(source, augment=AugmentConfig(), **kwargs)
    return [
        (images.numpy(), labels.numpy())
        for images, labels in dataset.take(count)
    ]


@pytest.fixture(scope="module")
def whole():
    """The first batches of a run."""
    return batches(8)


def assert_same(one, other):
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def differ(one, other):
    return [bool(np.any(a[0] != b[0])) for a, b in zip(one, other, strict=True)]


def order(dataset, examples):
    """Numbers of the pictures, in the order of training."""
    seen = []
    for images, _ in dataset:
        seen += np.rint(images.numpy()[:, 0, 0, 0] / 10).astype(int).tolist()
        if len(seen) >= examples:
            return seen[:examples]


# Training.


def test_batches():
    images, labels = next(iter(training(Pictures(), batch_size=4)))
    assert images.shape == (4, 8, 12, 3)
    assert images.dtype == tf.float32
    assert labels.shape == (4, 8, 12)
    assert labels.dtype == tf.int32
    static = training(Pictures(), batch_size=4).element_spec[0].shape
    assert static == (4, 8, 12, 3)  # XLA compiles once


def test_pictures_keep_their_labels():
    source = Pictures()
    for images, labels in training(source).take(4):
        for image, mask in zip(images.numpy(), labels.numpy(), strict=True):
            number = str(round(image[0, 0, 0] / 10))
            expected, expected_mask = source.decode(number, number)
            np.testing.assert_array_equal(image, expected)
            np.testing.assert_array_equal(mask, expected_mask)


def test_preprocess_is_applied_after_the_augmentation():
    scaled = Preprocess((0.0, 1.0), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    config = {"crop_size": (10, 14), "batch_size": COUNT}
    plain = next(iter(training(Pictures(), **config)))[0].numpy()
    ours = next(iter(training(Pictures(), **config, preprocess=scaled)))[0]
    expected = (plain / 255 - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    # Grey is put outside of the picture before, not zeros after.
    assert np.all(plain[:, 0, 0] == FILL)


def as_floats(image):
    if tf.reduce_max(image) > 1:  # what AutoGraph makes a part of the graph
        image = image / 255
    return image


class AsFloats(Preprocess):
    def __call__(self, images):
        return as_floats(images)


@pytest.mark.parametrize("preprocess", [as_floats, AsFloats()])
def test_own_preprocessing_may_branch_on_tensors(preprocess):
    dataset = training(Pictures(), preprocess=preprocess)
    found = {image.numpy().max() for image, _ in dataset.unbatch().take(COUNT)}
    expected = [10 * number / 255 for number in range(COUNT)]
    np.testing.assert_allclose(sorted(found), expected, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [2, 5])
def test_each_epoch_sees_each_example_once(batch_size):
    seen = order(training(Pictures(), batch_size), 4 * COUNT)
    epochs = np.reshape(seen, (4, COUNT))
    np.testing.assert_array_equal(np.sort(epochs), [range(COUNT)] * 4)
    # Another order in every epoch.
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_same_seed_same_batches(whole):
    assert_same(batches(6), whole[:6])
    assert all(differ(whole[:2], batches(2, seed=1)))


@pytest.mark.parametrize("seed", [2**31 - 1, -5])
def test_any_seed(seed):
    assert_same(batches(2, seed=seed), batches(2, seed=seed))


@pytest.mark.parametrize(
    "set_seed", [keras.utils.set_random_seed, tf.random.set_seed]
)
def test_global_seed_does_not_matter(whole, set_seed):
    set_seed(1)
    # Nor do draws.
    tf.random.uniform((3,))
    keras.random.uniform((3,))
    assert_same(batches(3), whole[:3])


@pytest.mark.parametrize("first", [1, 2, 5])
def test_resumed_run_sees_what_it_would_have_seen(whole, first):
    """In the first epoch, across its end and in the next one."""
    resumed = batches(7 - first, first_example=3 * first)
    assert_same(resumed, whole[first:7])


def test_resume_from_within_a_batch():
    seen = order(training(Pictures()), 3 * COUNT)
    later = order(training(Pictures(), first_example=10), 3 * COUNT - 10)
    assert later == seen[10:]


@pytest.mark.slow
def test_resumed_run_sees_the_mixed_batches_that_it_would_have_seen():
    mixing = AugmentConfig(cutmix=0.5, classmix=0.5, rare_class_crops=0.5)

    def some(count, augment=mixing, **kwargs):
        dataset = training(Pictures(noise=True), augment=augment, **kwargs)
        return [
            tuple(part.numpy() for part in batch)
            for batch in dataset.take(count)
        ]

    whole = some(4)
    assert_same(some(2, first_example=6), whole[2:])
    assert differ(some(4, AugmentConfig())[0], whole[0])


def test_a_batch_of_one_cannot_be_mixed():
    with pytest.raises(ValueError, match="Received: batch_size=1 on this"):
        training(Pictures(), 1, AugmentConfig(classmix=0.5))


def test_augmentation_of_an_example_differs_between_epochs():
    source = Pictures(sizes=((40, 40),), noise=True)
    config = AugmentConfig((1.0, 1.0), False, 0.0, 0.0, 0.0, 0.0)
    crops = [
        images.numpy() for images, _ in training(source, 1, config).take(5)
    ]
    assert len({crop.tobytes() for crop in crops}) == 5


def test_augmentation_differs_between_examples_of_one_epoch():
    bright = AugmentConfig((1.0, 1.0), False, 0.05, 0.0, 0.0, 0.0)
    ((images, _),) = training(Pictures(), COUNT, bright).take(1)
    ((plain, _),) = training(Pictures(), COUNT).take(1)
    images, plain = images.numpy()[:, 0, 0, 0], plain.numpy()[:, 0, 0, 0]
    # Pictures 0 and 1 are so dark that they may be clipped.
    shifts = (images - plain)[plain > 15]
    assert len(np.unique(np.round(shifts, 3))) == COUNT - 2


def test_small_sets_are_decoded_once():
    source = Pictures()
    order(training(source), 4 * COUNT)
    # One more to estimate the size.
    assert sorted(source.decoded) == sorted([0, *range(COUNT)])


def test_large_sets_are_not_kept_and_give_the_same_batches(monkeypatch):
    kept = batches(5)
    monkeypatch.setattr(pipeline, "CACHE_BYTES", 0)
    assert_same(batches(5), kept)
    source = Pictures()
    order(training(source), 4 * COUNT)
    assert len(source.decoded) > 3 * COUNT


def test_pictures_of_different_sizes_make_one_batch():
    source = Pictures(((8, 12), (30, 7), (64, 90)))
    (images, labels), *_ = training(source, 3).take(1)
    assert images.shape == (3, 8, 12, 3)
    assert 200 in labels.numpy()  # beside the narrow one


def broken_folder(root):
    for part in ("images", "masks"):
        (root / part / "train").mkdir(parents=True)
    Image.new("RGB", (12, 8)).save(root / "images/train/a.png")
    Image.new("L", (12, 8), 77).save(root / "masks/train/a.png")
    return FolderSource(root, DatasetSpec(["ground", "box"]))


@pytest.mark.parametrize("cached", [True, False])
def test_bad_label_names_the_file_in_training(tmp_path, monkeypatch, cached):
    source = broken_folder(tmp_path)
    if not cached:
        monkeypatch.setattr(pipeline, "CACHE_BYTES", 0)
    monkeypatch.setattr(pipeline, "_example_bytes", lambda *_: 1)
    with pytest.raises(
        tf.errors.OpError, match=r"value 77 .* File: .*masks/train/a.png"
    ):
        next(iter(training(source, 1)))


def test_bad_label_names_the_file_in_evaluation(tmp_path):
    with pytest.raises(
        tf.errors.OpError, match=r"value 77 .* File: .*masks/train/a.png"
    ):
        list(evaluation_dataset(broken_folder(tmp_path), "train", 1))


# Evaluation.

SIZES = ((8, 12), (9, 5), (8, 12), (8, 12), (9, 5), (12, 8), (8, 12), (8, 12))


def test_every_picture_once_at_its_own_size():
    source = Pictures(SIZES, noise=True)
    expected = {
        (image.tobytes(), labels.tobytes())
        for image, labels in (source.decode(str(i), "") for i in range(8))
    }
    seen, shapes = [], []
    for images, labels in evaluation_dataset(source, "val", 2):
        assert images.dtype == tf.uint8
        assert labels.dtype == tf.int32
        shapes.append(images.shape)
        for image, mask in zip(images.numpy(), labels.numpy(), strict=True):
            if (mask != 200).any():
                seen.append((image.tobytes(), mask.tobytes()))
    assert len(seen) == 8
    assert set(seen) == expected
    # One size a batch, and few shapes a size.
    assert sorted(map(tuple, shapes)) == [
        (1, 8, 12, 3),
        (1, 12, 8, 3),
        (2, 8, 12, 3),
        (2, 8, 12, 3),
        (2, 9, 5, 3),
    ]


def test_short_batch_is_filled_with_ignored_pictures():
    filled = []
    sizes = (*SIZES, (9, 5))
    for images, labels in evaluation_dataset(Pictures(sizes), "val", 7):
        for image, mask in zip(images.numpy(), labels.numpy(), strict=True):
            if (mask == 200).all():
                filled.append(mask.shape)
                assert not image.any()
    # 5 + 2 (no batch is larger than 7), 3 + 1 and 1 + 0.
    assert sorted(filled) == [(8, 12)] * 2 + [(9, 5)]


def test_batch_is_not_larger_than_the_split():
    ((images, labels),) = evaluation_dataset(Pictures(), "val", 100)
    assert images.shape == (COUNT, 8, 12, 3)
    assert (labels.numpy() != 200).any(axis=(1, 2)).all()


def test_evaluation_is_the_same_every_time():
    dataset = evaluation_dataset(Pictures(SIZES, noise=True), "val", 2)
    once, again = ([(x.numpy(), y.numpy()) for x, y in dataset] for _ in "ab")
    assert_same(once, again)
