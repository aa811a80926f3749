"""The folder data set: images/<split>/NAME.jpg, masks/<split>/NAME.png."""

import collections
import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np

from keras_aspp.data import decode
from keras_aspp.data.spec import DatasetSpec

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class FolderSource:
    """Pictures and masks in a folder.

    Args:
        root: the folder; holds `images/`, `masks/` and, if need be,
            `dataset.json`.
        spec: `DatasetSpec` or `None`: `dataset.json`, or without one as many
            classes as the masks have values.
        validation_fraction: float in (0, 1). Where `images/` has no split
            folders, this share of the names (by their hash) is
            `validation_split`, the rest `train_split`.
        train_split: str, name of the split to train on.
        validation_split: str.

    Attributes:
        spec: `DatasetSpec`.
        pairs: dict, split -> list of `(image path, mask path)`, by name.
        unpaired: list of messages, one per file without a partner.

    Raises:
        FileNotFoundError: no such folder, or none of `images/`, `masks/`.
        ValueError: no pictures, or a `dataset.json` at fault.
    """

    def __init__(
        self,
        root,
        spec=None,
        validation_fraction=0.1,
        train_split="train",
        validation_split="val",
    ):
        self.root = Path(root)
        for part in ("images", "masks"):
            if not (self.root / part).is_dir():
                raise FileNotFoundError(
                    "A folder data set must hold images/ and masks/. "
                    f"Received: root={str(root)!r}, which has no {part}/"
                )
        folders = sorted(
            p.name for p in (self.root / "images").iterdir() if p.is_dir()
        )
        self.pairs, self.unpaired = {}, []
        for split in folders:
            self.pairs[split] = self._find(split)
        if not folders:
            everything = self._find("")
            held_out = _hashed_share(everything, validation_fraction)
            self.pairs = {
                train_split: [p for p in everything if p not in held_out],
                validation_split: [p for p in everything if p in held_out],
            }
        if not any(self.pairs.values()):
            raise ValueError(
                "No pictures (.jpg, .jpeg, .png) with masks under images/ and "
                f"masks/. Received: root={str(root)!r}"
                + "".join(f"; {m}" for m in self.unpaired[:1])
            )
        described = self.root / "dataset.json"
        if described.exists():
            self.spec = DatasetSpec.from_file(described)
        else:
            self.spec = spec or self._guess_spec()

    def _find(self, split):
        images = self._by_name("images", split, IMAGE_SUFFIXES)
        masks = self._by_name("masks", split, None)
        for name in sorted(images.keys() - masks.keys()):
            self.unpaired.append(
                f"Picture without a mask. File: {images[name]} (wanted: "
                f"{self.root / 'masks' / split / name}.png)"
            )
        for name in sorted(masks.keys() - images.keys()):
            self.unpaired.append(f"Mask without a picture. File: {masks[name]}")
        return [
            (str(images[name]), str(masks[name]))
            for name in sorted(images.keys() & masks.keys())
        ]

    def _by_name(self, part, split, suffixes):
        folder, found = self.root / part / split, {}
        if not folder.is_dir():
            return found
        for path in sorted(folder.iterdir()):
            hidden = path.name.startswith(".")
            wanted = suffixes is None or path.suffix.lower() in suffixes
            if hidden or not wanted or not path.is_file():
                continue
            if path.stem in found:
                self.unpaired.append(
                    f"Two files of one name. Files: {found[path.stem]}, {path}"
                )
            found[path.stem] = path
        return found

    def _guess_spec(self):
        blind = DatasetSpec([str(i) for i in range(255)])
        top = 0
        for pairs in self.pairs.values():
            for _, mask in pairs:
                try:
                    stored = decode.read_stored(mask, blind)
                except ValueError:
                    continue  # check_folder reports it, with its name.
                top = max(top, int(stored[stored < 255].max(initial=0)))
        return DatasetSpec([f"class_{i}" for i in range(max(top, 1) + 1)])

    def require(self, split):
        """Raises `ValueError` unless the split has pictures."""
        if not self.pairs.get(split):
            known = {k: len(v) for k, v in self.pairs.items()}
            raise ValueError(
                f"Split `{split}` is empty or missing. Received: "
                f"root={str(self.root)!r} with splits {known}"
            )

    def size(self, split):
        """Number of pictures of a split."""
        self.require(split)
        return len(self.pairs[split])

    def records(self, split):
        """`tf.data.Dataset` of cheap records: `(image path, mask path)`."""
        import tensorflow as tf

        self.require(split)
        images, masks = zip(*self.pairs[split], strict=True)
        return tf.data.Dataset.from_tensor_slices((list(images), list(masks)))

    def decode(self, image, mask):
        """A record -> `(uint8 [H, W, 3], int32 [H, W])`, on the host."""
        image, mask = os.fsdecode(image), os.fsdecode(mask)
        picture = decode.read_image(image)
        labels = decode.read_mask(mask, self.spec, picture.shape[:2])
        return picture, labels.astype("int32")


