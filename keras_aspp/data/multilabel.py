"""Masks of a multilabel task: one for each class, which may overlap.

Shape legend: H x W pixels, K classes.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from keras_aspp.data import decode, tiff
from keras_aspp.data.decode import StoredMask
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.data.tiff import Bands
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.text import printable
from keras_aspp.utils.types import Size

ARRAY_SUFFIX = ".npy"
# Files with the mask of one class, and with those of all.
ONE_MASK = (".png", *tiff.SUFFIXES)
ALL_MASKS = (ARRAY_SUFFIX, *tiff.SUFFIXES)


@dataclasses.dataclass(frozen=True)
class StoredMasks:
    """Stored values of the masks of an image.

    Attributes:
        parts: for each class, name of the mask and its `StoredMask`, `None`
            without a file: the class is absent.
    """

    parts: tuple[tuple[str, StoredMask | None], ...]

    def labels(self, spec: DatasetSpec, size: Size) -> np.ndarray:
        """Converts the values to labels.

        Args:
            spec: `DatasetSpec` of the task.
            size: `(height, width)` of the image.

        Returns:
            uint8 `[H, W, K]`: 0, 1 or `ignore_label`.

        Raises:
            ValueError: names the file and the values at fault.
        """
        found = np.zeros((*size, len(self.parts)), "uint8")
        one = spec.of_one_mask()
        for class_id, (name, stored) in enumerate(self.parts):
            if stored is not None:
                found[..., class_id] = stored.labels(one, size, name)
        return found


def read_stored_masks(
    masks: str | Sequence[str | bytes | None],
    spec: DatasetSpec,
    image_orientation: int = 1,
    name: str | None = None,
) -> StoredMasks:
    """Reads the masks of an image.

    Args:
        masks: one path, or the bytes of a PNG, for each class, `None` where it
            is absent; or the path of a TIFF of one page or band for each
            class, or of an array `[H, W, K]` (`.npy`).
        spec: `DatasetSpec`.
        image_orientation: EXIF orientation of the image; see
            `decode.read_mask`.
        name: name of the masks for messages; defaults to their paths.

    Raises:
        ValueError: names the file and what is wrong with it.
    """
    if isinstance(masks, str):
        bands = _read_all(masks, spec)
        orientation = bands.orientation
        if spec.mask_orientation == "image":
            orientation = image_orientation
        bands = decode.turn_bands(bands, orientation)
        values, valid = bands.values, bands.valid
        return StoredMasks(
            tuple(
                (
                    f"{masks} (mask {class_id + 1}, {name})",
                    StoredMask(
                        values[..., class_id],
                        valid=valid if valid is None else valid[..., class_id],
                        orientation=orientation,
                    ),
                )
                for class_id, name in enumerate(spec.class_names)
            )
        )
    if len(masks) != spec.num_classes:
        raise InputError(
            f"An image must have a mask for each of the {spec.num_classes} "
            f"`class_names`. File: {name or 'masks'} ({len(masks)} masks)"
        )
    one = spec.of_one_mask()
    names = masks
    if name is not None or any(isinstance(mask, bytes) for mask in masks):
        whole = name or "masks"
        names = [f"{whole} ({class_name})" for class_name in spec.class_names]
    return StoredMasks(
        tuple(
            (
                str(called),
                None
                if mask is None
                else decode.read_stored(mask, one, called, image_orientation),
            )
            for called, mask in zip(names, masks, strict=True)
        )
    )


def read_labels(
    masks: str | Sequence[str | None],
    spec: DatasetSpec,
    size: Size,
    image_orientation: int = 1,
) -> np.ndarray:
    """Reads the labels of an image, of any task.

    Args:
        masks: path of the mask; of a multilabel task, see
            `read_stored_masks`.
        spec: `DatasetSpec`.
        size: `(height, width)` of the image.
        image_orientation: EXIF orientation of the image; see
            `decode.read_mask`.

    Returns:
        uint8 `[H, W]`, or `[H, W, K]` of a multilabel task.
    """
    if not spec.is_multilabel:
        return decode.read_mask(
            masks, spec, size, image_orientation=image_orientation
        )
    return read_stored_masks(masks, spec, image_orientation).labels(spec, size)


def read_pair(
    image: str | bytes,
    masks: str | Sequence[str | bytes | None],
    spec: DatasetSpec,
    image_name: str | None = None,
    mask_name: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads an image and its labels, both upright.

    Args:
        image: path or bytes of the image.
        masks: see `read_stored_masks`.
        spec: `DatasetSpec`.
        image_name: name for messages; defaults to the path.
        mask_name: name for messages; defaults to the paths.

    Returns:
        `(array [H, W, C], uint8 [H, W, K])`; where the image has no data,
        labels are `ignore_label`.
    """
    bands = decode.read_fitting(image, image_name, True, spec.pixels)
    stored = read_stored_masks(masks, spec, bands.orientation, mask_name)
    labels = stored.labels(spec, bands.values.shape[:2])
    return bands.values, decode.ignore_no_data(labels, bands, spec)


