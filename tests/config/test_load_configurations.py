"""Every configuration of the package, and the label maps of the public sets.

The data sets themselves cannot be had here: TFDS' own builders make them from
a few generated pictures in the archives' layout.
"""

import dataclasses
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from keras_aspp.analysis.cost import cost
from keras_aspp.config.load import (
    config_names,
    config_path,
    dump_config,
    load_config,
)
from keras_aspp.data.pipeline import evaluation_dataset
from keras_aspp.data.sources import open_source
from keras_aspp.models.factory import build_model
from keras_aspp.models.rates import degenerate_rates
from keras_aspp.utils.exceptions import InputError

# From cityscapesScripts' labels.py: names of the raw ids, and the 19 that
# count, in the order of their train ids.
CITYSCAPES_IDS = (
    "unlabeled",
    "ego vehicle",
    "rectification border",
    "out of roi",
    "static",
    "dynamic",
    "ground",
    "road",
    "sidewalk",
    "parking",
    "rail track",
    "building",
    "wall",
    "fence",
    "guard rail",
    "bridge",
    "tunnel",
    "pole",
    "polegroup",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "caravan",
    "trailer",
    "train",
    "motorcycle",
    "bicycle",
)
CITYSCAPES_TRAIN_IDS = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)


def test_the_packages_configurations():
    assert set(config_names()) >= {
        "camvid_mobile",
        "camvid_mobilenet_v2",
        "cityscapes",
        "folder",
        "multiscale_shapes",
        "oxford_iiit_pet",
    }


def test_messages_do_not_list_the_configurations_of_the_ablation():
    with pytest.raises(FileNotFoundError, match="camvid_mobile, ") as raised:
        config_path("nothing")
    assert "ablation" not in str(raised.value)


@pytest.mark.parametrize("name", config_names())
def test_configuration_loads_and_survives_a_round_trip(name, tmp_path):
    config = load_config(config_path(name))
    dump_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("name", config_names())
def test_header_holds_the_command_and_the_expected_result(name):
    lines = config_path(name).read_text().splitlines()
    header = []
    for line in lines:
        if not line.startswith("#"):
            break
        header.append(line)
    text = "\n".join(header)
    start = (
        "python -m training.ablation"
        if "ablation" in name
        else ("keras-aspp train")
    )
    assert f"{start} --config {name} " in text.replace(" \\\n#    ", "")
    assert "--workdir runs/" in text
    assert "Expected: " in text
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", config_names())
def test_classes_and_label_map_fit_together(name):
    data = load_config(config_path(name)).data
    if data.tfds is None:
        assert data.label_map is None  # dataset.json has it
        return
    kept = {v for v in (data.label_map or {}).values() if v != "ignore"}
    assert data.class_names
    if data.label_map:
        assert kept == set(range(len(data.class_names)))
    assert data.license


@pytest.mark.parametrize("name", ["data.crop_size", "train.loss.tversky"])
def test_null_where_a_value_is_needed(name, tmp_path):
    text = "null"
    for key in reversed(name.split(".")):
        text = f"{{{key}: {text}}}"
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=f"Received: {name}=null File: "):
        load_config(tmp_path / "mine.yaml")


