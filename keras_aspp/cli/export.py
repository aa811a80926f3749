"""keras-aspp export."""

import collections
from pathlib import Path

from keras_aspp.cli.configuration import load_config, print_table
from keras_aspp.cli.evaluate import open_data, print_writer
from keras_aspp.cli.main import Parser

# Of mean IoU, in hundredths: what a resized input costs and is told.
NOTABLE_POINTS = 0.5


def run(arguments):
    """Exports the best model of a workdir, each artefact verified."""
    parser = Parser(
        prog="keras-aspp export",
        description="Export a workdir's model. Fields of the configuration's "
        "export section are overridden by --export.field value.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="workdir")
    parser.add_argument("--output", required=True, type=Path, help="folder")
    parser.add_argument(
        "--formats", nargs="+", help="instead of the configuration's"
    )
    parser.add_argument("--overwrite", action="store_true")
    flags, overrides = parser.parse_known_args(arguments)
    for word in overrides:
        if word.startswith("--") and not word.startswith("--export."):
            parser.error(f"unknown flag {word.split('=')[0]}")
    config_file = Path(flags.model) / "config.yaml"
    if not config_file.is_file():
        raise FileNotFoundError(
            "--model must be a workdir, which holds config.yaml and "
            f"model.keras. Received: {flags.model!r}"
        )
    print_writer(flags.model)
    config = load_config(config_file, overrides)
    manifest = export_workdir(
        flags.model, config, flags.output, flags.formats, flags.overwrite
    )
    print_artefacts(manifest, flags.output)
    return 0


def export_workdir(workdir, config, output, formats=None, overwrite=False):
    """Exports `model.keras` of a workdir as its configuration says.

    Args:
        workdir: folder of a run.
        config: `Config`; its data give verify and evaluation pictures.
        output: folder to make.
        formats: names instead of the configuration's, or `None`.
        overwrite: bool.

    Returns:
        dict, the contents of `manifest.json`.
    """
    from keras_aspp.data.decode import read_image
    from keras_aspp.progress import print_progress, timed

    with timed(print_progress, "model.keras: loading"):
        # Imports TensorFlow, which takes seconds.
        from keras_aspp.export import export_model
        from keras_aspp.models.segmenter import load_saved

        model = load_saved(workdir)
    source, data = open_data(None, workdir)
    split = data.test_split or data.validation_split
    examples = Examples(source, split)
    settings = config.export
    formats = tuple(formats or settings.formats)
    with timed(print_progress, f"images of {split}: reading"):
        verify_images, sizes = examples.survey(settings.verify_images)
    image_size = settings.image_size or _choose_size(model, sizes)
    calibration = None
    if "tflite_int8" in formats:
        with timed(print_progress, f"images of {data.train_split}: reading"):
            calibration = Examples(source, data.train_split).first(
                settings.calibration_images
            )
    preview = settings.preview_image
    name = data.tfds or Path(data.root).name
    command = (
        f"keras-aspp export --model WORKDIR --output {Path(output).name} "
        f'--export.image_size "{list(image_size)}" '
        f"--formats {' '.join(formats)}"
    )
    return export_model(
        model,
        output,
        image_size=image_size,
        class_names=source.spec.class_names,
        verify_images=verify_images,
        calibration_images=calibration,
        evaluation_data=examples,
        formats=formats,
        max_int8_loss=settings.max_int8_loss,
        more_image_sizes=settings.more_image_sizes,
        coarse_labels=settings.coarse_labels,
        overwrite=overwrite,
        ignore_label=source.spec.ignore_label,
        colormap=source.spec.colormap,
        preview_image=None if preview is None else read_image(preview),
        about={
            "dataset": name,
            "trained_on": f"{name} (split {data.train_split})",
            "license": data.license or source.spec.license,
            "evaluated_on": f"{source.size(split)} pictures of {name}, split "
            f"{split}",
            "command": command,
            "preview": settings.preview_note,
        },
        progress=print_progress,
    )


def _choose_size(model, sizes):
    """Chooses the files' image size and prints why."""
    from keras_aspp.export.image_size import choose_image_size

    size, reason = choose_image_size(sizes, model.input.shape[1:3])
    print(
        f"Files of one size take images of {size[0]}x{size[1]}: {reason} "
        "(--export.image_size chooses another)"
    )
    return size


class Examples:
    """The decoded examples of a split, as often as one asks."""

    def __init__(self, source, split):
        self.source, self.split = source, split

    def __iter__(self):
        records = self.source.records(self.split)
        for record in records.as_numpy_iterator():
            yield self.source.decode(*record)

    def first(self, count):
        """Pictures of `count` examples spread over the split."""
        return self.survey(count)[0]

    def survey(self, count):
        """Pictures of `count` examples spread over the split, and all sizes.

        Returns:
            `(list, dict)`; the dict has `(height, width)` -> how many.
        """
        total = self.source.size(self.split)
        wanted = {i * total // count for i in range(min(count, total))}
        images, sizes = [], collections.Counter()
        for i, (image, _) in enumerate(self):
            sizes[image.shape[:2]] += 1
            if i in wanted:
                images.append(image)
        return images, sizes


def print_artefacts(manifest, output):
    """Prints the artefacts of a manifest as a table."""
    from keras_aspp.export import manifest as manifests

    head = ("artefact", "MB", "agreement", "mean IoU", "Keras at its size")
    rows = [(*head, "points lost", "ms")]
    for entry in manifest["artefacts"]:
        iou = entry["mean_iou"]
        rows.append(
            (
                Path(output) / entry["path"],
                f"{entry['bytes'] / 1e6:.2f}",
                f"{entry['agreement_with_keras']:.4%}",
                "" if iou is None else f"{iou:.4f}",
                "" if iou is None else f"{entry['keras_mean_iou']:.4f}",
                "" if iou is None else f"{entry['loss_points']:.2f}",
                manifests.latency(entry),
            )
        )
    print()
    print_table(rows)
    for size, points in manifests.size_costs(manifest).items():
        if points >= NOTABLE_POINTS:
            print(
                f"Resizing images to {size[0]}x{size[1]}, not the conversion, "
                f"costs {points:.2f} points against their own sizes "
                "(--export.image_size chooses another)"
            )
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
