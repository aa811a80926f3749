"""Models pushed to a stand-in of the Hub, and used from there."""

import hashlib
import json
import shutil

import hub_server
import keras
import numpy as np
import pytest
import yaml
from helpers import sample
from tiny_run import small_config, small_segmenter, write_folder

import keras_aspp as ka
from keras_aspp.cli.main import main
from keras_aspp.config.load import dump_config
from keras_aspp.export import push_model
from keras_aspp.export.card import ABOUT, card
from keras_aspp.export.push import _hub_license
from keras_aspp.utils.exceptions import UserError

pytest.importorskip("huggingface_hub", reason="extra `hub` (2026-11-30)")
IMAGE = np.uint8(255 * np.abs(np.tanh(sample((64, 96, 3)))))


@pytest.fixture
def server(tmp_path, monkeypatch):
    with hub_server.serve() as server:
        hub_server.use(server, monkeypatch, tmp_path / "cache")
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A workdir without its training; tests must not write to it."""
    folder = tmp_path_factory.mktemp("run") / "mine"
    folder.mkdir()
    keras.utils.set_random_seed(1)
    small_segmenter(0.0).save(folder / "model.keras")
    data = write_folder(folder.parent / "data")
    shutil.copy(data / "dataset.json", folder)
    scores = {"ground": 0.9, "box": 0.5, "bar": None}
    metrics = {"mean_iou": 0.7, "num_images": 3, "split": "val"}
    metrics["per_class_iou"] = scores
    (folder / "metrics.json").write_text(json.dumps(metrics))
    config = {
        "data": {"root": str(data), "license": "CC BY-NC 4.0"},
        "train": {"total_epochs": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "logs").mkdir()
    (folder / "logs" / "events").write_bytes(b"secret")
    return folder


def pushed(server, repo="me/m", branch="main"):
    return {
        name: content
        for name, content in server.repos[repo][branch].items()
        if name != ".gitattributes"
    }


def front_matter(files):
    return yaml.safe_load(files["README.md"].decode().split("---\n")[1])


@pytest.mark.slow
def test_a_workdir_goes_there_and_back(folder, server, capsys, tmp_path):
    assert main(["push", str(folder), "hf://me/m", "--message", "first"]) == 0
    assert server.message == "first"
    said = capsys.readouterr().out
    files = pushed(server)
    # Neither configuration nor logs nor metrics are sent unless asked for.
    assert set(files) == {
        "README.md",
        "SHA256SUMS",
        "dataset.json",
        "model.keras",
    }
    for name, content in files.items():
        assert name in said
        if name not in ("README.md", "SHA256SUMS"):
            line = f"{hashlib.sha256(content).hexdigest()}  {name}\n"
            assert line.encode() in files["SHA256SUMS"]
    front = front_matter(files)
    assert front["license"] == "cc-by-nc-4.0"
    assert front["library_name"] == "keras-aspp"
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.7
    card = files["README.md"].decode()
    assert 'ka.Predictor("hf://me/m")' in card
    assert "| box | 0.5000 |" in card and "| bar | absent |" in card
    expected = ka.Predictor(folder).predict(IMAGE)
    predictor = ka.Predictor("hf://me/m")
    np.testing.assert_array_equal(predictor.predict(IMAGE), expected)
    assert predictor.spec.class_names == ("ground", "box", "bar")
    again = ka.models.DeepLabV3(
        3,
        "small",
        atrous_rates=(1,),
        aspp_filters=4,
        image_pooling=False,
        weights="hf://me/m",
    )
    original = keras.saving.load_model(folder / "model.keras")
    for ours, theirs in zip(again.weights, original.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


@pytest.mark.slow
def test_every_command_takes_an_address(folder, server, tmp_path, capsys):
    push_model(folder, "hf://me/m@v1/toy", include=["config.yaml"])
    assert "toy/model.keras" in pushed(server, branch="v1")
    assert not pushed(server)
    address, out = "hf://me/m@v1/toy", str(tmp_path / "out")
    image = str(folder.parent / "data" / "images" / "val" / "val_0.png")
    for words in (
        ["predict", "--model", address, "--output", out, image],
        ["evaluate", "--model", address],
        ["inspect", "--model", address, "--image-size", "64", "96"],
        ["explain", image, "--output", out, "--model", address],
        [
            *("export", "--model", address, "--output", f"{out}/export"),
            *("--formats", "tflite_float32", "--export.num_verify_images", "2"),
            *("--export.image_size", "[64, 96]"),
        ],
    ):
        assert main(words) == 0, capsys.readouterr()
    assert "mean_iou" in capsys.readouterr().out
    config = small_config(folder.parent / "data", total_epochs=1)
    dump_config(config, tmp_path / "config.yaml")
    words = ["train", "--config", str(tmp_path / "config.yaml")]
    words += ["--workdir", f"{out}/run", "--model.weights"]
    assert main([*words, "hf://me/missing"]) == 1
    assert "no such repository" in capsys.readouterr().err
    assert main([*words, address]) == 0
    # The export, pushed as well, is opened by the demo page.
    from keras_aspp.cli.demo import check_export, local_export

    push_model(f"{out}/export", "hf://me/app")
    files = pushed(server, "me/app")
    assert set(files) == {
        *("README.md", "SHA256SUMS", "labels.txt", "manifest.json"),
        *("model.keras", "model_float32.tflite"),
    }
    card = files["README.md"].decode()
    assert "preview.png" not in card
    assert 'ka.Predictor("hf://me/app")' in card
    with local_export("hf://me/app") as local:
        check_export(local, "hf://me/app")
        assert not any(path.is_symlink() for path in local.iterdir())
    file = ka.Predictor("hf://me/app/model_float32.tflite")
    assert file.image_size == (64, 96)
    assert file.spec.num_classes == 3


def test_a_second_push_leaves_nothing_of_the_first(folder, server):
    push_model(folder, "hf://me/m", include=["logs/*"])
    assert "logs/events" in pushed(server)
    server.repos["me/m"]["main"]["by_hand.txt"] = b"theirs"
    push_model(folder, "hf://me/m")
    assert "logs/events" not in pushed(server)
    assert "by_hand.txt" in pushed(server)


def test_wildcards_match_no_hidden_files_and_no_checkpoints(
    folder, server, tmp_path
):
    copy = shutil.copytree(folder, tmp_path / "copy")
    others = {
        ".env",
        ".git/config",
        "logs/.more/token",
        "checkpoints/epoch_1.weights.h5",
    }
    for name in others:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(b"secret")
    sent = set()
    for pattern in ("*", "**", "**/*", "*/"):
        push_model(copy, "hf://me/m", include=[pattern])
        sent |= set(pushed(server))
    assert {"config.yaml", "logs/events"} <= sent
    assert not sent & others
    for pattern in ("check*", "checkpoints", "checkpoints/*.h5"):
        push_model(copy, "hf://me/named", include=[pattern])
        assert set(pushed(server, "me/named")) & others == {
            "checkpoints/epoch_1.weights.h5"
        }
    push_model(copy, "hf://me/named", include=["*/.more/*", ".e*"])
    assert set(pushed(server, "me/named")) & others == {
        ".env",
        "logs/.more/token",
    }
    with pytest.raises(UserError, match="names hidden files and checkp"):
        push_model(copy, "hf://me/named", include=["?git/*"])


def test_private_is_private(folder, server):
    push_model(folder, "hf://me/new", private=True)
    assert "me/new" in server.private
    server.add("me/public", {})
    with pytest.raises(FileExistsError, match="is public; nothing was sent"):
        push_model(folder, "hf://me/public", private=True)
    assert not pushed(server, "me/public")


def test_a_dry_run_sends_nothing(folder, server):
    assert push_model(folder, "hf://me/m", dry_run=True) is None
    assert not server.requests


def test_without_a_token_the_command_says_how_to_log_in(
    folder, server, monkeypatch, capsys
):
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(folder), "hf://me/m"]) == 1
    error = capsys.readouterr().err
    assert "hf auth login" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("note", ["", "Of the split val."])
@pytest.mark.parametrize("task", ["semantic", "multilabel"])
def test_without_its_preview_a_card_keeps_what_the_model_does(
    task, note, folder, tmp_path, server
):
    entry = {
        "path": "model.keras",
        "format": "keras",
        "sha256": hashlib.sha256(
            (folder / "model.keras").read_bytes()
        ).hexdigest(),
        "input": {"shape": [1, 64, 96, 3], "dtype": "uint8"},
        "bytes": 1,
        "agreement_with_keras": 1.0,
        "mean_iou": 0.5,
        "loss_points": 0.0,
        "latency_ms": {"median": 1, "min": 1, "max": 1},
    }
    manifest = {
        "name": "mine",
        "class_names": ["box", "bar"],
        "num_classes": 2,
        "task": task,
        "output_stride": 16,
        "calibration_images": 0,
        "machine": "one",
        "date": "today",
        "artefacts": [entry],
    }
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    text = card(manifest, {**dict.fromkeys(ABOUT, ""), "preview": note})
    (copy / "README.md").write_text(text)
    (says,) = (line for line in text.splitlines() if ": box, bar." in line)
    push_model(copy, "hf://me/m")
    sent = pushed(server)["README.md"].decode()
    assert says in sent.splitlines()
    assert "preview.png" not in sent
    assert not note or note in text and note not in sent


def test_licenses_that_the_hub_does_not_know_are_named_other(
    folder, server, tmp_path
):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text(
        "---\nlicense: Our House Rules\n---\n# Mine\n"
    )
    push_model(copy, "hf://me/m")
    front = front_matter(pushed(server))
    assert front["license"] == "other"
    assert front["license_name"] == "our-house-rules"
    assert b"# Mine" in pushed(server)["README.md"]


@pytest.mark.parametrize(
    "stated, sent",
    [
        ("CC BY-SA 4.0", "cc-by-sa-4.0"),
        ("cc-by-sa-2.0", "other"),
        ("cc-by-nd-3.0", "other"),
        ("CC BY 2.5", "cc-by-2.5"),
        ("LGPL 2.1", "lgpl-2.1"),
        ("lgpl-2.0", "other"),
        ("agpl-2.0", "other"),
        ("MPL-2.0", "mpl-2.0"),
        ("mit", "mit"),
    ],
)
def test_licenses_are_versions_that_the_hub_lists(stated, sent):
    # https://huggingface.co/docs/hub/repositories-licenses
    found = _hub_license(stated)
    assert found["license"] == sent
    named = found.get("license_name")
    assert named == (None if sent != "other" else stated.lower())


def test_folders_that_are_refused(folder, server, tmp_path):
    manifest = {"class_names": ["a", "b"]}

    def of(path, digest="0" * 64):
        entry = {"path": path, "sha256": digest}
        return json.dumps({**manifest, "artefacts": [entry]})

    secret = tmp_path / "secret"
    secret.write_bytes(b"key")
    digest = hashlib.sha256(b"key").hexdigest()
    for files, message in (
        ({}, "must be an exported folder or a workdir"),
        ({"manifest.json": of("../secret", digest)}, "must lie beside it"),
        (
            {"model.keras": "changed", "manifest.json": of("model.keras")},
            "not the one that manifest.json",
        ),
    ):
        bad = tmp_path / "bad"
        shutil.rmtree(bad, ignore_errors=True)
        bad.mkdir()
        for name, text in files.items():
            (bad / name).write_text(text)
        with pytest.raises(UserError, match=message):
            push_model(bad, "hf://me/m")
    (bad / "manifest.json").unlink()
    (bad / "model.keras").unlink()
    (bad / "model.keras").symlink_to(secret)
    with pytest.raises(UserError, match="Only files within the folder"):
        push_model(bad, "hf://me/m")
    for pattern in ("../secret", "/etc/passwd", "nothing*"):
        with pytest.raises(UserError, match="must match a pattern within"):
            push_model(folder, "hf://me/m", include=[pattern])
    with pytest.raises(UserError, match="pushed to hf://user/name. Received"):
        push_model(folder, "me/m")
    with pytest.raises(UserError, match="branch must be given once"):
        push_model(folder, "hf://me/m@v1", revision="v2")
    assert not server.requests
