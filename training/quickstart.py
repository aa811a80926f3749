"""`make train`: trains, evaluates, exports and predicts, and says what it did.

The same as the four commands of keras-aspp, one after the other, on the
embedded data set.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

from PIL import Image

from keras_aspp.cli.configuration import (
    config_path,
    dump_config,
    load_config,
    print_table,
)
from keras_aspp.cli.evaluate import open_data
from keras_aspp.cli.export import Examples, export_workdir, print_artefacts
from keras_aspp.cli.main import guarded
from keras_aspp.cli.predict import predict_files
from keras_aspp.cli.train import print_metrics
from keras_aspp.engine.run import train
from keras_aspp.inference import Predictor

PICTURES = 3


def run(arguments):
    """Runs the four steps; further arguments override the configuration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="multiscale_shapes")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    flags, overrides = parser.parse_known_args(arguments)
    start = time.perf_counter()
    config = load_config(config_path(flags.config), overrides)
    # The run of before is what this one repeats.
    shutil.rmtree(flags.workdir, ignore_errors=True)
    flags.workdir.mkdir(parents=True)
    dump_config(config, flags.workdir / "config.yaml")
    metrics = train(config, flags.workdir)
    manifest = export_workdir(
        flags.workdir, config, flags.output, overwrite=True
    )
    source, data = open_data(None, flags.workdir)
    pictures = flags.workdir / "pictures"
    pictures.mkdir()
    paths = []
    examples = Examples(source, data.test_split or data.validation_split)
    for i, image in enumerate(examples.first(PICTURES)):
        paths.append(pictures / f"picture_{i}.png")
        Image.fromarray(image).save(paths[-1])
    rows, _ = predict_files(
        Predictor(flags.output / "model_float32.tflite"), paths, pictures
    )
    print_metrics(metrics)
    print_artefacts(manifest, flags.output)
    print()
    print_table([("picture", "overlay", "largest classes"), *rows])
    minutes = (time.perf_counter() - start) / 60
    print(f"\nmean IoU {metrics['mean_iou']:.4f} in {minutes:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
