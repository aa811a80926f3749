"""QuantizeAware: a model with the rounding of its int8 export, for training.

Weights are those of the original model, so training this form tunes it.
"""

from __future__ import annotations

import collections
import functools
import types
from typing import Any

import keras
from keras import ops

from keras_aspp.layers import BilinearResize, DilatedReparamBlock, ImagePooling
from keras_aspp.layers.fake_quantize import (
    ActivationQuantizer,
    fake_quantize_kernel,
    nudged_range,
)
from keras_aspp.layers.rewritable import Trim
from keras_aspp.models.auxiliary import LOGITS
from keras_aspp.models.fold import (
    FOLDED_KERNELS,
    absorbs_batch_norm,
    scale_and_shift,
)
from keras_aspp.models.steps import Step, Tracer
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.keras_graph import (
    calls_forgotten,
    check_functional,
    sublayers,
)
from keras_aspp.utils.types import Tensor

_KERNEL_LAYERS = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.Dense,
)
# TFLite gives these outputs ranges of their own, whatever occurs.
_FIXED = {
    "sigmoid": (0.0, 255 / 256),
    "softmax": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
}
# Clipping that TFLite's convolutions, additions and products do themselves.
_FUSED = ("relu", "relu6")
# The output has the values of the input, and so its range.
_CARRIES = (
    keras.layers.InputLayer,
    keras.layers.Dropout,
    keras.layers.SpatialDropout2D,
    keras.layers.Identity,
    keras.layers.Flatten,
    keras.layers.Reshape,
    keras.layers.Permute,
    keras.layers.MaxPooling2D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.ZeroPadding2D,
    keras.layers.Cropping2D,
    Trim,
)
_CARRYING_OPS = {
    "BroadcastTo",
    "Cast",
    "ExpandDims",
    "Flip",
    "GetItem",
    "Identity",
    "MaxPool",
    "Pad",
    "Reshape",
    "Split",
    "Squeeze",
    "StopGradient",
    "Transpose",
}
# The output lies between values of the input: rounded again, to its range.
_INTERPOLATES = (
    BilinearResize,
    keras.layers.AveragePooling2D,
    keras.layers.Resizing,
    keras.layers.UpSampling2D,
)
_INTERPOLATING_OPS = {"AveragePool", "Resize"}
_FUSING_OPS = {"Add", "Subtract", "Multiply"}


class QuantizeAware(keras.Model):
    """Computes a functional model as its int8 file does, differentiably.

    The graph is rewritten down to single layers and operations, those of
    nested models included. Kernels, with batch norm folded in, and activations
    are rounded where TFLite's int8 rounds; rounding has a straight-through
    gradient. The weights are shared with `model`: compile and fit this form
    to fine-tune `model`, which stays what it is.

    Batch norm uses its moving statistics, which do not change: start from a
    trained model. Scale and offset are trained, unless they are frozen.

    Args:
        model: functional `keras.Model` that computes in float32, channels
            last.
        bits: int > 1, or `None` to round nothing. Defaults to 8.
        observe_steps: int > 0, batches after which ranges of activations stay,
            or `None` for never. Defaults to `None`.

    Input shape:
        That of `model`.

    Output shape:
        That of `model`.

    Raises:
        TypeError: `model` is not a functional Keras model.
        ValueError: `model` computes in another dtype than float32, or has a
            layer that must be merged first.

    Example:
    >>> inputs = keras.Input((None, None, 3))
    >>> x = keras.layers.Conv2D(4, 3, use_bias=False)(inputs)
    >>> x = keras.layers.BatchNormalization(name="norm")(x)
    >>> model = keras.Model(inputs, keras.layers.ReLU(name="relu")(x))
    >>> aware = QuantizeAware(model)
    >>> list(aware.ranges())
    ['keras_tensor', 'relu']

    Reference:
        [Jacob et al., 2018](https://arxiv.org/abs/1712.05877), section 3.
        Differs from it in: batch norm is folded with moving statistics from
        the beginning.
    """

    def __init__(
        self,
        model: keras.Model,
        bits: int | None = 8,
        observe_steps: int | None = None,
    ) -> None:
        check_functional(model)
        _check_layers(model)
        super().__init__(name=f"{model.name}_quantize_aware")
        # Tracked, so that the weights of this model are those of that one.
        self.source = model
        # Not tracked: Keras takes no symbolic tensors apart.
        self._plan = _Plan(model, bits, observe_steps)
        self.quantizers = list(self._plan.quantizers.values())
        if hasattr(model, "preprocess"):
            self.preprocess = model.preprocess
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        # Layers take `training` from the context of this call.
        return self._plan(inputs)

    def ranges(self) -> dict[str, dict[str, float]]:
        """Returns the range of each activation, by the layer's path.

        `low` and `high` are the smallest and largest value, `scale` and
        `zero_point` those of int8: `value = scale * (q - zero_point)`.
        Activations that no batch has passed yet have the scale 0.
        """
        return {
            path: _range(quantizer)
            for path, quantizer in self._plan.quantizers.items()
        }


