r"""Segments a picture with an exported `.tflite`, without Keras or TensorFlow.

    pip install ai-edge-litert numpy pillow
    python examples/python_runtime.py \
        saved_models/camvid_mobilenet_v2/model_int8.tflite picture.jpg \
        --output labels.png

What an app has to know: the file takes RGB pixels 0..255 of one size, as they
are, and answers with the class of every pixel.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps


def segment(model, picture, threads=None):
    """Labels of a picture, at its own size.

    Args:
        model: path of a `.tflite`.
        picture: PIL image.
        threads: int, or `None` for all cores.

    Returns:
        uint8 array (height, width).
    """
    interpreter = Interpreter(
        model_path=str(model), num_threads=threads or os.cpu_count()
    )
    interpreter.allocate_tensors()
    (door,) = interpreter.get_input_details()
    (end,) = interpreter.get_output_details()
    if -1 in door["shape_signature"] or len(end["shape"]) != 3:
        raise SystemExit(
            f"{model} has no size of its own, or answers with scores; take "
            "another artefact of the export."
        )
    _, height, width, _ = door["shape"]
    small = picture.convert("RGB").resize(
        (width, height), Image.Resampling.BILINEAR
    )
    interpreter.set_tensor(door["index"], np.asarray(small)[None])
    interpreter.invoke()
    labels = interpreter.get_tensor(end["index"])[0].astype("uint8")
    # Labels are names, not numbers: nothing lies between two of them.
    return np.asarray(
        Image.fromarray(labels).resize(picture.size, Image.Resampling.NEAREST)
    )


def main(arguments=None):
    """Prints what is in a picture, and draws it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a .tflite of an export")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--output", type=Path, help="labels as a palette PNG")
    flags = parser.parse_args(arguments)
    picture = ImageOps.exif_transpose(Image.open(flags.picture))
    labels = segment(flags.model, picture)
    manifest = json.loads((flags.model.parent / "manifest.json").read_text())
    for kind, name in enumerate(manifest["class_names"]):
        share = np.mean(labels == kind)
        if share:
            print(f"{name:20} {share:6.1%}")
    if flags.output:
        coloured = Image.fromarray(labels)
        coloured.putpalette(np.ravel(manifest["colormap"]).tolist())
        coloured.save(flags.output)


if __name__ == "__main__":
    main()
