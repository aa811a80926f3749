"""Command `keras-aspp evaluate`."""

import math
from pathlib import Path

from keras_aspp.cli.main import Parser, add_beam, beam_options
from keras_aspp.cli.output import print_metrics, show_progress


def run(arguments):
    """Evaluates a model on a split of a data set; returns the exit status."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    windows = window_options(parser, flags)
    options = beam_options(parser, flags)
    if options is not None:
        _check_beam(parser, flags)
    from keras_aspp.workdir import open_data

    print_writer(flags.model)
    source, data = open_data(flags.data, flags.model)
    split = flags.split or data.validation_split
    model = {
        "path": flags.model,
        "output_stride": flags.output_stride,
        "scales": flags.scales,
        "flip": flags.flip,
        **windows,
        **runtime_options(flags),
    }
    if options is not None:
        from keras_aspp.engine.beam import evaluate_with_beam

        metrics = evaluate_with_beam(model, source, split, flags.json, options)
        print_metrics(metrics)
        print(f"\nmetrics  {flags.json}")
        return 0
    from keras_aspp.engine.evaluate import evaluate
    from keras_aspp.inference import Predictor
    from keras_aspp.utils.files import prepare_file, write_json

    figures = flags.figures
    if flags.worst and figures is None:
        figures = Path("worst")
    if flags.json:
        prepare_file(flags.json)
    predictor = Predictor(**model)
    print_runtime(predictor, model)
    metrics = evaluate(
        predictor,
        source,
        split,
        progress=show_progress,
        boundaries=flags.boundaries,
        calibration=flags.calibration,
        objects=flags.objects,
        figures=figures,
        worst=flags.worst,
    )
    print_metrics(metrics)
    if flags.worst:
        _print_worst(metrics["worst"])
    if figures:
        print(f"\nfigures  {figures}")
    if flags.json:
        write_json(flags.json, metrics)
        print(f"\nmetrics  {flags.json}")
    return 0


def _print_worst(rows):
    from keras_aspp.cli.output import print_table

    print()
    heads = [name.replace("_", " ") for name in rows[0]] if rows else ["none"]
    cells = (
        [f"{v:.4f}" if isinstance(v, float) else v for v in row.values()]
        for row in rows
    )
    print_table([heads, *cells])


def _parser():
    parser = Parser(
        prog="keras-aspp evaluate",
        description="Evaluate a model on each image once, at its own size.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        required=True,
        help="workdir, exported folder, .keras, SavedModel, .tflite or "
        ".onnx; also hf://user/name of one",
    )
    parser.add_argument(
        "--data",
        help="folder data set, or NAME of a configuration; the data of the "
        "workdir if not given",
    )
    parser.add_argument("--split", help="validation split if not given")
    parser.add_argument(
        "--output-stride",
        type=int,
        metavar="STRIDE",
        help="compute the features of a .keras model at another output "
        "stride; 8 is finer than the usual 16",
    )
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=(1.0,),
        metavar="S",
        help="average over the image at these scales, e.g. 0.75 1 1.25",
    )
    parser.add_argument(
        "--flip", action="store_true", help="average over mirrored images too"
    )
    add_window(parser)
    add_runtime(parser)
    parser.add_argument(
        "--boundaries",
        action="store_true",
        help="Boundary IoU, and mean IoU in bands around outlines",
    )
    parser.add_argument(
        "--calibration",
        action="store_true",
        help="confidence against accuracy; needs scores",
    )
    parser.add_argument(
        "--objects",
        action="store_true",
        help="recall by the size of objects, the connected regions of a label "
        "other than the background",
    )
    parser.add_argument(
        "--figures",
        type=Path,
        metavar="DIR",
        help="draw the confusion matrix, the worst images, and with "
        "--calibration the confidences",
    )
    parser.add_argument(
        "--worst",
        type=int,
        metavar="N",
        help="list and draw the N images of the lowest mean IoU, 1 to 100, "
        "each over its own classes, and write worst.csv, into the folder of "
        "--figures or ./worst",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the metrics to FILE"
    )
    add_beam(parser, "evaluate")
    return parser


def print_writer(path):
    """Prints a note if a run is writing to the workdir that is read."""
    from keras_aspp.engine.owner import note_of_writer

    note = note_of_writer(path)
    if note:
        print(note)


def add_window(parser):
    """Adds `--window` and `--overlap`."""
    parser.add_argument(
        "--window",
        type=int,
        metavar="PX",
        help="predict larger images in overlapping windows of this height and "
        "width, blended",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        metavar="SHARE",
        help="share of a window that the next one predicts again, below 1; "
        "0.25 if not given",
    )


def window_options(parser, flags):
    """Returns the arguments of `Predictor` that `add_window` added."""
    if flags.window is None:
        if flags.overlap is not None:
            parser.error("--overlap needs --window")
        return {}
    options = {"window": flags.window}
    if flags.overlap is not None:
        options["overlap"] = flags.overlap
    return options


def add_runtime(parser):
    """Adds `--runtime` and `--precision`."""
    # Names are checked by `Predictor`: they are beside TensorFlow, and this
    # command's --help does not wait for it.
    parser.add_argument(
        "--runtime",
        metavar="NAME",
        help="keras, saved_model, litert, onnxruntime, openvino (reads .tflite "
        "and .onnx), or auto: the fastest that is installed for what a folder "
        "holds; that of the file if not given",
    )
    parser.add_argument(
        "--precision",
        default="float32",
        metavar="DTYPE",
        help="float32 (default) or bfloat16, of the runtimes keras and "
        "openvino: faster on processors that compute in it",
    )


def runtime_options(flags):
    """Returns the arguments of `Predictor` that `add_runtime` added."""
    return {"runtime": flags.runtime, "precision": flags.precision}


def print_runtime(predictor, model, image=None):
    """Prints the runtime, if one was asked for, and how far labels agree.

    Args:
        predictor: `Predictor(**model)`.
        model: dict of its arguments.
        image: path of the image to compare with the file's own runtime in
            float32, or `None`.
    """
    if (model["runtime"], model["precision"]) == (None, "float32"):
        return
    from keras_aspp.inference import Predictor
    from keras_aspp.inference.agreement import agreement

    line = f"runtime  {predictor.runtime} ({predictor.precision}), "
    line += predictor.path.name
    if predictor.image_size:
        line += " at {}x{}".format(*predictor.image_size)
    own = {"path": predictor.path, "runtime": None, "precision": "float32"}
    reference = Predictor(**model | own) if image else predictor
    if (reference.runtime, reference.precision) != (
        predictor.runtime,
        predictor.precision,
    ):
        share = agreement(predictor, reference, image)
        if share is not None:
            line += (
                f"; on the first image {_percent(share)} of the labels are "
                f"those of {reference.runtime} (float32)"
            )
    print(line)


def _percent(share):
    """Returns a share as text; only a whole one is 100 %."""
    return f"{math.floor(round(1e4 * share, 6)) / 100:.2f}%"


def _check_beam(parser, flags):
    for name in ("boundaries", "calibration", "objects", "figures", "worst"):
        if getattr(flags, name):
            parser.error(
                f"--{name} is not for --beam, which counts the confusion matrix"
            )
    if flags.json is None:
        parser.error("--beam needs --json, a file that every worker can reach")
