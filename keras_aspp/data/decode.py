"""Pictures and masks on the host: decoding, label maps, checks."""

import io
import os
import re
import stat
import threading
import warnings

import numpy as np
from PIL import Image, ImageOps

from keras_aspp.textfile import printable

MAX_PIXELS = 100_000_000
# A progressive JPEG repeats all its pixels with every scan, each a few bytes
# of the file; cameras write about ten.
MAX_SCANS = 100
# Marker, length of the header, components: within the compressed data, and in
# a colour profile, the marker alone occurs by chance.
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
_SCAN_BYTES = 5
# Pillow knows forty formats, one of which starts a program (PostScript).
FORMATS = ("JPEG", "PNG")
_EXIF_ORIENTATION = 0x0112
_INDEX_MODES = ("L", "P", "1")
_COLOR_MODES = ("RGB", "RGBA")
# Pillow stretches 2- and 4-bit grey values to 0..255; here they are ids.
_STRETCHED_BY = {"L;2": 85, "L;4": 17}
# Warning filters belong to the process, and tf.data decodes in threads.
_FILTERS = threading.Lock()


def open_image(source, name=None):
    """Opens a JPEG or PNG without decoding it.

    What it would take to decode is bounded here, by what the file says of
    itself, and nowhere else.

    Args:
        source: path or bytes of the file.
        name: what messages call it; the path if not given.

    Raises:
        ValueError: not a readable picture, or more than `MAX_PIXELS` or
            `MAX_SCANS`.
    """
    path = _called(source, name)
    try:
        if isinstance(source, bytes):
            source = io.BytesIO(source)
        elif not stat.S_ISREG(os.stat(source).st_mode):
            # A pipe would never end.
            raise ValueError("no regular file")
        with _FILTERS, warnings.catch_warnings():
            # Pillow only warns of decompression bombs; the check is below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(source, formats=FORMATS)
        scans = 0
        if image.format != "PNG":
            scans = _count_scans(image.fp)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"Pictures must have at most {MAX_PIXELS} pixels. File: {path} "
            f"({_reason(error)})"
        ) from None
    except Exception as error:
        # What a decoder raises depends on which byte is wrong.
        raise ValueError(
            f"Unreadable picture. File: {path} ({_reason(error)})"
        ) from None
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.height}x{image.width}"
        image.close()
        raise ValueError(
            f"Pictures must have at most {MAX_PIXELS} pixels. File: {path} "
            f"({size})"
        )
    if scans > MAX_SCANS:
        image.close()
        raise ValueError(
            f"A JPEG must have at most {MAX_SCANS} scans. File: {path} "
            f"({scans})"
        )
    return image


def _called(source, name):
    """What messages call a picture."""
    if name is None and isinstance(source, bytes):
        return f"{len(source)} bytes"
    return printable(source if name is None else name)


def _count_scans(file):
    """How many scans a JPEG starts; the file is left where it was."""
    place = file.tell()
    file.seek(0)
    found, rest = 0, b""
    while block := file.read(1 << 20):
        found += len(_SCAN.findall(rest + block))
        rest = block[1 - _SCAN_BYTES :]
    file.seek(place)
    return found


def read_image(source, name=None, exif=False):
    """A picture as uint8 `[H, W, 3]`, RGB.

    Args:
        source: path or bytes of a JPEG or PNG file.
        name: what messages call it; the path if not given.
        exif: bool. Whether to turn it as its EXIF orientation says.

    Raises:
        ValueError: unreadable or truncated, or 16-bit grey.
    """
    path = _called(source, name)
    with open_image(source, name) as image:
        if image.mode.startswith(("I", "F")):
            # Pillow would clip these at 255, not scale them.
            raise ValueError(
                "Pictures must have 8 bits per channel. "
                f"File: {path} (mode {image.mode})"
            )
        try:
            if exif:
                image = ImageOps.exif_transpose(image)
            return np.array(_rgb(image))
        except Exception as error:
            raise ValueError(
                "Unreadable or truncated picture. "
                f"File: {path} ({_reason(error)})"
            ) from None


def is_turned(path):
    """Whether a picture's EXIF says that it is to be turned.

    Raises:
        ValueError: as `open_image`, or its EXIF cannot be read.
    """
    with open_image(path) as image:
        try:
            return image.getexif().get(_EXIF_ORIENTATION, 1) != 1
        except Exception as error:
            raise ValueError(
                f"Unreadable EXIF. File: {_called(path, None)} "
                f"({_reason(error)})"
            ) from None


def read_mask(source, spec, size=None, name=None):
    """A mask as uint8 `[H, W]` of classes and `ignore_label`.

    8-bit index and palette PNGs are read as they are, RGB ones through the
    spec's colormap; then comes the label map, then the range check.

    Args:
        source: path or bytes of a PNG file.
        spec: `DatasetSpec`.
        size: `(height, width)` that it must have, or `None`.
        name: what messages call it; the path if not given.

    Raises:
        ValueError: names the file and the values at fault.
    """
    path = _called(source, name)
    return to_labels(read_stored(source, spec, name), spec, size, path)


