"""HasContext: a head that begins with a context module of choice."""

import types
from typing import Any

import keras

from keras_aspp.layers.aspp import ASPP
from keras_aspp.layers.batch_norm import normalization
from keras_aspp.layers.cascade import AtrousCascade
from keras_aspp.layers.checks import check_atrous_rates
from keras_aspp.layers.context import ContextLayer
from keras_aspp.layers.dappm import DAPPM
from keras_aspp.layers.dense_prediction_cell import (
    CITYSCAPES_RATES,
    DensePredictionCell,
)
from keras_aspp.layers.dilated_reparam import DilatedReparamBlock
from keras_aspp.layers.rewritable import as_lists
from keras_aspp.models.head import HeadBuilder
from keras_aspp.models.rates import offsets_of
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import ContextName, Rate

# Name -> layer, its arguments, and the arguments of the head that it takes.
_ASPP_LIKE = ("separable", "image_pooling")
_MODULES = {
    "aspp": (ASPP, {}, _ASPP_LIKE),
    "ksac": (ASPP, {"shared": True, "fusion": "linear_sum"}, _ASPP_LIKE),
    "ksac_concat": (ASPP, {"shared": True}, _ASPP_LIKE),
    "wasp": (AtrousCascade, {}, _ASPP_LIKE),
    "d_linknet": (
        AtrousCascade,
        {"fusion": "sum", "image_pooling": False},
        ("separable",),
    ),
    "dappm": (DAPPM, {}, ()),
    "pappm": (DAPPM, {"parallel": True}, ()),
    "dpc": (DensePredictionCell, {}, ()),
}
# DeepLabV3, section 4.1: 6, 12, 18 at output stride 16, doubled at 8.
_ASPP_PX = (96, 192, 288)
_OFFSETS_PX = {
    "aspp": _ASPP_PX,
    "ksac": _ASPP_PX,
    "ksac_concat": _ASPP_PX,
    # As those of ASPP, the largest first.
    "wasp": _ASPP_PX[::-1],
    # 1, 2, 4, 8 at stride 32.
    "d_linknet": (32, 64, 128, 256),
    # Pool strides 2, 4, 8 at output stride 16. Published at 64, for images
    # of 1024 pixels and more.
    "dappm": (32, 64, 128),
    "pappm": (32, 64, 128),
    "dpc": offsets_of(CITYSCAPES_RATES, 16),
    # One rate, which multiplies those of all its branches.
    "dilated_reparam": (16,),
    "none": (),
}


