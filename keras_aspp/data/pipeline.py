"""tf.data pipelines from the records of a source to batches."""

from __future__ import annotations

from collections.abc import Iterable

from keras_aspp.data.augment import Augment, AugmentConfig
from keras_aspp.data.sources import Source
from keras_aspp.preprocess import Preprocess
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import Dataset, Size

# Limit of decoded images kept in memory, in bytes.
CACHE_BYTES = 2 * 2**30
# Window within which images of equal size are batched; also the largest number
# of images held in memory.
IMAGES_GROUPED = 256


def training_dataset(
    source: Source,
    split: str,
    augment: AugmentConfig,
    crop_size: Size,
    batch_size: int,
    preprocess: Preprocess,
    seed: int = 0,
    first_example: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Dataset:
    """Builds an infinite, reproducible data set of batches of random crops.

    Every epoch is its own shuffle, seeded by (seed, epoch), and every example
    its own augmentation, seeded by (seed, epoch, index): a resumed run sees
    what it would have seen.

    Args:
        source: `FolderSource` or `TfdsSource`.
        split: str.
        augment: `AugmentConfig`.
        crop_size: `(height, width)`, in pixels.
        batch_size: int > 0. The last, short batch of an epoch is filled from
            the next epoch.
        preprocess: `Preprocess`.
        seed: int, the run's seed.
        first_example: int >= 0, how many examples the run has seen.
        shard: `(index, count)`: of every `count` examples, the one that is
            read here; the others belong to other machines.

    Returns:
        `tf.data.Dataset` of `(float32 [B, h, w, C], int32 [B, h, w])`; labels
        of a multilabel task are uint8 `[B, h, w, K]`.

    Raises:
        InputError: images of a batch are to be mixed, and it holds one.
    """
    import tensorflow as tf

    crop = Augment(augment, crop_size, source.spec.ignore_label)
    if crop.mixes and batch_size < 2:
        raise InputError(
            "`data.augment.cutmix` and `data.augment.classmix` need batches "
            "of 2 images or more; raise `train.batch_size` or set both to 0. "
            f"Received: batch_size={batch_size} on this machine"
        )
    decode = _decoder(source)
    cached = _fits(source, split)
    # Colors are changed on the scale of 0..255.
    to_pixels, of_pixels = (lambda image: image), preprocess
    if getattr(preprocess, "input_range", None) is not None:
        to_pixels, of_pixels = preprocess.to_pixels, preprocess.of_pixels()

    def make(epoch, i, record):
        image, labels = record if cached else decode(*record)
        epoch_seed = tf.stack([tf.constant(seed, "int64"), epoch])
        own_seed = tf.random.experimental.stateless_fold_in(epoch_seed, i)
        image, labels = crop(to_pixels(image), labels, own_seed)
        return of_pixels(image), labels, own_seed

    # Layers of keras-cv and users' functions may contain an `if` of tensors.
    if not crop.layers and type(preprocess) is Preprocess:
        make = _without_autograph(make)
    return (
        _in_order(
            source, split, seed, first_example, decode if cached else None
        )
        .shard(num_shards=shard[1], index=shard[0])
        .map(make, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch_size, drop_remainder=True)
        .map(_without_autograph(crop.mix))
        .prefetch(2)
    )


def images_of_batch(
    source: Source,
    split: str,
    batch_size: int,
    seed: int,
    step: int,
) -> list[str]:
    """Returns the names of the images in a batch of `training_dataset`.

    Args:
        source: `FolderSource` or `TfdsSource`.
        split: str.
        batch_size: int > 0.
        seed: int, the run's seed.
        step: int >= 0, the batch's number since the beginning of the run.

    Returns:
        list of str.
    """
    order = _in_order(source, split, seed, step * batch_size)
    return [
        source.name_of(record)
        for _, _, record in order.take(batch_size).as_numpy_iterator()
    ]


def names_of(source: Source, split: str, numbers: Iterable[int]) -> list[str]:
    """Returns the names of the records of a split by their numbers."""
    records = source.records(split).as_numpy_iterator()
    names = {
        i: source.name_of(record)
        for i, record in enumerate(records)
        if i in numbers
    }
    return [names[i] for i in numbers]


def evaluation_dataset(
    source: Source,
    split: str,
    batch_size: int,
    numbered: bool = False,
) -> Dataset:
    """Builds a data set of every image once, batched by size.

    A short batch is filled with images of zeros whose labels are all
    `ignore_label`, up to a power of two: a size comes in few shapes, each of
    which a compiled model compiles for, and at most half of a batch is in
    vain.

    Args:
        source: `FolderSource` or `TfdsSource`.
        split: str.
        batch_size: int > 0.
        numbered: bool. With the number of each image's record.

    Returns:
        `tf.data.Dataset` of `([B, H, W, C], int32 [B, H, W])`, images in the
        type of `source.spec.pixels`, labels of a multilabel task uint8
        `[B, H, W, K]`, and int64 `[B]` if numbered, -1 for what
        fills a batch.
    """
    import tensorflow as tf

    ignore, channels = source.spec.ignore_label, source.spec.channels
    axes = source.spec.label_axes
    batch_size = min(batch_size, source.size(split))
    fills = [n for n in (2**i for i in range(31)) if n < batch_size]
    fills = tf.constant([*fills, batch_size])

    decode = _decoder(source)

    def size_key(image, labels, number):
        size = tf.cast(tf.shape(labels), "int64")
        return size[0] * 2**31 + size[1]

    def fill(image, labels, number):
        count = tf.shape(labels)[0]
        missing = tf.reduce_min(fills[fills >= count]) - count
        image = tf.pad(image, [[0, missing], [0, 0], [0, 0], [0, 0]])
        labels = tf.pad(
            labels,
            [[0, missing], [0, 0], [0, 0], *([[0, 0]] * len(axes))],
            constant_values=tf.cast(ignore, labels.dtype),
        )
        batch = (
            tf.ensure_shape(image, (None, None, None, channels)),
            tf.ensure_shape(labels, (None, None, None, *axes)),
        )
        if numbered:
            batch += (tf.pad(number, [[0, missing]], constant_values=-1),)
        return batch

    def grouped(*some):
        return (
            tf.data.Dataset.zip(some)
            .map(
                _without_autograph(
                    lambda number, record: (*decode(*record), number)
                ),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
            .group_by_window(
                _without_autograph(size_key),
                _without_autograph(lambda _, d: d.batch(batch_size)),
                batch_size,
            )
        )

    return (
        source.records(split)
        .enumerate()
        .window(IMAGES_GROUPED // batch_size * batch_size or batch_size)
        .flat_map(_without_autograph(grouped))
        .map(_without_autograph(fill))
        .prefetch(2)
    )


def _without_autograph(function):
    """Keeps AutoGraph from converting a function, which takes time.

    For functions without `if`, `for` or `while` of tensors.
    """
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)


def _in_order(source, split, seed, first_example, decode=None):
    """Yields `(epoch, index, record)` without end, reshuffled per epoch.

    With `decode`, records are decoded once, and kept.
    """
    import tensorflow as tf

    count = source.size(split)
    by_shard = hasattr(source, "shuffled") and not _fits(source, split)
    records = source.records(split).enumerate()
    if decode is not None:
        records = records.map(
            _without_autograph(lambda i, record: (i, decode(*record))),
            num_parallel_calls=tf.data.AUTOTUNE,
        ).cache()

    def epoch_of(epoch):
        # The order comes from (seed, epoch) alone, not from a global seed.
        tf.compat.v1.get_default_graph().seed = None
        own_seed = seed * 1_000_003 + epoch
        if by_shard:
            shuffled = source.shuffled(split, own_seed)
        else:
            shuffled = records.shuffle(
                count, seed=own_seed, reshuffle_each_iteration=False
            )
        return shuffled.map(
            _without_autograph(lambda i, record: (epoch, i, record))
        )

    return (
        tf.data.Dataset.range(first_example // count, 2**31)
        .flat_map(epoch_of)
        .skip(first_example % count)
    )


def _decoder(source):
    """Wraps `source.decode` for tf.data; errors name the file."""
    import tensorflow as tf

    spec, pixels = source.spec, source.spec.pixels

    def decode(*record):
        image, labels = tf.numpy_function(
            source.decode,
            record,
            (pixels.dtype, spec.label_dtype),
            stateful=False,
        )
        return (
            tf.ensure_shape(image, (None, None, pixels.channels)),
            tf.ensure_shape(labels, (None, None, *spec.label_axes)),
        )

    return decode


def _fits(source, split):
    """Returns True if the decoded split fits in memory."""
    return source.size(split) * _example_bytes(source, split) <= CACHE_BYTES


def _example_bytes(source, split):
    """Returns the bytes of the first decoded example, as an estimate."""
    record = next(source.records(split).take(1).as_numpy_iterator())
    image, labels = source.decode(*record)
    return image.nbytes + labels.nbytes
