"""Pictures and masks on the host: decoding, label maps, checks."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 100_000_000
_INDEX_MODES = ("L", "P", "1")


def open_image(source, name=None):
    """Opens a picture without decoding it.

    Args:
        source: path or bytes of the file.
        name: what messages call it; the path if not given.

    Raises:
        ValueError: not a readable picture, or more than `MAX_PIXELS`.
    """
    path = source if name is None else name
    source = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            # Pillow only warns of decompression bombs; the check is below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(source)
    except (OSError, Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(f"Unreadable picture. File: {path} ({error})") from None
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.height}x{image.width}"
        image.close()
        raise ValueError(
            f"Pictures must have at most {MAX_PIXELS} pixels. File: {path} "
            f"({size})"
        )
    return image


def read_image(source, name=None, exif=False):
    """A picture as uint8 `[H, W, 3]`, RGB.

    Args:
        source: path or bytes of a JPEG or PNG file.
        name: what messages call it; the path if not given.
        exif: bool. Whether to turn it as its EXIF orientation says.

    Raises:
        ValueError: unreadable or truncated.
    """
    with open_image(source, name) as image:
        try:
            if exif:
                image = ImageOps.exif_transpose(image)
            return np.array(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(
                "Unreadable or truncated picture. "
                f"File: {source if name is None else name} ({error})"
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
    path = source if name is None else name
    stored = read_stored(source, spec, name)
    if size is not None and stored.shape != tuple(size):
        raise ValueError(
            f"Mask is {stored.shape[0]}x{stored.shape[1]}, its picture "
            f"{size[0]}x{size[1]}. File: {path}"
        )
    table = label_table(spec)
    labels = table[stored]
    if (labels < 0).any():
        raise ValueError(_range_message(stored, table, spec, path))
    return labels.astype("uint8")


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
    """The numbers in a mask as uint8 `[H, W]`, before the label map."""
    path = source if name is None else name
    with open_image(source, name) as image:
        return _stored_values(image, path, spec)


def _stored_values(image, path, spec):
    if image.format != "PNG":
        raise ValueError(
            f"Masks must be PNG, other formats change values. File: {path} "
            f"({image.format})"
        )
    if image.mode not in (*_INDEX_MODES, "RGB", "RGBA"):
        raise ValueError(
            "Masks must be 8-bit index or palette PNGs, or RGB with a "
            f"colormap. File: {path} (mode {image.mode})"
        )
    if image.mode in ("RGB", "RGBA") and spec.colormap is None:
        raise ValueError(
            "RGB mask, but dataset.json has no `colormap` that says which "
            f"colour is which class. File: {path}"
        )
    try:
        if image.mode in ("RGB", "RGBA"):
            return _from_colors(np.array(image.convert("RGB")), path, spec)
        # "P": indices, not the palette's colours; "1" becomes 0 and 1.
        return np.array(image).astype("uint8")
    except (OSError, SyntaxError) as error:
        raise ValueError(
            f"Unreadable or truncated mask. File: {path} ({error})"
        ) from None


def _from_colors(rgb, path, spec):
    code = rgb.astype("int32") @ np.array([65536, 256, 1], "int32")
    # Black is the colour of what is not labelled, unless a class has it.
    colors = {0: spec.ignore_label}
    for label, (r, g, b) in enumerate(spec.colormap):
        colors[r * 65536 + g * 256 + b] = label
    found, inverse, counts = np.unique(
        code, return_inverse=True, return_counts=True
    )
    for value, count in zip(found, counts, strict=True):
        if int(value) not in colors:
            color = tuple(int(value) >> s & 255 for s in (16, 8, 0))
            raise ValueError(
                f"Colour {color} is not in the colormap. File: {path} "
                f"({count} pixels)"
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
