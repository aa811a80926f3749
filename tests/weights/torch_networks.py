"""torchvision's networks in plain PyTorch, with its tensors' names.

Written from what the packages compute; torchvision itself is not needed. The
classification heads are left out.
"""

import torch
from torch import nn


def norm(channels, eps=1e-5):
    return nn.BatchNorm2d(channels, eps=eps)


class Bottleneck(nn.Module):
    def __init__(self, into, width, stride, rate, shortcut):
        super().__init__()
        self.conv1 = nn.Conv2d(into, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(
            width, width, 3, stride, rate, dilation=rate, bias=False
        )
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = norm(4 * width)
        self.downsample = None
        if shortcut:
            self.downsample = nn.Sequential(
                nn.Conv2d(into, 4 * width, 1, stride, bias=False),
                norm(4 * width),
            )

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        x = x if self.downsample is None else self.downsample(x)
        return torch.relu(x + y)


class ResNet(nn.Module):
    """`dilated` gives up the strides of the last two stages."""

    def __init__(self, counts, dilated=False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = norm(64)
        into, rate = 64, 1
        for stage, count in enumerate(counts):
            width, blocks = 64 * 2**stage, []
            for i in range(count):
                stride = 2 if stage and i == 0 else 1
                # Where a stride is given up, what comes after it is dilated.
                now = rate
                if stride == 2 and dilated and stage > 1:
                    stride, rate = 1, 2 * rate
                blocks.append(Bottleneck(into, width, stride, now, i == 0))
                into = 4 * width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def unit(into, out, kernel=1, stride=1, rate=1, groups=1, act=None):
    pad = (kernel - 1) // 2 * rate
    parts = [
        nn.Conv2d(into, out, kernel, stride, pad, rate, groups, bias=False),
        norm(out, 1e-3),
    ]
    return nn.Sequential(*parts, *([act()] if act else []))


class Squeeze(nn.Module):
    def __init__(self, channels):
        super().__init__()
        inner = int(channels / 4 + 4) // 8 * 8
        inner += 8 if inner < 0.9 * (channels // 4) else 0
        self.fc1 = nn.Conv2d(channels, inner, 1)
        self.fc2 = nn.Conv2d(inner, channels, 1)

    def forward(self, x):
        gate = torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * nn.functional.hardsigmoid(self.fc2(gate))


class Inverted(nn.Module):
    def __init__(self, into, kernel, wide, out, squeeze, act, stride, rate):
        super().__init__()
        self.joins = stride == 1 and into == out
        if rate > 1:
            stride = 1
        parts = [unit(into, wide, act=act)] if wide != into else []
        parts.append(unit(wide, wide, kernel, stride, rate, wide, act))
        if squeeze:
            parts.append(Squeeze(wide))
        parts.append(unit(wide, out))
        self.block = nn.Sequential(*parts)

    def forward(self, x):
        y = self.block(x)
        return x + y if self.joins else y


# Howard et al., 2019, table 1: kernel, expansion, output, squeeze, h-swish,
# stride.
LARGE = (
    (3, 16, 16, 0, 0, 1),
    (3, 64, 24, 0, 0, 2),
    (3, 72, 24, 0, 0, 1),
    (5, 72, 40, 1, 0, 2),
    (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1),
    (3, 240, 80, 0, 1, 2),
    (3, 200, 80, 0, 1, 1),
    (3, 184, 80, 0, 1, 1),
    (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 1, 1, 1),
    (3, 672, 112, 1, 1, 1),
    (5, 672, 160, 1, 1, 2),
    (5, 960, 160, 1, 1, 1),
    (5, 960, 160, 1, 1, 1),
)


def mobilenet_v3_features(dilated=False):
    layers, into = [unit(3, 16, 3, 2, act=nn.Hardswish)], 16
    for i, (kernel, wide, out, squeeze, swish, stride) in enumerate(LARGE):
        act = nn.Hardswish if swish else nn.ReLU
        rate = 2 if dilated and i >= 12 else 1
        layers.append(
            Inverted(into, kernel, wide, out, squeeze, act, stride, rate)
        )
        into = out
    layers.append(unit(into, 960, act=nn.Hardswish))
    return nn.Sequential(*layers)


class MobileNetV3(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = mobilenet_v3_features()

    def forward(self, x):
        return self.features(x)


class Pyramid(nn.Module):
    def __init__(self, into, filters=256):
        super().__init__()

        def branch(*convolution, **kwargs):
            return [
                nn.Conv2d(*convolution, bias=False, **kwargs),
                norm(filters),
                nn.ReLU(),
            ]

        branches = [nn.Sequential(*branch(into, filters, 1))]
        for rate in (12, 24, 36):
            branches.append(
                nn.Sequential(
                    *branch(into, filters, 3, padding=rate, dilation=rate)
                )
            )
        pooled = branch(into, filters, 1)
        branches.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), *pooled))
        self.convs = nn.ModuleList(branches)
        self.project = nn.Sequential(*branch(5 * filters, filters, 1))

    def forward(self, x):
        maps = [branch(x) for branch in self.convs]
        maps[-1] = maps[-1].expand(-1, -1, *x.shape[2:])
        return self.project(torch.cat(maps, 1))


class DeepLabV3(nn.Module):
    def __init__(self, backbone, channels, num_classes):
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Sequential(
            Pyramid(channels),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            norm(256),
            nn.ReLU(),
            nn.Conv2d(256, num_classes, 1),
        )

    def forward(self, x):
        scores = self.classifier(self.backbone(x))
        return nn.functional.interpolate(
            scores, x.shape[2:], mode="bilinear", align_corners=False
        )


class GatedHead(nn.Module):
    """Head of LR-ASPP, with torchvision's names."""

    def __init__(self, low, high, num_classes, filters=128):
        super().__init__()
        self.cbr = nn.Sequential(
            nn.Conv2d(high, filters, 1, bias=False), norm(filters), nn.ReLU()
        )
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(high, filters, 1, bias=False),
            nn.Sigmoid(),
        )
        self.low_classifier = nn.Conv2d(low, num_classes, 1)
        self.high_classifier = nn.Conv2d(filters, num_classes, 1)

    def forward(self, low, high):
        x = self.cbr(high) * self.scale(high)
        x = nn.functional.interpolate(
            x, low.shape[2:], mode="bilinear", align_corners=False
        )
        return self.low_classifier(low) + self.high_classifier(x)


