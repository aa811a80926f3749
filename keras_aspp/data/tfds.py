"""TensorFlow Datasets with an image and a mask."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_aspp.data import decode, multilabel
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.extras import is_installed
from keras_aspp.utils.types import Dataset, PathLike, Tensor

_log = logging.getLogger(__name__)

# Name of a data set -> module of `data.datasets`.
_OURS = {
    "multiscale_shapes": "multiscale_shapes",
    "multiscale_shapes_large": "multiscale_shapes",
    "voc_segmentation": "voc_segmentation",
}
# Generated on this machine, not downloaded.
_DRAWN = ("multiscale_shapes", "multiscale_shapes_large")
# Epochs of more records are shuffled by shard and within a buffer of as many.
SHUFFLE_RECORDS = 2048
# Shards of which an epoch takes records in turn.
SHARDS_AT_ONCE = 16


class TfdsSource:
    """TFDS data set, downloaded or generated on first use.

    Args:
        name: TFDS name, e.g. `"oxford_iiit_pet"`, or one of ours
            (`"multiscale_shapes"`, `"voc_segmentation"`), or the folder that
            `keras-aspp data convert` wrote.
        spec: `DatasetSpec`; `label_map` maps the stored ids. Or `None`: the
            `dataset.json` beside the records.
        image_key: feature that holds the image.
        mask_key: feature that holds the mask; for a multilabel task, a
            sequence of masks, one for each class.
        data_dir: TFDS data directory, or `None` for TFDS' own.

    Raises:
        ValueError: unknown name or feature, no spec, the data cannot be
            had or are stored in a format that is not read.
    """

    def __init__(
        self,
        name: str,
        spec: DatasetSpec | None = None,
        image_key: str = "image",
        mask_key: str = "segmentation_mask",
        data_dir: PathLike | None = None,
    ) -> None:
        import tensorflow_datasets as tfds

        name = os.fspath(name)
        self.name: str = name
        self.image_key: str = image_key
        self.mask_key: str = mask_key
        registered = name.split("/")[0].split(":")[0]
        if registered in _OURS:
            # Importing a builder is what registers it with TFDS.
            module = _OURS[registered]
            importlib.import_module(f"keras_aspp.data.datasets.{module}")
        try:
            if is_converted(name):
                self.builder: Any = tfds.builder_from_directory(name)
            else:
                self.builder = tfds.builder(name, data_dir=data_dir or None)
        except (tfds.core.DatasetNotFoundError, ValueError) as error:
            raise InputError(
                "Unknown TFDS data set. "
                f"Received: name={name!r} ({_first_line(error)})"
            ) from None
        self._records_of_file()
        self.spec: DatasetSpec = self._own_spec() or spec
        if self.spec is None:
            raise InputError(
                "`data.class_names` must be given for a TFDS data set without "
                f"a dataset.json. Received: tfds={name!r}, class_names=None"
            )
        self._check_features()
        try:
            if registered in _DRAWN:
                _draw(self.builder)
            else:
                self.builder.download_and_prepare()
        except Exception as error:
            raise InputError(
                f"TFDS data set {name} could not be prepared "
                f"({type(error).__name__}: {_first_line(error)})"
            ) from error

    def _check_features(self):
        import tensorflow_datasets as tfds

        features = dict(self.builder.info.features)
        for key in (self.image_key, self.mask_key):
            feature, what = features.get(key), f"image `{key}`"
            if self.spec.is_multilabel and key == self.mask_key:
                what = f"sequence of masks `{key}`, one for each class"
                feature = getattr(feature, "feature", None)
            if not isinstance(feature, tfds.features.Image):
                raise InputError(
                    f"TFDS data set {self.name} has no {what}. "
                    f"Received: features={sorted(features)}"
                )

    def _records_of_file(self):
        """Returns the reader of the stored format: a function of a shard.

        Raises:
            ValueError: the format is neither tfrecord nor array_record.
        """
        # `None` before the first download, which writes tfrecord files.
        stored = self.builder.info.file_format
        name = "tfrecord" if stored is None else stored.value
        if name not in _READERS:
            raise InputError(
                f"TFDS data must be stored as {' or '.join(_READERS)}; `tfds "
                "convert_format --out_file_format=tfrecord` converts it. "
                f"Received: file_format={name!r}, name={self.name!r}"
            )
        if name == "array_record" and not is_installed("array_record"):
            raise InputError(
                "Reading array_record files needs `pip install array_record`. "
                f"Received: file_format={name!r}, name={self.name!r}"
            )
        return _READERS[name]

    def _id_key(self):
        """`["id"]` where examples have names, else `[]`."""
        import tensorflow_datasets as tfds

        feature = dict(self.builder.info.features).get("id")
        return ["id"] if isinstance(feature, tfds.features.Text) else []

    def _own_spec(self):
        path = self.builder.data_path / "dataset.json"
        return DatasetSpec.from_file(path) if path.exists() else None

    def size(self, split: str) -> int:
        """Returns the number of images of a split or slice."""
        return self._count_and_files(split)[0]

    def _count_and_files(self, split):
        """Returns `(number of images, what to read of each file)`."""
        try:
            info = self.builder.info.splits[split]
            count, files = info.num_examples, info.file_instructions
        except (KeyError, ValueError):
            raise InputError(
                f"Unknown split of {self.name}, or a name that TFDS does not "
                f"read. Received: split={split!r}, "
                f"known: {sorted(self.builder.info.splits)}"
            ) from None
        if count < 1:
            raise InputError(
                f"Split of {self.name} is empty. Received: split={split!r}"
            )
        return count, files

    def records(self, split: str) -> Dataset:
        """Returns a `tf.data.Dataset` of `(image bytes, mask bytes, name)`.

        For a multilabel task, the second is a tensor of the masks of classes.
        """
        files = self._files(split)
        return files.flat_map(self._read(split)).map(lambda _, record: record)

    def shuffled(self, split: str, seed: int | Tensor) -> Dataset:
        """Returns `(number, record)` of a split in a seeded order.

        The shards come in any order, records from several of them in turn, and
        these pass through a buffer: a file is read from its beginning to its
        end, and no more than the buffer is held. Where the buffer holds the
        split, every order is as likely as any other.

        Args:
            split: str.
            seed: int or scalar int64 tensor.

        Returns:
            `tf.data.Dataset`; `number` counts as in `records`.
        """
        import tensorflow as tf

        files = self._files(split)
        return (
            files.shuffle(len(files), seed=seed, reshuffle_each_iteration=False)
            .interleave(
                self._read(split),
                cycle_length=SHARDS_AT_ONCE,
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=True,
            )
            .shuffle(SHUFFLE_RECORDS, seed=seed, reshuffle_each_iteration=False)
        )

    def shards(self, split: str) -> list[tuple[Any, ...]]:
        """Lists `(path, skip, take, number of the first record)`."""
        found, number = [], 0
        for file in self._count_and_files(split)[1]:
            path = os.fspath(file.filename)
            found.append((path, file.skip, file.take, number))
            number += file.take
        return found

    def read_shard(self, shard: tuple[Any, ...], split: str) -> Iterator[Any]:
        """Yields the records of one of `shards`."""
        for _, record in self._read(split)(*shard).as_numpy_iterator():
            yield record

    def _files(self, split):
        import tensorflow as tf

        paths, *numbers = zip(*self.shards(split), strict=True)
        numbers = (tf.constant(n, "int64") for n in numbers)
        return tf.data.Dataset.from_tensor_slices((list(paths), *numbers))

    def _read(self, split):
        """A function, file -> `tf.data.Dataset` of `(number, record)`."""
        import tensorflow as tf

        records_of_file = self._records_of_file()
        keys = [self.image_key, self.mask_key, *self._id_key()]
        features = {key: tf.io.FixedLenFeature((), tf.string) for key in keys}
        if self.spec.is_multilabel:
            features[self.mask_key] = tf.io.RaggedFeature(tf.string)

        def record(number, serialized):
            example = tf.io.parse_single_example(serialized, features)
            image, mask, *names = (example[key] for key in keys)
            where = [
                f"{self.name} {split}, record ",
                tf.strings.as_string(number),
                *(part for name in names for part in (" (", name, ")")),
            ]
            return number, (image, mask, tf.strings.join(where))

        def read(path, skip, take, before):
            stored = records_of_file(path, skip, take)
            return stored.enumerate(before).map(record)

        return read

    def name_of(self, record: Sequence[Any]) -> str:
        """Returns the name of a record: data set, split and number."""
        return os.fsdecode(record[2])

    def decode(
        self,
        image: bytes,
        mask: bytes | Sequence[bytes],
        where: bytes = b"a record",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decodes a record to `(uint8 [H, W, 3], int32 [H, W])`.

        Labels of a multilabel task are uint8 `[H, W, K]`.
        """
        where = os.fsdecode(where)
        read_pair = decode.read_pair
        if self.spec.is_multilabel:
            read_pair = multilabel.read_pair
        pixels, labels = read_pair(
            image,
            mask,
            self.spec,
            f"{where}, {self.image_key}",
            f"{where}, {self.mask_key}",
        )
        return pixels, labels.astype(self.spec.label_dtype)


