"""Runs an artefact in a subprocess that does not import keras_aspp.

    python -P run_alone.py ARTEFACT IMAGES.npz LABELS.npz

Python runs this file, which is never imported, so an artefact fails here if it
needs more than TensorFlow, LiteRT or onnxruntime.
"""

import pathlib
import sys

import numpy as np


def main(artefact, images, output):
    """Writes the labels of each image under its name."""
    kinds = {".tflite": tflite, ".onnx": onnx}
    run = kinds.get(pathlib.Path(artefact).suffix, saved)(artefact)
    with np.load(images) as file:
        labels = {name: run(file[name][None]) for name in file.files}
    np.savez(output, **labels)
    if "keras_aspp" in sys.modules:
        sys.exit("keras_aspp was imported.")


def tflite(path):
    """Opens a `.tflite`; one of any size is resized."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path)
    (input_details,), (output_details,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )

    def run(image):
        if -1 in input_details["shape_signature"]:
            interpreter.resize_tensor_input(input_details["index"], image.shape)
        interpreter.allocate_tensors()
        # Files of 8 bits take floats where images have more.
        image = image.astype(input_details["dtype"])
        interpreter.set_tensor(input_details["index"], image)
        interpreter.invoke()
        found = interpreter.get_tensor(output_details["index"])[0]
        return found if found.ndim == 2 else found.argmax(-1)

    return run


def onnx(path):
    """Opens an `.onnx` with onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return lambda image: session.run(None, {"image": image})[0][0]


def saved(path):
    """Opens a SavedModel by its default signature."""
    import tensorflow as tf

    serve = tf.saved_model.load(path).signatures["serving_default"]
    return lambda image: serve(image=tf.constant(image))["labels"].numpy()[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