def mask_folders(spec: DatasetSpec) -> list[str]:
    """Returns a name for the folder of the masks of each class.

    It is the name of the class, without what paths give a meaning: names come
    with a model. Names that differ only in case differ by a number, too: some
    disks hold them for one.
    """
    safe = [
        re.sub(r'[\\/:*?"<>|]', "_", name).strip(". ")
        for name in spec.class_names
    ]
    found, taken = {}, {""}
    # A name that is a folder's already is not given to another class.
    for class_id, name in sorted(
        enumerate(safe), key=lambda pair: pair[1] != spec.class_names[pair[0]]
    ):
        numbers = itertools.count(class_id)
        unique = name
        while unique.casefold() in taken or (
            unique != spec.class_names[class_id] and unique in spec.class_names
        ):
            unique = f"{name}_{next(numbers)}"
        taken.add(unique.casefold())
        found[class_id] = unique
    return [found[class_id] for class_id in range(len(safe))]


def find_class_masks(
    folders: Sequence[Path],
    spec: DatasetSpec,
    listed: Callable[[Path], list[Path]],
) -> tuple[dict[str, tuple[str | None, ...]], list[str]]:
    """Finds the masks in a folder for each class.

    Args:
        folders: folders named by classes, or as `mask_folders` has it.
        spec: `DatasetSpec`.
        listed: function that lists the files of a folder.

    Returns:
        `(masks, messages)`: name of the image -> one path for each class, or
        `None`; one line for each file or folder that does not fit.
    """
    messages, found = [], {}
    ids = {name: i for i, name in enumerate(mask_folders(spec))}
    ids.update((name, i) for i, name in enumerate(spec.class_names))
    for folder in folders:
        if folder.name not in ids:
            messages.append(
                "Masks of no class: the folder must be named as one of "
                f"`class_names` in dataset.json. Folder: {folder}"
            )
            continue
        class_id = ids[folder.name]
        for path in listed(folder):
            if path.suffix.lower() not in ONE_MASK:
                messages.append(
                    "A class's mask must be a PNG or a TIFF of one band. "
                    f"File: {path}"
                )
                continue
            masks = found.setdefault(path.stem, [None] * spec.num_classes)
            if masks[class_id] is not None:
                messages.append(
                    f"Two files of one name. Files: {masks[class_id]}, {path}"
                )
            masks[class_id] = str(path)
    return {name: tuple(masks) for name, masks in found.items()}, messages


def _read_all(path, spec):
    """Returns `Bands`, uint8 `[H, W, K]`, of one file."""
    if tiff.is_tiff(path):
        bands = tiff.read_pages(
            path, printable(path), decode.MAX_PIXELS, spec.num_classes
        )
    elif path.lower().endswith(ARRAY_SUFFIX):
        bands = Bands(_read_array(path))
    else:
        raise InputError(
            "The masks of a multilabel task must be a folder for each class, "
            "or a TIFF or .npy file with a page or channel for each class. "
            f"File: {printable(path)}"
        )
    values = bands.values
    if values.ndim != 3 or values.shape[-1] != spec.num_classes:
        raise InputError(
            f"A file of masks must hold one for each of the "
            f"{spec.num_classes} `class_names`, [height, width, classes]. "
            f"File: {printable(path)} (shape {values.shape})"
        )
    if values.dtype not in (np.uint8, np.bool_):
        raise InputError(
            f"Masks must be uint8. File: {printable(path)} ({values.dtype})"
        )
    return dataclasses.replace(bands, values=values.astype("uint8"))


def _read_array(path):
    try:
        # Mapped, so that the header's size is checked before it is read.
        values = np.lib.format.open_memmap(path, mode="r")
        height, width, *_ = values.shape
    except (ValueError, OSError, EOFError) as error:
        raise InputError(
            f"Not a readable .npy. File: {printable(path)} "
            f"({' '.join(str(error).split())[:200]})"
        ) from None
    if height * width > decode.MAX_PIXELS or values.nbytes > tiff.MAX_BYTES:
        raise InputError(
            f"Images must have at most {decode.MAX_PIXELS} pixels. File: "
            f"{printable(path)} (shape {values.shape})"
        )
    return np.array(values)
