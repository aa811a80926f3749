"""The folder data set: images/<split>/NAME.jpg, masks/<split>/NAME.png."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_aspp.data import decode, multilabel, tiff
from keras_aspp.data.band_statistics import BandStatistics
from keras_aspp.data.groups import (
    by_group,
    compile_group_by,
    hold_out,
    shared_groups_note,
)
from keras_aspp.data.spec import DatasetSpec, grouped
from keras_aspp.utils.exceptions import InputError, InputNotFoundError
from keras_aspp.utils.text import look
from keras_aspp.utils.types import Dataset, PathLike

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png"),
    *decode.FORMATS_BY_SUFFIX,
    *tiff.SUFFIXES,
)
# Files that file managers create, besides hidden ones.
_JUNK = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx")
# The validation split of a configuration that has none: images of the
# training split, by the hash of their names.
HELD_OUT = "held_out"
# Below so many images, one of them decides which epoch is kept.
_FEW = 5
# A class is noted as rare whose share of the labeled pixels is below a tenth
# of an equal share, and of 1 % at most.
RARE_SHARE, RARE_OF_EQUAL = 0.01, 0.1


class FolderSource:
    """Data set of images and masks in a folder.

    Args:
        root: the folder; holds `images/`, `masks/` and, if need be,
            `dataset.json`.
        spec: `DatasetSpec` or `None`: `dataset.json`, or without one as many
            classes as the masks have values.
        validation_fraction: float in (0, 1). Where `images/` has no split
            folders, this share of the names (by their hash) is
            `validation_split`, the rest `train_split`.
        group_by: str or `None`, regular expression; images whose names begin
            with the same match, or the same first group of it, are held out
            together.
        validation_groups: list of str or `None`, the groups to hold out
            instead of `validation_fraction` of them.
        train_split: str, name of the split to train on.
        validation_split: str; `HELD_OUT` takes its images from `train_split`
            where `images/` has split folders too.

    Attributes:
        spec: `DatasetSpec`.
        pairs: dict, split -> list of `(image path, mask path)`, by name. If
            each class has a folder, the second is a name for the masks of the
            image, `masks/<split>/*/NAME`.
        class_masks: dict, such a name -> path of the mask of each class,
            `None` where it is absent.
        unpaired: dict, split -> list of messages, one per file without a
            partner; under `""` those that belong to no split.
        skipped: dict, split -> list of messages, about files that are not
            read and names that look alike.
        guessed: bool, whether `spec` was made up from the masks.
        notes: list of messages, what is odd but no fault.

    Raises:
        FileNotFoundError: no such folder, or none of `images/`, `masks/`.
        ValueError: no images, or a `dataset.json` at fault.
    """

    def __init__(
        self,
        root: PathLike,
        spec: DatasetSpec | None = None,
        validation_fraction: float = 0.1,
        train_split: str = "train",
        validation_split: str = "val",
        group_by: str | None = None,
        validation_groups: Sequence[str] | None = None,
    ) -> None:
        pattern = compile_group_by(group_by)
        self.root: Path = Path(root)
        self.train_split: str = train_split
        self.validation_split: str = validation_split
        self.validation_fraction: float = validation_fraction
        for part in ("images", "masks"):
            if not (self.root / part).is_dir():
                raise InputNotFoundError(
                    "A folder data set must hold images/ and masks/. "
                    f"Received: root={str(root)!r}, which has no {part}/"
                )
        self.pairs: dict[str, list[tuple[str, str]]] = {}
        self.class_masks: dict[str, tuple[str | None, ...]] = {}
        self.unpaired: dict[str, list[str]] = {}
        self.skipped: dict[str, list[str]] = {}
        self.notes: list[str] = []
        file = self.root / "dataset.json"
        described = os.path.lexists(file)
        self.guessed: bool = spec is None and not described
        if described:
            spec = DatasetSpec.from_file(file, self.notes)
        folders = self._split_folders(spec)
        for split in folders:
            self.pairs[split] = self._find(split, spec)
        if folders:
            self._note_loose_images()
        if not folders or validation_split == HELD_OUT:
            within = train_split if folders else ""
            if within not in self.pairs:
                self.pairs[within] = self._find(within, spec)
            self._hold_out(within, pattern, validation_groups)
        elif validation_groups is not None:
            raise InputError(
                "`validation_groups` are held out of the training split; add "
                "`--data.validation_split null`. Received: "
                f"validation_split={validation_split!r}"
            )
        self._note_shared_groups(pattern)
        if not any(self.pairs.values()):
            found = [*self.unpaired.values(), *self.skipped.values()]
            first = [message for messages in found for message in messages][:1]
            raise InputError(
                f"No images ({_suffixes()}) with masks under images/ and "
                f"masks/. Received: root={str(root)!r}"
                + "".join(f"; {m}" for m in first)
                + self._multilabel_hint(spec)
            )
        self.spec: DatasetSpec = spec or self._guess_spec()

    def _hold_out(self, within, pattern, validation_groups):
        """Moves images of `within` to the validation split."""
        if self.train_split == self.validation_split:
            raise InputError(
                "Images are held out of the training split, so "
                "`data.train_split` and `data.validation_split` must differ. "
                f"Received: {self.train_split!r} for both, "
                f"root={str(self.root)!r}"
            )
        everything = self.pairs.pop(within)
        groups = by_group((_stem(pair) for pair in everything), pattern)
        chosen = hold_out(
            list(groups), self.validation_fraction, validation_groups
        )
        names = {name for group in chosen for name in groups[group]}
        self.pairs |= {
            self.train_split: [p for p in everything if _stem(p) not in names],
            self.validation_split: [p for p in everything if _stem(p) in names],
        }
        found = len(self.pairs[self.validation_split])
        if 0 < found < _FEW and validation_groups is None:
            self.notes.append(
                f"only {found} of {len(everything)} images are held out, by a "
                "hash of their names, so scores of validation say little; a "
                "larger `data.validation_fraction` than "
                f"{self.validation_fraction:g} holds out more"
            )

    def _note_shared_groups(self, pattern):
        names = {
            split: [_stem(pair) for pair in pairs]
            for split, pairs in self.pairs.items()
        }
        note = shared_groups_note(names, pattern)
        self.notes += [note] if note else []

    def _split_folders(self, spec):
        """Returns the names of the splits, empty without split folders."""
        names = {
            part: {p.name for p in _listed(self.root / part) if p.is_dir()}
            for part in ("images", "masks")
        }
        # Folders of masks beside loose images are those of classes.
        if spec is not None and spec.is_multilabel and not names["images"]:
            return []
        return sorted(names["images"] | names["masks"])

    def _multilabel_hint(self, spec):
        """Returns advice for folders of masks beside loose images."""
        images, masks = (
            {path.name for path in _listed(self.root / part) if path.is_dir()}
            for part in ("images", "masks")
        )
        if images or not masks or (spec is not None and spec.is_multilabel):
            return ""
        content = {"class_names": sorted(masks), "task": "multilabel"}
        return (
            f". If masks/{min(masks)} holds the masks of a class that may "
            f"overlap others, write dataset.json: {json.dumps(content)}"
        )

    def _find(self, split, spec):
        messages = self.unpaired.setdefault(split, [])
        for part, other in (("images", "masks"), ("masks", "images")):
            if not (self.root / other / split).is_dir():
                messages.append(
                    f"{part}/{split} has no partner {other}/{split}. "
                    f"Folder: {self.root / part / split}"
                )
                return []
        skipped = {"images": [], "masks": []}
        is_multilabel = spec is not None and spec.is_multilabel
        images, masks = (
            self._by_name(part, split, skipped[part], is_multilabel)
            for part in skipped
        )
        if is_multilabel and self._class_folders(split):
            messages += [
                f"Masks of all classes beside folders of classes. File: {path}"
                for path in masks.values()
            ]
            masks = self._masks_of_classes(split, spec, images, skipped)
        suffix = ".tif" if is_multilabel else ".png"
        wanted = f"{self.root / 'masks' / split}{os.sep}{{}}{suffix}"
        for name in sorted(images.keys() - masks.keys()):
            hint = _near(name, [*masks.values(), *skipped["masks"]])
            messages.append(
                f"Image without a mask. File: {images[name]} (wanted: "
                f"{wanted.format(name)}{hint})"
            )
        for name in sorted(masks.keys() - images.keys()):
            hint = _near(name, [*images.values(), *skipped["images"]])
            messages.append(
                f"Mask without an image. File: {masks[name]}"
                + (f" ({hint.removeprefix('; ')})" if hint else "")
            )
        found = sorted(images.keys() & masks.keys())
        notes = self.skipped.setdefault(split, [])
        for part, files in skipped.items():
            notes += _skipped_notes(self.root / part / split, files)
        if alike := grouped(found, look):
            names = next(iter(alike.values()))
            notes.append(
                f"{len(alike)} names of {Path('images') / split} come in "
                "spellings that look alike, first "
                f"{' and '.join(str(images[name]) for name in names)}"
            )
        return [(str(images[name]), str(masks[name])) for name in found]

    def _class_folders(self, split):
        """Returns the folders in which the masks of a split may lie."""
        listed = _listed(self.root / "masks" / split)
        return [path for path in listed if path.is_dir()]

    def _masks_of_classes(self, split, spec, images, skipped):
        """Returns a name for the masks of each image, in `class_masks`."""
        within = self.root / "masks" / split
        found, messages = multilabel.find_class_masks(
            self._class_folders(split), spec, _listed
        )
        self.unpaired[split] += messages
        skipped["masks"] = [
            path for path in skipped["masks"] if path.parent == within
        ]
        bare = sorted(images.keys() - found.keys())
        if bare:
            self.skipped.setdefault(split, []).append(
                f"{len(bare)} images of {Path('images') / split} have no mask "
                "of any class, so that all classes are absent there, first "
                f"{images[bare[0]]}"
            )
        absent = (None,) * spec.num_classes
        names = {name: within / "*" / name for name in {*found, *images}}
        for name, path in names.items():
            self.class_masks[str(path)] = found.get(name, absent)
        return names

    def masks_of(self, mask: str) -> str | tuple[str | None, ...]:
        """Returns the path of a mask, or one for each class; see `pairs`."""
        return self.class_masks.get(mask, mask)

    def require_pairs(self) -> None:
        """Raises `ValueError` for a file without a partner in any split."""
        messages = [one for found in self.unpaired.values() for one in found]
        if messages:
            rest = len(messages) - 1
            raise InputError(
                f"{messages[0]}. Add the missing file, or move this one out"
                + (f"; {rest} more like it" if rest else "")
                + ". `keras-aspp data check` lists all."
            )

    def files(self, split: str) -> list[str]:
        """Returns the paths of the images and masks of a split."""
        found = []
        for image, mask in self.pairs[split]:
            masks = self.masks_of(mask)
            masks = [masks] if isinstance(masks, str) else masks
            found += [image, *(path for path in masks if path is not None)]
        return found

    def _note_loose_images(self):
        loose = sorted(self._by_name("images", "", []).values())
        if loose:
            self.notes.append(
                f"{len(loose)} images lie beside the split folders and are "
                f"not used, first {loose[0]}"
            )

    def _by_name(self, part, split, skipped, is_multilabel=False):
        """Returns files by stem; other files are appended to `skipped`."""
        found, suffixes = {}, IMAGE_SUFFIXES
        if is_multilabel and part == "masks":
            suffixes = multilabel.ALL_MASKS
        for path in _listed(self.root / part / split):
            if path.is_dir() and split:
                skipped += _files_below(path)
            # A link without a target is read, and so reported.
            if path.exists() and not path.is_file():
                continue
            # A mask under another suffix is named when it is read.
            if path.suffix.lower() not in suffixes and (
                part == "images" or path.suffix
            ):
                skipped.append(path)
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
                    stored = decode.read_stored(mask, blind).values
                except ValueError:
                    continue  # check_folder reports it, with its name.
                top = max(top, int(stored[stored < 255].max(initial=0)))
        return DatasetSpec([f"class_{i}" for i in range(max(top, 1) + 1)])

    def require(self, split: str) -> None:
        """Raises `ValueError` unless the split has images."""
        if not self.pairs.get(split):
            known = {k: len(v) for k, v in self.pairs.items()}
            hint = ""
            if split == self.validation_split:
                hint = (
                    "; name another by `--data.validation_split NAME` "
                    "(evaluate: `--split NAME`), or hold "
                    f"out images of `{self.train_split}` by "
                    "`--data.validation_split null`, as many as "
                    "`--data.validation_fraction` says "
                    f"({self.validation_fraction})"
                )
            elif split == self.train_split:
                hint = "; name another by `--data.train_split NAME`"
            first = "".join(f"; {m}" for m in self.skipped.get(split, [])[:1])
            raise InputError(
                f"Split `{split}` is empty or missing{hint}. Received: "
                f"root={str(self.root)!r} with splits {known}{first}"
            )

    def size(self, split: str) -> int:
        """Returns the number of images of a split."""
        self.require(split)
        return len(self.pairs[split])

    def records(self, split: str) -> Dataset:
        """Returns a `tf.data.Dataset` of `(image path, mask path)`."""
        import tensorflow as tf

        self.require(split)
        # Names need not be UTF-8.
        images, masks = (
            [os.fsencode(path) for path in paths]
            for paths in zip(*self.pairs[split], strict=True)
        )
        return tf.data.Dataset.from_tensor_slices((images, masks))

    def name_of(self, record: Sequence[Any]) -> str:
        """Returns the name of a record, its image path."""
        return os.fsdecode(record[0])

    def decode(
        self, image: PathLike | bytes, mask: PathLike | bytes
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decodes a record.

        Returns:
            `(array [H, W, C], int32 [H, W])`; of a multilabel task, labels
            are uint8 `[H, W, K]`.
        """
        image, mask = os.fsdecode(image), os.fsdecode(mask)
        if self.spec.is_multilabel:
            return multilabel.read_pair(image, self.masks_of(mask), self.spec)
        pixels, labels = decode.read_pair(image, mask, self.spec)
        return pixels, labels.astype("int32")


