"""create_backbone: names -> dense feature extractors."""

from __future__ import annotations

import fnmatch
import functools
import itertools
import os
import warnings
from collections.abc import Mapping

import keras
import numpy as np

from keras_aspp.backbones import efficientnet_lite, torchvision
from keras_aspp.backbones.families import BARE, FAMILIES, Family, parse_name
from keras_aspp.backbones.grids import pair
from keras_aspp.backbones.inflate import with_channels
from keras_aspp.backbones.output_stride import stage_ends, with_output_stride
from keras_aspp.backbones.padding import symmetric_padding
from keras_aspp.backbones.rebuild import (
    check_configuration,
    configuration_of,
    rebuild,
)
from keras_aspp.backbones.state_dict import read_state_dict
from keras_aspp.layers.checks import check_input_shape
from keras_aspp.layers.initializers import correct_depthwise_kernels
from keras_aspp.preprocess import (
    KERAS_CAFFE,
    KERAS_TF,
    RAW,
    TORCHVISION,
    Preprocess,
)
from keras_aspp.utils.archive import check_archive, check_weights_file
from keras_aspp.utils.errors import first_line
from keras_aspp.utils.exceptions import InputError, InputNotFoundError
from keras_aspp.utils.finite import check_weights
from keras_aspp.utils.keras_graph import (
    clone_graph,
    graph_of,
    is_functional,
    nodes_of,
)
from keras_aspp.utils.types import PathLike, Shape

# What the EfficientNetV2 of sizes S, M and L were trained on: x / 128 - 1.
_BY_128 = Preprocess(value_range=(-1.0, 255 / 128 - 1))
_MOBILENET_V3 = "*conv*:conv3/2x16v *:bn0.001 *expanded_conv*:dw3/1*"
for _depth in (16, 19):
    FAMILIES[f"vgg{_depth}"] = Family(
        f"VGG{_depth}", KERAS_CAFFE, stem="*block1_conv1*:conv3/1x64b"
    )
for _depth in (50, 101, 152):
    FAMILIES[f"resnet{_depth}"] = Family(
        f"ResNet{_depth}",
        KERAS_CAFFE,
        features=r"_out$",
        # Where its published file is known (`weights.torchvision.FILES`).
        torchvision_epsilon=1e-5 if _depth < 152 else None,
        stem="*:conv7/2x64bv *:bn1.001e-05",
        torchvision_stem="*conv1_conv*:conv7/2x64v *:bn1e-05",
    )
    FAMILIES[f"resnet{_depth}_v2"] = Family(
        f"ResNet{_depth}V2", KERAS_TF, features=r"_preact_relu$"
    )
for _depth in (121, 169, 201):
    FAMILIES[f"densenet{_depth}"] = Family(
        f"DenseNet{_depth}", TORCHVISION, stem="*:conv7/2x64v *:bn1.001e-05"
    )
for _size in ("small", "large"):
    FAMILIES[f"mobilenet_v3_{_size}"] = Family(
        f"MobileNetV3{_size.title()}",
        KERAS_TF,
        features=r"^expanded_conv.*(_add|_project_bn)$",
        multipliers=("0.75",),
        arguments=BARE,
        torchvision_epsilon=1e-3 if _size == "large" else None,
        # Padded symmetrically: with torchvision's weights, or with none.
        stem=_MOBILENET_V3 if _size == "large" else "",
        torchvision_stem=_MOBILENET_V3 if _size == "large" else "",
    )
for _size in range(8):
    FAMILIES[f"efficientnet_b{_size}"] = Family(
        f"EfficientNetB{_size}",
        TORCHVISION,
        features=r"^block.*(_add|_project_bn)$",
        output=False,
        stem="*stem_conv*:conv3/2x* *:bn* *block1a_dwconv*:dw3/1*",
    )
for _size in ("b0", "b1", "b2", "b3", "s", "m", "l"):
    FAMILIES[f"efficientnet_v2_{_size}"] = Family(
        f"EfficientNetV2{_size.upper()}",
        TORCHVISION if _size.startswith("b") else _BY_128,
        features=r"^block.*(_add|_project_bn|_project_activation)$",
        output=False,
        arguments=BARE,
        stem="*stem_conv*:conv3/2x* *:bn* *block1a_project_conv*:conv3/1x"
        + ("16*" if _size.startswith("b") else "[23]*"),
    )
for _name in efficientnet_lite.SIZES:
    FAMILIES[_name] = Family(
        functools.partial(efficientnet_lite.build, _name),
        efficientnet_lite.PREPROCESS,
        features=r"^blocks_.*(_add|_bn2)$",
        output=False,
        stem="*conv_stem*:conv3/2x32v *:bn0.001 *depthwise_conv*:dw3/1*",
    )
