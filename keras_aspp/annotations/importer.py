"""Import of annotations as a folder data set for semantic segmentation."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from keras_aspp.annotations.readers import read_annotations
from keras_aspp.annotations.regions import AnnotatedImage, Region
from keras_aspp.annotations.source import COMMAND, is_imported, opened_source
from keras_aspp.data import decode
from keras_aspp.data.groups import (
    by_group,
    compile_group_by,
    place_of,
    shared_groups_note,
)
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.plots.labels import index_image
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.files import check_output, replacing_folder
from keras_aspp.utils.text import num_of
from keras_aspp.utils.types import PathLike

IGNORE, DROP = "ignore", "drop"
IGNORE_LABEL = 255
_VALIDATION_FRACTION = 0.1
# Classes that tools write for pixels without a class.
_VOID = ("void", "ignore", "ignored", "unlabeled", "unlabelled")


@dataclasses.dataclass
class ImportReport:
    """Result of `import_annotations`.

    Attributes:
        format: name of the format.
        spec: `DatasetSpec` of the written folder.
        num_images: dict, split -> number of images.
        overlaps: pixels that regions of two classes share.
        notes: messages about what was left out or decided.
    """

    format: str
    spec: DatasetSpec
    num_images: dict[str, int]
    overlaps: int
    notes: list[str]


def import_annotations(
    source: PathLike,
    output: PathLike,
    *,
    images: PathLike | None = None,
    annotation_format: str | None = None,
    class_map: Mapping[str, str] | None = None,
    overlap: Literal["area", "z_order", "file"] = "area",
    background: str = "background",
    exif: Literal["auto", "upright", "stored"] = "auto",
    group_by: str | None = None,
    validation_fraction: float = _VALIDATION_FRACTION,
    test_fraction: float = 0.0,
    task: Literal["semantic", "binary"] = "semantic",
    overwrite: bool = False,
    progress: Callable[[list[Any]], Iterable[Any]] = lambda items: items,
) -> ImportReport:
    """Converts annotations to a folder of images and masks.

    Images are copied byte by byte. Masks are upright palette PNGs of the
    classes. Regions without one class (COCO's crowds, Label Studio's without
    a label) are ignored and drawn below all others; those of ignored classes
    are drawn like any.

    Args:
        source: folder, zip archive or annotation file.
        output: folder to create, for `--data.root`.
        images: folder of the images, if they are not in `source`.
        annotation_format: one of `FORMATS`, or `None` to recognize it.
        class_map: class of the source -> its new name, `"ignore"`, or `"drop"`
            for regions that are not drawn. Classes of one new name are merged.
        overlap: which region is on top: `"area"`, the smaller one;
            `"z_order"`, by the tool's order; `"file"`, the later one.
        background: name of the class of pixels without a region.
        exif: frame of the annotations of images with an EXIF orientation:
            `"upright"`, as viewers show them; `"stored"`; or `"auto"`, which
            follows the stated height and width, and is upright without them.
            Images whose stated size contradicts it are left out.
        group_by: regular expression; images whose names match it with the same
            text, or the same first group, stay in one split.
        validation_fraction: share of the groups that become `val`, in [0, 1),
            if the source names no splits.
        test_fraction: share of the groups that become `test`, in [0, 1).
        task: `"binary"` for one class beside the background.
        overwrite: replace an `output` that an import wrote.
        progress: wraps the list of images, to show progress.

    Returns:
        `ImportReport`.

    Raises:
        FileExistsError: `output` exists, and `overwrite` is False or no import
            wrote it.
        FileNotFoundError: `source` or `images` does not exist.
        ValueError: an argument, or the annotations, are invalid.
    """
    output = Path(output)
    check_output(output, overwrite, is_imported, COMMAND)
    _check_apart(output, source, images)
    _check_shares(validation_fraction, test_fraction)
    if task not in ("semantic", "binary"):
        raise InputError(
            "Annotations become masks of one class a pixel: `task` must be "
            f"'semantic' or 'binary'. Received: task={task!r}"
        )
    pattern = compile_group_by(group_by)
    with opened_source(source, images) as files:
        name, found = read_annotations(files, annotation_format)
        if not found.images:
            raise InputError(
                "The source holds no image with annotations. Received: "
                + "; ".join([str(source), *found.notes])
            )
        if overlap == "z_order":
            _check_z_order(found.images, name)
        classes = _Classes(found, class_map or {}, background, task)
        report = ImportReport(name, classes.spec, {}, 0, list(found.notes))
        report.notes += classes.notes
        writer = _Writer(classes, overlap, exif, report)
        with replacing_folder(output) as work:
            for image in progress(found.images):
                writer.write(image, work)
            writer.check()
            # Only now, since images that cannot be read are of no split.
            report.notes += _split(
                [image for image, _ in writer.written],
                pattern,
                validation_fraction,
                test_fraction,
            )
            writer.finish()
            classes.spec.to_file(work / "dataset.json", f"{COMMAND}, {name}")
        report.notes = [files.public(note) for note in report.notes]
    return report


class _Classes:
    """Classes of the output, and which of them a class of the source is."""

    def __init__(self, found, class_map, background, task):
        names = found.class_names
        unknown = set(class_map) - set(names)
        if unknown:
            raise InputError(
                "`--map` must name classes of the source, "
                f"{', '.join(names)}. Received: {', '.join(sorted(unknown))}"
            )
        self.notes, self.background = [], background
        special = {IGNORE: IGNORE_LABEL, DROP: None}
        # Class of the source -> label of those that become no class, or name.
        labels: dict[str, int | None] = {}
        targets: dict[str, str] = {}
        for name in names:
            plain = name.strip("_ ").casefold()
            if class_map.get(name) in special:
                labels[name] = special[class_map[name]]
            elif name in class_map:
                targets[name] = class_map[name]
            elif plain in _VOID:
                labels[name] = IGNORE_LABEL
                self.notes.append(
                    f"class {name!r} is ignored; --map "
                    f"{shlex.quote(name)}=NAME keeps it"
                )
            else:
                targets[name] = background if plain == "background" else name
        kept = list(targets.values())
        # Masks may label every pixel; regions leave some without a class.
        has_regions = any(image.spec is None for image in found.images)
        if has_regions or background in kept or None in labels.values():
            kept.insert(0, background)
        new = {name: label for label, name in enumerate(dict.fromkeys(kept))}
        if not names:
            raise InputError(
                "The annotations must hold regions of a class. Received: "
                f"{num_of(len(found.images), 'image')} without a region"
                + "".join(f"; {note}" for note in found.notes)
            )
        if len(new) < 2:
            raise InputError(
                "At least one class must be left beside "
                f"{next(iter(new), background)!r}. Received: classes "
                f"{', '.join(names) or 'none'}"
                + "".join(f"; {note}" for note in [*found.notes, *self.notes])
            )
        if task == "binary" and (len(new) != 2 or background not in new):
            raise InputError(
                "A binary task has one class beside its background, "
                f"{background!r} (--background); merge, ignore or drop others "
                "by --map. "
                f"Received: {', '.join(new)}"
            )
        if len(new) > IGNORE_LABEL:
            raise InputError(
                f"Masks hold at most {IGNORE_LABEL} classes; merge or drop "
                f"some by --map. Received: {len(new)}"
            )
        self.labels: dict[str, int | None] = labels | {
            name: new[target] for name, target in targets.items()
        }
        # Beside 1, binary masks show the object as 255 unless told otherwise.
        label_map = {} if task == "binary" else None
        self.spec = DatasetSpec(
            list(new), IGNORE_LABEL, task=task, label_map=label_map
        )

    def table(self, spec):
        """Returns uint8 `(256,)`: label of a source's mask -> label."""
        table = np.full(256, IGNORE_LABEL, "uint8")
        for label, name in enumerate(spec.class_names):
            table[label] = self.labels[name] or 0
        return table


