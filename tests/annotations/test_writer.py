"""Predictions become annotations that other tools read as the same masks."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from keras_aspp.annotations import import_annotations
from keras_aspp.annotations.writer import (
    COCOWriter,
    components,
    write_labelme,
)
from keras_aspp.data.decode import RGB, read_mask
from keras_aspp.data.folder import FolderSource
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.inference.files import predict_files

SPEC = DatasetSpec(["background", "car", "tree"])


def blobs():
    """A disk, a ring, a diagonal of single pixels, and the image's corner."""
    y, x = np.mgrid[:60, :80]
    distance = np.hypot(y - 30, x - 25)
    labels = np.zeros((60, 80), "uint8")
    labels[distance < 20] = 1
    labels[distance < 8] = 0
    labels[np.hypot(y - 30, x - 60) < 12] = 2
    labels[:6, 70:] = 2
    labels[50:, 40:70][np.eye(10, 30, dtype=bool)] = 1
    labels[0, :3] = 255
    return labels


def test_pycocotools_reads_the_same_masks(tmp_path, capsys):
    labels = blobs()
    writer = COCOWriter(SPEC, min_area=1)
    writer.add("a.png", labels)
    writer.write(tmp_path / "p.json")
    coco = COCO(tmp_path / "p.json")
    for class_id in (1, 2):
        found = coco.loadAnns(coco.getAnnIds(catIds=[class_id]))
        union = np.any([coco.annToMask(a) for a in found], axis=0)
        wrong = union != (labels == class_id)
        # It rounds outlines on a grid of fifths of a pixel.
        assert wrong.sum() <= 0.02 * (labels == class_id).sum()
        for annotation in found:
            mask = coco.annToMask(annotation)
            assert annotation["area"] == pytest.approx(
                mask.sum(), rel=0.1, abs=1
            )
    ring = next(a for a in coco.anns.values() if "counts" in a["segmentation"])
    assert ring["area"] == ((labels == 1)[:50].sum())
    np.testing.assert_array_equal(coco.annToMask(ring)[:50], (labels == 1)[:50])


def test_regions_of_classes_that_overlap_share_pixels(tmp_path, capsys):
    spec = DatasetSpec(["cell", "nucleus"], task="multilabel")
    labels = np.zeros((40, 50, 2), "uint8")
    labels[5:30, 5:30, 0] = labels[10:20, 10:20, 1] = 1
    labels[33:, :9, 1] = 255  # ignored
    labels[2, 40, 0] = 1  # a speck
    writer = COCOWriter(spec)
    writer.add("a.png", labels)
    writer.write(tmp_path / "p.json")
    coco = COCO(tmp_path / "p.json")
    names = [one["name"] for one in coco.loadCats(coco.getCatIds())]
    assert names == ["cell", "nucleus"]
    cell, nucleus = coco.loadAnns(coco.getAnnIds())
    assert (cell["area"], nucleus["area"]) == (625, 100)
    assert cell["bbox"] == [5, 5, 25, 25]
    assert (coco.annToMask(cell) & coco.annToMask(nucleus)).sum() == 100
    write_labelme(tmp_path / "a.json", "a.png", labels, spec)
    shapes = json.loads((tmp_path / "a.json").read_text())["shapes"]
    assert [shape["label"] for shape in shapes] == names


def test_the_ignore_label_of_masks_is_no_class_id(tmp_path):
    spec = DatasetSpec(list("abcd"), ignore_label=3, task="multilabel")
    labels = np.zeros((20, 30, 4), "uint8")
    labels[2:10, 3:13, 3] = labels[12:18, 20:26, 1] = 1
    labels[15:, :9, 3] = 3  # ignored
    found = [
        (one.class_id, one.origin, one.mask.shape)
        for one in components(labels, spec)
    ]
    assert found == [(1, (20, 12), (6, 6)), (3, (3, 2), (8, 10))]


@pytest.mark.parametrize("annotation_format", ["coco", "labelme"])
def test_what_is_written_is_imported_again(annotation_format, tmp_path):
    labels = blobs()
    labels[40:55, :9] = 255  # unsure
    image = np.zeros((*labels.shape, 3), "uint8")
    Image.fromarray(image).save(tmp_path / "a.png")
    if annotation_format == "coco":
        writer = COCOWriter(SPEC, min_area=1)
        writer.add("a.png", labels)
        writer.write(tmp_path / "p.json")
    else:
        write_labelme(tmp_path / "a.json", "a.png", labels, SPEC, min_area=1)
    report = import_annotations(tmp_path, tmp_path / "out", overlap="file")
    assert report.format == annotation_format
    spec = FolderSource(tmp_path / "out").spec
    assert spec.class_names == SPEC.class_names
    (mask,) = (tmp_path / "out/masks").glob("*/a.png")
    assert (read_mask(mask, spec) != labels).mean() < 0.005


class Reader:
    """A predictor that reads labels from red."""

    pixels, spec, num_classes = RGB, SPEC, 3

    def predict_batch(self, images):
        return images[..., 0] // 100


@pytest.mark.parametrize("annotation_format", ["coco", "labelme"])
def test_images_of_one_name_are_imported_with_their_own_labels(
    annotation_format, tmp_path
):
    images = [tmp_path / f"in/{name}.png" for name in ("mon/a", "tue/a", "b")]
    for value, path in enumerate(images):
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.zeros((20, 30, 3), "uint8")
        image[3:9, 4:16, 0] = 100 * min(value + 1, 2)
        image[..., 2] = value
        Image.fromarray(image).save(path)
    predict_files(
        Reader(),
        images,
        tmp_path / "labeled",
        annotation_format=annotation_format,
    )
    if annotation_format == "coco":
        path = tmp_path / "labeled/predictions.json"
        written = json.loads(path.read_text())["images"]
        names = [image["file_name"] for image in written]
        assert names == ["mon/a.png", "tue/a.png", "b.png"]
    out = tmp_path / "out"
    import_annotations(tmp_path / "labeled", out, images=tmp_path / "in")
    found = sorted((out / "images").rglob("*.png"))
    assert len(found) == 3
    for path in found:
        image = np.array(Image.open(path))
        (mask,) = (out / "masks").rglob(path.name)
        np.testing.assert_array_equal(Image.open(mask), image[..., 0] // 100)


def test_regions_below_the_least_area_and_background_are_left_out():
    labels = blobs()
    found = [(c.class_id, int(c.mask.sum())) for c in components(labels, SPEC)]
    assert sorted(found) == [
        (1, int((labels == 1)[:50].sum())),
        (2, 60),
        (2, int((labels == 2).sum()) - 60),
    ]


def test_labelme_refers_to_the_image_and_its_size(tmp_path):
    write_labelme(tmp_path / "a.json", "../images/a.jpg", blobs(), SPEC)
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["imagePath"] == "../images/a.jpg"
    assert (content["imageHeight"], content["imageWidth"]) == (60, 80)
    assert {s["label"] for s in content["shapes"]} == {"car", "tree"}
