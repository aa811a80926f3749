"""PASCAL VOC 2012 segmentation, with the extra masks of SBD ("trainaug").

Papers train on 10,582 images: those of VOC's `train`, and those that SBD
(Hariharan et al., 2011) has masks for and VOC's `train` and `val` do not hold.
VOC's own masks are taken where there are any: they have an ignored border,
SBD's have none. SBD marks images of VOC, so the images are all VOC's.

    import keras_aspp.data.datasets.voc_segmentation  # registers the name
    tfds.load("voc_segmentation", split="trainaug", as_supervised=True)
"""

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from keras_aspp.utils.exceptions import InputError

CLASS_NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
IGNORE_LABEL = 255
# Of the published split files; a set that is not whole is not this data set.
NUM_EXAMPLES = {"train": 1464, "val": 1449, "trainaug": 10582}

VOC_URL = (
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
)
SBD_URL = (
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
    "semantic_contours/benchmark.tgz"
)
_VOC, _SBD = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"


class VocSegmentation(tfds.core.GeneratorBasedBuilder):
    """Twenty kinds of objects and their background, in photographs."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
    Only where the downloads fail: put the archives
    VOCtrainval_11-May-2012.tar and benchmark.tgz here, or what they unpack to,
    {_VOC} and {_SBD}.
    """

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "PASCAL VOC 2012 segmentation. `trainaug` is `train` and the "
                "images that the Semantic Boundaries Dataset marks beyond "
                "VOC's train and val."
            ),
            homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "segmentation_mask": tfds.features.Image(
                        shape=(None, None, 1),
                        dtype=np.uint8,
                        encoding_format="png",
                        use_colormap=True,
                    ),
                }
            ),
            supervised_keys=("image", "segmentation_mask"),
        )

    def _split_generators(self, dl_manager):
        voc = _find(dl_manager, _VOC, VOC_URL)
        sbd = _find(dl_manager, _SBD, SBD_URL)
        lists = voc / "ImageSets" / "Segmentation"
        train, val = (_names(lists / f"{s}.txt") for s in ("train", "val"))
        extra = {
            name for s in ("train", "val") for name in _names(sbd / f"{s}.txt")
        }
        extra = sorted(extra - {*train, *val})
        splits = {"train": train, "val": val, "trainaug": [*train, *extra]}
        found = {split: len(names) for split, names in splits.items()}
        if found != NUM_EXAMPLES:
            raise InputError(
                f"VOC and SBD must hold {NUM_EXAMPLES} images. "
                f"Received: {found} in {voc} and {sbd}"
            )
        own = {*train, *val}
        return {
            split: self._generate_examples(voc, sbd, names, own)
            for split, names in splits.items()
        }

    def _generate_examples(self, voc, sbd, names, own):
        for name in names:
            if name in own:
                path = voc / "SegmentationClass" / f"{name}.png"
                mask = _read_png(path)
            else:
                path = sbd / "cls" / f"{name}.mat"
                mask = _read_mat(path)
            strange = set(np.unique(mask)) - {
                *range(len(CLASS_NAMES)),
                IGNORE_LABEL,
            }
            if strange:
                raise InputError(
                    f"Label value {min(strange)} is neither in "
                    f"0..{len(CLASS_NAMES) - 1} nor {IGNORE_LABEL}. "
                    f"File: {path}"
                )
            yield (
                name,
                {
                    "id": name,
                    "image": voc / "JPEGImages" / f"{name}.jpg",
                    "segmentation_mask": mask[..., None],
                },
            )


def _find(dl_manager, folder, url):
    """Returns the folder of an archive, unpacked by hand or by TFDS.

    TFDS takes an archive from the manual directory too, and checks its sum.
    """
    try:
        manual = dl_manager.manual_dir / folder
    except AssertionError:
        manual = None  # Nothing was put there.
    if manual is not None and manual.exists():
        return manual
    return dl_manager.download_and_extract(url) / folder


def _names(path):
    return path.read_text().split()


def _read_png(path):
    """The indices of a palette PNG, uint8 `[H, W]`."""
    # TensorFlow and TFDS would give the gray values of the palette's colors.
    with path.open("rb") as file, Image.open(file) as image:
        if image.mode != "P":
            raise InputError(
                "VOC's masks are palette PNGs. "
                f"File: {path} (mode {image.mode})"
            )
        return np.array(image)


def _read_mat(path):
    """The class of each pixel in one of SBD's files, uint8 `[H, W]`."""
    import scipy.io

    with path.open("rb") as file:
        content = scipy.io.loadmat(file, squeeze_me=True)
    return np.asarray(content["GTcls"]["Segmentation"].item(), np.uint8)
