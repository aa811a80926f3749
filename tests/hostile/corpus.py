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


def run_lengths():
    """A BMP whose pixels are compressed."""
    data = bytearray(encoded(Image.new("P", (56, 40)), "BMP"))
    data[30] = 1  # RLE8
    return bytes(data)


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
        "bomb_of_colour_profile.png": png(
            40, 56, zlib.compress(bytes(40 * 169)), extra=profile
        ),
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
        "colour_16_bit.png": png(
            40, 56, zlib.compress(bytes(40 * (6 * 56 + 1))), depth=16
        ),
        "animated.webp": encoded(frames[0], "WEBP", **animated),
        "cut_in_half.webp": encoded(image, "WEBP")[:400],
        "header_cut.webp": encoded(image, "WEBP")[:20],
        "garbage_after_magic.webp": b"RIFF\xff\0\0\0WEBPVP8X" + rng.bytes(400),
        "cut_in_half.bmp": encoded(image, "BMP")[:3000],
        "header_cut.bmp": encoded(image, "BMP")[:20],
        "run_lengths.bmp": run_lengths(),
        "a_gif.webp": encoded(image, "GIF"),
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
        "garbage_exif.png": encoded(image, "PNG", exif=rng.bytes(60)),
        "plain.webp": encoded(image, "WEBP"),
        "plain.bmp": encoded(image, "BMP"),
        "bits.bmp": encoded(image.convert("1"), "BMP"),
        "png_named.webp": portable,
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "animated.png": encoded(frames[0], "PNG", **animated),
        "turned.jpg": encoded(image, "JPEG", exif=exif(6)),
        "turned_nowhere.jpg": encoded(image, "JPEG", exif=exif(99)),
        "garbage_exif.jpg": encoded(
            image, "JPEG", exif=b"Exif\0\0" + rng.bytes(60)
        ),
        "1x1.png": encoded(noise(1, 1), "PNG"),
        "1x1.jpg": encoded(noise(1, 1), "JPEG"),
        "1x5000.png": encoded(noise(1, 5000), "PNG"),
        "5000x1.jpg": encoded(noise(5000, 1), "JPEG"),
        "data_after_the_end.png": portable + rng.bytes(999),
    }
    return bad, good


def masks():
    """`(bad, good)` masks for a picture of 40x56 and three classes."""
    labels = np.zeros((40, 56), "uint8")
    labels[:9], labels[-5:] = 1, 2
    high = labels.copy()
    high[3, 4] = 77
    image = Image.fromarray(labels)
    palette = image.copy()
    palette.putpalette(list(range(255, -1, -1)) * 3)
    bad = {
        "empty": b"",
        "garbage": np.random.default_rng(RNG_SEED).bytes(999),
        "cut": encoded(image, "PNG")[:-30],
        "of_another_size": encoded(labels[:-1], "PNG"),
        "turned": encoded(labels.T.copy(), "PNG"),
        "out_of_range": encoded(high, "PNG"),
        "float": encoded(labels.astype("float32"), "TIFF"),
        "16_bit": encoded(labels.astype("uint16"), "PNG"),
        "jpeg": encoded(image, "JPEG"),
        "gif": encoded(image, "GIF"),
        "colours_without_a_colormap": encoded(image.convert("RGB"), "PNG"),
        "bomb": bomb(),
    }
    good = {
        "plain": encoded(image, "PNG"),
        "palette": encoded(palette, "PNG"),
        "two_bits": encoded(image, "PNG", bits=2),
        "palette_alpha": encoded(palette, "PNG", transparency=bytes(9)),
        "animated": encoded(image, "PNG", save_all=True, append_images=[image]),
    }
    return bad, good


def specs():
    """What a `dataset.json` must not hold: name -> (content, message)."""
    names = '"class_names": ["a", "b", "c"]'

    def given(more):
        return f"{{{names}, {more}}}"

    return {
        "empty": ("", "Not valid JSON"),
        "binary": (bytes(range(256)), "Not UTF-8"),
        "utf_16": (given('"name": "x"').encode("utf-16"), "Not UTF-8"),
        "list": ("[]", "`class_names` is missing"),
        "number": ("3", "`class_names` is missing"),
        "nan": ('{"class_names": NaN}', "class_names=nan"),
        "deep_lists": ("[" * 100_000, "recursion"),
        "deep_objects": ('{"class_names":' * 50_000, "recursion"),
        "digits": (given(f'"ignore_label": {"9" * 5000}'), "4300 digits"),
        "infinite": (given('"ignore_label": 1e999'), "ignore_label=inf"),
        "true": (given('"ignore_label": true'), "ignore_label=True"),
        "long": (" " * 2**21, "Longer than"),
        "names_nested": ('{"class_names": [["a"]]}', "different names"),
        "names_a_hundred_thousand": (
            f'{{"class_names": {list(map(str, range(99_999)))}}}'.replace(
                "'", '"'
            ),
            "99999 classes",
        ),
        "name_with_a_break": ('{"class_names": ["a\\nb"]}', "line breaks"),
        "name_with_an_escape": ('{"class_names": ["\\u001b[1m"]}', "control"),
        "name_half_a_pair": ('{"class_names": ["\\ud800"]}', "control"),
        "colormap_text": (given('"colormap": "abc"'), "`colormap`"),
        "colormap_nested": (given('"colormap": [[[1], 2, 3]]'), "`colormap`"),
        "colormap_infinite": (given('"colormap": [[1e999, 2, 3]]'), "inf"),
        "colormap_null": (given('"colormap": [null]'), "`colormap`"),
        "label_map_digits": (
            given(f'"label_map": {{"{"9" * 5000}": 1}}'),
            "`label_map`",
        ),
        "label_map_large": (given('"label_map": {"1": 99999999999}'), "0..2"),
        "license_object": (given('"license": {"a": 1}'), "`license`"),
        "unknown_key": (given('"__class__": "x"'), "Unknown keys"),
    }


