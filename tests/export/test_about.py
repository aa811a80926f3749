"""What a card says of a run's origin and licenses."""

import dataclasses
import shlex

import pytest
from tiny_run import replace

from keras_aspp.config.load import config_path, dump_config, load_config
from keras_aspp.config.schema import Config, DataConfig, ExportConfig
from keras_aspp.export.about import about_run, export_command, find_licenses


def run(license="apache-2.0", model=None, **train):
    """The configuration of a run on the data set `shapes`."""
    config = Config(data=DataConfig(tfds="shapes", license=license))
    return replace(config, model=model or {}, train=train)


@pytest.fixture
def export(tmp_path):
    """An exported folder under another license than the data."""
    folder = tmp_path / "streets"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# S\n")
    return folder


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "earlier"
    folder.mkdir()
    dump_config(run("cc-by-sa-4.0"), folder / "config.yaml")
    return folder


def test_it_names_the_weights_that_a_run_started_from(export, monkeypatch):
    monkeypatch.setenv("MODELS", str(export))
    for model, origin in (
        ({}, "mobilenet_v2 (imagenet)"),
        ({"backbone_weights": "$MODELS/a.pth"}, "mobilenet_v2 (a.pth)"),
        ({"backbone_weights": None}, "random weights"),
        ({"weights": str(export)}, "streets"),
        ({"weights": str(export / "model.keras")}, "streets"),
        ({"weights": str(export / "best.keras")}, "best.keras"),
        ({"weights": "hf://me/streets"}, "hf://me/streets"),
    ):
        found = about_run(run(model=model))["trained_on"]
        assert found == f"shapes (split train), starting from {origin}"


def test_paths_that_end_in_no_name_have_one(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", str(tmp_path / "pets"))
    (tmp_path / "pets" / "images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "pets" / "images")
    for root in ("$DATA", "${DATA}/", "..", "../../pets"):
        config = Config(data=DataConfig(root=root))
        config = replace(config, model={"weights": root})
        found = about_run(config)
        assert found["dataset"] == "pets"
        assert found["trained_on"].endswith("starting from pets")


def test_other_licenses_of_weights_and_teacher_are_named(
    export, workdir, monkeypatch
):
    monkeypatch.setenv("MODELS", str(export.parent))
    start = {"weights": "${MODELS}/streets/model.keras"}
    found = about_run(run(model=start, distill_from=str(workdir)))
    assert found["trained_on"].endswith("streets, with earlier as teacher")
    assert found["license"] == (
        "apache-2.0 (data), cc-by-nc-4.0 (weights), cc-by-sa-4.0 (teacher)"
    )
    of_data = about_run(run("", start), "odbl")["license"]
    assert of_data == "odbl (data), cc-by-nc-4.0 (weights)"
    unknown = about_run(run("", start))["license"]
    assert unknown == "not stated (data), cc-by-nc-4.0 (weights)"
    same = about_run(run("cc-by-nc-4.0", start))["license"]
    assert same == "cc-by-nc-4.0"


def test_licenses_of_earlier_generations_are_named(export, workdir, tmp_path):
    start = {"weights": str(export)}
    dump_config(run("cc-by-sa-4.0", start), workdir / "config.yaml")
    second = tmp_path / "second"
    second.mkdir()
    teacher = {"distill_from": str(second)}
    start = {"weights": str(workdir)}
    dump_config(run("odbl", start, **teacher), second / "config.yaml")
    found = about_run(run("apache-2.0", {"weights": str(second)}))["license"]
    assert found == (
        "apache-2.0 (data), odbl (weights), "
        "cc-by-sa-4.0 (weights of the weights), "
        "cc-by-nc-4.0 (weights of the weights of the weights)"
    )


def test_what_states_no_license_adds_none(tmp_path):
    for model in ("hf://me/mine", str(tmp_path), str(tmp_path / "model.keras")):
        assert find_licenses(model) == {}
        assert about_run(run(model={"weights": model}))["license"] == (
            "apache-2.0"
        )
    (tmp_path / "README.md").write_text("# No metadata\n")
    assert find_licenses(str(tmp_path)) == {"": ""}


def test_the_command_repeats_the_export_and_names_no_folder_of_a_machine():
    own = ExportConfig(max_int8_loss=2.0)
    made = dataclasses.replace(
        own,
        image_size=(64, 96),
        formats=("tflite_int8",),
        int8_in_float=["classifier", "aspp/Relu"],
        coarse_labels=True,
        preview_image="/home/me/a b.jpg",
    )
    words = shlex.split(export_command("runs/mine", "out/my files", made, own))
    assert words[:6] == (
        ["keras-aspp", "export", "--model", "runs/mine"]
        + ["--output", "out/my files"]
    )
    assert words[words.index("--export.preview_image") + 1] == "a b.jpg"
    assert words[-2:] == ["--formats", "tflite_int8"]
    assert "--export.max_int8_loss" not in words
    overrides = words[6:-2]
    again = load_config(config_path("folder"), overrides).export
    for name in ("image_size", "int8_in_float", "coarse_labels"):
        assert getattr(again, name) == getattr(made, name)
    assert export_command("/home/me/run", "/tmp/x", made, made).startswith(
        'keras-aspp export --model run --output x --export.image_size "[64, '
    )
