"""`make train`: trains, exports and predicts, and prints the results.

The same as `keras-aspp train`, `export` and `predict`, one after the other, on
the embedded data set. All files are written below the workdir.
"""

import argparse
import sys
import time
from pathlib import Path

from keras_aspp.cli.main import guarded
from keras_aspp.cli.output import (
    print_artefacts,
    print_files,
    print_metrics,
    print_table,
    show_progress,
)
from keras_aspp.config.load import config_path, load_config

IMAGES = 3
# Files that a run replaces or would continue. The last two mark the folder as
# that of a run, so that an interrupted removal goes on.
_OF_RUN = (
    *("metrics.json", "model.keras", "ranges.json"),
    *("dataset.json", "config.yaml", "logs/history.csv"),
    *("logs/train", "logs/validation", "logs/images"),
    *("checkpoints", "fingerprint.json"),
)


def run(arguments):
    """Runs the three steps; further arguments override the configuration."""
    parser = argparse.ArgumentParser(
        prog="python -m training.quickstart",
        description=__doc__.splitlines()[0],
        epilog="Further arguments are those of `keras-aspp train`.",
    )
    parser.add_argument("--config", default="multiscale_shapes")
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/multiscale_shapes")
    )
    parser.add_argument(
        "--output", type=Path, help="of the export; WORKDIR/exported"
    )
    flags, overrides = parser.parse_known_args(arguments)
    start = time.perf_counter()
    config = load_config(config_path(flags.config), overrides)
    workdir = flags.workdir
    output = flags.output or workdir / "exported"
    metrics = _train(config, workdir)
    _export(workdir, output)
    _predict(workdir, output / "model_float32.tflite")
    minutes = (time.perf_counter() - start) / 60
    print(
        f"\nMean IoU {metrics['mean_iou']:.4f} on {metrics['num_images']} "
        f"{metrics['split']} images, in {minutes:.1f} minutes. All files are "
        f"in {workdir}; README.md goes on with your own images."
    )
    return 0


def _train(config, workdir):
    print(f"Step 1 of 3: train, in {workdir}", flush=True)
    from keras_aspp.engine.run import train

    _remove_run(workdir, config.data)
    metrics = train(
        config,
        workdir,
        progress=show_progress,
    )
    print_metrics(metrics)
    print()
    print_files(workdir)
    return metrics


def _remove_run(workdir, data):
    """Removes the run of before, which this one repeats."""
    from keras_aspp.data.sources import open_source
    from keras_aspp.engine.owner import note_of_writer
    from keras_aspp.engine.run import holds_run
    from keras_aspp.utils.files import remove_folder

    if not holds_run(workdir) or note_of_writer(workdir):
        return
    open_source(data)  # without its data, the run could not be repeated
    for path in (workdir / name for name in _OF_RUN):
        if path.is_dir() and not path.is_symlink():
            remove_folder(path)
        else:
            path.unlink(missing_ok=True)


def _export(workdir, output):
    print(
        f"\nStep 2 of 3: export to {output}, each file compared with the model"
    )
    from keras_aspp.workdir import Workdir

    manifest = Workdir(workdir).export(output, overwrite=True)
    print_artefacts(manifest, output)


def _predict(workdir, model):
    from PIL import Image

    from keras_aspp.inference import Predictor
    from keras_aspp.inference.files import predict_files
    from keras_aspp.workdir import Workdir

    folder = workdir / "predictions"
    print(f"\nStep 3 of 3: predict {IMAGES} images with {model}")
    folder.mkdir(exist_ok=True)
    run = Workdir(workdir)
    examples = run.examples(run.held_out_split)
    paths = []
    for i, image in enumerate(examples.first(IMAGES)):
        paths.append(folder / f"image_{i}.png")
        Image.fromarray(image).save(paths[-1])
    rows, _ = predict_files(Predictor(model), paths, folder, show_progress)
    print()
    print_table([("image", "overlay", "largest classes"), *rows])


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
