"""Peers in the benchmark, built with their public tools.

Each function imports its package when it is called: they are the extra
`peers`, and nothing else here needs them.
"""

import contextlib

import keras

CLASSES = 21


def keras_hub_encoder(dtype="float32"):
    """keras-hub's ResNet-50."""
    import keras_hub

    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[3, 4, 6, 3],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
        image_shape=(None, None, 3),
        dtype=dtype,
    )


def keras_hub_segmenter(dtype="float32"):
    """keras-hub's DeepLabV3+ on ResNet-50; it has output stride 32 only.

    Its task class compiles a metric that sparse labels break, so its graph
    is wrapped in a plain model.
    """
    import keras_hub

    encoder = keras_hub_encoder(dtype)
    with _policy(dtype):
        backbone = keras_hub.models.DeepLabV3Backbone(
            image_encoder=encoder,
            spatial_pyramid_pooling_key="P5",
            low_level_feature_key="P2",
            upsampling_size=8,
            dilation_rates=[6, 12, 18],
        )
        task = keras_hub.models.DeepLabV3ImageSegmenter(
            backbone=backbone, num_classes=CLASSES
        )
    return keras.Model(task.input, task.output)


def keras_hub_aspp():
    """keras-hub's ASPP layer, 256 filters."""
    from keras_hub.src.models.deeplab_v3 import deeplab_v3_layers

    return deeplab_v3_layers.SpatialPyramidPooling(dilation_rates=[6, 12, 18])


def keras_cv_aspp():
    """keras-cv's ASPP layer, 256 filters."""
    from keras_cv.src.layers import SpatialPyramidPooling

    return SpatialPyramidPooling(dilation_rates=[6, 12, 18])


def keras_cv_crops(files, crop_px):
    """keras-cv's layers for the recipe of our `AugmentConfig`, in tf.data.

    Args:
        files: `(images, masks)`, lists of paths.
        crop_px: int, height and width of the crops.

    Returns:
        `tf.data.Dataset` of one example, without end.
    """
    import keras_cv
    import tensorflow as tf

    layers = keras_cv.layers
    recipe = [
        # Keeps a quarter to all of the image: scales 1 to 2; it has none
        # that pads, so none below 1.
        layers.RandomCropAndResize(
            target_size=(crop_px, crop_px),
            crop_area_factor=(0.25, 1.0),
            aspect_ratio_factor=(1.0, 1.0),
        ),
        layers.RandomFlip("horizontal"),
        layers.RandomBrightness(0.1, value_range=(0, 255)),
        layers.RandomContrast(value_range=(0, 255), factor=0.2),
        layers.RandomSaturation((0.4, 0.6)),
        layers.RandomHue(0.02, value_range=(0, 255)),
    ]

    def load(image, mask):
        image = tf.io.decode_jpeg(tf.io.read_file(image), channels=3)
        labels = tf.io.decode_png(tf.io.read_file(mask), channels=1)
        return {
            "images": tf.cast(image, "float32"),
            "segmentation_masks": tf.cast(labels, "float32"),
        }

    def crop(example):
        for layer in recipe:
            example = layer(example, training=True)
        return example["images"], example["segmentation_masks"]

    return (
        tf.data.Dataset.from_tensor_slices(tuple(files))
        .map(load, num_parallel_calls=tf.data.AUTOTUNE)
        .repeat()
        .map(crop, num_parallel_calls=tf.data.AUTOTUNE)
    )


def torch_segmenter(num_classes=CLASSES):
    """DeepLabV3 on ResNet-50 at output stride 16, as a plain torch module.

    The strides are where Keras' ResNet-50 has them, on the first 1x1
    convolution of a stage, and bias stands where it does there.
    """
    import torch
    from torch import nn

    def conv(into, out, kernel=1, stride=1, rate=1, act=True, bias=False):
        pad = rate * (kernel - 1) // 2
        parts = [
            nn.Conv2d(into, out, kernel, stride, pad, rate, bias=bias),
            nn.BatchNorm2d(out),
        ]
        return nn.Sequential(*parts, *([nn.ReLU(inplace=True)] * act))

    class Block(nn.Module):
        def __init__(self, into, width, stride, rate, widens):
            super().__init__()
            self.body = nn.Sequential(
                conv(into, width, stride=stride, bias=True),
                conv(width, width, 3, rate=rate, bias=True),
                conv(width, 4 * width, act=False, bias=True),
            )
            self.shortcut = nn.Identity()
            if widens:
                self.shortcut = conv(
                    into, 4 * width, stride=stride, act=False, bias=True
                )

        def forward(self, x):
            return torch.relu(self.body(x) + self.shortcut(x))

    class Pyramid(nn.Module):
        def __init__(self, into, filters):
            super().__init__()
            self.branches = nn.ModuleList([conv(into, filters)])
            for rate in (6, 12, 18):
                self.branches.append(conv(into, filters, 3, rate=rate))
            self.pooled = conv(into, filters)
            self.projection = conv(5 * filters, filters)
            self.drop = nn.Dropout(0.1)

        def forward(self, x):
            maps = [branch(x) for branch in self.branches]
            mean = self.pooled(x.mean((2, 3), keepdim=True))
            maps.append(mean.expand(-1, -1, *x.shape[2:]))
            return self.drop(self.projection(torch.cat(maps, 1)))

    class Segmenter(nn.Module):
        def __init__(self):
            super().__init__()
            layers = [
                conv(3, 64, 7, 2, bias=True),
                nn.MaxPool2d(3, 2, 1),
            ]
            into = 64
            for width, count, stride, rate in (
                (64, 3, 1, 1),
                (128, 4, 2, 1),
                (256, 6, 2, 1),
                (512, 3, 1, 2),
            ):
                for i in range(count):
                    first = stride if i == 0 else 1
                    layers.append(Block(into, width, first, rate, i == 0))
                    into = 4 * width
            self.backbone = nn.Sequential(*layers)
            self.aspp = Pyramid(into, 256)
            self.classifier = nn.Conv2d(256, num_classes, 1)

        def forward(self, x):
            scores = self.classifier(self.aspp(self.backbone(x)))
            return nn.functional.interpolate(
                scores, x.shape[2:], mode="bilinear", align_corners=False
            )

    return Segmenter()


@contextlib.contextmanager
def _policy(name):
    """Within it, layers take a dtype policy; keras-hub passes none on."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
