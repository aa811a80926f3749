"""Conversion of a folder data set to sharded records in TFDS' format."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keras_aspp.data import decode, multilabel, tiff
from keras_aspp.data.beam_io import pipeline_options
from keras_aspp.data.folder import FolderSource
from keras_aspp.data.tfds import check_split_name
from keras_aspp.utils.exceptions import (
    InputError,
    OutputExistsError,
    UnavailableError,
)
from keras_aspp.utils.text import printable
from keras_aspp.utils.types import PathLike

_VERSION = "1.0.0"


def convert_folder(
    source: FolderSource,
    output: PathLike,
    num_shards: int | None = None,
    beam_options: Sequence[str] | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda items: items,
) -> dict[str, tuple[int, int]]:
    """Writes every image and mask of a folder data set into tfrecord files.

    Upright JPEG and PNG images are stored as they are in their files, others
    as PNG, upright: whoever reads the records need know no EXIF. Masks become
    classes, label map and colormap applied, and ignore pixels without data;
    for a multilabel task, each record has a sequence of one PNG for each class.
    Both are read once, so that records hold no fault.
    TFDS puts the examples of a split in the order of their hashed names and
    spreads them over shards of 64 MB or more.

    Args:
        source: `FolderSource`.
        output: folder to make. `data.root` reads it; so does TFDS, by
            `builder_from_directory`, or by name where it is `NAME/1.0.0`.
        num_shards: int > 0, shards of each split; or `None`.
        beam_options: list of str, pipeline options of Apache Beam, which does
            the work; or `None` for this process.
        progress: wraps the list of pairs of a split, to show progress.

    Returns:
        dict, split -> `(images, shards)`.

    Raises:
        FileExistsError: there is something at `output`.
        OSError: the records cannot be written; nothing is left behind.
        ValueError: an image or mask at fault, which is named; nothing is left
            behind.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    output = Path(output).absolute()
    if output.exists():
        raise OutputExistsError(
            "The folder to convert to must not exist yet. "
            f"Received: output={str(output)!r}"
        )
    pairs = {
        split: [(image, source.masks_of(mask)) for image, mask in found]
        for split, found in source.pairs.items()
        if found
    }
    for split, found in pairs.items():
        check_split_name(split, source.root)
        if num_shards is not None and not 0 < num_shards <= len(found):
            raise InputError(
                f"`num_shards` must be in 1..{len(found)}, the images of "
                f"`{split}`. Received: num_shards={num_shards}"
            )
    source.require_pairs()
    name, version = _name_and_version(output)
    config = {"num_shards": num_shards}
    if beam_options is not None:
        config["beam_options"] = pipeline_options(beam_options)
    work = output.with_name(f".{output.name}.tmp")
    # Left by a killed run.
    shutil.rmtree(work, ignore_errors=True)
    try:
        # TFDS talks to whoever builds a data set for the public.
        with contextlib.redirect_stdout(io.StringIO()):
            builder = tfds.dataset_builders.store_as_tfds_dataset(
                name=name,
                version=version,
                features=_features(source.spec),
                split_datasets={
                    split: _examples(
                        found, source.spec, progress, beam_options is not None
                    )
                    for split, found in pairs.items()
                },
                data_dir=work,
                description=source.spec.name
                or f"Converted from {source.root}.",
                download_config=tfds.download.DownloadConfig(**config),
            )
        source.spec.to_file(builder.data_path / "dataset.json")
        os.replace(builder.data_path, output)
    except RuntimeError as error:
        # TFDS wraps what TensorFlow raises for a failed write.
        if not isinstance(error.__cause__, (OSError, tf.errors.OpError)):
            raise
        reason = str(error.__cause__).rsplit("; ", 1)[-1]
        raise UnavailableError(
            f"Records cannot be written: {reason}. "
            f"Received: output={str(output)!r}"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {
        split: (info.num_examples, info.num_shards)
        for split, info in builder.info.splits.items()
    }


def _features(spec):
    import tensorflow_datasets as tfds

    masks = tfds.features.Image(
        shape=(None, None, 1), encoding_format="png", use_colormap=True
    )
    if spec.is_multilabel:
        masks = tfds.features.Sequence(masks, length=spec.num_classes)
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "segmentation_mask": masks,
        }
    )


def _name_and_version(output):
    """Returns the TFDS name of the folder: `NAME/1.0.0`, or `NAME`."""
    folder = output
    if version := re.fullmatch(r"\d+\.\d+\.\d+", output.name):
        folder = output.parent
    name = re.sub(r"\W+", "_", folder.name, flags=re.ASCII).lower()
    name = name if re.match("[a-z]", name) else f"data_{name}"
    return name, version[0] if version else _VERSION


def _examples(pairs, spec, progress, beam):
    if not beam:
        return (_example(pair, spec) for pair in progress(pairs))
    import apache_beam

    return (
        apache_beam.Create(pairs)
        | apache_beam.Reshuffle()
        | apache_beam.Map(_example, spec)
    )


def _example(pair, spec):
    image, masks = pair
    if not spec.pixels.is_default:
        raise InputError(
            "Records hold RGB of 8 bits; train on the folder itself. "
            f"File: {image} ({spec.pixels.describe()})"
        )
    name = Path(image).stem
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(
            "Records hold names of UTF-8; rename the image and its mask. "
            f"File: {printable(image)}"
        ) from None
    content = Path(image).read_bytes()
    bands = decode.read_fitting(content, image, True, spec.pixels)
    size = bands.values.shape[:2]
    labels = multilabel.read_labels(masks, spec, size, bands.orientation)
    labels = decode.ignore_no_data(labels, bands, spec)
    suffix = Path(image).suffix.lower()
    others = (*decode.FORMATS_BY_SUFFIX, *tiff.SUFFIXES)
    if bands.orientation != 1 or suffix in others:
        file = io.BytesIO()
        Image.fromarray(bands.values).save(file, "PNG")
        content = file.getvalue()
    return name, {
        "id": name,
        "image": content,
        # For a multilabel task, classes come first: a sequence of masks.
        "segmentation_mask": np.moveaxis(labels, 2, 0)[..., None]
        if spec.is_multilabel
        else labels[..., None],
    }