def configurations(marker):
    """YAML that no run may come of: name -> (content, message).

    `marker` is a file that is there if one of them runs a command.
    """
    touch = f"touch {marker}"
    laughs = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (c + 1, c + 1, b", ".join([b"*%c" % c] * 9))
        for c in range(97, 115)
    )
    section, valid = "must hold sections", "Not valid YAML"

    def number(path, value):
        part, name = path.split(".")
        rest = ", total_epochs: 1" if part == "train" else ""
        more = "" if rest else "\ntrain: {total_epochs: 1}"
        return f"{part}: {{{name}: {value}{rest}}}{more}"

    values = {
        "train.batch_size": 10**12,
        "train.total_steps": -3,
        "train.seed": 10**30,
        "train.learning_rate": ".inf",
        "train.weight_decay": ".nan",
        "train.warmup_steps": -1,
        "train.validate_every_epochs": 10**12,
        "data.crop_size": [10**6 * 32, 10**6 * 32],
        "data.ignore_label": 10**12,
        "data.validation_fraction": ".nan",
        "export.image_size": [10**6, 10**6],
        "export.num_verify_images": -1,
        "model.aspp_filters": 10**9,
        "model.decoder_filters": 10**9,
        "model.input_scale": 10**9,
        "model.atrous_rates": [10**9],
        "model.decoder_kernel_sizes": [10**9],
        "model.blocks": 10**9,
        "model.dropout": ".nan",
        "model.multi_grid": [10**9],
        "model.architecture": "[x]",
        "model.separable": 3,
        "model.backbone": "null",
    }
    numbers = {
        path: (
            number(path, value),
            path.split(".")[1],
        )
        for path, value in values.items()
    }
    return {
        "empty": ("", section),
        "binary": (bytes(range(256)) * 20, "Not UTF-8"),
        "utf_16": ("model: {}".encode("utf-16"), "Not UTF-8"),
        "zero_byte": ("model:\0", valid),
        "a_list": ("- [1]", section),
        "a_text": ("hello", section),
        "tabs": ("model:\n\t- x", valid),
        "unclosed": ("model: {a", valid),
        "two_documents": ("model: {}\n---\ndata: {}", valid),
        "os_system": (
            f'model: !!python/object/apply:os.system ["{touch}"]',
            "python/object/apply",
        ),
        "os_system_by_name": ("data: !!python/name:os.system x", valid),
        "own_tag": ("model: !mine {a: 1}", valid),
        "bad_date": ("model: {backbone: 2001-99-99}", valid),
        "bad_time": ("model: {dropout: !!timestamp x}", valid),
        "bad_integer": ("model: {dropout: !!int abc}", valid),
        "digits": (f"train: {{seed: {'9' * 5000}}}", valid),
        "digits_of_a_float": (
            f"train: {{learning_rate: {'9' * 400}, total_epochs: 1}}",
            "too large",
        ),
        "billion_laughs": (laughs, "aliases"),
        "alias_of_itself": ("model: &a {backbone: *a}", "aliases"),
        "merged": ("x: &x {a: 1}\nmodel: {<<: *x}", "aliases"),
        "deep_flow": ("model: " + "[" * 50_000, "nested deeper"),
        "deep_mapping": ("{a: " * 15_000, "nested deeper"),
        "deep_dashes": ("- " * 30_000, "nested deeper"),
        "deep_questions": ("? " * 30_000, "nested deeper"),
        "long": ("#" * 2**21, "Longer than"),
        "list_for_a_key": ("? [a]\n: b", valid),
        "number_for_a_key": ("1: {}", section),
        "section_a_list": ("model: [1]", "must be a section"),
        "section_nothing": ("model:", "must be a section"),
        "section_a_file": ("train: {loss: /dev/zero}", "must be a section"),
        "class_path": (
            "train: {loss: {class_path: os.system, init_args: "
            f"{{command: {touch}}}}}, total_epochs: 1}}",
            "train.loss.class_path",
        ),
        "unknown_key": ("train: {epochs: 3}", "Did you mean"),
        "unknown_section": ("trian: {epochs: 3}", section),
        "unknown_nested": (
            "data: {augment: {rotate: 3}}",
            "data.augment.rotate",
        ),
        "too_many_pixels": (
            "train: {batch_size: 4096, total_epochs: 1}\n"
            "data: {crop_size: [2048, 2048]}",
            "The crops of a step",
        ),
        **numbers,
    }
