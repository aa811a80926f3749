"""Images and masks on the host: decoding, label maps, checks."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import stat
import struct
import threading
import warnings

import numpy as np
from PIL import Image

from keras_aspp.data import tiff
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.data.tiff import Bands
from keras_aspp.pixels import PixelFormat
from keras_aspp.utils.exceptions import InputError, InputTypeError
from keras_aspp.utils.text import printable
from keras_aspp.utils.types import PathLike, Size

MAX_PIXELS = 100_000_000
# A progressive JPEG repeats all its pixels with every scan, each a few bytes
# of the file; cameras write about ten.
MAX_SCANS = 100
# First bytes of a scan of one to four components: marker, length of the header,
# components. In a color profile the marker alone occurs by chance.
SCAN_STARTS = tuple(
    bytes([0xFF, 0xDA, 0, 6 + 2 * components, components])
    for components in (1, 2, 3, 4)
)
_SCAN = re.compile(b"|".join(map(re.escape, SCAN_STARTS)))
_SCAN_BYTES = 5
# Pillow knows forty formats, one of which starts a program (PostScript).
FORMATS = ("JPEG", "PNG")
# Used only for files of their suffix: each further decoder can be attacked.
FORMATS_BY_SUFFIX = {".bmp": "BMP", ".webp": "WEBP"}
# First bytes of unsupported formats, for messages only.
_OTHER_FORMATS = (
    (rb"RIFF....WEBP", "WebP"),
    (rb"BM", "BMP"),
    (rb"GIF8", "GIF"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
    (rb"....ftyp(avi|hei|hev|mif)", "HEIF"),
    (rb"\0\0\0\x0cjP  ", "JPEG 2000"),
)
# Run-length encoded BMPs are decoded in Python, pixel by pixel.
_BMP_RAW, _BMP_BITFIELDS = 0, 3
_ORIENTATION_TAG = 0x0112
_TAG_TYPES = {3: "H", 4: "I"}
_INDEX_MODES = ("L", "P", "1")
_COLOR_MODES = ("RGB", "RGBA")
# Modes of Pillow whose arrays are the bands of the file.
_BAND_MODES = ("L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I;16L")
# Pillow stretches 2- and 4-bit gray values to 0..255; here they are ids.
_STRETCHED_BY = {"L;2": 85, "L;4": 17}
# Warning filters belong to the process, and tf.data decodes in threads.
_FILTERS = threading.Lock()


class UnknownColorError(InputError):
    """Color of a mask that is not a class.

    Args:
        problem: the color.
        advice: what to write into `dataset.json`.
        place: the file, and how many pixels.

    Attributes:
        problem: see above, for other advice where there is no such file.
        place: see above.
    """

    def __init__(self, problem: str, advice: str, place: str) -> None:
        super().__init__(f"{problem}{advice}. {place}")
        self.problem, self.place = problem, place


def open_image(
    source: PathLike | bytes, name: PathLike | None = None
) -> Image.Image:
    """Opens an image without decoding it.

    JPEG and PNG are told by their content; BMP and WebP must also have their
    suffix. What it would take to decode is bounded here, by what the file
    says of itself, and nowhere else.

    Args:
        source: path or bytes of the file.
        name: name for messages; defaults to the path. Its suffix counts.

    Raises:
        ValueError: not a readable image, or more than `MAX_PIXELS` or
            `MAX_SCANS`.
    """
    path = _called(source, name)
    formats = _formats(source, name)
    try:
        if isinstance(source, bytes):
            source = io.BytesIO(source)
        elif not stat.S_ISREG(os.stat(source).st_mode):
            # Reading a pipe would never end.
            raise InputError("no regular file")
        if "WEBP" in formats:
            _check_webp_size(source)
        with _FILTERS, warnings.catch_warnings():
            # Pillow only warns of decompression bombs; the check is below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(source, formats=formats)
        scans = 0
        if image.format == "BMP":
            _check_bmp(image)
        elif image.format == "WEBP":
            _check_still(image)
        elif image.format != "PNG":
            scans = _count_scans(image.fp)
    except Image.DecompressionBombError as error:
        raise InputError(
            f"Images must have at most {MAX_PIXELS} pixels. File: {path} "
            f"({_reason(error)})"
        ) from None
    except Exception as error:
        # Decoders raise exceptions of many types.
        raise InputError(
            f"Unreadable image. File: {path} "
            f"({_reason(error, formats)}{_instead(source, error)})"
        ) from None
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.height}x{image.width}"
        image.close()
        raise InputError(
            f"Images must have at most {MAX_PIXELS} pixels. File: {path} "
            f"({size})"
        )
    if scans > MAX_SCANS:
        image.close()
        raise InputError(
            f"A JPEG must have at most {MAX_SCANS} scans. File: {path} "
            f"({scans})"
        )
    return image


def check_image_bytes(data: bytes) -> tuple[int, int]:
    """Checks the size of an image before decoding it.

    For servers that hand the bytes of a client to a decoder without such
    limits. A call reads the header and counts the scans of a JPEG.

    Args:
        data: bytes of a JPEG or PNG file.

    Returns:
        `(height, width)` as stored, before any EXIF orientation.

    Raises:
        TypeError: `data` is not bytes.
        ValueError: neither JPEG nor PNG, or more than `MAX_PIXELS` pixels or
            `MAX_SCANS` scans.

    Example:
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (6, 4)).save(file, "PNG")
    >>> check_image_bytes(file.getvalue())
    (4, 6)
    """
    if not isinstance(data, bytes):
        raise InputTypeError(
            "`data` must be the bytes of an image file. "
            f"Received: {type(data).__name__}"
        )
    with open_image(data) as image:
        return image.height, image.width


def _called(source, name):
    """Returns the name of an image for messages."""
    if name is None and isinstance(source, bytes):
        return f"{len(source)} bytes"
    return printable(source if name is None else name)


def _formats(source, name):
    """Returns the formats that Pillow may try for a file of this name."""
    if name is None and isinstance(source, bytes):
        return FORMATS
    suffix = os.path.splitext(os.fsdecode(source if name is None else name))[1]
    more = FORMATS_BY_SUFFIX.get(suffix.lower())
    return (*FORMATS, more) if more else FORMATS


def _check_webp_size(source):
    """Checks a WebP by its header, since opening allocates its canvas."""
    head = _first_bytes(source)
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return
    if len(head) < 30:
        raise InputError("truncated")
    chunk = head[12:16]
    if chunk == b"VP8X":
        width, height = (
            1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27)
        )
    elif chunk == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (
            int.from_bytes(head[at : at + 2], "little") & 0x3FFF
            for at in (26, 28)
        )
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{height}x{width}")


def _first_bytes(source):
    """Reads the pixels of a WebP header."""
    if isinstance(source, io.BytesIO):
        return source.getvalue()[:30]
    with open(source, "rb") as file:
        return file.read(30)


def _check_still(image):
    if image.n_frames > 1:
        image.close()
        raise InputError(f"{image.n_frames} frames; store one as PNG")


def _check_bmp(image):
    if image.info["compression"] not in (_BMP_RAW, _BMP_BITFIELDS):
        image.close()
        raise InputError("a compressed BMP; store it as PNG")


def _count_scans(file):
    """Counts the scans of a JPEG and restores the file position."""
    place = file.tell()
    file.seek(0)
    found, rest = 0, b""
    while block := file.read(1 << 20):
        found += len(_SCAN.findall(rest + block))
        rest = block[1 - _SCAN_BYTES :]
    file.seek(place)
    return found


RGB = PixelFormat()


def read_image(
    source: PathLike | bytes,
    name: PathLike | None = None,
    exif: bool = True,
    pixels: PixelFormat = RGB,
) -> np.ndarray:
    """Reads an image, by default as RGB, uint8 `[H, W, 3]`.

    Args:
        source: path or bytes of the file; see `open_image`. TIFFs are told by
            their suffix and need the extra `tiff`.
        name: name for messages; defaults to the path.
        exif: bool. Whether to turn it upright, as its EXIF orientation says.
        pixels: `PixelFormat` that the image must have.

    Returns:
        array `[H, W, channels]` of the format's type.

    Raises:
        ValueError: unreadable or truncated, or of another format.
    """
    return read_fitting(source, name, exif, pixels).values


def read_pair(
    image: PathLike | bytes,
    mask: PathLike | bytes,
    spec: DatasetSpec,
    image_name: PathLike | None = None,
    mask_name: PathLike | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads an image and its labels, both upright.

    Args:
        image: path or bytes of the image.
        mask: path or bytes of the mask.
        spec: `DatasetSpec`.
        image_name: name for messages; defaults to the path.
        mask_name: name for messages; defaults to the path.

    Returns:
        `(array [H, W, channels], uint8 [H, W])`; where the image has no data,
        the label is `ignore_label`.

    Raises:
        ValueError: as `read_image` and `read_mask`.
    """
    bands = read_fitting(image, image_name, True, spec.pixels)
    size = bands.values.shape[:2]
    labels = read_mask(mask, spec, size, mask_name, bands.orientation)
    return bands.values, ignore_no_data(labels, bands, spec)


