r"""Segments an image with an exported `.tflite`, without Keras or TensorFlow.

    pip install ai-edge-litert numpy pillow
    python examples/python_runtime.py \
        saved_models/camvid_mobilenet_v2/model_int8.tflite image.jpg \
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


def segment(model, image, threads=None):
    """Returns the label map of an image, at its own size.

    Args:
        model: path of a `.tflite`.
        image: PIL image.
        threads: int, or `None` for all cores.

    Returns:
        uint8 array (height, width).
    """
    interpreter = Interpreter(
        model_path=str(model), num_threads=threads or os.cpu_count()
    )
    interpreter.allocate_tensors()
    (input_details,) = interpreter.get_input_details()
    # By name: an export may add `confidence` and `probabilities`.
    outputs = interpreter.get_signature_runner().get_output_details()
    any_size = -1 in input_details["shape_signature"]
    if any_size or "labels" not in outputs:
        raise SystemExit(
            f"{model} takes images of any size or returns logits; use another "
            "artefact of the export."
        )
    _, height, width, _ = input_details["shape"]
    small = image.convert("RGB").resize(
        (width, height), Image.Resampling.BILINEAR
    )
    interpreter.set_tensor(input_details["index"], np.asarray(small)[None])
    interpreter.invoke()
    labels = interpreter.get_tensor(outputs["labels"]["index"])[0]
    labels = labels.astype("uint8")
    # Nearest, since class ids cannot be interpolated.
    return np.asarray(
        Image.fromarray(labels).resize(image.size, Image.Resampling.NEAREST)
    )


def main(arguments=None):
    """Prints the share of each class in an image and saves a color map."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a .tflite of an export")
    parser.add_argument("image", type=Path)
    parser.add_argument("--output", type=Path, help="labels as a palette PNG")
    flags = parser.parse_args(arguments)
    image = ImageOps.exif_transpose(Image.open(flags.image))
    labels = segment(flags.model, image)
    manifest = json.loads((flags.model.parent / "manifest.json").read_text())
    for class_id, name in enumerate(manifest["class_names"]):
        share = np.mean(labels == class_id)
        if share:
            print(f"{name:20} {share:6.1%}")
    if flags.output:
        colored = Image.fromarray(labels)
        colored.putpalette(np.ravel(manifest["colormap"]).tolist())
        colored.save(flags.output)


if __name__ == "__main__":
    main()
