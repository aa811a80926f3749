"""Label maps as annotations: COCO and labelme, for labeling tools."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import contourpy
import numpy as np
from PIL import Image
from scipy import ndimage

from keras_aspp.data.spec import DatasetSpec
from keras_aspp.plots.labels import unpainted_classes
from keras_aspp.utils.files import write_json
from keras_aspp.utils.types import PathLike

FORMATS: tuple[str, ...] = ("coco", "labelme")
# Labelme's name for regions that do not count; the importer knows it, too.
IGNORED = "__ignore__"
# Tools become slow with thousands of specks.
MIN_AREA_PX = 16


class Component(NamedTuple):
    """Connected region of one class.

    Attributes:
        class_id: int, or the ignore label.
        mask: bool `[h, w]`, the region within its box.
        origin: `(x, y)` of the box.
    """

    class_id: int
    mask: np.ndarray
    origin: tuple[int, int]

    def outlines(self) -> list[np.ndarray]:
        """Returns outlines float64 `[N, 2]` of (x, y); several with holes.

        They pass midway between pixel centers: a tool that fills the pixels
        whose centers are inside gets the same region.
        """
        values = np.pad(self.mask, 1).astype("float64")
        lines = contourpy.contour_generator(z=values).lines(0.5)
        # Padding of 1, and centers of pixels at halves.
        return [line - 0.5 + self.origin for line in lines]


def components(
    labels: np.ndarray, spec: DatasetSpec, min_area: int = MIN_AREA_PX
) -> Iterator[Component]:
    """Yields the connected regions of the classes, background aside.

    Ignored pixels, such as unsure ones, are regions too, as whatever no region
    covers is background. Masks that overlap cannot say so.

    Args:
        labels: int `[H, W]`, or `[H, W, K]` of a multilabel task, whose
            regions overlap where classes do.
        spec: `DatasetSpec`.
        min_area: pixels; smaller regions are left out.
    """
    if spec.is_multilabel:
        # The ignore label is a value of masks, no class id.
        shown = ((i, labels[..., i] == 1) for i in range(spec.num_classes))
    else:
        left_out = unpainted_classes(spec)
        present = (i for i in np.unique(labels).tolist() if i not in left_out)
        shown = ((i, labels == i) for i in present)
    for class_id, pixels in shown:
        numbered, _ = ndimage.label(pixels)
        for number, box in enumerate(ndimage.find_objects(numbered), 1):
            mask = numbered[box] == number
            if mask.sum() >= min_area:
                rows, columns = box
                yield Component(class_id, mask, (columns.start, rows.start))


class COCOWriter:
    """Collects predictions and writes one COCO file.

    Regions with holes are stored as uncompressed run lengths, all others as
    polygons.

    Args:
        spec: `DatasetSpec`; category ids are its class ids.
        min_area: pixels; smaller regions are left out.
    """

    def __init__(self, spec: DatasetSpec, min_area: int = MIN_AREA_PX) -> None:
        self.spec, self.min_area = spec, min_area
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, name: str, labels: np.ndarray) -> None:
        """Adds the labels of an image; see `components`."""
        image_id = len(self.images) + 1
        height, width = labels.shape[:2]
        self.images.append(
            {
                "id": image_id,
                "file_name": name,
                "height": height,
                "width": width,
            }
        )
        for part in components(labels, self.spec, self.min_area):
            outlines = part.outlines()
            if len(outlines) == 1:
                segmentation = [np.round(outlines[0], 2).ravel().tolist()]
            else:
                segmentation = _run_lengths(part, (height, width))
            (left, top), (rows, columns) = part.origin, part.mask.shape
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": image_id,
                    "category_id": part.class_id,
                    "segmentation": segmentation,
                    "area": int(part.mask.sum()),
                    "bbox": [left, top, columns, rows],
                    "iscrowd": 0,
                }
            )

    def write(self, path: PathLike) -> None:
        """Writes the file."""
        names = dict(enumerate(self.spec.class_names))
        for class_id in unpainted_classes(self.spec):
            names.pop(class_id, None)
        used = {one["category_id"] for one in self.annotations}
        names |= dict.fromkeys(used - names.keys(), IGNORED)
        write_json(
            path,
            {
                "images": self.images,
                "annotations": self.annotations,
                "categories": [
                    {"id": class_id, "name": name}
                    for class_id, name in names.items()
                ],
            },
        )


def write_labelme(
    path: PathLike,
    image_path: PathLike,
    labels: np.ndarray,
    spec: DatasetSpec,
    min_area: int = MIN_AREA_PX,
) -> None:
    """Writes the labels of an image as labelme's JSON.

    Regions with holes are stored as labelme's masks, all others as polygons.

    Args:
        path: file to write.
        image_path: the image, as the file refers to it.
        labels: see `components`.
        spec: `DatasetSpec`.
        min_area: pixels; smaller regions are left out.
    """
    shapes, names = [], dict(enumerate(spec.class_names))
    for part in components(labels, spec, min_area):
        outlines = part.outlines()
        shape = {
            "label": names.get(part.class_id, IGNORED),
            "shape_type": "polygon",
            "group_id": None,
            "flags": {},
        }
        if len(outlines) == 1:
            shape["points"] = np.round(outlines[0], 2).tolist()
        else:
            shape |= _labelme_mask(part)
        shapes.append(shape)
    height, width = labels.shape[:2]
    write_json(
        path,
        {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": str(image_path),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        },
    )


def _labelme_mask(part):
    file = io.BytesIO()
    Image.fromarray(part.mask).save(file, "PNG")
    first = np.array(part.origin)
    last = first + part.mask.shape[::-1] - 1  # the last pixel, included
    return {
        "shape_type": "mask",
        "points": [first.tolist(), last.tolist()],
        "mask": base64.b64encode(file.getvalue()).decode(),
    }


def _run_lengths(part: Component, size: Sequence[int]) -> dict[str, Any]:
    """Returns COCO's uncompressed run lengths, by columns."""
    drawn = np.zeros(size, bool)
    (left, top), (rows, columns) = part.origin, part.mask.shape
    drawn[top : top + rows, left : left + columns] = part.mask
    flat = drawn.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, flat.size]).tolist()
    # They begin with zeros.
    return {
        "counts": [0, *counts] if flat[0] else counts,
        "size": [int(n) for n in size],
    }
