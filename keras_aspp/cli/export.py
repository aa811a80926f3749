"""Command `keras-aspp export`."""

from pathlib import Path

from keras_aspp.cli.evaluate import print_writer
from keras_aspp.cli.main import Parser
from keras_aspp.cli.output import print_artefacts, print_operator_costs


def run(arguments):
    """Exports the best model of a workdir and verifies each artefact."""
    parser = Parser(
        prog="keras-aspp export",
        description="Export a workdir's model. Fields of the configuration's "
        "export section are overridden by --export.field value.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        required=True,
        help="workdir; also hf://user/name of one with config.yaml",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder")
    parser.add_argument(
        "--formats", nargs="+", help="instead of the configuration's"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier export"
    )
    parser.add_argument(
        "--explain-int8",
        action="store_true",
        help="instead of exporting, measure which operators of tflite_int8 "
        "cost most; writes OUTPUT/int8_operators.json",
    )
    flags, overrides = parser.parse_known_args(arguments)
    for word in overrides:
        if word.startswith("--") and not word.startswith("--export."):
            parser.error(f"unknown flag {word.split('=')[0]}")
    # Imports TensorFlow, which takes seconds.
    from keras_aspp.workdir import Workdir

    workdir = Workdir(flags.model)
    print_writer(flags.model)
    settings = workdir.config_with(overrides).export
    if flags.explain_int8:
        print_operator_costs(workdir.explain_int8(flags.output, settings))
        print(f"\n{flags.output / 'int8_operators.json'}")
        return 0
    manifest = workdir.export(
        flags.output,
        settings,
        flags.formats,
        flags.overwrite,
    )
    print_artefacts(manifest, flags.output)
    return 0
