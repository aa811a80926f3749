"""Readers of masks: CVAT, PASCAL VOC, Roboflow and Cityscapes."""

from __future__ import annotations

import csv
from pathlib import Path

from keras_aspp.annotations.reading import naming
from keras_aspp.annotations.regions import AnnotatedImage, Annotations
from keras_aspp.annotations.source import SourceFiles, best_of, num_equal
from keras_aspp.data.datasets.voc_segmentation import CLASS_NAMES
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.text import read_text

_IMAGES, _MASKS = "JPEGImages", "SegmentationClass"
_MAX_CLASSES, _SHOWN = 255, 60
_SPLIT_LISTS = ("ImageSets", "Segmentation")
# The palette's color of VOC's border, which is not a class.
_VOC_BORDER = (224, 224, 192)
# Cityscapes: id -> one of the 19 classes of the benchmark, by their order.
_CITYSCAPES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
_CITYSCAPES_IDS = range(-1, 34)
_CITYSCAPES_END = "_gtFine_labelIds.png"


def read_cvat(source: SourceFiles, files: list[Path]) -> Annotations:
    """Reads CVAT's "Segmentation mask": color masks and `labelmap.txt`.

    Args:
        source: `SourceFiles`.
        files: the `labelmap.txt` of each export.
    """
    return _merged(
        [_voc_layout(source, _labelmap(path), path.parent) for path in files]
    )


def _labelmap(path):
    """Reads lines of `name:r,g,b:parts:actions`."""
    colors = {}
    for line in read_text(path).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        try:
            color = tuple(int(n) for n in rest.split(":")[0].split(","))
        except ValueError:
            color = ()
        if len(color) != 3:
            raise InputError(
                "Lines must be NAME:R,G,B:PARTS:ACTIONS. "
                f"File: {path} ({line!r})"
            )
        colors[name] = color
    with naming(path):
        return _spec(list(colors), colormap=list(colors.values()))


def read_voc(source: SourceFiles, files: list[Path]) -> Annotations:
    """Reads PASCAL VOC: palette masks of the 20 classes and a border.

    Args:
        source: `SourceFiles`.
        files: the masks in `SegmentationClass`.
    """
    # Another palette is of other classes, and refused.
    spec = _spec(
        CLASS_NAMES,
        colormap=DatasetSpec(CLASS_NAMES).colors(),
        ignore_colors=[_VOC_BORDER],
    )
    roots = dict.fromkeys(path.parents[1] for path in files)
    found = _merged([_voc_layout(source, spec, root) for root in roots])
    found.notes.append(
        "the classes are those of PASCAL VOC; others need labelmap.txt beside "
        f"{_MASKS}/"
    )
    return found


def _voc_layout(source, spec, root):
    splits = {}
    for path in sorted(root.joinpath(*_SPLIT_LISTS).glob("*.txt")):
        split = source.split_of(path, by_name=True)
        # `trainval` and CVAT's `default` are not splits.
        if split is not None and path.stem != "trainval":
            names = read_text(path, 2**26).split()
            splits |= dict.fromkeys(names, split)
    found = Annotations(list(spec.class_names), [])
    masks = sorted((root / _MASKS).rglob("*.png"))
    names = [m.relative_to(root / _MASKS).with_suffix("") for m in masks]
    _pair(
        source,
        found,
        spec,
        [
            (mask, name.name, splits.get(name.as_posix()))
            for mask, name in zip(masks, names, strict=True)
        ],
        folder=root / _IMAGES,
    )
    return found


def _merged(parts):
    """Returns the annotations of several roots; classes are merged by name."""
    names = (name for part in parts for name in part.class_names)
    return Annotations(
        list(dict.fromkeys(names)),
        [image for part in parts for image in part.images],
        [note for part in parts for note in part.notes],
    )