def _is_junk(path):
    return path.name.startswith(".") or path.name.lower() in _JUNK


def _listed(folder):
    """Lists the files and folders in a folder, by name."""
    return [path for path in sorted(folder.iterdir()) if not _is_junk(path)]


def _suffixes():
    return ", ".join(IMAGE_SUFFIXES)


def _files_below(folder):
    """Lists the files below a folder, without following links."""
    return sorted(
        path
        for where, _, names in os.walk(folder)
        for name in names
        if not _is_junk(path := Path(where, name))
    )


def _near(name, files):
    """Names a file that may be the partner that `name` lacks."""
    for path in files:
        if path.stem == name:
            nested = path.suffix.lower() in IMAGE_SUFFIXES
            way = (
                "it lies in a folder within" if nested else "convert it to PNG"
            )
            return f"; {path} is not read, {way}"
    for path in files:
        if look(path.stem) == look(name):
            return f"; {path} differs in case, spaces or Unicode's form"
    return ""


def _skipped_notes(folder, files):
    """Counts and names the files of a split that are not read."""
    nested = [path for path in files if path.parent != folder]
    if nested:
        yield (
            f"{len(nested)} files in folders within {folder} are not used; a "
            f"split is one folder, first {nested[0]}"
        )
    others = [path for path in files if path.parent == folder]
    if others:
        counts = collections.Counter(path.suffix.lower() for path in others)
        counts = ", ".join(
            f"{count} {suffix or 'without suffix'}"
            for suffix, count in counts.most_common(5)
        )
        read = ".png" if folder.parent.name == "masks" else _suffixes()
        yield (
            f"{len(others)} files of {folder} are not used ({counts}), since "
            f"their suffix is none of {read}, first {others[0]}"
        )


