import concurrent.futures
import dataclasses
import io
import struct
import time
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from keras_aspp.data import decode
from keras_aspp.data.spec import DatasetSpec

SPEC = DatasetSpec(["ground", "box", "bar"])
COLORED = DatasetSpec(["ground", "box"], colormap=[(10, 20, 30), (200, 100, 0)])
RNG = np.random.default_rng(0)


def encoded(image, kind="PNG", **options):
    """A NumPy array or Pillow picture as the bytes of a file."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def raw_png(rows, depth, color_type, width, palette=b""):
    """A PNG by hand: Pillow writes neither all depths nor 16-bit colours."""

    def chunk(name, data):
        checksum = zlib.crc32(name + data)
        return (
            struct.pack(">I", len(data))
            + name
            + data
            + struct.pack(">I", checksum)
        )

    header = struct.pack(
        ">IIBBBBB", width, len(rows), depth, color_type, 0, 0, 0
    )
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"PLTE", palette) if palette else b"",
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + r for r in rows))),
            chunk(b"IEND", b""),
        ]
    )


def photograph(height=45, width=71):
    """Smooth and noisy parts, so that every step of JPEG matters."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([3 * x, 4 * y, 2 * (x + y)], axis=-1)
    noise = np.random.default_rng(7).integers(-40, 40, (height, width, 3))
    return (128 + 90 * np.sin(smooth / 40) + noise).clip(0, 255).astype("uint8")


# Pictures.


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [30, 75, 97])
def test_convention_pillow_equals_accurate_tensorflow(subsampling, quality):
    jpeg = encoded(
        photograph(), "JPEG", quality=quality, subsampling=subsampling
    )
    accurate = tf.io.decode_jpeg(jpeg, 3, dct_method="INTEGER_ACCURATE")
    np.testing.assert_array_equal(decode.read_image(jpeg, "x"), accurate)


def test_tensorflow_decodes_otherwise_by_default():
    jpeg = encoded(photograph(), "JPEG", quality=75)
    fast = tf.io.decode_jpeg(jpeg, 3).numpy()
    assert np.mean(decode.read_image(jpeg, "x") != fast) > 0.1


def test_camvid_pictures_decode_alike(shared):
    files = sorted((shared / "data/camvid/images/val").iterdir())[:3]
    for file in files:
        accurate = tf.io.decode_jpeg(
            file.read_bytes(), 3, dct_method="INTEGER_ACCURATE"
        )
        np.testing.assert_array_equal(decode.read_image(file), accurate)


def test_png_equals_tensorflow():
    png = encoded(photograph())
    np.testing.assert_array_equal(decode.read_image(png), tf.io.decode_png(png))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_picture_becomes_rgb(mode):
    image = Image.fromarray(photograph()).convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    read = decode.read_image(encoded(image, kind))
    assert read.shape == (45, 71, 3)
    assert read.dtype == np.uint8
    assert read.std() > 20


def exif_of(orientation, order="<", kind=3):
    """EXIF by hand: another tag, then the orientation."""
    form = {3: "Hxx", 4: "I"}[kind]
    return b"Exif\0\0" + b"".join(
        [
            {"<": b"II*\0", ">": b"MM\0*"}[order],
            struct.pack(f"{order}IH", 8, 2),
            struct.pack(f"{order}HHII", 0x0100, 4, 1, 71),
            struct.pack(f"{order}HHI", 0x0112, kind, 1),
            struct.pack(f"{order}{form}I", orientation, 0),
        ]
    )


