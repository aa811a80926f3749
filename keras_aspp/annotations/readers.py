"""Formats of annotations, and how a source's format is recognized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from keras_aspp.annotations import coco, cvat_xml, label_images, shapes
from keras_aspp.annotations.json_stream import top_level_keys
from keras_aspp.annotations.reading import note_missing
from keras_aspp.annotations.regions import AnnotatedImage, Annotations
from keras_aspp.annotations.source import SourceFiles
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.text import num_of

_READERS: dict[str, Callable[[SourceFiles, list[Path]], Annotations]] = {
    "coco": coco.read_coco,
    "labelme": shapes.read_labelme,
    "yolo": shapes.read_yolo,
    "cvat": label_images.read_cvat,
    "cvat_xml": cvat_xml.read_cvat_xml,
    "voc": label_images.read_voc,
    "roboflow": label_images.read_roboflow,
    "cityscapes": label_images.read_cityscapes,
    "label_studio": shapes.read_label_studio,
    "supervisely": shapes.read_supervisely,
}
FORMATS: tuple[str, ...] = tuple(_READERS)
# Formats that state no names of images.
_OF_MASKS = ("cvat", "voc", "roboflow", "cityscapes")


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
    found, notes = find_formats(source)
    if annotation_format is None:
        if len(found) > 1:
            shown = ", ".join(f"{k} ({v[0].name})" for k, v in found.items())
            raise InputError(
                "The source holds annotations of several formats; choose one "
                f"by --format. Received: {shown}"
            )
        if not found:
            raise InputError(
                f"No annotations of a known format ({', '.join(FORMATS)}). "
                f"Received: {'; '.join([str(source.name), *notes])}"
            )
        (annotation_format,) = found
    if annotation_format not in found:
        raise InputError(
            f"The source holds no annotations of format {annotation_format}. "
            f"Received: {source.name} with {', '.join(found) or 'none'}"
        )
    annotations = _READERS[annotation_format](source, found[annotation_format])
    annotations.notes[:0] = notes + [
        f"left out {source.relative(folder)}/, which an earlier import wrote"
        for folder in source.imported
    ]
    _note_ambiguous(source, annotations, annotation_format)
    _note_unused(source, annotations)
    _settle_repeats(annotations)
    return annotation_format, annotations


def _settle_repeats(annotations):
    """Leaves each image file once, since each becomes one image.

    A file goes to the annotations whose name for it fits best; those of
    another file of the same name, which is absent, have none. Annotations
    that fit as well are of one image, and are merged.
    """
    by_path: dict[Path, list[AnnotatedImage]] = {}
    for image in annotations.images:
        by_path.setdefault(image.path, []).append(image)
    missing, merged = [], []
    for path, claims in by_path.items():
        likeness = max(image.likeness for image in claims)
        missing += [c.name for c in claims if c.likeness < likeness]
        best, *others = (c for c in claims if c.likeness == likeness)
        for other in others:
            if (other.size, other.label_image) != (best.size, best.label_image):
                raise InputError(
                    "Annotations of one image must be of one size, or one "
                    f"mask. File: {path} ({best.size} or {best.label_image}, "
                    f"{other.size} or {other.label_image})"
                )
            best.regions += other.regions
            merged.append(path.name)
        by_path[path] = [best]
    annotations.images = [image for (image,) in by_path.values()]
    note_missing(annotations, missing)
    if merged:
        annotations.notes.append(
            f"{len(merged)} images are annotated more than once, and their "
            f"regions were merged, first {merged[0]}"
        )


def _note_ambiguous(source, annotations, annotation_format):
    """Notes the names of images that fit several files."""
    if source.ambiguous:
        name, paths = next(iter(source.ambiguous.items()))
        advice = "choose by --images DIR"
        if annotation_format not in _OF_MASKS:
            advice += ", or by the folder in the name"
        shown = " and ".join(str(source.relative(path)) for path in paths[:2])
        annotations.notes.append(
            f"{num_of(len(source.ambiguous), 'name')} of images fit several "
            "files equally well and count as annotations without an image; "
            f"{advice}, first {name}: {shown}"
        )


def _note_unused(source, annotations):
    """Notes the images that no annotation names."""
    used = {image.path for image in annotations.images}
    masks = {image.label_image for image in annotations.images}
    # Other masks of the same images: of instances, or in color.
    folders = {mask.parent for mask in masks if mask is not None}
    folders -= {path.parent for path in used}
    others = [
        path
        for path in source.images()
        if path not in used | masks
        and path.parent not in folders
        and not path.parent.name.startswith("Segmentation")
    ]
    if others:
        annotations.notes.append(
            f"left out {num_of(len(others), 'image')} without annotations, "
            f"first {others[0].name}"
        )


def find_formats(
    source: SourceFiles,
) -> tuple[dict[str, list[Path]], list[str]]:
    """Recognizes the formats of a source by its files.

    Returns:
        `(found, notes)`: format -> files that show it; a message for each
        JSON file that cannot be read, or holds no masks.
    """
    found = {
        "cityscapes": source.ending("_gtfine_labelids.png"),
        "roboflow": source.named("_classes.csv"),
        "cvat": source.named("labelmap.txt"),
        "yolo": source.named(*shapes.YOLO_SPECS) + _yolo_classes(source),
    }
    # PASCAL VOC has an XML per image, in a folder of this name.
    found["cvat_xml"] = [
        path
        for path in source.ending(".xml")
        if path.parent.name != "Annotations" and cvat_xml.is_cvat_xml(path)
    ]
    described = {path.parent for path in found["cvat"]}
    found["voc"] = [
        path
        for path in source.ending(".png")
        if path.parent.name == "SegmentationClass"
        and path.parents[1] not in described
    ]
    in_json, notes = _find_json(source)
    found |= in_json
    return {name: files for name, files in found.items() if files}, notes


def _yolo_classes(source):
    """Returns `classes.txt` if there are label files beside it."""
    others = [p for p in source.ending(".txt") if p.name != "classes.txt"]
    return source.named("classes.txt") if others else []


def _find_json(source):
    files = source.ending(".json")
    meta = [path for path in files if path.name == "meta.json"]
    if meta and any(path.parent.name == "ann" for path in files):
        return {"supervisely": meta}, []
    notes, coco_keys = [], {}
    found = {"labelme": [], "label_studio": []}
    for path in files:
        try:
            keys = top_level_keys(path)
        except InputError as error:
            notes.append(str(error))
            continue
        if coco.is_coco(keys):
            coco_keys[path] = keys
        elif "shapes" in keys:
            found["labelme"].append(path)
        elif "[].data" in keys:
            found["label_studio"].append(path)
    found["coco"], left_out = coco.choose_instances(coco_keys)
    return found, notes + left_out