def _stem(pair):
    return Path(pair[0]).stem


@dataclasses.dataclass
class FolderReport:
    """Result of `check_folder`.

    `problems` and `notes` are lists of one-line messages. `class_pixels` is
    int64 `(num_classes + 1,)` per split, the last entry ignored pixels;
    `sizes` counts images by `(height, width)`; `num_pixels` is the number of
    their pixels per split, by which the classes of a multilabel task are
    counted, since they overlap. `bands` has the statistics of
    the training images (of all, without that split), see
    `BandStatistics.result`; it is empty for RGB of 0..255.
    """

    spec: DatasetSpec
    problems: list[str]
    notes: list[str]
    num_images: dict[str, int]
    class_pixels: dict[str, np.ndarray]
    sizes: dict[tuple[int, int], int]
    bands: dict[str, Any] = dataclasses.field(default_factory=dict)
    num_pixels: dict[str, int] = dataclasses.field(default_factory=dict)

    def shares(self, split: str) -> tuple[np.ndarray, float]:
        """Returns the share of each class, and that of ignored pixels.

        Classes are counted against labeled pixels; those of a multilabel task
        against all pixels, and ignored ones against those of all masks.
        """
        pixels = self.class_pixels[split]
        total, everything = pixels[:-1].sum(), pixels.sum()
        if self.spec.is_multilabel:
            total = self.num_pixels[split]
            everything = total * self.spec.num_classes
        with np.errstate(invalid="ignore", divide="ignore"):
            return pixels[:-1] / total, pixels[-1] / everything


