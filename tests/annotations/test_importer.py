"""Annotations of every format become masks with known pixels."""

import base64
import io
import json
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_run import tiny_config, toy_model

from keras_aspp.annotations import FORMATS, import_annotations
from keras_aspp.annotations.readers import read_annotations
from keras_aspp.annotations.source import SourceFiles
from keras_aspp.cli.main import main
from keras_aspp.config.load import dump_config
from keras_aspp.config.schema import AugmentConfig, TrainConfig
from keras_aspp.data.datasets.voc_segmentation import CLASS_NAMES
from keras_aspp.data.decode import read_mask
from keras_aspp.data.folder import FolderSource, check_folder
from keras_aspp.data.groups import place_of
from keras_aspp.data.pipeline import training_dataset
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.engine.compile import compile_model
from keras_aspp.inference import Predictor
from keras_aspp.models.saving import save_model

HEIGHT, WIDTH = 24, 32
# What every sample below draws: a car, and a tree that covers a part of it.
CAR = (slice(4, 12), slice(6, 20))
TREE = (slice(8, 12), slice(16, 24))


def expected(car=1, tree=2):
    labels = np.zeros((HEIGHT, WIDTH), "uint8")
    labels[CAR] = car
    labels[TREE] = tree
    return labels


def corners(rows, columns):
    left, right = columns.start, columns.stop
    top, bottom = rows.start, rows.stop
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def write_image(path, size=(HEIGHT, WIDTH), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), "uint8")
    Image.fromarray(pixels).save(path, **options)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def coco(root, *, names=("a.png",), **changes):
    """Car as polygon, tree as compressed run lengths by pycocotools."""
    tree = np.zeros((HEIGHT, WIDTH), "uint8", order="F")
    tree[TREE] = 1
    packed = coco_mask.encode(tree)
    packed["counts"] = packed["counts"].decode()
    content = {
        "info": {},
        "images": [
            {"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH}
            for i, name in enumerate(names)
        ],
        "annotations": [
            {
                "id": 10 * i + category,
                "image_id": i,
                "category_id": category,
                "segmentation": segmentation,
            }
            for i in range(len(names))
            for category, segmentation in (
                (9, packed),
                (7, [sum(corners(*CAR), [])]),
            )
        ],
        "categories": [{"id": 7, "name": "car"}, {"id": 9, "name": "tree"}],
    }
    for path, value in changes.items():
        content["annotations"][0][path] = value
    for name in names:
        write_image(root / "images" / name)
    write_json(root / "annotations" / "all.json", content)
    return content


def labelme(root):
    write_image(root / "a.png")
    content = {
        "imagePath": "a.png",
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        "shapes": [
            {"label": "car", "points": corners(*CAR), "shape_type": "polygon"},
            {
                "label": "tree",
                "points": corners(*TREE)[::2],
                "shape_type": "rectangle",
            },
            {"label": "car", "points": [[1, 1]], "shape_type": "point"},
        ],
    }
    write_json(root / "a.json", content)


def yolo(root):
    write_image(root / "train/images/a.png")
    lines = [
        " ".join(
            map(
                repr,
                [
                    class_id,
                    *(np.array(corners(*box)) / (WIDTH, HEIGHT))
                    .ravel()
                    .tolist(),
                ],
            )
        )
        for class_id, box in enumerate((CAR, TREE))
    ]
    (root / "train/labels").mkdir()
    (root / "train/labels/a.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text("names: [car, tree]\nnc: 2\n")


COLORS = {"background": (0, 0, 0), "car": (250, 50, 83), "tree": (0, 140, 20)}


def cvat(root):
    write_image(root / "JPEGImages/a.png")
    masks = root / "SegmentationClass"
    masks.mkdir()
    colors = np.array(list(COLORS.values()), "uint8")[expected()]
    Image.fromarray(colors).save(masks / "a.png")
    (root / "SegmentationObject").mkdir()
    Image.fromarray(colors).save(root / "SegmentationObject/a.png")
    lines = [f"{k}:{','.join(map(str, v))}::" for k, v in COLORS.items()]
    (root / "labelmap.txt").write_text(
        "\n".join(["# label:color_rgb:parts:actions", *lines])
    )


def cvat_xml(root, order_of_car=0, counts="0, 32"):
    """Car as polygon, tree as run lengths in rows of a box, and a point."""
    write_image(root / "images/a.png")
    car = ";".join(f"{x}.00,{y}.00" for x, y in corners(*CAR))
    (root / "annotations.xml").write_text(
        "<annotations><version>1.1</version><meta><task><labels>"
        "<label><name>car</name></label><label><name>tree</name></label>"
        "</labels></task></meta>"
        f'<image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">'
        f'<polygon label="car" points="{car}" z_order="{order_of_car}">'
        '<attribute name="color">red</attribute></polygon>'
        f'<mask label="tree" rle="{counts}" left="16" top="8" width="8" '
        'height="4" z_order="3"></mask>'
        '<points label="car" points="1.0,1.0" z_order="0"></points>'
        "</image></annotations>"
    )


def voc(root):
    """Car and potted plant by their indices, with the border around them."""
    write_image(root / "JPEGImages/a.jpg")
    (root / "SegmentationClass").mkdir()
    mask = Image.fromarray(expected(7, 16))
    colors = DatasetSpec(CLASS_NAMES).colors()
    mask.putpalette(sum(colors, ()) + (224, 224, 192) * (256 - len(colors)))
    mask.save(root / "SegmentationClass/a.png")
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("a\n")
    (lists / "train.txt").write_text("a\n")


def roboflow(root):
    write_image(root / "train/a.jpg")
    Image.fromarray(expected(3, 5)).save(root / "train/a_mask.png")
    (root / "train/_classes.csv").write_text(
        "Pixel Value, Class\n0, background\n3, car\n5, tree\n"
    )


def cityscapes(root):
    write_image(root / "leftImg8bit/train/x/x_0_leftImg8bit.png")
    path = root / "gtFine/train/x/x_0_gtFine_labelIds.png"
    path.parent.mkdir(parents=True)
    labels = expected(26, 21)
    labels[0] = 3  # out of region of interest, ignored
    Image.fromarray(labels).save(path)


def brush(mask):
    """Label Studio's run lengths, one run of equal values at a time."""
    values = np.repeat(mask.ravel().astype("uint8") * 255, 4)
    bits = f"{values.size:032b}{7:05b}" + f"{15:04b}" * 4
    ends = np.flatnonzero(np.diff(values)) + 1
    for run in np.split(values, ends):
        for start in range(0, run.size, 2**16):
            part = run[start : start + 2**16]
            bits += f"1{0:02b}{part.size - 1:016b}{int(part[0]):08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def label_studio(root):
    write_image(root / "images/a.png")
    drawn = np.zeros((HEIGHT, WIDTH), bool)
    drawn[TREE] = True
    size = {"original_height": HEIGHT, "original_width": WIDTH}
    car = np.array(corners(*CAR)) / (WIDTH, HEIGHT) * 100
    results = [
        {
            "type": "brushlabels",
            "value": {"rle": brush(drawn), "brushlabels": ["tree"]},
            **size,
        },
        {
            "type": "polygonlabels",
            "value": {"points": car.tolist(), "polygonlabels": ["car"]},
            **size,
        },
        {"type": "choices", "value": {"choices": ["day"]}, **size},
    ]
    task = {
        "id": 1,
        "data": {"image": "/data/upload/1/0f3a99c4-a.png"},
        "annotations": [
            {"was_cancelled": True, "result": []},
            {"result": results},
        ],
    }
    write_json(root / "project.json", [task])


def supervisely(root):
    write_image(root / "ds/img/a.png")
    write_json(
        root / "meta.json", {"classes": [{"title": "car"}, {"title": "tree"}]}
    )
    file = io.BytesIO()
    Image.fromarray(np.full((4, 8), 255, "uint8")).save(file, "PNG")
    packed = base64.b64encode(zlib.compress(file.getvalue())).decode()
    objects = [
        {
            "classTitle": "car",
            "geometryType": "polygon",
            "points": {"exterior": corners(*CAR), "interior": []},
        },
        {
            "classTitle": "tree",
            "geometryType": "bitmap",
            "bitmap": {"data": packed, "origin": [16, 8]},
        },
    ]
    size = {"height": HEIGHT, "width": WIDTH}
    write_json(root / "ds/ann/a.png.json", {"size": size, "objects": objects})


SAMPLES = {
    "coco": coco,
    "labelme": labelme,
    "yolo": yolo,
    "cvat": cvat,
    "cvat_xml": cvat_xml,
    "voc": voc,
    "roboflow": roboflow,
    "cityscapes": cityscapes,
    "label_studio": label_studio,
    "supervisely": supervisely,
}


def labels_of(folder, name="a"):
    source = FolderSource(folder)
    (path,) = (folder / "masks").glob(f"*/{name}.png")
    return read_mask(path, source.spec), source.spec


@pytest.mark.parametrize("annotation_format", FORMATS)
def test_each_format_is_recognized_and_drawn(annotation_format, tmp_path):
    SAMPLES[annotation_format](tmp_path / "source")
    report = import_annotations(tmp_path / "source", tmp_path / "out")
    assert report.format == annotation_format
    name = "x_0_leftImg8bit" if annotation_format == "cityscapes" else "a"
    labels, spec = labels_of(tmp_path / "out", name)
    names = [*spec.class_names, *["-"] * 255, "ignore"]
    labels = labels.astype(int)
    found = np.array(names)[np.where(labels == 255, len(names) - 1, labels)]
    drawn = expected()
    tree = {"voc": "pottedplant", "cityscapes": "vegetation"}
    assert (found[drawn == 1] == "car").all()
    tree = tree.get(annotation_format, "tree")
    assert (found[drawn == 2] == tree).all(), np.unique(found[drawn == 2])
    rest = found[drawn == 0]
    if annotation_format == "cityscapes":
        assert (rest == "ignore").all()
        assert spec.num_classes == 19
    else:
        assert (rest == "background").all()
    check = check_folder(FolderSource(tmp_path / "out"))
    assert check.problems == []


def test_images_are_copied_byte_by_byte(tmp_path):
    voc(tmp_path / "source")
    import_annotations(tmp_path / "source", tmp_path / "out")
    copy = (tmp_path / "out/images/train/a.jpg").read_bytes()
    assert copy == (tmp_path / "source/JPEGImages/a.jpg").read_bytes()


@pytest.mark.parametrize("overlap, on_top", [("area", 2), ("file", 1)])
def test_overlap_decides_which_region_is_on_top_and_is_counted(
    overlap, on_top, tmp_path
):
    coco(tmp_path / "source")  # the smaller tree comes first in the file
    report = import_annotations(
        tmp_path / "source", tmp_path / "out", overlap=overlap
    )
    labels, _ = labels_of(tmp_path / "out")
    shared = labels[8:12, 16:20]
    assert (shared == on_top).all()
    assert report.overlaps == shared.size == 16
    assert any("16 pixels of 1 image " in note for note in report.notes)


def test_the_z_order_of_the_tool_decides_if_it_has_one(tmp_path):
    shared = []
    for order in (0, 5):  # that of the tree is 3
        cvat_xml(tmp_path / f"{order}", order_of_car=order)
        out = tmp_path / f"out_{order}"
        import_annotations(tmp_path / f"{order}", out, overlap="z_order")
        shared.append(np.unique(labels_of(out)[0][8:12, 16:20]).tolist())
    assert shared == [[2], [1]]
    coco(tmp_path / "coco")
    message = refused(tmp_path / "coco", tmp_path, overlap="z_order")
    assert "state no z-order" in message
    coco(tmp_path / "coco", attributes={"z_order": 7})  # of the tree
    import_annotations(tmp_path / "coco", tmp_path / "out", overlap="z_order")
    assert (labels_of(tmp_path / "out")[0][8:12, 16:20] == 2).all()


def test_cvat_masks_are_run_lengths_in_rows(tmp_path):
    cvat_xml(tmp_path / "source", counts="2, 5, 3, 22")
    import_annotations(tmp_path / "source", tmp_path / "out")
    box = labels_of(tmp_path / "out")[0][TREE] == 2
    assert box.ravel().tolist() == [False] * 2 + [True] * 5 + [False] * 3 + (
        [True] * 22
    )
    for counts in ("0, 33", "-1, 33", "0, x", "9" * 30):
        cvat_xml(tmp_path / "source", counts=counts)
        assert "image 'a.png'" in refused(tmp_path / "source", tmp_path)


def test_a_crowd_is_ignored_and_hides_nothing(tmp_path):
    coco(tmp_path / "source", iscrowd=1)
    report = import_annotations(tmp_path / "source", tmp_path / "out")
    labels, _ = labels_of(tmp_path / "out")
    np.testing.assert_array_equal(labels[CAR], 1)
    assert (labels[8:12, 20:24] == 255).all()
    assert report.overlaps == 0


def test_classes_are_merged_ignored_and_dropped(tmp_path):
    coco(tmp_path / "source")
    results = {}
    for new in ("vegetation", "ignore", "drop", "car"):
        import_annotations(
            tmp_path / "source", tmp_path / new, class_map={"tree": new}
        )
        labels, spec = labels_of(tmp_path / new)
        results[new] = labels[10, 22], labels[10, 18], spec.class_names
    assert results == {
        "vegetation": (2, 2, ("background", "car", "vegetation")),
        "ignore": (255, 255, ("background", "car")),
        "drop": (0, 1, ("background", "car")),
        "car": (1, 1, ("background", "car")),
    }


@pytest.mark.parametrize("overlap", ["area", "file"])
@pytest.mark.parametrize("label", ["__ignore__", "void"])
def test_ignored_shapes_of_labelme_hide_what_they_cover(
    label, overlap, tmp_path
):
    labelme(tmp_path / "source")  # the smaller tree comes last
    path = tmp_path / "source/a.json"
    path.write_text(path.read_text().replace('"tree"', f'"{label}"'))
    import_annotations(tmp_path / "source", tmp_path / "out", overlap=overlap)
    labels, spec = labels_of(tmp_path / "out")
    np.testing.assert_array_equal(labels, expected(1, 255))
    assert spec.class_names == ("background", "car")


def test_regions_of_label_studio_without_a_label_hide_nothing(tmp_path):
    root = tmp_path / "source"
    label_studio(root)
    tasks = json.loads((root / "project.json").read_text())
    del tasks[0]["annotations"][1]["result"][0]["value"]["brushlabels"]
    write_json(root / "project.json", tasks)
    import_annotations(root, tmp_path / "out")
    drawn = expected(1, 255)
    drawn[CAR] = 1
    np.testing.assert_array_equal(labels_of(tmp_path / "out")[0], drawn)


def test_a_class_named_as_a_keyword_is_a_class(tmp_path):
    content = coco(tmp_path / "source")
    content["categories"][1]["name"] = "drop"
    write_json(tmp_path / "source/annotations/all.json", content)
    import_annotations(tmp_path / "source", tmp_path / "out")
    labels, spec = labels_of(tmp_path / "out")
    assert spec.class_names == ("background", "car", "drop")
    np.testing.assert_array_equal(labels, expected())
    for background in ("drop", "ignore"):
        out = tmp_path / background
        import_annotations(
            *(tmp_path / "source", out),
            background=background,
            class_map={"drop": "drop"},
        )
        labels, spec = labels_of(out)
        assert spec.class_names == (background, "car")
        drawn = np.zeros_like(labels)
        drawn[CAR] = 1
        np.testing.assert_array_equal(labels, drawn)


def test_an_uncompressed_mask_equals_the_compressed_one(tmp_path):
    coco(tmp_path / "a")
    tree = np.zeros((HEIGHT, WIDTH), bool)
    tree[TREE] = True
    flat = tree.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = [len(run) for run in np.split(flat, ends)]
    segmentation = {"counts": counts, "size": [HEIGHT, WIDTH]}
    coco(tmp_path / "b", segmentation=segmentation)
    for name in "ab":
        import_annotations(tmp_path / name, tmp_path / f"out_{name}")
    np.testing.assert_array_equal(
        labels_of(tmp_path / "out_a")[0], labels_of(tmp_path / "out_b")[0]
    )


# label_studio_sdk.converter.brush.mask2rle of version 2.1.2, for the tree
# without the pixels (10, 18) and (9, 20).
BRUSH = [
    *(0, 0, 12, 0, 57, 27, 255, 4, 63, 0, 195, 255, 249, 124, 2, 255, 252),
    *(96, 22, 255, 242, 248, 4, 255, 241, 128, 97, 63, 252, 190, 1, 135, 255),
    *(248, 48, 248, 0),
]


def test_brush_strokes_are_decoded_as_label_studio_encodes_them(tmp_path):
    root = tmp_path / "source"
    label_studio(root)
    tasks = json.loads((root / "project.json").read_text())
    results = tasks[0]["annotations"][1]["result"]
    results[0]["value"]["rle"] = BRUSH
    write_json(root / "project.json", tasks)
    import_annotations(root, tmp_path / "out")
    labels, _ = labels_of(tmp_path / "out")
    drawn = expected()
    drawn[10, 18] = 1  # the car below
    drawn[9, 20] = 0
    np.testing.assert_array_equal(labels, drawn)


@pytest.mark.parametrize("frame", ["upright", "stored"])
def test_masks_are_upright_whichever_frame_the_annotations_fit(frame, tmp_path):
    root = tmp_path / "source"
    content = coco(root)
    exif = Image.Exif()
    exif[0x0112] = 6  # upright after a turn to the right
    write_image(root / "images/a.png", (HEIGHT, WIDTH), exif=exif)
    if frame == "upright":
        content["images"][0] |= {"height": WIDTH, "width": HEIGHT}
        content["annotations"] = content["annotations"][1:]
        write_json(root / "annotations/all.json", content)
    import_annotations(root, tmp_path / "out")
    labels, _ = labels_of(tmp_path / "out")
    if frame == "stored":
        np.testing.assert_array_equal(labels, np.rot90(expected(), -1))
    else:
        drawn = np.zeros((WIDTH, HEIGHT), "uint8")
        drawn[CAR] = 1
        np.testing.assert_array_equal(labels, drawn)


@pytest.mark.parametrize("frame", ["upright", "stored"])
@pytest.mark.parametrize("name", ["coco", "cvat"])
def test_a_stated_size_is_not_overruled_by_a_flag(name, frame, tmp_path):
    root = tmp_path / "source"
    SAMPLES[name](root)
    exif = Image.Exif()
    exif[0x0112] = 6
    (image,) = root.rglob("*mages/a.png")
    # Upright, the second one has the size that the annotations state.
    size = (HEIGHT, WIDTH) if frame == "stored" else (WIDTH, HEIGHT)
    write_image(image, size, exif=exif)
    drawn = expected() if frame == "upright" else np.rot90(expected(), -1)
    for given in ("auto", frame):
        import_annotations(root, tmp_path / given, exif=given)
        np.testing.assert_array_equal(labels_of(tmp_path / given)[0], drawn)
    other = {"upright": "stored", "stored": "upright"}[frame]
    message = refused(root, tmp_path, exif=other)
    assert f"are for {HEIGHT}x{WIDTH}, which is the {frame} image" in message
    assert f"Received: --exif {other}. File: {image}" in message


@pytest.mark.parametrize("exif", ["auto", "upright", "stored"])
def test_the_flag_decides_where_no_size_does(exif, tmp_path):
    yolo(tmp_path / "yolo")  # states no size
    coco(tmp_path / "coco")
    tag = Image.Exif()
    for name, orientation in (("yolo", 6), ("coco", 3)):
        tag[0x0112] = orientation
        (image,) = (tmp_path / name).rglob("a.png")
        write_image(image, (HEIGHT, WIDTH), exif=tag)
        out = tmp_path / f"out_{name}"
        import_annotations(tmp_path / name, out, exif=exif)
    half_turn = labels_of(tmp_path / "out_coco")[0]
    turn = labels_of(tmp_path / "out_yolo")[0]
    if exif == "stored":
        np.testing.assert_array_equal(half_turn, np.rot90(expected(), 2))
        np.testing.assert_array_equal(turn, np.rot90(expected(), -1))
    else:
        np.testing.assert_array_equal(half_turn, expected())
        assert turn.shape == (WIDTH, HEIGHT)
        assert turn[7:15, 6:14].all()  # relative to the upright image


def test_frames_of_one_video_stay_in_one_split(tmp_path):
    names = [f"v{i}_{j}.png" for i in range(8) for j in range(3)]
    coco(tmp_path / "source", names=names)
    report = import_annotations(
        tmp_path / "source",
        tmp_path / "out",
        group_by="v[0-9]+",
        validation_fraction=0.25,
        test_fraction=0.25,
    )
    assert sum(report.num_images.values()) == 24
    videos = {
        split: {p.name[:2] for p in (tmp_path / "out/images" / split).iterdir()}
        for split in ("train", "val", "test")
    }
    assert all(videos.values())
    assert sum(map(len, videos.values())) == 8


def test_the_sources_own_splits_are_kept(tmp_path):
    root = tmp_path / "source"
    coco(root, names=("a.png",))
    content = (root / "annotations/all.json").read_text()
    for split, image in (("train", "a"), ("val", "b")):
        write_image(root / f"{split}2017/{image}.png")
        path = root / f"annotations/instances_{split}2017.json"
        path.write_text(content.replace("a.png", f"{image}.png"))
    (root / "annotations/all.json").unlink()
    report = import_annotations(root, tmp_path / "out")
    assert report.num_images == {"train": 1, "val": 1}
    assert (tmp_path / "out/masks/val/b.png").exists()


def split_layout(root, *images):
    """COCO with an image a.png in each split, all cars or all trees."""
    content = coco(root)
    car = content["annotations"][1] | {"category_id": 7}
    for split, category in (("train", 7), ("val", 9)):
        content["annotations"] = [car | {"category_id": category}]
        write_json(root / f"annotations/instances_{split}.json", content)
    (root / "annotations/all.json").unlink()
    (root / "images/a.png").unlink()
    for seed, image in enumerate(images):
        write_image(root / image)
        pixels = np.full((HEIGHT, WIDTH, 3), seed, "uint8")
        Image.fromarray(pixels).save(root / image)


def first_pixels(out):
    """Returns split -> gray level of the image, and label of the car."""
    found = {}
    for path in (out / "masks").rglob("*.png"):
        with Image.open(path) as mask:
            label = np.array(mask)[CAR][0, 0]
        split = path.parent.name
        with Image.open(out / "images" / split / path.name) as image:
            found[split] = (np.array(image)[0, 0, 0], label)
    return found


def test_each_split_labels_its_own_file_of_a_name(tmp_path):
    split_layout(tmp_path / "source", "train/a.png", "val/a.png")
    report = import_annotations(tmp_path / "source", tmp_path / "out")
    assert first_pixels(tmp_path / "out") == {"train": (0, 1), "val": (1, 2)}
    assert report.notes == ["the splits are the source's own, train, val"]


def test_no_split_labels_the_file_of_another(tmp_path):
    root = tmp_path / "source"
    split_layout(root, "train/a.png", "val/b.png")
    (root / "annotations/instances_train.json").unlink()
    message = refused(root, tmp_path)
    assert "1 images of instances_val.json have no file" in message


def test_a_name_that_fits_several_files_is_left_out_and_counted(tmp_path):
    coco(tmp_path / "coco", names=("a.png", "b.png"))
    labelme(tmp_path / "labelme")
    label_studio(tmp_path / "label_studio")
    path = tmp_path / "label_studio/project.json"
    path.write_text(path.read_text().replace("0f3a99c4-a.png", "a.png"))
    voc(tmp_path / "voc")
    for name in ("coco", "labelme", "label_studio", "voc"):
        root = tmp_path / name
        for path in root.rglob("a.*g"):
            if "Segmentation" not in path.parent.name:
                path.unlink()
        for folder in "xy":
            write_image(root / folder / "a.png")
        if name == "coco":
            # Copies are one image.
            import_annotations(root, tmp_path / "copies")
            assert len([*(tmp_path / "copies").rglob("a.png")]) == 2
        pixels = np.zeros((HEIGHT, WIDTH, 3), "uint8")
        Image.fromarray(pixels).save(root / "y/a.png")
        if name == "coco":
            notes = import_annotations(root, tmp_path / "out").notes
            assert not [*(tmp_path / "out").rglob("a.png")]
            assert any("1 images of all.json have no file" in n for n in notes)
            (message,) = [n for n in notes if "fit several" in n]
        else:
            message = refused(root, tmp_path)
        assert "1 name of images fit several files equally well" in message
        assert "a.png: x/a.png and y/a.png" in message
        assert ("by the folder in the name" in message) == (name != "voc")
        import_annotations(root, tmp_path / f"{name}_x", images=root / "x")
        with Image.open(next(tmp_path.glob(f"{name}_x/images/*/a.png"))) as a:
            assert np.array(a).any()


@pytest.mark.parametrize("name", ["cvat", "voc"])
def test_masks_of_voc_belong_to_its_image_folder(name, tmp_path):
    root = tmp_path / "source"
    SAMPLES[name](root)
    (image,) = (root / "JPEGImages").iterdir()
    (root / "overlay").mkdir()
    pixels = np.zeros((HEIGHT, WIDTH, 3), "uint8")
    Image.fromarray(pixels).save(root / "overlay" / image.name)
    import_annotations(root, tmp_path / "out")
    (copy,) = (tmp_path / "out").rglob(f"images/*/{image.name}")
    assert copy.read_bytes() == image.read_bytes()


def test_masks_of_voc_have_no_image_of_another_root(tmp_path):
    root = tmp_path / "source"
    for name in ("first", "second"):
        voc(root / name)
    (root / "second/JPEGImages").rename(root / "second/photos")
    pixels = np.zeros((HEIGHT, WIDTH, 3), "uint8")
    Image.fromarray(pixels).save(root / "second/photos/a.jpg")
    report = import_annotations(root, tmp_path / "out")
    assert sum(report.num_images.values()) == 2
    copies = [p.read_bytes() for p in (tmp_path / "out").rglob("images/*/*")]
    images = [p.read_bytes() for p in root.rglob("*.jpg")]
    assert sorted(copies) == sorted(images)


@pytest.mark.parametrize(
    ("address", "fits"), [("night-a.png", False), ("0f3a99c4-a.png", True)]
)
def test_only_the_prefix_of_label_studio_is_left_out(address, fits, tmp_path):
    root = tmp_path / "source"
    label_studio(root)
    tasks = json.loads((root / "project.json").read_text())
    tasks[0]["data"]["image"] = f"/data/upload/1/{address}"
    write_json(root / "project.json", tasks)
    if fits:
        import_annotations(root, tmp_path / "out")
        found = labels_of(tmp_path / "out")[0]
        np.testing.assert_array_equal(found, expected())
    else:
        message = refused(root, tmp_path)
        assert "no image, first /data/upload/1/night-a.png" in message


def beside(root, name):
    """Two sources of a format in one; the second one's image is b.png."""
    SAMPLES[name](root / "first")
    SAMPLES[name](root / "second")
    for path in sorted((root / "second").rglob("a.*")):
        path.rename(path.with_name(path.name.replace("a.", "b.", 1)))


@pytest.mark.parametrize("name", ["yolo", "cvat", "voc", "supervisely"])
def test_several_roots_are_read_each_by_its_own_classes(name, tmp_path):
    root = tmp_path / "source"
    beside(root, name)
    trees = 16 if name == "voc" else 2
    cars = 7 if name == "voc" else 1
    drawn = {"a": expected(cars, trees), "b": expected(cars, trees)}
    if name == "yolo":
        (root / "second/data.yaml").write_text("names: [tree, car]\n")
        drawn["b"] = expected(2, 1)  # the label files are the same
    elif name == "cvat":
        # Trees have the color of cars, and pixels without a color are cars.
        colors = zip(("car", "tree", "bush"), COLORS.values(), strict=True)
        lines = [f"{k}:{','.join(map(str, v))}::" for k, v in colors]
        (root / "second/labelmap.txt").write_text("\n".join(lines))
        drawn["b"] = np.choose(expected(), [1, 2, 3])
    elif name == "supervisely":
        for path in (root / "second").rglob("*.json"):
            path.write_text(path.read_text().replace("tree", "bush"))
        drawn["b"] = expected(1, 3)
    report = import_annotations(root, tmp_path / "out")
    assert sum(report.num_images.values()) == 2
    assert not any("without annotations" in note for note in report.notes)
    for image, labels in drawn.items():
        found, spec = labels_of(tmp_path / "out", image)
        np.testing.assert_array_equal(found, labels)
    names = ("background", "car", "tree", "bush")
    names = {"yolo": names[:3], "voc": tuple(CLASS_NAMES)}.get(name, names)
    assert spec.class_names == names


def test_class_files_of_several_yolo_roots_lie_with_their_labels(tmp_path):
    root = tmp_path / "source"
    beside(root, "yolo")
    path = root / "second/data.yaml"
    path.rename(root / "second/train/images/data.yaml")
    import_annotations(root, tmp_path / "out")  # the same names
    path = root / "second/train/images/data.yaml"
    path.write_text("names: [tree, car]")
    message = refused(root, tmp_path)
    assert "must lie in the folders of their labels" in message
    assert f"File: {root}/second/train/labels/b.txt" in message
    assert f"{root}/first/data.yaml, {path}" in message


def test_labels_without_a_yaml_above_them_are_read_by_their_classes_txt(
    tmp_path,
):
    root = tmp_path / "source"
    beside(root, "yolo")
    (root / "second/data.yaml").unlink()
    (root / "second/classes.txt").write_text("tree\ncar\n")
    # LabelImg writes one, which need not agree; it is not for other labels.
    (root / "first/train/labels/classes.txt").write_text("dog\nperson\n")
    report = import_annotations(root, tmp_path / "out")
    assert report.spec.class_names == ("background", "car", "tree")
    for image, labels in {"a": expected(1, 2), "b": expected(2, 1)}.items():
        found, _ = labels_of(tmp_path / "out", image)
        np.testing.assert_array_equal(found, labels)
    note = "1 label file without data.yaml in a folder above: read by "
    assert f"{note}second/classes.txt" in report.notes


def test_a_yaml_beside_no_labels_names_their_classes(tmp_path):
    root = tmp_path / "source"
    yolo(root)
    (root / "settings").mkdir()
    (root / "data.yaml").rename(root / "settings/data.yaml")
    (root / "other").mkdir()
    (root / "other/classes.txt").write_bytes(b"\xff")  # of no label, not read
    report = import_annotations(root, tmp_path / "out")
    assert report.spec.class_names == ("background", "car", "tree")
    np.testing.assert_array_equal(labels_of(tmp_path / "out")[0], expected())


def test_masks_without_a_labelmap_beside_others_need_a_choice(tmp_path):
    cvat(tmp_path / "source/first")
    voc(tmp_path / "source/second")
    message = refused(tmp_path / "source", tmp_path)
    assert "cvat (labelmap.txt), voc (a.png)" in message


def test_a_zip_is_imported_as_its_folder(tmp_path):
    cvat(tmp_path / "source")
    import_annotations(zipped(tmp_path / "source"), tmp_path / "out")
    labels, _ = labels_of(tmp_path / "out")
    np.testing.assert_array_equal(labels, expected())


def test_images_may_be_in_another_folder(tmp_path):
    for name in ("coco", "labelme", "yolo"):
        SAMPLES[name](tmp_path / name)
        (image,) = (tmp_path / name).rglob("a.png")
        target = (
            tmp_path / f"images_{name}" / image.relative_to(tmp_path / name)
        )
        target.parent.mkdir(parents=True)
        image.rename(target)
        import_annotations(
            tmp_path / name,
            tmp_path / f"out_{name}",
            images=tmp_path / f"images_{name}",
        )
        labels, _ = labels_of(tmp_path / f"out_{name}")
        np.testing.assert_array_equal(labels, expected())
    message = refused(tmp_path / "coco", tmp_path, images=tmp_path / "none")
    assert "`images` must be a folder" in message


@pytest.mark.parametrize(
    ("label", "image"),
    [
        ("labels/a.txt", "a.png"),
        ("labels/train/a.txt", "train/a.png"),
        ("a.txt", "images/a.png"),
        ("train/labels/a.txt", "images/train/a.png"),
    ],
)
@pytest.mark.parametrize("within", [False, True])
def test_labels_of_yolo_fit_images_in_a_folder_of_their_own(
    within, label, image, tmp_path
):
    root = tmp_path / "source"
    yolo(root)
    text = (root / "train/labels/a.txt").read_text()
    (root / "train/labels/a.txt").unlink()
    (root / "train/images/a.png").unlink()
    (root / label).parent.mkdir(parents=True, exist_ok=True)
    (root / label).write_text(text)
    images = root / "photos" if within else tmp_path / "photos"
    write_image(images / image)
    import_annotations(root, tmp_path / "out", images=images)
    np.testing.assert_array_equal(labels_of(tmp_path / "out")[0], expected())


def test_labels_of_yolo_that_fit_no_image_make_no_background(tmp_path):
    root = tmp_path / "source"
    yolo(root)
    write_image(tmp_path / "photos/other/a.png")
    message = refused(root, tmp_path, images=tmp_path / "photos")
    assert "1 annotations have no image, first a.txt" in message
    # One label file is not for two images.
    for image in ("photos/images/train/a.png", "photos/train/a.png"):
        write_image(tmp_path / "two" / image)
    images = tmp_path / "two/photos"
    message = refused(root, tmp_path, images=images)
    assert "1 annotations have no image, first a.txt" in message
    (images / "images/train/a.png").unlink()
    import_annotations(root, tmp_path / "out", images=images)


def test_tasks_that_nobody_annotated_are_no_background(tmp_path):
    root = tmp_path / "source"
    label_studio(root)
    (task,) = json.loads((root / "project.json").read_text())
    kept = []
    for name, annotations in (
        ("canceled", [{"was_cancelled": True, "result": []}]),
        ("none", []),
        ("empty", [{"result": []}]),
    ):
        write_image(root / f"images/{name}.png")
        data = {"image": f"{name}.png"}
        kept.append(task | {"data": data, "annotations": annotations})
    write_json(root / "project.json", [task, *kept])
    report = import_annotations(root, tmp_path / "out")
    names = {p.name for p in (tmp_path / "out/images").glob("*/*")}
    assert names == {"a.png", "empty.png"}
    (note,) = [n for n in report.notes if "without annotations" in n]
    assert "left out 2 images" in note


def refused(source, tmp_path, **arguments):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        import_annotations(source, tmp_path / "refused", **arguments)
    assert not (tmp_path / "refused").exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_class_id_is_named(tmp_path):
    coco(tmp_path / "a", category_id=77)
    assert "category_id 77" in refused(tmp_path / "a", tmp_path)
    yolo(tmp_path / "b")
    label = tmp_path / "b/train/labels/a.txt"
    label.write_text("5 0 0 1 0 1 1")
    message = refused(tmp_path / "b", tmp_path)
    assert "class 5 is not among the 2 names" in message
    assert "a.txt, line 1" in message


def test_two_formats_in_one_source_need_a_choice(tmp_path):
    coco(tmp_path / "source")
    yolo(tmp_path / "source")
    message = refused(tmp_path / "source", tmp_path)
    assert "yolo (data.yaml), coco (all.json)" in message
    assert "--format" in message
    report = import_annotations(
        tmp_path / "source", tmp_path / "out", annotation_format="yolo"
    )
    assert report.format == "yolo"


def test_polygons_outside_their_image_are_left_out_and_named(tmp_path):
    far = [[400, 0, 410, 0, 410, 10]]
    for segmentation in (far, [[1e9, 0, 1, 1, 2, 2]], [[40, 2, 50, 2, 50, 9]]):
        coco(tmp_path / "source", segmentation=segmentation)
        report = import_annotations(
            tmp_path / "source", tmp_path / "out", overwrite=True
        )
        (note,) = [n for n in report.notes if "left out 1 region" in n]
        assert "outside its image of 24x32" in note


def test_a_polygon_that_crosses_the_border_is_clipped(tmp_path):
    coco(tmp_path / "source", segmentation=[[28, 20, 40, 20, 40, 30, 28, 30]])
    import_annotations(tmp_path / "source", tmp_path / "out")
    labels, _ = labels_of(tmp_path / "out")
    assert (labels[20:, 28:] == 2).all()
    assert (labels == 2).sum() == 4 * 4


def test_annotations_without_image_are_counted(tmp_path):
    root = tmp_path / "source"
    coco(root, names=("a.png", "b.png"))
    (root / "images/b.png").unlink()
    report = import_annotations(root, tmp_path / "out")
    assert any("1 images of all.json have no file" in n for n in report.notes)
    (root / "images/a.png").unlink()
    message = refused(root, tmp_path)
    assert "no image with annotations" in message
    assert "2 images of all.json have no file, first a.png" in message


def test_images_without_annotations_are_counted(tmp_path):
    for name in ("coco", "labelme", "cityscapes", "roboflow"):
        root = tmp_path / name
        SAMPLES[name](root)
        folder = "leftImg8bit/train/x" if name == "cityscapes" else "train"
        write_image(root / folder / "more.png")
        report = import_annotations(root, tmp_path / f"out_{name}")
        (note,) = [n for n in report.notes if "without annotations" in n]
        assert "1 image " in note and "more.png" in note
    yolo(tmp_path / "yolo")
    write_image(tmp_path / "yolo/train/images/more.png")
    report = import_annotations(tmp_path / "yolo", tmp_path / "out")
    assert "background as a whole, without a region: 1 image" in report.notes
    assert (labels_of(tmp_path / "out", "more")[0] == 0).all()


def test_images_of_one_name_keep_their_own_masks(tmp_path):
    root = tmp_path / "source"
    coco(root, names=("x/a.png", "y/a.png", "z/a_2.png"))
    report = import_annotations(root, tmp_path / "out")
    assert sum(report.num_images.values()) == 3
    names = {p.name for p in (tmp_path / "out/masks").rglob("*.png")}
    assert names == {"a.png", "a_2.png", "a_2_2.png"}


def turned(box, degrees, center):
    """Corners of a box in pixels, turned clockwise as a viewer sees it."""
    turn = np.exp(1j * np.radians(degrees))  # y points down
    points = [complex(*corner) for corner in corners(*box)]
    points = [(p - complex(*center)) * turn + complex(*center) for p in points]
    return [[p.real, p.imag] for p in points]


def drawn_by_coco(outline):
    flat = np.ravel(outline).tolist()
    (packed,) = coco_mask.frPyObjects([flat], HEIGHT, WIDTH)
    return coco_mask.decode(packed)


def test_rectangles_of_label_studio_turn_about_their_first_corner(tmp_path):
    root = tmp_path / "source"
    label_studio(root)
    tasks = json.loads((root / "project.json").read_text())
    box = (slice(4, 8), slice(14, 26))
    share = np.array([14, 4, 12, 4]) / (WIDTH, HEIGHT, WIDTH, HEIGHT) * 100
    value = dict(zip(("x", "y", "width", "height"), share, strict=True))
    tasks[0]["annotations"][1]["result"] = [
        {
            "type": "rectanglelabels",
            "value": value | {"rotation": 60, "rectanglelabels": ["car"]},
            "original_height": HEIGHT,
            "original_width": WIDTH,
        }
    ]
    write_json(root / "project.json", tasks)
    import_annotations(root, tmp_path / "out")
    right = drawn_by_coco(turned(box, 60, (14, 4)))
    assert right.sum() > 40
    np.testing.assert_array_equal(labels_of(tmp_path / "out")[0], right)


def test_choices_of_a_whole_image_are_counted(tmp_path):
    root = tmp_path / "source"
    label_studio(root)
    content = json.loads((root / "project.json").read_text())
    results = content[0]["annotations"][1]["result"]
    del results[2]["original_height"], results[2]["original_width"]
    write_json(root / "project.json", content)
    report = import_annotations(root, tmp_path / "out")
    assert "1 shapes of type 'choices' were left out" in report.notes
    np.testing.assert_array_equal(labels_of(tmp_path / "out")[0], expected())


@pytest.mark.parametrize(
    ("file", "address"),
    [
        ("my photo.png", "/data/local-files/?d=set/my%20photo.png"),
        ("my photo.png", "/data/upload/1/0f3a99c4-my%20photo.png"),
        ("my%20photo.png", "/data/local-files/?d=set/my%20photo.png"),
    ],
)
def test_addresses_of_label_studio_may_be_quoted(tmp_path, file, address):
    root = tmp_path / "source"
    label_studio(root)
    (root / "images/a.png").rename(root / "images" / file)
    content = json.loads((root / "project.json").read_text())
    content[0]["data"]["image"] = address
    write_json(root / "project.json", content)
    import_annotations(root, tmp_path / "out")
    found = labels_of(tmp_path / "out", file.removesuffix(".png"))[0]
    np.testing.assert_array_equal(found, expected())


def test_boxes_of_cvat_turn_about_their_center(tmp_path):
    root = tmp_path / "source"
    cvat_xml(root)
    path = root / "annotations.xml"
    shape = (
        '<box label="car" xtl="10" ytl="8" xbr="22" ybr="14" rotation="70"/>'
    )
    path.write_text(path.read_text().replace("</image>", f"{shape}</image>"))
    import_annotations(root, tmp_path / "out", class_map={"tree": "drop"})
    right = drawn_by_coco(turned((slice(8, 14), slice(10, 22)), 70, (16, 11)))
    right[CAR] = 1
    np.testing.assert_array_equal(labels_of(tmp_path / "out")[0], right)


def test_a_file_belongs_to_the_entry_that_names_its_folder(tmp_path):
    root = tmp_path / "source"
    for names in (("x/a.png", "y/a.png"), ("y/a.png", "x/a.png")):
        coco(root, names=names)
        (root / "images/y/a.png").unlink()
        out = tmp_path / names[0][0]
        report = import_annotations(root, out)
        assert report.num_images == {"train": 1}
        assert "1 annotations have no image, first y/a.png" in report.notes


def test_files_of_captions_and_keypoints_are_left_out(tmp_path):
    root = tmp_path / "source"
    content = coco(root)
    content["annotations"][0]["keypoints"] = [1, 2, 2]
    write_json(root / "annotations/person_keypoints.json", content)
    content["annotations"] = [{"id": 1, "image_id": 0, "caption": "a car"}]
    del content["categories"]
    write_json(root / "annotations/captions.json", content)
    report = import_annotations(root, tmp_path / "out")
    assert report.num_images == {"train": 1}
    left_out = [n for n in report.notes if "left out" in n]
    assert "captions.json" in left_out[0] and "caption" in left_out[0]
    assert "keypoints.json" in left_out[1]
    (root / "annotations/all.json").unlink()
    report = import_annotations(root, tmp_path / "keypoints")
    np.testing.assert_array_equal(
        labels_of(tmp_path / "keypoints")[0], expected()
    )


def test_annotations_of_one_image_in_two_files_are_merged(tmp_path):
    root = tmp_path / "source"
    content = coco(root)
    for name, annotation in zip("ab", content["annotations"], strict=True):
        part = content | {"annotations": [annotation]}
        write_json(root / f"annotations/{name}.json", part)
    (root / "annotations/all.json").unlink()
    report = import_annotations(root, tmp_path / "out")
    assert report.num_images == {"train": 1}
    assert any("regions were merged, first a.png" in n for n in report.notes)
    np.testing.assert_array_equal(labels_of(tmp_path / "out")[0], expected())
    content["images"][0]["height"] += 1
    write_json(root / "annotations/b.json", content)
    assert "must be of one size" in refused(root, tmp_path)


def test_a_second_json_for_an_image_of_another_folder_is_counted(tmp_path):
    root = tmp_path / "source"
    labelme(root / "p")
    content = json.loads((root / "p/a.json").read_text())
    write_json(root / "a.json", content | {"imagePath": "q/a.png"})
    report = import_annotations(root, tmp_path / "out")
    assert report.num_images == {"train": 1}
    assert "1 annotations have no image, first q/a.png" in report.notes


@pytest.mark.parametrize("annotation_format", FORMATS)
def test_annotations_of_every_format_without_image_are_counted(
    annotation_format, tmp_path
):
    root = tmp_path / "source"
    SAMPLES[annotation_format](root)
    (image,) = (
        (
            path
            for path in root.rglob("*a.*g")
            if "Segmentation" not in path.parent.name
        )
        if annotation_format != "cityscapes"
        else root.rglob("*leftImg8bit.png")
    )
    image.unlink()
    message = refused(root, tmp_path)
    assert any(
        text in message
        for text in (
            "1 images of all.json have no file",
            "1 annotations have no image",
            "1 masks have no image",
        )
    ), message


def test_a_damaged_json_beside_others_is_named(tmp_path):
    labelme(tmp_path / "source")
    (tmp_path / "source/b.json").write_text("{")
    report = import_annotations(tmp_path / "source", tmp_path / "out")
    (note,) = [n for n in report.notes if "Not valid JSON" in n]
    assert str(tmp_path / "source/b.json") in note


def test_tables_that_cannot_be_read_are_named(tmp_path):
    roboflow(tmp_path / "source")
    table = tmp_path / "source/train/_classes.csv"
    rows = table.read_text()
    for row, text in (
        (f"7, {'x' * 200_000}\n", "Not a readable table"),
        ("".join(f"{i}, c{i}\n" for i in range(6, 306)), "at most 255 classes"),
    ):
        table.write_text(rows + row)
        message = refused(tmp_path / "source", tmp_path)
        assert text in message and str(table) in message


def test_names_of_images_are_no_splits(tmp_path):
    names = ["train_station.png", "test_tube.png", "cat.png", "dog.png"]
    coco(tmp_path / "source", names=names)
    report = import_annotations(tmp_path / "source", tmp_path / "out")
    assert report.num_images == {"train": 3, "val": 1}
    assert any("the source names no splits" in n for n in report.notes)


def own_splits(root, *splits, names="v1_{}.png"):
    """COCO with a file for each split, of 2 images each."""
    for split in splits:
        content = coco(root, names=[names.format(f"{split}{i}") for i in "01"])
        write_json(root / f"annotations/{split}.json", content)
    (root / "annotations/all.json").unlink()


def test_flags_that_the_sources_own_splits_overrule_are_named(tmp_path):
    own_splits(tmp_path / "source", "train", "val")
    report = import_annotations(
        tmp_path / "source",
        tmp_path / "out",
        group_by="[^_]+",
        validation_fraction=0.5,
        test_fraction=0.2,
    )
    (note,) = [n for n in report.notes if "not used" in n]
    for flag in ("--group-by", "--validation_fraction", "--test_fraction"):
        assert flag in note
    assert any("several splits: 1 (first v1 in" in n for n in report.notes)


def test_splits_are_of_the_images_that_can_be_read(tmp_path):
    root = tmp_path / "source"
    names = [f"{i}.png" for i in range(6)]
    coco(root, names=names)
    in_train = min(names, key=lambda name: -place_of(name[0]))
    for name in {*names} - {in_train, "0.png"}:
        (root / "images" / name).write_bytes(b"no image")
    report = import_annotations(root, tmp_path / "out")
    assert report.num_images == {"train": 1, "val": 1}
    (root / "images/0.png").write_bytes(b"no image")
    only = import_annotations(root, tmp_path / "one", validation_fraction=0.999)
    assert only.num_images == {"train": 1}


def test_sources_without_a_class_say_why(tmp_path):
    labelme(tmp_path / "source")
    path = tmp_path / "source/a.json"
    content = json.loads(path.read_text())
    write_json(path, content | {"shapes": content["shapes"][2:]})
    message = refused(tmp_path / "source", tmp_path)
    assert "must hold regions of a class. Received: 1 image without" in message
    assert "1 shapes of type 'point' were left out" in message
    coco(tmp_path / "coco")
    message = refused(
        tmp_path / "coco", tmp_path, class_map={"car": "drop", "tree": "ignore"}
    )
    assert "At least one class must be left" in message


def test_a_binary_task_has_its_one_class_as_label_1(tmp_path):
    roboflow(tmp_path / "source")
    table = tmp_path / "source/train/_classes.csv"
    table.write_text("Pixel Value, Class\n3, car\n5, tree\n0, background\n")
    message = refused(tmp_path / "source", tmp_path, task="binary")
    assert "one class beside its background" in message
    assert message.endswith("Received: background, car, tree")
    out = tmp_path / "out"
    import_annotations(
        tmp_path / "source", out, task="binary", class_map={"tree": "ignore"}
    )
    labels, spec = labels_of(out)
    assert (spec.task, spec.class_names) == ("binary", ("background", "car"))
    np.testing.assert_array_equal(labels, expected(1, 255))
    message = refused(tmp_path / "source", tmp_path, task="multilabel")
    assert "Received: task='multilabel'" in message


def test_masks_of_another_palette_than_vocs_need_a_labelmap(tmp_path):
    voc(tmp_path / "source")
    path = tmp_path / "source/SegmentationClass/a.png"
    with Image.open(path) as mask:
        mask.putpalette([0, 0, 0] + [200, 0, 0] * 255)
        mask.save(path)
    message = refused(tmp_path / "source", tmp_path)
    assert "Color (200, 0, 0)" in message and "labelmap.txt" in message
    assert "dataset.json" not in message
    (tmp_path / "source/labelmap.txt").write_text(
        "background:0,0,0::\ncar:200,0,0::\n"
    )
    import_annotations(tmp_path / "source", tmp_path / "out")
    np.testing.assert_array_equal(
        labels_of(tmp_path / "out")[0], expected(1, 1)
    )


def test_vocs_masks_in_color_are_read_with_their_border(tmp_path):
    voc(tmp_path / "source")
    path = tmp_path / "source/SegmentationClass/a.png"
    with Image.open(path) as mask:
        colors = np.array(mask.convert("RGB"))
    colors[0] = 224, 224, 192
    Image.fromarray(colors).save(path)
    import_annotations(tmp_path / "source", tmp_path / "out")
    drawn = expected(7, 16)
    drawn[0] = 255
    np.testing.assert_array_equal(labels_of(tmp_path / "out")[0], drawn)


def test_damaged_xml_of_cvat_is_named_in_words(tmp_path):
    cvat_xml(tmp_path / "source")
    path = tmp_path / "source/annotations.xml"
    whole = path.read_text()
    for old, new, text in (
        ('label="tree"', 'label="bus"', "label 'bus' is not among those"),
        ("6.00,4.00;", "6.00;", "points must be X,Y;X,Y;"),
        ("6.00,4.00;", "6.00,b;", "coordinates must be numbers: '6.00 b'"),
        ("</image>", "</image><track></track>", "CVAT for video"),
    ):
        assert old in whole
        path.write_text(whole.replace(old, new))
        message = refused(tmp_path / "source", tmp_path)
        assert text in message and "Error(" not in message
        assert str(path) in message


def test_yolo_classes_by_name_are_refused_in_words(tmp_path):
    yolo(tmp_path / "source")
    (tmp_path / "source/train/labels/a.txt").write_text("car 0 0 1 0 1 1")
    message = refused(tmp_path / "source", tmp_path)
    assert "coordinates must be numbers: 'car 0 0 1 0 1 1'" in message


def zipped(source):
    path = source.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in source.rglob("*"):
            archive.write(file, file.relative_to(source))
    return path


def test_messages_name_the_archive_or_file_that_the_user_gave(tmp_path):
    coco(tmp_path / "a", names=("a.png", "b.png"))
    (tmp_path / "a/images/b.png").write_bytes(b"no image")
    report = import_annotations(zipped(tmp_path / "a"), tmp_path / "out")
    (note,) = [n for n in report.notes if "left out" in n]
    assert f"File: {tmp_path}/a.zip/images/b.png" in note
    coco(tmp_path / "b", category_id=77)
    message = refused(zipped(tmp_path / "b"), tmp_path)
    assert f"File: {tmp_path}/b.zip/annotations/all.json" in message
    write_json(tmp_path / "c/c.json", {"nothing": 1})
    assert "c.json" in refused(tmp_path / "c/c.json", tmp_path)


def test_the_bands_of_an_import_are_in_its_specification(tmp_path, capsys):
    root = tmp_path / "source"
    coco(root, names=("a.png", "b.png"))
    for name, value in (("a", 9), ("b", 60_000)):
        values = np.full((HEIGHT, WIDTH), value, "uint16")
        values[0] = 5
        Image.fromarray(values).save(root / f"images/{name}.png")
    assert main(["data", "import", str(root), str(tmp_path / "out")]) == 0
    spec = FolderSource(tmp_path / "out").spec
    assert (spec.channels, spec.dtype) == (1, "uint16")
    assert spec.std is not None
    assert (tmp_path / "out/preview.png").exists()
    assert main(["data", "check", str(tmp_path / "out")]) == 0


def test_a_region_in_memory_takes_little_beside_its_coordinates(tmp_path):
    """The JSON may have 2 GB; 8 bytes a number are about its length."""
    count, corner_count = 2000, 25
    content = coco(tmp_path / "source")
    ring = np.random.default_rng(0).uniform(1, 20, 2 * corner_count).round(2)
    content["annotations"] = [
        {"id": i, "image_id": 0, "category_id": 7, "segmentation": [[*ring]]}
        for i in range(count)
    ]
    write_json(tmp_path / "source/annotations/all.json", content)
    files = SourceFiles(tmp_path / "source")
    read_annotations(files)  # imports
    tracemalloc.start()
    _, found = read_annotations(files)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.images[0].regions) == count
    assert held / count - 16 * corner_count < 350


def test_nested_json_is_refused_before_it_takes_memory(tmp_path):
    coco(tmp_path / "source")
    path = tmp_path / "source/annotations/all.json"
    whole = path.read_text()
    for depth, space in ((500_000, 0), (500_000, 10**6)):
        more = " " * space + "[" * depth
        path.write_text(f'{whole[:-1]}, "more": {more}')
        assert "nested at most" in refused(tmp_path / "source", tmp_path)
    path.write_text(whole[:-20])
    assert "Not valid JSON" in refused(tmp_path / "source", tmp_path)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"counts": [5, 10**12], "size": [HEIGHT, WIDTH]},
        {"counts": [-5, HEIGHT * WIDTH + 5], "size": [HEIGHT, WIDTH]},
        {"counts": "zzzzzzzz", "size": [HEIGHT, WIDTH]},
        {"counts": "PPPP1", "size": [10**9, 10**9]},
        {"counts": ["a"], "size": [HEIGHT, WIDTH]},
        {"counts": [[1], [1, 2]], "size": [HEIGHT, WIDTH]},
        [[0, 0, 1]],
        [[float("1e308"), 0, 1, 1, 2, 2]],
        [["a", 0, 1, 1, 2, 2]],
    ],
)
def test_damaged_regions_are_left_out(segmentation, tmp_path):
    coco(tmp_path / "source", segmentation=segmentation)
    report = import_annotations(tmp_path / "source", tmp_path / "out")
    assert any("left out 1 region," in note for note in report.notes)
    labels, _ = labels_of(tmp_path / "out")
    assert (labels[CAR] == 1).all()


