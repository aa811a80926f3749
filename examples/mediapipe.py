r"""Segments an image with MediaPipe's ImageSegmenter.

    pip install mediapipe
    python examples/mediapipe.py \
        saved_models/mine/model_logits.tflite image.jpg --output labels.png

The same file goes into an Android, iOS or web app with MediaPipe Tasks: it
holds scores, which MediaPipe turns into classes, the names of the classes, and
what MediaPipe wants to know of its input.
"""

import argparse
import sys
from pathlib import Path

if sys.path[0] == str(Path(__file__).resolve().parent):
    # Or this file would be taken for the package.
    sys.path.pop(0)

import mediapipe as mp
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision
from PIL import Image, ImageOps


def segment(model, image):
    """Returns the label map of an image, at its own size, and class names.

    Args:
        model: path of a `model_logits.tflite`.
        image: uint8 array (height, width, 3), RGB.

    Returns:
        `(uint8 array (height, width), list of str)`.
    """
    options = vision.ImageSegmenterOptions(
        base_options=BaseOptions(model_asset_path=str(model)),
        output_category_mask=True,
        output_confidence_masks=False,
    )
    with vision.ImageSegmenter.create_from_options(options) as segmenter:
        data = mp.Image(image_format=mp.ImageFormat.SRGB, data=image)
        mask = segmenter.segment(data).category_mask.numpy_view()
        return np.squeeze(mask).copy(), list(segmenter.labels)


def main(arguments=None):
    """Prints the share of each class in an image and saves the label map."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model_logits.tflite")
    parser.add_argument("image", type=Path)
    parser.add_argument("--output", type=Path, help="labels as a grey PNG")
    flags = parser.parse_args(arguments)
    image = ImageOps.exif_transpose(Image.open(flags.image))
    image = np.array(image.convert("RGB"))
    labels, names = segment(flags.model, image)
    for class_id in np.unique(labels):
        share = np.mean(labels == class_id)
        print(f"{names[class_id]:20} {share:6.1%}")
    if flags.output:
        Image.fromarray(labels).save(flags.output)


if __name__ == "__main__":
    main()