def check_folder(
    source: FolderSource,
    splits: Sequence[str] | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda items: items,
) -> FolderReport:
    """Reads every image and mask and lists all that is wrong.

    Args:
        source: `FolderSource`.
        splits: names to check, or `None` for all.
        progress: wraps the list of pairs of a split, to show progress.

    Returns:
        `FolderReport`; `problems` is empty for a data set without fault.
    """
    spec = source.spec
    report = FolderReport(spec, [], list(source.notes), {}, {}, {})
    splits = list(dict.fromkeys(source.pairs if splits is None else splits))
    for split in dict.fromkeys(("", *splits)):
        report.problems += source.unpaired.get(split, [])
        report.notes += source.skipped.get(split, [])
    seen = _Seen(spec)
    measured = source.train_split if source.train_split in splits else None
    for split in splits:
        seen.measures = measured in (None, split)
        pairs = source.pairs.get(split, [])
        if not pairs and not source.unpaired.get(split):
            _try(report, lambda s=split: source.require(s))
        pixels = np.zeros(spec.num_classes + 1, "int64")
        sizes = collections.Counter()
        report.num_pixels[split] = 0
        num_blank, num_read = len(seen.blank), 0
        for image, mask in progress(pairs):
            masks = source.masks_of(mask)
            size, counts = _check_pair(report, seen, image, masks, mask)
            if size is not None:
                sizes[size] += 1
                report.num_pixels[split] += size[0] * size[1]
            if counts is not None:
                pixels += counts
                num_read += 1
        used = split in (source.train_split, source.validation_split)
        if used and 0 < num_read == len(seen.blank) - num_blank:
            report.problems.append(
                f"Split `{split}` has no valid pixel: all pixels of all masks "
                f"are ignored; ignore_label is {spec.ignore_label}. Mend the "
                f"masks or the label_map. File: {seen.blank[num_blank]}"
            )
        report.num_images[split] = len(pairs)
        report.class_pixels[split] = pixels
        report.sizes[split] = dict(sizes)
    report.bands = seen.bands.result()
    report.problems += seen.problems(spec)
    report.notes += _notes(report, source)
    report.notes += seen.notes(spec)
    report.notes += _shared_images(source, splits)
    return report


