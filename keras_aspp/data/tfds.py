"""TensorFlow Datasets that have a picture and a mask."""

import os

from keras_aspp.data import decode

_OURS = ("multiscale_shapes",)


class TfdsSource:
    """A TFDS data set, downloaded or drawn on first use.

    Args:
        name: TFDS name, e.g. `"oxford_iiit_pet"`, or one of ours
            (`"multiscale_shapes"`).
        spec: `DatasetSpec`; `label_map` maps the stored ids.
        image_key: feature that holds the picture.
        mask_key: feature that holds the mask.
        data_dir: TFDS data directory, or `None` for TFDS' own.

    Raises:
        ValueError: unknown name or feature, or the data cannot be had.
    """

    def __init__(
        self,
        name,
        spec,
        image_key="image",
        mask_key="segmentation_mask",
        data_dir=None,
    ):
        import tensorflow_datasets as tfds

        if name.split("/")[0].split(":")[0] in _OURS:
            # Importing a builder is what registers it with TFDS.
            from keras_aspp.data.datasets import multiscale_shapes  # noqa: F401
        self.name, self.spec = name, spec
        self.image_key, self.mask_key = image_key, mask_key
        try:
            self.builder = tfds.builder(name, data_dir=data_dir or None)
        except (tfds.core.DatasetNotFoundError, ValueError) as error:
            raise ValueError(
                "Unknown TFDS data set. "
                f"Received: name={name!r} ({_first_line(error)})"
            ) from None
        features = self.builder.info.features
        for key in (image_key, mask_key):
            if not isinstance(dict(features).get(key), tfds.features.Image):
                raise ValueError(
                    f"TFDS data set {name} has no picture `{key}`. "
                    f"Received: features={sorted(features)}"
                )
        try:
            self.builder.download_and_prepare()
        except Exception as error:
            raise ValueError(
                f"TFDS data set {name} could not be prepared "
                f"({type(error).__name__}: {_first_line(error)})"
            ) from error

    def size(self, split):
        """Number of pictures of a split, TFDS' slices included."""
        try:
            count = self.builder.info.splits[split].num_examples
        except (KeyError, ValueError):
            raise ValueError(
                f"Unknown split of {self.name}. Received: split={split!r}, "
                f"known: {sorted(self.builder.info.splits)}"
            ) from None
        if count < 1:
            raise ValueError(
                f"Split of {self.name} is empty. Received: split={split!r}"
            )
        return count

    def records(self, split):
        """`tf.data.Dataset` of `(image bytes, mask bytes, what to call it)`."""
        import tensorflow as tf
        import tensorflow_datasets as tfds

        self.size(split)
        keys = (self.image_key, self.mask_key)
        skip = tfds.decode.SkipDecoding()
        dataset = self.builder.as_dataset(
            split=split,
            decoders=tfds.decode.PartialDecoding(
                dict.fromkeys(keys, True), dict.fromkeys(keys, skip)
            ),
        )

        def record(number, features):
            where = tf.strings.join(
                [f"{self.name} {split}, record ", tf.strings.as_string(number)]
            )
            return (*(features[key] for key in keys), where)

        return dataset.enumerate().map(record)

    def name_of(self, record):
        """What to call a record: data set, split and number."""
        return os.fsdecode(record[2])

    def decode(self, image, mask, where=b"a record"):
        """A record -> `(uint8 [H, W, 3], int32 [H, W])`, on the host."""
        where = os.fsdecode(where)
        picture = decode.read_image(image, name=f"{where}, {self.image_key}")
        labels = decode.read_mask(
            mask, self.spec, picture.shape[:2], f"{where}, {self.mask_key}"
        )
        return picture, labels.astype("int32")


def _first_line(error):
    lines = str(error).strip().split(os.linesep)
    return lines[0] if lines else ""
