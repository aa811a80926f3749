"""Command `keras-aspp data`: import, check, show or convert a data set."""

import dataclasses
import json
import os
import shlex
from pathlib import Path

import numpy as np

from keras_aspp.cli.main import Parser, add_beam, beam_options
from keras_aspp.cli.output import print_table, show_progress
from keras_aspp.config.load import config_path, load_config, shown_config_names
from keras_aspp.utils.exceptions import InputError, InputNotFoundError
from keras_aspp.utils.text import num_of, printable

SIZES_SHOWN = 3


def run(arguments):
    """Imports, checks, draws, mends or converts a data set."""
    parser = Parser(
        prog="keras-aspp data",
        description="Import annotations; look at a data set before it is "
        "trained on; convert it.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_check(commands)
    preview = commands.add_parser(
        "preview",
        help="draw a sheet of images with their masks",
        description="Draw images beside their masks, with a legend.",
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
    preview.add_argument("--count", type=int, default=12, help="images")
    preview.add_argument(
        "--augmented",
        action="store_true",
        help="random crops, as the network gets them",
    )
    convert = commands.add_parser(
        "convert",
        help="write a folder data set into sharded tfrecord files",
        description="Write a folder data set into sharded tfrecord files, "
        "which are read from beginning to end. `--data.root` takes the folder "
        "it makes, and TFDS reads it. For a multilabel task, a record holds a "
        "sequence of masks.",
        allow_abbrev=False,
    )
    convert.add_argument("--root", required=True, type=Path, metavar="ROOT")
    convert.add_argument("--output", required=True, type=Path, metavar="DIR")
    convert.add_argument(
        "--shards", type=int, help="of each split; by size if not given"
    )
    add_beam(convert, "convert")
    _add_import(commands)
    _add_fix(commands)
    flags = parser.parse_args(arguments)
    if flags.command == "check":
        return _check(flags)
    if flags.command == "import":
        return _import(flags)
    if flags.command == "fix":
        return _fix(flags)
    if flags.command == "convert":
        return _convert(flags, beam_options(convert, flags))
    if flags.count < 1:
        preview.error(f"--count must be > 0. Received: {flags.count}")
    if flags.output.suffix.lower() != ".png":
        preview.error(f"--output must end in .png. Received: {flags.output}")
    return _preview(flags)


def _add_check(commands):
    """Adds the parser of `data check`."""
    check = commands.add_parser(
        "check",
        help="read every image and mask, list all problems",
        description="Read every image and mask of a folder data set; list "
        "all that is wrong, count classes and sizes. Exit status 1 if "
        "anything is wrong for training.",
        allow_abbrev=False,
    )
    check.add_argument(
        "data",
        metavar="ROOT|NAME",
        help="folder data set, or NAME or FILE of a configuration",
    )
    for split in ("train", "validation"):
        check.add_argument(
            f"--data.{split}_split",
            metavar="NAME",
            help=f"{split} split, as for `keras-aspp train`",
        )
    check.add_argument(
        "--data.group_by",
        metavar="REGEX",
        help="note groups, such as videos, that lie in several splits, as for "
        "`keras-aspp train`",
    )
    check.add_argument("--json", type=Path, metavar="FILE")
    check.add_argument(
        "--write",
        action="store_true",
        help="write the bands, their type, mean and spread into dataset.json",
    )


def _add_import(commands):
    parser = commands.add_parser(
        "import",
        help="make a folder data set of a labeling tool's annotations",
        description="Make a folder of images and masks from annotations: "
        "COCO, labelme, YOLO segmentation, CVAT and PASCAL VOC masks, "
        "Roboflow masks, Cityscapes, Label Studio, Supervisely. Needs the "
        "extra `import`.",
        allow_abbrev=False,
    )
    parser.add_argument("source", help="folder, zip archive or JSON file")
    parser.add_argument("output", type=Path, help="folder to create")
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="folder of the images, if they are not in SOURCE",
    )
    parser.add_argument(
        "--format",
        metavar="NAME",
        help="format of the annotations; recognized if not given",
    )
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="rename or merge a class; NEW may be `ignore` or `drop`; "
        "repeatable",
    )
    parser.add_argument(
        "--overlap",
        choices=("area", "z_order", "file"),
        default="area",
        help="what is on top: the smaller region (default), the tool's "
        "order, or the later region in the file",
    )
    parser.add_argument(
        "--background",
        default="background",
        metavar="NAME",
        help="name of the class of unlabeled pixels",
    )
    parser.add_argument(
        "--exif",
        choices=("auto", "upright", "stored"),
        default="auto",
        help="whether annotations fit images as shown or as stored, where "
        "their height and width do not tell",
    )
    parser.add_argument(
        "--group-by",
        metavar="REGEX",
        help="images whose names begin with the same match stay in one split, "
        "e.g. '[^_]+' for videos",
    )
    parser.add_argument(
        "--validation_fraction",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of `val` if the source has no splits",
    )
    parser.add_argument(
        "--test_fraction", type=float, default=0.0, metavar="SHARE"
    )
    parser.add_argument(
        "--task",
        choices=("semantic", "binary"),
        default="semantic",
        help="`binary` for one class beside the background",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an OUTPUT that `data import` wrote",
    )


