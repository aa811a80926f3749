"""TIFFs and deep PNGs: what is read, and what is refused before decoding."""

import dataclasses
import json
import sys
import warnings

import imagecodecs
import numpy as np
import pytest
import tifffile
from channels_folder import write_bands
from PIL import Image, ImageOps
from tiny_run import write_folder

from keras_aspp.cli.main import main
from keras_aspp.config.load import dump_config
from keras_aspp.config.schema import Config, DataConfig
from keras_aspp.data import decode, tiff
from keras_aspp.data.folder import FolderSource, check_folder
from keras_aspp.data.multilabel import read_stored_masks
from keras_aspp.data.sources import open_source
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.pixels import PixelFormat


def values(channels, dtype, size=(9, 7)):
    rng = np.random.default_rng(channels)
    found = rng.integers(0, 200, (*size, channels)).astype(dtype)
    return found / 7 if dtype == "float32" else found


def read(path, channels=3, dtype="uint8"):
    bounds = None if dtype == "uint8" else (0, 1)
    pixels = PixelFormat(channels, dtype, bounds)
    return decode.read_image(path, pixels=pixels)


@pytest.mark.parametrize("compression", [None, "deflate", "lzw", "zstd"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, "uint8"), (2, "float32"), (13, "uint16")]
)
def test_bands_are_read_as_stored(
    tmp_path, channels, dtype, planar, compression
):
    image = values(channels, dtype)
    planes = np.moveaxis(image, -1, 0) if planar == "separate" else image
    if channels == 1:
        planes, planar = image[..., 0], None
    tifffile.imwrite(
        tmp_path / "a.tif",
        planes,
        photometric="minisblack",
        planarconfig=planar,
        compression=compression,
    )
    found = read(tmp_path / "a.tif", channels, dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pngs_of_16_bits_keep_them(tmp_path, channels):
    image = values(channels, "uint16") * 301
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(image.squeeze()))
    np.testing.assert_array_equal(read(path, channels, "uint16"), image)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_pngs_of_8_bits_have_the_bands_that_are_wanted(tmp_path, mode):
    image = values(len(mode), "uint8")
    Image.fromarray(image.squeeze(), mode).save(tmp_path / "a.png")
    found = read(tmp_path / "a.png", len(mode))
    np.testing.assert_array_equal(found, image)


def test_pngs_of_one_bit_are_gray(tmp_path):
    image = values(1, "uint8")[..., 0] > 99
    Image.fromarray(image).save(tmp_path / "a.png")
    found = read(tmp_path / "a.png", 1)
    np.testing.assert_array_equal(found[..., 0], np.where(image, 255, 0))


def test_alpha_no_data_and_nan_are_ignored(tmp_path):
    spec = DatasetSpec(["a", "b"], channels=1, dtype="float32")
    mask = np.ones((9, 7), "uint8")
    Image.fromarray(mask).save(tmp_path / "m.png")
    image = values(1, "float32")[..., 0] + 1
    image[0, 0], image[1, 1] = np.nan, -9999
    tifffile.imwrite(
        tmp_path / "a.tif",
        image,
        extratags=[(42113, "s", 0, "-9999", True)],
    )
    pixels, labels = decode.read_pair(
        tmp_path / "a.tif", tmp_path / "m.png", spec
    )
    assert np.argwhere(labels == 255).tolist() == [[0, 0], [1, 1]]
    assert pixels[0, 0] == pixels[1, 1] == 0
    bands = values(4, "uint8")
    bands[..., 3] = 255
    bands[2, 3, 3] = 0
    tifffile.imwrite(
        tmp_path / "b.tif",
        bands,
        photometric="rgb",
        extrasamples=["unassalpha"],
    )
    pixels, labels = decode.read_pair(
        tmp_path / "b.tif", tmp_path / "m.png", DatasetSpec(["a", "b"])
    )
    assert np.argwhere(labels == 255).tolist() == [[2, 3]]
    np.testing.assert_array_equal(pixels, bands[..., :3])


