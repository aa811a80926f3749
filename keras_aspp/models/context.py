"""HasContext: a head that begins with a context module of choice."""

import types
from typing import Any

import keras

from keras_aspp import layers
from keras_aspp.context_modules import MODULES, ContextName, modules_text
from keras_aspp.layers.batch_norm import normalization
from keras_aspp.layers.checks import check_atrous_rates
from keras_aspp.layers.context import ContextLayer
from keras_aspp.layers.dilated_reparam import DilatedReparamBlock
from keras_aspp.layers.rewritable import as_lists
from keras_aspp.models.head import HeadBuilder
from keras_aspp.utils.docstrings import insert_text
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import Rate

# In the docstring of an architecture, the place of the names and of what holds
# for all of them.
CONTEXT_MODULES = "{context_modules}"
_OF_ALL = (
    "docs/atrous.md compares them. Or a Keras layer, of which an untrained "
    "copy is used as configured, batch norm included; `atrous_rates` are those "
    "of a `ContextLayer`, or the one `atrous_rate` that a layer has. "
    "`atrous_rates` are the strides of the pools where the module has pools "
    "instead of rates; `separable` and `image_pooling` apply where the module "
    'has such parts. Defaults to `"aspp"`.'
)


class HasContext:
    """Mixin for a `Segmenter` whose head begins with a context module.

    Its constructor has the arguments `context`, `aspp_filters`,
    `separable` and `image_pooling`; `context` goes through `as_context`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = modules_text('"')
        insert_text(cls, CONTEXT_MODULES, f"{names} {_OF_ALL}")

    def branch_offsets_px(
        self, head: types.SimpleNamespace
    ) -> tuple[Rate, ...]:
        context = getattr(head, "context", "aspp")
        return MODULES[context].offsets_px if isinstance(context, str) else ()

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
        module = MODULES[head.context]
        layer_type = getattr(layers, module.layer)
        return layer_type(
            **{
                "filters": head.aspp_filters,
                layer_type.rates_argument: builder.atrous_rates,
                "dropout": builder.dropout,
                "name": "aspp" if head.context == "aspp" else "context",
                **{name: getattr(head, name) for name in module.head_arguments},
                **module.arguments,
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
        ValueError: the name is unknown.
    """
    if isinstance(context, keras.layers.Layer):
        # Keras would track a layer among the arguments as part of the model.
        return as_lists(keras.saving.serialize_keras_object(context))
    if not isinstance(context, dict) and context not in MODULES:
        raise InputError(
            f"`context` must be one of {tuple(MODULES)}, or a Keras layer "
            f"in Python. Received: context={context!r}"
        )
    return context


def context_with_dtype(
    context: dict[str, Any], dtype: str | keras.DTypePolicy
) -> dict[str, Any]:
    """Returns the serialized form of a layer in another dtype policy.

    A layer without a dtype in its configuration stays as it is.
    """
    layer = _layer_of(context)
    config = layer.get_config()
    if "dtype" not in config:
        return context
    return as_context(type(layer).from_config({**config, "dtype": dtype}))


def _layer_type(context):
    """Returns the class of a context, `ContextLayer` for any other layer."""
    if isinstance(context, str):
        found = getattr(layers, MODULES[context].layer or "", None)
    else:
        found = type(_layer_of(context))
    is_context = found is not None and issubclass(found, ContextLayer)
    return found if is_context else ContextLayer


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
