import concurrent.futures
import io
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

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


def test_exif_orientation_only_where_asked():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image = photograph()
    data = encoded(image, "PNG", exif=exif)
    np.testing.assert_array_equal(decode.read_image(data), image)
    np.testing.assert_array_equal(
        decode.read_image(data, exif=True), np.rot90(image, -1)
    )


def test_16_bit_grey_picture_is_refused(tmp_path):
    # Pillow would clip it at 255: a white picture.
    file = tmp_path / "deep.png"
    file.write_bytes(encoded(np.full((4, 6), 3000, "uint16")))
    with pytest.raises(ValueError, match=r"8 bits .*deep.png \(mode I;16\)"):
        decode.read_image(file)


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
        with pytest.raises(ValueError, match="Unreadable picture. File: .*no"):
            read(file)


def test_file_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.png \(No such file"):
        decode.read_image(tmp_path / "nowhere.png")


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
    with pytest.raises(ValueError, match="truncated picture. File: .*half.png"):
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


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colors_become_classes_and_black_is_ignored(mode):
    values = np.array([[0, 1, 255], [255, 0, 1]], "uint8")
    table = np.zeros((256, 3), "uint8")
    table[:2] = COLORED.colormap
    png = encoded(Image.fromarray(table[values]).convert(mode))
    np.testing.assert_array_equal(decode.read_mask(png, COLORED), values)


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
        match=r"Colour \(4, 5, 6\) and 1 more .*rgb.png \(6 pixels\)",
    ):
        decode.read_mask(file, COLORED)


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
    with pytest.raises(ValueError, match="Mask is 4x6, its picture 5x6. File:"):
        decode.read_mask(file, SPEC, (5, 6))
    with pytest.raises(ValueError, match="picture 6x4; turned by EXIF?"):
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