# As the table of the EXIF standard shows them, in NumPy.
TURNS = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x.swapaxes(0, 1), 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(("order", "kind"), [("<", 3), (">", 3), ("<", 4)])
def test_images_are_upright(orientation, order, kind):
    image, exif = photograph(), exif_of(orientation, order, kind)
    data = encoded(image, exif=exif)
    upright = decode.read_image(data)
    np.testing.assert_array_equal(upright, TURNS[orientation](image))
    np.testing.assert_array_equal(
        upright, ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    )
    np.testing.assert_array_equal(decode.read_image(data, exif=False), image)
    assert decode.read_bands(data).orientation == orientation


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_orientation_of_other_formats(kind):
    image = Image.fromarray(photograph())
    upright, turned = (
        encoded(image, kind, **options)
        for options in ({}, {"exif": exif_of(6)})
    )
    name = f"a.{kind.lower()}"
    np.testing.assert_array_equal(
        decode.read_image(turned, name),
        np.rot90(decode.read_image(upright, name), -1),
    )


def test_orientation_in_xmp():
    xmp = b'<x><rdf tiff:Orientation="3"/></x>'
    jpeg = encoded(photograph(), "JPEG", xmp=xmp)
    assert decode.read_bands(jpeg).orientation == 3


@pytest.mark.parametrize(
    "exif",
    [
        exif_of(0),
        exif_of(9),
        exif_of(6)[:30],
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0nothing of the kind",
    ],
    ids=["0", "9", "cut", "nowhere", "garbage"],
)
def test_exif_without_orientation_leaves_the_image(exif):
    image = photograph()
    bands = decode.read_bands(encoded(image, exif=exif), pixels=decode.RGB)
    assert bands.orientation == 1
    np.testing.assert_array_equal(bands.values, image)


