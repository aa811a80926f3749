"""Metadata of a `.tflite` for MediaPipe.

The metadata is a second flatbuffer among the model's buffers, and a list of
class names in a zip archive behind the model. Tables and slots follow
`metadata_schema.fbs` (TensorFlow Lite Support, MediaPipe). The writers of both
packages lack wheels for some Python versions, so this module writes it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import flatbuffers

from keras_aspp.litert.graph import packed, unpacked

LABELS = "labels.txt"
# By format, `(mean, std)` of the pixels that a file takes: one of logits
# normalizes them itself.
_NORMALIZED = {"tflite_logits": (0.0, 1.0), "tflite_gpu": (127.5, 127.5)}
_IDENTIFIER = b"M001"
_ENTRY = b"TFLITE_METADATA"
# The oldest parser that reads these fields.
_PARSER = "1.5.0"
# MediaPipe's `ImageSegmenterOptions` (image_segmenter_metadata_schema.fbs).
# Without an activation, its confidence masks are the raw logits.
_OPTIONS, _OPTIONS_IDENTIFIER = "SEGMENTER_METADATA", b"V001"
_SIGMOID, _SOFTMAX = 1, 2
_OPTIONS_PARSER = "1.0.0"
# Slots of the tables, and values of the enumerations.
_NAME, _DESCRIPTION = 0, 1
_RGB, _IMAGE_PROPERTIES, _NORMALIZATION, _AXIS_LABELS = 1, 2, 1, 2


def add_metadata(
    written: Iterable[tuple[str, Path]],
    name: str,
    class_names: Sequence[str],
    is_multilabel: bool = False,
) -> None:
    """Adds the metadata to the artefacts of scores.

    These are `"tflite_logits"` and `"tflite_gpu"`.

    Args:
        written: list of `(format, path)`.
        name: str, of the model.
        class_names: one str for each class.
        is_multilabel: bool; see `with_metadata`.
    """
    for format, path in written:
        if format in _NORMALIZED:
            path.write_bytes(
                with_metadata(
                    path.read_bytes(),
                    name,
                    class_names,
                    *_NORMALIZED[format],
                    is_multilabel,
                )
            )


def with_metadata(
    model: bytes,
    name: str,
    class_names: Sequence[str],
    mean: float = 0.0,
    std: float = 1.0,
    is_multilabel: bool = False,
) -> bytes:
    """Returns a `.tflite` of logits that MediaPipe's ImageSegmenter reads.

    The metadata declares the softmax, so that confidence masks are
    probabilities; the logits of the file stay as they are. For a multilabel
    model it declares the sigmoid: logits contain the thresholds, so a class
    is where its confidence mask is above 0.5.

    Args:
        model: bytes of a `.tflite`, pixels in, logits out.
        name: str, of the model.
        class_names: one str for each class.
        mean: float. The file takes `(pixel - mean) / std` of pixels 0..255.
        std: float > 0.
        is_multilabel: bool. True if classes are independent.

    Returns:
        bytes of the `.tflite`.
    """
    from ai_edge_litert import schema_py_generated as schema

    content = unpacked(model)
    buffer = schema.BufferT()
    buffer.data = _metadata(name, mean, std, is_multilabel)
    content.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name = _ENTRY
    entry.buffer = len(content.buffers) - 1
    content.metadata = [
        *(m for m in content.metadata or () if m.name != _ENTRY),
        entry,
    ]
    file = io.BytesIO()
    file.write(packed(content))
    with zipfile.ZipFile(file, "a") as archive:
        # A fixed date, so that equal exports are equal files.
        archive.writestr(zipfile.ZipInfo(LABELS), "\n".join(class_names) + "\n")
    return file.getvalue()


def _metadata(name, mean, std, is_multilabel):
    build = _Builder()
    properties = build.table(1, {0: build.int8(_RGB)})
    content = build.table(
        2, {0: build.int8(_IMAGE_PROPERTIES), 1: build.offset(properties)}
    )
    normalization = build.table(
        2, {0: build.floats([mean]), 1: build.floats([std])}
    )
    unit = build.table(
        2, {0: build.int8(_NORMALIZATION), 1: build.offset(normalization)}
    )
    image = build.table(
        7,
        {
            _NAME: build.text("image"),
            _DESCRIPTION: build.text(
                "RGB pixels, 0..255"
                if (mean, std) == (0.0, 1.0)
                else f"RGB, (pixel - {mean}) / {std} of pixels 0..255"
            ),
            3: build.offset(content),
            4: build.tables([unit]),
        },
    )
    labels = build.table(
        5,
        {
            _NAME: build.text(LABELS),
            _DESCRIPTION: build.text("names of the classes, in their order"),
            2: build.int8(_AXIS_LABELS),
        },
    )
    masks = build.table(
        7,
        {
            _NAME: build.text("segmentation_masks"),
            _DESCRIPTION: build.text(
                "logits of independent classes: a class is where its logit is "
                "above 0 (its sigmoid above 0.5)"
                if is_multilabel
                else "logits"
            ),
            6: build.tables([labels]),
        },
    )
    options = build.table(
        2,
        {
            0: build.text(_OPTIONS),
            1: build.bytes(
                _segmenter_options(_SIGMOID if is_multilabel else _SOFTMAX)
            ),
        },
    )
    graph = build.table(
        10,
        {
            2: build.tables([image]),
            3: build.tables([masks]),
            9: build.tables([options]),
        },
    )
    model = build.table(
        8,
        {
            _NAME: build.text(name),
            _DESCRIPTION: build.text("Labels every pixel of an image."),
            3: build.tables([graph]),
            7: build.text(_PARSER),
        },
    )
    return build.finish(model)


def _segmenter_options(activation):
    """Returns a flatbuffer that declares the activation of the masks."""
    build = _Builder()
    options = build.table(
        2, {0: build.int8(activation), 1: build.text(_OPTIONS_PARSER)}
    )
    return build.finish(options, _OPTIONS_IDENTIFIER)


class _Builder:
    """Builds tables of a flatbuffer, the innermost first."""

    def __init__(self):
        self.builder = flatbuffers.Builder(1024)

    def int8(self, value):
        return lambda slot: self.builder.PrependInt8Slot(slot, value, 0)

    def offset(self, at):
        return lambda slot: self.builder.PrependUOffsetTRelativeSlot(
            slot, at, 0
        )

    def text(self, value):
        return self.offset(self.builder.CreateString(value))

    def bytes(self, content):
        """Writes a vector of bytes, aligned to 16 as the schema demands."""
        self.builder.StartVector(1, len(content), 16)
        for value in reversed(content):
            self.builder.PrependByte(value)
        return self.offset(self.builder.EndVector())

    def floats(self, values):
        self.builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            self.builder.PrependFloat32(value)
        return self.offset(self.builder.EndVector())

    def tables(self, offsets):
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return self.offset(self.builder.EndVector())

    def table(self, slots, fields):
        """Writes a table of `slots` slots; `fields` maps slots to writers."""
        self.builder.StartObject(slots)
        for slot, write in fields.items():
            write(slot)
        return self.builder.EndObject()

    def finish(self, root, identifier=_IDENTIFIER):
        self.builder.Finish(root, identifier)
        return bytes(self.builder.Output())
