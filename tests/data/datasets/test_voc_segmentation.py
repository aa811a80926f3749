"""PASCAL VOC and SBD from archives of our own, in the published layout."""

import hashlib
import io
import tarfile
from unittest import mock

import numpy as np
import pytest
import scipy.io
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from keras_aspp.data.datasets import voc_segmentation as voc
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.data.tfds import TfdsSource

TRAIN = ["2007_000032", "2008_000003"]
VAL = ["2007_000033", "2009_000001", "2010_000009"]
# SBD's own lists: of each of VOC's, and what only SBD marks.
SBD_TRAIN = ["2008_000003", "2009_000001", "2008_000028", "2008_000029"]
SBD_VAL = ["2007_000033", "2008_000041"]
EXTRA = ["2008_000028", "2008_000029", "2008_000041"]
COUNTS = {"train": 2, "val": 3, "trainaug": 5}
SPEC = DatasetSpec(voc.CLASS_NAMES)


def labels_of(name, by_sbd):
    """A mask, another one by VOC than by SBD, with all values they have."""
    rng = np.random.default_rng([int(name.replace("_", "")), by_sbd])
    labels = rng.integers(0, 21, (11, 17)).astype("uint8")
    if not by_sbd:
        labels[0] = 255
    return labels


def write_archives(root):
    """What both archives unpack to; more masks and pictures than are used."""
    devkit = root / "VOCdevkit" / "VOC2012"
    sbd = root / "benchmark_RELEASE" / "dataset"
    for folder in (
        devkit / "ImageSets" / "Segmentation",
        devkit / "JPEGImages",
        devkit / "SegmentationClass",
        sbd / "cls",
    ):
        folder.mkdir(parents=True)
    lists = devkit / "ImageSets" / "Segmentation"
    for path, names in (
        (lists / "train.txt", TRAIN),
        (lists / "val.txt", VAL),
        (sbd / "train.txt", SBD_TRAIN),
        (sbd / "val.txt", SBD_VAL),
    ):
        path.write_text("\n".join(names) + "\n")
    palette = DatasetSpec([str(i) for i in range(255)]).colors()
    for i, name in enumerate([*TRAIN, *VAL, *EXTRA]):
        Image.new("RGB", (17, 11), (20 * i, 9, 90)).save(
            devkit / "JPEGImages" / f"{name}.jpg", quality=95
        )
        if name not in EXTRA:
            mask = Image.fromarray(labels_of(name, False))
            # What a reader of colours would take for the labels.
            mask.putpalette(np.ravel([*palette, (224, 224, 192)]).tolist())
            mask.save(devkit / "SegmentationClass" / f"{name}.png")
    for name in {*SBD_TRAIN, *SBD_VAL}:
        truth = {"Segmentation": labels_of(name, True), "Categories": [[3]]}
        scipy.io.savemat(sbd / "cls" / f"{name}.mat", {"GTcls": truth})
    return root


@pytest.fixture(scope="module", autouse=True)
def examples_of_classes(tmp_path_factory):
    """Archives for the classes of TFDS' below, which take no fixtures."""
    root = tmp_path_factory.mktemp("examples")
    write_archives(root / "archives")
    VocSegmentationTest.EXAMPLE_DIR = root
    VocSegmentationByHandTest.EXAMPLE_DIR = root / "archives"


class VocSegmentationTest(tfds.testing.DatasetBuilderTestCase):
    """From the downloads."""

    DATASET_CLASS = voc.VocSegmentation
    SPLITS = COUNTS
    OVERLAPPING_SPLITS = ["trainaug"]
    # The manual directory is EXAMPLE_DIR, in which there is nothing to use.
    DL_EXTRACT_RESULT = "archives"

    def setUp(self):
        few = mock.patch.object(voc, "NUM_EXAMPLES", COUNTS)
        few.start()
        self.addCleanup(few.stop)
        super().setUp()


class VocSegmentationByHandTest(VocSegmentationTest):
    """From the manual directory."""

    DL_EXTRACT_RESULT = "nothing_is_downloaded"


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(voc, "NUM_EXAMPLES", COUNTS)


@pytest.fixture
def data_dir(tmp_path, few):
    write_archives(tmp_path / "downloads" / "manual")
    return tmp_path


def source_of(data_dir):
    return TfdsSource("voc_segmentation", SPEC, data_dir=data_dir)


def examples(source, split):
    """id -> labels, through TFDS; ours are compared with them."""
    stored = tfds.as_numpy(source.builder.as_dataset(split=split))
    ours = [
        source.decode(*record)
        for record in source.records(split).as_numpy_iterator()
    ]
    found = {}
    for example, (image, labels) in zip(stored, ours, strict=True):
        mask = example["segmentation_mask"][..., 0]
        np.testing.assert_array_equal(labels, mask)
        assert image.shape == (11, 17, 3)
        found[example["id"].decode()] = mask
    return found