def to_labels(stored, spec, size, path):
    """The numbers in a mask -> uint8 `[H, W]` of classes and `ignore_label`.

    Args:
        stored: uint8 `[H, W]`, as `read_stored` returns it.
        spec: `DatasetSpec`.
        size: `(height, width)` that it must have, or `None`.
        path: what messages call it.

    Raises:
        ValueError: names the file and the values at fault.
    """
    if size is not None and stored.shape != tuple(size):
        turned = stored.shape == tuple(size)[::-1]
        hint = "; turned by EXIF? store the picture upright" if turned else ""
        raise ValueError(
            f"Mask is {stored.shape[0]}x{stored.shape[1]}, its picture "
            f"{size[0]}x{size[1]}{hint}. File: {path}"
        )
    table = label_table(spec)
    if (table < 0)[stored].any():
        raise ValueError(_range_message(stored, table, spec, path))
    return table.astype("uint8")[stored]


def label_table(spec):
    """int16 `(256,)`: stored value -> label, -1 where there is none."""
    table = np.full(256, -1, "int16")
    table[: spec.num_classes] = np.arange(spec.num_classes)
    table[spec.ignore_label] = spec.ignore_label
    for stored, label in (spec.label_map or {}).items():
        if 0 <= stored < 256:
            table[stored] = spec.ignore_label if label == "ignore" else label
    return table


def read_stored(source, spec, name=None):
    """The numbers in a mask as uint8 `[H, W]`, before the label map.

    Raises:
        ValueError: names the file and what is wrong with it.
    """
    path = _called(source, name)
    with open_image(source, name) as image:
        _check_format(image, path, spec)
        stretched = _STRETCHED_BY.get(_raw_mode(image), 1)
        colors = image.mode in _COLOR_MODES
        try:
            # "P": indices, not the palette's colours; "1" becomes 0 and 1.
            values = np.array(_rgb(image) if colors else image)
        except Exception as error:
            raise ValueError(
                f"Unreadable or truncated mask. File: {path} ({_reason(error)})"
            ) from None
    if colors:
        return _from_colors(values, path, spec)
    return values.astype("uint8") // np.uint8(stretched)


def _rgb(image):
    """A picture as RGB; what is transparent shows its colour."""
    if image.mode == "RGB":
        return image  # converting would copy it
    # Pillow warns of a palette that has it.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _check_format(image, path, spec):
    if image.format != "PNG":
        raise ValueError(
            f"Masks must be PNG, other formats change values. File: {path} "
            f"({image.format})"
        )
    # Pillow reads 16-bit colours as 8-bit ones without a word.
    deep = ";16" in image.mode or ";16" in _raw_mode(image)
    if deep or image.mode not in (*_INDEX_MODES, *_COLOR_MODES):
        bits = "16 bits per value, " if deep else ""
        raise ValueError(
            "Masks must be 8-bit index or palette PNGs, or RGB with a "
            f"colormap. File: {path} ({bits}mode {image.mode})"
        )
    if image.mode in _COLOR_MODES and spec.colormap is None:
        raise ValueError(
            "RGB mask, but no `colormap` in dataset.json says which colour is "
            f"which class. File: {path} (mode {image.mode})"
        )


def _raw_mode(image):
    """How the file holds its values, e.g. `L;4`; `image.mode` hides it."""
    return str(image.tile[0].args) if image.tile else ""


def _from_colors(rgb, path, spec):
    code = rgb.astype("int32") @ np.array([65536, 256, 1], "int32")
    # Black is the colour of what is not labelled, unless a class has it.
    colors = {0: spec.ignore_label}
    for label, (r, g, b) in enumerate(spec.colormap):
        colors[r * 65536 + g * 256 + b] = label
    found, inverse, counts = np.unique(
        code, return_inverse=True, return_counts=True
    )
    unknown = [i for i, v in enumerate(found) if int(v) not in colors]
    if unknown:
        worst = max(unknown, key=lambda i: counts[i])
        color = tuple(int(found[worst]) >> s & 255 for s in (16, 8, 0))
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise ValueError(
            f"Colour {color}{more} is not in the colormap. File: {path} "
            f"({counts[worst]} pixels)"
        )
    labels = np.array([colors[int(v)] for v in found], "uint8")
    return labels[inverse].reshape(code.shape)


def _range_message(stored, table, spec, path):
    values, counts = np.unique(stored[table[stored] < 0], return_counts=True)
    worst = int(counts.argmax())
    more = f" and {len(values) - 1} more values" if len(values) > 1 else ""
    return (
        f"Label value {values[worst]}{more} is neither in "
        f"0..{spec.num_classes - 1} nor ignore_label={spec.ignore_label}. "
        f"File: {path} ({counts[worst]} pixels)"
    )


def _reason(error):
    """Why, in one line, without the file's name a second time."""
    if isinstance(error, Image.UnidentifiedImageError):
        return f"no {' or '.join(FORMATS)}"
    reason = getattr(error, "strerror", None) or str(error)
    return printable(" ".join(reason.split())) or type(error).__name__