class _Writer:
    """Writes images and masks, and counts what happened."""

    def __init__(self, classes, overlap, exif, report):
        self.classes, self.overlap, self.exif = classes, overlap, exif
        self.report = report
        self.background = classes.background
        self.unreadable, self.outside, self.turned = [], [], 0
        self.images_of_overlaps = self.empty = 0
        self.stems: set[str] = set()
        # Images, and the paths of their two files: without their split.
        self.written: list[tuple[AnnotatedImage, list[Path]]] = []

    def write(self, image: AnnotatedImage, work: Path) -> None:
        try:
            bands = decode.read_bands(image.path)
            upright, orientation = bands.values.shape[:2], bands.orientation
            labels = self._labels(image, upright, orientation)
        except InputError as error:
            self.unreadable.append(str(error))
            return
        self.turned += orientation != 1
        stem = self._free_stem(image.path.stem)
        for part in ("images", "masks"):
            (work / part).mkdir(exist_ok=True)
        copy = work / "images" / f"{stem}{image.path.suffix.lower()}"
        shutil.copyfile(image.path, copy)
        mask = work / "masks" / f"{stem}.png"
        index_image(labels, self.classes.spec).save(mask)
        self.written.append((image, [copy, mask]))

    def _free_stem(self, stem):
        """Returns a name that no other file has, numbered if needed."""
        numbered = (f"{stem}_{i}" for i in itertools.count(2))
        free = next(
            name
            for name in itertools.chain([stem], numbered)
            if name.casefold() not in self.stems
        )
        self.stems.add(free.casefold())
        return free

    def _labels(self, image, upright, orientation):
        """Returns the labels of an image, uint8 `[H, W]`, upright."""
        stored = upright[::-1] if orientation >= 5 else upright
        if image.label_image is not None:
            mask = _stored(image)
            turn = self._is_stored(mask.shape, upright, stored, image)
            labels = self.classes.table(image.spec)[mask]
        else:
            self.empty += not image.regions
            turn = self._is_stored(image.size, upright, stored, image)
            labels = self._draw(image, stored if turn else upright)
        return decode.turn_upright(labels, orientation) if turn else labels

    def _is_stored(self, size, upright, stored, image):
        """Returns True if annotations of that size fit the stored image.

        The size decides, if there is one and it differs between both frames.
        """
        if size is None or tuple(size) == upright == stored:
            return self.exif == "stored"
        size = tuple(size)
        if size not in (upright, stored):
            raise InputError(
                f"The annotations are for {size[0]}x{size[1]}, the image is "
                f"{upright[0]}x{upright[1]}. File: {image.path}"
            )
        frame = "upright" if size == upright else "stored"
        if self.exif not in ("auto", frame):
            raise InputError(
                f"The annotations are for {size[0]}x{size[1]}, which is the "
                f"{frame} image; leave --exif out. Received: --exif "
                f"{self.exif}. File: {image.path}"
            )
        return frame == "stored"

    def _draw(self, image, size):
        """Draws the regions of an image, uint8 `[H, W]`."""
        drawn = []
        for number, region in enumerate(image.regions):
            label = self.classes.labels.get(region.class_name, IGNORE_LABEL)
            if region.is_ignored:
                label = IGNORE_LABEL
            if label is None:
                continue
            try:
                mask = region.mask(size)
            except InputError as error:
                self.outside.append(f"{image.path.name}: {error}")
                continue
            box, mask = _cropped(mask)
            drawn.append((self._order(region, mask, number), label, box, mask))
        labels = np.zeros(size, "uint8")
        claimed = np.zeros(size, bool)
        overlaps = np.zeros(size, bool)
        # Ignored regions first, so that they hide nothing.
        for _, label, box, mask in sorted(drawn, key=lambda item: item[0]):
            if label != IGNORE_LABEL:
                overlaps[box] |= mask & claimed[box] & (labels[box] != label)
                claimed[box] |= mask
            labels[box][mask] = label
        self.report.overlaps += int(overlaps.sum())
        self.images_of_overlaps += bool(overlaps.any())
        return labels

    def _order(self, region: Region, mask, number):
        rank = {
            "area": lambda: -int(mask.sum()),
            "z_order": lambda: region.z_order or 0,
            "file": lambda: 0,
        }[self.overlap]()
        return not region.is_ignored, rank, number

    def check(self):
        """Raises if nothing was written."""
        if not self.written:
            raise InputError(
                "No image could be imported. Received: "
                + "; ".join(self.unreadable[:1])
            )

    def finish(self):
        """Moves files to their splits, and notes what was counted."""
        notes, counts = self.report.notes, self.report.num_images
        for image, files in self.written:
            for file in files:
                (file.parent / image.split).mkdir(exist_ok=True)
                file.rename(file.parent / image.split / file.name)
            counts[image.split] = counts.get(image.split, 0) + 1
        if "train" not in counts:
            notes.append("no image is in train")
        if self.unreadable:
            notes.append(
                f"left out {num_of(len(self.unreadable), 'image')}, first: "
                f"{self.unreadable[0]}"
            )
        if self.empty:
            notes.append(
                f"{self.background} as a whole, without a region: "
                f"{num_of(self.empty, 'image')}"
            )
        if self.outside:
            notes.append(
                f"left out {num_of(len(self.outside), 'region')}, first "
                f"{self.outside[0]}"
            )
        if self.report.overlaps:
            notes.append(
                f"{self.report.overlaps} pixels of "
                f"{num_of(self.images_of_overlaps, 'image')} belong to "
                "regions of two classes; on top is "
                f"{_TOP[self.overlap]} (--overlap)"
            )
        if self.turned:
            notes.append(
                f"EXIF orientation in {num_of(self.turned, 'image')}: masks "
                "are upright, as the images are read"
            )


