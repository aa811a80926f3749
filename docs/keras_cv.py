"""Measures what docs/decisions/0010-keras-cv.md states of keras-cv's layers.

python -m docs.keras_cv          # each layer as keras-cv has it
python -m docs.keras_cv ours     # the selectable ones, in data.augment.layers
"""

import argparse
import re
import time
import warnings

import numpy as np

from keras_aspp.data.augment_layers import (
    COLOR,
    FILL,
    GEOMETRIC,
    AugmentLayer,
)

CLASSES = (3, 5, 7)
IGNORE = 11
SIZE = (64, 80)
# Arguments with which a layer changes an image visibly.
ARGUMENTS = {
    "AugMix": {"value_range": (0, 255)},
    "AutoContrast": {"value_range": (0, 255)},
    "ChannelShuffle": {},
    "CutMix": {},
    "Equalization": {"value_range": (0, 255)},
    "FourierMix": {},
    "Grayscale": {"output_channels": 3},
    "GridMask": {"ratio_factor": (0.4, 0.5), "fill_value": FILL},
    "JitteredResize": {"target_size": SIZE, "scale_factor": (0.5, 0.7)},
    "MixUp": {},
    "Mosaic": {},
    "Posterization": {"value_range": (0, 255), "bits": 3},
    "RandAugment": {"value_range": (0, 255), "geometric": False},
    "RandomAspectRatio": {"factor": (0.6, 0.7)},
    "RandomBrightness": {"factor": 0.3},
    "RandomChannelShift": {"value_range": (0, 255), "factor": 0.5},
    "RandomColorDegeneration": {"factor": (0.5, 1.0)},
    "RandomColorJitter": {
        "value_range": (0, 255),
        "brightness_factor": 0.2,
        "contrast_factor": 0.2,
        "saturation_factor": (0.3, 0.7),
        "hue_factor": 0.2,
    },
    "RandomContrast": {"factor": 0.5, "value_range": (0, 255)},
    "RandomCrop": {"height": 48, "width": 56},
    "RandomCropAndResize": {
        "target_size": SIZE,
        "crop_area_factor": (0.4, 0.6),
        "aspect_ratio_factor": (0.8, 1.25),
    },
    "RandomCutout": {
        "height_factor": 0.5,
        "width_factor": 0.5,
        "fill_value": FILL,
    },
    "RandomFlip": {"mode": "horizontal_and_vertical"},
    "RandomGaussianBlur": {"kernel_size": 5, "factor": (1.0, 2.0)},
    "RandomHue": {"factor": 0.5, "value_range": (0, 255)},
    "RandomJpegQuality": {"factor": (10, 30)},
    "RandomRotation": {
        "factor": 0.1,
        "fill_mode": "constant",
        "fill_value": FILL,
        "segmentation_classes": 12,
    },
    "RandomSaturation": {"factor": (0.2, 0.4)},
    "RandomSharpness": {"factor": (0.5, 1.0), "value_range": (0, 255)},
    "RandomShear": {
        "x_factor": 0.3,
        "y_factor": 0.3,
        "fill_mode": "constant",
        "fill_value": FILL,
    },
    "RandomTranslation": {
        "height_factor": 0.3,
        "width_factor": 0.3,
        "fill_mode": "constant",
        "fill_value": FILL,
    },
    "RandomZoom": {
        "height_factor": 0.4,
        "fill_mode": "constant",
        "fill_value": FILL,
    },
    "Resizing": {
        "height": 48,
        "width": 48,
        "pad_to_aspect_ratio": True,
    },
    "Solarization": {"value_range": (0, 255), "threshold_factor": (100, 200)},
}
# Layers that take batches only.
OF_BATCHES = ("CutMix", "FourierMix", "MixUp", "Mosaic")
STATEFUL = ("RandomUniform", "RandomStandardNormal", "RandomShuffle")
STATEFUL += ("RandomGamma", "RandomUniformInt", "StatefulUniform")
STATEFUL += ("StatefulStandardNormalV2", "StatefulUniformInt")
STATEFUL += ("RngReadAndSkip", "RngSkip")


def example(seed=0):
    """An image of blocks, and their classes: a channel for each class."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 3, (SIZE[0] // 8, SIZE[1] // 8))
    blocks = np.kron(blocks, np.ones((8, 8), "int32"))
    image = np.eye(3, dtype="float32")[blocks] * 255
    return image, np.asarray(CLASSES, "int32")[blocks]


def least_share(image, labels):
    """Least share of a label's color in its pixel.

    Where the mask is the nearest pixel of what the image shows by bilinear
    interpolation, it is at least 1/4.
    """
    shares = [
        image[..., i][labels == class_id] / 255
        for i, class_id in enumerate(CLASSES)
    ]
    return float(np.min(np.concatenate(shares), initial=1.0))


def make(name, **kwargs):
    """A layer of keras-cv, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras_cv
    return getattr(keras_cv.layers, name)(**ARGUMENTS[name], **kwargs)


def alone(name):
    """Measures one layer of keras-cv; returns a dict, column -> value."""
    row = {"layer": name}
    for dtype in ("int32", "float32"):
        try:
            return row | _alone(name, dtype)
        except Exception as error:
            message = re.sub(r"\x1b\[\dm", "", " ".join(str(error).split()))
            message = message.partition("call(). ")[2].partition(" Argum")[0]
            row[f"{dtype} mask"] = f"{type(error).__name__}: {message}"
    return row


