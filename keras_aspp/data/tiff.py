"""TIFF files and deep PNGs: bands of any number and type, bounded."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import math
import os
from typing import Any

import numpy as np

from keras_aspp.pixels import MAX_CHANNELS
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.extras import require
from keras_aspp.utils.types import PathLike

SUFFIXES = (".tif", ".tiff")
# Decoded size of a file, and of one of its tiles or strips.
MAX_BYTES = 2**31
# Pages that are looked at for each mask: its overviews, and their masks, are
# pages, too.
_MAX_PAGES = 64
_JPEG = 7
# Bounded by the size of the tile, JPEG by `_check_jpeg`; each further decoder
# can be attacked. The values are those of TIFF's tag `Compression`.
_COMPRESSIONS = {
    1: "none",
    5: "LZW",
    8: "Deflate",
    32946: "Deflate",
    32773: "PackBits",
    50000: "Zstandard",
    _JPEG: "JPEG",
}
_EXTRA_SAMPLES, _GDAL_NODATA, _ALPHA = 338, 42113, (1, 2)
_ORIENTATION = 274
# Tags of a position on the earth.
_GEO_TAGS = (33550, 34264, 34735)


@dataclasses.dataclass(frozen=True)
class Bands:
    """A decoded image.

    Attributes:
        values: array `[H, W, C]`, as stored.
        valid: bool `[H, W]`, False where the file has no data; or `None`.
        has_alpha: bool. Whether the last band is declared as alpha.
        orientation: int, the EXIF orientation of the file, 1 by default.
    """

    values: np.ndarray
    valid: np.ndarray | None = None
    has_alpha: bool = False
    orientation: int = 1


def is_tiff(name: PathLike) -> bool:
    """Returns True for a path with a suffix of TIFF."""
    return os.fsdecode(name).lower().endswith(SUFFIXES)


def is_scene(path: PathLike, max_pixels: int) -> bool:
    """Returns True for a TIFF that has a position on the earth, or is large.

    Args:
        path: file.
        max_pixels: int, size above which an image is a scene.

    Raises:
        ValueError: not a readable TIFF, or the extra `tiff` is missing.
    """
    with _opened(path, path) as (_, page):
        pixels = page.imagelength * page.imagewidth
        return pixels > max_pixels or _has_position(page)


def read_tiff(
    source: PathLike | bytes,
    path: str,
    max_pixels: int,
    lossless: bool = False,
) -> Bands:
    """Reads the first image of a TIFF file.

    Args:
        source: path or bytes of the file.
        path: name for messages.
        max_pixels: int, the most pixels that are decoded.
        lossless: bool. Whether to refuse JPEG, which changes values.

    Returns:
        `Bands`, as stored; no data is what GDAL's tag names, and NaN.

    Raises:
        ValueError: unreadable or too large, or the extra `tiff` is missing.
    """
    with _opened(source, path) as (file, page):
        values = _bands_of(file, page, path, max_pixels, lossless)
        extra = page.tags.get(_EXTRA_SAMPLES)
        extra = np.atleast_1d(extra.value).tolist() if extra else []
        values, valid = without_gaps(values, _nodata(page))
        has_alpha = bool(extra) and extra[-1] in _ALPHA
        return Bands(values, valid, has_alpha, _orientation(page))


def read_pages(
    source: PathLike | bytes, path: str, max_pixels: int, count: int
) -> Bands:
    """Reads a TIFF of several pages of one size, or of several bands.

    Args:
        source: path or bytes of the file.
        path: name for messages.
        max_pixels: int, the most pixels of a page.
        count: int > 0, pages or bands that the file must have.

    Returns:
        `Bands` `[H, W, count]`, as stored; `valid` is bool `[H, W, count]`,
        False where a page or band has no data, or `None`.

    Raises:
        ValueError: as `read_tiff`, or another number of pages or bands.
    """
    with _opened(source, path) as (file, first):
        with _decoded(path):
            # Overviews and masks of a page follow it.
            most = _MAX_PAGES * (count + 1)
            pages = (
                page
                for page in itertools.islice(file.pages, most)
                if not page.subfiletype & 5
            )
            pages = list(itertools.islice(pages, count + 1))
        if len(pages) > 1:
            for page in pages:
                _check_size(page, path, max_pixels, lossless=True)
            if len(pages) != count or any(
                page.axes != "YX" or page.shape != first.shape for page in pages
            ):
                raise InputError(
                    f"A TIFF of masks must hold {count} pages of one size and "
                    f"one band each. File: {path} (at least {len(pages)}, "
                    f"{', '.join(sorted({page.axes for page in pages}))})"
                )
            if math.prod(first.shape) * count > MAX_BYTES:
                raise InputError(
                    f"Images must take at most {MAX_BYTES} bytes. File: {path}"
                )
            parts = [
                without_gaps(_pixels_of(page, path)[..., None], _nodata(page))
                for page in pages
            ]
        else:
            values = _bands_of(file, first, path, max_pixels, lossless=True)
            nodata = _nodata(first)
            parts = [
                without_gaps(band[..., None], nodata)
                for band in np.moveaxis(values, -1, 0)
            ]
        orientation = _orientation(first)
    values = np.concatenate([part for part, _ in parts], -1)
    if all(valid is None for _, valid in parts):
        return Bands(values, orientation=orientation)
    everywhere = np.ones(values.shape[:2], bool)
    valid = [everywhere if valid is None else valid for _, valid in parts]
    return Bands(values, np.stack(valid, -1), orientation=orientation)


def _bands_of(file, page, path, max_pixels, lossless):
    """Decodes the only image of a file: `[H, W, C]`."""
    _check_size(page, path, max_pixels, lossless)
    _check_pages(file, path)
    if page.compression == _JPEG:
        _check_jpeg(file.filehandle, page, path)
    values = _pixels_of(page, path)
    if page.axes == "SYX":
        return np.moveaxis(values, 0, -1)
    if page.axes == "YX":
        return values[..., None]
    if page.axes != "YXS":
        raise InputError(
            "A TIFF must hold one image of rows, columns and bands. "
            f"File: {path} (axes {page.axes})"
        )
    return values


def _pixels_of(page, path):
    """Decodes a page whose size was checked."""
    with _decoded(path):
        return page.asarray(maxworkers=1)


@contextlib.contextmanager
def _decoded(path):
    """Turns errors of decoding into one line."""
    try:
        yield
    except Exception as error:
        # tifffile and its codecs raise exceptions of many types.
        raise InputError(
            f"Unreadable or truncated image. File: {path} "
            f"({' '.join(str(error).split())[:200]})"
        ) from None


def without_gaps(
    values: np.ndarray, nodata: float | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Replaces pixels without data by 0.

    Args:
        values: array `[..., H, W, C]`.
        nodata: value that means no data in every band, or `None`.

    Returns:
        `(values, valid)`: bool `[..., H, W]`, False where any band is not
        finite or all have the value `nodata`; `None` if all pixels are valid.
    """
    missing = np.zeros(values.shape[:-1], bool)
    if values.dtype.kind == "f":
        missing |= ~np.isfinite(values).all(-1)
    if nodata is not None and math.isfinite(nodata):
        missing |= (values == nodata).all(-1)
    if not missing.any():
        return values, None
    return np.where(missing[..., None], values.dtype.type(0), values), ~missing


