"""Command `keras-aspp predict`."""

import sys

from keras_aspp.cli.evaluate import (
    add_runtime,
    add_window,
    print_runtime,
    runtime_options,
    window_options,
)
from keras_aspp.cli.main import Parser, add_beam, beam_options
from keras_aspp.cli.output import print_table, show_progress


def run(arguments):
    """Segments images; writes index PNG, color PNG and overlay."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    if flags.min_area is not None and not flags.format:
        parser.error("--min_area needs --format")
    options = beam_options(parser, flags)
    model = {
        "path": flags.model,
        "min_confidence": flags.min_confidence,
        **window_options(parser, flags),
        **runtime_options(flags),
    }
    if options is not None:
        if flags.format:
            parser.error("--format does not work with --beam")
        return _predict_with_beam(model, flags, options)
    from keras_aspp.inference import Predictor
    from keras_aspp.inference.files import predict_files

    regions = {}
    if flags.min_area is not None:
        regions["min_area"] = flags.min_area
    predictor = Predictor(**model)
    print_runtime(predictor, model, flags.images[0])
    written, failed = predict_files(
        predictor,
        flags.images,
        flags.output,
        show_progress,
        annotation_format=flags.format,
        scores=flags.scores,
        windows=show_progress,
        **regions,
    )
    print_table([("image", "overlay", "largest classes"), *written])
    if flags.format == "coco":
        print(f"\nannotations  {flags.output}/predictions.json")
    return _status(failed, len(flags.images))


def _parser():
    parser = Parser(
        prog="keras-aspp predict",
        description="Segment images, at their own size. Writes for each "
        "NAME_labels.png (class ids), NAME_color.png and NAME_overlay.png; "
        "with --scores also NAME_confidence.png (8 bits, 255 is certain) and "
        "NAME_probabilities.npz (float16 [height, width, classes]). A "
        "multilabel model writes masks/CLASS/NAME.png (0 and 255) instead of "
        "labels and colors, and no confidence. For a GeoTIFF, which is "
        "predicted by window, it writes NAME_labels.tif with its georeference "
        "(multilabel: one band of 0 and 1 for each class) and, with --scores, "
        "NAME_probabilities.tif (float32, one band for each class). Files of "
        "that name in the output folder are replaced only if this command "
        "wrote them and nobody changed them since.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        required=True,
        help="workdir, exported folder, .keras, SavedModel, .tflite or .onnx; "
        "also hf://user/name of one",
    )
    parser.add_argument(
        "--output",
        required=True,
        help="folder; files in it that this command did not write stay",
    )
    add_window(parser)
    add_runtime(parser)
    parser.add_argument(
        "--scores",
        action="store_true",
        help="write confidence and, if the model has them, probabilities too; "
        "of a GeoTIFF probabilities alone",
    )
    parser.add_argument(
        "--min_confidence",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="pixels whose label is less probable than it get the ignore label",
    )
    parser.add_argument(
        "--format",
        choices=("coco", "labelme"),
        help="also write annotations for a labeling tool: predictions.json "
        "(COCO), or NAME.json per image (labelme)",
    )
    parser.add_argument(
        "--min_area",
        type=int,
        metavar="PX",
        help="annotations leave out smaller regions (default 16; needs "
        "--format)",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="files; with --beam also patterns, e.g. 'gs://bucket/*.jpg'",
    )
    add_beam(parser, "predict")
    return parser


def _predict_with_beam(model, flags, options):
    from keras_aspp.engine.beam import PREDICTIONS, predict_with_beam

    count, failed = predict_with_beam(
        model, flags.images, flags.output, options, flags.scores
    )
    print_table(
        [("images", count), ("written to", f"{flags.output}/{PREDICTIONS}")]
    )
    return _status(failed, count + len(failed))


def _status(failed, count):
    """Prints the failures; returns the exit status."""
    if failed:
        failed = [*failed, f"{len(failed)} of {count} images failed"]
    for message in failed:
        print(f"keras-aspp: error: {message}", file=sys.stderr)
    return 1 if failed else 0