def _alone(name, dtype):
    import tensorflow as tf

    layer, row = make(name), {}

    def call(image, labels):
        data = {
            "images": tf.convert_to_tensor(image),
            "segmentation_masks": tf.cast(labels, dtype)[..., None],
        }
        if name in OF_BATCHES:
            data = {k: tf.stack([v, v[::-1]]) for k, v in data.items()}
        out = layer(data, training=True)
        return dense(out["images"]), dense(out["segmentation_masks"])

    results = []
    for i in range(20):
        image, labels = example(i)
        out, mask = call(image, labels)
        results.append((np.asarray(out), np.asarray(mask), labels))
    row["dtype"] = results[0][1].dtype.name
    same = all(np.array_equal(m[..., 0], y) for _, m, y in results)
    row["mask"] = "untouched" if same else "changed"
    found = set(np.unique(np.concatenate([m.ravel() for _, m, _ in results])))
    strange = sorted(float(v) for v in found - set(CLASSES))
    row["strange"] = len(strange), strange[:3]
    if not same and results[0][0].ndim == 3:
        row["share"] = min(least_share(o, m[..., 0]) for o, m, _ in results)
    outs = np.concatenate([o.ravel() for o, _, _ in results])
    row["range"] = float(outs.min()), float(outs.max())
    row["graph"] = in_graph(call)
    graph = tf.function(call).get_concrete_function(*example_specs()).graph
    row["stateful"] = sorted(stateful_ops(graph))
    return row


def dense(tensor):
    """A tensor out of one that may be ragged."""
    return tensor.to_tensor() if hasattr(tensor, "to_tensor") else tensor


def example_specs():
    """Signature of `example`."""
    import tensorflow as tf

    return tf.TensorSpec((*SIZE, 3)), tf.TensorSpec(SIZE, "int32")


def in_graph(call):
    """Returns "yes" if a layer runs in `Dataset.map`, or the error."""
    import tensorflow as tf

    try:
        data = tf.data.Dataset.from_tensors(example()).repeat(2)
        for _ in data.map(call, num_parallel_calls=2):
            pass
    except Exception as error:
        return f"{type(error).__name__}: {str(error).split('.')[0]}"[:90]
    return "yes"


def ours(name):
    """Measures one layer as `data.augment.layers` applies it."""
    import tensorflow as tf

    given = ("value_range", "fill_value", "fill_mode", "target_size")
    given += ("output_channels", "segmentation_classes", "geometric")
    arguments = {k: v for k, v in ARGUMENTS[name].items() if k not in given}
    layer = AugmentLayer(name, arguments, SIZE, IGNORE)
    row = {"layer": name}
    traced = tf.function(layer)
    graph = traced.get_concrete_function(
        *example_specs(), tf.TensorSpec(2, "int64")
    ).graph
    row["stateful"] = sorted(stateful_ops(graph))
    row["repeats"] = row["color keeps mask"] = True
    found, share, ignored = set(), 1.0, []
    outs = []
    for i in range(20):
        image, labels = (tf.constant(part) for part in example(i))
        out, mask = layer(image, labels, tf.constant([3, i], "int64"))
        out, mask = out.numpy(), mask.numpy()
        again, _ = traced(image, labels, tf.constant([3, i], "int64"))
        row["repeats"] &= np.array_equal(out, again)
        found |= set(np.unique(mask))
        if name in GEOMETRIC:
            share = min(share, least_share(out, mask))
        else:
            row["color keeps mask"] &= np.array_equal(mask, labels)
        ignored.append((mask == IGNORE).mean())
        outs.append(out)
    row["strange"] = sorted(int(v) for v in found - {*CLASSES, IGNORE})
    row["share"], row["ignored"] = share, round(float(np.mean(ignored)), 3)
    row["range"] = float(np.min(outs)), float(np.max(outs))
    image = tf.random.stateless_uniform((*SIZE, 3), (1, 2)) * 255
    seeds = [tf.constant([4, i], "int64") for i in range(6)]
    drawn = [traced(image, labels, seed)[0].numpy() for seed in seeds]
    row["differs"] = any(np.any(drawn[0] != other) for other in drawn)
    row["ms"] = milliseconds(name, arguments)
    return row


def stateful_ops(graph):
    """Types of operations that draw from a state, functions included."""
    definition = graph.as_graph_def()
    nodes = [*definition.node]
    for function in definition.library.function:
        nodes += function.node_def
    return {node.op for node in nodes} & set(STATEFUL)


def milliseconds(name, arguments, size=(320, 320), count=40):
    """Time of one crop on one core, in ms."""
    import tensorflow as tf

    layer = AugmentLayer(name, arguments, size, IGNORE)
    image = tf.random.stateless_uniform((*size, 3), (1, 2)) * 255
    labels = tf.zeros(size, "int32")
    data = tf.data.Dataset.range(10**6).map(
        lambda i: layer(image, labels, tf.stack([i, i]))
    )
    taken = iter(data)
    next(taken)
    start = time.perf_counter()
    for _ in range(count):
        next(taken)
    return round((time.perf_counter() - start) * 1000 / count, 1)


def main():
    """Prints a line for each layer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="?", choices=["alone", "ours"])
    which = parser.parse_args().which
    if which == "ours":
        for name in sorted(COLOR | GEOMETRIC):
            print(ours(name), flush=True)
        return
    for name in sorted(ARGUMENTS):
        print(alone(name), flush=True)


if __name__ == "__main__":
    main()
