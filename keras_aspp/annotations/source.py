"""Files of an annotated data set: a folder, a zip archive, or one file."""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from keras_aspp.annotations.regions import AnnotatedImage
from keras_aspp.data.folder import IMAGE_SUFFIXES
from keras_aspp.utils.exceptions import InputError, InputNotFoundError
from keras_aspp.utils.text import read_json
from keras_aspp.utils.types import PathLike

# Begins the `source` of each dataset.json that an import wrote.
COMMAND = "keras-aspp data import"
# Annotations are text and shrink by about ten; a bomb by a thousand.
_MAX_EXPANSION = 100
_SMALL_BYTES = 2**20
_MAX_FILES = 2_000_000
_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


class SourceFiles:
    """Index of the files of a source.

    Args:
        root: the folder, or one annotation file.
        image_root: folder of the images, or `None` for that of `root`.
        archive: zip archive that was unpacked to `root`, or `None`.

    Attributes:
        name: what the user named: folder, archive or file.
        root: folder.
        files: all files below it, sorted; of a source that is one file, this.
            Folders within it that an import wrote are left out.
        imported: these folders.
        ambiguous: dict, name in the annotations -> files that fit it equally
            well; see `find_image`.
    """

    def __init__(
        self,
        root: Path,
        image_root: Path | None = None,
        archive: Path | None = None,
    ) -> None:
        alone = root.is_file()
        self.name: Path = archive or root
        self._archive = archive
        self.root: Path = root.parent if alone else root
        self._image_root = image_root or self.root
        self.imported: list[Path] = []
        self.files: list[Path] = [root] if alone else self._below(self.root)
        self.ambiguous: dict[str, list[Path]] = {}
        self._images: dict[str, list[Path]] = {}
        if alone or self._image_root != self.root:
            candidates = self._below(self._image_root)
        else:
            candidates = self.files
        for path in candidates:
            if path.suffix.lower() in IMAGE_SUFFIXES:
                self._images.setdefault(path.name, []).append(path)
        # Named by folders of images.
        self._splits = {self.split_of(path) for path in self.images()} - {None}

    def _below(self, root):
        """Returns the files of a folder, but no earlier output."""
        files = _files_below(root)
        imported = {
            path.parent
            for path in files
            if path.name == "dataset.json"
            and path.parent != root
            and is_imported(path.parent)
        }
        self.imported = sorted({*self.imported, *imported})
        if not imported:
            return files
        return [path for path in files if imported.isdisjoint(path.parents)]

    def public(self, text: str) -> str:
        """Returns a message about a file as the user knows its path."""
        if self._archive is None:
            return text
        return text.replace(str(self.root), str(self._archive))

    def named(self, *names: str) -> list[Path]:
        """Returns the files of one of these names."""
        return [path for path in self.files if path.name.lower() in names]

    def ending(self, *ends: str) -> list[Path]:
        """Returns the files whose names end so, in lower case."""
        return [path for path in self.files if path.name.lower().endswith(ends)]

    def images(self) -> list[Path]:
        """Returns all image files, sorted."""
        return sorted(p for paths in self._images.values() for p in paths)

    def relative(self, path: Path) -> Path:
        """Returns the path of a file or image within its folder."""
        inside = path.is_relative_to(self.root)
        return path.relative_to(self.root if inside else self._image_root)

    def within_images(self, image: Path) -> Path:
        """Returns the path of an image within the folder of the images."""
        return image.relative_to(self._image_root)

    def find_image(
        self, name: str, near: Path, by_name: bool = False
    ) -> AnnotatedImage | None:
        """Finds the image file that annotations name.

        Args:
            name: path or URL in the annotations.
            near: the annotation file.
            by_name: bool. Whether the name of `near` states its split, too.

        Returns:
            The file of that name with the most folders in common, of these
            the one in the split of the annotations, and of these the nearest,
            in the split of its folders. `None` if there is none, or if
            different files fit equally well, which `ambiguous` lists.
        """
        wanted = PurePosixPath(name.replace("\\", "/")).parts
        if not wanted:
            return None
        stated = self.split_of(near, by_name)

        def image_at(path):
            split = self.split_of(path)
            likeness = (
                num_equal(reversed(path.parts), reversed(wanted)),
                stated is None or split in (None, stated),
                num_equal(path.parts, near.parts),
            )
            return AnnotatedImage(path, split, likeness=likeness, name=name)

        def fit(image):
            names, agrees, nearness = image.likeness
            in_split = stated is not None and image.split == stated
            return names, agrees, in_split, nearness

        found = [image_at(path) for path in self._images.get(wanted[-1], ())]
        if stated in self._splits:
            # The split's own file may be absent, and another of its name not.
            found = [i for i in found if i.likeness[0] > 1 or i.likeness[1]]
        return self.only(best_of(found, fit), name)

    def only(
        self, best: list[AnnotatedImage], name: str
    ) -> AnnotatedImage | None:
        """Returns the image of those that fit best, `None` for several.

        Args:
            best: images; the first is returned if all are copies of it.
            name: name in the annotations, under which `ambiguous` lists them.
        """
        if best and not _are_copies([image.path for image in best]):
            self.ambiguous[name] = [image.path for image in best]
            return None
        return best[0] if best else None

    def split_of(self, path: Path, by_name: bool = False) -> str | None:
        """Returns the split that a file's folders state, or `None`.

        Args:
            path: the file.
            by_name: bool. Whether its own name counts, too, as of a list of
                images; an image may show a train or a test.
        """
        parts = self.relative(path).with_suffix("").parts
        for part in reversed(parts if by_name else parts[:-1]):
            words = "".join(c if c.isalpha() else " " for c in part.lower())
            for split, names in _SPLITS.items():
                if set(words.split()) & set(names):
                    return split
        return None