def _range(quantizer):
    low, high, scale = (
        float(ops.convert_to_numpy(n))
        for n in nudged_range(quantizer.low, quantizer.high, quantizer.bits)
    )
    if low == high or scale <= 1e-8:
        return {"low": low, "high": high, "scale": 0.0, "zero_point": 0}
    zero_point = -(2 ** (quantizer.bits - 1)) - round(low / scale)
    return {"low": low, "high": high, "scale": scale, "zero_point": zero_point}


def _check_layers(model):
    for layer in sublayers(model):
        policy = layer.dtype_policy
        if policy.compute_dtype != "float32" or getattr(
            policy, "quantization_mode", None
        ):
            raise InputError(
                "Quantization-aware training computes in float32, whose "
                "rounding it would lose otherwise; build the model with "
                "dtype='float32'. Received: a layer "
                f"`{layer.name}` of dtype={policy.name!r}"
            )
        if isinstance(layer, DilatedReparamBlock) and not layer.merged:
            raise InputError(
                "Quantization-aware training needs the one kernel that "
                "`fold_batch_norm` merges the branches of a "
                f"DilatedReparamBlock to. Received: layer `{layer.name}`"
            )


class _Plan:
    """Calls of a model in the order of computation, with their quantizers.

    Attributes:
        quantizers: dict, path -> `ActivationQuantizer`.
    """

    def __init__(self, model, bits, observe_steps):
        self.bits, self.observe_steps = bits, observe_steps
        self.quantizers = {}
        self._calls = []
        # Symbolic tensors by id; an id is one tensor's while that is alive.
        self._inputs = keras.tree.map_structure(
            lambda t: keras.Input(
                batch_shape=t.shape, dtype=t.dtype, name=t.name
            ),
            model.input,
        )
        tracer = Tracer(
            {ImagePooling: _pool_and_broadcast, _BroadcastLike: None}
        )
        with calls_forgotten(model):
            outputs = tracer.open(model, (self._inputs,), {}, "")
        self._outputs, self._structure = outputs, model.output
        self._kept = tracer
        graph = _Graph(
            [step for step in tracer.steps if not step.opened], outputs
        )
        self._of_tensor = {
            id(t): self._quantizer(t.name)
            for t in keras.tree.flatten(self._inputs)
            if _is_float(t)
        }
        for step in graph.steps:
            self._add(graph, step)

    def __call__(self, inputs):
        found = {
            id(symbol): self._rounded(symbol, x)
            for symbol, x in zip(
                keras.tree.flatten(self._inputs),
                keras.tree.flatten(inputs),
                strict=True,
            )
        }

        def actual(x):
            return found[id(x)] if isinstance(x, keras.KerasTensor) else x

        for step, run, observes in self._calls:
            args, kwargs = keras.tree.map_structure(
                actual, (step.arguments, dict(step.keywords))
            )
            # Layers take it from the call of the whole model.
            kwargs.pop("training", None)
            outputs = keras.tree.flatten(run(*args, **kwargs))
            for symbol, y in zip(step.outputs, outputs, strict=True):
                found[id(symbol)] = self._rounded(symbol, y, observes)
        return keras.tree.pack_sequence_as(
            self._structure, [found[id(t)] for t in self._outputs]
        )

    def _rounded(self, symbol, x, observes=True):
        # `None` observes nothing: the values have been rounded before.
        quantizer = self._of_tensor.get(id(symbol))
        if quantizer is None or observes is None:
            return x
        return quantizer(x, observe=observes)

    def _quantizer(self, path, fixed=None):
        """Returns a new quantizer, `None` without rounding."""
        if self.bits is None:
            return None
        name, number = path, 2
        while name in self.quantizers:
            name, number = f"{path}_{number}", number + 1
        self.quantizers[name] = ActivationQuantizer(
            self.bits,
            observe_steps=self.observe_steps,
            fixed=fixed,
            name=name.replace("/", "_"),
            dtype="float32",
        )
        return self.quantizers[name]

    def _add(self, graph, step):
        """Appends a call, and the quantizers of its outputs."""
        operation, function = step.operation, _function(step.operation)
        run, observes = operation, True
        if _carries(operation) or _interpolates(operation):
            observes = False if _interpolates(operation) else None
            before = next(
                (self._of_tensor.get(id(t)) for t in step.inputs), None
            )
            self._of_tensor |= {id(t): before for t in step.outputs}
        elif id(step) in graph.folded_norms:
            run = _identity
        elif isinstance(operation, keras.layers.BatchNormalization):
            run = functools.partial(operation, training=False)
        if isinstance(operation, _KERNEL_LAYERS):
            norm = graph.norm_of.get(id(step))
            inside = None
            if function not in ("linear", *_FUSED):
                inside = self._quantizer(f"{step.path}/linear")
            run = _Kernel(operation, step, norm, self.bits, inside)
        if function == "silu":
            gate = self._quantizer(f"{step.path}/sigmoid", _FIXED["sigmoid"])
            silu = _Silu(gate)
            run = run.then(silu) if isinstance(run, _Kernel) else silu
        if observes and len(step.outputs) == 1:
            (output,) = step.outputs
            if graph.is_rounded(step):
                self._of_tensor[id(output)] = self._quantizer(
                    step.path, _FIXED.get(function)
                )
        self._calls.append((step, run, observes))


