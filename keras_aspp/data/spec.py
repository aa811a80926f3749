"""DatasetSpec: the meaning of the values in a mask."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from keras_aspp.labels import BACKGROUND, TASKS, check_task
from keras_aspp.pixels import PixelFormat
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.files import write_json
from keras_aspp.utils.text import is_line, look, read_json
from keras_aspp.utils.types import PathLike

_KEYS = (
    "class_names",
    "ignore_label",
    "colormap",
    "ignore_colors",
    "label_map",
    "mask_orientation",
    "channels",
    "dtype",
    "value_range",
    "mean",
    "std",
    "task",
)
# Masks of a binary task may show the object as 1 or as white.
_WHITE_IS_OBJECT = {255: 1}
# More masks for each image than this fit no memory.
_MAX_MASKS = 255
_NOTES = ("name", "num_classes", "source", "license")


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """Classes of a data set.

    Args:
        class_names: one name per label value, background included; at least
            two. For a binary task, the object's name alone is enough; for
            `"multilabel"`, one name per mask, at least one, and no background.
        ignore_label: label value that counts for nothing, in 0..255. Defaults
            to 255.
        colormap: one `(red, green, blue)` per class, or `None`. It also says
            which color of RGB and palette masks is which class.
        label_map: dict, stored value -> class or `"ignore"`, applied before
            the range check; values that it does not name are kept. Or `None`.
        name: str, for people.
        license: str, for people; shown in the model card.
        ignore_colors: colors of masks that count for nothing, beside the
            colormap. Defaults to none: each color must be named.
        mask_orientation: `"own"`, masks are upright, by their own EXIF if they
            have any; or `"image"`, they fit images as these are stored, and
            are turned by the images' EXIF.
        channels: int > 0, bands of the images. Defaults to 3 (RGB).
        dtype: `"uint8"`, `"uint16"` or `"float32"`, type of the images.
        value_range: as of `PixelFormat`, like `mean` and `std`.
        mean: see `value_range`.
        std: see `value_range`.
        task: `"semantic"`; or `"binary"`, one kind of object, which masks
            show as 1 or as 255; or `"multilabel"`, classes that may overlap,
            each with a mask like that. With `label_map={}`, 255 is
            `ignore_label` there, too.

    Raises:
        ValueError: a value is not as above.
    """

    class_names: tuple[str, ...]
    ignore_label: int = 255
    colormap: tuple[tuple[int, int, int], ...] | None = None
    label_map: dict[int, int | str] | None = None
    name: str = ""
    license: str = ""
    ignore_colors: tuple[tuple[int, int, int], ...] = ()
    mask_orientation: str = "own"
    channels: int = 3
    dtype: str = "uint8"
    value_range: tuple[Any, Any] | None = None
    mean: Any = None
    std: Any = None
    task: str = "semantic"

    def __post_init__(self) -> None:
        self._check_task()
        names = self.class_names
        # A single string would become one class per letter.
        if isinstance(names, (list, tuple)):
            object.__setattr__(self, "class_names", tuple(names))
        if (
            not isinstance(names, (list, tuple))
            or not names
            or not all(isinstance(name, str) for name in names)
            or not all(is_line(name) for name in names)
            or len(set(names)) != len(names)
        ):
            raise InputError(
                "`class_names` must be a non-empty sequence of different "
                "names, without line breaks, control characters and "
                "overrides of the writing direction. Received: "
                f"class_names={names!r}"
            )
        if len(names) < 2 and not self.is_multilabel:
            raise InputError(
                "`class_names` must hold at least 2 names, e.g. "
                f"['background', {names[0]!r}], or be of \"task\": "
                f'"binary"; {BACKGROUND}. '
                f"Received: class_names={list(names)!r}"
            )
        if type(self.ignore_label) is not int or not (
            0 <= self.ignore_label <= 255
        ):
            raise InputError(
                "`ignore_label` must be an int in 0..255. "
                f"Received: ignore_label={self.ignore_label!r}"
            )
        if self.ignore_label < self.num_values:
            raise InputError(
                f"`ignore_label` must not be one of the {self.num_values} "
                f"{'values' if self.is_multilabel else 'classes'}. "
                f"Received: ignore_label={self.ignore_label}"
            )
        for key in ("name", "license"):
            value = getattr(self, key)
            if not isinstance(value, str) or not is_line(value):
                raise InputError(
                    f"`{key}` must be a line of text. Received: {key}={value!r}"
                )
        if self.colormap is not None:
            object.__setattr__(self, "colormap", self._checked_colormap())
        object.__setattr__(self, "ignore_colors", self._checked_ignored())
        if self.mask_orientation not in ("own", "image"):
            raise InputError(
                "`mask_orientation` must be 'own' or 'image'. Received: "
                f"mask_orientation={self.mask_orientation!r}"
            )
        if self.label_map is not None:
            object.__setattr__(self, "label_map", self._checked_label_map())
        for name, value in dataclasses.asdict(self.pixels).items():
            object.__setattr__(self, name, value)

    @property
    def pixels(self) -> PixelFormat:
        """`PixelFormat` of the images."""
        names = (field.name for field in dataclasses.fields(PixelFormat))
        return PixelFormat(**{name: getattr(self, name) for name in names})

    @property
    def is_multilabel(self) -> bool:
        """True if each class has a mask of its own."""
        return self.task == "multilabel"

    @property
    def num_values(self) -> int:
        """Number of label values that are not ignored."""
        return 2 if self.is_multilabel else self.num_classes

    @property
    def label_axes(self) -> tuple[int, ...]:
        """Axes of labels after height and width: `(K,)` for multilabel."""
        return (self.num_classes,) if self.is_multilabel else ()

    @property
    def label_dtype(self) -> str:
        """Type of labels in data sets; K masks of int32 would fill memory."""
        return "uint8" if self.is_multilabel else "int32"

    def of_one_mask(self) -> DatasetSpec:
        """Returns the binary spec of each mask of a multilabel task."""
        return DatasetSpec(
            ("absent", "present"),
            self.ignore_label,
            label_map=self.label_map,
            mask_orientation=self.mask_orientation,
            task="binary",
        )

    def count_pixels(self, labels: np.ndarray) -> np.ndarray:
        """Counts labels by class.

        Args:
            labels: int array `[H, W]`, or `[H, W, K]` for multilabel.

        Returns:
            int64 `(num_classes + 1,)`: pixels of each class, then ignored
            ones, those of each mask for multilabel.
        """
        ignored = np.count_nonzero(labels == self.ignore_label)
        if self.is_multilabel:
            pixels = np.count_nonzero(labels == 1, axis=(0, 1))
        else:
            counts = np.bincount(labels.ravel(), minlength=256)
            pixels = counts[: self.num_classes]
        return np.append(pixels, ignored).astype("int64")

    def _check_task(self):
        check_task(self.task)
        if self.task == "semantic":
            return
        names = self.class_names
        if self.is_multilabel:
            if isinstance(names, (list, tuple)) and len(names) > _MAX_MASKS:
                raise InputError(
                    f"A multilabel task may have {_MAX_MASKS} classes. "
                    f"Received: {len(names)} class_names"
                )
        elif isinstance(names, (list, tuple)) and len(names) == 1:
            object.__setattr__(self, "class_names", ("background", *names))
        elif not isinstance(names, (list, tuple)) or len(names) != 2:
            raise InputError(
                "`class_names` of a binary task must hold the object's name, "
                "or those of background and object. "
                f"Received: class_names={names!r}"
            )
        # Colors are classes already, and some of them may be ignored.
        if self.label_map is None and (
            self.colormap is None or self.is_multilabel
        ):
            object.__setattr__(self, "label_map", dict(_WHITE_IS_OBJECT))

    @property
    def reads_white_as_object(self) -> bool:
        """True if masks of 0 and 255, and of 0 and 1, are both read."""
        return self.task != "semantic" and self.label_map == _WHITE_IS_OBJECT

    def _checked_colormap(self):
        colormap = _checked_colors("colormap", self.colormap)
        if len(colormap) != self.num_classes:
            raise InputError(
                f"`colormap` must hold {self.num_classes} RGB colors, "
                f"one per class. Received: {len(colormap)} entries"
            )
        twice = [c for i, c in enumerate(colormap) if c in colormap[:i]]
        if twice:
            raise InputError(
                "`colormap` must hold a color of its own for each class. "
                f"Received: {list(twice[0])} more than once"
            )
        return colormap

    def _checked_ignored(self):
        colors = self.ignore_colors
        if not isinstance(colors, (list, tuple)) or not all(
            isinstance(color, (list, tuple)) for color in colors
        ):
            raise InputError(
                "`ignore_colors` must be a sequence of RGB colors. "
                f"Received: ignore_colors={colors!r}"
            )
        colors = _checked_colors("ignore_colors", colors)
        if colors and self.is_multilabel:
            raise InputError(
                "`ignore_colors` is not for a multilabel task, whose masks "
                f"hold 0, 1 and 255. Received: {list(colors[0])}"
            )
        taken = [c for c in colors if c in (self.colormap or colors)]
        if taken:
            raise InputError(
                "`ignore_colors` must hold colors beside those of `colormap`, "
                f"which must be given too. Received: {list(taken[0])}"
            )
        return colors

    def _checked_label_map(self):
        label_map = self.label_map
        if not isinstance(label_map, dict):
            raise InputError(
                "`label_map` must be a mapping of stored values. "
                f"Received: label_map={label_map!r}"
            )
        for stored, label in label_map.items():
            good = label == "ignore" or (
                type(label) is int and 0 <= label < self.num_values
            )
            # Keys are strings in JSON.
            if not re.fullmatch(r"-?\d{1,9}", str(stored)) or not good:
                raise InputError(
                    "`label_map` must map stored ints to a class in "
                    f"0..{self.num_values - 1} or 'ignore'. "
                    f"Received: {stored}: {label!r}"
                )
        return {int(stored): label for stored, label in label_map.items()}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @classmethod
    def from_file(
        cls, path: PathLike, notes: list[str] | None = None
    ) -> DatasetSpec:
        """Reads a `dataset.json`.

        Args:
            path: the file.
            notes: list to which messages are appended, each about something
                that is allowed and may be meant otherwise.

        Raises:
            ValueError: no valid JSON, an unknown key, or a value at fault.
        """
        repeated = []
        content = read_json(path, repeated)
        if not isinstance(content, dict) or "class_names" not in content:
            raise InputError(
                f"`class_names` is missing. File: {path}. Known keys: "
                f"{', '.join(_KEYS)}"
            )
        unknown = set(content) - set(_KEYS) - set(_NOTES)
        if unknown:
            raise InputError(
                f"Unknown keys {sorted(unknown)}. File: {path}. Known keys: "
                f"{', '.join(_KEYS)}"
            )
        if content.get("task") in TASKS[1:] and "ignore_label" in content:
            # Who names 255 as ignored means it.
            content.setdefault("label_map", {})
        wanted = {f.name for f in dataclasses.fields(cls)}
        try:
            spec = cls(**{k: v for k, v in content.items() if k in wanted})
        except (ValueError, TypeError) as error:
            raise InputError(f"{error}. File: {path}") from None
        if content.get("num_classes", spec.num_classes) != spec.num_classes:
            raise InputError(
                f"`num_classes` is {content['num_classes']}, but there are "
                f"{spec.num_classes} `class_names`. File: {path}"
            )
        if notes is not None:
            notes += _notes(spec, content, repeated, path)
        return spec

    def to_file(self, path: PathLike, source: str = "") -> None:
        """Writes a `dataset.json` that `from_file` reads.

        Args:
            path: the file.
            source: str, origin of the data, for people.
        """
        content = {
            k: v for k, v in dataclasses.asdict(self).items() if v or v == 0
        }
        # Masks that this library writes hold class ids already, upright.
        content.pop("label_map", None)
        content.pop("mask_orientation", None)
        if self.pixels.is_default:
            del content["channels"], content["dtype"]
        if self.task == "semantic":
            del content["task"]
        if source:
            content["source"] = source
        write_json(path, content)

    def colors(self) -> tuple[tuple[int, int, int], ...]:
        """Returns one RGB color per class: the colormap, or distinct colors."""
        if self.colormap is not None:
            return self.colormap
        # The first color, black, is that of the background.
        first = int(self.is_multilabel)
        return tuple(
            _distinct_color(i + first) for i in range(self.num_classes)
        )


def _notes(spec, content, repeated, path):
    notes = [
        f"`{key}` is given more than once, the last counts. File: {path}"
        for key in repeated
    ]
    for number, keys in grouped(content.get("label_map") or (), int).items():
        notes.append(
            f"`label_map` has {' and '.join(map(repr, keys))} for {number}, "
            f"the last counts. File: {path}"
        )
    for names in grouped(spec.class_names, look).values():
        notes.append(
            f"class names that look alike: {', '.join(map(repr, names))}. "
            f"File: {path}"
        )
    return notes


def other_class(names: Sequence[str], others: Sequence[str]) -> str | None:
    """Describes the first class that differs, `None` for equal names.

    Args:
        names: class names of a model.
        others: class names of the data.
    """
    pairs = itertools.zip_longest(map(repr, names), map(repr, others))
    for class_id, (one, other) in enumerate(pairs):
        if one != other:
            return (
                f"class {class_id} is {one or 'none'} there, "
                f"{other or 'none'} here"
            )
    return None


def grouped(
    items: Iterable[Any], key: Callable[[Any], Any]
) -> dict[Any, list[Any]]:
    """Groups items by key; returns the groups of two or more."""
    groups = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return {k: group for k, group in groups.items() if len(group) > 1}


def _checked_colors(name, colors):
    try:
        colors = tuple(tuple(color) for color in colors)
    except TypeError:
        colors = ()
    for color in colors:
        if len(color) != 3 or any(v not in range(256) for v in color):
            raise InputError(
                f"`{name}` must hold RGB colors in 0..255. "
                f"Received: {list(color)}"
            )
    return colors


def _distinct_color(i):
    # PASCAL VOC's rule: the bits of the class id distributed over channels.
    color = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            color[channel] |= (i >> channel & 1) << (7 - bit)
        i >>= 3
    return tuple(color)