@contextlib.contextmanager
def opened_source(
    source: PathLike, images: PathLike | None = None
) -> Iterator[SourceFiles]:
    """Yields the files of a source; unpacks a zip archive meanwhile.

    Args:
        source: folder, zip archive, or annotation file.
        images: folder of the images, if they are not in `source`.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: an archive that is damaged, or unpacks to too much.
    """
    path = Path(source)
    image_root = None if images is None else Path(images)
    if image_root is not None and not image_root.is_dir():
        raise InputNotFoundError(
            f"`images` must be a folder. Received: {str(images)!r}"
        )
    if not path.exists():
        raise InputNotFoundError(
            "A source must be a folder, a zip archive or an annotation file. "
            f"Received: {str(source)!r}, which does not exist"
        )
    if path.is_dir() or path.suffix.lower() != ".zip":
        yield SourceFiles(path, image_root)
        return
    with tempfile.TemporaryDirectory(prefix="keras_aspp_import") as folder:
        _unpack(path, Path(folder))
        files = SourceFiles(Path(folder), image_root, archive=path)
        try:
            yield files
        except InputError as error:
            raise InputError(files.public(str(error))) from None


def is_imported(folder: Path) -> bool:
    """Returns True for a folder that an import wrote."""
    try:
        content = read_json(folder / "dataset.json")
    except (OSError, ValueError):
        return False
    source = content.get("source") if isinstance(content, dict) else None
    return str(source).startswith(COMMAND)


def best_of(items: Iterable[Any], key: Callable[[Any], Any]) -> list[Any]:
    """Returns all items of the highest key."""
    keyed = [(key(item), item) for item in items]
    highest = max((value for value, _ in keyed), default=None)
    return [item for value, item in keyed if value == highest]


def _are_copies(paths):
    """Returns True if all files have the same content."""
    first, *others = paths
    return all(filecmp.cmp(first, path, shallow=False) for path in others)


def num_equal(one: Iterable[str], other: Iterable[str]) -> int:
    """Returns the number of parts that two paths begin with alike."""
    same = itertools.takewhile(
        lambda pair: pair[0] == pair[1], zip(one, other, strict=False)
    )
    return sum(1 for _ in same)


def _unpack(path, folder):
    """Unpacks an archive, after bounding what it takes."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [e for e in archive.infolist() if not e.is_dir()]
            _check_entries(entries, path, shutil.disk_usage(folder).free)
            for entry in entries:
                # Keeps names within the folder.
                archive.extract(entry, folder)
    except (
        *(zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError),
        # Another compression, and a password.
        *(NotImplementedError, RuntimeError),
    ) as error:
        raise InputError(
            f"Not a readable zip archive. File: {path} ({error})"
        ) from None


def _check_entries(entries, path, free):
    if len(entries) > _MAX_FILES:
        raise InputError(
            f"An archive must hold at most {_MAX_FILES} files. File: {path} "
            f"({len(entries)})"
        )
    for entry in entries:
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts:
            raise InputError(
                "Names in an archive must stay within it. "
                f"File: {path} ({entry.filename!r})"
            )
        limit = _MAX_EXPANSION * entry.compress_size + _SMALL_BYTES
        if entry.file_size > limit:
            raise InputError(
                f"A file must not expand more than {_MAX_EXPANSION} times. "
                f"File: {path} ({entry.filename!r}: from "
                f"{entry.compress_size} to {entry.file_size} bytes)"
            )
    total = sum(entry.file_size for entry in entries)
    if total > free:
        raise InputError(
            f"The archive unpacks to {total / 1e9:.1f} GB; {free / 1e9:.1f} "
            f"GB are free. Unpack it elsewhere and import the folder. "
            f"File: {path}"
        )


def _files_below(root):
    """Returns the files of a folder, sorted, without hidden ones."""
    found = sorted(path for path in root.rglob("*") if path.is_file())
    return [
        path
        for path in found
        if not any(
            part.startswith((".", "__MACOSX"))
            for part in path.relative_to(root).parts
        )
    ]