def test_masks_may_be_tiffs(tmp_path):
    mask = (values(1, "uint8")[..., 0] % 3).astype("uint8")
    tifffile.imwrite(tmp_path / "m.tif", mask)
    spec = DatasetSpec(["a", "b", "c"])
    found = decode.read_mask(tmp_path / "m.tif", spec)
    np.testing.assert_array_equal(found, mask)
    tifffile.imwrite(tmp_path / "m.tif", mask.astype("uint16"))
    with pytest.raises(ValueError, match="one band of uint8.*1 of uint16"):
        decode.read_mask(tmp_path / "m.tif", spec)


def write_masks(path, masks, layout, nodata=None, num_overviews=0):
    """Writes masks `[H, W, K]` as pages or as bands, with GDAL's tag."""
    tags = [] if nodata is None else [(42113, "s", 0, nodata, True)]
    options = {"photometric": "minisblack", "extratags": tags}
    if layout != "pages":
        planes = np.moveaxis(masks, -1, 0) if layout == "separate" else masks
        tifffile.imwrite(path, planes, planarconfig=layout, **options)
        return
    with tifffile.TiffWriter(path) as file:
        for mask in np.moveaxis(masks, -1, 0):
            file.write(mask, **options)
            for i in range(1, num_overviews + 1):
                small = mask[:: 2**i, :: 2**i]
                file.write(small, subfiletype=1, photometric="minisblack")


@pytest.mark.parametrize("layout", ["pages", "contig", "separate"])
def test_each_mask_of_a_file_has_its_own_no_data(tmp_path, layout):
    masks = values(3, "uint8", (32, 24)) % 2
    masks[3, 4, 0] = masks[5, 6, 2] = 7
    path = tmp_path / "m.tif"
    write_masks(path, masks, layout, nodata="7")
    found = tiff.read_pages(path, "m", 10**6, 3)
    np.testing.assert_array_equal(found.valid, masks != 7)
    np.testing.assert_array_equal(found.values, masks * found.valid)
    # As the mask of one class in a file of its own.
    spec = DatasetSpec(["a", "b", "c"], task="multilabel")
    labels = read_stored_masks(str(path), spec).labels(spec, (32, 24))
    alone = []
    for i in range(3):
        alone.append(str(tmp_path / f"{i}.tif"))
        write_masks(alone[i], masks[..., i : i + 1], "pages", nodata="7")
    expected = read_stored_masks(alone, spec).labels(spec, (32, 24))
    np.testing.assert_array_equal(labels, expected)
    assert np.argwhere(labels == 255).tolist() == [[3, 4, 0], [5, 6, 2]]


@pytest.mark.parametrize("num_overviews", [0, 1, 3])
def test_overviews_are_no_masks(tmp_path, num_overviews):
    masks = values(3, "uint8", (32, 24)) % 2
    path = tmp_path / "m.tif"
    write_masks(path, masks, "pages", num_overviews=num_overviews)
    found = tiff.read_pages(path, "m", 10**6, 3)
    np.testing.assert_array_equal(found.values, masks)
    assert found.valid is None
    with pytest.raises(ValueError, match="must hold 2 pages.*at least 3"):
        tiff.read_pages(path, "m", 10**6, 2)


GEOREFERENCE = (33550, "d", 3, (1, 1, 0), True)