for _size in ("tiny", "small", "base", "large", "xlarge"):
    FAMILIES[f"convnext_{_size}"] = Family(
        f"ConvNeXt{_size.title().replace('Xl', 'XL')}",
        TORCHVISION,
        arguments=BARE,
        stem="*stem_conv*:conv4/4x*bv *:ln1e-06",
    )
for _size, _default in (("mobile", 224), ("large", 331)):
    FAMILIES[f"nasnet_{_size}"] = Family(
        f"NASNet{_size.title()}",
        KERAS_TF,
        features=r"(_concat_|^stem_bn1$)",
        default_size=_default,
    )


def create_backbone(
    name: str,
    output_stride: int = 16,
    weights: PathLike | Mapping[str, np.ndarray] | None = "imagenet",
    input_shape: Shape = (None, None, 3),
    batch_norm_epsilon: float | None = None,
    batch_norm_momentum: float | None = None,
    dtype: str | keras.DTypePolicy | None = None,
) -> keras.Model:
    """Creates a dense feature extractor by name.

    Args:
        name: one of `list_backbones()`, or a MobileNet of any width,
            `mobilenet_v2_<multiplier>`.
        output_stride: 8, 16 or 32 (any power of two that the network can be
            converted to). Defaults to 16.
        weights: `"imagenet"` (downloaded by Keras; of `efficientnet_lite*` an
            installed package, extra `weights`), `None`, the path of a
            Keras weights file (`.keras`, `.weights.h5`, `.h5`, `.hdf5`) of
            the same `keras.applications` model without top; or torchvision's:
            `"torchvision"` (downloaded), the path of its state dict (`.pth`,
            `.safetensors`; of `efficientnet_lite*` that of its package), or
            that as a dict of arrays. Padding and batch-norm epsilon follow
            the weights.
        input_shape: `(height, width, channels)`, sizes may be `None`. Other
            than three channels get pretrained weights by
            `backbones.inflate.inflate`.
        batch_norm_epsilon: float >= 0, or `None` for that of the weights.
        batch_norm_momentum: float in [0, 1], or `None` for that of the
            architecture.
        dtype: floating Keras dtype or policy, or `None` for the global one.

    Returns:
        `keras.Model`, images -> dict of features keyed by nominal stride,
        `{"stride_2": .., .., "stride_32": ..}`. At output stride 16,
        `"stride_32"` has one cell per 16 pixels. `model.preprocess`
        converts its images.

    Raises:
        ValueError: unknown name or weights, weights that do not fit, an
            argument that is not as above.
        FileNotFoundError: the weights file does not exist.
    """
    family, multiplier = parse_name(name)
    height, width, channels = check_input_shape(input_shape)
    check_configuration(batch_norm_epsilon, batch_norm_momentum, dtype)
    if weights is not None and channels != 3:
        rgb = create_backbone(
            name,
            output_stride,
            weights,
            (height, width, 3),
            batch_norm_epsilon,
            batch_norm_momentum,
            dtype,
        )
        return with_channels(rgb, channels, rgb.preprocess)[0]
    lite = name in efficientnet_lite.SIZES
    if lite and weights == "imagenet":
        weights = efficientnet_lite.published_weights(name)
    state_dict = isinstance(weights, dict) or str(weights).endswith(
        ("torchvision", ".pth", ".safetensors")
    )
    if not (
        isinstance(weights, dict)
        or weights in (None, "imagenet", "torchvision")
        or (isinstance(weights, str | os.PathLike) and os.path.isfile(weights))
    ):
        raise InputNotFoundError(
            "`weights` must be 'imagenet', 'torchvision', None or a file. "
            f"Received: weights={str(weights)!r}, which does not exist"
        )
    torch = state_dict and (not lite or weights == "torchvision")
    if torch and family.torchvision_epsilon is None:
        known = [n for n, f in FAMILIES.items() if f.torchvision_epsilon]
        raise InputError(
            f"No importer for torchvision weights of {name}; there is one for "
            f"{', '.join(known)}. Received: name={name!r}"
        )
    model = _load(
        name, family, multiplier, None if state_dict else weights, input_shape
    )
    if lite and state_dict:
        efficientnet_lite.fill(model, weights)
    if weights is None:
        correct_depthwise_kernels(model)
    else:
        given = "a state dict" if isinstance(weights, dict) else weights
        check_weights(model, f"weights={str(given)!r}")
    model, preprocess = _without_preprocessing(model, family.preprocess)
    if torch:
        model = _with_torchvision(model, name, weights)
        preprocess = TORCHVISION
        if batch_norm_epsilon is None:
            batch_norm_epsilon = family.torchvision_epsilon
    features = stage_ends(model, family.features, family.output)
    model = keras.Model(model.input, features, name=name.replace(".", "_"))
    changes = configuration_of(
        model, batch_norm_epsilon, batch_norm_momentum, dtype
    )
    padding_before = {}
    if torch or weights is None:
        padding, padding_before = symmetric_padding(model)
        for path, change in padding.items():
            changes[path] |= change
    model = rebuild(model, changes, padding_before)
    if model.input.shape[1:] != tuple(input_shape):
        model = _fix_size(model, input_shape)
    model = with_output_stride(model, output_stride)
    model.preprocess = preprocess if channels == 3 else KERAS_TF
    return model