def ignore_no_data(
    labels: np.ndarray, bands: Bands, spec: DatasetSpec
) -> np.ndarray:
    """Returns labels that are `ignore_label` where an image has no data.

    Args:
        labels: uint8 `[H, W]` or `[H, W, K]`.
        bands: `Bands` of the image.
        spec: `DatasetSpec`.
    """
    if bands.valid is None:
        return labels
    valid = bands.valid if labels.ndim == 2 else bands.valid[..., None]
    return np.where(valid, labels, np.uint8(spec.ignore_label))


def read_fitting(
    source: PathLike | bytes,
    name: PathLike | None,
    exif: bool,
    pixels: PixelFormat,
) -> Bands:
    """Reads an image of a format; arguments and errors as `read_image`.

    Returns:
        `Bands`.
    """
    bands = read_bands(source, name, exif, pixels)
    return fitting(bands, pixels, _called(source, name))


def fitting(bands: Bands, pixels: PixelFormat, path: PathLike) -> Bands:
    """Returns bands in a format, or raises `ValueError`.

    Args:
        bands: `Bands`.
        pixels: `PixelFormat`.
        path: name for messages.
    """
    bands = without_alpha(bands, pixels.channels)
    values = pixels.check(bands.values, printable(path))
    return dataclasses.replace(bands, values=values)


