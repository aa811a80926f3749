"""Copies without EXIF orientations hold the images that viewers show."""

import shutil

import numpy as np
import pytest
from PIL import Image

from keras_aspp.cli.main import main
from keras_aspp.data.decode import read_pair
from keras_aspp.data.folder import FolderSource


def write(root, orientation, turn_mask):
    """A turned image, and one without an orientation."""
    pixels = np.random.default_rng(1).integers(0, 255, (12, 20, 3), "uint8")
    labels = np.arange(240, dtype="uint8").reshape(12, 20) % 3
    for part in ("images", "masks"):
        (root / part / "train").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels)
    image.save(root / "images/train/turned.png", exif=exif)
    image.save(root / "images/train/plain.png")
    transposed = Image.Transpose.ROTATE_270  # what orientation 6 asks for
    mask = Image.fromarray(labels)
    upright = mask.transpose(transposed)
    (mask if turn_mask else upright).save(root / "masks/train/turned.png")
    mask.save(root / "masks/train/plain.png")
    return np.asarray(image.transpose(transposed)), np.asarray(upright)


@pytest.mark.parametrize("masks", ["own", "image"])
def test_images_and_masks_are_stored_upright(masks, tmp_path, capsys):
    root, output = tmp_path / "a", tmp_path / "b"
    pixels, labels = write(root, 6, turn_mask=masks == "image")
    arguments = [str(root), str(output), "--masks", masks]
    assert main(["data", "fix", *arguments]) == 0
    assert "images turned  1" in capsys.readouterr().out
    with Image.open(output / "images/train/turned.png") as image:
        assert not image.getexif()
    found = read_pair(
        output / "images/train/turned.png",
        output / "masks/train/turned.png",
        FolderSource(output).spec,
    )
    np.testing.assert_array_equal(found[0], pixels)
    np.testing.assert_array_equal(found[1], labels)
    plain = "images/train/plain.png"
    assert (output / plain).read_bytes() == (root / plain).read_bytes()


def test_an_error_leaves_no_copy(tmp_path, capsys):
    root, output = tmp_path / "a", tmp_path / "b"
    write(root, 6, turn_mask=True)
    assert main(["data", "fix", str(root), str(output)]) == 1
    assert "its image 20x12" in capsys.readouterr().err
    assert not output.exists()
    (root / "masks/train/plain.png").unlink()
    shutil.copy(root / "images/train/plain.png", root / "images/train/b.png")
    assert main(["data", "fix", str(root), str(output)]) == 1
    error = capsys.readouterr().err
    assert "Image without a mask. File: " in error
    assert "move this one out; 1 more like it. `keras-aspp data chec" in error
    assert not output.exists()
    output.mkdir()
    assert main(["data", "fix", str(root), str(output)]) == 1
    assert "The folder exists" in capsys.readouterr().err
