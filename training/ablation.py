"""Ablation of DeepLab: the same training with parts removed.

    KERAS_ASPP_SHARED=../shared python -m training.ablation \
        --config ablation_shapes --workdir runs/ablation_shapes

`--compare contexts` compares context modules of about equal cost instead,
`--compare recipes` ingredients of the training.

Each variant and seed is a run of its own under the workdir, with a
configuration that `keras-aspp train` takes. Finished runs are kept and an
interrupted one goes on, so the same command resumes. The workdir gets
results.json, table.md, figure.png and figure.svg.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

import keras
import numpy as np

from keras_aspp.cli.main import guarded
from keras_aspp.config.load import config_path, load_config
from keras_aspp.data.datasets.multiscale_shapes import (
    CLASS_NAMES,
    IMAGE_SIZE_PX,
)
from keras_aspp.data.sources import open_source
from keras_aspp.engine.checkpoint import flat_fields
from keras_aspp.engine.evaluate import evaluate
from keras_aspp.engine.run import train
from keras_aspp.inference import Predictor
from keras_aspp.metrics import BandIoU, SizeRecall
from keras_aspp.models.factory import build_model
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.files import write_json
from keras_aspp.workdir import Examples
from training.context_variants import contexts
from training.recipe_variants import RECIPES

BOUNDARY_PX = 3
# DeepLabV3's, one rate for each convolution of MobileNetV2's last block.
MULTI_GRID = (1, 2, 4)
# Diameters in multiscale_shapes: three bins of equal share, log-uniform. In
# multiscale_shapes_large they are twice as large.
SCALES_PX = (9.0, 19.8, 43.6, 96.0)


def variants(model):
    """Returns the variants: name -> `(description, ModelConfig)`.

    Args:
        model: `ModelConfig` of the whole DeepLabV3; its rates are the
            pyramid's.

    Each line changes one thing of a line above it.
    """
    rates = list(model.atrous_rates)

    def v3(output_stride, atrous_rates, image_pooling=False):
        return dataclasses.replace(
            model,
            output_stride=output_stride,
            atrous_rates=atrous_rates,
            image_pooling=image_pooling,
        )

    default = type(model)()
    doubled = [2 * rate for rate in rates]
    return {
        "strided": ("no dilation, stride 32", v3(32, [1])),
        "atrous": ("dense backbone", v3(model.output_stride, [1])),
        "one_rate": (
            f"one rate, {rates[len(rates) // 2]}",
            v3(model.output_stride, [rates[len(rates) // 2]]),
        ),
        "aspp": (
            f"ASPP {tuple(rates)}, concatenated",
            v3(model.output_stride, rates),
        ),
        "v2_sum": (
            f"DeepLabV2: scores of {tuple(rates)}, summed",
            dataclasses.replace(
                model,
                architecture="deeplab_v2",
                aspp_filters=default.aspp_filters,
            ),
        ),
        "aspp_pooling": ("DeepLabV3: ASPP with image pooling", model),
        "pooling_bias": (
            "DeepLabV3, image pooling with a bias instead of batch norm",
            v3(model.output_stride, rates, image_pooling="bias"),
        ),
        "doubled_rates": (
            f"DeepLabV3, rates {tuple(doubled)}",
            v3(model.output_stride, doubled, image_pooling=True),
        ),
        "finer_stride": (
            f"DeepLabV3, stride {model.output_stride // 2}, same reach",
            v3(model.output_stride // 2, doubled, image_pooling=True),
        ),
        "multi_grid": (
            f"DeepLabV3, multi-grid {MULTI_GRID}",
            dataclasses.replace(model, multi_grid=list(MULTI_GRID)),
        ),
        "v3_plus": (
            "DeepLabV3+: with the decoder",
            dataclasses.replace(
                model, architecture="deeplab_v3_plus", decoder_filters=128
            ),
        ),
    }


def run(arguments):
    """Trains what is missing, then reports on all that is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ablation_shapes")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", help="instead of all")
    parser.add_argument(
        "--compare",
        choices=("parts", "contexts", "recipes"),
        default="parts",
        help="parts of DeepLab, context modules of about equal cost, or "
        "ingredients of the training",
    )
    flags, overrides = parser.parse_known_args(arguments)
    path = config_path(flags.config)
    config = load_config(path, overrides)
    if flags.compare == "recipes":
        known = {
            name: (what, load_config(path, [*overrides, *options]))
            for name, (what, options) in RECIPES.items()
        }
    else:
        models = (
            variants(config.model)
            if flags.compare == "parts"
            else contexts_of(config)
        )
        known = {
            name: (what, dataclasses.replace(config, model=model))
            for name, (what, model) in models.items()
        }
    wanted = flags.variants or list(known)
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise InputError(
            f"--variants must be among {', '.join(known)}. Received: {unknown}"
        )
    results = {}
    # Seed by seed, so that an interrupted comparison compares all variants.
    for seed in flags.seeds:
        for name in wanted:
            folder = flags.workdir / f"{name}_seed{seed}"
            one = known[name][1]
            one = dataclasses.replace(
                one, train=dataclasses.replace(one.train, seed=seed)
            )
            results.setdefault(name, []).append(run_one(one, folder))
            report(results, known, flags.workdir)
    print((flags.workdir / "table.md").read_text())
    return 0


