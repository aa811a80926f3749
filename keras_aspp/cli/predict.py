"""keras-aspp predict."""

import sys
from pathlib import Path

import numpy as np

from keras_aspp.cli.configuration import print_table
from keras_aspp.cli.evaluate import (
    add_window,
    show_progress,
    window_options,
)
from keras_aspp.cli.main import (
    Parser,
    add_beam,
    beam_options,
    is_fault_of_input,
    one_line,
)
from keras_aspp.files import replacing
from keras_aspp.textfile import printable


def run(arguments):
    """Segments pictures; writes index PNG, colour PNG and overlay."""
    parser = Parser(
        prog="keras-aspp predict",
        description="Segment pictures, at their own size. Writes for each "
        "NAME_labels.png (class ids), NAME_color.png and NAME_overlay.png.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", required=True, help="folder")
    add_window(parser)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="files; with --beam also patterns, e.g. 'gs://bucket/*.jpg'",
    )
    add_beam(parser, "predict")
    flags = parser.parse_args(arguments)
    options = beam_options(parser, flags)
    model = {"path": flags.model, **window_options(parser, flags)}
    if options is not None:
        return _predict_with_beam(model, flags, options)
    from keras_aspp.inference import Predictor

    predictor = Predictor(**model)
    written, failed = predict_files(predictor, flags.images, flags.output)
    print_table([("picture", "overlay", "largest classes"), *written])
    return _status(failed, len(flags.images))


def _predict_with_beam(model, flags, options):
    from keras_aspp.engine.beam import PREDICTIONS, predict_with_beam

    count, failed = predict_with_beam(
        model, flags.images, flags.output, options
    )
    print_table(
        [("pictures", count), ("written to", f"{flags.output}/{PREDICTIONS}")]
    )
    return _status(failed, count + len(failed))


def _status(failed, count):
    """Says what failed; returns the exit status."""
    if failed:
        failed = [*failed, f"{len(failed)} of {count} pictures failed"]
    for message in failed:
        print(f"keras-aspp: error: {message}", file=sys.stderr)
    return 1 if failed else 0


def predict_files(predictor, images, output):
    """Segments files one by one; a bad one does not stop the others.

    Args:
        predictor: `Predictor`.
        images: paths.
        output: folder to write to; made if need be.

    Returns:
        `(rows, messages)`: name, overlay and largest classes of each picture
        done; one line for each that failed.
    """
    from keras_aspp.data.decode import read_image
    from keras_aspp.engine.pictures import (
        color_labels,
        index_picture,
        overlay,
        spec_of,
    )

    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    spec = spec_of(predictor)
    rows, messages, taken = [], [], set()
    for done, name in enumerate(images, start=1):
        try:
            image = read_image(name, exif=True)
            stem = _unused(Path(name).stem, taken)
            labels = predictor.predict(image)
            _save(index_picture(labels, spec), output / f"{stem}_labels.png")
            _save(color_labels(labels, spec), output / f"{stem}_color.png")
            path = output / f"{stem}_overlay.png"
            _save(overlay(image, labels, spec), path)
            rows.append((Path(name).name, path, _largest(labels, spec)))
        except Exception as error:
            if not is_fault_of_input(error):
                raise
            message, shown = one_line(error), printable(name)
            if shown not in message:  # it speaks of the model
                message = f"{message} Picture: {shown}"
            messages.append(message)
        show_progress(done, len(images))
    return rows, messages


def _unused(stem, taken):
    # Pictures of one name out of two folders must not overwrite each other.
    unique, n = stem, 1
    while unique in taken:
        n += 1
        unique = f"{stem}_{n}"
    taken.add(unique)
    return unique


def _largest(labels, spec):
    values, counts = np.unique(labels, return_counts=True)
    order = counts.argsort()[::-1][:3]
    return ", ".join(
        f"{spec.class_names[values[i]]} {counts[i] / labels.size:.0%}"
        for i in order
    )


def _save(picture, path):
    from PIL import Image

    if not isinstance(picture, Image.Image):
        picture = Image.fromarray(picture)
    with replacing(path, durable=False) as temporary:
        picture.save(temporary, format="PNG")