def _stored(image):
    """Reads a mask of the source, which has no `dataset.json`."""
    path = image.label_image
    try:
        return decode.read_mask(path, image.spec)
    except decode.UnknownColorError as error:
        raise InputError(
            f"{error.problem}; name all classes in labelmap.txt beside "
            f"{path.parent.name}/, a line NAME:R,G,B:: each. {error.place}"
        ) from None


def _cropped(mask):
    """Returns `(box, mask within it)`: an image may have many regions."""
    rows = _extent(mask.any(axis=1))
    box = rows, _extent(mask[rows].any(axis=0))
    return box, mask[box].copy()


def _extent(values):
    places = np.flatnonzero(values)
    return slice(places[0], places[-1] + 1) if len(places) else slice(0)


_TOP = {
    "area": "the smaller region",
    "z_order": "the region of the higher z-order",
    "file": "the later region in the file",
}


def _check_apart(output, *inputs):
    """Raises if an input lies in the folder that would be replaced."""
    for path in inputs:
        if path is not None and Path(path).resolve().is_relative_to(
            output.resolve()
        ):
            raise InputError(
                "The output would replace what it is made of; name another "
                f"folder. Received: output={str(output)!r}, which contains "
                f"{str(path)!r}"
            )


def _check_shares(validation_fraction, test_fraction):
    shares = (validation_fraction, test_fraction)
    if min(shares) < 0 or sum(shares) >= 1:
        raise InputError(
            "`validation_fraction` and `test_fraction` must be >= 0 and below "
            f"1 together. Received: {shares}"
        )