def _check_pair(report, seen, image, masks, name):
    """Returns `(size, counted labels)`, `None` if unreadable.

    Args:
        report: `FolderReport`, to which problems are added.
        seen: `_Seen`.
        image: path.
        masks: see `FolderSource.masks_of`.
        name: name of the masks for messages.
    """
    spec, size, orientation = report.spec, None, 1
    read = _try(report, lambda: _read_bands(image, seen, spec))
    if read is not None:
        size, orientation = read.values.shape[:2], read.orientation
    if orientation != 1:
        seen.turned.append(image)
    if spec.is_multilabel:
        labels = _check_masks(report, seen, masks, size, orientation)
    else:
        labels = _check_mask(report, seen, masks, size, orientation)
    if labels is None:
        return size, None
    if read is not None and read.valid is not None:
        labels[~read.valid] = spec.ignore_label  # as in training
    if (labels == spec.ignore_label).all():
        seen.blank.append(name)
    return size, spec.count_pixels(labels)


def _check_mask(report, seen, mask, size, orientation):
    """Returns labels, or `None`."""
    spec = report.spec
    stored = _try(
        report, lambda: decode.read_stored(mask, spec, None, orientation)
    )
    if stored is None:
        return None
    seen.add(mask, stored)
    return _try(report, lambda: stored.labels(spec, size, mask))


