"""Comparisons of `benchmarks.run`: work that several sides do.

A side is a function that builds what it needs and returns a `Work`; it runs
in a process of its own.
"""

import dataclasses
import functools
import importlib
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SHARED = os.path.expandvars(os.environ.get("KERAS_ASPP_SHARED", "../shared"))
_BF16 = "mixed_bfloat16"


@dataclasses.dataclass(frozen=True)
class Work:
    """Something to time.

    Attributes:
        step: callable without arguments that returns when all is computed.
        images: int, how many a step handles.
        madds: int, multiply-adds of its convolutions and matrix products, 0
            where they are not counted.
    """

    step: object
    images: int = 0
    madds: int = 0


@dataclasses.dataclass(frozen=True)
class Target:
    """`side` is to take at most `share` of what `other` takes.

    `of` is `"seconds"` or `"peak_bytes"`.
    """

    side: str
    other: str
    share: float
    of: str = "seconds"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One row of the table: sides that do the same work.

    Attributes:
        what: for people.
        sides: dict: name -> function that returns `Work`.
        targets: tuple of `Target`.
        smoke: bool. Takes seconds and needs no peer: `.ci/run` runs it, so
            that a form that stops working is noticed.
        gpu: bool. Is for a GPU.
    """

    what: str
    sides: dict
    targets: tuple = ()
    smoke: bool = False
    gpu: bool = False


def train_step(make, size_px=512, batch=2, classes=21, jit_compile=False):
    """One step of `model.fit`: forward, loss, gradients, SGD."""
    import keras

    model = make()
    model.compile(
        optimizer=keras.optimizers.SGD(0.001, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=255
        ),
        jit_compile=jit_compile,
    )
    images, labels = examples(batch, size_px, classes)
    return Work(
        lambda: model.train_on_batch(images, labels),
        batch,
        3 * batch * madds(model, size_px),
    )


def largest_batch(make, size_px, most=2**11):
    """`train_step` under XLA with as many images as fit, a power of two."""
    work, batch = train_step(make, size_px, 1, jit_compile=True), 2
    while batch <= most:
        try:
            larger = train_step(make, size_px, batch, jit_compile=True)
            larger.step()
        except Exception as error:
            # What the backend raises is not exported.
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            break
        work, batch = larger, 2 * batch
    return work


def inference(make, size_px=512, batch=2, jit_compile=False):
    """Inference: images to labels."""
    import keras
    import tensorflow as tf

    model = make()
    images = tf.constant(examples(batch, size_px)[0])

    @tf.function(jit_compile=jit_compile)
    def labels(images):
        scores = model(images, training=False)
        return tf.argmax(scores, -1, output_type=tf.int32)

    count = batch * madds(model, size_px)
    return Work(
        lambda: keras.ops.convert_to_numpy(labels(images)), batch, count
    )


def public_tflite(threads, answer=None):
    """Twenty images of 257x257 by the public mobile DeepLabV3.

    Args:
        threads: int > 0, of the interpreter.
        answer: `"logits"`, `"coarse_labels"` or `"int8"` (such labels) of our
            export of the same weights, or `None` for the public file.
    """
    import numpy as np

    from keras_aspp.export import tflite
    from keras_aspp.models import fold_batch_norm
    from keras_aspp.weights import from_tflite

    path = Path(SHARED) / "vectors" / "deeplabv3_257_mv_gpu.tflite"
    content = path.read_bytes()
    if answer is not None:
        kinds = {"logits": "tflite_logits", "int8": "tflite_int8"}
        noise = np.random.default_rng(0).integers(0, 256, (257, 257, 3))
        (content,) = tflite.convert(
            fold_batch_norm(from_tflite(path)),
            (257, 257),
            [kinds.get(answer, "tflite_float32")],
            [noise.astype("uint8")],
            coarse_labels=answer != "logits",
        ).values()
    return _tflite(content, 257, threads)


def phone(config, kind):
    """Twenty images of 384x384 by what a configuration would export.

    Args:
        config: name of a configuration, whose weights are fresh.
        kind: format.
    """
    import dataclasses

    import numpy as np

    from keras_aspp.config.load import config_path, load_config
    from keras_aspp.export import tflite
    from keras_aspp.models import fold_batch_norm
    from keras_aspp.models.factory import build_model

    config = load_config(config_path(config))
    fresh = dataclasses.replace(config.model, backbone_weights=None)
    noise = np.random.default_rng(0).integers(0, 256, (384, 384, 3))
    (content,) = tflite.convert(
        fold_batch_norm(build_model(fresh, 21)),
        (384, 384),
        [kind],
        [noise.astype("uint8")],
        coarse_labels=config.export.coarse_labels,
    ).values()
    return _tflite(content, 384, 2)


def labels_in_litert(make, size_px):
    """Twenty images by the float file of a segmenter, in one thread."""
    from keras_aspp.export import tflite
    from keras_aspp.models import fold_batch_norm

    (content,) = tflite.convert(
        fold_batch_norm(make()),
        (size_px, size_px),
        ["tflite_float32"],
        coarse_labels=True,
    ).values()
    return _tflite(content, size_px, 1)


def _tflite(content, size_px, threads):
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=threads)
    interpreter.allocate_tensors()
    (door,) = interpreter.get_input_details()
    images = np.zeros((1, size_px, size_px, 3), door["dtype"])
    interpreter.set_tensor(door["index"], images)

    def step():
        for _ in range(20):
            interpreter.invoke()

    return Work(step, 20)


def torch_train_step(
    size_px, batch=2, classes=21, device="cpu", bfloat16=False
):
    """The step of `train_step` in PyTorch, channels last; on a GPU compiled."""
    import torch

    from benchmarks.peers import torch_segmenter

    torch.set_num_threads(os.cpu_count())
    layout = torch.channels_last
    model = torch_segmenter().to(device, memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), 0.001, momentum=0.9)
    loss = torch.nn.CrossEntropyLoss(ignore_index=255)
    images, labels = (
        torch.from_numpy(a).to(device)
        for a in examples(batch, size_px, classes)
    )
    images, labels = images.permute(0, 3, 1, 2), labels.long()
    forward = model if device == "cpu" else torch.compile(model)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, bfloat16):
            value = loss(forward(images), labels)
        value.backward()
        optimizer.step()
        value.item()

    return Work(step, batch)


def layer_gradient(
    make, cells, channels=2048, batch=2, jit_compile=False, dtype="float32"
):
    """A layer in training: forward, and the gradients of input and weights."""
    import keras
    import numpy as np

    layer = make()
    x = np.random.default_rng(0).normal(size=(batch, cells, cells, channels))
    x = keras.ops.convert_to_tensor(x.astype("float32"), dtype)
    layer(x)
    if keras.backend.backend() == "jax":
        return Work(_jax_gradient(layer, x))
    import tensorflow as tf

    @tf.function(jit_compile=jit_compile)
    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(layer(x, training=True) ** 2)
        return tape.gradient(value, [x, *layer.trainable_variables])

    def step():
        # The last to be computed; a graph without XLA ends in any order.
        for tensor in gradient():
            tensor.numpy()

    return Work(step)


def _jax_gradient(layer, x):
    import jax
    import keras

    # A convolution takes no `training`, a model does.
    layer = keras.Sequential([layer])
    layer(x)
    trained, others = (
        [variable.value for variable in variables]
        for variables in (
            layer.trainable_variables,
            layer.non_trainable_variables,
        )
    )

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(x, trained):
        y, _ = layer.stateless_call(trained, others, x, training=True)
        return (y.astype("float32") ** 2).sum()

    return lambda: jax.block_until_ready(gradient(x, trained))


def import_of(package):
    """A fresh interpreter that imports a package."""
    command = [sys.executable, "-c", f"import {package}"]
    return Work(lambda: subprocess.run(command, check=True))


def matrix_products(dtype):
    """The ceiling: a large product of two square matrices."""
    import keras
    from keras import ops

    side = 4096 if keras.backend.backend() == "tensorflow" else 16384
    a = ops.cast(keras.random.normal((side, side)), dtype)
    return Work(lambda: float(ops.matmul(a, a)[0, 0]), 0, side**3)


def training_pipeline(cached, images=200):
    """Our augmented crops of CamVid's JPEG images."""
    from keras_aspp.data import pipeline
    from keras_aspp.data.augment import AugmentConfig
    from keras_aspp.preprocess import Preprocess

    if not cached:
        pipeline.CACHE_BYTES = 0
    batches = pipeline.training_dataset(
        camvid(),
        "train",
        AugmentConfig(),
        (321, 321),
        8,
        Preprocess(),
    )
    return _drain(batches, images)