def _with_torchvision(model, name, weights):
    """Returns the model changed to torchvision's layout, with its weights."""
    source = weights
    if isinstance(weights, dict):
        source = "a state dict"
    else:
        if weights == "torchvision":
            source = torchvision.download(name)
        weights = read_state_dict(source)
    if not name.startswith("resnet"):
        torchvision.fill_mobilenet(model, weights, source)
        return model
    changes = torchvision.resnet_changes(model)
    model = rebuild(model, changes, carry=lambda layer, copy: None)
    torchvision.fill_resnet(model, weights, source)
    return model


def _check_file(path):
    """Raises `ValueError` unless Keras can read weights within bounds."""
    if not path.endswith((".keras", ".h5", ".hdf5")):
        raise InputError(
            "A file of weights is Keras' `.keras`, `.weights.h5`, `.h5` or "
            "`.hdf5`, or torchvision's `.pth` or `.safetensors`. "
            f"Received: weights={path!r}"
        )
    try:
        if path.endswith(".keras"):
            check_archive(path)
        else:
            check_weights_file(path)
    except Exception as error:  # h5py raises many types
        raise InputError(
            f"The file of weights cannot be read ({first_line(error)}). "
            f"Received: weights={path!r}"
        ) from error


def _load(name, family, multiplier, weights, input_shape):
    builder, arguments = family.builder, family.arguments
    if isinstance(builder, str):
        builder = getattr(keras.applications, builder)
        weights = None if weights is None else str(weights)
        arguments = arguments | {"include_top": False, "weights": weights}
    if family.multipliers:
        arguments["alpha"] = multiplier
    *size, channels = input_shape
    if family.default_size is None:
        size = (None, None)
    elif weights is None:
        size = (family.default_size, family.default_size)
    elif None in size:
        raise InputError(
            f"{name} with Keras' weights pads by the size it is built for; "
            f"give both sizes. Received: input_shape={tuple(input_shape)}"
        )
    if weights not in (None, "imagenet"):
        _check_file(str(weights))
    try:
        with warnings.catch_warnings():
            # Keras has weights of one size, which serve every size.
            warnings.filterwarnings("ignore", "`input_shape` is undefined")
            # Without weights, any number of channels is as good.
            warnings.filterwarnings("ignore", "This model usually expects 1")
            model = builder(input_shape=(*size, channels), **arguments)
            if weights is not None and "weights" not in arguments:
                model.load_weights(weights)
            return model
    except Exception as error:
        # Keras' own errors here name neither the backbone nor the way out.
        if weights is None:
            raise
        raise InputError(
            f"Weights of {name} could not be loaded. Start from a saved "
            "segmenter (`--model.weights`), from a file of weights, or from "
            "scratch (None, `--model.backbone_weights null`). "
            f"Received: weights={str(weights)!r} "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def _without_preprocessing(model, preprocess):
    """Moves the scaling of the first layers into a `Preprocess`.

    EfficientNet alone cannot be built without; its numbers come with its
    weights.
    """
    scaling = []
    for layer in model.layers[1:]:
        if not isinstance(
            layer, (keras.layers.Rescaling, keras.layers.Normalization)
        ):
            break
        scaling.append(layer)
    if not scaling:
        return model, preprocess
    channels = model.input.shape[-1]
    ends = keras.ops.convert_to_tensor(
        [[[[value] * channels]] for value in (0.0, 255.0)]
    )
    for layer in scaling:
        ends = layer(ends)
    black, white = keras.ops.convert_to_numpy(ends)[:, 0, 0]
    spread = white - black
    measured = Preprocess(
        value_range=(0.0, 1.0),
        mean=tuple(map(float, -black / spread)),
        std=tuple(map(float, 1 / spread)),
    )

    return rebuild(model, {}, leave_out={s.name for s in scaling}), measured


# Layers that the first layers of a network are recognized by.
_DESCRIBED = {
    keras.layers.DepthwiseConv2D: "dw",
    keras.layers.SeparableConv2D: "sep",
    keras.layers.Conv2D: "conv",
    keras.layers.MaxPooling2D: "max",
    keras.layers.BatchNormalization: "bn",
    keras.layers.LayerNormalization: "ln",
}


def preprocess_of(model: keras.Model) -> Preprocess:
    """Infers the preprocessing of a backbone that is given as a model.

    Models of `create_backbone` bring it. A model that changes pixels before
    its first convolution, batch norm or pooling takes 0..255. Networks of
    `keras.applications`, whole or cut off, under any name, are recognized by
    their first layers. All others get -1..1.

    Args:
        model: functional `keras.Model` of one image input.

    Returns:
        `Preprocess`.
    """
    own = getattr(model, "preprocess", None)
    if isinstance(own, Preprocess):
        return own
    if _changes_pixels(model):
        return RAW
    if graph_of(model).inputs[0].shape[-1] != 3:
        return KERAS_TF
    layers = list(
        itertools.islice(filter(None, map(_described, _operations(model))), 3)
    )
    found = {}
    for name, family in FAMILIES.items():
        if _begins_with(layers, family.stem):
            found.setdefault(family.preprocess, f"{name} of Keras")
        if _begins_with(layers, family.torchvision_stem):
            found.setdefault(TORCHVISION, f"{name} of torchvision")
    if len(found) > 1:
        warnings.warn(
            "The pixel range of the backbone is unknown: its graph is that of "
            f"{' and of '.join(found.values())}. Pass `preprocess=`, one of "
            f"{', '.join(map(str, found))}. The first is used.",
            stacklevel=4,
        )
    return next(iter(found), KERAS_TF)


def _operations(model):
    """Layers and operations in the order of computation, nested ones too."""
    for node in nodes_of(model):
        if is_functional(node.operation):
            yield from _operations(graph_of(node.operation))
        elif not node.is_input:
            yield node.operation


def _described(layer):
    """A layer of `_DESCRIBED` in one word, e.g. `"conv1_conv:conv7/2x64bv"`.

    Name, layer type, kernel size, stride, filters, `b` with a bias, `v` for
    `valid` padding, epsilon; `None` for other layers.
    """
    layer_type = next(
        (word for t, word in _DESCRIBED.items() if isinstance(layer, t)), None
    )
    if layer_type is None:
        return None
    # A dense layer stores its original values.
    config = {**layer.get_config(), **getattr(layer, "original", {})}
    word = f"{layer.name}:{layer_type}"
    window = config.get("kernel_size", config.get("pool_size"))
    if window is not None:
        word += f"{pair(window)[0]}/{pair(config['strides'])[0]}"
    if "filters" in config:
        word += f"x{config['filters']}"
    word += "b" * bool(config.get("use_bias"))
    word += "v" * (config.get("padding") == "valid")
    if "epsilon" in config:
        word += f"{config['epsilon']:g}"
    return word


def _begins_with(layers, stem):
    """Returns True if described layers begin with those of a stem."""
    patterns = stem.split()
    return 0 < len(patterns) <= len(layers) and all(
        map(fnmatch.fnmatchcase, layers, patterns)
    )


def _changes_pixels(model):
    """Returns True if the first layer of `_DESCRIBED` sees other numbers.

    Rescaling, `keras.applications`' `preprocess_input`, and layers of a user's
    are found alike, by their effect on a black and a white image.
    """
    size = [n or 32 for n in graph_of(model).inputs[0].shape[1:]]
    images = np.zeros((2, *size), "float32")
    images[1] = 255.0
    seen, _ = _seen_by_first_layer(model, images)
    seen = keras.ops.convert_to_numpy(seen).astype("float32")
    return any(
        not np.any(np.isclose(row, value))
        for row, value in zip(seen, (0.0, 255.0), strict=True)
    )


def _seen_by_first_layer(model, images):
    """Computes the input of the first layer of `_DESCRIBED`.

    Returns:
        `(tensor, found)`: its input, or the output of the model and False
        if no such layer exists.
    """
    graph = graph_of(model)

    def value(tensor):
        return keras.Model(graph.inputs, tensor)([images], training=False)

    for node in nodes_of(graph):
        if node.is_input:
            continue
        if is_functional(node.operation):
            inner = _seen_by_first_layer(
                node.operation, value(node.input_tensors[0])
            )
            if inner[1]:
                return inner
        elif isinstance(node.operation, tuple(_DESCRIBED)):
            return value(node.input_tensors[0]), True
    return value(graph.outputs[0]), False


def _fix_size(model, input_shape):
    inputs = keras.Input(input_shape, name=model.input.name)
    return clone_graph(
        model, input_tensors=inputs, clone_function=lambda layer: layer
    )