class _Graph:
    """Readers and folded batch norms of steps.

    Attributes:
        steps: list of `Step`.
        norm_of: dict, id of a convolution's step -> batch norm folded into it.
        folded_norms: set, ids of the steps of such batch norms.
    """

    def __init__(self, steps: list[Step], outputs: Any) -> None:
        self.steps = steps
        self._readers = collections.defaultdict(list)
        for step in steps:
            for tensor in step.inputs:
                self._readers[id(tensor)].append(step)
        for tensor in outputs:
            self._readers[id(tensor)].append(None)
        self.norm_of, self.folded_norms = {}, set()
        calls = collections.Counter(id(step.operation) for step in steps)
        for step in steps:
            reader = self.reader(step)
            if (
                reader is not None
                and isinstance(
                    reader.operation, keras.layers.BatchNormalization
                )
                and absorbs_batch_norm(step.operation)
                and isinstance(step.operation, _KERNEL_LAYERS)
                and reader.operation.axis in (-1, 3)
                and calls[id(step.operation)]
                == calls[id(reader.operation)]
                == 1
            ):
                self.norm_of[id(step)] = reader.operation
                self.folded_norms.add(id(reader))

    def reader(self, step: Step) -> Step | None:
        """Returns the step that alone reads the one output of a step."""
        if len(step.outputs) != 1:
            return None
        readers = self._readers[id(step.outputs[0])]
        return readers[0] if len(readers) == 1 else None

    def is_rounded(self, step: Step) -> bool:
        """Returns True if TFLite stores the output of a step in int8."""
        if id(step) in self.norm_of or not _is_float(step.outputs[0]):
            return False
        reader = self.reader(step)
        if reader is None:
            return True
        if _fuses(step.operation) and _function(reader.operation) in _FUSED:
            return False
        if isinstance(step.operation, _KERNEL_LAYERS) and _adds_constant(
            reader
        ):
            return False  # the converter adds it to the bias
        # An output that only a concatenation reads has its range.
        while reader is not None and (
            _carries(reader.operation) or _interpolates(reader.operation)
        ):
            reader = self.reader(reader)
        return (
            reader is None
            or not isinstance(reader.operation, (keras.layers.Concatenate,))
            and type(reader.operation).__name__ != "Concatenate"
        )


class _Kernel:
    """Convolution or dense layer with a rounded kernel, batch norm folded in.

    A linear copy of the layer computes with the rounded kernel; its own
    weights are not used.
    """

    def __init__(self, layer, step, norm, bits, inside):
        self._layer, self._norm, self._bits = layer, norm, bits
        self._inside, self._activation = inside, layer.activation
        self._kernel = next(
            (
                name
                for layer_type, name in FOLDED_KERNELS.items()
                if isinstance(layer, layer_type)
            ),
            "kernel",
        )
        config = {**layer.get_config(), "use_bias": True, "activation": None}
        self._linear = type(layer).from_config(config)
        self._linear.trainable = True
        self._linear.build(step.inputs[0].shape)

    def then(self, activation):
        """Replaces the activation; returns the kernel."""
        self._activation = activation
        return self

    def __call__(self, x, **kwargs):
        layer = self._layer
        values = {w.name: ops.convert_to_tensor(w) for w in layer.weights}
        bias = values.pop("bias", None)
        if self._norm is not None:
            scale, shift = scale_and_shift(self._norm, ops.convert_to_tensor)
            kernel = values[self._kernel]
            by_channel = scale
            if isinstance(layer, keras.layers.DepthwiseConv2D):
                by_channel = ops.reshape(scale, kernel.shape[2:])
            values[self._kernel] = kernel * by_channel
            bias = shift if bias is None else bias * scale + shift
        if self._bits is not None:
            values = {
                name: fake_quantize_kernel(
                    value, _axes(layer, name, value), self._bits
                )
                for name, value in values.items()
            }
        weights = self._linear.trainable_variables
        if bias is None:
            bias = ops.zeros(weights[-1].shape)
        values["bias"] = bias
        y, _ = self._linear.stateless_call(
            [values[w.name] for w in weights], [], x
        )
        if self._inside is not None:
            y = self._inside(y)
        return self._activation(y) if self._activation else y