def test_folder_configuration_needs_only_a_root(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(5):
        Image.new("RGB", (6, 4)).save(tmp_path / f"images/{i}.jpg")
        Image.new("L", (6, 4), i % 2).save(tmp_path / f"masks/{i}.png")
    overrides = ["--data.root", str(tmp_path)]
    data = load_config(config_path("folder"), overrides).data
    source = open_source(data)
    sizes = [source.size(s) for s in (data.train_split, data.validation_split)]
    assert sum(sizes) == 5
    assert min(sizes) == 1


def test_folder_torchvision_starts_from_the_converted_weights(
    tmp_path, monkeypatch
):
    """Batch norm of a new head would stay frozen at its initial values."""
    monkeypatch.chdir(tmp_path)
    path = config_path("folder_torchvision")
    model = load_config(path).model
    assert f".save('{model.weights}')" in path.read_text()
    assert model.batch_norm == "freeze"
    with pytest.raises(
        FileNotFoundError, match=r"'voc\.keras', which does not exist"
    ):
        build_model(model, 3)


def test_folder_configuration_fits_the_saved_camvid_model():
    # Its header says that `model.weights` may be that model.
    ours, theirs = (
        dataclasses.asdict(load_config(config_path(name)).model)
        for name in ("folder", "camvid_mobilenet_v2")
    )
    # None of these changes which weights there are.
    for name in ("backbone_weights", "batch_norm_momentum", "input_scale"):
        del ours[name], theirs[name]
    assert ours == theirs


@pytest.mark.slow
def test_camvid_mobile_costs_what_its_header_says():
    config = load_config(config_path("camvid_mobile"))
    model = build_model(
        dataclasses.replace(config.model, backbone_weights=None), 11
    )
    found = cost(model, (360, 480))
    assert f"{model.count_params() / 1e6:.2f}" == "0.67"
    assert f"{found.madds / 1e9:.2f}" == "0.90"
    # A crop trains every tap of the branches.
    cells = [n // config.model.output_stride for n in config.data.crop_size]
    assert degenerate_rates(
        model.atrous_rates, model.atrous_stride, config.data.crop_size
    ) == ((), tuple(cells))


def source_of(name, data_dir, overrides=()):
    overrides = [*overrides, "--data.data_dir", str(data_dir)]
    data = load_config(config_path(name), overrides).data
    return open_source(data), data


# Oxford-IIIT Pet


def write_trimap(path, height, width):
    """Pet (1) inside a border (3) on background (2)."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - height / 2, x - width / 2)
    trimap = np.where(distance < height / 4, 1, 2)
    trimap[np.abs(distance - height / 4) < 2] = 3
    Image.fromarray(trimap.astype("uint8")).save(path)
    return trimap


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A data directory of the pets, built by TFDS from our pictures."""
    raw = tmp_path_factory.mktemp("archives")
    images, trimaps = raw / "images", raw / "annotations" / "trimaps"
    images.mkdir()
    trimaps.mkdir(parents=True)
    stored = {}
    for split, count in (("trainval", 20), ("test", 3)):
        lines = []
        for i in range(count):
            name, size = f"{split}_{i}", (20 + i % 2, 31)
            shade = np.full((*size, 3), 10 * i + 5, "uint8")
            Image.fromarray(shade).save(images / f"{name}.jpg", quality=95)
            stored[name] = write_trimap(trimaps / f"{name}.png", *size)
            lines.append(f"{name} 1 1 1\n")
        (raw / "annotations" / f"{split}.txt").write_text("".join(lines))
    data_dir = tmp_path_factory.mktemp("pets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tfds.download.DownloadManager,
            "download_and_extract",
            lambda self, urls: dict.fromkeys(urls, str(raw)),
        )
        tfds.builder(
            "oxford_iiit_pet", data_dir=data_dir
        ).download_and_prepare()
    return data_dir, stored


def test_pets_become_background_and_pet_without_the_border(pets):
    data_dir, stored = pets
    source, data = source_of("oxford_iiit_pet", data_dir)
    assert data.class_names == ["background", "pet"]
    assert source.size(data.train_split) == 18
    assert source.size(data.validation_split) == 2
    assert source.size(data.test_split) == 3
    expected = {}
    for name, trimap in stored.items():
        if name.startswith("test"):
            labels = np.select([trimap == 1, trimap == 2], [1, 0], 255)
            expected[int(name.split("_")[1])] = labels
    seen = 0
    for images, labels in evaluation_dataset(source, data.test_split, 1):
        number = round(float(images.numpy().mean()) / 10 - 0.5)
        np.testing.assert_array_equal(labels[0], expected[number])
        assert set(np.unique(labels)) == {0, 1, 255}
        seen += 1
    assert seen == 3


def test_pets_border_as_a_class_as_the_header_says(pets):
    lines = config_path("oxford_iiit_pet").read_text().splitlines()
    wanted = [line for line in lines if line.startswith("#   --data.")]
    overrides = []
    for line in wanted:
        flag, value = line.strip("# \\").split(" ", 1)
        overrides += [flag, value.strip("'")]
    assert len(overrides) == 4
    data_dir, stored = pets
    source, _ = source_of("oxford_iiit_pet", data_dir, overrides)
    assert source.spec.class_names == ("background", "pet", "border")
    labels = next(iter(evaluation_dataset(source, "test", 1)))[1][0].numpy()
    assert labels[0, 0] == 0
    assert labels[10, 15] == 1
    assert set(np.unique(labels)) == {0, 1, 2}


# Cityscapes


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory):
    """A data directory, built by TFDS from archives of our own."""
    data_dir = tmp_path_factory.mktemp("cityscapes")
    manual = data_dir / "downloads" / "manual"
    manual.mkdir(parents=True)
    # One vertical stripe per raw id, 255 at the right end.
    row = np.minimum(np.arange(2048) // 58, len(CITYSCAPES_IDS))
    stored = np.where(row == len(CITYSCAPES_IDS), 255, row).astype("uint8")
    mask = Image.fromarray(np.broadcast_to(stored, (1024, 2048)).copy())
    scene = tmp_path_factory.mktemp("raw")
    mask.save(scene / "mask.png")
    Image.new("RGB", (2048, 1024), (9, 8, 7)).save(scene / "scene.png")
    for archive, file, suffix in (
        ("leftImg8bit", "scene.png", "leftImg8bit"),
        ("gtFine", "mask.png", "gtFine_labelIds"),
    ):
        with zipfile.ZipFile(
            manual / f"{archive}_trainvaltest.zip", "w"
        ) as packed:
            for split in ("train", "val", "test"):
                packed.write(
                    scene / file,
                    f"{archive}/{split}/bonn/bonn_000001_000019_{suffix}.png",
                )
    return data_dir, stored


def test_cityscapes_raw_ids_become_the_19_train_ids(cityscapes):
    data_dir, stored = cityscapes
    source, data = source_of("cityscapes", data_dir)
    assert source.spec.class_names == CITYSCAPES_TRAIN_IDS
    assert source.size(data.train_split) == 1
    split = data.validation_split
    ((image, labels),) = (
        source.decode(*record)
        for record in source.records(split).as_numpy_iterator()
    )
    assert image.shape == (1024, 2048, 3)
    assert image[0, 0].tolist() == [9, 8, 7]
    assert (labels == labels[0]).all()
    for raw, label in zip(stored, labels[0], strict=True):
        name = CITYSCAPES_IDS[raw] if raw < 255 else None
        if name in CITYSCAPES_TRAIN_IDS:
            assert source.spec.class_names[label] == name
        else:
            assert label == 255
    assert set(np.unique(labels)) == {*range(19), 255}


def test_cityscapes_numbers():
    config = load_config(config_path("cityscapes"))
    assert config.data.crop_size == (768, 768)
    assert config.data.label_map.keys() == set(range(34))
    assert config.data.test_split is None  # its masks are not public
