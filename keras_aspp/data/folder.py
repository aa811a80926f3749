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
# A class with a smaller share of the labelled pixels is noted as rare.
RARE = 0.01


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
        unpaired: dict, split -> list of messages, one per file without a
            partner; under `""` those that belong to no split.
        guessed: bool, whether `spec` was made up from the masks.
        notes: list of messages, what is odd but no fault.

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
            {
                path.name
                for part in ("images", "masks")
                for path in (self.root / part).iterdir()
                if path.is_dir() and not path.name.startswith(".")
            }
        )
        self.pairs, self.unpaired, self.notes = {}, {}, []
        for split in folders:
            self.pairs[split] = self._find(split)
        if folders:
            self._note_loose_pictures()
        else:
            everything = self._find("")
            held_out = _hashed_share(everything, validation_fraction)
            self.pairs = {
                train_split: [p for p in everything if p not in held_out],
                validation_split: [p for p in everything if p in held_out],
            }
        if not any(self.pairs.values()):
            first = [m for found in self.unpaired.values() for m in found][:1]
            raise ValueError(
                "No pictures (.jpg, .jpeg, .png) with masks under images/ and "
                f"masks/. Received: root={str(root)!r}"
                + "".join(f"; {m}" for m in first)
            )
        file = self.root / "dataset.json"
        described = os.path.lexists(file)
        self.guessed = spec is None and not described
        if described:
            self.spec = DatasetSpec.from_file(file)
        else:
            self.spec = spec or self._guess_spec()

    def _find(self, split):
        messages = self.unpaired.setdefault(split, [])
        for part, other in (("images", "masks"), ("masks", "images")):
            if not (self.root / other / split).is_dir():
                messages.append(
                    f"{part}/{split} has no partner {other}/{split}. "
                    f"Folder: {self.root / part / split}"
                )
                return []
        images = self._by_name("images", split, IMAGE_SUFFIXES)
        masks = self._by_name("masks", split, None)
        for name in sorted(images.keys() - masks.keys()):
            messages.append(
                f"Picture without a mask. File: {images[name]} (wanted: "
                f"{self.root / 'masks' / split / name}.png)"
            )
        for name in sorted(masks.keys() - images.keys()):
            messages.append(f"Mask without a picture. File: {masks[name]}")
        return [
            (str(images[name]), str(masks[name]))
            for name in sorted(images.keys() & masks.keys())
        ]

    def _note_loose_pictures(self):
        loose = sorted(self._by_name("images", "", IMAGE_SUFFIXES).values())
        if loose:
            self.notes.append(
                f"{len(loose)} pictures lie beside the split folders and are "
                f"not used, first {loose[0]}"
            )

    def _by_name(self, part, split, suffixes):
        found = {}
        for path in sorted((self.root / part / split).iterdir()):
            hidden = path.name.startswith(".")
            wanted = suffixes is None or path.suffix.lower() in suffixes
            if hidden or not wanted or not path.is_file():
                continue
            if path.stem in found:
                self.unpaired.setdefault(split, []).append(
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
        # Names need not be UTF-8.
        images, masks = (
            [os.fsencode(path) for path in paths]
            for paths in zip(*self.pairs[split], strict=True)
        )
        return tf.data.Dataset.from_tensor_slices((images, masks))

    def name_of(self, record):
        """What to call a record: the picture's path."""
        return os.fsdecode(record[0])

    def decode(self, image, mask):
        """A record -> `(uint8 [H, W, 3], int32 [H, W])`, on the host."""
        image, mask = os.fsdecode(image), os.fsdecode(mask)
        picture = decode.read_image(image)
        labels = decode.read_mask(mask, self.spec, picture.shape[:2])
        return picture, labels.astype("int32")


def _hashed_share(pairs, fraction):
    """Pairs whose name's hash lies in the first `fraction`; at least one."""

    def position(pair):
        digest = hashlib.sha256(os.fsencode(Path(pair[0]).stem)).digest()
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

    `problems` and `notes` are lists of one-line messages. `class_pixels` is
    int64 `(num_classes + 1,)` per split, the last entry ignored pixels;
    `sizes` counts pictures by `(height, width)`.
    """

    spec: DatasetSpec
    problems: list
    notes: list
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
    report = FolderReport(spec, [], list(source.notes), {}, {}, {})
    if splits is None:
        splits = [*source.pairs]
    for split in ("", *splits):
        report.problems += source.unpaired.get(split, [])
    stored_values, turned, blank = {}, [], []
    for split in splits:
        pairs = source.pairs.get(split, [])
        if not pairs and not source.unpaired.get(split):
            report.problems.append(
                f"Split `{split}` is empty. "
                f"Folder: {source.root / 'images' / split}"
            )
        pixels = np.zeros(spec.num_classes + 1, "int64")
        sizes = collections.Counter()
        for image, mask in progress(pairs):
            size = _try(report, lambda i=image: _size(i, turned))
            if size is not None:
                sizes[size] += 1
            stored = _try(report, lambda m=mask: decode.read_stored(m, spec))
            if stored is None:
                continue
            for value in np.unique(stored).tolist():
                stored_values.setdefault(value, mask)
            labels = _try(
                report,
                lambda x=stored, s=size, m=mask: decode.to_labels(
                    x, spec, s, m
                ),
            )
            if labels is not None:
                counts = np.bincount(labels.ravel(), minlength=256)
                pixels[:-1] += counts[: spec.num_classes]
                pixels[-1] += counts[spec.ignore_label]
                if counts[spec.ignore_label] == labels.size:
                    blank.append(mask)
        report.num_images[split] = len(pairs)
        report.class_pixels[split] = pixels
        report.sizes[split] = dict(sizes)
    report.problems += (
        _try(report, lambda: _binary_masks(spec, stored_values)) or []
    )
    report.notes += _notes(report, source, turned, blank)
    return report


def _size(image, turned):
    """A readable picture's size; `turned` collects those EXIF would turn."""
    size = decode.read_image(image).shape[:2]
    if decode.is_turned(image):
        turned.append(image)
    return size


def _binary_masks(spec, stored_values):
    dropped = decode.label_table(spec)[255] == spec.ignore_label
    if not dropped or set(stored_values) != {0, 255}:
        return []
    with decode.open_image(stored_values[255]) as mask:
        # In colours, 255 stands for the black that the colormap leaves out.
        if mask.mode.startswith("RGB"):
            return []
    return [
        "Masks hold only 0 and 255, and 255 is ignored: the foreground would "
        'be dropped. If they are binary masks, put "label_map": {"255": 1} '
        f"into dataset.json. File: {stored_values[255]}"
    ]


def _notes(report, source, turned, blank):
    names = np.array(source.spec.class_names)
    notes = []
    if source.guessed:
        notes.append(
            f"no dataset.json: {len(names)} classes, as many as the masks have "
            "values; names, ignore_label, colormap and label_map belong there"
        )
    counted = {s: p[:-1] for s, p in report.class_pixels.items() if p.any()}
    never = np.all([p == 0 for p in counted.values()], axis=0)
    if counted and never.any():
        notes.append(f"classes that never occur: {', '.join(names[never])}")
    for split, pixels in counted.items():
        missing = (pixels == 0) & ~never
        if missing.any():
            notes.append(
                f"classes that do not occur in `{split}`: "
                f"{', '.join(names[missing])}"
            )
    pixels = sum(counted.values(), np.zeros(len(names), "int64"))
    rare = (pixels > 0) & (pixels < RARE * pixels.sum())
    if rare.any():
        notes.append(
            f"rare classes, below {RARE:.1%} of the labelled pixels: "
            f"{', '.join(names[rare])}; cross entropy alone learns such late "
            "or never, train.loss.dice or train.loss.lovasz helps"
        )
    if blank:
        notes.append(
            f"{len(blank)} masks have no valid pixel, all is ignored, first "
            f"{blank[0]}"
        )
    if turned:
        notes.append(
            f"{len(turned)} pictures carry an EXIF orientation, which training "
            "does not apply: masks must fit them as stored, first "
            f"{turned[0]}"
        )
    return notes


def _try(report, read):
    try:
        return read()
    except ValueError as error:
        report.problems.append(str(error))
        return None