def test_hostile_archives_are_refused(tmp_path):
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", b"\0" * 2**28)
    assert "expand" in refused(bomb, tmp_path)
    outside = tmp_path / "outside.zip"
    with zipfile.ZipFile(outside, "w") as archive:
        archive.writestr("../../evil.json", "{}")
    assert "stay within it" in refused(outside, tmp_path)
    (tmp_path / "no.zip").write_bytes(b"PK no archive")
    assert "Not a readable zip" in refused(tmp_path / "no.zip", tmp_path)


def test_a_damaged_archive_is_named(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", "[" + "1, " * 1000 + "1]")
        start = archive.getinfo("a.json").header_offset + 36  # its data
    content = bytearray(path.read_bytes())
    content[start : start + 4] = b"\xff" * 4
    path.write_bytes(content)
    message = refused(path, tmp_path)
    assert "Not a readable zip archive. File: " in message


def test_a_blank_last_line_of_classes_is_no_class(tmp_path):
    write_image(tmp_path / "source/a.png")
    (tmp_path / "source/a.txt").write_text("1 0 0 1 0 1 1")
    (tmp_path / "source/classes.txt").write_text("car\ntree\n\n")
    report = import_annotations(tmp_path / "source", tmp_path / "out")
    assert report.spec.class_names == ("background", "car", "tree")


def test_wrong_arguments_are_named(tmp_path):
    coco(tmp_path / "source")
    cases = {
        "must be one of": {"annotation_format": "pascal"},
        "no annotations of format yolo": {"annotation_format": "yolo"},
        "must name classes of the source": {"class_map": {"bus": "car"}},
        "below 1 together": {"validation_fraction": 1.0},
        "must be a regular expression": {"group_by": "("},
    }
    for text, arguments in cases.items():
        assert text in refused(tmp_path / "source", tmp_path, **arguments)
    assert "does not exist" in refused(tmp_path / "none", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "No annotations" in refused(tmp_path / "empty", tmp_path)


def test_the_command_reports_and_draws_and_names_the_next_one(tmp_path, capsys):
    coco(tmp_path / "source", names=[f"{i}.png" for i in range(12)])
    arguments = [str(tmp_path / "source"), str(tmp_path / "out")]
    assert main(["data", "import", *arguments, "--map", "tree=plant"]) == 0
    printed = capsys.readouterr().out
    for text in ("format  coco", "1 car", "2 plant", "smaller region", "next"):
        assert text in printed
    with Image.open(tmp_path / "out/preview.png") as sheet:
        assert sheet.width > 400
    assert main(["data", "import", *arguments]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path / "out")]) == 0


