"""The scripts around the comparison of architectures."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import make_small_backbone
from PIL import Image
from tiny_run import replace, tiny_config, write_folder

from keras_aspp.backbones.rebuild import configure
from keras_aspp.cli.main import guarded
from keras_aspp.config.load import config_path, dump_config, load_config
from keras_aspp.config.schema import ModelConfig
from keras_aspp.layers import DepthwiseConv2D
from keras_aspp.models import features
from keras_aspp.models.factory import build_model
from keras_aspp.preprocess import Preprocess
from keras_aspp.utils.exceptions import InputError
from training import ablation, context_variants, shrink
from training.context_variants import contexts, head_madds
from training.recipe_variants import RECIPES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def any_name_means_few_layers(monkeypatch):
    """Every variant starts from a name, and is traced."""

    def create(name, output_stride, weights, input_shape, **changes):
        backbone = features.as_features(make_small_backbone(), output_stride)
        backbone = configure(backbone, **changes)
        backbone.preprocess = Preprocess()
        return backbone

    monkeypatch.setattr(features, "create_backbone", create)


def test_ablation_resumes_and_reports(
    tmp_path, tiny_folder, any_name_means_few_layers
):
    config = tiny_config(tiny_folder, total_epochs=1)
    # None starts from a segmenter.
    config = replace(
        config,
        model={
            "architecture": "deeplab_v3",
            "backbone": "mobilenet_v2_0.1",
            "backbone_weights": None,
            "weights": None,
            "atrous_rates": [1, 2],
            "decoder_filters": 256,
            "projection_filters": 48,
        },
    )
    dump_config(config, tmp_path / "small.yaml")
    arguments = [
        *("--config", str(tmp_path / "small.yaml")),
        *("--workdir", str(tmp_path / "runs")),
        "--variants",
    ]

    def numbers_of_runs():
        results = json.loads((tmp_path / "runs" / "results.json").read_text())
        return results, {name: len(runs) for name, runs in results.items()}

    assert ablation.run([*arguments, "strided", "v2_sum", "--seeds", "0"]) == 0
    assert numbers_of_runs()[1] == {"strided": 1, "v2_sum": 1}
    first = tmp_path / "runs" / "strided_seed0" / "ablation.json"
    before = first.stat().st_mtime_ns
    assert ablation.run([*arguments, "strided", "--seeds", "0", "1"]) == 0
    assert first.stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"learning_rate: 0.05 -> 0\.02$"):
        ablation.run(
            [*arguments, "strided", "--seeds", "0"]
            + ["--train.learning_rate", "0.02"]
        )
    results, counts = numbers_of_runs()
    assert counts == {"strided": 2}
    assert all(0 < run["boundary_mean_iou"] < 1 for run in results["strided"])
    table = (tmp_path / "runs" / "table.md").read_text()
    assert "| no dilation, stride 32 | " in table
    assert table.count("±") == 2
    assert Image.open(tmp_path / "runs" / "figure.png").width > 300


def test_rows_of_rates_and_strides_differ_in_what_they_say():
    model = ModelConfig(
        architecture="deeplab_v3",
        backbone="mobilenet_v2_0.1",
        backbone_weights=None,
        atrous_rates=[1, 2, 3],
        aspp_filters=8,
    )
    rows = {name: one for name, (_, one) in ablation.variants(model).items()}
    reach = {
        name: one.output_stride * max(one.atrous_rates)
        for name, one in rows.items()
    }
    assert rows["finer_stride"].output_stride == 8
    assert reach["finer_stride"] == reach["aspp_pooling"] == 48
    assert reach["doubled_rates"] == 96
    rates = [
        {
            layer.dilation_rate[0]
            for layer in build_model(rows[name], 8).backbone.layers
            if isinstance(layer, DepthwiseConv2D)
        }
        for name in ("aspp_pooling", "multi_grid")
    ]
    assert rates == [{1, 2}, {1, 2, 4, 8}]


def test_context_modules_are_compared_at_equal_cost(monkeypatch):
    measured = {}

    def remembered(model, channels, size):
        key = repr((model, channels, size))
        if key not in measured:
            measured[key] = head_madds(model, channels, size)
        return measured[key]

    monkeypatch.setattr(context_variants, "head_madds", remembered)
    model = ModelConfig(
        architecture="deeplab_v3", atrous_rates=[1, 2, 6], aspp_filters=128
    )
    found = contexts(model, channels=24, size=(128, 128))
    # By hand: 8x8 cells of stride 16; 1x1, three separable 3x3, projection
    # of four maps, the pooled map and its share, and 8 classes.
    cells, f = 64, 128
    spatial = 24 * f + 3 * (9 * 24 + 24 * f) + 4 * f * f + 8 * f
    pooled = 24 * f
    assert found["aspp"][1] == dataclasses.replace(model, context="aspp")
    madds = {
        name: remembered(one, 24, (128, 128))
        for name, (_, one) in found.items()
    }
    broadcast = cells * f * f  # the pooled map is spread, then projected
    assert madds["aspp"] == cells * spatial + pooled + broadcast
    for name, value in madds.items():
        if name != "none":
            assert value == pytest.approx(madds["aspp"], rel=0.15), name
    assert found["wasp"][1].atrous_rates == [6, 2, 1]
    rising = found["wasp_rising"][1]
    assert (rising.context, rising.atrous_rates) == ("wasp", [1, 2, 6])
    assert "filters" in found["dpc"][0]


def test_context_modules_are_compared_on_the_data_of_a_folder(
    tiny_folder, any_name_means_few_layers, monkeypatch
):
    config = replace(
        tiny_config(tiny_folder),
        data={"class_names": None},
        model={
            "architecture": "deeplab_v3",
            "backbone": "mobilenet_v2_0.1",
            "weights": None,
            "atrous_rates": [1, 2],
            "decoder_filters": 256,
            "projection_filters": 48,
        },
    )
    monkeypatch.setattr(ablation, "contexts", lambda *arguments: arguments)
    model, channels, size = ablation.contexts_of(config)
    assert (model, size) == (config.model, config.data.crop_size)
    assert channels == make_small_backbone().output["stride_32"].shape[-1]


def test_recipes_differ_from_the_smooth_one_in_one_ingredient():
    def flat(options):
        found = load_config(config_path("ablation_recipes"), options)
        parts = dataclasses.asdict(found)
        rows = {
            f"{k}.{n}": v for k, part in parts.items() for n, v in part.items()
        }
        for name in ("data.augment", "train.loss"):
            rows |= {f"{name}.{n}": v for n, v in rows.pop(name).items()}
        return rows

    smooth = flat(RECIPES["smooth"][1])
    assert smooth["train.loss.label_smoothing"] == 0.1
    for name, (_, options) in RECIPES.items():
        found = flat(options)
        changed = {key for key in smooth if smooth[key] != found[key]}
        assert len(changed) == {"smooth": 0, "light": 4}.get(name, 1), changed


def test_unknown_variant_is_named(tmp_path, capsys):
    arguments = ["--workdir", str(tmp_path), "--variants", "aspp", "asp"]
    assert guarded(ablation.run, arguments) == 1
    assert "Received: ['asp']" in capsys.readouterr().err


def test_shrink(tmp_path, capsys):
    root = write_folder(tmp_path / "data")
    output = tmp_path / "small"
    arguments = [str(root), str(output), "20", "30"]
    assert shrink.run(arguments) == 0
    picture = Image.open(output / "images" / "train" / "train_0.png")
    mask = np.array(Image.open(output / "masks" / "val" / "val_1.png"))
    assert (picture.size, mask.shape) == ((30, 20), (20, 30))
    assert set(np.unique(mask)) <= {0, 1, 2, 255}
    assert (output / "dataset.json").is_file()
    assert guarded(shrink.run, arguments) == 1
    assert "must not exist" in capsys.readouterr().err


def table_of_runs(name):
    """Rows of a documented table as lists of cells, and the runs of each."""
    file = ROOT / "training/results" / name
    runs = json.loads(file.read_text())["runs"]
    text = (ROOT / "docs/ablation.md").read_text()
    table = text.split(file.name)[1].split("\n\n")[1].splitlines()[2:]
    cells = [row.strip("| ").split(" | ") for row in table]
    return list(zip(cells, runs.items(), strict=True))


def check_numbers(cells, runs):
    """Holds the documented means and deviations to those of the runs."""
    values = [
        [r["mean_iou"] for r in runs],
        [r["boundary_mean_iou"] for r in runs],
        *zip(*(r["recall_by_size_px"].values() for r in runs), strict=True),
    ]
    for cell, numbers in zip(cells, values, strict=True):
        mean, _, deviation = cell.partition(" ± ")
        assert mean == f"{np.mean(numbers):.3f}"
        if deviation:
            assert deviation == f"{np.std(numbers, ddof=1):.3f}"


def test_the_table_of_parts_is_that_of_the_runs():
    known = ablation.variants(
        load_config(config_path("ablation_shapes"), []).model
    )
    for row, (name, runs) in table_of_runs("ablation_shapes_2400_steps.json"):
        description, *cells, count = row
        assert description == known[name][0]
        assert [run["seed"] for run in runs] == list(range(int(count)))
        check_numbers(cells, runs)


def test_the_table_of_the_short_backbone_is_that_of_the_runs():
    known = ablation.variants(
        load_config(config_path("ablation_short"), []).model
    )
    for row, (name, runs) in table_of_runs("ablation_short_2400_steps.json"):
        description, mean, _, *cells = row
        assert description == known[name][0]
        assert [run["seed"] for run in runs] == [0, 1, 2]
        check_numbers([mean, *cells], runs)


def test_the_table_of_contexts_is_that_of_the_runs():
    for row, (name, runs) in table_of_runs("ablation_contexts_2400_steps.json"):
        description, mean, _, *cells = row
        called = "no context module" if name == "none" else f"`{name}`, "
        assert description.startswith(called)
        assert [run["seed"] for run in runs] == [0, 1, 2]
        check_numbers([mean, *cells], runs)
