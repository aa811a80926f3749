"""QuantizeAware: a model with the rounding of its int8 export, for training.

Weights are those of the original model, so training this form tunes it.
"""

from __future__ import annotations

import collections
import functools
import inspect
import logging
import types
from typing import Any

import keras
from keras import ops

from keras_aspp.layers import (
    BackgroundLogit,
    BilinearResize,
    ClassThresholds,
    DilatedReparamBlock,
    ImagePooling,
    SkipFusion,
    rewritable,
)
from keras_aspp.layers.fake_quantize import (
    ActivationQuantizer,
    fake_quantize_kernel,
    nudged_range,
)
from keras_aspp.layers.rewritable import Trim
from keras_aspp.models.auxiliary import logits_of
from keras_aspp.models.fold import (
    FOLDED_KERNELS,
    absorbs_batch_norm,
    has_lora,
    is_batch_norm,
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

_log = logging.getLogger(__name__)

# Exact types: a subclass may compute something else, and runs whole.
_KERNEL_LAYERS = (
    *FOLDED_KERNELS,
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
    to fine-tune `model`, which stays what it is. Save `model`, not this form.

    Exports equalize channels before they round, which this form does not: the
    rounding of their kernels differs from the one that training sees.

    Layers that cannot be rewritten run whole, without rounding inside; a log
    line names them.

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

    Attributes:
        in_float: list of the paths of layers that run whole and have weights.

    Raises:
        TypeError: `model` is not a functional Keras model.
        ValueError: `model` computes in another dtype than float32, or has a
            layer that must be merged first.

    Example:
    >>> inputs = keras.Input((None, None, 3), name="image")
    >>> x = keras.layers.Conv2D(4, 3, use_bias=False)(inputs)
    >>> x = keras.layers.BatchNormalization(name="norm")(x)
    >>> model = keras.Model(inputs, keras.layers.ReLU(name="relu")(x))
    >>> aware = QuantizeAware(model)
    >>> list(aware.ranges())
    ['image', 'relu']

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
        self.in_float = self._plan.in_float
        if self.in_float and bits is not None:
            _log.info(
                "Layers whose weights are not rounded: %s",
                ", ".join(self.in_float),
            )
        if hasattr(model, "preprocess"):
            self.preprocess = model.preprocess
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self._plan(inputs, training)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Refuses: the trained model is `source`."""
        raise InputError(
            "QuantizeAware has no file of its own; save the model that it was "
            f"made from. Received: {self.name}.save(...)"
        )

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
        in_float: list of paths, see `QuantizeAware`.
    """

    def __init__(self, model, bits, observe_steps):
        self.bits, self.observe_steps = bits, observe_steps
        self.quantizers, self.in_float = {}, []
        self._calls = []
        # Symbolic tensors by id; an id is one tensor's while that is alive.
        self._inputs = keras.tree.map_structure(
            lambda t: keras.Input(
                batch_shape=t.shape, dtype=t.dtype, name=t.name
            ),
            model.input,
        )
        # Brings what is given to order, dtype and rank as `model` does.
        self._read = keras.Model(self._inputs, self._inputs)
        tracer = Tracer(
            {
                ImagePooling: _pool_and_broadcast,
                SkipFusion: _fuse_skip,
                _BroadcastLike: None,
                _Projection: None,
            },
            live=True,
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

    def __call__(self, inputs, training):
        found = {
            id(symbol): self._rounded(symbol, x, training)
            for symbol, x in zip(
                keras.tree.flatten(self._inputs),
                keras.tree.flatten(self._read(inputs)),
                strict=True,
            )
        }

        def actual(x):
            return found[id(x)] if isinstance(x, keras.KerasTensor) else x

        for step, run, observes in self._calls:
            args, kwargs = keras.tree.map_structure(
                actual, (step.arguments, dict(step.keywords))
            )
            # Explicitly: a stateless call has no context to take it from. As
            # in Keras, the phase of the call precedes that of the graph.
            given = kwargs.pop("training", None)
            if _has_phases(run):
                kwargs["training"] = given if training is None else training
            outputs = keras.tree.flatten(run(*args, **kwargs))
            for symbol, y in zip(step.outputs, outputs, strict=True):
                found[id(symbol)] = self._rounded(symbol, y, training, observes)
        return keras.tree.pack_sequence_as(
            self._structure, [found[id(t)] for t in self._outputs]
        )

    def _rounded(self, symbol, x, training, observes=True):
        # `None` observes nothing: the values have been rounded before.
        quantizer = self._of_tensor.get(id(symbol))
        if quantizer is None or observes is None:
            return x
        return quantizer(x, training=training, observe=observes)

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
        elif _shifts(operation):
            # Training learns without the shift, which its range would clip.
            observes = None
        elif _is_whole(step):
            self.in_float.append(step.path)
            if _has_batch_norm(operation):
                run = functools.partial(operation, training=False)
        if isinstance(operation, _Projection):
            run = functools.partial(operation, bits=self.bits)
        if _has_kernel(operation):
            run = self._kernel(graph, step, function)
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

    def _kernel(self, graph, step, function):
        between = inside = None
        if isinstance(step.operation, keras.layers.SeparableConv2D):
            between = self._quantizer(f"{step.path}/depthwise")
        if function not in ("linear", *_FUSED):
            inside = self._quantizer(f"{step.path}/linear")
        norm = graph.norm_of.get(id(step))
        return _Kernel(step, norm, self.bits, between, inside)


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
                and is_batch_norm(reader.operation)
                and absorbs_batch_norm(step.operation)
                and _has_kernel(step.operation)
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
        if _has_kernel(step.operation) and _adds_constant(reader):
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

    Linear copies of the layer, one for each of its kernels, compute with the
    rounded kernels; their own weights are not used.
    """

    def __init__(self, step, norm, bits, between, inside):
        layer = self._layer = step.operation
        self._norm, self._bits = norm, bits
        self._between, self._inside = between, inside
        self._activation = layer.activation
        self._kernel = FOLDED_KERNELS.get(type(layer), "kernel")
        self._copies = {}  # name of the kernel -> linear copy
        shape = step.inputs[0].shape
        for name, copy in _linear_copies(layer).items():
            copy.trainable = True
            copy.build(shape)
            shape = copy.compute_output_shape(shape)
            self._copies[name] = copy

    def then(self, activation):
        """Replaces the activation; returns the kernel."""
        self._activation = activation
        return self

    def __call__(self, x, training=None, **kwargs):
        kernels, bias = self._values()
        y = x
        for name, copy in self._copies.items():
            values = [kernels[name]]
            if copy.use_bias:
                zeros = ops.zeros(copy.bias.shape)
                values.append(zeros if bias is None else bias)
            y, _ = copy.stateless_call(values, [], y)
            if not copy.use_bias and self._between is not None:
                y = self._between(y, training=training)
        if self._inside is not None:
            y = self._inside(y, training=training)
        return self._activation(y) if self._activation else y

    def _values(self):
        """Returns the kernels by name, and the bias or `None`."""
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
        return values, bias


def _linear_copies(layer):
    """Returns a layer without activation for each kernel, by its name."""
    config = {**layer.get_config(), "use_bias": True, "activation": None}
    if not isinstance(layer, keras.layers.SeparableConv2D):
        return {"kernel": type(layer).from_config(config)}
    arguments = {
        name: config[name]
        for name in (
            "kernel_size",
            "strides",
            "padding",
            "dilation_rate",
            "depth_multiplier",
            "data_format",
            "pads",
            "anchor",
            "original",
        )
        if name in config
    }
    ours = isinstance(layer, rewritable.SeparableConv2D)
    depthwise = (rewritable if ours else keras.layers).DepthwiseConv2D
    return {
        "depthwise_kernel": depthwise(
            **arguments, use_bias=False, dtype="float32"
        ),
        "pointwise_kernel": keras.layers.Conv2D(
            layer.filters,
            1,
            data_format=layer.data_format,
            dtype="float32",
        ),
    }


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


class _Projection(keras.layers.Layer):
    """Part of the 1x1 convolution of a `SkipFusion`, batch norm folded in.

    Args:
        fusion: `SkipFusion`.
        channels: slice of the input channels of its kernel.
        adds_bias: bool, for one of the parts.
    """

    def __init__(self, fusion, channels, adds_bias, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        # A function, because Keras would track the layer as part of this one.
        self._fusion = lambda: fusion
        self._channels, self._adds_bias = channels, adds_bias

    def call(self, inputs, bits=None):
        fusion = self._fusion()
        kernel = ops.convert_to_tensor(fusion.conv.kernel)[:, :, self._channels]
        bias = None
        if fusion.conv.use_bias:
            bias = ops.convert_to_tensor(fusion.conv.bias)
        if _folds(fusion.norm):
            scale, shift = scale_and_shift(fusion.norm, ops.convert_to_tensor)
            kernel = kernel * scale
            bias = shift if bias is None else bias * scale + shift
        if bits is not None:
            kernel = fake_quantize_kernel(kernel, (0, 1, 2), bits)
        x = ops.conv(inputs, kernel, data_format="channels_last")
        return x + bias if self._adds_bias and bias is not None else x

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self._fusion().filters)


def _fuse_skip(layer, inputs, training=None):
    coarse, fine = inputs
    split = coarse.shape[-1]
    x = _Projection(layer, slice(split), False, name="coarse")(coarse)
    x = layer.resize(x, reference=fine)
    x = x + _Projection(layer, slice(split, None), True, name="fine")(fine)
    if layer.norm is not None and not _folds(layer.norm):
        x = layer.norm(x, training=training)
    return layer.activation(x)


def _folds(norm):
    return isinstance(norm, keras.layers.BatchNormalization)


def _has_batch_norm(layer):
    return any(
        isinstance(part, keras.layers.BatchNormalization)
        for part in sublayers(layer)
    )


def _is_whole(step):
    """Returns True for a layer with weights that was not opened or rounded."""
    layer = step.operation
    if not isinstance(layer, keras.layers.Layer) or _has_kernel(layer):
        return False
    foreign = step.opaque or not type(layer).__module__.startswith("keras.")
    return any(foreign or "kernel" in weight.name for weight in layer.weights)


def _shifts(operation):
    """Returns True for logits that inference shifts and training does not."""
    return (
        isinstance(operation, BackgroundLogit) and operation.threshold != 0.5
    ) or (
        isinstance(operation, ClassThresholds)
        and set(operation.thresholds) != {0.5}
    )


def _has_phases(run):
    """Returns True for a function or layer that takes `training`."""
    if isinstance(run, functools.partial):
        return False  # it is given already
    call = run.call if isinstance(run, keras.layers.Layer) else run
    return "training" in inspect.signature(call).parameters


def _identity(x, **kwargs):
    return x


def _is_float(tensor):
    return str(tensor.dtype).startswith("float")


def _carries(operation):
    if isinstance(operation, (BackgroundLogit, ClassThresholds)):
        return not _shifts(operation)
    return (
        isinstance(operation, (*_CARRIES, _BroadcastLike))
        or type(operation).__name__ in _CARRYING_OPS
    )


def _interpolates(operation):
    return (
        isinstance(operation, _INTERPOLATES)
        or type(operation).__name__ in _INTERPOLATING_OPS
    )


def _has_kernel(operation):
    """Returns True for a layer whose kernel is rounded."""
    return type(operation) in _KERNEL_LAYERS and not has_lora(operation)


def _fuses(operation):
    """Returns True if TFLite clips the output of an operator at no cost."""
    return (
        _has_kernel(operation)
        or isinstance(
            operation,
            (
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
    # Layers that run whole compute more than the activation they name.
    kernel = _has_kernel(operation)
    if kernel or isinstance(operation, keras.layers.Activation):
        function = operation.activation
        if function is not None:
            return getattr(function, "__name__", "")
    if kernel:
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

    def prepare_quantized(
        self, observe_steps: int | None = None
    ) -> QuantizeAware:
        """Builds the quantized form, which `is_quantized = True` uses.

        Args:
            observe_steps: see `QuantizeAware`.

        Returns:
            The quantized form.
        """
        source = self._auxiliary.model if self._auxiliary else self
        # A namespace, so that Keras does not track the form.
        self._quantized = types.SimpleNamespace(
            form=QuantizeAware(source, observe_steps=observe_steps)
        )
        return self._quantized.form

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
        return logits_of(self, inputs, outputs, training)