def without_alpha(bands: Bands, channels: int) -> Bands:
    """Turns an alpha band beyond `channels` into valid pixels."""
    values, valid = bands.values, bands.valid
    if not bands.has_alpha or values.shape[-1] != channels + 1:
        return bands
    opaque = values[..., -1] > 0
    return Bands(
        values[..., :-1],
        opaque if valid is None else valid & opaque,
        False,
        bands.orientation,
    )


def is_banded(path: PathLike) -> bool:
    """Returns True for a TIFF or an image of more than 8 bits per channel."""
    if tiff.is_tiff(path):
        return True
    with open_image(path) as image:
        return _is_deep(image) or image.mode.startswith(("I", "F"))


def read_bands(
    source: PathLike | bytes,
    name: PathLike | None = None,
    exif: bool = True,
    pixels: PixelFormat | None = None,
) -> Bands:
    """Reads an image with the bands that its file has.

    Args:
        source: path or bytes of the file; see `open_image`.
        name: name for messages; defaults to the path.
        exif: bool. Whether to turn it upright.
        pixels: `PixelFormat` that is wanted: for RGB of 8 bits, gray values
            and palettes become RGB and transparency is dropped. `None` reads
            such a file as RGB too, if it has no more than 8 bits and not one
            or two bands.

    Returns:
        `Bands`.

    Raises:
        ValueError: unreadable or truncated.
    """
    path = _called(source, name)
    if tiff.is_tiff(path):
        bands = tiff.read_tiff(source, path, MAX_PIXELS)
        return turn_bands(bands, bands.orientation if exif else 1)
    as_rgb = pixels is not None and (pixels.channels, pixels.dtype) == (
        RGB.channels,
        RGB.dtype,
    )
    with open_image(source, name) as image:
        deep = _is_deep(image)
        if as_rgb and (deep or image.mode.startswith(("I", "F"))):
            # Pillow clips gray values at 255 and keeps the high bytes of
            # colors: right only for files that use all 16 bits.
            bits = "16 bits per value, " if deep else ""
            raise InputError(
                "Images must have 8 bits per channel; scale the values to "
                "0..255, or train a model on such files, by "
                '"dtype": "uint16" and "channels" in dataset.json, as '
                "`keras-aspp data check` prints them. "
                f"File: {path} ({bits}mode {image.mode})"
            )
        try:
            if deep and not image.mode.startswith("I"):
                values = tiff.read_deep_png(source, path)
            else:
                values = np.array(_rgb(image) if as_rgb else _as_bands(image))
            # PNG may have its EXIF behind the pixels.
            image.load()
            orientation = _orientation(image.info) if exif else 1
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                "Unreadable or truncated image. "
                f"File: {path} ({_reason(error)})"
            ) from None
    values = values.reshape(*values.shape[:2], -1)
    has_alpha = not as_rgb and image.mode in ("LA", "RGBA")
    return Bands(
        turn_upright(values, orientation), None, has_alpha, orientation
    )


