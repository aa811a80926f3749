"""torchvision's networks and segmenters, from their published state dicts."""

from __future__ import annotations

import warnings
from typing import Literal

import keras

from keras_aspp.backbones import create_backbone
from keras_aspp.backbones.rebuild import rebuild
from keras_aspp.backbones.state_dict import read_state_dict
from keras_aspp.backbones.torchvision import TorchState, download
from keras_aspp.models import LRASPP, DeepLabV3
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import PathLike

# Backbone and output stride of the segmenters.
_SEGMENTERS = {
    "deeplabv3_resnet50": ("resnet50", 8),
    "deeplabv3_resnet101": ("resnet101", 8),
    "deeplabv3_mobilenet_v3_large": ("mobilenet_v3_large", 16),
    "lraspp_mobilenet_v3_large": ("mobilenet_v3_large", 16),
}
# Arguments of both networks; torchvision's momentum is the share of the new.
_BATCH_NORM = {"batch_norm_momentum": 0.9, "batch_norm_epsilon": 1e-5}


def from_torchvision(
    architecture: Literal[
        "deeplabv3_resnet50",
        "deeplabv3_resnet101",
        "deeplabv3_mobilenet_v3_large",
        "lraspp_mobilenet_v3_large",
    ],
    path: PathLike | None = None,
) -> DeepLabV3 | LRASPP:
    """A DeepLabV3 or LR-ASPP of torchvision as a Keras model of ours.

    Args:
        architecture: `"deeplabv3_resnet50"`, `"deeplabv3_resnet101"`,
            `"deeplabv3_mobilenet_v3_large"` or `"lraspp_mobilenet_v3_large"`.
        path: its state dict, `.pth` or `.safetensors`; `None` downloads the
            published one (COCO, the 21 classes of PASCAL VOC).

    Returns:
        `DeepLabV3` or `LRASPP`, trainable, with as many classes as the file
        has. Images go through `model.preprocess`. Logits equal torchvision's
        at sizes that are multiples of 8 (MobileNetV3: of 16).

    Raises:
        ValueError: unknown name, or tensors that are not those of the model.
        FileNotFoundError: the file does not exist.

    Example:
        model = ka.weights.from_torchvision("deeplabv3_resnet50")
        logits = model(model.preprocess(images))
    """
    if architecture not in _SEGMENTERS:
        raise InputError(
            f"`architecture` must be one of {', '.join(_SEGMENTERS)}. "
            f"Received: architecture={architecture!r}"
        )
    name, output_stride = _SEGMENTERS[architecture]
    state = read_state_dict(path or download(architecture))
    parts = {"backbone": {}, "classifier": {}, "aux_classifier": {}}
    for tensor, array in state.items():
        part, _, rest = tensor.partition(".")
        if part not in parts:
            raise InputError(
                f"Not the state dict of a {architecture}. Received: tensor "
                f"{tensor} in {str(path)!r}"
            )
        parts[part][rest] = array
    backbone = create_backbone(name, output_stride, parts["backbone"])
    if name.startswith("mobilenet_v3"):
        backbone = _dilate_first_of_last_stage(backbone)
    head = TorchState(parts["classifier"], architecture)
    build = _lr_aspp if architecture.startswith("lraspp") else _deeplab_v3
    model = build(backbone, output_stride, head)
    head.check_empty()
    if parts["aux_classifier"]:
        warnings.warn(
            f"Left: {len(parts['aux_classifier'])} tensors of aux_classifier, "
            "a head that only training used.",
            stacklevel=2,
        )
    return model


def _deeplab_v3(backbone, output_stride, head):
    """Builds DeepLabV3 and fills its head."""
    model = DeepLabV3(
        head.size_of("4.weight"),
        backbone,
        output_stride,
        atrous_rates=(12, 24, 36),
        refine_filters=256,
        dropout=0.5,
        **_BATCH_NORM,
    )
    aspp = model.get_layer("aspp")
    *branches, pooling = aspp.branches
    for i, branch in enumerate(branches):
        head.fill(branch.conv, f"0.convs.{i}.0")
        head.fill(branch.norm, f"0.convs.{i}.1")
    head.fill(pooling.conv.conv, f"0.convs.{len(branches)}.1")
    head.fill(pooling.conv.norm, f"0.convs.{len(branches)}.2")
    head.fill(aspp.projection.conv, "0.project.0")
    head.fill(aspp.projection.norm, "0.project.1")
    head.fill(model.get_layer("refine").conv, "1")
    head.fill(model.get_layer("refine").norm, "2")
    head.fill(model.get_layer("classifier"), "4")
    return model


def _lr_aspp(backbone, output_stride, head):
    """Builds LR-ASPP and fills its head."""
    # They read the first layer of stride 8, where ours is the last one.
    low_level = backbone.get_layer("expanded_conv_3_project_bn").output
    features = {**backbone.output, "stride_8": low_level}
    copy = keras.Model(backbone.input, features, name=backbone.name)
    copy.preprocess = backbone.preprocess
    model = LRASPP(
        head.size_of("high_classifier.weight"),
        copy,
        output_stride,
        dropout=0.0,
        gate_filters=head.size_of("cbr.0.weight"),
        **_BATCH_NORM,
    )
    head.fill(model.get_layer("high_level").conv, "cbr.0")
    head.fill(model.get_layer("high_level").norm, "cbr.1")
    head.fill(model.get_layer("gate"), "scale.1")
    head.fill(model.get_layer("classifier_low"), "low_classifier")
    head.fill(model.get_layer("classifier_high"), "high_classifier")
    return model


def _dilate_first_of_last_stage(backbone):
    """Dilates the formerly strided layer of the last stage too, as torchvision.

    The network so made has output stride 16 by itself, so nothing in it
    remembers another one.
    """
    changes = {
        layer.name: {"original": {}}
        for layer in backbone.layers
        if hasattr(layer, "original")
    }
    changes["expanded_conv_12_depthwise"]["dilation_rate"] = 2
    plain = keras.Model(backbone.input, backbone.output, name=backbone.name)
    copy = rebuild(plain, changes)
    copy.preprocess = backbone.preprocess
    return copy