def read_roboflow(source: SourceFiles, files: list[Path]) -> Annotations:
    """Reads Roboflow's semantic masks: `NAME_mask.png` and `_classes.csv`.

    Args:
        source: `SourceFiles`.
        files: the `_classes.csv` of each split.
    """
    values = {}
    for path in files:
        try:
            rows = list(csv.reader(read_text(path).splitlines()))
        except csv.Error as error:
            raise InputError(
                f"Not a readable table. File: {path} ({error})"
            ) from None
        for row in rows[1:]:
            try:
                value, name = int(row[0]), row[1].strip()
            except (ValueError, IndexError):
                raise InputError(
                    "Lines must be VALUE, NAME after a heading. "
                    f"File: {path} ({','.join(row)[:_SHOWN]!r})"
                ) from None
            if values.setdefault(value, name) != name:
                raise InputError(
                    f"Value {value} is {values[value]!r} in one split and "
                    f"{name!r} in another. File: {path}"
                )
    names = list(dict.fromkeys(values.values()))
    table = {value: names.index(name) for value, name in values.items()}
    with naming(files[0]):
        spec = _spec(names, label_map=table)
    found = Annotations(names, [])
    masks = source.ending("_mask.png")
    _pair(
        source,
        found,
        spec,
        [(m, m.stem.removesuffix("_mask"), source.split_of(m)) for m in masks],
    )
    return found


def read_cityscapes(source: SourceFiles, files: list[Path]) -> Annotations:
    """Reads Cityscapes' ids as the 19 classes of its benchmark.

    Args:
        source: `SourceFiles`.
        files: the masks, `*_gtFine_labelIds.png`.
    """
    names = list(_CITYSCAPES.values())
    table = {
        i % 256: names.index(_CITYSCAPES[i]) if i in _CITYSCAPES else "ignore"
        for i in _CITYSCAPES_IDS
    }
    found = Annotations(names, [])
    _pair(
        source,
        found,
        DatasetSpec(names, label_map=table),
        [
            (
                mask,
                f"{mask.name[: -len(_CITYSCAPES_END)]}_leftImg8bit",
                source.split_of(mask),
            )
            for mask in files
        ],
    )
    return found


def _spec(names, **options):
    """Returns the spec of a source's masks."""
    if len(names) > _MAX_CLASSES:
        raise InputError(
            f"masks of 8 bits hold at most {_MAX_CLASSES} classes; remove "
            f"those that no mask shows. Received: {len(names)}"
        )
    return DatasetSpec(names, **options)


def _pair(source, found, spec, masks, folder=None):
    """Adds the images of masks.

    Args:
        source: `SourceFiles`.
        found: `Annotations` to add to.
        spec: `DatasetSpec` of the masks.
        masks: list of `(mask, stem of the image, split)`.
        folder: folder whose images come before others, or `None`.
    """
    labeled = {mask for mask, *_ in masks}
    by_stem: dict[str, list[Path]] = {}
    for image in source.images():
        # Masks of instances lie in a folder of their own.
        if image not in labeled and "Segmentation" not in image.parent.name:
            by_stem.setdefault(image.stem, []).append(image)
    missing: list[str] = []
    for mask, stem, split in masks:
        # Folders of images and masks differ by their names near the root.
        images = [
            AnnotatedImage(
                image,
                split,
                label_image=mask,
                spec=spec,
                likeness=(
                    folder in image.parents,
                    image.parent == mask.parent,
                    num_equal(
                        reversed(image.parts[:-1]), reversed(mask.parts[:-1])
                    ),
                    num_equal(image.parts, mask.parts),
                ),
                name=mask.name,
            )
            for image in by_stem.get(stem, [])
        ]
        best = best_of(images, lambda image: image.likeness)
        image = source.only(best, mask.name)
        if image is None:
            missing.append(mask.name)
        else:
            found.images.append(image)
    if missing:
        found.notes.append(
            f"{len(missing)} masks have no image, first {missing[0]}"
        )