class HasContext:
    """Mixin for a `Segmenter` whose head begins with a context module.

    Its constructor has the arguments `context`, `aspp_filters`,
    `separable` and `image_pooling`; `context` goes through `as_context`.
    """

    def branch_offsets_px(
        self, head: types.SimpleNamespace
    ) -> tuple[Rate, ...]:
        context = getattr(head, "context", "aspp")
        return _OFFSETS_PX[context] if isinstance(context, str) else ()

    def build_context(
        self,
        x: keras.KerasTensor,
        builder: HeadBuilder,
        head: types.SimpleNamespace,
        normalize: bool = False,
    ) -> keras.KerasTensor:
        """Applies the context module to a feature map, dropout included.

        With `normalize`, a 1x1 convolution with batch norm follows a module
        that ends without one. For a classifier: a sum of branches is larger
        than what other modules give, and its first steps grow with the square.
        """
        if head.context == "none":
            return builder.drop(x)
        if head.context == "dilated_reparam":
            return self._build_large_kernel(x, builder, head)
        layer = self._context_layer(builder, head)
        x = layer(x)
        plain = isinstance(layer, ContextLayer) and not layer.normalized
        if normalize and plain:
            x = builder.conv(x, layer.filters, 1, name="projection")
        return x

    def _build_large_kernel(self, x, builder, head):
        # Layers of the model itself, so that they can be merged. The paper
        # normalizes the sum of the branches, too.
        (rate,) = builder.atrous_rates
        x = DilatedReparamBlock(
            atrous_rate=rate, name="context", **builder.common
        )(x)
        norm = normalization(
            builder.batch_norm,
            builder.batch_norm_momentum,
            builder.batch_norm_epsilon,
            dtype=builder.dtype,
            name="norm",
        )
        x = builder.conv(norm(x), head.aspp_filters, 1, name="projection")
        return builder.drop(x)

    def _context_layer(self, builder, head):
        if not isinstance(head.context, str):
            return _rebuilt(_layer_of(head.context), builder.atrous_rates)
        layer_type, arguments, taken = _MODULES[head.context]
        return layer_type(
            **{
                "filters": head.aspp_filters,
                layer_type.rates_argument: builder.atrous_rates,
                "dropout": builder.dropout,
                "name": "aspp" if head.context == "aspp" else "context",
                **{name: getattr(head, name) for name in taken},
                **arguments,
                **builder.common,
            }
        )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        if config["context"] == "aspp":
            # Earlier versions load the file, too.
            del config["context"]
        return config

    def _dilated_rates(self, config):
        # Those of a module of pools are strides.
        if _layer_type(config["context"]).rates_argument == "atrous_rates":
            return super()._dilated_rates(config)
        return ()

    def _resolve_rates(self, config, head):
        if isinstance(head.context, str):
            rates = super()._resolve_rates(config, head)
            if head.context == "dilated_reparam" and len(rates) != 1:
                raise InputError(
                    "The context 'dilated_reparam' has one atrous rate. "
                    f"Received: atrous_rates={rates}"
                )
            return rates
        layer = _layer_of(head.context)
        own = _rates_of(layer)
        if config["atrous_rates"] == "auto":
            return own
        rates = check_atrous_rates(config["atrous_rates"], allow_empty=True)
        if rates and not own:
            raise InputError(
                f"The context {type(layer).__name__} has no atrous rates; "
                "leave `atrous_rates` at 'auto'. "
                f"Received: atrous_rates={rates}"
            )
        if not isinstance(layer, ContextLayer) and len(rates) > 1:
            raise InputError(
                f"The context {type(layer).__name__} has one atrous rate. "
                f"Received: atrous_rates={rates}"
            )
        return rates


def as_context(
    context: ContextName | keras.layers.Layer | dict[str, Any],
) -> str | dict[str, Any]:
    """Returns a context module as plain values.

    Args:
        context: a name, a layer, or the serialized form of a layer.

    Raises:
        ValueError: there is no such name.
    """
    if isinstance(context, keras.layers.Layer):
        # Keras would track a layer among the arguments as part of the model.
        return as_lists(keras.saving.serialize_keras_object(context))
    if not isinstance(context, dict) and context not in _OFFSETS_PX:
        raise InputError(
            f"`context` must be one of {tuple(_OFFSETS_PX)}, or a Keras layer "
            f"in Python. Received: context={context!r}"
        )
    return context


def _layer_type(context):
    """Returns the class of a context, `ContextLayer` for any other layer."""
    if isinstance(context, str):
        return _MODULES[context][0] if context in _MODULES else ContextLayer
    layer = _layer_of(context)
    return type(layer) if isinstance(layer, ContextLayer) else ContextLayer


def _layer_of(context):
    """Creates the layer of a serialized context, without weights."""
    return keras.saving.deserialize_keras_object(context)


def _rates_of(layer):
    """Returns the distances of a context layer, empty without any."""
    if isinstance(layer, ContextLayer):
        return getattr(layer, layer.rates_argument)
    rate = getattr(layer, "atrous_rate", None)
    return () if rate is None else (rate,)


def _rebuilt(layer, rates):
    """Copies a layer, without weights, with the rates and the name here.

    An automatic name would differ between two models of one process, whose
    weights are then not found.
    """
    if isinstance(layer, ContextLayer):
        return layer.with_rates(rates, name="context")
    config = {**layer.get_config(), "name": "context"}
    if rates:
        (config["atrous_rate"],) = rates
    return type(layer).from_config(config)