def test_a_folder_that_no_import_wrote_is_never_replaced(tmp_path):
    coco(tmp_path / "source")
    out = tmp_path / "mine"
    write_image(out / "images/mine.png")
    for dataset in (None, {"class_names": ["a", "b"], "source": "my camera"}):
        if dataset:
            write_json(out / "dataset.json", dataset)
        for overwrite in (False, True):
            with pytest.raises(FileExistsError, match="name another") as found:
                import_annotations(
                    tmp_path / "source", out, overwrite=overwrite
                )
            assert "did not write" in str(found.value)
            assert "--overwrite" not in str(found.value)
    assert (out / "images/mine.png").is_file()
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(FileExistsError, match="did not write"):
        import_annotations(tmp_path / "source", file, overwrite=True)
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "new"):
        for _ in range(2):
            import_annotations(tmp_path / "source", out, overwrite=True)
        assert FolderSource(out).spec.class_names[1] == "car"


@pytest.mark.parametrize("name", ["coco", "yolo", "cvat"])
def test_earlier_output_within_the_source_is_not_read(name, tmp_path):
    root = tmp_path / "source"
    SAMPLES[name](root)
    contents = []
    for _ in range(3):
        report = import_annotations(root, root / "mine", overwrite=True)
        contents.append(
            {
                path.relative_to(root): path.read_bytes()
                for path in sorted((root / "mine").rglob("*"))
                if path.is_file()
            }
        )
    assert len(contents[0]) == 3  # an image, its mask, dataset.json
    assert contents[0] == contents[1] == contents[2]
    left_out = "left out mine/, which an earlier import wrote"
    assert left_out in report.notes
    # What the user names is read.
    import_annotations(root, tmp_path / "out", images=root / "mine/images")
    assert [*(tmp_path / "out").rglob("a.*g")]


