"""Tables and progress that several commands print."""

import shlex
import sys
from pathlib import Path

from keras_aspp.utils.text import num_of, printable


def print_table(rows):
    """Prints rows of cells in aligned columns."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (c.ljust(w) for c, w in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def show_progress(done, total):
    """Shows a counter on a terminal; silent elsewhere."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done}/{total} images", end=end, file=sys.stderr)


# Loss of mean IoU by resizing, in points, above which it is printed.
NOTABLE_POINTS = 0.5


def print_artefacts(manifest, output):
    """Prints the artefacts of a manifest as a table."""
    from keras_aspp.export import card

    head = ("artefact", "MB", "agreement", "mean IoU", "Keras at its size")
    losses = card.conversion_losses(manifest)
    of_conversion = ("by conversion",) if losses else ()
    rows = [(*head, "points lost", *of_conversion, "ms")]
    for i, entry in enumerate(manifest["artefacts"]):
        iou = entry["mean_iou"]
        rows.append(
            (
                Path(output) / entry["path"],
                f"{entry['bytes'] / 1e6:.2f}",
                f"{entry['agreement_with_keras']:.4%}",
                "" if iou is None else f"{iou:.4f}",
                "" if iou is None else f"{entry['keras_mean_iou']:.4f}",
                "" if iou is None else f"{entry['loss_points']:.2f}",
                *(f"{points:.2f}" for points in losses[i : i + 1]),
                card.latency(entry),
            )
        )
    print()
    print_table(rows)
    for size, points in card.size_costs(manifest).items():
        if points >= NOTABLE_POINTS:
            print(
                f"Resizing images to {size[0]}x{size[1]}, not the conversion, "
                f"costs {points:.2f} points against their own sizes "
                "(--export.image_size chooses another)"
            )
    for entry in manifest["artefacts"]:
        if in_float := entry.get("float_operators"):
            counts = ", ".join(f"{n} {name}" for name, n in in_float.items())
            print(f"In float within {entry['path']}: {counts}")
    slower = card.slower_than_float(manifest)
    if slower:
        print(f"Slower than float32 on this machine: {', '.join(slower)}")
    print_table(
        [
            (name, Path(output) / file)
            for name, file in (
                ("manifest", "manifest.json"),
                ("card", "README.md"),
                ("preview", "preview.png"),
            )
        ]
    )


def print_operator_costs(costs):
    """Prints the operators of an int8 file, the costliest first."""
    head = ("operator", "type", "dB of its result", "dB lost over it")
    rows = [(*head, "dB of the scores, alone in int8")]
    for cost in costs:
        if cost.alone_db is not None:
            numbers = (f"{cost.snr_db:.1f}", f"{cost.drop_db:.1f}")
            rows.append(
                (cost.name, cost.type, *numbers, f"{cost.alone_db:.1f}")
            )
    print()
    print_table(rows)
    print(
        "dB: signal to rounding error, low is costly. --export.int8_in_float "
        '"[operator, ...]" leaves operators, or whole layers, in float.'
    )


def print_files(workdir):
    """Prints the files of a run, and how to show its curves."""
    logs = workdir / "logs"
    print_table(
        [
            ("model", workdir / "model.keras"),
            ("metrics", workdir / "metrics.json"),
            ("history", logs / "history.csv"),
            ("curves", f"tensorboard --logdir {shlex.quote(str(logs))}"),
        ]
    )


def _print_multilabel(per_class, mean):
    """Prints the measures of each class and their means."""
    columns = [name for name in mean if name != "iou"]
    found = {**per_class, "mean": mean}
    table = [("class", "IoU", *columns, "threshold")]
    for name, values in found.items():
        shown = (values.get(key) for key in ("iou", *columns, "threshold"))
        cells = ("" if v is None else f"{v:.4f}" for v in shown)
        table.append((name, *cells))
    print_table(table)


def print_metrics(metrics):
    """Prints the contents of `metrics.json`: tables, notes and advice."""
    images = num_of(metrics["num_images"], "image")
    print(f"\n{images} of split {metrics['split']}")
    if metrics.get("runtime"):
        how = metrics["runtime"]
        if metrics["precision"] != "float32":
            how += f" ({metrics['precision']})"
        print(f"measured  {printable(metrics['artefact'])} in {how}")
    if "multilabel" in metrics:
        _print_multilabel(**metrics["multilabel"])
    else:
        rows = [("class", "IoU")]
        for name, iou in metrics["per_class_iou"].items():
            rows.append((name, "absent" if iou is None else f"{iou:.4f}"))
        print_table(rows)
    rows = _measures(metrics)
    if rows:
        print()
        print_table([("measure", "value"), *rows])
    for line in metrics.get("notes", []):
        print(f"\nNote: {printable(line)}.")
    for line in metrics.get("advice", []):
        print(f"\nAdvice: {printable(line)}.")


def _measures(metrics):
    """Returns the rows of measures that belong to no class."""
    values = {}
    if "multilabel" not in metrics:  # whose table has its own means
        for name in ("mean_iou", "pixel_accuracy", "mean_accuracy"):
            values[name] = metrics[name]
        for name in ("boundary_iou", "calibration_error"):
            if metrics.get(name) is not None:
                values[name] = metrics[name]
    for name, value in metrics.get("binary", {}).items():
        values[f"object: {name}"] = value
    for width, value in metrics.get("band_mean_iou", {}).items():
        values[f"mean_iou within {width} px"] = value
    for size, value in metrics.get("recall_by_size_px", {}).items():
        objects = num_of(metrics["objects_by_size_px"][size], "object")
        values[f"recall, {objects} of {size} px"] = value
    return [
        (name, "none" if value is None else f"{value:.4f}")
        for name, value in values.items()
    ]
