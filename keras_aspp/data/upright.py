"""Copies of folder data sets in which every image is stored upright."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from keras_aspp.data import decode, multilabel
from keras_aspp.data.folder import FolderSource
from keras_aspp.utils.exceptions import InputError, OutputExistsError
from keras_aspp.utils.files import replacing_folder
from keras_aspp.utils.types import PathLike


def write_upright(
    source: FolderSource,
    output: PathLike,
    progress: Callable[[list[Any]], Iterable[Any]] = lambda pairs: pairs,
) -> int:
    """Writes a copy of a data set without EXIF orientations.

    Images that carry an orientation are turned and stored as PNG, which loses
    nothing; all others are copied byte by byte. Masks become class ids; those
    of turned images ignore pixels without data. For a multilabel task, each
    class gets a folder, whatever the layout was.

    Args:
        source: `FolderSource`; its spec says which frame masks fit.
        output: folder to create.
        progress: wraps the list of pairs, to show progress.

    Returns:
        int, the number of images that were turned.

    Raises:
        FileExistsError: `output` exists.
        ValueError: an image or mask is invalid, or without its partner;
            nothing is written then.
    """
    output = Path(output)
    if output.exists():
        raise OutputExistsError(
            f"The folder exists; name another. Received: {str(output)!r}"
        )
    source.require_pairs()
    pairs = [(s, *pair) for s, found in source.pairs.items() for pair in found]
    turned = 0
    with replacing_folder(output) as work:
        for split, image, mask in progress(pairs):
            images = work / "images" / split
            images.mkdir(parents=True, exist_ok=True)
            bands = decode.read_fitting(image, None, True, source.spec.pixels)
            labels = multilabel.read_labels(
                source.masks_of(mask),
                source.spec,
                bands.values.shape[:2],
                bands.orientation,
            )
            if bands.orientation != 1:
                # PNGs of 8 bits hold no alpha and no nodata; copies do.
                labels = decode.ignore_no_data(labels, bands, source.spec)
            path = Path(image)
            _write_masks(labels, work / "masks" / split, path.stem, source.spec)
            if bands.orientation == 1:
                shutil.copyfile(path, images / path.name)
                continue
            if not source.spec.pixels.is_default:
                raise InputError(
                    "Only RGB of 8 bits is turned; store the image upright. "
                    f"File: {image}"
                )
            turned += 1
            Image.fromarray(bands.values).save(images / f"{path.stem}.png")
        source.spec.to_file(work / "dataset.json")
    return turned


def _write_masks(labels, folder, name, spec):
    """Writes labels as PNG, those of each class in a folder of its own."""
    parts = {folder: labels}
    if spec.is_multilabel:
        parts = {
            folder / class_folder: labels[..., class_id]
            for class_id, class_folder in enumerate(
                multilabel.mask_folders(spec)
            )
        }
    for place, values in parts.items():
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(place / f"{name}.png")