def orientation_tag(value):
    return (274, "H", 1, value, True)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_and_masks_are_turned_upright_by_their_tag(
    tmp_path, orientation
):
    spec = DatasetSpec(["a", "b", "c"])
    image, mask = values(3, "uint8"), values(1, "uint8")[..., 0] % 3
    image[2, 1] = 0
    # What Pillow turns by EXIF is the reference.
    exif = Image.Exif()
    exif[0x0112] = orientation
    png, image_path = tmp_path / "a.png", tmp_path / "a.tif"
    Image.fromarray(image).save(png, exif=exif)
    upright = np.array(ImageOps.exif_transpose(Image.open(png)))
    tags = [orientation_tag(orientation), (42113, "s", 0, "0", True)]
    tifffile.imwrite(image_path, image, extratags=tags)
    tifffile.imwrite(tmp_path / "m.tif", mask, extratags=tags[:1])
    pixels, labels = decode.read_pair(image_path, tmp_path / "m.tif", spec)
    np.testing.assert_array_equal(pixels, upright)
    turned = decode.turn_upright(mask, orientation)
    missing = (upright == 0).all(-1)
    assert missing.sum() == 1
    np.testing.assert_array_equal(labels, np.where(missing, 255, turned))
    stored = decode.read_image(image_path, exif=False)
    np.testing.assert_array_equal(stored, image)
    assert decode.read_bands(image_path).orientation == orientation
    found = decode.read_stored(tmp_path / "m.tif", spec)
    assert found.orientation == orientation


def test_maps_are_not_turned(tmp_path):
    image = values(3, "uint8")
    tags = [orientation_tag(6), GEOREFERENCE]
    tifffile.imwrite(tmp_path / "a.tif", image, extratags=tags)
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), image)


def test_masks_of_several_pages_are_turned_upright_by_their_tag(tmp_path):
    masks = values(3, "uint8", (32, 24)) % 2
    spec = DatasetSpec(["a", "b", "c"], task="multilabel")
    path = tmp_path / "m.tif"
    with tifffile.TiffWriter(path) as file:
        for mask in np.moveaxis(masks, -1, 0):
            file.write(mask, extratags=[orientation_tag(6)])
    labels = read_stored_masks(str(path), spec).labels(spec, (24, 32))
    np.testing.assert_array_equal(labels, decode.turn_upright(masks, 6))


def test_bands_that_do_not_fit_are_refused_with_what_to_write(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        values(4, "uint16"),
        planarconfig="contig",
        photometric="minisblack",
    )
    message = r'3 bands of uint8.*a\.tif \(4 bands of uint16\).*"channels": 4, '
    with pytest.raises(ValueError, match=message + '"dtype": "uint16"'):
        read(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"4 bands of uint8, .*of uint16\)"):
        read(tmp_path / "a.tif", 4)


def test_what_is_too_large_is_refused_by_its_header(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    pixels = np.zeros((300, 200), "uint16")
    tifffile.imwrite(path, pixels, compression="zlib", rowsperstrip=100)
    for name in ("asarray", "decode"):
        monkeypatch.setattr(tifffile.TiffPage, name, None)
    monkeypatch.setattr(decode, "MAX_PIXELS", 59_999)
    with pytest.raises(ValueError, match="at most 59999 pixels.*300x200"):
        read(path, 1, "uint16")
    monkeypatch.undo()
    # Two bytes a number.
    monkeypatch.setattr(tiff, "MAX_BYTES", 119_999)
    with pytest.raises(ValueError, match="at most 119999 bytes.*120000 bytes"):
        read(path, 1, "uint16")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values(1, "uint8"), compression="lzma")
    with pytest.raises(ValueError, match="compressed by none, LZW, Deflate"):
        read(path, 1)
    tifffile.imwrite(
        path, np.zeros((5, 9, 7), "uint8"), photometric="minisblack"
    )
    with pytest.raises(ValueError, match="one image.*several pages"):
        read(path, 1)
    tifffile.imwrite(path, values(1, "uint8", (90, 70)), compression="zlib")
    content = path.read_bytes()
    for broken in (b"II*\0", b"no TIFF", content[: len(content) // 2]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"File: .*a\.tif"):
            read(path, 1)


def write_jpeg(path, height=96, **options):
    """A TIFF of JPEG as GDAL writes it, its tables apart; what it shows."""
    import rasterio

    y, x = np.mgrid[:height, :144]
    image = np.stack([2 * y, x, x + y // 2], -1).astype("uint8")
    profile = {"driver": "GTiff", "height": height, "width": 144, "count": 3}
    with warnings.catch_warnings():
        # It has no position on the earth.
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", dtype="uint8", compress="jpeg", **profile, **options
        ) as to:
            to.write(np.moveaxis(image, -1, 0))
    return image


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "ycbcr", "interleave": "pixel"},
        {"photometric": "ycbcr", "interleave": "pixel", "tiled": True},
        {"blockysize": 40, "interleave": "pixel"},
        # The last strip has one row.
        {"blockysize": 40, "interleave": "pixel", "height": 81},
    ],
    ids=str,
)
def test_images_may_be_jpeg_in_tiff(tmp_path, options):
    path = tmp_path / "a.tif"
    if options.get("tiled"):
        options = {**options, "blockxsize": 64, "blockysize": 64}
    shown = write_jpeg(path, **options, jpeg_quality=95).astype(int)
    found = read(path)
    assert found.shape == shown.shape
    assert np.abs(found - shown).mean() < 2
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].compression == 7
    with pytest.raises(ValueError, match=r"LZW, Deflate, PackBits, Zst.*\(com"):
        decode.read_mask(path, DatasetSpec(["a", "b"]))