def _axes(layer, name, kernel):
    """Returns the axes of a kernel that one scale covers."""
    axes = range(len(kernel.shape))
    if name == "depthwise_kernel" or isinstance(
        layer, keras.layers.DepthwiseConv2D
    ):
        return axes[:2]
    if isinstance(layer, keras.layers.Conv2DTranspose):
        return (0, 1, 3)  # (h, w, filters, channels)
    return axes[:-1]


class _Silu:
    """x * sigmoid(x), whose sigmoid TFLite rounds too."""

    def __init__(self, quantizer):
        self._quantizer = quantizer

    def __call__(self, x, **kwargs):
        gate = ops.sigmoid(x)
        return x * (self._quantizer(gate) if self._quantizer else gate)


@keras.saving.register_keras_serializable(package="keras_aspp")
class _BroadcastLike(keras.layers.Layer):
    """Spreads one cell over a map, of a size that only the call knows."""

    def call(self, cell: Tensor, reference: Tensor) -> Tensor:
        shape = ops.shape(reference)
        return ops.broadcast_to(cell, (*shape[:3], cell.shape[-1]))

    def compute_output_shape(
        self, cell_shape: Any, reference_shape: Any
    ) -> Any:
        return (*reference_shape[:3], cell_shape[-1])


def _pool_and_broadcast(layer, inputs, training=None):
    return _BroadcastLike(dtype="float32")(layer.pool(inputs), inputs)


def _identity(x, **kwargs):
    return x


def _is_float(tensor):
    return str(tensor.dtype).startswith("float")


def _carries(operation):
    return (
        isinstance(operation, (*_CARRIES, _BroadcastLike))
        or type(operation).__name__ in _CARRYING_OPS
    )


def _interpolates(operation):
    return (
        isinstance(operation, _INTERPOLATES)
        or type(operation).__name__ in _INTERPOLATING_OPS
    )


def _fuses(operation):
    """Returns True if TFLite clips the output of an operator at no cost."""
    return (
        isinstance(
            operation,
            (
                *_KERNEL_LAYERS,
                keras.layers.BatchNormalization,
                keras.layers.Add,
                keras.layers.Subtract,
                keras.layers.Multiply,
            ),
        )
        or type(operation).__name__ in _FUSING_OPS
    )


def _adds_constant(step):
    return (
        type(step.operation).__name__ in ("Add", "Subtract")
        and len(step.inputs) == 1
    )


def _function(operation):
    """Returns the name of the activation that an operation computes."""
    if isinstance(operation, keras.layers.ReLU):
        plain = not (operation.negative_slope or operation.threshold)
        names = {None: "relu", 6: "relu6"}
        return names.get(operation.max_value, "") if plain else ""
    if isinstance(operation, keras.layers.Softmax):
        return "softmax"
    function = getattr(operation, "activation", None)
    if function is not None:
        return getattr(function, "__name__", "")
    if isinstance(operation, _KERNEL_LAYERS):
        return "linear"
    return type(operation).__name__.lower()


class QuantizedTraining:
    """Mixin of a segmenter that can train as its int8 file computes.

    After `prepare_quantized`, `variables` include the ranges of activations,
    which checkpoints read; `weights`, files and exports do not contain them.
    While `is_quantized` is set, calls of the model round as int8 does.
    """

    is_quantized: bool = False
    _quantized: types.SimpleNamespace | None = None

    def prepare_quantized(self, observe_steps: int | None = None) -> None:
        """Builds the quantized form, which `is_quantized = True` uses.

        Args:
            observe_steps: see `QuantizeAware`.
        """
        source = self._auxiliary.model if self._auxiliary else self
        # A namespace, so that Keras does not track the form.
        self._quantized = types.SimpleNamespace(
            form=QuantizeAware(source, observe_steps=observe_steps)
        )

    def ranges(self) -> dict[str, dict[str, float]]:
        """Returns `QuantizeAware.ranges` of the quantized form."""
        return self._quantized.form.ranges()

    @property
    def variables(self) -> list[keras.Variable]:
        own = super().variables
        if self._quantized is None:
            return own
        quantizers = self._quantized.form.quantizers
        return [*own, *(v for q in quantizers for v in q.variables)]

    def call(
        self,
        inputs: Tensor,
        training: bool | None = None,
        mask: Tensor | None = None,
    ) -> Any:
        if not self.is_quantized:
            return super().call(inputs, training=training, mask=mask)
        outputs = self._quantized.form(inputs, training=training)
        if isinstance(outputs, dict) and not training:
            return outputs[LOGITS]
        return outputs