def _add_fix(commands):
    parser = commands.add_parser(
        "fix",
        help="write upright copies of images that carry an EXIF orientation",
        description="Copy a folder data set; images that carry an EXIF "
        "orientation are stored upright as PNG, masks upright as class ids; "
        "for a multilabel task in a folder for each class.",
        allow_abbrev=False,
    )
    parser.add_argument("root", type=Path, help="folder data set")
    parser.add_argument("output", type=Path, help="folder to create")
    parser.add_argument(
        "--masks",
        choices=("own", "image"),
        help="`image` if masks fit images as these are stored; as "
        "dataset.json says if not given",
    )


def _import(flags):
    from keras_aspp.annotations import import_annotations
    from keras_aspp.data.folder import FolderSource, check_folder

    report = import_annotations(
        flags.source,
        flags.output,
        images=flags.images,
        annotation_format=flags.format,
        class_map=_class_map(flags.map),
        overlap=flags.overlap,
        background=flags.background,
        exif=flags.exif,
        group_by=flags.group_by,
        validation_fraction=flags.validation_fraction,
        test_fraction=flags.test_fraction,
        task=flags.task,
        overwrite=flags.overwrite,
        progress=_counted,
    )
    source = FolderSource(flags.output)
    checked = check_folder(source)
    if checked.bands:
        _write_bands(source, checked)
        checked = check_folder(FolderSource(flags.output))
    _print_problems(checked)
    print(f"format  {report.format}\n")
    _print_report(
        dataclasses.replace(checked, notes=[*report.notes, *checked.notes])
    )
    print()
    preview = flags.output / "preview.png"
    _draw_preview(flags.output, None, 12, False, preview)
    words = ["keras-aspp", "train", "--config", "folder"]
    words += ["--data.root", str(flags.output)]
    words += ["--workdir", f"runs/{flags.output.resolve().name}"]
    if "val" not in report.num_images:
        words += ["--data.validation_split", "null"]
    rows = [("data set", flags.output), ("next", shlex.join(words))]
    print_table(rows if "train" in report.num_images else rows[:1])
    return 1 if checked.problems else 0


def _class_map(pairs):
    """Parses `OLD=NEW` arguments."""
    for pair in pairs:
        if not all(pair.partition("=")):
            raise InputError(f"`--map` must be OLD=NEW. Received: {pair!r}")
    return dict(pair.split("=", 1) for pair in pairs)


def _fix(flags):
    from keras_aspp.data.folder import FolderSource
    from keras_aspp.data.upright import write_upright

    source = FolderSource(flags.root)
    if flags.masks is not None:
        source.spec = dataclasses.replace(
            source.spec, mask_orientation=flags.masks
        )
    turned = write_upright(source, flags.output, _counted)
    print_table([("data set", flags.output), ("images turned", turned)])
    return 0