@pytest.mark.parametrize(
    ("place", "content"),
    [
        (1, b"\xc2"),  # progressive: any number of scans
        (4, b"\x0c"),  # 12 bits
        (5, b"\xff\xff"),  # height
        (7, b"\xff\xff"),  # width
        (2, b"\0\1"),  # a segment shorter than its length
    ],
)
def test_a_jpeg_larger_than_its_tile_is_refused_undecoded(
    tmp_path, monkeypatch, place, content
):
    path = tmp_path / "a.tif"
    write_jpeg(path, photometric="ycbcr", interleave="pixel")
    data = bytearray(path.read_bytes())
    place += data.rindex(b"\xff\xc0\0\x11\x08")
    data[place : place + len(content)] = content
    path.write_bytes(data)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", None)
    with pytest.raises(ValueError, match="must be baseline.*File: .*a.tif"):
        read(path)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", values(1, "uint8"))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ValueError, match=r"pip install 'keras-aspp\[tiff\]'"):
        read(tmp_path / "a.tif", 1)


def test_check_computes_what_to_write_and_writes_it(tmp_path, capsys):
    root = write_bands(tmp_path, spec={})
    assert main(["data", "check", str(root)]) == 1
    said = capsys.readouterr().out
    assert '"channels": 4, "dtype": "uint16", "mean": [' in said
    assert main(["data", "check", str(root), "--write"]) == 0
    said = capsys.readouterr().out
    assert "No problems." in said
    assert "dataset.json" in said
    assert main(["data", "check", str(root)]) == 0
    assert "No problems." in capsys.readouterr().out
    spec = FolderSource(root).spec
    assert (spec.channels, spec.dtype) == (4, "uint16")
    stored = np.concatenate(
        [
            tifffile.imread(path).reshape(-1, 4)
            for path in sorted(root.glob("images/train/*"))
        ]
    )
    np.testing.assert_allclose(spec.mean, stored.mean(0), rtol=1e-5)
    np.testing.assert_allclose(spec.std, stored.std(0), rtol=1e-5)


@pytest.mark.parametrize(
    "said",
    [
        {
            "class_names": ["road", "sky"],
            "label_map": {0: 1, 1: "ignore"},
            "ignore_label": 7,
            "license": "cc-by-4.0",
        },
        {"class_names": ["road"], "task": "binary"},
        {"class_names": ["road"], "task": "binary", "label_map": {}},
        {"class_names": ["road"], "task": "binary", "ignore_label": 254},
    ],
)
def test_what_a_configuration_says_is_written_with_the_bands(
    said, tmp_path, capsys
):
    root = write_bands(tmp_path / "data", spec={})
    (root / "dataset.json").unlink()
    config = DataConfig(root=str(root), **said)
    dump_config(Config(data=config), tmp_path / "bands.yaml")
    before = open_source(config).spec
    assert main(["data", "check", str(tmp_path / "bands.yaml"), "--write"]) == 0
    bands = json.loads((root / "dataset.json").read_text())
    bands = {k: bands[k] for k in ("channels", "dtype", "mean", "std")}
    expected = dataclasses.replace(before, **bands)
    # By the file alone, and beside the configuration.
    assert FolderSource(root).spec == open_source(config).spec == expected
    assert main(["data", "check", str(tmp_path / "bands.yaml"), "--write"]) == 0
    assert FolderSource(root).spec == expected