def _orientation(info):
    """Returns the EXIF orientation in 1..8, 1 by default.

    The one tag is read here. Pillow would read them all, each as large as it
    says, and tags that overlap turn a small file into all memory.
    """
    exif = info.get("exif")
    if exif is None and "Raw profile type exif" in info:
        # ImageMagick: three lines of header, then hexadecimal digits.
        lines = info["Raw profile type exif"].split("\n")[3:]
        try:
            exif = bytes.fromhex("".join(lines))
        except ValueError:
            exif = None
    found = _orientation_tag(exif or b"")
    if found is None:
        xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
        xmp = xmp.encode() if isinstance(xmp, str) else xmp
        match = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)
        found = int(match[1]) if match else 1
    return found if 1 <= found <= 8 else 1


def _orientation_tag(exif):
    """Returns the orientation in EXIF's first directory, or `None`."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, tag_type = struct.unpack_from(f"{order}HH", exif, at)
            if tag == _ORIENTATION_TAG and tag_type in _TAG_TYPES:
                form = f"{order}{_TAG_TYPES[tag_type]}"
                return struct.unpack_from(form, exif, at + 8)[0]
    except struct.error:
        pass  # truncated: not a reason to refuse the pixels
    return None


def turn_upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an image or mask `[H, W, ...]` by an EXIF orientation, 1 to 8."""
    if orientation == 1:
        return values
    # 5 to 8 have rows and columns exchanged; then come the mirrors.
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def turn_bands(bands: Bands, orientation: int) -> Bands:
    """Turns bands as stored by an EXIF orientation, 1 to 8."""
    valid = bands.valid
    if valid is not None:
        valid = turn_upright(valid, orientation)
    values = turn_upright(bands.values, orientation)
    return Bands(values, valid, bands.has_alpha, orientation)


def read_mask(
    source: PathLike | bytes,
    spec: DatasetSpec,
    size: Size | None = None,
    name: PathLike | None = None,
    image_orientation: int = 1,
) -> np.ndarray:
    """Reads a mask as labels, uint8 `[H, W]`.

    8-bit gray PNGs hold indices. Palette PNGs do too, unless the spec has a
    colormap: then their colors count, as those of RGB ones. Next come the
    label map and the range check.

    Args:
        source: path or bytes of a PNG file.
        spec: `DatasetSpec`.
        size: `(height, width)` that it must have, or `None`.
        name: name for messages; defaults to the path.
        image_orientation: EXIF orientation of its image, for a spec whose
            `mask_orientation` is `"image"`.

    Raises:
        ValueError: names the file and the values at fault.
    """
    path = _called(source, name)
    stored = read_stored(source, spec, name, image_orientation)
    return stored.labels(spec, size, path)


def to_labels(
    stored: np.ndarray, spec: DatasetSpec, size: Size | None, path: PathLike
) -> np.ndarray:
    """Converts stored mask values to labels, uint8 `[H, W]`.

    Args:
        stored: uint8 `[H, W]`, the values of a `StoredMask`.
        spec: `DatasetSpec`.
        size: `(height, width)` that it must have, or `None`.
        path: name for messages.

    Raises:
        ValueError: names the file and the values at fault.
    """
    if size is not None and stored.shape != tuple(size):
        hint = ""
        if stored.shape == tuple(size)[::-1]:
            hint = f"; turned by EXIF? {_turn_back(spec)}"
        raise InputError(
            f"Mask is {stored.shape[0]}x{stored.shape[1]}, its image "
            f"{size[0]}x{size[1]}{hint}. File: {path}"
        )
    table = label_table(spec)
    if spec.reads_white_as_object:
        _check_binary(stored, path)
    # Four times as fast as `table[stored]`.
    labels = np.take(table, stored)
    if labels.min(initial=0) < 0:
        raise InputError(_range_message(stored, table, spec, path))
    return labels.astype("uint8")


