"""Runs an artefact in a subprocess that does not import keras_aspp.

    python -P run_alone.py ARTEFACT IMAGES.npz OUTPUTS.npz

Python runs this file, which is never imported, so an artefact fails here if it
needs more than TensorFlow, LiteRT or onnxruntime.
"""

import pathlib
import sys

import numpy as np


def main(artefact, images, output):
    """Writes each output of each image as `image/output`."""
    kinds = {".tflite": tflite, ".onnx": onnx}
    run = kinds.get(pathlib.Path(artefact).suffix, saved)(artefact)
    with np.load(images) as file:
        found = {
            f"{name}/{key}": values[0]
            for name in file.files
            for key, values in run(file[name][None]).items()
        }
    np.savez(output, **found)
    if "keras_aspp" in sys.modules:
        sys.exit("keras_aspp was imported.")


def tflite(path):
    """Opens a `.tflite`; one of any size is resized."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path)
    (input_details,) = interpreter.get_input_details()
    outputs = interpreter.get_signature_runner().get_output_details()

    def run(image):
        if -1 in input_details["shape_signature"]:
            interpreter.resize_tensor_input(input_details["index"], image.shape)
        interpreter.allocate_tensors()
        # Files of 8 bits take floats where images have more.
        image = image.astype(input_details["dtype"])
        interpreter.set_tensor(input_details["index"], image)
        interpreter.invoke()
        return {
            name: interpreter.get_tensor(details["index"])
            for name, details in outputs.items()
        }

    return run


def onnx(path):
    """Opens an `.onnx` with onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(
        zip(names, session.run(names, {"image": image}), strict=True)
    )


def saved(path):
    """Opens a SavedModel by its signatures of pixels."""
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    signatures = loaded.signatures

    def run(image):
        image, found = tf.constant(image), {}
        if "serve_scores" in signatures:
            taken = signatures["serve_scores"].structured_input_signature[1]
            share = {"min_confidence": tf.constant(0.0)}
            if "min_confidence" not in taken:
                share = {}
            found = signatures["serve_scores"](image=image, **share)
        found |= signatures["serving_default"](image=image)
        return {name: values.numpy() for name, values in found.items()}

    # A signature does not keep its variables alive.
    run.loaded = loaded
    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