def test_tags_of_exif_that_overlap_take_no_memory():
    """Pillow would read 4 GB: 4,000 tags of the same 1 MB."""
    tags = b"".join(
        struct.pack("<HHII", 0x1000 + i, 7, 2**20, 0) for i in range(4000)
    )
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 4000) + tags
    data = encoded(photograph(), exif=exif + bytes(2**20))
    tracemalloc.start()
    try:
        decode.read_image(data)
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("color_type", [0, 2, 4, 6])
def test_16_bit_image_is_refused(tmp_path, color_type):
    """Pillow would clip gray at 255 and take the high bytes of colors."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
    file = tmp_path / "deep.png"
    row = b"\x0f\xff" * channels * 5
    file.write_bytes(raw_png([row], 16, color_type, 5))
    with pytest.raises(ValueError, match=r"8 bits .*deep.png \(16 bits per"):
        decode.read_image(file)


# Formats that need their suffix.


@pytest.mark.parametrize(
    ("kind", "options"), [("BMP", {}), ("WEBP", {"lossless": True})]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_bmp_and_webp_are_read_under_their_own_suffix(
    tmp_path, kind, options, mode
):
    image = Image.fromarray(photograph()).convert(mode)
    file = tmp_path / f"a.{kind.title()}"
    file.write_bytes(encoded(image, kind, **options))
    expected = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(decode.read_image(file), expected)
    content = file.read_bytes()
    np.testing.assert_array_equal(decode.read_image(content, file), expected)
    other = file.rename(tmp_path / "a.png")
    for source in (other, content):
        with pytest.raises(
            ValueError, match=rf"(?i)no JPEG or PNG but a {kind}.* .{kind}\)"
        ) as error:
            decode.read_image(source)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "JPEG2000", "AVIF"])
def test_format_that_is_not_read_is_named(kind):
    name = {"JPEG2000": "JPEG 2000", "AVIF": "HEIF"}.get(kind, kind)
    data = encoded(photograph(), kind)
    with pytest.raises(ValueError, match=f"but a {name}; convert it to PNG"):
        decode.read_image(data)


def test_animated_webp_is_refused():
    more = [Image.fromarray(photograph())]
    data = encoded(
        255 - photograph(), "WEBP", save_all=True, append_images=more
    )
    with pytest.raises(ValueError, match="a.webp .2 frames; store one as PNG"):
        decode.read_image(data, "a.webp")


def test_compressed_bmp_is_refused():
    data = bytearray(encoded(Image.new("P", (4, 4)), "BMP"))
    data[30] = 1  # RLE8, decoded in Python
    with pytest.raises(ValueError, match="a.bmp .a compressed BMP"):
        decode.read_image(bytes(data), "a.bmp")


def riff(kind, head):
    body = b"WEBP" + kind + struct.pack("<I", len(head)) + head
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "data",
    [
        riff(b"VP8X", bytes(4) + b"\xff\x3f\0" * 2),
        riff(b"VP8L", b"\x2f" + b"\xff\xff\xff\x0f" + bytes(9)),
        riff(b"VP8 ", bytes(3) + b"\x9d\x01\x2a" + b"\xff\x3f" * 2),
    ],
    ids=["extended", "lossless", "lossy"],
)
def test_huge_webp_is_refused_before_its_canvas_is_made(data, monkeypatch):
    monkeypatch.setattr(
        Image, "open", lambda *_, **__: pytest.fail("it is opened")
    )
    with pytest.raises(
        ValueError,
        match=r"at most 1\d* pixels. File: a.webp .1638[34]x1638[34]",
    ):
        decode.read_image(data, "a.webp")


def test_huge_picture_is_refused_before_it_is_decoded(tmp_path):
    file = tmp_path / "bomb.png"
    file.write_bytes(raw_png([b""] * 10_001, 8, 0, 10_000))
    begin = time.process_time()
    with pytest.raises(ValueError, match=r"at most 100000000 pixels.*bomb.png"):
        decode.read_image(file)
    assert time.process_time() - begin < 1


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n"])
def test_no_picture_at_all(tmp_path, data):
    file = tmp_path / "no.png"
    file.write_bytes(data)
    for read in (decode.read_image, lambda f: decode.read_mask(f, SPEC)):
        with pytest.raises(ValueError, match="Unreadable image. File: .*no"):
            read(file)


def test_file_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.png \(No such file"):
        decode.read_image(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"such file.*; no file fits this"):
        decode.read_image(tmp_path / "*.jpg")
    with pytest.raises(ValueError, match=r"; give its files, FOLDER/\*.jpg"):
        decode.read_image(tmp_path)


@given(st.data())
@settings(max_examples=60, deadline=None, database=None)
def test_broken_files_raise_one_line_that_names_them(data):
    """Whatever is cut off or changed: a picture, or an error with its name."""
    kind = data.draw(st.sampled_from(["PNG", "JPEG"]))
    whole = encoded(photograph(20, 30), kind)
    cut = data.draw(st.integers(0, len(whole)))
    broken = bytearray(whole[:cut] if data.draw(st.booleans()) else whole)
    if broken:
        for _ in range(data.draw(st.integers(0, 4))):
            at = data.draw(st.integers(0, len(broken) - 1))
            broken[at] = data.draw(st.integers(0, 255))
    for read in (
        lambda x: decode.read_image(x, "the file"),
        lambda x: decode.read_mask(x, COLORED, (20, 30), "the file"),
    ):
        try:
            with warnings.catch_warnings():
                # Pillow's remarks on broken metadata.
                warnings.simplefilter("ignore", UserWarning)
                assert read(bytes(broken)).dtype == np.uint8
        except ValueError as error:
            assert "the file" in str(error)
            assert "\n" not in str(error)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_picture(tmp_path, kind):
    data = encoded(photograph(), kind)
    file = tmp_path / "half.png"
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="truncated image. File: .*half.png"):
        decode.read_image(file)


def test_threads_leave_the_warning_filters_alone(monkeypatch):
    really_open = Image.open

    def slowly(file, **options):
        time.sleep(0.002)  # another thread comes in between
        return really_open(file, **options)

    monkeypatch.setattr(Image, "open", slowly)
    before = list(warnings.filters)
    png = encoded(photograph())
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(decode.read_image, [png] * 20))
    assert list(warnings.filters) == before


# Masks.


def palette_mask(values):
    mask = Image.fromarray(values).convert("L")
    mask.putpalette(RNG.integers(0, 256, 768).astype("uint8").tobytes())
    return mask


def test_palette_is_read_as_indices():
    values = np.array([[0, 1, 2], [255, 2, 1]], "uint8")
    png = encoded(palette_mask(values))
    np.testing.assert_array_equal(decode.read_mask(png, SPEC), values)
    # The trap this avoids: TensorFlow returns the colours' grey values.
    grey = tf.io.decode_png(png, channels=1).numpy()[..., 0]
    assert not np.array_equal(grey, values)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("palette", [b"", bytes(range(3 * 16))])
def test_every_depth_of_index_mask(depth, palette):
    """Pillow stretches 2- and 4-bit grey to 0..255; ids stay ids."""
    values = [0, 1, 1, 0, 1, 0, 0, 1] if depth == 1 else [2, 1, 0, 1]
    bits = "".join(f"{v:0{depth}b}" for v in values)
    row = int(bits, 2).to_bytes(len(bits) // 8, "big")
    png = raw_png([row, row], depth, 3 if palette else 0, len(values), palette)
    mask = decode.read_mask(png, SPEC)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, [values, values])


@pytest.mark.parametrize("color_type", [0, 2, 4, 6])
def test_16_bit_mask_is_refused(tmp_path, color_type):
    """Of all four kinds; Pillow itself halves the depth of three silently."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
    file = tmp_path / "deep.png"
    row = b"\0\1" * channels * 5
    file.write_bytes(raw_png([row], 16, color_type, 5))
    with pytest.raises(ValueError, match=r"8-bit .*deep.png \(16 bits per"):
        decode.read_mask(file, COLORED)