def _check_binary(stored, path):
    """Raises if a binary mask could be read in two ways."""
    found = np.flatnonzero(np.bincount(stored.ravel(), minlength=256))
    if {1, 255} <= {*found.tolist()}:
        raise InputError(
            "A mask of one class holds 1 and 255. If 255 is ignored, put "
            '"ignore_label": 255 into dataset.json; if it is the object, too, '
            f'"label_map": {{"255": 1, "1": 1}}. File: {path}'
        )
    others = sorted({*found.tolist()} - {0, 1, 255})
    if others:
        raise InputError(
            "Masks of one class must hold 0 and 255, or 0 and 1; map other "
            "values by `label_map` in dataset.json (smoothed edges: save the "
            f"mask without them). File: {path} ({len(others)} other values, "
            f"first {others[0]})"
        )


def _turn_back(spec):
    """Suggests a `mask_orientation` for a transposed mask."""
    if spec.mask_orientation == "image":
        return (
            'if masks are stored upright, remove "mask_orientation": "image" '
            "from dataset.json"
        )
    return (
        "images are read upright; if masks fit them as they are stored, put "
        '"mask_orientation": "image" into dataset.json'
    )


def label_table(spec: DatasetSpec) -> np.ndarray:
    """Returns int16 `(256,)`: stored value -> label, -1 if invalid."""
    table = np.full(256, -1, "int16")
    table[: spec.num_classes] = np.arange(spec.num_classes)
    table[spec.ignore_label] = spec.ignore_label
    for stored, label in (spec.label_map or {}).items():
        if 0 <= stored < 256:
            table[stored] = spec.ignore_label if label == "ignore" else label
    return table


@dataclasses.dataclass(frozen=True)
class StoredMask:
    """Stored values of a mask, before the label map.

    Attributes:
        values: uint8 `[H, W]`, upright; of a mask of colors, their classes.
        levels: for a gray mask, the gray level that each number shows is this
            times the number; otherwise `None`.
        is_colored: bool, whether `values` come from the colormap.
        num_transparent: int, pixels of a mask of colors that show nothing.
        orientation: int, the EXIF orientation that was applied.
        valid: bool `[H, W]`, False where the file has no data, or `None`.
    """

    values: np.ndarray
    levels: int | None = None
    is_colored: bool = False
    num_transparent: int = 0
    orientation: int = 1
    valid: np.ndarray | None = None

    def labels(
        self, spec: DatasetSpec, size: Size | None, path: PathLike
    ) -> np.ndarray:
        """Converts the values to labels; see `to_labels`.

        Pixels without data are ignored, whatever the label map says.
        """
        found = to_labels(self.values, spec, size, path)
        if self.valid is None:
            return found
        return np.where(self.valid, found, np.uint8(spec.ignore_label))


def read_stored(
    source: PathLike | bytes,
    spec: DatasetSpec,
    name: PathLike | None = None,
    image_orientation: int = 1,
) -> StoredMask:
    """Reads the stored values of a mask.

    Args:
        source: path or bytes of a PNG file.
        spec: `DatasetSpec`.
        name: name for messages; defaults to the path.
        image_orientation: as in `read_mask`.

    Returns:
        `StoredMask`.

    Raises:
        ValueError: names the file and what is wrong with it.
    """
    path = _called(source, name)
    if tiff.is_tiff(path):
        return _stored_in_tiff(source, path, spec, image_orientation)
    with open_image(source, name) as image:
        _check_format(image, path, spec)
        stretched = _STRETCHED_BY.get(_raw_mode(image), 1)
        levels = {"1": 255, "L": stretched}.get(image.mode)
        try:
            # "P": indices, not the palette's colors; "1" becomes 0 and 1.
            values = np.array(image)
            orientation = _orientation(image.info)
            key = image.info.get("transparency")
            palette = None
            if image.mode == "P" and spec.colormap is not None:
                palette = _palette(image, key)
        except Exception as error:
            raise InputError(
                f"Unreadable or truncated mask. File: {path} ({_reason(error)})"
            ) from None
    if spec.mask_orientation == "image":
        orientation = image_orientation
    values = turn_upright(values, orientation)
    if values.ndim == 3:
        colors, num_transparent = _visible(values, key, path)
        labels = _from_colors(colors, path, spec, num_transparent)
        return StoredMask(labels, None, True, num_transparent, orientation)
    if palette is not None and not _holds_indices(values, palette, spec, path):
        labels = _classes_of(palette[:, :3], spec).astype("uint8")[values]
        num_transparent = int((palette[:, 3] == 0)[values].sum())
        return StoredMask(labels, None, True, num_transparent, orientation)
    values = values.astype("uint8", copy=False)
    if stretched > 1:
        values = values // np.uint8(stretched)
    return StoredMask(values, levels, orientation=orientation)