def _check(flags):
    from keras_aspp.data.augment import padding_note
    from keras_aspp.data.folder import FolderSource, check_folder
    from keras_aspp.data.sources import open_source

    if flags.json:
        from keras_aspp.utils.files import prepare_file

        prepare_file(flags.json)
    config = _data_config(flags.data)
    config = dataclasses.replace(config, **_split_flags(flags))
    source = open_source(config)
    if not isinstance(source, FolderSource):
        raise InputError(
            "`data check` reads folders with images/ and masks/; records are "
            "checked when they are written. "
            f"Received: {config.tfds or config.root}"
        )
    used = (config.train_split, config.validation_split, config.test_split)
    splits = [*source.pairs, *(split for split in used if split is not None)]
    report = check_folder(source, splits, _counted)
    writes = flags.write and bool(report.bands)
    if writes:
        _write_bands(source, report)
        # What is written may be all that was missing.
        if report.problems:
            report = check_folder(open_source(config), splits, _counted)
    if not os.path.isdir(flags.data):
        sizes = report.sizes[config.train_split]
        padding = padding_note(sizes, config.crop_size, config.augment.scale)
        report.notes += [padding] if padding else []
    _print_problems(report)
    _print_report(report)
    if writes:
        print(f"\nwritten  {source.root / 'dataset.json'}")
    if flags.json:
        from keras_aspp.utils.files import write_json

        write_json(flags.json, _report_dict(source.root, report))
        print(f"\nreport  {flags.json}")
    count = len(report.problems)
    print(f"\n{num_of(count, 'problem') if count else 'No problems'}.")
    if flags.write and not writes:
        raise InputError(
            "--write is for training images of one format other than RGB of 8 "
            f"bits. Received: {source.root}"
        )
    return 1 if count else 0


def _bands_keys(report):
    """Returns the keys of dataset.json that describe the bands."""
    names = ("channels", "dtype", "mean", "std")
    return {name: report.bands[name] for name in names}


def _print_bands(report):
    """Prints the statistics of bands, and what to paste."""
    if not report.bands:
        return
    print()
    ends = ("mean", "std", "min", "max")
    rows = zip(*(report.bands[name] for name in ends), strict=True)
    print_table(
        [
            (f"band, {report.bands['dtype']}", *ends),
            *(
                (str(i), *(f"{value:g}" for value in row))
                for i, row in enumerate(rows, 1)
            ),
        ]
    )
    pixels = report.spec.pixels
    if pixels.mean is None and pixels.value_range is None:
        keys = json.dumps(_bands_keys(report))
        print(f"\nFor dataset.json (--write puts it there):\n{keys[1:-1]}")


def _write_bands(source, report):
    """Writes the format of the images into dataset.json.

    Without this file, writes all else that the configuration says, too.
    """
    from keras_aspp.utils.files import write_json
    from keras_aspp.utils.text import read_json

    path = source.root / "dataset.json"
    content = read_json(path) if path.is_file() else _described(source.spec)
    content.pop("value_range", None)
    write_json(path, content | _bands_keys(report))


def _described(spec):
    """Returns the keys of dataset.json that differ from their defaults."""
    return {
        field.name: getattr(spec, field.name)
        for field in dataclasses.fields(spec)
        if getattr(spec, field.name) != field.default
    }


def _split_flags(flags):
    """Returns what the flags say about splits; `null` means none."""
    given = {k.removeprefix("data."): v for k, v in vars(flags).items()}
    return {
        name: None if given[name] == "null" else given[name]
        for name in ("train_split", "validation_split", "group_by")
        if given[name] is not None
    }


def _convert(flags, options):
    import tensorflow_datasets as tfds
    from absl import logging

    from keras_aspp.data.convert import convert_folder
    from keras_aspp.data.folder import FolderSource

    tfds.disable_progress_bar()
    # TFDS warns about the folder that it creates.
    logging.set_verbosity(logging.ERROR)
    written = convert_folder(
        FolderSource(flags.root), flags.output, flags.shards, options, _counted
    )
    print_table(
        [
            ("split", "images", "shards"),
            *((split, *numbers) for split, numbers in written.items()),
        ]
    )
    print(f"\nrecords  {flags.output}")
    return 0


def _counted(pairs):
    """Yields `pairs` and shows a counter on a terminal."""
    for done, pair in enumerate(pairs, start=1):
        yield pair
        show_progress(done, len(pairs))


def _print_problems(report):
    for problem in report.problems:
        print(printable(problem))
    if report.problems:
        print()


