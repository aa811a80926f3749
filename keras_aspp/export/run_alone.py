"""Runs an artefact in a subprocess that does not import keras_aspp.

    python -P run_alone.py ARTEFACT IMAGES.npz OUTPUTS.npz RUNTIME ...

Python runs this file, which is never imported, so an artefact fails here if it
needs more than TensorFlow, LiteRT or onnxruntime. RUNTIME is `saved_model`,
`onnx`, `interpreter` (LiteRT's), `cpu` or `gpu` (its `CompiledModel`), or
`openvino`, in float32.
"""

import gc
import json
import math
import os
import sys

import numpy as np


def main(artefact, images, output, *runtimes):
    """Writes each output of each image as `runtime/image/output`."""
    found, about = {}, {"runtimes": []}
    for runtime in runtimes:
        try:
            run = RUNTIMES[runtime](artefact)
        except ImportError:
            if runtime != "cpu":
                raise
            continue  # where LiteRT comes without `CompiledModel`
        with np.load(images) as file:
            found |= {
                f"{runtime}/{name}/{key}": values[0]
                for name in file.files
                for key, values in run(file[name][None]).items()
            }
        about["runtimes"].append(runtime)
        about |= getattr(run, "about", {})
    np.savez(output, about=json.dumps(about), **found)
    if "keras_aspp" in sys.modules:
        sys.exit("keras_aspp was imported.")


def interpreter(path):
    """Opens a `.tflite`; one of any size is resized."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path)
    (input_details,) = interpreter.get_input_details()
    outputs = interpreter.get_signature_runner().get_output_details()

    def run(image):
        if -1 in input_details["shape_signature"]:
            interpreter.resize_tensor_input(input_details["index"], image.shape)
        interpreter.allocate_tensors()
        image = to_input(image, input_details["dtype"], outputs)
        interpreter.set_tensor(input_details["index"], image)
        interpreter.invoke()
        return {
            name: interpreter.get_tensor(details["index"])
            for name, details in outputs.items()
        }

    return run


def compiled(path, accelerator):
    """Opens a `.tflite` of one size, as apps do."""
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.options import CpuOptions, HardwareAccelerator, Options

    # By default it has one thread.
    options = Options(
        hardware_accelerators=HardwareAccelerator[accelerator],
        cpu_options=CpuOptions(num_threads=os.cpu_count()),
    )
    model = CompiledModel.from_file(path, options=options)
    (signature,) = model.get_signature_list()
    (taken,) = model.get_input_tensor_details(signature).values()
    outputs = model.get_output_tensor_details(signature)
    (source,) = model.create_input_buffers(0)
    results = model.create_output_buffers(0)

    def run(image):
        image = to_input(image, taken["dtype"], outputs)
        source.write(np.ascontiguousarray(image))
        model.run_by_index(0, [source], results)
        found = {}
        for (name, details), result in zip(
            outputs.items(), results, strict=True
        ):
            count = math.prod(details["shape"])
            values = result.read(count, np.dtype(details["dtype"]).type)
            found[name] = values.reshape(details["shape"])
        return found

    run.about = {"fully_accelerated": model.is_fully_accelerated()}
    return run


def to_input(image, dtype, outputs):
    """Returns an image as a `.tflite` takes it."""
    if {"coarse_logits", "coarse_mask_logits"} & set(outputs):
        image = image / 127.5 - 1
    # Files of 8 bits take floats where images have more.
    return image.astype(dtype)


def onnx(path):
    """Opens an `.onnx` with onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(
        zip(names, session.run(names, {"image": image}), strict=True)
    )


def openvino(path):
    """Opens a `.tflite` of one size, or an `.onnx`, with OpenVINO."""
    import openvino

    model = openvino.Core().compile_model(
        path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    taken = {"dtype": model.inputs[0].element_type.to_dtype()}
    if path.endswith(".onnx"):
        names = [min(one.names, key=len) for one in model.outputs]
    else:
        names = _names_in_order(path)

    def run(image):
        found = model([to_input(image, taken["dtype"], names)])
        return {name: found[i] for i, name in enumerate(names)}

    return run


def _names_in_order(path):
    """Returns the names of a `.tflite`'s outputs, in its order."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path)
    named = interpreter.get_signature_runner().get_output_details()
    names = {details["index"]: name for name, details in named.items()}
    return [names[one["index"]] for one in interpreter.get_output_details()]


def saved_model(path):
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


RUNTIMES = {
    "saved_model": saved_model,
    "onnx": onnx,
    "interpreter": interpreter,
    "cpu": lambda path: compiled(path, "CPU"),
    "gpu": lambda path: compiled(path, "GPU"),
    "openvino": openvino,
}

if __name__ == "__main__":
    # Collections take a quarter of the time that TensorFlow's import takes.
    gc.disable()
    main(*sys.argv[1:])
    sys.stdout.flush()
    # Without the tear-down of GPU drivers, which may crash.
    os._exit(0)
