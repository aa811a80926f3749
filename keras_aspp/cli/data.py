"""keras-aspp data: look at a data set before it is trained on."""

import os
from pathlib import Path

import numpy as np

from keras_aspp.cli.configuration import (
    config_names,
    config_path,
    load_config,
    print_table,
)
from keras_aspp.cli.main import Parser

SIZES_SHOWN = 3
CELL_PX = 480  # of a picture in the preview, its longer side
LEGEND_CLASSES = 32  # with more, the legend names only those that occur


def run(arguments):
    """Checks a data set, or draws a sheet of it."""
    parser = Parser(
        prog="keras-aspp data",
        description="Look at a data set before it is trained on.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check",
        help="read every picture and mask, list all that is wrong",
        description="Read every picture and mask of a folder data set; list "
        "all that is wrong, count classes and sizes. Exit status 1 if "
        "anything is wrong.",
        allow_abbrev=False,
    )
    check.add_argument("root", type=Path, metavar="ROOT")
    check.add_argument("--json", type=Path, metavar="FILE")
    preview = commands.add_parser(
        "preview",
        help="draw a sheet of pictures with their masks",
        description="Draw pictures beside their masks, with a legend.",
        allow_abbrev=False,
    )
    preview.add_argument(
        "data",
        metavar="ROOT|NAME",
        help="folder data set, or NAME or FILE of a configuration",
    )
    preview.add_argument(
        "--output", required=True, type=Path, metavar="FILE.png"
    )
    preview.add_argument("--split", help="training split if not given")
    preview.add_argument("--count", type=int, default=12, help="pictures")
    preview.add_argument(
        "--augmented",
        action="store_true",
        help="random crops, as the network gets them",
    )
    flags = parser.parse_args(arguments)
    if flags.command == "check":
        return _check(flags.root, flags.json)
    if flags.count < 1:
        preview.error(f"--count must be > 0. Received: {flags.count}")
    if flags.output.suffix.lower() != ".png":
        preview.error(f"--output must end in .png. Received: {flags.output}")
    return _preview(flags)


def _check(root, json_file):
    from keras_aspp.data.folder import FolderSource, check_folder

    report = check_folder(FolderSource(root), progress=_counted)
    for problem in report.problems:
        print(" ".join(problem.split()))
    if report.problems:
        print()
    _print_report(report)
    if json_file:
        from keras_aspp.engine.files import write_json

        write_json(json_file, _report_dict(root, report))
        print(f"\nreport  {json_file}")
    count = len(report.problems)
    print()
    if not count:
        print("No problems.")
        return 0
    print("1 problem." if count == 1 else f"{count} problems.")
    return 1


def _counted(pairs):
    """Goes through `pairs` with a counter on a terminal."""
    from keras_aspp.cli.evaluate import show_progress

    for done, pair in enumerate(pairs, start=1):
        yield pair
        show_progress(done, len(pairs))


def _print_report(report):
    splits = list(report.num_images)
    rows = [("split", "pictures", "height x width (pictures)")]
    for split in splits:
        sizes = _by_frequency(report.sizes[split])
        shown = [f"{h}x{w} ({n})" for (h, w), n in sizes[:SIZES_SHOWN]]
        rest = len(sizes) - SIZES_SHOWN
        if rest > 0:
            shown.append(f"{rest} more sizes")
        rows.append((split, report.num_images[split], ", ".join(shown)))
    print_table(rows)
    print()
    rows = [("% of labelled pixels", *splits)]
    shares = {s: _shares(report.class_pixels[s]) for s in splits}
    for label, name in enumerate(report.spec.class_names):
        cells = (_percent(shares[s][0][label]) for s in splits)
        rows.append((f"{label:3} {name}", *cells))
    rows.append(
        ("ignored, % of all pixels", *(_percent(shares[s][1]) for s in splits))
    )
    print_table(rows)
    if report.notes:
        print()
    for note in report.notes:
        print(f"Note: {' '.join(note.split())}.")


def _by_frequency(sizes):
    return sorted(sizes.items(), key=lambda item: (-item[1], item[0]))


def _shares(pixels):
    """Each class' share of the labelled pixels; the ignored of all."""
    labelled, everything = pixels[:-1].sum(), pixels.sum()
    nothing = np.full(len(pixels) - 1, np.nan)
    return (
        pixels[:-1] / labelled if labelled else nothing,
        pixels[-1] / everything if everything else np.nan,
    )


def _percent(share):
    return "-" if np.isnan(share) else f"{100 * share:6.2f}"


def _report_dict(root, report):
    splits = {}
    for split, pixels in report.class_pixels.items():
        shares, ignored = _shares(pixels)
        splits[split] = {
            "num_images": report.num_images[split],
            "sizes": [
                {"height": h, "width": w, "num_images": n}
                for (h, w), n in _by_frequency(report.sizes[split])
            ],
            "class_pixels": dict(
                zip(report.spec.class_names, pixels[:-1].tolist(), strict=True)
            ),
            "class_shares": dict(
                zip(report.spec.class_names, map(_number, shares), strict=True)
            ),
            "ignored_pixels": int(pixels[-1]),
            "ignored_share": _number(ignored),
        }
    return {
        "root": str(root),
        "num_classes": report.spec.num_classes,
        "ignore_label": report.spec.ignore_label,
        "splits": splits,
        "notes": report.notes,
        "problems": report.problems,
    }


def _number(share):
    return None if np.isnan(share) else round(float(share), 6)