def _check_z_order(images, name):
    regions = (region for image in images for region in image.regions)
    if all(region.z_order is None for region in regions):
        raise InputError(
            f"Annotations of this source ({name}) state no z-order. Use "
            "--overlap file, the order of the regions in the file, or area"
        )


def _keep_splits(images, pattern, unused):
    """Keeps the source's splits; returns notes, also on unused flags."""
    own = sorted({image.split for image in images} - {None})
    unnamed = [image for image in images if image.split is None]
    for image in unnamed:
        image.split = "train"
    note = f"the splits are the source's own, {', '.join(own)}"
    if unnamed:
        note += f"; {len(unnamed)} images of none are in train"
    if unused:
        note += f"; not used: {', '.join(unused)}"
    names = {}
    for image in images:
        names.setdefault(image.split, []).append(image.path.stem)
    shared = shared_groups_note(names, pattern)
    return [note, shared] if shared else [note]


def _split(images, pattern, validation_fraction, test_fraction):
    """Sets the split of each image: the source's own, or by hash.

    Returns:
        list of notes.
    """
    own = {image.split for image in images} - {None}
    if len(own) > 1:
        unused = {
            "--group-by": pattern is not None,
            "--validation_fraction": (
                validation_fraction != _VALIDATION_FRACTION
            ),
            "--test_fraction": test_fraction > 0,
        }
        return _keep_splits(
            images, pattern, [flag for flag, given in unused.items() if given]
        )
    groups = by_group((image.path.stem for image in images), pattern)
    splits = dict.fromkeys(groups, "train")
    places = {group: place_of(group) for group in groups}
    below = 0.0
    for split, share in (("test", test_fraction), ("val", validation_fraction)):
        chosen = [g for g, p in places.items() if below <= p < below + share]
        rest = [g for g, s in splits.items() if s == "train"]
        if share and not chosen and len(rest) > 1:
            chosen = [min(rest, key=places.get)]
        splits |= dict.fromkeys(chosen, split)
        below += share
    if "train" not in splits.values():
        splits[max(splits, key=places.get)] = "train"
    split_of = {
        name: splits[group] for group, names in groups.items() for name in names
    }
    for image in images:
        image.split = split_of[image.path.stem]
    named = f"only the split {next(iter(own))}" if own else "no splits"
    return [
        f"the source names {named}; images were split by a hash of their names"
        + ", groups together" * (pattern is not None)
    ]