def test_rgb_mask_needs_a_colormap(tmp_path):
    file = tmp_path / "rgb.png"
    file.write_bytes(encoded(np.zeros((4, 6, 3), "uint8")))
    with pytest.raises(ValueError, match=r"no `colormap`.* File: .*rgb.png"):
        decode.read_mask(file, SPEC)


def test_grey_with_alpha_is_refused(tmp_path):
    file = tmp_path / "la.png"
    file.write_bytes(encoded(Image.new("LA", (4, 6))))
    with pytest.raises(ValueError, match=r"la.png \(mode LA\)"):
        decode.read_mask(file, SPEC)


VOID = dataclasses.replace(COLORED, ignore_colors=[(0, 0, 0)])


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colors_become_classes_and_named_ones_are_ignored(mode):
    values = np.array([[0, 1, 255], [255, 0, 1]], "uint8")
    table = np.zeros((256, 3), "uint8")
    table[:2] = COLORED.colormap
    png = encoded(Image.fromarray(table[values]).convert(mode))
    np.testing.assert_array_equal(decode.read_mask(png, VOID), values)
    # Black may be background, which was ignored without a word.
    with pytest.raises(
        ValueError,
        match=r"Color \(0, 0, 0\) .*add the class .*background is one too, or "
        r'"ignore_colors": \[\[0, 0, 0\]\] .*\(2 pixels\)',
    ):
        decode.read_mask(png, COLORED)


def test_black_may_be_a_class():
    spec = DatasetSpec(["ground", "box"], colormap=[(9, 9, 9), (0, 0, 0)])
    rgb = np.array([[[0, 0, 0], [9, 9, 9]]], "uint8")
    np.testing.assert_array_equal(
        decode.read_mask(encoded(rgb), spec), [[1, 0]]
    )


def test_unknown_color_is_named_with_file_and_count(tmp_path):
    file = tmp_path / "rgb.png"
    rgb = np.zeros((4, 6, 3), "uint8")
    rgb[0, :3], rgb[1] = (1, 2, 3), (4, 5, 6)
    file.write_bytes(encoded(rgb))
    with pytest.raises(
        ValueError,
        match=r"Color \(4, 5, 6\) and 1 more .*rgb.png \(6 pixels\)",
    ):
        decode.read_mask(file, VOID)


SCENE = DatasetSpec(
    ["ground", "road", "car"], colormap=[(0, 0, 0), (0, 0, 255), (255, 0, 0)]
)
LABELS = np.array([[0, 1, 2, 2], [1, 1, 0, 2], [0, 0, 0, 1]], "uint8")


