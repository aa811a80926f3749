"""Broken and hostile files, made by code: name -> what to write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

RNG_SEED = 7


def noise(height=40, width=56, channels=3):
    """A picture that compression cannot shrink to nothing."""
    rng = np.random.default_rng(RNG_SEED)
    return rng.integers(0, 256, (height, width, channels)).astype("uint8")


def encoded(array, kind, **options):
    """An array, or a picture of Pillow's, as the bytes of a file."""
    file = io.BytesIO()
    if not isinstance(array, Image.Image):
        array = Image.fromarray(array)
    array.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, data):
    """One chunk of a PNG."""
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", crc(body))


def crc(data):
    return zlib.crc32(data) & 0xFFFFFFFF


def zeros_deflated(count):
    """`count` zeros as a zlib stream, without ever holding them."""
    block = 1 << 20
    packer = zlib.compressobj(9)
    stream = [packer.compress(bytes(count % block))]
    whole, single = count // block, None
    if whole:
        stream.append(packer.flush(zlib.Z_FULL_FLUSH))
        single = zlib.compressobj(9, zlib.DEFLATED, -15)
        one = single.compress(bytes(block)) + single.flush(zlib.Z_FULL_FLUSH)
        stream.append(one * whole)
    stream.append(b"\x03\x00")  # an empty last block
    # Adler-32 of zeros: 1, and their number.
    return b"".join(stream) + struct.pack(">HH", count % 65521, 1)


def png(height, width, data, depth=8, color=2, extra=b""):
    """A PNG of any claimed size around any compressed data."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def bomb(height=20_000, width=20_000):
    """A PNG of a few hundred kB that decodes to 1.2 GB of RGB."""
    return png(height, width, zeros_deflated(height * (width + 1)), color=0)


def progressive_bomb(height, width, scans):
    """A JPEG whose last scan, a few bytes, comes `scans` times."""
    grey = Image.new("L", (width, height))
    data = encoded(grey, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + b"\xff\xd9"


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def pictures():
    """`(bad, good)`: files that must be refused, and that must be read."""
    rng = np.random.default_rng(RNG_SEED)
    array = noise()
    jpeg, portable = encoded(array, "JPEG"), encoded(array, "PNG")
    image = Image.fromarray(array)
    header = png(40, 56, b"")[:33]
    grey16 = Image.fromarray(array[..., 0].astype("uint16") * 257)
    frames = [Image.fromarray(noise(9, 9)), Image.fromarray(255 - noise(9, 9))]
    animated = {"save_all": True, "append_images": frames[1:]}
    many = chunk(b"zTXt", b"a\0\0" + zeros_deflated(1 << 28))
    profile = chunk(b"iCCP", b"a\0\0" + zeros_deflated(1 << 28))
    bad = {
        "empty.png": b"",
        "empty.jpg": b"",
        "one_byte.png": b"\x89",
        "garbage.jpg": rng.bytes(4000),
        "garbage_after_magic.jpg": b"\xff\xd8\xff\xe0" + rng.bytes(4000),
        "garbage_after_magic.png": b"\x89PNG\r\n\x1a\n" + rng.bytes(4000),
        "text.png": b"this is no picture\n" * 50,
        "html.jpg": b"<html><body>404 not found</body></html>",
        "cut_at_a_quarter.jpg": jpeg[: len(jpeg) // 4],
        "cut_in_half.jpg": jpeg[: len(jpeg) // 2],
        "cut_in_half.png": portable[: len(portable) // 2],
        "header_alone.png": header,
        "header_cut.png": header[:20],
        "no_data.png": png(40, 56, b""),
        "garbage_data.png": png(40, 56, rng.bytes(500)),
        "too_little_data.png": png(40, 56, zlib.compress(bytes(100))),
        "no_pixels.png": png(0, 0, zlib.compress(b"")),
        "colour_type_9.png": png(40, 56, zlib.compress(bytes(9000)), color=9),
        "bomb_20000x20000.png": bomb(),
        "bomb_2147483647.png": png(2**31 - 1, 2**31 - 1, zeros_deflated(999)),
        "bomb_1x200000000.png": png(1, 200_000_000, zeros_deflated(600000001)),
        "bomb_of_text.png": png(40, 56, zlib.compress(bytes(9000)), extra=many),
        "scans_by_the_thousand.jpg": progressive_bomb(64, 64, 5000),
        "a_gif.png": encoded(image, "GIF"),
        "animated.gif.png": encoded(frames[0], "GIF", **animated),
        "a_webp.jpg": encoded(image, "WEBP"),
        "animated_webp.jpg": encoded(frames[0], "WEBP", **animated),
        "a_tiff.png": encoded(image, "TIFF"),
        "float_tiff.png": encoded(array[..., 0].astype("float32"), "TIFF"),
        "a_bmp.png": encoded(image, "BMP"),
        "a_ppm.png": encoded(image, "PPM"),
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n"
        b"%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) print\n",
        "grey_16_bit.png": encoded(grey16, "PNG"),
    }
    palette = image.quantize(16)
    with_alpha = np.dstack([array, array[..., :1]])
    good = {
        "plain.jpg": jpeg,
        "plain.png": portable,
        "jpeg_named.png": jpeg,
        "png_named.jpg": portable,
        "grey.png": encoded(array[..., 0], "PNG"),
        "grey.jpg": encoded(array[..., 0], "JPEG"),
        "bits.png": encoded(image.convert("1"), "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "palette_alpha.png": encoded(
            palette, "PNG", transparency=bytes(range(16))
        ),
        "alpha.png": encoded(with_alpha, "PNG"),
        "grey_alpha.png": encoded(with_alpha[..., 2:], "PNG"),
        "transparent_colour.png": encoded(image, "PNG", transparency=(1, 2, 3)),
        "colour_16_bit.png": png(
            40, 56, zlib.compress(bytes(40 * (6 * 56 + 1))), depth=16
        ),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "animated.png": encoded(frames[0], "PNG", **animated),
        "bomb_of_colour_profile.png": png(
            40, 56, zlib.compress(bytes(40 * 169)), extra=profile
        ),
        "turned.jpg": encoded(image, "JPEG", exif=exif(6)),
        "turned_nowhere.jpg": encoded(image, "JPEG", exif=exif(99)),
        "garbage_exif.jpg": encoded(
            image, "JPEG", exif=b"Exif\0\0" + rng.bytes(60)
        ),
        "garbage_exif.png": encoded(image, "PNG", exif=rng.bytes(60)),
        "1x1.png": encoded(noise(1, 1), "PNG"),
        "1x1.jpg": encoded(noise(1, 1), "JPEG"),
        "1x5000.png": encoded(noise(1, 5000), "PNG"),
        "5000x1.jpg": encoded(noise(5000, 1), "JPEG"),
        "data_after_the_end.png": portable + rng.bytes(999),
    }
    return bad, good