def _hashed_share(pairs, fraction):
    """Pairs whose name's hash lies in the first `fraction`; at least one."""

    def position(pair):
        digest = hashlib.sha256(Path(pair[0]).stem.encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    held_out = {pair for pair in pairs if position(pair) < fraction}
    if not held_out and len(pairs) > 1:
        held_out = {min(pairs, key=position)}
    if len(held_out) == len(pairs) > 1:
        held_out -= {max(pairs, key=position)}
    return held_out


@dataclasses.dataclass
class FolderReport:
    """What `check_folder` found.

    `class_pixels` is int64 `(num_classes + 1,)` per split, the last entry
    ignored pixels; `sizes` counts pictures by `(height, width)`.
    """

    spec: DatasetSpec
    problems: list
    num_images: dict
    class_pixels: dict
    sizes: dict


def check_folder(source, splits=None, progress=lambda items: items):
    """Reads every picture and mask and lists all that is wrong.

    Args:
        source: `FolderSource`.
        splits: names to check, or `None` for all.
        progress: wraps the list of pairs of a split, to show progress.

    Returns:
        `FolderReport`; `problems` is empty for a data set without fault.
    """
    spec = source.spec
    report = FolderReport(spec, list(source.unpaired), {}, {}, {})
    seen = set()
    for split, pairs in source.pairs.items():
        if splits is not None and split not in splits:
            continue
        if not pairs:
            report.problems.append(f"Split `{split}` is empty.")
        pixels = np.zeros(spec.num_classes + 1, "int64")
        sizes = collections.Counter()
        for image, mask in progress(pairs):
            size = _try(report, lambda i=image: decode.read_image(i).shape[:2])
            if size is not None:
                sizes[size] += 1
            stored = _try(report, lambda m=mask: decode.read_stored(m, spec))
            if stored is not None:
                seen.update(np.unique(stored).tolist())
            labels = stored is not None and _try(
                report, lambda m=mask, s=size: decode.read_mask(m, spec, s)
            )
            if labels is not None and labels is not False:
                counts = np.bincount(labels.ravel(), minlength=256)
                pixels[:-1] += counts[: spec.num_classes]
                pixels[-1] += counts[spec.ignore_label]
        report.num_images[split] = len(pairs)
        report.class_pixels[split] = pixels
        report.sizes[split] = dict(sizes)
    dropped = decode.label_table(spec)[255] == spec.ignore_label
    if dropped and seen == {0, 255}:
        report.problems.append(
            "Masks hold only 0 and 255, and 255 is ignored: the foreground "
            "would be dropped. If they are binary masks, put "
            '"label_map": {"255": 1} into dataset.json.'
        )
    return report


def _try(report, read):
    try:
        return read()
    except ValueError as error:
        report.problems.append(str(error))
        return None
