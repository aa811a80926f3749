"""Command `keras-aspp inspect`."""

import contextlib
import json
import os
import sys
from pathlib import Path

from keras_aspp.cli.inspect_output import print_artefact, print_report
from keras_aspp.cli.main import Parser
from keras_aspp.cli.output import print_table
from keras_aspp.config.load import config_path, load_config
from keras_aspp.utils.exceptions import InputError, InputNotFoundError

IMAGE_SIZE = (512, 512)
# As many as PASCAL VOC has.
ASSUMED_CLASSES = 21


def run(arguments):
    """Reports cost, receptive field and gridding of a model."""
    parser = Parser(
        prog="keras-aspp inspect",
        description="Feature sizes, rates, receptive fields, valid taps, "
        "gridding and cost of a model. Fields of a configuration are "
        "overridden by --section.field value.",
        allow_abbrev=False,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", help="NAME or FILE; the model it describes")
    which.add_argument(
        "--model",
        help="workdir, exported folder, any .keras model of one image, "
        "SavedModel or .tflite; also hf://user/name of one",
    )
    parser.add_argument(
        "--image-size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="the model's own, the configuration's crop, or 512 512",
    )
    parser.add_argument(
        "--layers", action="store_true", help="every layer, not the stages"
    )
    parser.add_argument("--json", help="file for the numbers; - prints them")
    parser.add_argument(
        "--figures", type=Path, help="folder for figures, PNG and SVG"
    )
    flags, overrides = parser.parse_known_args(arguments)
    for word in overrides:
        if word.startswith("--") and (not flags.config or "." not in word):
            parser.error(f"unknown flag {word.split('=')[0]}")
    if overrides and not flags.config:
        parser.error(f"unexpected {overrides[0]!r}")
    if flags.figures is not None and flags.figures.is_file():
        raise InputError(
            "--figures must be a folder. "
            f"Received: {str(flags.figures)!r}, a file"
        )
    if flags.json not in (None, "-"):
        from keras_aspp.utils.files import prepare_file

        prepare_file(flags.json)
    # Messages must not stand among the numbers.
    output = sys.stderr if flags.json == "-" else sys.stdout
    with contextlib.redirect_stdout(output):
        found, model = _examine(flags, overrides)
    if flags.json != "-" and model is None:
        print_artefact(found)
    elif flags.json != "-":
        print_report(found, flags.layers)
    written = []
    if flags.figures is not None and model is None:
        raise InputError(
            "Figures are drawn of Keras models only, whose layers are known. "
            f"Received: --model {flags.model}"
        )
    if flags.figures is not None:
        written = _draw(model, found, flags.figures)
    if flags.json == "-":
        json.dump(found, sys.stdout, indent=2)
        print()
        return 0
    if flags.json:
        from keras_aspp.utils.files import write_json

        write_json(flags.json, found)
        written.append(("numbers", flags.json))
    if written:
        print()
        print_table(written)
    return 0


def _examine(flags, overrides):
    """Returns the report, and the Keras model if there is one."""
    from keras_aspp.analysis.report import report

    if flags.config is not None:
        config = load_config(config_path(flags.config), overrides)
        model, note = model_of(config)
        size = flags.image_size or config.data.crop_size
        found = report(model, tuple(size))
        return {**found, "note": note}, model
    from keras_aspp.inference.artefacts import resolve
    from keras_aspp.litert import describe

    path = resolve(flags.model)
    if path.suffix == ".keras":
        from keras_aspp.models.archive import load_keras

        model = load_keras(path)
        size = flags.image_size or _own_size(model) or IMAGE_SIZE
        return {**report(model, tuple(size)), "note": None}, model
    if flags.image_size:
        raise InputError(
            "An artefact has the size it was exported for, so --image-size "
            f"needs a Keras model. Received: --model {path}"
        )

    if path.suffix == ".tflite":
        return describe.describe_tflite(path), None
    if path.is_file():
        raise InputError(
            "`inspect` reads .keras, .tflite and SavedModels; name one of "
            f"those of the same export. Received: --model {path}"
        )
    return describe.describe_saved_model(path), None


def model_of(config):
    """Builds the segmenter of a configuration, without its weights.

    Args:
        config: `Config`.

    Returns:
        `(model, note)`: the model, and a note on how it was built.
    """
    import dataclasses

    from keras_aspp.models.factory import build_model

    spec, origin = _spec_of(config.data)
    bare = dataclasses.replace(
        config.model, backbone_weights=None, weights=None
    )
    model = build_model(
        bare,
        spec.num_classes,
        dtype=config.train.precision,
        pixels=spec.pixels,
        task=spec.task,
    )
    classes = f"{spec.num_classes} classes ({origin})"
    return model, f"built without its weights, for {classes}"


def _spec_of(data):
    """Returns the `DatasetSpec` of a `DataConfig`, and its origin as text."""
    from keras_aspp.data.sources import open_source
    from keras_aspp.data.spec import DatasetSpec

    names = data.class_names
    reason = "no data set is named"
    # Opening a TFDS data set downloads it, which known classes make needless.
    if data.root is not None or (data.tfds is not None and names is None):
        try:
            return open_source(data, strict=False).spec, "those of the data set"
        except InputNotFoundError:
            reason = "the data set is not here"
    if names is None and data.task == "binary":
        names = ["object"]
    if names is None:
        names = [str(i) for i in range(ASSUMED_CLASSES)]
        return DatasetSpec(names, task=data.task), f"assumed, as {reason}"
    spec = DatasetSpec(
        names, data.ignore_label, label_map=data.label_map, task=data.task
    )
    return spec, "those of the configuration"


def _own_size(model):
    shape = getattr(model, "input_shape", None)
    if isinstance(shape, tuple) and len(shape) == 4 and None not in shape[1:3]:
        return shape[1:3]
    return None


def _draw(model, found, folder):
    from keras_aspp.plots import model_report
    from keras_aspp.plots.figure import save

    os.makedirs(folder, exist_ok=True)
    return [
        (name, save(figure, folder, name))
        for name, figure in model_report.of_report(model, found).items()
    ]
