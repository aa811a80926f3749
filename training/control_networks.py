"""The segmenters of training/control.py in plain PyTorch.

Written in the style of torchvision and mmsegmentation, from the papers and
not from `keras_aspp`, so that a fault of the one is not a fault of the other.
Attributes have the names of the layers that they are compared with.
"""

import torch
from torch import nn
from torch.nn import functional

# Sandler et al., 2018, table 2: expansion, channels, repetitions, stride.
MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# Index of the last block of each stride; 0 is the stem.
LEVELS = {4: 3, 8: 6}


def unit(
    into, out, kernel=1, stride=1, rate=1, groups=1, eps=1e-3, act=nn.ReLU
):
    """Convolution, batch norm, activation."""
    padding = (kernel - 1) // 2 * rate
    return nn.Sequential(
        nn.Conv2d(into, out, kernel, stride, padding, rate, groups, bias=False),
        nn.BatchNorm2d(out, eps),
        act() if act else nn.Identity(),
    )


def separable(into, out, rate=1):
    """Depthwise 3x3 unit, then a 1x1 unit."""
    return nn.Sequential(
        unit(into, into, 3, rate=rate, groups=into), unit(into, out)
    )


class InvertedResidual(nn.Module):
    """MobileNetV2's block; `joins` adds its input to its output."""

    def __init__(self, into, out, expansion, stride, rate, joins, eps):
        """Makes the layers."""
        super().__init__()
        wide, self.joins = into * expansion, joins
        units = []
        if expansion > 1:
            units.append(unit(into, wide, eps=eps, act=nn.ReLU6))
        units += [
            unit(wide, wide, 3, stride, rate, wide, eps, nn.ReLU6),
            unit(wide, out, eps=eps, act=None),
        ]
        self.conv = nn.Sequential(*units)

    def forward(self, x):
        """Returns the block's output."""
        y = self.conv(x)
        return x + y if self.joins else y


class MobileNetV2(nn.Module):
    """MobileNetV2 without its last 1x1 convolution, made dense.

    Args:
        output_stride: 8, 16 or 32.
        eps: epsilon of batch norm, 1e-5 in torchvision.
        width: multiplier of the channels.
    """

    def __init__(self, output_stride, eps=1e-5, width=1.0):
        """Makes the layers."""
        super().__init__()

        def channels(n):
            # Multiples of 8, and not less than 90 % of what was asked for.
            n = n * width
            rounded = max(8, int(n + 4) // 8 * 8)
            return rounded + 8 * (rounded < 0.9 * n)

        into = channels(32)
        blocks = [unit(3, into, 3, 2, eps=eps, act=nn.ReLU6)]
        self.channels, reached, rate = [into], 2, 1
        for expansion, out, repetitions, stride in MOBILENET_V2:
            for i in range(repetitions):
                step, now = (stride, rate) if i == 0 else (1, rate)
                joins = step == 1 and into == channels(out)
                if step == 2 and reached == output_stride:
                    # The convolution that gives up its stride is not dilated.
                    step, rate = 1, 2 * rate
                elif step == 2:
                    reached *= 2
                blocks.append(
                    InvertedResidual(
                        into, channels(out), expansion, step, now, joins, eps
                    )
                )
                into = channels(out)
                self.channels.append(into)
        self.features = nn.ModuleList(blocks)

    def forward(self, x):
        """Returns the outputs of the stem and of all blocks."""
        outputs = []
        for block in self.features:
            x = block(x)
            outputs.append(x)
        return outputs


class ASPP(nn.Module):
    """ASPP with separable branches, and image pooling or not."""

    def __init__(self, into, settings, rates):
        """Makes the layers."""
        super().__init__()
        filters, pooling = settings.aspp_filters, settings.image_pooling
        self.point = unit(into, filters)
        self.atrous = nn.ModuleList(
            separable(into, filters, rate) for rate in rates
        )
        self.pooling = None
        if pooling == "bias":
            self.pooling = nn.Sequential(nn.Conv2d(into, filters, 1), nn.ReLU())
        elif pooling:
            self.pooling = unit(into, filters)
        maps = len(rates) + 1 + bool(pooling)
        self.projection = unit(filters * maps, filters)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x):
        """Returns the pyramid's map."""
        maps = [self.point(x), *(branch(x) for branch in self.atrous)]
        if self.pooling is not None:
            pooled = self.pooling(functional.adaptive_avg_pool2d(x, 1))
            maps.append(pooled.expand(-1, -1, *x.shape[2:]))
        return self.dropout(self.projection(torch.cat(maps, 1)))