class LRASPP(nn.Module):
    """Reads the first block of stride 8, and the last layer."""

    def __init__(self, num_classes):
        super().__init__()
        self.backbone = mobilenet_v3_features(dilated=True)
        self.classifier = GatedHead(40, 960, num_classes)

    def forward(self, x):
        low = self.backbone[:5](x)
        scores = self.classifier(low, self.backbone[5:](low))
        return nn.functional.interpolate(
            scores, x.shape[2:], mode="bilinear", align_corners=False
        )


BACKBONES = {
    "resnet50": lambda: ResNet((3, 4, 6, 3)),
    "mobilenet_v3_large": MobileNetV3,
}
SEGMENTERS = {
    "deeplabv3_resnet50": lambda num_classes: DeepLabV3(
        ResNet((3, 4, 6, 3), dilated=True), 2048, num_classes
    ),
    "deeplabv3_resnet101": lambda num_classes: DeepLabV3(
        ResNet((3, 4, 23, 3), dilated=True), 2048, num_classes
    ),
    "deeplabv3_mobilenet_v3_large": lambda num_classes: DeepLabV3(
        mobilenet_v3_features(dilated=True), 960, num_classes
    ),
    "lraspp_mobilenet_v3_large": LRASPP,
}


def randomized(network):
    """Every tensor a value that is neutral nowhere; for inference."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.1)
    return network.eval()
