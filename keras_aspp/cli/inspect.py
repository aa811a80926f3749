"""keras-aspp inspect."""

import json
import os
import sys
from pathlib import Path

from keras_aspp.cli.configuration import config_path, load_config, print_table
from keras_aspp.cli.main import Parser

IMAGE_SIZE = (512, 512)


def run(arguments):
    """Says what a model costs, what it sees and what it misses."""
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
        help="workdir, exported folder, any .keras model of one picture, "
        "SavedModel or .tflite",
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
        raise ValueError(
            "--figures must be a folder. "
            f"Received: {str(flags.figures)!r}, a file"
        )
    found, model = _examine(flags, overrides)
    if flags.json != "-" and model is None:
        print_artefact(found)
    elif flags.json != "-":
        print_report(found, flags.layers)
    written = []
    if flags.figures is not None and model is None:
        raise ValueError(
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
        from keras_aspp.files import write_json

        write_json(flags.json, found)
        written.append(("numbers", flags.json))
    if written:
        print()
        print_table(written)
    return 0


def _examine(flags, overrides):
    """The report, and the Keras model if there is one."""
    from keras_aspp.analysis.report import report

    if flags.config is not None:
        config = load_config(config_path(flags.config), overrides)
        model, note = model_of(config)
        size = flags.image_size or config.data.crop_size
        found = report(model, tuple(size))
        return {**found, "note": note}, model
    path = find_model(flags.model)
    if path.suffix == ".keras":
        from keras_aspp.models.segmenter import load_keras

        model = load_keras(path)
        size = flags.image_size or _own_size(model) or IMAGE_SIZE
        return {**report(model, tuple(size)), "note": None}, model
    if flags.image_size:
        raise ValueError(
            "An artefact has the size it was exported for, so --image-size "
            f"needs a Keras model. Received: --model {path}"
        )
    from keras_aspp.analysis import artefact

    if path.suffix == ".tflite":
        return artefact.describe_tflite(path), None
    return artefact.describe_saved_model(path), None


def model_of(config):
    """The segmenter of a configuration, without its weights.

    Args:
        config: `Config`.

    Returns:
        `(model, note)`: the model, and what it stands for, in words.
    """
    import dataclasses

    from keras_aspp.models.factory import build_model

    num_classes, source = _num_classes(config.data)
    bare = dataclasses.replace(
        config.model, backbone_weights=None, weights=None
    )
    model = build_model(bare, num_classes, dtype=config.train.precision)
    note = f"built without its weights, for {num_classes} classes ({source})"
    return model, note


def _num_classes(data):
    if data.class_names is not None:
        return len(data.class_names), "those of the configuration"
    from keras_aspp.data.sources import open_source

    try:
        return open_source(data).spec.num_classes, "those of the data set"
    except (ValueError, OSError):
        return 21, "assumed, as the data set is not here"


def find_model(path):
    """The file or SavedModel folder that `--model` means.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return path
        inside = [path / "model.keras", path / "saved_model"]
        for candidate in (*inside, *sorted(path.glob("*.tflite"))):
            if candidate.exists():
                return candidate
    elif path.is_file() and path.suffix in (".keras", ".tflite"):
        return path
    raise FileNotFoundError(
        "--model must be a .keras or .tflite file, a SavedModel, a workdir "
        f"or an exported folder. Received: {str(path)!r}"
        + ("" if path.exists() else ", which does not exist")
    )


def _own_size(model):
    shape = getattr(model, "input_shape", None)
    if isinstance(shape, tuple) and len(shape) == 4 and None not in shape[1:3]:
        return shape[1:3]
    return None


def _draw(model, found, folder):
    from keras_aspp.analysis import figures

    os.makedirs(folder, exist_ok=True)
    return [
        (name, figures.save(figure, folder, name))
        for name, figure in figures.of_report(model, found).items()
    ]


def print_report(found, layers=False):
    """Prints a report as text.

    Args:
        found: dict, see `analysis.report`.
        layers: bool. Every layer, instead of stages and head.
    """
    size = _size(found["image_size"])
    on = f" on {found['backbone']}" if found["backbone"] else ""
    print(f"{found['name']}: {found['kind']}{on}, {size} picture")
    if found["note"]:
        print(found["note"])
    facts = []
    if found["output_stride"]:
        facts.append(f"output stride {found['output_stride']:g}")
    if found["atrous_rates"]:
        rates = ", ".join(map(str, found["atrous_rates"]))
        facts.append(f"atrous rates {rates}")
    if facts:
        print("; ".join(facts))
    print(
        "sees: pixels on which a cell can depend; center: where cell (0, 0) "
        "looks, 0 px with symmetric padding"
    )
    if layers:
        _print_section("Layers", _layer_rows(found["layers"]))
    else:
        _print_section("Feature maps", _map_rows(found["stages"]))
        _print_section("Head", _map_rows(found["head"]))
    _print_section("Atrous convolutions", _atrous_rows(found["atrous"]))
    _print_section(
        "Convolutions in a row, of branches the widest",
        _stack_rows(found["gridding"]),
    )
    _print_section("Cost, one picture", _cost_rows(found))
    peak = found["cost"]["peak_activation_bytes"]
    print(
        f"peak memory of activations at inference {_mega(peak)} MB; one "
        "multiply-add counts once, of convolutions and dense layers only"
    )
    for warning in found["warnings"]:
        print(f"warning: {warning}")


def _print_section(title, rows):
    if len(rows) > 1:
        print(f"\n{title}")
        print_table(rows)


def _size(pair):
    return "x".join(f"{n:g}" for n in pair)


def _shape(row):
    return _size(row["shape"])


def _sees(row):
    if row["receptive_field"] is None:
        return "global"
    guessed = " (guessed)" if row["assumed"] else ""
    rest = " + global" if row["global"] else ""
    return f"{_size(row['receptive_field'])} px{rest}{guessed}"


def _stride(row):
    if row["stride"] is None:
        return "-"
    a, b = row["stride"]
    return f"{a:g}" if a == b else f"{a:g}x{b:g}"


def _center(row):
    return "-" if row["center"] is None else f"{row['center'][0]:+g}"


def _map_rows(maps):
    head = ("map", "layer", "size", "stride", "sees", "center, px")
    rows = [
        (
            row["name"],
            row["kind"] if row["name"] == row["layer"] else row["layer"],
            _shape(row),
            _stride(row),
            _sees(row),
            _center(row),
        )
        for row in maps
    ]
    return [head, *rows]


def _layer_rows(layers):
    head = ("layer", "kind", "size", "kernel", "rate", "stride", "sees")
    rows = [
        (
            row["name"],
            row["kind"],
            _shape(row),
            _size(row["kernel_size"]) if row["kernel_size"] else "-",
            _size(row["dilation"]) if row["dilation"] else "-",
            _stride(row),
            _sees(row),
            f"{row['parameters']:,}",
            f"{row['madds'] / 1e6:,.1f} M",
        )
        for row in layers
    ]
    return [(*head, "parameters", "MAdds"), *rows]


def _atrous_rows(atrous):
    head = ("where", "layers", "kernel", "rate", "map", "taps apart")
    rows = []
    for row in atrous:
        taps = "-" if row["valid_taps"] is None else f"{row['valid_taps']:.0%}"
        spacing = row["spacing_px"]
        rows.append(
            (
                row["name"],
                row["layers"],
                _size(row["kernel_size"]),
                row["rate"],
                _size(row["map"]),
                "-" if spacing is None else f"{spacing:g} px",
                taps + (" (acts as 1x1)" if row["degenerate"] else ""),
                _sees(row),
            )
        )
    return [(*head, "taps on the map", "sees"), *rows]


def _stack_rows(stacks):
    rows = [("map", "rates", "spans", "never seen", "suggested")]
    for stack in stacks:
        rows.append((stack["name"], *_stack_cells(stack)))
        end = stack["dilated_end"]
        if end and end["rates"] != stack["rates"]:
            rows.append(("  its dilated end alone", *_stack_cells(end)))
    return rows


def _stack_cells(stack):
    from keras_aspp.analysis.gridding import rates_text

    cells = stack["field_cells"]
    holes = stack["unseen_share"] > 0
    return (
        rates_text(stack["rates"]),
        f"{cells}x{cells} cells",
        f"{stack['unseen_share']:.0%}",
        rates_text(stack["suggestion"]) if holes else "-",
    )


def _mega(number):
    return f"{number / 1e6:,.1f}"


def _cost_rows(found):
    total = {**found["cost"], "name": "together"}
    rows = [("part", "parameters", "MAdds, millions", "activations, MB")]
    for row in [*found["parts"], total]:
        rows.append(
            (
                row["name"],
                f"{row['parameters']:,}",
                _mega(row["madds"]),
                _mega(row["activation_bytes"]),
            )
        )
    return rows


def print_artefact(found):
    """Prints what an artefact shows of itself.

    Args:
        found: dict, see `analysis.artefact`.
    """
    print(f"{found['path']}: {found['format']}, {_mega(found['bytes'])} MB")
    print("layers and receptive fields are known of Keras models only")
    if found["format"] == "tflite":
        _print_tflite(found)
    else:
        print(f"{found['parameters']:,} parameters")
        for name, signature in found["signatures"].items():
            rows = [("signature " + name, "name", "shape", "dtype")]
            for side in ("inputs", "outputs"):
                for key, spec in signature[side].items():
                    shape = _open_shape(spec["shape"])
                    rows.append((side, key, shape, spec["dtype"]))
            print()
            print_table(rows)
    if found["manifest"]:
        rows = [("of its manifest", "")]
        for key, value in found["manifest"].items():
            rows.append((key, "-" if value is None else _plain(value)))
        print()
        print_table(rows)


def _print_tflite(found):
    madds = found["madds"]
    count = "sizes left open" if madds is None else f"{_mega(madds)} million"
    print(
        f"weights {_mega(found['weights_bytes'])} MB as stored; "
        f"multiply-adds: {count}"
    )
    rows = [("tensor", "name", "shape", "dtype", "MB")]
    for kind in ("inputs", "outputs", "largest_activations"):
        for tensor in found[kind]:
            rows.append(
                (
                    kind.removesuffix("s").replace("_", " "),
                    tensor["name"][-40:],
                    _open_shape(tensor["shape"]),
                    tensor["dtype"],
                    f"{tensor['bytes'] / 1e6:.2f}",
                )
            )
    print()
    print_table(rows)
    rows = [("dilated", "layers", "kernel", "rate", "map")]
    for row in found["atrous"]:
        rows.append(
            (
                row["operator"],
                row["layers"],
                _size(row["kernel_size"]),
                row["rate"],
                _size(row["map"]),
            )
        )
    _print_section("Atrous convolutions", rows)
    _print_section(
        "Operators", [("operator", "count"), *found["operators"].items()]
    )


def _open_shape(shape):
    if shape is None:
        return "unknown"
    return "x".join("?" if n in (None, -1) else str(n) for n in shape)


def _plain(value):
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return value
