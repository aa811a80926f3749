"""The model that a path holds, and the description beside it."""

import json

import pytest

from keras_aspp.inference.artefacts import (
    find_spec,
    find_threshold,
    resolve,
)
from keras_aspp.utils.files import sha256


@pytest.fixture
def export(tmp_path):
    """A folder with a SavedModel that nobody loads, and its manifest."""
    folder = tmp_path / "exported" / "saved_model"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    content = {
        "class_names": ["background", "thing"],
        "ignore_label": 7,
        "task": "binary",
        "threshold": 0.3,
        "artefacts": [{"path": "saved_model", "sha256": sha256(folder)}],
    }
    manifest = folder.parent / "manifest.json"
    manifest.write_text(json.dumps(content))
    return folder.parent


@pytest.mark.parametrize(
    "place, path",
    [
        (".", "."),
        (".", "saved_model"),
        ("saved_model", "."),
        ("saved_model", ""),
        ("saved_model", "../saved_model"),
        ("saved_model/variables", ".."),
        (".", "saved_model/variables/.."),
    ],
)
def test_the_manifest_is_found_from_inside(export, place, path, monkeypatch):
    monkeypatch.chdir(export / place)
    found = resolve(path)
    assert find_spec(found).ignore_label == 7
    assert find_threshold(found) == 0.3
    (export / "saved_model" / "saved_model.pb").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"not the one that manifest\.json"):
        find_spec(found)


def test_no_model_is_named_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Received: '\.'$"):
        resolve(".")