def colored(labels=LABELS, spec=SCENE):
    return Image.fromarray(np.array(spec.colormap, "uint8")[labels])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_palette_holds_colors_where_there_is_a_colormap(order):
    """In whatever order a tool put them."""
    mask = Image.fromarray(np.argsort(order).astype("uint8")[LABELS], "P")
    mask.putpalette(np.array(SCENE.colormap, "uint8")[list(order)].tobytes())
    assert mask.convert("RGB").tobytes() == colored().tobytes()
    png = encoded(mask)
    np.testing.assert_array_equal(decode.read_mask(png, SCENE), LABELS)
    quantized = encoded(colored().quantize(16))
    np.testing.assert_array_equal(decode.read_mask(quantized, SCENE), LABELS)


def voc_palette():
    colors = np.full((256, 3), 77, "uint8")
    colors[:3], colors[255] = SCENE.colormap, (224, 224, 192)
    return colors.tobytes()


def test_a_border_outside_the_colormap_is_read_by_its_index():
    """PASCAL VOC: indices are classes, 255 is a color that no class has."""
    labels = LABELS.copy()
    labels[0] = 255
    mask = Image.fromarray(labels, "P")
    mask.putpalette(voc_palette())
    np.testing.assert_array_equal(
        decode.read_mask(encoded(mask), SCENE), labels
    )


@pytest.mark.parametrize("index", [3, 255])
def test_a_palette_of_neither_is_refused(index):
    """An unknown color, and known ones that contradict their indices."""
    labels = LABELS.copy()
    labels[0, 0] = index
    colors = np.frombuffer(voc_palette(), "uint8").reshape(256, 3).copy()
    if index == 255:
        colors[:3] = colors[[1, 0, 2]]
    mask = Image.fromarray(labels, "P")
    mask.putpalette(colors.tobytes())
    with pytest.raises(
        ValueError,
        match=r"of the palette is not in the colormap.*remove `colormap` .*"
        rf"File: m \(index {index}, 1 pixels\)",
    ):
        decode.read_mask(encoded(mask), SCENE, name="m")


def with_alpha(alpha):
    rgba = np.dstack([colored(), np.full(LABELS.shape, 255, "uint8")])
    rgba[0, :, 3] = alpha
    return Image.fromarray(rgba)


def as_key_color():
    """Red is transparent."""
    return colored(), {"transparency": (255, 0, 0)}


def as_palette_alpha():
    mask = Image.fromarray(LABELS, "P")
    mask.putpalette(voc_palette())
    return mask, {"transparency": b"\xff\xff\0"}


@pytest.mark.parametrize(
    ("mask", "options", "hidden"),
    [
        (with_alpha(0), {}, np.arange(12).reshape(3, 4) < 4),
        (*as_key_color(), LABELS == 2),
        (*as_palette_alpha(), LABELS == 2),
    ],
    ids=["rgba", "key color", "palette"],
)
def test_what_is_transparent_is_black_whatever_lies_below(
    mask, options, hidden
):
    png = encoded(mask, **options)
    stored = decode.read_stored(png, SCENE)
    np.testing.assert_array_equal(stored.values, np.where(hidden, 0, LABELS))
    assert stored.num_transparent == hidden.sum() > 0
    objects = DatasetSpec(
        ["no", "road", "car"], colormap=[(5, 5, 5), *SCENE.colormap[1:]]
    )
    with pytest.raises(
        ValueError,
        match=r"\(0, 0, 0\).*transparent.* not in the colormap|"
        r"\(0, 0, 0\) of the palette is not in the colormap",
    ):
        decode.read_mask(png, objects)


def test_half_transparent_pixels_are_refused():
    with pytest.raises(
        ValueError, match=r"opaque or transparent.*File: m \(3 pixels in bet"
    ):
        png = encoded(with_alpha([0, 128, 254, 1]))
        decode.read_mask(png, SCENE, name="m")