def _check_masks(report, seen, masks, size, orientation):
    """Returns the labels of a multilabel task, or `None`."""
    spec = report.spec
    stored = _try(
        report,
        lambda: multilabel.read_stored_masks(masks, spec, orientation),
    )
    if stored is None or size is None:
        return None
    for name, part in stored.parts:
        if part is not None:
            seen.add(name, part)
    return _try(report, lambda: stored.labels(spec, size))


def _read_bands(image, seen, spec):
    """Reads an image and adds its bands to the statistics."""
    is_rgb = (spec.channels, spec.dtype) == (3, "uint8")
    as_stored = not is_rgb or decode.is_banded(image)
    stored = decode.read_bands(image, pixels=None if as_stored else spec.pixels)
    bands = decode.without_alpha(stored, spec.channels)
    if bands.values.shape != stored.values.shape:
        seen.alpha.append((image, stored.values.shape[-1]))
    if seen.measures:
        seen.bands.add(bands, image)
    return decode.fitting(bands, spec.pixels, image)


class _Seen:
    """Checks the masks and images of all splits together."""

    def __init__(self, spec):
        self.turned, self.turned_masks = [], []
        self.bands, self.measures = BandStatistics(spec.pixels), True
        self.blank, self.transparent, self.alpha = [], [], []
        # Of masks that hold numbers: value -> first file, and gray levels.
        self.values, self.levels = {}, {}

    def add(self, mask, stored):
        if stored.orientation != 1:
            self.turned_masks.append(mask)
        if stored.num_transparent:
            self.transparent.append(mask)
        if stored.is_colored:
            return
        for value in np.unique(stored.values).tolist():
            self.values.setdefault(value, mask)
            if stored.levels is not None:
                self.levels.setdefault(value * stored.levels, (value, mask))

    def problems(self, spec):
        if spec.is_multilabel:
            spec = spec.of_one_mask()
        return self._gray_colors(spec) or self._binary(spec)

    def _gray_colors(self, spec):
        """Reports gray masks that contain gray levels instead of ids."""
        if spec.colormap is None or spec.label_map or not any(self.levels):
            return []
        colors = dict.fromkeys(spec.ignore_colors, spec.ignore_label)
        colors |= {color: label for label, color in enumerate(spec.colormap)}
        table = decode.label_table(spec)
        meant = {level: colors.get((level,) * 3) for level in self.levels}
        wrong = [
            level
            for level, (value, _) in self.levels.items()
            if meant[level] != table[value]
        ]
        if None in meant.values() or not wrong:
            return []
        return [
            f"Gray masks hold the levels {sorted(self.levels)}, which are "
            "colors of the colormap, but would be read as label values. Save "
            "them as RGB, or as the classes' numbers. "
            f"File: {self.levels[wrong[0]][1]}"
        ]

    def _binary(self, spec):
        dropped = decode.label_table(spec)[255] == spec.ignore_label
        if not dropped or set(self.values) != {0, 255}:
            return []
        fix = (
            'If they are binary masks, put "task": "binary" into '
            'dataset.json, or "label_map": {"255": 1}'
        )
        if spec.task == "binary":
            fix = 'If 255 is the object, remove "ignore_label" in dataset.json'
        return [
            "Masks hold only 0 and 255, and 255 is ignored: the foreground "
            f"would be dropped. {fix}. File: {self.values[255]}"
        ]

    def notes(self, spec):
        if note := self.bands.note():
            yield note
        if spec.reads_white_as_object and self.values.keys() & {1, 255}:
            shown = " and ".join(
                f"{value} (first {self.values[value]})"
                for value in sorted(self.values.keys() & {1, 255})
            )
            what = f"the object ({spec.class_names[-1]})"
            if spec.is_multilabel:
                what = "their class"
            yield f"masks show {what} as {shown}"
        if self.blank:
            yield (
                f"{len(self.blank)} masks have no valid pixel, all is ignored, "
                f"first {self.blank[0]}"
            )
        if self.transparent:
            yield (
                f"{len(self.transparent)} masks have transparent pixels, which "
                "are read as black whatever color they had, first "
                f"{self.transparent[0]}"
            )
        if self.alpha:
            image, channels = self.alpha[0]
            yield (
                f"{len(self.alpha)} images declare their last band as alpha, "
                "which is no band of the image: pixels where it is 0 are "
                f'ignored. If it is data, such as infrared, put "channels": '
                f"{channels} into dataset.json, first {image}"
            )
        if not self.turned and not self.turned_masks:
            return
        own = (
            "their masks must be upright, too; if they fit the images as these "
            'are stored, put "mask_orientation": "image" into dataset.json, or '
            "write upright copies by `keras-aspp data fix --masks image`"
        )
        if spec.mask_orientation == "image":
            own = 'so are their masks, by "mask_orientation": "image"'
        yield (
            f"{len(self.turned)} images and {len(self.turned_masks)} masks "
            "carry an EXIF orientation, by which they are turned upright; "
            f"{own}, first {[*self.turned, *self.turned_masks][0]}"
        )


