"""Formats of annotations, and how a source's format is recognized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from keras_aspp.annotations import coco, label_images, shapes
from keras_aspp.annotations.regions import Annotations
from keras_aspp.annotations.source import SourceFiles
from keras_aspp.utils.exceptions import InputError

_READERS: dict[str, Callable[[SourceFiles, list[Path]], Annotations]] = {
    "coco": coco.read_coco,
    "labelme": shapes.read_labelme,
    "yolo": shapes.read_yolo,
    "cvat": label_images.read_cvat,
    "voc": label_images.read_voc,
    "roboflow": label_images.read_roboflow,
    "cityscapes": label_images.read_cityscapes,
    "label_studio": shapes.read_label_studio,
    "supervisely": shapes.read_supervisely,
}
FORMATS: tuple[str, ...] = tuple(_READERS)


def read_annotations(
    source: SourceFiles, annotation_format: str | None = None
) -> tuple[str, Annotations]:
    """Reads a source of any format.

    Args:
        source: `SourceFiles`.
        annotation_format: one of `FORMATS`, or `None` to recognize it.

    Returns:
        `(format, annotations)`.

    Raises:
        ValueError: no format, several, or not the one that is given.
    """
    if annotation_format not in (None, *FORMATS):
        raise InputError(
            f"`format` must be one of {', '.join(FORMATS)}. "
            f"Received: {annotation_format!r}"
        )
    found = find_formats(source)
    if annotation_format is None:
        if len(found) > 1:
            shown = ", ".join(f"{k} ({v[0].name})" for k, v in found.items())
            raise InputError(
                "The source holds annotations of several formats; choose one "
                f"by --format. Received: {shown}"
            )
        if not found:
            raise InputError(
                "No annotations of a known format "
                f"({', '.join(FORMATS)}). Received: {source.root}"
            )
        (annotation_format,) = found
    if annotation_format not in found:
        raise InputError(
            f"The source holds no annotations of format {annotation_format}. "
            f"Received: {source.root} with {', '.join(found) or 'none'}"
        )
    read = _READERS[annotation_format]
    return annotation_format, read(source, found[annotation_format])


def find_formats(source: SourceFiles) -> Mapping[str, list[Path]]:
    """Returns format -> files that show it, of all formats in a source."""
    found = {
        "cityscapes": source.ending("_gtfine_labelids.png"),
        "roboflow": source.named("_classes.csv"),
        "cvat": source.named("labelmap.txt"),
        "yolo": source.named(*shapes.YOLO_SPECS)
        or (source.named("classes.txt") and _yolo_classes(source)),
    }
    if not found["cvat"]:
        found["voc"] = [
            path
            for path in source.ending(".png")
            if path.parent.name == "SegmentationClass"
        ]
    found |= _find_json(source)
    return {name: files for name, files in found.items() if files}


def _yolo_classes(source):
    """Returns `classes.txt` if there are label files beside it."""
    others = [p for p in source.ending(".txt") if p.name != "classes.txt"]
    return source.named("classes.txt") if others else []


def _find_json(source):
    files = source.ending(".json")
    meta = [path for path in files if path.name == "meta.json"]
    if meta and any(path.parent.name == "ann" for path in files):
        return {"supervisely": meta}
    found = {"coco": [], "labelme": [], "label_studio": []}
    for path in files:
        keys = coco.top_level_keys(path) or set()
        if coco.is_coco(keys):
            found["coco"].append(path)
        elif "shapes" in keys:
            found["labelme"].append(path)
        elif "[]" in keys:
            found["label_studio"].append(path)
    return found