def resize(x, reference):
    """Resizes bilinearly to the size of another tensor."""
    return functional.interpolate(
        x, reference.shape[2:], mode="bilinear", align_corners=False
    )


class Network(nn.Module):
    """Backbone and head; scores at the size of the image.

    Args:
        backbone: `MobileNetV2`.
        settings: `ModelConfig`.
        num_classes: int.
        rates: ints, of the pyramid.
    """

    def __init__(self, backbone, settings, num_classes, rates):
        """Makes the layers."""
        super().__init__()
        self.backbone = backbone
        self.build(settings, num_classes, rates)

    def forward(self, x):
        """Returns scores (B, K, H, W)."""
        return resize(self.scores(self.backbone(x)), x)


class DeepLabV3(Network):
    """Chen et al., 2017."""

    def build(self, settings, num_classes, rates):
        """Makes the head."""
        self.aspp = ASPP(self.backbone.channels[-1], settings, rates)
        self.classifier = nn.Conv2d(settings.aspp_filters, num_classes, 1)

    def scores(self, features):
        """Returns scores at the output stride."""
        return self.classifier(self.aspp(features[-1]))


class DeepLabV3Plus(Network):
    """Chen et al., 2018."""

    def build(self, settings, num_classes, rates):
        """Makes the head."""
        channels, filters = self.backbone.channels, settings.decoder_filters
        low = settings.projection_filters
        self.aspp = ASPP(channels[-1], settings, rates)
        self.low_level = unit(channels[LEVELS[4]], low)
        self.decoder_1 = separable(settings.aspp_filters + low, filters)
        self.decoder_2 = separable(filters, filters)
        self.classifier = nn.Conv2d(filters, num_classes, 1)

    def scores(self, features):
        """Returns scores at stride 4."""
        low = self.low_level(features[LEVELS[4]])
        x = torch.cat([resize(self.aspp(features[-1]), low), low], 1)
        return self.classifier(self.decoder_2(self.decoder_1(x)))


class DenseASPP(Network):
    """Yang et al., 2018, with batch norm after the convolutions."""

    def build(self, settings, num_classes, rates):
        """Makes the head."""
        into, inner = self.backbone.channels[-1], settings.bottleneck_filters
        growth = settings.growth_filters
        self.dense_aspp = nn.ModuleList(
            nn.Sequential(
                unit(into + i * growth, inner), separable(inner, growth, rate)
            )
            for i, rate in enumerate(rates)
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.classifier = nn.Conv2d(into + len(rates) * growth, num_classes, 1)

    def scores(self, features):
        """Returns scores at the output stride."""
        x = features[-1]
        for block in self.dense_aspp:
            x = torch.cat([x, block(x)], 1)
        return self.classifier(self.dropout(x))


class LRASPP(Network):
    """Howard et al., 2019, in torchvision's order: resize, then classify."""

    def build(self, settings, num_classes, rates):
        """Makes the head."""
        channels, filters = self.backbone.channels, settings.gate_filters
        self.high_level = unit(channels[-1], filters)
        self.gate = nn.Conv2d(channels[-1], filters, 1, bias=False)
        self.dropout = nn.Dropout(settings.dropout)
        self.classifier_low = nn.Conv2d(channels[LEVELS[8]], num_classes, 1)
        self.classifier_high = nn.Conv2d(filters, num_classes, 1)

    def scores(self, features):
        """Returns scores at stride 8."""
        high, low = features[-1], features[LEVELS[8]]
        gate = torch.sigmoid(self.gate(high.mean((2, 3), keepdim=True)))
        high = self.dropout(self.high_level(high) * gate)
        return self.classifier_low(low) + self.classifier_high(
            resize(high, low)
        )


NETWORKS = {
    "deeplab_v3": DeepLabV3,
    "deeplab_v3_plus": DeepLabV3Plus,
    "dense_aspp": DenseASPP,
    "lr_aspp": LRASPP,
}


def tensors_of(module):
    """Tensors of a module in the order of Keras' weights.

    Returns:
        list of `(tensor, is_depthwise)`: of each convolution its kernel and
        bias, of each batch norm scale, offset, mean and variance.
    """
    found = []
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            found.append((part.weight, part.groups > 1))
            found += [(part.bias, False)] if part.bias is not None else []
        elif isinstance(part, nn.BatchNorm2d):
            for tensor in (
                part.weight,
                part.bias,
                part.running_mean,
                part.running_var,
            ):
                found.append((tensor, False))
    return found


def to_torch(array, is_depthwise):
    """A kernel of Keras with the axes of PyTorch; other arrays unchanged."""
    if array.ndim != 4:
        return array
    return array.transpose((2, 3, 0, 1) if is_depthwise else (3, 2, 0, 1))
