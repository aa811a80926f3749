"""Model card (README.md) of an exported folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.text import num_of

README = "README.md"
# The first words of what a model does, for semantic and multilabel ones.
LEADS = ("Labels every pixel with", "Writes a mask of 0 and 1 for")
# Fields of a card that are not measured.
ABOUT = (
    "dataset",
    "trained_on",
    "license",
    "evaluated_on",
    "command",
    "preview",
)

_INTEGERS = ("tflite_dynamic_range", "tflite_int8", "tflite_int16x8")


def latency(entry: dict[str, Any]) -> str:
    """Formats a latency: median (minimum to maximum), in milliseconds."""
    ms = entry["latency_ms"]
    return f"{ms['median']:.0f} ({ms['min']:.0f} to {ms['max']:.0f})"


def front_matter(text: str, file: Path) -> tuple[dict[str, Any], str]:
    """Splits a card into its metadata and its body.

    Args:
        text: str, the card.
        file: path of it, for the message.

    Raises:
        InputError: the metadata is not YAML.
    """
    import yaml

    match = re.match(r"---\n(.*?)^---\n", text, re.DOTALL | re.MULTILINE)
    if not match:
        return {}, f"\n{text}"
    try:
        found = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise InputError(
            f"The metadata of a card must be YAML. File: {file} ({error})"
        ) from None
    return found if isinstance(found, dict) else {}, text[match.end() :]


def card(manifest: dict[str, Any], about: Mapping[str, str]) -> str:
    """Returns the model card as Markdown.

    Args:
        manifest: dict, the contents of `manifest.json`.
        about: dict of str: `dataset`, `trained_on`, `license`,
            `evaluated_on`, `command`, `preview`; empty where unknown.
    """
    classes = ", ".join(manifest["class_names"])
    score = manifest["artefacts"][0]["mean_iou"]
    parts = [
        f"---\n{_front_matter(manifest['name'], score, about)}---\n\n"
        f"# {manifest['name']}\n\n"
        "![An image and its predicted classes](preview.png)",
        about["preview"],
        f"{_what(manifest['num_classes'], manifest.get('task'))}: {classes}. "
        f"Output stride {manifest['output_stride']}.",
    ]
    if about["trained_on"]:
        parts.append(f"Trained on {about['trained_on']}.")
    if about["license"]:
        parts.append(f"License: {about['license']}.")
    evaluated = about["evaluated_on"] or "not evaluated"
    parts += [
        f"## Artefacts\n\n{artefact_table(manifest)}",
        "Labels equal to Keras': of all pixels of some images. "
        f"Mean IoU: {evaluated}; points lost: against Keras on images of the "
        f"artefact's size.{_coarse_cost(manifest)}{_size_cost(manifest)}"
        f"{_calibration(manifest)} "
        f"Times: {manifest['machine']}, {manifest['date']}, to be "
        "compared within this table only. Larger artefacts may be left out of "
        "version control.",
        "Made by\n\n```\n" + about["command"] + "\n```"
        if about["command"]
        else "",
        "## Use\n\n```python\nimport keras_aspp as ka\n\n"
        f'labels = ka.Predictor("{manifest["name"]}").predict("image.jpg")'
        f"\n```\n\n{_inputs(manifest)}",
        "## Limits\n\nThe model is for images like those it was trained on "
        "and labels every pixel, also of unknown objects."
        f"{_limits(manifest)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(count, task):
    """Says what the labels of a model are."""
    if task == "multilabel":
        return f"{LEADS[1]} each of {count} classes, which may overlap"
    return f"{LEADS[0]} one of {count} classes"


def card_of_run(
    name: str,
    class_names: Sequence[str],
    metrics: Mapping[str, Any],
    about: Mapping[str, str],
) -> str:
    """Returns the model card of a training run as Markdown.

    Args:
        name: str, title.
        class_names: names of the classes.
        metrics: dict, the contents of `metrics.json`; may be empty.
        about: dict of str: `dataset`, `trained_on`, `license` and
            `evaluated_on`; empty where unknown.
    """
    score = metrics.get("mean_iou")
    task = "multilabel" if "multilabel" in metrics else None
    parts = [
        f"---\n{_front_matter(name, score, about, tags=())}---\n\n# {name}",
        f"{_what(len(class_names), task)}: {', '.join(class_names)}.",
    ]
    if about["trained_on"]:
        parts.append(f"Trained on {about['trained_on']}.")
    if about["license"]:
        parts.append(f"License: {about['license']}.")
    if score is not None:
        rows = {**metrics["per_class_iou"], "mean": score}
        table = "".join(
            f"| {row} | {_number(value) or 'absent'} |\n"
            for row, value in rows.items()
        )
        parts.append(
            f"## Evaluation\n\nOn {about['evaluated_on']}, each at its own "
            f"size.\n\n| class | IoU |\n|---|---|\n{table.rstrip()}"
        )
    parts += [
        "## Use\n\n```python\nimport keras_aspp as ka\n\n"
        f'labels = ka.Predictor("{name}").predict("image.jpg")\n```',
        "## Limits\n\nThe model is for images like those it was trained on "
        "and labels every pixel, also of unknown objects.",
    ]
    return "\n\n".join(parts) + "\n"


def _formats(manifest):
    return {entry["format"] for entry in manifest["artefacts"]}


def _limits(manifest):
    """Returns the sentences on the formats that were exported."""
    formats = _formats(manifest)
    found = ""
    if any(name.startswith("tflite") for name in formats):
        but = " (but model_any_size.tflite)"
        if "tflite_any_size" not in formats:
            but = ""
        found += (
            f" A TFLite file has one size{but}; other images are resized to it."
        )
    if "saved_model" in formats:
        found += (
            " Load SavedModels only from those you trust: they are programs."
        )
    return found


def _inputs(manifest):
    """Says what the artefacts take."""
    taken = manifest["artefacts"][0]["input"]
    channels, dtype = taken["shape"][-1], taken["dtype"]
    if (channels, dtype) == (3, "uint8"):
        found = (
            "Inputs are RGB pixels 0..255 as uint8; normalization is inside."
        )
        if "saved_model" in _formats(manifest):
            found += (
                " The SavedModel's `serve_bytes` takes JPEG or PNG bytes and "
                "does not read EXIF: turn rotated photographs first."
            )
        return found
    low, high = (
        end if isinstance(end, (int, float)) else [round(v, 4) for v in end]
        for end in taken["range"]
    )
    return (
        f"Inputs have {channels} bands of {dtype} as the sensor stores them; "
        f"normalization is inside (black {low}, white {high})."
    )


def artefact_table(manifest: dict[str, Any]) -> str:
    """Returns the artefacts as a Markdown table, one row each.

    Manifests written before Keras was evaluated at each artefact's size lack
    that column. The losses by conversion have one where they differ from all
    points lost, by coarse labels.
    """
    artefacts = manifest["artefacts"]
    columns = {
        "artefact": [f"`{a['path']}`" for a in artefacts],
        "size": [f"{a['bytes'] / 1e6:.2f} MB" for a in artefacts],
        "labels equal to Keras'": [
            f"{a['agreement_with_keras']:.4%}" for a in artefacts
        ],
        "mean IoU": [_number(a["mean_iou"]) for a in artefacts],
        "Keras at its size": [
            _number(a["keras_mean_iou"])
            for a in artefacts
            if "keras_mean_iou" in a
        ],
        "points lost": [_number(a["loss_points"], 2) for a in artefacts],
        "by conversion": [
            _number(points, 2) for points in conversion_losses(manifest)
        ],
        "one image": [f"{latency(a)} ms" for a in artefacts],
    }
    columns = {name: cells for name, cells in columns.items() if cells}
    rows = [columns, *zip(*columns.values(), strict=True)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


def conversion_losses(manifest: dict[str, Any]) -> list[float | None]:
    """Returns the points that each artefact loses by its conversion.

    Returns:
        list of float, or `None` without an evaluation; empty if they are the
        points lost of all artefacts, or if the manifest has none.
    """
    artefacts = manifest["artefacts"]
    found = [a.get("conversion_loss_points") for a in artefacts]
    lost = [a["loss_points"] for a in artefacts]
    return [] if found in (lost, [None] * len(lost)) else found


def size_costs(manifest: dict[str, Any]) -> dict[tuple[int, int], float]:
    """Returns the mean IoU that Keras loses at the sizes of the artefacts.

    Returns:
        dict, `(height, width)` -> points (hundredths) below its mean IoU at
        each image's own size; empty if it was not evaluated.
    """
    first, *artefacts = manifest["artefacts"]
    costs = {}
    for entry in artefacts:
        size = tuple(entry["input"]["shape"][1:3])
        at_size = entry.get("keras_mean_iou")
        if at_size is not None and "height" not in size:
            costs[size] = round(100 * (first["mean_iou"] - at_size), 2) + 0.0
    return costs


def slower_than_float(manifest: dict[str, Any]) -> list[str]:
    """Returns the integer files that are slower than float32 of their size.

    Empty if no float32 file of their size was exported.
    """
    times = {}
    for entry in manifest["artefacts"]:
        if entry["format"] == "tflite_float32":
            size = tuple(entry["input"]["shape"])
            times[size] = entry["latency_ms"]["median"]
    return [
        entry["path"]
        for entry in manifest["artefacts"]
        if entry["format"] in _INTEGERS
        and entry["latency_ms"]["median"]
        > times.get(tuple(entry["input"]["shape"]), float("inf"))
    ]


def _coarse_cost(manifest):
    if not conversion_losses(manifest):
        return ""
    return (
        " By conversion: against Keras with labels as coarse as the artefact's."
    )


def _size_cost(manifest):
    return "".join(
        f" Resizing images to {height}x{width} alone changes Keras' mean IoU "
        f"by {0.0 - points:+.2f} points."
        for (height, width), points in size_costs(manifest).items()
    )


def _front_matter(name, score, about, tags=("tflite",)):
    """Returns the metadata for the Hugging Face Hub as YAML."""
    import yaml

    content = {
        "library_name": "keras",
        "pipeline_tag": "image-segmentation",
        "tags": ["image-segmentation", *tags, "keras-aspp"],
    }
    if about["license"]:
        content = {"license": about["license"], **content}
    if about["dataset"] and score is not None:
        result = {
            "task": {"type": "image-segmentation"},
            "dataset": {"type": about["dataset"], "name": about["dataset"]},
            "metrics": [
                {
                    "type": "mean_iou",
                    "value": score,
                    "name": f"mean IoU, {about['evaluated_on']}",
                }
            ],
        }
        content["metrics"] = ["mean_iou"]
        content["model-index"] = [{"name": name, "results": [result]}]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _calibration(manifest):
    count = manifest["calibration_images"]
    if not count:
        return ""
    images = num_of(count, "image")
    return f" Integer ranges: of {images} spread over the training split."


def _number(value, digits=4):
    return "" if value is None else f"{value:.{digits}f}"
