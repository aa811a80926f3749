r"""Converts a model to CoreML, for apps on Apple's devices.

    pip install '.[coreml]'
    python examples/coreml.py saved_models/camvid_mobilenet_v2 \
        --size 360 480 --output model.mlpackage

The package takes `image`, an RGB image of one size as apps have it (a
`CVPixelBuffer`), and answers with `labels`, int32 `[1, H, W]`. Preprocessing is
inside. The arithmetic is float16, CoreML's default, or `--precision float32`.
coremltools converts on Linux too, but runs packages on macOS alone: compare
labels there before you ship.
"""

import argparse
import json
from pathlib import Path

import coremltools
import tensorflow as tf

from keras_aspp.inference import serving
from keras_aspp.inference.artefacts import find_spec, resolve
from keras_aspp.layers.lowering import export_form
from keras_aspp.models import fold_batch_norm
from keras_aspp.models.segmenter import load_saved

PRECISIONS = {
    "float16": coremltools.precision.FLOAT16,
    "float32": coremltools.precision.FLOAT32,
}


def convert(path, size, precision="float16"):
    """Converts a segmenter at one image size.

    Args:
        path: `.keras` file, workdir or exported folder.
        size: `(height, width)`, in pixels.
        precision: `"float16"` or `"float32"` of the arithmetic.

    Returns:
        `coremltools.models.MLModel`.
    """
    path = resolve(path, keras_only=True)
    model = fold_batch_norm(load_saved(path))
    if model.preprocess.input_dtype != "uint8" or model.input.shape[-1] != 3:
        raise SystemExit(
            f"CoreML's images are RGB of 8 bits. Received: {path} of "
            f"{model.input.shape[-1]} bands, {model.preprocess.input_dtype}"
        )
    # CoreML hands over pixels 0..255 as floats.
    image = tf.TensorSpec((1, *size, 3), tf.float32, "image")
    labels = tf.function(
        lambda image: serving.answer(model, image), input_signature=[image]
    )
    with export_form():
        graph = labels.get_concrete_function()
    converted = coremltools.convert(
        [graph],
        source="tensorflow",
        inputs=[coremltools.ImageType(name="image", shape=(1, *size, 3))],
        compute_precision=PRECISIONS[precision],
        minimum_deployment_target=coremltools.target.iOS16,
    )
    # A concrete function has no names of outputs.
    description = converted.get_spec()
    (output,) = description.description.output
    coremltools.utils.rename_feature(description, output.name, "labels")
    converted = coremltools.models.MLModel(
        description, weights_dir=converted.weights_dir
    )
    spec = find_spec(path)
    if spec is not None:
        names = json.dumps(list(spec.class_names))
        converted.user_defined_metadata["class_names"] = names
    return converted


def main():
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="workdir, exported folder or .keras")
    parser.add_argument(
        "--size", type=int, nargs=2, required=True, metavar=("H", "W")
    )
    parser.add_argument("--output", type=Path, default=Path("model.mlpackage"))
    parser.add_argument("--precision", choices=PRECISIONS, default="float16")
    flags = parser.parse_args()
    if flags.output.suffix != ".mlpackage":
        parser.error("--output must end in .mlpackage")
    convert(flags.model, tuple(flags.size), flags.precision).save(flags.output)
    print(flags.output)


if __name__ == "__main__":
    main()
