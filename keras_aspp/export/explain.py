"""Cost of each operator of an int8 file."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_aspp.export.quantize import (
    prepare,
    quantize_prepared,
    tensor_names,
)
from keras_aspp.litert.graph import Graph, unpacked
from keras_aspp.litert.values import run_with_values
from keras_aspp.utils.exceptions import InputError

_INT8 = "tflite_int8"
# Decibels of a result without an error.
_EXACT_DB = 120.0


@dataclasses.dataclass(frozen=True)
class OperatorCost:
    """Effect of an operator's rounding.

    Attributes:
        name: layer and operator, as `export.int8_in_float` takes it.
        type: of the operator, such as `"CONV_2D"`.
        snr_db: signal-to-noise ratio of its result in the int8 file, in dB.
        drop_db: how far that is below the worst of its inputs.
        alone_db: ratio of the scores if this operator alone is in int8, its
            inputs and result included; `None` where that was not tried. The
            lower, the more it costs.
    """

    name: str
    type: str
    snr_db: float
    drop_db: float
    alone_db: float | None


def operator_costs(
    content: bytes,
    images: Sequence[np.ndarray],
    pixels: bool,
    layers: Collection[str],
    num_images: int = 4,
    num_tried: int = 12,
) -> list[OperatorCost]:
    """Measures which operators of an int8 file cost most.

    All are ranked by how far the signal-to-noise ratio drops over them. For the
    first ones, all others are then put back in float, one at a time.

    Args:
        content: bytes of a float32 `.tflite` of one size.
        images: see `quantize.quantize`.
        pixels: see `quantize.quantize`.
        layers: names of the model's layers.
        num_images: int > 0. Images of these that are compared.
        num_tried: int. Operators that are tried alone.

    Returns:
        list of `OperatorCost`, the costliest first.
    """
    content, ranges = prepare(content, _INT8, images)
    graph = Graph(content)
    shown = images[:num_images]
    taken = [x.astype("uint8") for x in shown] if pixels else shown
    scores = _scores(graph)

    def ratios(in_float=(), wanted=None):
        made = quantize_prepared(content, _INT8, ranges, pixels, in_float)
        pairs = zip(
            _named(content, shown, wanted),
            _named(made, taken, wanted),
            strict=True,
        )
        return _ratios(pairs)

    whole = ratios()
    short = operator_labels(content, layers)
    rows = []
    for operator in graph.operators:
        tensor = graph.graph.tensors[operator.output].name.decode()
        if tensor not in whole:
            continue
        before = [
            whole[name]
            for i in operator.inputs
            if (name := graph.graph.tensors[i].name.decode()) in whole
        ]
        drop = min(before, default=_EXACT_DB) - whole[tensor]
        rows.append((drop, tensor, operator.name))
    rows.sort(key=lambda row: -row[0])
    found = []
    for i, (drop, tensor, kind) in enumerate(rows):
        alone = None
        if i < num_tried:
            others = [name for name in short if name != tensor]
            alone = ratios(others, (scores,))[scores]
        found.append(
            OperatorCost(short[tensor], kind, whole[tensor], drop, alone)
        )
    return sorted(
        found, key=lambda cost: (cost.alone_db is None, cost.alone_db or 0.0)
    )


def operator_labels(content: bytes, layers: Collection[str]) -> dict[str, str]:
    """Returns the output tensor of each operator -> its name for readers.

    Args:
        content: bytes of a `.tflite`.
        layers: names of the model's layers.
    """
    return {
        name: _label(name, layers) for name in tensor_names(content).values()
    }


def select(labels: dict[str, str], wanted: Sequence[str]) -> list[str]:
    """Returns the tensors of operators, or of all those of a layer.

    Args:
        labels: result of `operator_labels`.
        wanted: names of operators or layers.

    Raises:
        ValueError: no operator has such a name.
    """
    found = []
    for name in wanted:
        own = [
            tensor
            for tensor, label in labels.items()
            if f"/{name}/" in f"/{label}/"
        ]
        if not own:
            raise InputError(
                "`int8_in_float` must hold names of operators or layers; "
                "--explain-int8 lists them. Received: "
                f"{name!r}"
            )
        found += own
    return found


def _label(tensor, layers):
    """Returns `layer/operator` of a tensor such as `net_1/a_1/Relu;net_1/b`."""
    *path, last = tensor.partition(";")[0].split("/")
    names = []
    for part in path:
        # Tracing appends a number to each scope.
        for name in (re.sub(r"_\d+$", "", part), part):
            if name in layers:
                names.append(name)
                break
    return "/".join([*names, last])


def _scores(graph):
    """Returns the name of the last float map of the graph."""
    tensors = graph.graph.tensors
    maps = [
        o.output
        for o in graph.operators
        if tensors[o.output].type == schema.TensorType.FLOAT32
        and len(tensors[o.output].shape) == 4
    ]
    return tensors[maps[-1]].name.decode()


def _named(content, images, wanted):
    """Yields the results of operators as floats, by name, for each image.

    Args:
        content: bytes of a `.tflite`.
        images: see `run_with_values`.
        wanted: names; `None` for all.
    """
    (graph,) = unpacked(content).subgraphs
    for values in run_with_values(content, images):
        found = {}
        for index, array in values:
            tensor: Any = graph.tensors[index]
            name = tensor.name.decode()
            scales = tensor.quantization and tensor.quantization.scale
            if wanted is not None and name not in wanted:
                continue
            if scales is not None and len(scales) == 1:
                zero = tensor.quantization.zeroPoint[0]
                array = (array.astype("float32") - zero) * scales[0]
            elif array.dtype != np.float32:
                continue
            found[name] = array
        yield found


def _ratios(pairs):
    """Returns name -> signal-to-noise ratio over all images, in dB.

    Args:
        pairs: iterable of exact and of rounded results by name.
    """
    signal: Counter[str] = Counter()
    noise: Counter[str] = Counter()
    for exact, rounded in pairs:
        for name in exact.keys() & rounded.keys():
            a, b = exact[name], rounded[name]
            if a.shape == b.shape:
                signal[name] += float(np.square(a).sum())
                noise[name] += float(np.square(a - b).sum())
    return {
        name: min(
            10 * math.log10(max(signal[name], 1e-30) / noise[name]), _EXACT_DB
        )
        if noise[name] > 0
        else _EXACT_DB
        for name in signal
    }