def test_a_source_within_the_output_is_not_replaced(tmp_path):
    coco(tmp_path / "source")
    out = tmp_path / "out"
    import_annotations(tmp_path / "source", out)
    (tmp_path / "source/annotations").rename(out / "annotations")
    json_file = out / "annotations/all.json"
    images = tmp_path / "source/images"
    for source, folder in ((json_file, images), (tmp_path / "source", out)):
        with pytest.raises(ValueError, match="would replace what it is made"):
            import_annotations(source, out, images=folder, overwrite=True)
    assert json_file.is_file()


@pytest.mark.slow
def test_the_next_command_trains_and_its_predictions_import(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    own_splits(tmp_path / "source", "train", "test", names="{}.png")
    model = toy_model(3)
    # It finds cars, after two small steps as well.
    model.get_layer("classifier").bias.assign([0, 99, 0])
    model.save(tmp_path / "toy.keras")
    config = tiny_config(
        tmp_path, total_epochs=None, total_steps=2, learning_rate=1e-6
    )
    dump_config(config, tmp_path / "tiny.yaml")
    assert main(["data", "import", "source", "mine"]) == 0
    command = capsys.readouterr().out.partition("next      keras-aspp ")[2]
    assert "--config folder" in command
    steps = (
        "data check mine --data.validation_split null",
        command.replace("folder", "tiny.yaml")
        + "--workdir run --data.crop_size [32,32] --export.formats []",
        "predict --model run --output labeled --format coco --min_area 1 "
        "source/images/train0.png source/images/train1.png",
        "predict --model run --output shapes --format labelme --min_area 1 "
        "source/images/train0.png",
        "data import labeled again --images source/images",
        "data import shapes once_more --images source/images",
    )
    for step in steps:
        assert main(step.split()) == 0, capsys.readouterr().err
    content = json.loads((tmp_path / "labeled/predictions.json").read_text())
    names = [category["name"] for category in content["categories"]]
    assert names == ["car", "tree"]
    files = [image["file_name"] for image in content["images"]]
    assert files == ["train0.png", "train1.png"]


# Three classes of these are kept, as many as the other samples have.
KEPT = {
    "voc": ("background", "car", "pottedplant"),
    "cityscapes": ("sky", "car", "vegetation"),
}


@pytest.mark.slow
def test_each_format_trains_an_epoch_and_is_predicted(tmp_path):
    """On one model, whose steps are compiled once."""
    model, size = toy_model(3), (HEIGHT, WIDTH)
    compile_model(model, TrainConfig(total_steps=10), 10, ignore_label=255)
    sources = []
    for name in FORMATS:
        SAMPLES[name](tmp_path / name)
        out = tmp_path / f"out_{name}"
        report = import_annotations(tmp_path / name, out)
        if name in KEPT:
            rest = {*report.spec.class_names} - {*KEPT[name]}
            class_map = dict.fromkeys(rest, "ignore")
            import_annotations(
                tmp_path / name, out, class_map=class_map, overwrite=True
            )
        source = FolderSource(out)
        assert source.spec.num_classes == 3
        assert check_folder(source).problems == []
        batches = training_dataset(
            source, "train", AugmentConfig(), size, 2, model.preprocess
        )
        before = model.optimizer.iterations.numpy()
        history = model.fit(
            batches, steps_per_epoch=1, shuffle=False, verbose=0
        )
        assert model.optimizer.iterations.numpy() == before + 1
        assert 0 < history.history["loss"][0] < 10
        sources.append(source)
    save_model(model, tmp_path / "model.keras")
    predictor = Predictor(tmp_path / "model.keras")
    for source in sources:
        ((image, _),) = source.pairs["train"]
        labels = predictor.predict(image)
        assert labels.shape == size and labels.max() < 3