def _shared_images(source, splits):
    """Reports files in two splits; reads those of equal size."""
    files = [
        (split, image)
        for split in splits
        for image, _ in source.pairs.get(split, [])
    ]
    shared = collections.defaultdict(list)
    for same_size in grouped(files, lambda file: _bytes_of(file[1])).values():
        if len({split for split, _ in same_size}) < 2:
            continue
        for same in grouped(same_size, lambda f: _digest(f[1])).values():
            first, image = same[0]
            others = {split: path for split, path in same if split != first}
            for split, path in others.items():
                shared[first, split].append((image, path))
    for (first, split), found in shared.items():
        yield (
            f"{len(found)} images of `{split}` are in `{first}`, too, so its "
            f"scores are not those of new images, first {found[0][1]} = "
            f"{found[0][0]}"
        )


def _bytes_of(path):
    try:
        return os.path.getsize(path)
    except OSError:
        return path  # deleted meanwhile


def _digest(path):
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return path


def _notes(report, source):
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
            lost = split == source.train_split
            notes.append(
                f"classes that do not occur in `{split}`: "
                f"{', '.join(names[missing])}"
                + ("; they cannot be learned" if lost else "")
            )
    # Rare classes of the training split, if it exists.
    measured = (
        [source.train_split] if source.train_split in counted else counted
    )
    pixels = sum((counted[s] for s in measured), np.zeros(len(names), "int64"))
    total = pixels.sum()
    if source.spec.is_multilabel:
        total = sum(report.num_pixels[s] for s in measured)
    limit = min(RARE_SHARE, RARE_OF_EQUAL / len(names))
    rare = np.flatnonzero((pixels > 0) & (pixels < limit * total))
    if len(rare):
        shown = ", ".join(f"{names[i]} ({pixels[i] / total:.2%})" for i in rare)
        notes.append(
            f"rare classes, below {limit:.2%} of the labeled pixels: "
            f"{shown}; cross entropy alone learns such late "
            "or never, train.loss.dice or train.loss.lovasz helps"
        )
    return notes


def _try(report, read):
    try:
        return read()
    except ValueError as error:
        report.problems.append(str(error))
        return None
