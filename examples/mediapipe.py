r"""Segments an image with MediaPipe's ImageSegmenter.

    pip install mediapipe
    python examples/mediapipe.py \
        saved_models/mine/model_logits.tflite image.jpg --output labels.png

The same file goes into an Android, iOS or web app with MediaPipe Tasks: it
holds scores, which MediaPipe turns into classes, the names of the classes, and
what MediaPipe wants to know of its input. manifest.json beside it states the
task. For a multilabel model, a class is where its confidence is above 0.5, and
`--output` is the name of one PNG for each class.
"""

import argparse
import json
import sys
import zipfile
from pathlib import Path

if sys.path[0] == str(Path(__file__).resolve().parent):
    # Or this file would be taken for the package.
    sys.path.pop(0)

import mediapipe as mp
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision
from PIL import Image, ImageOps


def segment(model, image, is_multilabel=False):
    """Returns the label map of an image, at its own size, and class names.

    Args:
        model: path of a `model_logits.tflite`.
        image: uint8 array (height, width, 3), RGB.
        is_multilabel: bool. True if classes may overlap.

    Returns:
        `(uint8 array (height, width), list of str)`; for a multilabel model,
        bool (height, width, classes).
    """
    options = vision.ImageSegmenterOptions(
        base_options=BaseOptions(model_asset_path=str(model)),
        output_category_mask=not is_multilabel,
        output_confidence_masks=is_multilabel,
    )
    with vision.ImageSegmenter.create_from_options(options) as segmenter:
        data = mp.Image(image_format=mp.ImageFormat.SRGB, data=image)
        found, names = segmenter.segment(data), list(segmenter.labels)
        if is_multilabel:
            masks = [m.numpy_view() > 0.5 for m in found.confidence_masks]
            return np.stack([np.squeeze(m) for m in masks], -1), names
        return np.squeeze(found.category_mask.numpy_view()).copy(), names


def main(arguments=None):
    """Prints the share of each class in an image and saves the label map."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model_logits.tflite")
    parser.add_argument("image", type=Path)
    parser.add_argument("--output", type=Path, help="labels as a gray PNG")
    flags = parser.parse_args(arguments)
    image = ImageOps.exif_transpose(Image.open(flags.image))
    image = np.array(image.convert("RGB"))
    manifest = flags.model.parent / "manifest.json"
    if not manifest.is_file():
        raise SystemExit(
            f"{flags.model} needs the manifest.json of its export beside it, "
            "which states whether classes may overlap"
        )
    # The metadata ends in an archive with the names.
    if not zipfile.is_zipfile(flags.model):
        raise SystemExit(
            f"{flags.model} holds no names of classes; use the "
            "model_logits.tflite of an export"
        )
    manifest = json.loads(manifest.read_text())
    for entry in manifest.get("artefacts", []):
        taken = entry["input"]["dtype"], entry["input"]["shape"][-1]
        # A file for GPUs is always of RGB of 8 bits, scaled to [-1, 1].
        if (
            entry["path"] == flags.model.name
            and entry["format"] != "tflite_gpu"
            and taken != ("uint8", 3)
        ):
            raise SystemExit(
                f"{flags.model} must take RGB images of 8 bits. Received: "
                f"{taken[1]} bands, {taken[0]}; use keras_aspp.Predictor"
            )
    is_multilabel = manifest.get("task") == "multilabel"
    labels, names = segment(flags.model, image, is_multilabel)
    for class_id, name in enumerate(names):
        shown = labels[..., class_id] if is_multilabel else labels == class_id
        if shown.any():
            print(f"{name:20} {shown.mean():6.1%}")
        if flags.output and is_multilabel:
            place = flags.output.with_stem(f"{flags.output.stem}_{class_id}")
            Image.fromarray(shown).save(place)
    if flags.output and not is_multilabel:
        Image.fromarray(labels).save(flags.output)


if __name__ == "__main__":
    main()