def of_rgb(root, stray):
    """RGB images, one of which is replaced."""
    write_folder(root)
    described = (root / "dataset.json").read_text()
    path = root / "images/train/train_0.png"
    with Image.open(path) as image:
        size = image.size[::-1]
    path.unlink()
    stray(path.with_suffix(""), size)
    return described


def dark_tiff(path, size):
    tifffile.imwrite(f"{path}.tif", np.ones((*size, 3), "uint8"))


def deep_png(path, size):
    Image.fromarray(np.ones(size, "uint16")).save(f"{path}.png")


def test_one_tiff_among_rgb_images_is_no_statistics(tmp_path, capsys):
    described = of_rgb(tmp_path, dark_tiff)
    report = check_folder(FolderSource(tmp_path))
    assert report.bands == {}
    assert report.problems == report.notes == []
    assert main(["data", "check", str(tmp_path), "--write"]) == 1
    assert "of one format other than RGB of 8" in capsys.readouterr().err
    assert (tmp_path / "dataset.json").read_text() == described


def test_one_deep_png_among_rgb_images_stays_one_problem(tmp_path, capsys):
    described = of_rgb(tmp_path, deep_png)
    assert main(["data", "check", str(tmp_path), "--write"]) == 1
    said = capsys.readouterr()
    assert "1 problem." in said.out
    assert "1 of 1 x uint16, first" in said.out
    assert "--write is for training images of one format" in said.err
    assert (tmp_path / "dataset.json").read_text() == described


def test_a_band_that_is_declared_as_alpha_is_noted(tmp_path, capsys):
    root = write_bands(tmp_path, dtype="uint8", spec={})
    for path in root.glob("images/*/*.tif"):
        options = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
        tifffile.imwrite(path, tifffile.imread(path), **options)
    (note,) = check_folder(FolderSource(root)).notes
    assert note.startswith("4 images declare their last band as alpha")
    assert 'put "channels": 4 into dataset.json, first ' in note
    described = {"class_names": ["ground", "box"], "channels": 4}
    (root / "dataset.json").write_text(json.dumps(described))
    report = check_folder(FolderSource(root))
    assert report.notes == report.problems == []
    assert report.class_pixels["train"][2] == 0
    assert report.bands["channels"] == 4


def test_check_counts_pixels_without_data_as_ignored(tmp_path):
    root = write_bands(tmp_path, num_train=1)
    (image,) = root.glob("images/train/*.tif")
    bands = tifffile.imread(image)
    bands[np.arange(64) % 3 == 0] = 0
    mask = tmp_path / "masks/train/train_0.png"
    labels = np.zeros(bands.shape[:2], "uint8")
    labels[0] = 1  # no data, so that the class is absent
    Image.fromarray(labels).save(mask)
    tifffile.imwrite(
        image,
        bands,
        photometric="minisblack",
        planarconfig="contig",
        extratags=[(42113, "s", 0, "0", True)],
    )
    source = FolderSource(root)
    report = check_folder(source, ["train"])
    _, trained = source.decode(str(image), str(mask))
    expected = source.spec.count_pixels(trained)
    assert expected.tolist() == [42 * 96, 0, 22 * 96]
    np.testing.assert_array_equal(report.class_pixels["train"], expected)
    assert "classes that never occur: box" in report.notes


def test_check_that_writes_still_fails_for_what_that_does_not_mend(
    tmp_path, capsys
):
    root = write_bands(tmp_path, spec={})
    (root / "masks/val/val_0.png").unlink()
    assert main(["data", "check", str(root), "--write"]) == 1
    said = capsys.readouterr().out
    assert "val_0" in said
    assert "1 problem." in said
