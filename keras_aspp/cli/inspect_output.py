"""Printed reports of `keras-aspp inspect`."""

from keras_aspp.cli.output import print_table


def print_report(found, layers=False):
    """Prints a report as text.

    Args:
        found: dict, see `analysis.report`.
        layers: bool. Every layer, instead of stages and head.
    """
    size = _size(found["image_size"])
    on = f" on {found['backbone']}" if found["backbone"] else ""
    print(f"{found['name']}: {found['kind']}{on}, {size} image")
    if found["note"]:
        print(found["note"])
    facts = []
    if found["output_stride"]:
        scale = found["input_scale"]
        of = f" of images upsampled by {scale}" if scale > 1 else ""
        facts.append(f"output stride {found['output_stride']:g}{of}")
    if found["atrous_rates"]:
        rates = ", ".join(map(_one_or_size, found["atrous_rates"]))
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
    _print_section("Cost, one image", _cost_rows(found))
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
    return "x".join("?" if n is None else f"{n:g}" for n in pair)


def _one_or_size(value):
    """Formats one number for both axes, or `[height, width]`."""
    return f"{value:g}" if isinstance(value, (int, float)) else _size(value)


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
                _one_or_size(row["rate"]),
                _size(row["map"]),
                "-" if spacing is None else f"{_one_or_size(spacing)} px",
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
    cells = _size([cells, cells] if isinstance(cells, int) else cells)
    holes = stack["unseen_share"] > 0
    return (
        rates_text(stack["rates"]),
        f"{cells} cells",
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
    """Prints the description of an artefact.

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
                _one_or_size(row["rate"]),
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