def _stored_in_tiff(source, path, spec, image_orientation):
    """Reads a mask of one band; what it declares as no data is ignored."""
    bands = tiff.read_tiff(source, path, MAX_PIXELS, lossless=True)
    if bands.values.dtype != np.uint8 or bands.values.shape[-1] != 1:
        raise InputError(
            "Masks in TIFF must have one band of uint8. File: "
            f"{path} ({bands.values.shape[-1]} of {bands.values.dtype})"
        )
    orientation = bands.orientation
    if spec.mask_orientation == "image":
        orientation = image_orientation
    bands = turn_bands(bands, orientation)
    return StoredMask(
        bands.values[..., 0], valid=bands.valid, orientation=orientation
    )


def _as_bands(image):
    """Converts an image to the bands of its file; palettes become RGB."""
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in _BAND_MODES else _rgb(image)


def _rgb(image):
    """Converts an image to RGB; transparency is dropped."""
    if image.mode == "RGB":
        return image  # converting would copy it
    # Pillow warns of a palette that has it.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _check_format(image, path, spec):
    if image.format != "PNG":
        raise InputError(
            f"Masks must be PNG, other formats change values. File: {path} "
            f"({image.format})"
        )
    deep = _is_deep(image)
    if deep or image.mode not in (*_INDEX_MODES, *_COLOR_MODES):
        bits = "16 bits per value, " if deep else ""
        raise InputError(
            "Masks must be 8-bit index or palette PNGs, or RGB with a "
            f"colormap. File: {path} ({bits}mode {image.mode})"
        )
    if image.mode in _COLOR_MODES and spec.colormap is None:
        raise InputError(
            "RGB mask, but no `colormap` in dataset.json says which color is "
            f"which class. File: {path} (mode {image.mode})"
        )


def _is_deep(image):
    """Returns True for 16 bits per value, which Pillow may hide."""
    hidden = image.format == "PNG" and ";16" in _raw_mode(image)
    return hidden or ";16" in image.mode


def _raw_mode(image):
    """Returns the raw mode of the file, e.g. `L;4`, unlike `image.mode`."""
    return str(image.tile[0].args) if image.tile else ""


def _palette(image, transparency):
    """Returns the palette as RGBA, uint8 `(256, 4)`.

    What shows nothing is black; what is not in the palette has alpha 1.
    """
    palette = np.zeros((256, 4), "uint8")
    palette[:, 3] = 1
    colors = np.reshape(image.getpalette("RGB"), (-1, 3))[:256]
    palette[: len(colors)] = np.insert(colors, 3, 255, axis=1)
    if isinstance(transparency, int):
        palette[transparency, 3] = 0
    elif transparency:
        alpha = np.frombuffer(transparency, "uint8")[:256]
        palette[: len(alpha), 3] = alpha
    palette[palette[:, 3] == 0] = 0
    return palette


def _holds_indices(values, palette, spec, path):
    """Returns True if the indices of a palette mask are its labels.

    Its colors, if the colormap has all of them. Otherwise its indices, if they
    agree with the colors that the colormap has and all others are ignored:
    PASCAL VOC's masks have a border of a color without a class'.

    Raises:
        ValueError: neither.
    """
    counts = np.bincount(values.ravel(), minlength=256)
    by_color = _classes_of(palette[:, :3], spec)
    by_color[~np.isin(palette[:, 3], (0, 255))] = -1
    unknown = (counts > 0) & (by_color < 0)
    if not unknown.any():
        return False
    known = (counts > 0) & ~unknown
    table = label_table(spec)
    agree = (table[by_color[known]] == table[known]).all()
    if agree and (table[unknown] == spec.ignore_label).all():
        return True
    index = int(np.argmax(unknown * counts))
    raise UnknownColorError(
        f"Color {_shown(palette[index])} of the palette is not in the colormap",
        ". Name it in `colormap` or `ignore_colors` in dataset.json; or, if "
        "the palette's indices are the labels, remove `colormap` there",
        f"File: {path} (index {index}, {counts[index]} pixels)",
    )


