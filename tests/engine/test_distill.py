"""The teacher of a run: found, checked, and the same after a resume."""

import shutil

import keras
import numpy as np
import pytest
from tiny_run import small_config, toy_model

from keras_aspp.config.schema import TrainConfig
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.engine.distill import distill_from
from keras_aspp.engine.run import train
from keras_aspp.models.auxiliary import training_terms
from keras_aspp.models.segmenter import load_saved


def spec(names):
    return DatasetSpec(names, 255)


def settings(path, **train):
    return TrainConfig(total_epochs=1, distill_from=str(path), **train)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ground", "bar", "box"], "class 1 is 'box' there, 'bar' here"),
        (["ground", "box"], "class 2 is 'bar' there, none here"),
    ],
)
def test_other_classes_are_named(tiny_workdir, names, message):
    with pytest.raises(ValueError, match=message):
        distill_from(toy_model(len(names)), settings(tiny_workdir), spec(names))


def test_a_missing_teacher_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.*does not exist"):
        distill_from(
            toy_model(3), settings(tmp_path / "nothing"), spec(["a", "b", "c"])
        )


def test_a_file_without_names_is_compared_by_number(tmp_path, monkeypatch):
    keras.utils.set_random_seed(1)
    toy_model(3).save(tmp_path / "teacher.keras")
    monkeypatch.setenv("TEACHERS", str(tmp_path))
    model = toy_model(3)
    found = settings("${TEACHERS}/teacher.keras", distill_temperature=2.0)
    distill_from(model, found, spec(["a", "b", "c"]))
    assert training_terms(model)[0].loss.temperature == 2.0
    with pytest.raises(ValueError, match="4 of the student, 3 of the teacher"):
        distill_from(toy_model(4), found, spec(["a", "b", "c", "d"]))


@pytest.mark.slow
def test_a_run_learns_from_a_workdir_and_resumes_to_the_same_bits(
    tmp_path, tiny_folder, tiny_workdir
):
    workdir = tmp_path / "run"
    teacher = shutil.copytree(tiny_workdir, tmp_path / "teacher")
    config = small_config(tiny_folder, distill_from=str(teacher))
    train(config, workdir)
    history = (workdir / "logs" / "history.csv").read_text()
    header, *rows = (row.split(",") for row in history.splitlines())
    column = header.index("distillation_loss")
    assert "val_distillation_loss" not in header
    assert len(rows) == 2
    assert all(float(row[column]) > 0 for row in rows)
    weights = [v.numpy() for v in load_saved(workdir).weights]
    # As a kill in the last epoch leaves it.
    shutil.rmtree(max((workdir / "checkpoints").iterdir()))
    train(config, workdir, resume=True)
    assert (workdir / "logs" / "history.csv").read_text() == history
    again = [v.numpy() for v in load_saved(workdir).weights]
    for a, b in zip(weights, again, strict=True):
        np.testing.assert_array_equal(a, b)
    toy_model(3).save(teacher / "model.keras")
    with pytest.raises(ValueError, match="Changed: the file of train.distill_"):
        train(config, workdir, resume=True)
    with pytest.raises(ValueError, match="Received: train.distill_from: .* ->"):
        train(small_config(tiny_folder), workdir, resume=True)