def test_masks_are_vocs_where_there_are_any_and_else_sbds(data_dir):
    source = source_of(data_dir)
    for split, names in (
        ("train", TRAIN),
        ("val", VAL),
        ("trainaug", [*TRAIN, *EXTRA]),
    ):
        found = examples(source, split)
        assert sorted(found) == sorted(names)
        for name, mask in found.items():
            expected = labels_of(name, name in EXTRA)
            np.testing.assert_array_equal(mask, expected)
            assert (255 in mask) == (name not in EXTRA)


def test_trainaug_and_val_share_nothing(data_dir):
    source = source_of(data_dir)
    assert source.size("trainaug") == 5
    assert not set(examples(source, "trainaug")) & set(VAL)
    assert source.size("train+val") == 5


def test_pictures_are_stored_as_they_came(data_dir):
    source = source_of(data_dir)
    stored = {r[0] for r in source.records("val").as_numpy_iterator()}
    folder = data_dir / "downloads/manual/VOCdevkit/VOC2012/JPEGImages"
    assert stored == {(folder / f"{n}.jpg").read_bytes() for n in VAL}


def test_published_numbers():
    assert voc.NUM_EXAMPLES == {"train": 1464, "val": 1449, "trainaug": 10582}
    assert len(voc.CLASS_NAMES) == 21
    assert voc.CLASS_NAMES[15] == "person"
    sums = voc.VocSegmentation.url_infos
    assert {url: info.filename for url, info in sums.items()} == {
        voc.VOC_URL: "VOCtrainval_11-May-2012.tar",
        voc.SBD_URL: "benchmark.tgz",
    }
    assert all(len(info.checksum) == 64 for info in sums.values())


def test_a_set_that_is_not_whole(data_dir, monkeypatch):
    monkeypatch.setattr(voc, "NUM_EXAMPLES", {**COUNTS, "trainaug": 10582})
    with pytest.raises(ValueError, match=r"must hold .*Received: .*aug': 5"):
        source_of(data_dir)


@pytest.mark.parametrize(
    ("mode", "value", "message"),
    [
        ("L", 3, r"palette PNGs. File: .*2008_000003.png \(mode L\)"),
        ("P", 77, r"Label value 77 is neither in 0..20 nor 255. File: .*png"),
    ],
)
def test_masks_at_fault(data_dir, mode, value, message):
    folder = data_dir / "downloads/manual/VOCdevkit/VOC2012"
    mask = Image.fromarray(np.full((11, 17), value, "uint8"))
    if mode == "P":
        mask.putpalette(range(256))
    mask.save(folder / "SegmentationClass" / "2008_000003.png")
    with pytest.raises(ValueError, match=message):
        source_of(data_dir)
    assert not list(data_dir.glob("voc_segmentation/1.0.0*"))


def tarred(folder, path, mode):
    with tarfile.open(path, mode) as archive:
        archive.add(folder, folder.name)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("damaged", [False, True])
def test_archives_in_the_manual_directory(tmp_path, few, monkeypatch, damaged):
    made = write_archives(tmp_path / "made")
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    infos = {}
    for url, folder, mode in (
        (voc.VOC_URL, "VOCdevkit", "w"),
        (voc.SBD_URL, "benchmark_RELEASE", "w:gz"),
    ):
        path = manual / url.rsplit("/")[-1]
        digest = tarred(made / folder, path, mode)
        infos[url] = tfds.core.download.checksums.UrlInfo(
            path.stat().st_size, digest, path.name
        )
    monkeypatch.setattr(voc.VocSegmentation, "url_infos", infos)
    if damaged:
        (manual / "benchmark.tgz").write_bytes(b"an error page")
        with pytest.raises(ValueError, match="wrong checksum|NonMatching"):
            source_of(tmp_path)
    else:
        source = source_of(tmp_path)
        assert sorted(examples(source, "trainaug")) == sorted([*TRAIN, *EXTRA])


def test_palette_colours_would_be_other_labels(data_dir):
    """The trap that the builder steps around."""
    folder = data_dir / "downloads/manual/VOCdevkit/VOC2012/SegmentationClass"
    raw = (folder / f"{TRAIN[0]}.png").read_bytes()
    grey = tf.io.decode_png(raw, channels=1)[..., 0].numpy()
    assert (grey != labels_of(TRAIN[0], False)).mean() > 0.5
    with Image.open(io.BytesIO(raw)) as mask:
        np.testing.assert_array_equal(mask, labels_of(TRAIN[0], False))