def read_deep_png(source: Any, path: str) -> np.ndarray:
    """Decodes a PNG of 16 bits per channel whose size was checked.

    Args:
        source: path, or bytes, of the file.
        path: name for messages.

    Returns:
        uint16 `[H, W, C]`.

    Raises:
        ValueError: the extra `tiff` is missing, or the file is truncated.
    """
    require("A PNG of 16 bits per color", "tiff", "imagecodecs")
    import imagecodecs

    if not isinstance(source, bytes):
        with open(source, "rb") as file:
            source = file.read()
    try:
        values = imagecodecs.png_decode(source)
    except Exception as error:
        # The codec raises its own types.
        raise InputError(
            f"Unreadable or truncated image. File: {path} ({error})"
        ) from None
    return values[..., None] if values.ndim == 2 else values


@contextlib.contextmanager
def _opened(source, path):
    """Opens a TIFF: `(file, its first page)`, of which the header is read."""
    require("A TIFF", "tiff", "tifffile", "imagecodecs")
    import tifffile

    try:
        file = tifffile.TiffFile(
            io.BytesIO(source) if isinstance(source, bytes) else source
        )
        page = file.pages[0]
    except Exception as error:
        # tifffile raises exceptions of many types.
        reason = getattr(error, "strerror", None) or f"no TIFF: {error}"
        raise InputError(
            f"Unreadable image. File: {path} ({' '.join(reason.split())[:200]})"
        ) from None
    with file:
        yield file, page