def contexts_of(config):
    """Returns `contexts` of the feature that the configured head reads."""
    untrained = dataclasses.replace(config.model, backbone_weights=None)
    num_classes = open_source(config.data).spec.num_classes
    model = build_model(untrained, num_classes)
    channels = model.get_layer("aspp").input.shape[-1]
    keras.backend.clear_session()
    return contexts(config.model, channels, config.data.crop_size)


def run_one(config, folder):
    """The numbers of one run, trained if they are not there yet."""
    file = folder / "ablation.json"
    if file.exists():
        check_same(folder / "config.yaml", config)
        return json.loads(file.read_text())
    print(f"\n{folder.name}")
    start = time.perf_counter()
    metrics = train(config, folder, resume=(folder / "checkpoints").exists())
    numbers = {
        "mean_iou": metrics["mean_iou"],
        **break_down(config, folder),
        "minutes": (time.perf_counter() - start) / 60,
    }
    write_json(file, numbers)
    keras.backend.clear_session()
    return numbers


def check_same(file, config):
    """Raises if a finished run had another configuration than is asked for.

    Args:
        file: YAML file of the run's configuration.
        config: `Config`.
    """
    advice = (
        "A workdir keeps runs of one configuration and comparison; choose "
        "another --workdir"
    )
    if not file.exists():
        raise InputError(f"{advice}. Received: a run without {file}")
    before, now = map(flat_fields, (load_config(file), config))
    changed = [
        f"{name}: {before[name]} -> {value}"
        for name, value in now.items()
        if before[name] != value
    ]
    if changed:
        raise InputError(f"{advice}. Received: {file}; {', '.join(changed)}")


def break_down(config, folder):
    """Mean IoU at boundaries, and recall by size where objects are known."""
    source = open_source(config.data)
    split = config.data.test_split or config.data.validation_split
    predictor = Predictor(folder / "model.keras")
    spec = source.spec
    band = BandIoU(spec.num_classes, spec.ignore_label, (BOUNDARY_PX,))
    builder = getattr(source, "builder", None)
    scale = getattr(builder, "SIDE_PX", IMAGE_SIZE_PX) / IMAGE_SIZE_PX
    recall = SizeRecall([scale * px for px in SCALES_PX])
    for image, labels, objects in examples(source, split):
        predicted = predictor.predict(image)
        band.update(labels, predicted)
        if objects:
            recall.update(predicted, **objects)
    numbers = {"boundary_mean_iou": band.mean()[BOUNDARY_PX]}
    if config.data.validation_groups:
        found = evaluate(predictor, source, config.data.validation_split)
        numbers["held_out_mean_iou"] = found["mean_iou"]
    if recall.total.any():
        numbers["recall_by_size_px"] = recall.result()
    return numbers


def examples(source, split):
    """Yields `(image, labels, objects)`; objects may be `None`."""
    if source.spec.class_names != CLASS_NAMES:
        for image, labels in Examples(source, split):
            yield image, labels, None
        return
    for record in source.builder.as_dataset(split=split).as_numpy_iterator():
        objects = {
            "instances": record["instances"][..., 0],
            "class_ids": record["objects"]["kind"],
            "sizes_px": record["objects"]["size_px"],
        }
        yield record["image"], record["segmentation_mask"][..., 0], objects


def report(results, known, workdir):
    """Writes results.json, table.md and the figure."""
    write_json(workdir / "results.json", results)
    columns = columns_of(results)
    lines = [
        f"| variant | {' | '.join(columns)} | runs |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name, runs in results.items():
        cells = [
            spread([get(numbers) for numbers in runs])
            for get in columns.values()
        ]
        what = known[name][0]
        lines.append(f"| {what} | {' | '.join(cells)} | {len(runs)} |")
    (workdir / "table.md").write_text("\n".join(lines) + "\n")
    draw(results, known, columns, workdir)


def columns_of(results):
    """Heading -> function that takes the number out of a run's."""
    columns = {
        "mean IoU": lambda numbers: numbers["mean_iou"],
        "mean IoU at boundaries": lambda n: n["boundary_mean_iou"],
    }
    first = next(iter(results.values()))[0]
    if "held_out_mean_iou" in first:
        columns["mean IoU, held out"] = lambda n: n["held_out_mean_iou"]
    for size in first.get("recall_by_size_px", ()):
        columns[f"recall, {size} px"] = lambda numbers, size=size: numbers[
            "recall_by_size_px"
        ][size]
    return columns


def spread(values):
    """Mean and standard deviation, as text."""
    text = f"{statistics.mean(values):.3f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.3f}"
    return text


def draw(results, known, columns, workdir):
    """One panel a column: a dot for each run, a line at their mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1,
        len(columns),
        figsize=(3 + 2.3 * len(columns), 1 + 0.45 * len(results)),
        sharey=True,
        layout="constrained",
    )
    for ax, (title, get) in zip(axes, columns.items(), strict=True):
        for row, runs in enumerate(results.values()):
            values = [get(numbers) for numbers in runs]
            ax.plot(values, [row] * len(values), "o", color="#118ab2", ms=4)
            ax.plot([np.mean(values)] * 2, [row - 0.3, row + 0.3], "k-", lw=1.5)
        ax.set_title(title, fontsize=9)
        ax.grid(axis="x", alpha=0.3)
        ax.tick_params(labelsize=8)
    axes[0].set_yticks(
        range(len(results)), [known[name][0] for name in results]
    )
    axes[0].invert_yaxis()
    for suffix in ("png", "svg"):
        figure.savefig(workdir / f"figure.{suffix}", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