def _preview(flags):
    from keras_aspp.data.sources import open_source

    config = _data_config(flags.data)
    source = open_source(config)
    split = flags.split or _first_split(source, config)
    examples = list(_examples(source, split, flags.count))
    if flags.augmented:
        examples = _augmented(examples, config, source.spec.ignore_label)
    name = Path(os.path.abspath(flags.data)).name
    title = f"{name}, {split}: {len(examples)} of {source.size(split)}"
    if flags.augmented:
        title += f", as crops of {config.crop_size[0]}x{config.crop_size[1]}"
    draw_sheet(flags.output, title, examples, source.spec)
    print_table([("preview", flags.output)])
    return 0


def _data_config(name):
    from keras_aspp.config import DataConfig

    if os.path.isdir(name):
        return DataConfig(root=name)
    try:
        path = config_path(name)
    except FileNotFoundError:
        raise FileNotFoundError(
            "Neither a folder nor a configuration. Received: "
            f"{name!r}; configurations: {', '.join(config_names())}"
        ) from None
    return load_config(path).data


def _first_split(source, config):
    """The training split, or in its stead the first one of a folder."""
    filled = [s for s, pairs in getattr(source, "pairs", {}).items() if pairs]
    if not filled or config.train_split in filled:
        return config.train_split
    return filled[0]


def _examples(source, split, count):
    """`(name, picture, labels)` of examples spread over a split."""
    step = max(1, source.size(split) // count)
    records = source.records(split).shard(step, 0).take(count)
    for record in records.as_numpy_iterator():
        name = source.name_of(record).split(", ")[-1]
        yield Path(name).name, *source.decode(*record)


def _augmented(examples, config, ignore_label):
    import tensorflow as tf

    from keras_aspp.data.augment import Augment

    crop = Augment(config.augment, config.crop_size, ignore_label)
    cropped = []
    for index, (name, image, labels) in enumerate(examples):
        image, labels = crop(image, labels, tf.constant([0, index]))
        image = np.round(image.numpy()).astype("uint8")
        cropped.append((name, image, labels.numpy()))
    return cropped


def draw_sheet(output, title, examples, spec):
    """Writes pictures beside their labels as one PNG, atomically.

    Args:
        output: path of the PNG.
        title: str.
        examples: list of `(name, uint8 [H, W, 3], int [H, W])`.
        spec: `DatasetSpec`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = [_cell(image, labels, spec) for _, image, labels in examples]
    columns = min(3, len(cells))
    rows = -(-len(cells) // columns)
    shape = np.median([cell.shape[:2] for cell in cells], axis=0)
    width = 4.6 * columns  # inches
    row_height = 4.6 * shape[0] / shape[1] + 0.25
    handles = _legend(examples, spec)
    legend_rows = -(-len(handles) // max(1, int(width / 1.5)))
    legend_height = 0.24 * legend_rows + 0.3
    height = row_height * rows + legend_height + 0.45
    # No pyplot: it would keep the figure, and may want a display.
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        rows,
        columns,
        left=0.01,
        right=0.99,
        top=1 - 0.65 / height,
        bottom=legend_height / height,
        wspace=0.03,
        hspace=0.25 / (row_height - 0.25),
    )
    for i, (cell, (name, _, labels)) in enumerate(
        zip(cells, examples, strict=True)
    ):
        axes = figure.add_subplot(grid[i])
        axes.imshow(cell, interpolation="lanczos")
        axes.axis("off")
        size = f"{labels.shape[0]}x{labels.shape[1]}"
        short = name if len(name) < 48 else f"{name[:22]}...{name[-22:]}"
        axes.set_title(f"{short}  {size}", fontsize=8, color="0.3", pad=3)
    figure.suptitle(title, fontsize=12, y=1 - 0.12 / height, va="top")
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=-(-len(handles) // legend_rows),
        fontsize=9,
        frameon=False,
        handlelength=1.4,
        handleheight=1.1,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=110)
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)


def _cell(image, labels, spec):
    """Picture and overlay side by side; ignored pixels are hatched."""
    from PIL import Image

    from keras_aspp.engine.pictures import overlay

    over = overlay(image, labels, spec)
    y, x = np.indices(labels.shape)
    stripe_px = max(2, max(labels.shape) // 80)
    stripes = ((x + y) // stripe_px % 2)[..., None]
    hatched = np.where(stripes, 235, 150).astype("uint8")
    over = np.where((labels == spec.ignore_label)[..., None], hatched, over)
    scale = min(1, CELL_PX / max(labels.shape))
    size = [max(1, round(n * scale)) for n in labels.shape[::-1]]
    halves = [
        np.asarray(Image.fromarray(half).resize(size, Image.Resampling.LANCZOS))
        for half in (image, over)
    ]
    gap = np.full((size[1], max(2, size[0] // 60), 3), 255, "uint8")
    return np.concatenate([halves[0], gap, halves[1]], axis=1)


def _legend(examples, spec):
    from matplotlib.patches import Patch

    seen = set()
    for _, _, labels in examples:
        seen.update(np.unique(labels).tolist())
    shown = range(spec.num_classes)
    if spec.num_classes > LEGEND_CLASSES:
        shown = sorted(seen - {spec.ignore_label})
    colors = np.array(spec.colors()) / 255
    handles = [
        Patch(facecolor=colors[i], edgecolor="0.5", label=spec.class_names[i])
        for i in shown
    ]
    if spec.ignore_label in seen:
        handles.append(
            Patch(
                facecolor="0.92",
                edgecolor="0.55",
                hatch="////",
                label="ignored",
            )
        )
    return handles