def _check_pages(file, path):
    """Raises for several images, of which one would be taken silently."""
    try:
        # Overviews and masks of the first image follow it.
        several = not file.pages[1].subfiletype & 5
    except Exception:  # there is none, or none that can be read
        return
    if several:
        raise InputError(
            "A TIFF must hold one image; store its bands interleaved, or one "
            f"image in each file. File: {path} (several pages)"
        )


def _check_jpeg(file, page, path):
    """Raises for JPEGs that would decode to more than their tile or strip."""
    height = page.tilelength or min(page.rowsperstrip, page.imagelength)
    width = page.tilewidth or page.imagewidth
    tiles = zip(page.dataoffsets, page.databytecounts, strict=True)
    for offset, count in tiles:
        data = b""
        if offset + count <= file.size:
            file.seek(offset)
            data = file.read(count)
        if not _is_baseline(data, height, width, page.samplesperpixel):
            raise InputError(
                "JPEG in a TIFF must be baseline, of 8 bits and of the size "
                "of its tiles; convert it, e.g. by gdal_translate -co "
                f"COMPRESS=DEFLATE. File: {path}"
            )


def _is_baseline(data, height, width, samples):
    """Returns True for a sequential JPEG that fits, of few scans.

    Whatever precedes the first scan must be a sequence of whole segments.
    """
    place = 2
    if data[:place] != b"\xff\xd8":  # start of image
        return False
    frames = []
    while data[place : place + 1] == b"\xff":
        marker = data[place + 1 : place + 2]
        size = int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == b"\xda":  # start of scan
            # Within a scan, a byte 0xff is followed by 0 or a restart.
            scans = data.count(b"\xff\xda")
            return len(frames) == 1 and frames[0] and scans <= samples
        segment = data[place + 4 : place + 2 + size]
        if b"\xc0" <= marker <= b"\xcf" and marker not in b"\xc4\xc8\xcc":
            of_frame = [
                int.from_bytes(segment[i : i + 2], "big") for i in (1, 3)
            ]
            frames.append(
                marker in b"\xc0\xc1"
                and segment[:1] == b"\x08"
                and 0 < of_frame[0] <= height
                and of_frame[1] == width
            )
        if size < 2:
            return False
        place += 2 + size
    return False


def _check_size(page, path, max_pixels, lossless):
    """Raises before anything is decoded, by what the header says."""
    size = f"{page.imagelength}x{page.imagewidth}"
    if page.imagelength * page.imagewidth > max_pixels:
        raise InputError(
            f"Images must have at most {max_pixels} pixels. File: {path} "
            f"({size}); `keras-aspp predict` takes larger scenes"
        )
    if page.dtype is None or page.dtype.kind not in "uif":
        raise InputError(
            "A TIFF must hold integers or floats of 8 to 64 bits. "
            f"File: {path} ({page.bitspersample} bits)"
        )
    if not 1 <= page.samplesperpixel <= MAX_CHANNELS or page.imagedepth != 1:
        raise InputError(
            f"A TIFF must have 1 to {MAX_CHANNELS} bands. File: {path} "
            f"({page.samplesperpixel})"
        )
    refused = {_JPEG} if lossless else set()
    if page.compression not in _COMPRESSIONS.keys() - refused:
        names = ", ".join(
            dict.fromkeys(
                name
                for value, name in _COMPRESSIONS.items()
                if value not in refused
            )
        )
        raise InputError(
            f"A TIFF must be compressed by {names}; convert it, e.g. by "
            f"gdal_translate -co COMPRESS=DEFLATE. File: {path} "
            f"(compression {int(page.compression)})"
        )
    chunk = math.prod(page.chunks) * page.dtype.itemsize
    whole = math.prod(page.shape) * page.dtype.itemsize
    if max(chunk, whole) > MAX_BYTES or page.ndim > 3:
        raise InputError(
            f"Images must take at most {MAX_BYTES} bytes. File: {path} "
            f"({size}, {max(chunk, whole)} bytes)"
        )


def _has_position(page):
    """Returns True for a page with a position on the earth."""
    return any(tag in page.tags for tag in _GEO_TAGS)


def _orientation(page):
    """Returns the orientation in 1..8; 1 for maps, whose rows are placed."""
    tag = page.tags.get(_ORIENTATION)
    if tag is None or _has_position(page) or tag.value not in range(1, 9):
        return 1
    return int(tag.value)


def _nodata(page):
    """Returns the value that GDAL's tag declares as no data, or `None`."""
    tag = page.tags.get(_GDAL_NODATA)
    try:
        return tag and float(str(tag.value).strip("\0 "))
    except ValueError:
        return None
