"""Benchmark: one model in every installed runtime, on the same images.

    python -m benchmarks runtimes
    python -m benchmarks runtimes --model FILE.keras --size 360 480 --rounds 9

All are opened in one process and take turns, one image at a time, so that
other load on the machine affects all of them. The artefacts are exported from
the model first. Runtimes that are not installed are named and left out.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from benchmarks import run as machine
from benchmarks.workloads import SHARED
from keras_aspp.cli.output import print_table
from keras_aspp.data.decode import read_image
from keras_aspp.data.resize import resize_image
from keras_aspp.export.onnx import write_onnx
from keras_aspp.export.run_alone import compiled
from keras_aspp.export.saved_model import write_saved_model
from keras_aspp.export.tflite import convert
from keras_aspp.inference import Predictor, serving
from keras_aspp.inference.agreement import equal_pixels
from keras_aspp.models import fold_batch_norm
from keras_aspp.models.segmenter import load_saved
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.extras import is_installed
from keras_aspp.utils.files import write_json

MODEL = Path("saved_models/camvid_mobilenet_v2/model.keras")
IMAGES = Path(SHARED) / "data/camvid/images/val"
REFERENCE, BASE = "Keras, not folded", "LiteRT"
# Name -> file, runtime and precision of a `Predictor`, and its package.
PREDICTORS = {
    "Keras": ("model.keras", "keras", "float32", "keras"),
    "Keras, bfloat16": ("model.keras", "keras", "bfloat16", "keras"),
    "SavedModel": ("saved_model", "saved_model", "float32", "tensorflow"),
    BASE: ("model.tflite", "litert", "float32", "ai_edge_litert"),
    "ONNX Runtime": ("model.onnx", "onnxruntime", "float32", "onnxruntime"),
    "OpenVINO, .tflite": ("model.tflite", "openvino", "float32", "openvino"),
    "OpenVINO, .onnx": ("model.onnx", "openvino", "float32", "openvino"),
    "OpenVINO, bfloat16": ("model.tflite", "openvino", "bfloat16", "openvino"),
}


def run(arguments):
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks runtimes",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--model", type=Path, default=MODEL, metavar="FILE")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(360, 480), metavar=("H", "W")
    )
    parser.add_argument("--images", type=Path, default=IMAGES, metavar="DIR")
    parser.add_argument("--count", type=int, default=4, metavar="N")
    parser.add_argument("--rounds", type=int, default=9, metavar="N")
    parser.add_argument("--output", type=Path, default=machine.RESULTS)
    flags = parser.parse_args(arguments)
    for name in ("count", "rounds"):
        if getattr(flags, name) < 1:
            raise InputError(
                f"`--{name}` must be > 0. Received: {getattr(flags, name)}"
            )
    images = load_images(flags.images, flags.count, flags.size)
    with tempfile.TemporaryDirectory() as folder:
        answers, absent = open_all(flags.model, tuple(flags.size), Path(folder))
        rows = measure(answers, images, flags.rounds)
    result = {
        "comparison": "runtimes",
        "model": str(flags.model),
        "size": list(flags.size),
        "images": len(images),
        "sides": rows,
        "absent": absent,
        **machine.circumstances(),
    }
    report(result)
    flags.output.mkdir(parents=True, exist_ok=True)
    device = machine.slug(result["device"])
    write_json(flags.output / f"runtimes_{device}.json", result)
    return 0


def load_images(folder, count, size):
    """Returns the first images of a folder, uint8, at one size."""
    paths = sorted(folder.glob("*.jpg")) + sorted(folder.glob("*.png"))
    if len(paths) < count:
        raise InputError(
            f"`--images` must hold {count} images. Received: {folder} with "
            f"{len(paths)}"
        )
    return [resize_image(read_image(path), size) for path in paths[:count]]


def open_all(path, size, folder):
    """Exports a model and opens it in each runtime.

    Returns:
        `(answers, absent)`: name -> function of an image that returns labels;
        names of the runtimes that are not installed.
    """
    model = load_saved(path)
    export(model, size, folder)
    (folder / "model.keras").symlink_to(path.resolve())
    answers, absent = {REFERENCE: _unfolded(model)}, []
    for name, (file, runtime, precision, package) in PREDICTORS.items():
        # The exporter of a file may be absent, too.
        if not (is_installed(package) and (folder / file).exists()):
            absent.append(name)
            continue
        answers[name] = Predictor(
            folder / file, runtime=runtime, precision=precision
        ).predict
    try:
        answers[f"{BASE}, CompiledModel"] = _compiled(folder / "model.tflite")
    except ImportError:
        absent.append(f"{BASE}, CompiledModel")
    return answers, absent


def export(model, size, folder):
    """Writes `saved_model`, `model.tflite` and, if possible, `model.onnx`."""
    folded = fold_batch_norm(model)
    write_saved_model(folded, folder / "saved_model")
    files = convert(folded, size, ("tflite_float32",))
    (folder / "model.tflite").write_bytes(files["tflite_float32"])
    if is_installed("tf2onnx"):
        write_onnx(folded, folder / "model.onnx", size)


def _unfolded(model):
    """Returns the labels of a model as it was trained."""
    graph = tf.function(
        lambda images: serving.answer(model, images)["labels"],
        [serving.image_spec(model)],
    )
    return lambda image: graph(image[None]).numpy()[0]


def _compiled(path):
    """Returns the labels of LiteRT's `CompiledModel` on the CPU."""
    answer = compiled(str(path), "CPU")
    return lambda image: answer(image[None])["labels"][0]


def measure(answers, images, rounds):
    """Lets runtimes take turns.

    Args:
        answers: name -> function of an image that returns labels.
        images: list of `[H, W, 3]`.
        rounds: int > 0, timed calls of each.

    Returns:
        dict: name -> `milliseconds` (list), `median`, `ratio` to `BASE` and
        `agreement`, the share of pixels labeled as by `REFERENCE`.
    """
    labels = {
        name: [answer(image) for image in images]
        for name, answer in answers.items()
    }
    took = {name: [] for name in answers}
    for i in range(rounds):
        for name, answer in answers.items():
            begun = time.perf_counter()
            answer(images[i % len(images)])
            took[name].append(1e3 * (time.perf_counter() - begun))
    base = statistics.median(took[BASE])
    return {
        name: {
            "milliseconds": took[name],
            "median": statistics.median(took[name]),
            "ratio": statistics.median(took[name]) / base,
            "agreement": float(
                np.mean([*map(equal_pixels, labels[name], labels[REFERENCE])])
            ),
        }
        for name in answers
    }


def report(result):
    """Prints a result as a table."""
    rows = [("runtime", "ms", "least to most", "ratio", "equal labels")]
    for name, side in result["sides"].items():
        least, most = min(side["milliseconds"]), max(side["milliseconds"])
        rows.append(
            (
                name,
                f"{side['median']:.0f}",
                f"{least:.0f} to {most:.0f}",
                f"{side['ratio']:.2f}",
                f"{side['agreement']:.3%}",
            )
        )
    print_table(rows)
    if result["absent"]:
        print(f"not installed: {', '.join(result['absent'])}")