def turned_png(values, orientation):
    return encoded(Image.fromarray(values), exif=exif_of(orientation))


@pytest.mark.parametrize("orientation", TURNS)
def test_masks_are_upright_by_their_own_exif_or_their_images(orientation):
    turn = TURNS[orientation]
    image = np.random.default_rng(2).integers(0, 99, (*LABELS.shape, 3))
    image = image.astype("uint8")
    stored, plain = turned_png(image, orientation), encoded(LABELS)
    by_image = dataclasses.replace(SPEC, mask_orientation="image")
    upright = encoded(np.ascontiguousarray(turn(LABELS)))
    for mask, spec in (
        (upright, SPEC),
        (turned_png(LABELS, orientation), SPEC),
        (plain, by_image),
    ):
        pixels, labels = decode.read_pair(stored, mask, spec)
        np.testing.assert_array_equal(pixels, turn(image))
        np.testing.assert_array_equal(labels, turn(LABELS))


def test_a_mask_that_is_turned_otherwise_is_told_how():
    image = encoded(np.zeros((3, 4, 3), "uint8"), exif=exif_of(6))
    with pytest.raises(
        ValueError,
        match='Mask is 3x4, its image 4x3.*put "mask_orientation": "image"',
    ):
        decode.read_pair(image, encoded(LABELS), SPEC)
    by_image = dataclasses.replace(SPEC, mask_orientation="image")
    upright = encoded(np.ascontiguousarray(LABELS.T))
    with pytest.raises(ValueError, match='remove "mask_orientation": "image"'):
        decode.read_pair(image, upright, by_image)


def test_jpeg_mask_is_refused(tmp_path):
    file = tmp_path / "mask.png"
    file.write_bytes(encoded(np.zeros((8, 8), "uint8"), "JPEG"))
    with pytest.raises(ValueError, match=r"must be PNG.*mask.png \(JPEG\)"):
        decode.read_mask(file, SPEC)


def test_truncated_mask(tmp_path):
    file = tmp_path / "mask.png"
    data = encoded(RNG.integers(0, 3, (60, 80)).astype("uint8"))
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="truncated mask. File: .*mask.png"):
        decode.read_mask(file, SPEC)


def test_value_out_of_range_is_named_with_file_and_count(tmp_path):
    file = tmp_path / "mask.png"
    values = np.zeros((4, 6), "uint8")
    values[0, :2], values[1], values[2, 0] = 3, 77, 254
    file.write_bytes(encoded(values))
    with pytest.raises(
        ValueError,
        match=(
            r"Label value 77 and 2 more values is neither in 0..2 nor "
            r"ignore_label=255. File: .*mask.png \(6 pixels\)"
        ),
    ):
        decode.read_mask(file, SPEC)


def test_mask_of_another_size(tmp_path):
    file = tmp_path / "mask.png"
    file.write_bytes(encoded(np.zeros((4, 6), "uint8")))
    assert decode.read_mask(file, SPEC, (4, 6)).shape == (4, 6)
    with pytest.raises(ValueError, match="Mask is 4x6, its image 5x6. File:"):
        decode.read_mask(file, SPEC, (5, 6))
    with pytest.raises(ValueError, match="image 6x4; turned by EXIF?"):
        decode.read_mask(file, SPEC, (6, 4))


def test_label_map_comes_before_the_range_check():
    spec = DatasetSpec(
        ["ground", "box"],
        ignore_label=9,
        label_map={77: 1, 5: "ignore", 1: 0, 255: 1},
    )
    values = np.array([[77, 5, 1, 0, 9, 255]], "uint8")
    labels = decode.read_mask(encoded(values), spec)
    # 0 and ignore_label are not in the map and stay.
    np.testing.assert_array_equal(labels, [[1, 9, 0, 0, 9, 1]])
    with pytest.raises(ValueError, match="Label value 6 is neither"):
        decode.read_mask(encoded(np.array([[6]], "uint8")), spec, name="m")
