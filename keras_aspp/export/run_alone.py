"""An artefact in a process of its own, which never heard of keras_aspp.

    python -P run_alone.py ARTEFACT PICTURES.npz LABELS.npz

It is given as a file to Python, never imported: what an artefact needs beside
TensorFlow, LiteRT or onnxruntime, it would lack here.
"""

import pathlib
import sys

import numpy as np


def main(artefact, pictures, output):
    """Writes the labels of every picture, under the picture's name."""
    kinds = {".tflite": tflite, ".onnx": onnx}
    run = kinds.get(pathlib.Path(artefact).suffix, saved)(artefact)
    with np.load(pictures) as images:
        labels = {name: run(images[name][None]) for name in images.files}
    np.savez(output, **labels)
    if "keras_aspp" in sys.modules:
        sys.exit("keras_aspp was imported.")


def tflite(path):
    """A `.tflite`, resized if it has no size of its own."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path)
    (door,), (end,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )

    def run(image):
        if -1 in door["shape_signature"]:
            interpreter.resize_tensor_input(door["index"], image.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(door["index"], image)
        interpreter.invoke()
        found = interpreter.get_tensor(end["index"])[0]
        return found if found.ndim == 2 else found.argmax(-1)

    return run


def onnx(path):
    """An `.onnx`, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return lambda image: session.run(None, {"image": image})[0][0]


def saved(path):
    """A SavedModel, by its default signature."""
    import tensorflow as tf

    serve = tf.saved_model.load(path).signatures["serving_default"]
    return lambda image: serve(image=tf.constant(image))["labels"].numpy()[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
