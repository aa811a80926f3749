"""Command `keras-aspp train`."""

import argparse
import difflib
import os
import threading
import urllib.request
from pathlib import Path

from keras_aspp.cli.fields import describe, paths
from keras_aspp.cli.main import Parser
from keras_aspp.cli.output import (
    print_files,
    print_metrics,
    print_table,
    show_progress,
)
from keras_aspp.config.load import (
    config_path,
    config_text,
    load_config,
)
from keras_aspp.utils.exceptions import UnreachableError
from keras_aspp.utils.hub import fetch, is_address

# Published weights of backbones: value of `model.backbone_weights` -> origin.
ORIGINS = {
    "imagenet": "https://storage.googleapis.com/tensorflow/keras-applications/",
    "torchvision": "https://download.pytorch.org/models/",
}
NETWORK_SECONDS = 10


def run(arguments):
    """Trains the model of a configuration; returns the exit status."""
    parser = Parser(
        prog="keras-aspp train",
        description="Train a segmenter. Every field of the configuration is "
        "overridden by --section.field value: --print_config prints the "
        "values, --help SECTION or --help SECTION.FIELD describes the fields "
        "(model, data, data.augment, train, train.loss, export).",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument(
        *("-h", "--help"),
        action=_Help,
        nargs="?",
        metavar="FIELD",
        help="show this help message, or that of a section or field, and exit",
    )
    parser.add_argument(
        "--config",
        required=True,
        help="NAME of a configuration of the package, or FILE",
    )
    parser.add_argument("--workdir", type=Path, help="folder of the run")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint"
    )
    parser.add_argument(
        "--print_config",
        action="store_true",
        help="print the configuration and exit",
    )
    flags, overrides = parser.parse_known_args(arguments)
    _check_overrides(parser, overrides)
    config = load_config(config_path(flags.config), overrides)
    if flags.print_config:
        print(config_text(config), end="")
        return 0
    if flags.workdir is None:
        parser.error("the following arguments are required: --workdir")
    if flags.resume and not config.train.lr_finder:
        # First: other flags than those of the run may ask for a download.
        from keras_aspp.engine.checkpoint import changes

        changes(flags.workdir, config)
    _check_download(config.model)
    from keras_aspp.engine.run import range_test, train

    workdir = flags.workdir
    if config.train.lr_finder:
        path, rate = range_test(config, workdir)
        found = "none: the loss never fell" if rate is None else f"{rate:.2g}"
        print_table([("curve", path), ("train.learning_rate", found)])
        return 0
    metrics = train(
        config,
        workdir,
        flags.resume,
        progress=show_progress,
    )
    if metrics is None:
        print("Done; the chief, machine 0, evaluates the model.")
        return 0
    print_metrics(metrics)
    print()
    print_files(workdir)
    return 0


class _Help(argparse.Action):
    """Prints the help of the command, a section or a field."""

    def __call__(self, parser, namespace, values, option_string=None):
        if values is None:
            parser.print_help()
            parser.exit()
        try:
            print(describe(values.removeprefix("--")))
        except KeyError:
            near = difflib.get_close_matches(values, paths(), 1, 0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            parser.error(
                f"--help takes a section or field.{hint} Received: {values}"
            )
        parser.exit()


def _check_overrides(parser, overrides):
    for word in overrides:
        if word.startswith("--") and "." not in word:
            parser.error(f"unknown flag {word.split('=')[0]}")


def _check_download(model):
    """Raises at once if weights must be downloaded or installed but are not.

    Otherwise a run would read all its data before it fails.
    """
    if is_address(model.weights):
        fetch(model.weights)
    origin = ORIGINS.get(model.backbone_weights)
    if origin == ORIGINS["imagenet"] and model.weights is None:
        from keras_aspp.backbones import efficientnet_lite

        if model.backbone in efficientnet_lite.SIZES:
            # A package, which is installed or not.
            efficientnet_lite.published_weights(model.backbone)
            return
    if model.weights is not None or origin is None or _is_cached(model):
        return
    reason = _unreachable(origin)
    if reason:
        raise UnreachableError(
            f"The {model.backbone_weights} weights of {model.backbone} cannot "
            f"be downloaded from {origin} ({reason}). Without a network, start "
            "from a saved model (--model.weights FOLDER, such as "
            "saved_models/camvid_mobilenet_v2 of the repository), from a file "
            "of weights (--model.backbone_weights FILE) or from scratch "
            "(--model.backbone_weights null). Received: "
            f"model.backbone_weights={model.backbone_weights}"
        )


def _is_cached(model):
    """Returns True if Keras' cache holds any weights of the backbone."""

    def squashed(name):
        return "".join(c for c in name.lower() if c.isalnum())

    home = os.environ.get("KERAS_HOME", Path.home() / ".keras")
    family = squashed(model.backbone.partition("_0.")[0])
    return any(
        squashed(path.name).startswith(family)
        for path in Path(home, "models").glob("*")
    )


def _unreachable(url):
    """Returns why an origin cannot be reached; `None` if it answers."""
    reasons = [f"no answer within {NETWORK_SECONDS} seconds"]

    def ask():
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=NETWORK_SECONDS).close()
        except urllib.error.HTTPError:
            pass  # it answers
        except OSError as error:
            reasons[0] = str(getattr(error, "reason", error))
            return
        reasons[0] = None

    # In a thread: looking up a name may take longer than any timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(NETWORK_SECONDS)
    return reasons[0]