def keras_cv_pipeline(images=200):
    """The same recipe with keras-cv's layers."""
    from benchmarks.peers import keras_cv_crops

    root = Path(SHARED) / "data" / "camvid"
    files = [
        [str(path) for path in sorted((root / kind / "train").iterdir())]
        for kind in ("images", "masks")
    ]
    return _drain(keras_cv_crops(files, 321).batch(8).prefetch(2), images)


def _drain(batches, images):
    batches = iter(batches.as_numpy_iterator())

    def step():
        for _ in itertools.islice(batches, images // 8):
            pass

    return Work(step, images)


def folder_evaluation(whole):
    """CamVid's validation images through a small model.

    Args:
        whole: bool. `evaluate` to `metrics.json`; or else its parts alone:
            decode everything, then run the model on everything.
    """
    from keras_aspp.engine.evaluate import evaluate
    from keras_aspp.inference import Predictor
    from keras_aspp.utils.files import write_json

    source = camvid()
    folder = Path(tempfile.mkdtemp())
    model = segmenter("mobilenet_v2", 16, classes=source.spec.num_classes)
    model.save(folder / "model.keras")
    predictor = Predictor(folder / "model.keras")

    def command():
        found = evaluate(predictor, source, "val", 8)
        write_json(folder / "metrics.json", found)

    def parts():
        import numpy as np

        records = source.records("val").as_numpy_iterator()
        images = np.stack([source.decode(*record)[0] for record in records])
        for i in range(0, len(images), 8):
            predictor.predict_batch(images[i : i + 8])

    return Work(command if whole else parts, source.size("val"))


def segmenter(backbone="resnet50", output_stride=32, classes=21, **arguments):
    """Our DeepLabV3+, fresh weights."""
    from keras_aspp.models import DeepLabV3Plus

    return DeepLabV3Plus(
        classes,
        backbone,
        output_stride,
        backbone_weights=None,
        **arguments,
    )


def deeplab_v3(backbone="resnet50", atrous_rates="auto", dtype="float32"):
    """Our DeepLabV3 at output stride 16."""
    from keras_aspp.models import DeepLabV3

    return DeepLabV3(
        21,
        backbone,
        16,
        atrous_rates=atrous_rates,
        backbone_weights=None,
        dtype=dtype,
    )


def as_keras_hub(
    dtype="float32", fold=False, rematerialize=False, decoder="light"
):
    """Our DeepLabV3+ as keras-hub's, weight for weight.

    `decoder="paper"` is our default decoder instead.
    """
    from keras_aspp import models

    model = segmenter(
        atrous_rates=(6, 12, 18),
        dropout=0.0,
        decoder=decoder,
        rematerialize=rematerialize,
        dtype=dtype,
    )
    return models.fold_batch_norm(model) if fold else model


def aspp():
    """Our ASPP, 256 filters."""
    from keras_aspp.layers import ASPP

    return ASPP(256, (6, 12, 18))


def camvid():
    """The folder data set of ../shared."""
    from keras_aspp.config.schema import DataConfig
    from keras_aspp.data.sources import open_source

    return open_source(DataConfig(root=str(Path(SHARED) / "data" / "camvid")))


def examples(batch, size_px, classes=21):
    """float32 images and int32 labels, drawn once."""
    import numpy as np

    draw = np.random.default_rng(0)
    images = draw.normal(size=(batch, size_px, size_px, 3))
    labels = draw.integers(0, classes, (batch, size_px, size_px))
    return images.astype("float32"), labels.astype("int32")


def madds(model, size_px):
    """Multiply-adds of one image, of anybody's functional model."""
    from keras_aspp.analysis import cost

    return cost(model, (size_px, size_px)).madds


def _peer(name, **arguments):
    def make():
        from benchmarks import peers

        return getattr(peers, name)(**arguments)

    return make


def _whole_models():
    """The network of keras-hub, in every form."""
    part = functools.partial
    ours, theirs = as_keras_hub, _peer("keras_hub_segmenter")
    theirs_bf16 = _peer("keras_hub_segmenter", dtype=_BF16)
    network = "DeepLabV3+ ResNet-50 of keras-hub's shape, stride 32, 512x512"
    yield (
        "train_step",
        Comparison(
            f"train step, {network}, batch 2, float32",
            {
                "ours": part(train_step, ours),
                "ours, rematerialized": part(
                    train_step, part(ours, rematerialize=True)
                ),
                "keras-hub": part(train_step, theirs),
            },
            (
                Target("ours", "keras-hub", 0.52),
                Target("ours", "keras-hub", 0.65, "peak_bytes"),
                Target("ours, rematerialized", "keras-hub", 0.5, "peak_bytes"),
            ),
        ),
    )
    yield (
        "train_step_bfloat16",
        Comparison(
            f"train step, {network}, batch 2, mixed_bfloat16",
            {
                "ours": part(train_step, part(ours, _BF16)),
                "keras-hub": part(train_step, theirs_bf16),
                "keras-hub in float32": part(train_step, theirs),
            },
            (
                Target("ours", "keras-hub", 0.5),
                Target("ours", "keras-hub in float32", 0.4),
            ),
        ),
    )
    yield (
        "train_step_xla",
        Comparison(
            f"train step under XLA, {network}, batch 2, float32",
            {
                "ours": part(train_step, ours, jit_compile=True),
                "keras-hub": part(train_step, theirs, jit_compile=True),
            },
            (
                Target("ours", "keras-hub", 0.5),
                Target("ours", "keras-hub", 0.5, "peak_bytes"),
            ),
        ),
    )
    paper = part(ours, decoder="paper")
    yield (
        "decoders_train_step",
        Comparison(
            f"train step, {network}, batch 2, float32, by decoder",
            {
                "light": part(train_step, ours),
                "paper": part(train_step, paper),
                "keras-hub": part(train_step, theirs),
            },
        ),
    )
    yield (
        "decoders_inference",
        Comparison(
            f"images to labels, {network}, batch 2, by decoder",
            {
                "light": part(inference, part(ours, fold=True)),
                "paper": part(inference, part(paper, fold=True)),
                "keras-hub": part(inference, theirs),
            },
        ),
    )
    yield (
        "inference",
        Comparison(
            f"images to labels, {network}, batch 2",
            {
                "ours": part(inference, part(ours, fold=True)),
                "ours in bfloat16": part(
                    inference, part(ours, _BF16, fold=True)
                ),
                "keras-hub": part(inference, theirs),
                "keras-hub in bfloat16": part(inference, theirs_bf16),
            },
            (
                Target("ours", "keras-hub", 1 / 2.2),
                Target("ours in bfloat16", "keras-hub", 1 / 4),
            ),
        ),
    )


def _comparisons():
    """Comparisons on a CPU, in the order of the table."""
    part = functools.partial
    yield (
        "ceiling",
        Comparison(
            "product of two matrices, 4096x4096",
            {
                "float32": part(matrix_products, "float32"),
                "bfloat16": part(matrix_products, "bfloat16"),
            },
        ),
    )
    yield from _whole_models()
    yield from _in_litert()
    yield from _parts_and_peers()
    yield from _around_the_model()


def _in_litert():
    """Inference of exported files."""
    part = functools.partial
    for threads in (1, 2):
        yield (
            f"tflite_257_threads_{threads}",
            Comparison(
                "public mobile DeepLabV3, 257x257, float32 in LiteRT, "
                f"{threads} thread{'s' if threads > 1 else ''}, 20 images",
                {
                    "ours, logits": part(public_tflite, threads, "logits"),
                    "ours, labels": part(
                        public_tflite, threads, "coarse_labels"
                    ),
                    "ours, labels, int8": part(public_tflite, threads, "int8"),
                    "public file": part(public_tflite, threads),
                },
                (
                    Target("ours, logits", "public file", 1.0),
                    Target("ours, labels", "public file", 0.8),
                    Target("ours, labels, int8", "public file", 0.8),
                ),
            ),
        )
    yield (
        "phone_384",
        Comparison(
            "what the configurations for folders export, 21 classes, 384x384, "
            "LiteRT, 2 threads, 20 images",
            {
                f"{config}, {kind}": part(phone, config, f"tflite_{kind}")
                for config in ("folder", "folder_mobile")
                for kind in ("float32", "int8")
            },
        ),
    )


def _parts_and_peers():
    """Training of other models and of ASPP alone."""
    part = functools.partial
    small = part(segmenter, "mobilenet_v2", 16, separable=True)
    yield (
        "xla_mobilenet",
        Comparison(
            "train step, our DeepLabV3+ MobileNetV2, stride 16, 256x256",
            {
                "XLA": part(train_step, small, 256, jit_compile=True),
                "graph": part(train_step, small, 256),
            },
            (Target("XLA", "graph", 2.0),),
        ),
    )
    for cells, xla in itertools.product((33, 65), (False, True)):
        sides = {
            "ours": aspp,
            "keras-hub": _peer("keras_hub_aspp"),
            "keras-cv": _peer("keras_cv_aspp"),
        }
        share = 1 / 1.5 if xla else 1.0
        yield (
            f"aspp_{cells}{'_xla' if xla else ''}",
            Comparison(
                f"ASPP, rates 6 12 18, {cells}x{cells}x2048, batch 2, forward "
                f"and gradient{', under XLA' if xla else ''}",
                {
                    name: part(layer_gradient, make, cells, jit_compile=xla)
                    for name, make in sides.items()
                },
                (
                    Target("ours", "keras-hub", share),
                    Target("ours", "keras-cv", share),
                ),
            ),
        )
    for name, dtype in (("pytorch", "float32"), ("pytorch_bfloat16", _BF16)):
        yield (
            name,
            Comparison(
                "train step, DeepLabV3 ResNet-50, stride 16, 321x321, "
                f"batch 2, {dtype}",
                {
                    "ours": part(
                        train_step, part(deeplab_v3, dtype=dtype), 321
                    ),
                    "PyTorch": part(
                        torch_train_step, 321, bfloat16=dtype == _BF16
                    ),
                },
                (Target("ours", "PyTorch", 0.95),),
            ),
        )


def _around_the_model():
    """Input pipeline, evaluation and import."""
    part = functools.partial
    yield (
        "input_pipeline",
        Comparison(
            "CamVid's JPEG 480x360 to augmented 321x321 crops, 200 images",
            {
                "ours": part(training_pipeline, False),
                "ours, images cached": part(training_pipeline, True),
                "keras-cv": keras_cv_pipeline,
            },
            (
                Target("ours", "keras-cv", 1 / 3),
                Target("ours, images cached", "keras-cv", 1 / 3),
            ),
        ),
    )
    yield (
        "evaluate",
        Comparison(
            "101 images of CamVid to metrics.json",
            {
                "evaluate": part(folder_evaluation, True),
                "decoding + model": part(folder_evaluation, False),
            },
            (Target("evaluate", "decoding + model", 1.15),),
        ),
    )
    yield (
        "import",
        Comparison(
            "import in a fresh interpreter",
            {
                "keras_aspp": part(import_of, "keras_aspp"),
                "keras": part(import_of, "keras"),
            },
            (Target("keras_aspp", "keras", 1.1),),
        ),
    )


def _on_a_gpu():
    part = functools.partial
    bf16 = {"dtype": _BF16}
    size = "stride 16, 513x513, batch 16, bfloat16"
    for dtype in ("float32", "bfloat16"):
        yield (
            f"gpu_ceiling_{dtype}",
            Comparison(
                f"product of two matrices, 16384x16384, {dtype}",
                {dtype: part(matrix_products, dtype)},
                gpu=True,
            ),
        )
    yield (
        "gpu_resnet50",
        Comparison(
            f"train step, DeepLabV3 ResNet-50, {size}, compiled",
            {
                "ours": part(
                    train_step,
                    part(deeplab_v3, **bf16),
                    513,
                    16,
                    jit_compile=True,
                ),
                "ours, largest batch": part(
                    largest_batch, part(deeplab_v3, **bf16), 513
                ),
                "PyTorch": part(
                    torch_train_step, 513, 16, device="cuda", bfloat16=True
                ),
            },
            (Target("ours", "PyTorch", 1.0),),
            gpu=True,
        ),
    )
    small = part(segmenter, "mobilenet_v2", 16, separable=True, **bf16)
    yield (
        "gpu_mobilenet",
        Comparison(
            f"train step, our DeepLabV3+ MobileNetV2, {size}, compiled",
            {
                "ours": part(train_step, small, 513, 16, jit_compile=True),
                "ours, largest batch": part(largest_batch, small, 513),
            },
            gpu=True,
        ),
    )


def _rates_on_a_gpu():
    """Cost of a dilation rate, in the form we use and in the alternatives."""
    part = functools.partial
    bf16 = {"padding": "same", "dtype": _BF16}

    def side(name, channels, rate, taps, *args):
        def make():
            from keras_aspp import layers
            from keras_aspp.layers import lowering

            # Taps are what a CPU takes.
            lowering._on_cpu = lambda: taps
            return getattr(layers, name)(*args, dilation_rate=rate, **bf16)

        return part(
            layer_gradient, make, 33, channels, 16, True, dtype="bfloat16"
        )

    yield (
        "gpu_dilated",
        Comparison(
            "3x3 convolution, 33x33x2048 to 256, batch 16, bfloat16, by rate",
            {
                f"rate {rate}": side("Conv2D", 2048, rate, False, 256, 3)
                for rate in (1, 6, 12, 18)
            },
            gpu=True,
        ),
    )
    yield (
        "gpu_depthwise",
        Comparison(
            "depthwise 3x3, 33x33x960, batch 16, bfloat16, by rate and form",
            {
                f"rate {rate}, {form}": side(
                    "DepthwiseConv2D", 960, rate, form == "taps", 3
                )
                for rate in (1, 2, 4)
                for form in ("native", "taps")
            },
            gpu=True,
        ),
    )


def _layer(package, name, *args, **kwargs):
    def make():
        found = importlib.import_module(package)
        return getattr(found, name)(*args, **kwargs)

    return make


def _forms():
    """Speed of each form of `layers.lowering` is worth, on a layer alone."""
    part = functools.partial

    ours, keras = "keras_aspp.layers", "keras.layers"
    for name, what, cells, channels, xla, sides in (
        (
            "batch_norm",
            "batch norm in training, 128x128x256",
            128,
            256,
            False,
            (
                _layer(ours, "BatchNormalization"),
                _layer(keras, "BatchNormalization"),
            ),
        ),
        (
            "depthwise_xla",
            "depthwise 3x3, 32x32x192, under XLA",
            32,
            192,
            True,
            (
                _layer(ours, "DepthwiseConv2D", 3, padding="same"),
                _layer(keras, "DepthwiseConv2D", 3, padding="same"),
            ),
        ),
        (
            "strided_depthwise_xla",
            "depthwise 3x3 of stride 2, 64x64x144, under XLA",
            64,
            144,
            True,
            (
                _layer(ours, "DepthwiseConv2D", 3, 2, padding="same"),
                _layer(keras, "DepthwiseConv2D", 3, 2, padding="same"),
            ),
        ),
        (
            "resize_xla",
            "bilinear resize of 64x64x21 to 256x256, under XLA",
            64,
            21,
            True,
            (
                _layer(ours, "BilinearResize", scale=4),
                _layer(keras, "UpSampling2D", 4, interpolation="bilinear"),
            ),
        ),
        (
            "dilated_conv",
            "3x3 convolution of rate 6, 33x33x256 to 256",
            33,
            256,
            False,
            (
                _layer(ours, "Conv2D", 256, 3, padding="same", dilation_rate=6),
                _layer(
                    keras, "Conv2D", 256, 3, padding="same", dilation_rate=6
                ),
            ),
        ),
    ):
        # Wide: a processor without AVX512 gains less, and nothing where it has
        # no kernel for the gradient.
        share = 1.3 if name == "dilated_conv" else 1.0
        made = {
            side: part(layer_gradient, make, cells, channels, jit_compile=xla)
            for side, make in zip(("ours", "Keras"), sides, strict=True)
        }
        yield (
            f"form_{name}",
            Comparison(
                f"{what}, batch 2, forward and gradient",
                made,
                (Target("ours", "Keras", share),),
                smoke=True,
            ),
        )


def _all_taps(make, crop_too=False):
    """Makes a model or layer that computes taps over the padding too.

    With `crop_too` it also crops maps by a `StridedSlice`.
    """

    def plain():
        from keras_aspp.layers import lowering

        lowering._live_taps = lambda *_: None
        if crop_too:
            lowering.crop = lambda x, size: x[:, : size[0], : size[1]]
        return make()

    return plain


def _live_taps():
    """Convolutions that compute only the taps on the map."""
    part = functools.partial
    wide = {"padding": "same", "dilation_rate": 18}
    conv = _layer("keras_aspp.layers", "Conv2D", 256, 3, **wide)
    near = {"padding": "same", "dilation_rate": 6, "dtype": _BF16}
    conv_bf16 = _layer("keras_aspp.layers", "Conv2D", 256, 3, **near)
    yield (
        "form_live_taps_bfloat16",
        Comparison(
            "3x3 convolution of rate 6, 33x33x1024 to 256, bfloat16, batch 2, "
            "forward and gradient",
            {
                side: part(layer_gradient, make, 33, 1024, dtype="bfloat16")
                for side, make in (
                    ("live taps", conv_bf16),
                    ("all taps", _all_taps(conv_bf16)),
                )
            },
            (Target("live taps", "all taps", 1.0),),
        ),
    )
    for backbone, called, rates in (
        ("mobilenet_v2", "MobileNetV2", (6, 12, 18)),
        ("mobilenet_v3_large", "MobileNetV3-Large", (12, 24, 36)),
    ):
        make = part(deeplab_v3, backbone, rates)
        yield (
            f"live_taps_tflite_{backbone}",
            Comparison(
                f"DeepLabV3 {called}, stride 16, rates "
                f"{' '.join(map(str, rates))}, 513x513, float32 in LiteRT, "
                "1 thread, 20 images",
                {
                    "live taps": part(labels_in_litert, make, 513),
                    "all taps": part(labels_in_litert, _all_taps(make), 513),
                },
                (Target("live taps", "all taps", 0.9),),
            ),
        )
    for name, what, make, share, smoke in (
        (
            "form_live_taps",
            "3x3 convolution of rate 18, 33x33x1024 to 256",
            part(layer_gradient, cells=33, channels=1024),
            1.0,
            True,
        ),
        (
            "form_live_taps_xla",
            "3x3 convolution of rate 18, 33x33x1024 to 256, under XLA",
            part(layer_gradient, cells=33, channels=1024, jit_compile=True),
            1.0,
            True,
        ),
        (
            "live_taps_aspp_33",
            "ASPP, rates 6 12 18, 33x33x2048",
            part(layer_gradient, cells=33),
            0.85,
            False,
        ),
        (
            "live_taps_train_step",
            "train step, DeepLabV3 ResNet-50, stride 16, 513x513",
            part(train_step, size_px=513),
            0.93,
            False,
        ),
    ):
        layer = conv if smoke else aspp
        layer = deeplab_v3 if "train" in name else layer
        other = "all taps"
        sides = {
            "live taps": part(make, layer),
            other: part(make, _all_taps(layer)),
        }
        if "train" in name:
            other = "all taps, crops as slices with strides"
            sides[other] = part(make, _all_taps(layer, crop_too=True))
        yield (
            name,
            Comparison(
                f"{what}, batch 2, forward and gradient",
                sides,
                (Target("live taps", other, share),),
                smoke=smoke,
            ),
        )


def _growth():
    """Growth of cost for our DeepLabV3+ MobileNetV2; one side for each size."""

    def side(size_px=256, batch=2, classes=21, **arguments):
        make = functools.partial(
            segmenter,
            "mobilenet_v2",
            classes=classes,
            separable=True,
            **{"output_stride": 16, **arguments},
        )
        return functools.partial(train_step, make, size_px, batch, classes)

    network = "train step, our DeepLabV3+ MobileNetV2"
    for name, what, sides in (
        ("size", "image", {f"{n} px": side(n) for n in (128, 256, 384, 512)}),
        ("batch", "batch", {f"{n}": side(batch=n) for n in (1, 2, 4, 8)}),
        (
            "batch_rematerialized",
            "batch, rematerialized",
            {f"{n}": side(batch=n, rematerialize=True) for n in (1, 2, 4, 8)},
        ),
        (
            "classes",
            "classes",
            {f"{n}": side(classes=n) for n in (21, 40, 80, 150)},
        ),
        (
            "output_stride",
            "output stride",
            {f"{n}": side(output_stride=n) for n in (32, 16, 8)},
        ),
        (
            "rates",
            "rates",
            {
                f"{n}": side(atrous_rates=tuple(range(1, n + 1)))
                for n in (1, 3, 6)
            },
        ),
    ):
        yield (
            f"growth_{name}",
            Comparison(
                f"{network}: {what}; 256x256, batch 2, 21 classes, stride 16, "
                "three rates where not said otherwise",
                sides,
            ),
        )


COMPARISONS = {
    **dict(_comparisons()),
    **dict(_forms()),
    **dict(_live_taps()),
    **dict(_growth()),
    **dict(_on_a_gpu()),
    **dict(_rates_on_a_gpu()),
}
