r"""Segments an image with an exported `.tflite`, without Keras or TensorFlow.

    pip install ai-edge-litert numpy pillow
    python examples/python_runtime.py \
        saved_models/camvid_mobilenet_v2/model_int8.tflite image.jpg \
        --output labels.png

The names and colors of the classes come from the manifest.json beside the
file, if there is one. What an app has to know: the file takes RGB pixels
0..255 of one size, as they are, and answers with the class of every pixel.
`--accelerator GPU` is for model_gpu.tflite, which takes pixels in [-1, 1] and
answers with the scores of cells. LiteRT logs what it finds on stderr;
`2>/dev/null` hides it.
"""

import argparse
import json
import math
import os
from pathlib import Path

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.options import CpuOptions, HardwareAccelerator, Options
from PIL import Image, ImageOps

OVERLAP = (
    "{} answers with masks that may overlap, which do not fit into one label "
    "map; use keras_aspp.Predictor"
)


def segment(model, image, accelerator="CPU", threads=None):
    """Returns the label map of an image, at its own size.

    Args:
        model: path of a `.tflite`.
        image: PIL image.
        accelerator: `"CPU"`, `"GPU"` or `"NPU"`.
        threads: int, or `None` for all cores.

    Returns:
        uint8 array (height, width).
    """
    options = Options(
        hardware_accelerators=HardwareAccelerator[accelerator],
        cpu_options=CpuOptions(num_threads=threads or os.cpu_count()),
    )
    try:
        compiled = CompiledModel.from_file(str(model), options=options)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].removeprefix("└ ")
        raise SystemExit(
            f"{model} does not run on the {accelerator}: {reason} (it must be "
            "for one image size, and there must be such a device)"
        ) from None
    (signature,) = compiled.get_signature_list()
    (taken,) = compiled.get_input_tensor_details(signature).values()
    _, height, width, channels = taken["shape"]
    outputs = {}
    if height > 1:  # an open size is 1
        outputs = compiled.get_output_tensor_details(signature)
    if {"mask_logits", "coarse_mask_logits"} & set(outputs) or len(
        outputs.get("labels", {"shape": ()})["shape"]
    ) == 4:
        raise SystemExit(OVERLAP.format(model))
    # By name: an export may add `confidence` and `probabilities`.
    name = next((n for n in ("labels", "coarse_logits") if n in outputs), None)
    if name is None:
        raise SystemExit(
            f"{model} takes images of any size or returns logits; use another "
            "artefact of the export"
        )
    pixel_type = np.dtype(taken["dtype"]).name
    if name == "labels" and (pixel_type, channels) != ("uint8", 3):
        raise SystemExit(
            f"{model} must take RGB images of 8 bits. Received: {channels} "
            f"bands, {pixel_type}; use keras_aspp.Predictor"
        )
    pixels = np.asarray(
        image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    )
    if name == "coarse_logits":
        pixels = pixels / 127.5 - 1
    (source,) = compiled.create_input_buffers(0)
    results = compiled.create_output_buffers(0)
    source.write(np.ascontiguousarray(pixels[None], taken["dtype"]))
    compiled.run_by_index(0, [source], results)
    result = results[list(outputs).index(name)]
    shape, dtype = outputs[name]["shape"], np.dtype(outputs[name]["dtype"]).type
    found = result.read(math.prod(shape), dtype).reshape(shape)[0]
    if name == "coarse_logits":
        return np.argmax(resized(found, image.size), axis=-1).astype("uint8")
    # Nearest, since class ids cannot be interpolated.
    labels = Image.fromarray(found.astype("uint8"))
    return np.asarray(labels.resize(image.size, Image.Resampling.NEAREST))


def resized(scores, size):
    """Returns scores (height, width, classes), bilinear."""
    maps = [Image.fromarray(scores[..., i]) for i in range(scores.shape[-1])]
    resample = Image.Resampling.BILINEAR
    return np.stack([np.asarray(m.resize(size, resample)) for m in maps], -1)


def main(arguments=None):
    """Prints the share of each class in an image and saves a color map."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a .tflite of an export")
    parser.add_argument("image", type=Path)
    parser.add_argument(
        "--accelerator", default="CPU", choices=["CPU", "GPU", "NPU"]
    )
    parser.add_argument("--output", type=Path, help="labels as a palette PNG")
    flags = parser.parse_args(arguments)
    file = flags.model.parent / "manifest.json"
    manifest = json.loads(file.read_text()) if file.exists() else {}
    if manifest.get("task") == "multilabel":
        raise SystemExit(OVERLAP.format(flags.model))
    image = ImageOps.exif_transpose(Image.open(flags.image))
    labels = segment(flags.model, image, flags.accelerator)
    names = dict(enumerate(manifest.get("class_names", [])))
    for class_id in np.unique(labels).tolist():
        share = np.mean(labels == class_id)
        print(f"{names.get(class_id, f'class {class_id}'):20} {share:6.1%}")
    if flags.output:
        colored = Image.fromarray(labels)
        if "colormap" in manifest:
            colored.putpalette(np.ravel(manifest["colormap"]).tolist())
        colored.save(flags.output)


if __name__ == "__main__":
    main()