def _draw(builder):
    """Generates a data set and logs its folder.

    TFDS' own output tells of a download of unknown size.
    """
    import tensorflow_datasets as tfds

    if builder.data_path.exists():
        return
    count = sum(builder.NUM_EXAMPLES.values())
    _log.info(
        "Drawing the %s images of %s (once, about %d s) into %s ...",
        f"{count:,}",
        builder.name,
        math.ceil(count * (builder.SIDE_PX / 1280) ** 2),
        builder.data_path,
    )
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    finally:
        tfds.enable_progress_bar()


def _tfrecords(path, skip, take):
    import tensorflow as tf

    return tf.data.TFRecordDataset(path).skip(skip).take(take)


def _array_records(path, skip, take):
    """As `_tfrecords`; TensorFlow has no operator for these files."""
    import tensorflow as tf

    return tf.data.Dataset.from_generator(
        _read_array_records,
        args=(path, skip, take),
        output_signature=tf.TensorSpec((), "string"),
    )


def _read_array_records(path, skip, take):
    from array_record.python import array_record_data_source

    path = os.fsdecode(path)
    with array_record_data_source.ArrayRecordDataSource([path]) as stored:
        for number in range(skip, skip + take):
            yield stored[number]


_READERS = {"tfrecord": _tfrecords, "array_record": _array_records}


def is_converted(folder: PathLike) -> bool:
    """Returns True if a folder contains records that TFDS can read."""
    return os.path.isfile(os.path.join(folder, "dataset_info.json"))


def check_split_name(name: str, where: PathLike) -> None:
    """Raises `ValueError` for a name that TFDS does not read as a split.

    Args:
        name: name of the split.
        where: folder, for the message.
    """
    # `all` is all splits; other characters make slices and sums of splits.
    if not re.fullmatch(r"[\w-]+", name) or name == "all":
        raise InputError(
            "Splits of records must have names of letters, digits, `_` and "
            "`-`, other than `all`; rename the folders in images/ and masks/. "
            f"Received: split={name!r}, root={str(where)!r}"
        )


def _first_line(error):
    lines = str(error).strip().split(os.linesep)
    return lines[0] if lines else ""