def _visible(values, key, path):
    """Returns the visible colors: `(uint8 [H, W, 3], hidden pixels)`.

    Transparent pixels keep what was drawn and erased; they are read as black.
    """
    hidden = np.zeros(values.shape[:2], bool)
    if values.shape[2] == 4:
        alpha = values[..., 3]
        partial = (alpha > 0) & (alpha < 255)
        if partial.any():
            raise InputError(
                "A mask's pixels must be opaque or transparent; save it "
                "without alpha channel and without smoothed edges. "
                f"File: {path} ({partial.sum()} pixels in between)"
            )
        hidden = alpha == 0
    elif key is not None:
        hidden = (values == np.array(key)).all(-1)
    rgb = values[..., :3]
    if hidden.any():
        rgb = np.where(hidden[..., None], np.uint8(0), rgb)
    return rgb, int(hidden.sum())


def _classes_of(colors, spec):
    """Converts RGB `(N, 3)` to labels, int16 `(N,)`, -1 if unknown."""
    labels = {tuple(color): spec.ignore_label for color in spec.ignore_colors}
    labels |= {color: label for label, color in enumerate(spec.colormap)}
    return np.array(
        [labels.get(tuple(c), -1) for c in colors.tolist()], "int16"
    )


def _from_colors(rgb, path, spec, num_transparent):
    code = rgb.astype("int32") @ np.array([65536, 256, 1], "int32")
    found, inverse, counts = np.unique(
        code, return_inverse=True, return_counts=True
    )
    colors = np.stack([found >> shift & 255 for shift in (16, 8, 0)], axis=-1)
    labels = _classes_of(colors, spec)
    unknown = np.flatnonzero(labels < 0)
    if len(unknown):
        worst = max(unknown, key=lambda i: counts[i])
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        color = _shown(colors[worst])
        hint = f'name it there or in "ignore_colors": [{list(color)}]'
        if not any(color):
            hint = (
                "add the class that it stands for, background is one too, or "
                f'"ignore_colors": [{list(color)}] if it is not labeled,'
            )
            if num_transparent:
                more += ", as which transparent pixels are read,"
        raise UnknownColorError(
            f"Color {color}{more} is not in the colormap",
            f"; {hint} in dataset.json",
            f"File: {path} ({counts[worst]} pixels)",
        )
    return labels.astype("uint8")[inverse].reshape(code.shape)


def _shown(color):
    return tuple(int(v) for v in color[:3])


def _instead(source, error):
    """Returns what to give instead, or nothing."""
    if isinstance(source, (str, os.PathLike)):
        if os.path.isdir(source):
            return "; give its files, FOLDER/*.jpg"
        if "*" in os.fspath(source) and not os.path.exists(source):
            return "; no file fits this pattern"
    if not isinstance(error, Image.UnidentifiedImageError):
        return ""
    try:
        head = _first_bytes(source)
    except OSError:
        return ""
    for pattern, name in _OTHER_FORMATS:
        if re.match(pattern, head, re.DOTALL):
            suffix = f".{name.lower()}"
            if suffix in FORMATS_BY_SUFFIX:
                return f" but a {name}, which needs the suffix {suffix}"
            return f" but a {name}; convert it to PNG"
    return ""


def _range_message(stored, table, spec, path):
    values, counts = np.unique(stored[table[stored] < 0], return_counts=True)
    worst = int(counts.argmax())
    more = f" and {len(values) - 1} more values" if len(values) > 1 else ""
    return (
        f"Label value {values[worst]}{more} is neither in "
        f"0..{spec.num_classes - 1} nor ignore_label={spec.ignore_label}. "
        f"File: {path} ({counts[worst]} pixels)"
    )


def _reason(error, formats=FORMATS):
    """Formats the cause on one line, without repeating the file name."""
    if isinstance(error, Image.UnidentifiedImageError):
        return f"no {' or '.join(formats)}"
    reason = getattr(error, "strerror", None) or str(error)
    return printable(" ".join(reason.split())) or type(error).__name__