def _print_report(report):
    splits = list(report.num_images)
    rows = [("split", "images", "height x width (images)")]
    for split in splits:
        sizes = _by_frequency(report.sizes[split])
        shown = [f"{h}x{w} ({n})" for (h, w), n in sizes[:SIZES_SHOWN]]
        rest = len(sizes) - SIZES_SHOWN
        if rest > 0:
            shown.append(f"{rest} more sizes")
        rows.append((split, report.num_images[split], ", ".join(shown)))
    print_table(rows)
    print()
    whole = "all" if report.spec.is_multilabel else "labeled"
    rows = [(f"% of {whole} pixels", *splits)]
    shares = {s: report.shares(s) for s in splits}
    for label, name in enumerate(report.spec.class_names):
        cells = (_percent(shares[s][0][label]) for s in splits)
        rows.append((f"{label:3} {name}", *cells))
    rows.append(
        ("ignored, % of all pixels", *(_percent(shares[s][1]) for s in splits))
    )
    print_table(rows)
    _print_bands(report)
    if report.notes:
        print()
    for note in report.notes:
        print(f"Note: {printable(note)}.")


def _by_frequency(sizes):
    return sorted(sizes.items(), key=lambda item: (-item[1], item[0]))


def _percent(share):
    return "-" if np.isnan(share) else f"{100 * share:6.2f}"


def _report_dict(root, report):
    splits = {}
    for split, pixels in report.class_pixels.items():
        shares, ignored = report.shares(split)
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
        **({"bands": report.bands} if report.bands else {}),
        "notes": report.notes,
        "problems": report.problems,
    }


def _number(share):
    return None if np.isnan(share) else round(float(share), 6)


def _preview(flags):
    _draw_preview(
        flags.data, flags.split, flags.count, flags.augmented, flags.output
    )
    return 0


def _draw_preview(data, split, count, augmented, output):
    from keras_aspp.data.sources import open_source
    from keras_aspp.plots.labels import caption, draw_sheet

    config = _data_config(data)
    source = open_source(config)
    split = split or _first_split(source, config)
    examples = list(_examples(source, split, count))
    if augmented:
        examples = _augmented(examples, config, source.spec)
    name = Path(os.path.abspath(data)).name
    title = f"{name}, {split}: {len(examples)} of {source.size(split)}"
    if augmented:
        title += f", as crops of {config.crop_size[0]}x{config.crop_size[1]}"
    cells = [(caption(name, y), x, y) for name, x, y in examples]
    draw_sheet(output, title, cells, source.spec)
    print_table([("preview", output)])


def _data_config(name):
    from keras_aspp.config.schema import DataConfig

    if os.path.isdir(name):
        return DataConfig(root=name)
    try:
        path = config_path(name)
    except FileNotFoundError:
        raise InputNotFoundError(
            "Neither a folder nor a configuration. Received: "
            f"{name!r}; configurations: {', '.join(shown_config_names())}"
        ) from None
    return load_config(path).data


def _first_split(source, config):
    """Returns the training split, or the first split of a folder."""
    filled = [s for s, pairs in getattr(source, "pairs", {}).items() if pairs]
    if not filled or config.train_split in filled:
        return config.train_split
    return filled[0]


def _examples(source, split, count):
    """Yields `(name, image, labels)` of examples spread over a split."""
    step = max(1, source.size(split) // count)
    records = source.records(split).shard(step, 0).take(count)
    for record in records.as_numpy_iterator():
        image, labels = source.decode(*record)
        yield source.name_of(record), image, labels


def _augmented(examples, config, spec):
    import tensorflow as tf

    from keras_aspp.data.augment import Augment
    from keras_aspp.preprocess import Preprocess

    preprocess = Preprocess().of_images(spec.pixels)
    crop = Augment(config.augment, config.crop_size, spec.ignore_label)
    seeds = [tf.constant([0, index]) for index in range(len(examples))]
    crops = [
        crop(preprocess.to_pixels(tf.constant(image)), labels, seed)
        for (_, image, labels), seed in zip(examples, seeds, strict=True)
    ]
    images, labels = (tf.stack(part) for part in zip(*crops, strict=True))
    # Of the images on the sheet, as of a batch.
    images, labels = crop.mix(images, labels, tf.stack(seeds))
    images = np.round(np.clip(images.numpy(), 0, 255)).astype("uint8")
    names = [name for name, *_ in examples]
    return list(zip(names, images, labels.numpy(), strict=True))
