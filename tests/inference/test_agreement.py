"""Share of equal labels of two predictors."""

import types

import numpy as np
import pytest
from PIL import Image

import keras_aspp as ka
from keras_aspp.inference.agreement import agreement


def test_agreement_is_the_share_of_equal_labels(tiny_workdir, tmp_path):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (7, 8, 3)).astype("uint8"))
    image = tmp_path / "a.png"
    small.resize((85, 70)).save(image)
    sure = ka.Predictor(tiny_workdir)
    unsure = ka.Predictor(tiny_workdir, min_confidence=0.6)
    assert agreement(sure, sure, image) == 1.0
    expected = (sure.predict(image) == unsure.predict(image)).mean()
    assert 0 < expected < 1
    assert agreement(sure, unsure, image) == pytest.approx(expected)


def test_a_file_that_is_no_image_is_not_compared(tiny_workdir, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    predictor = ka.Predictor(tiny_workdir)
    assert agreement(predictor, predictor, tmp_path / "a.png") is None


def test_masks_agree_where_all_classes_do(tmp_path):
    image = tmp_path / "a.png"
    Image.new("RGB", (3, 2)).save(image)
    masks = np.zeros((2, 2, 3, 5), "uint8")
    masks[1, 0, 0, 4] = masks[1, 1, 2] = 1
    found, expected = (
        types.SimpleNamespace(predict=lambda _, m=m: m, is_multilabel=True)
        for m in masks
    )
    assert agreement(found, expected, image) == pytest.approx(4 / 6)


@pytest.mark.parametrize("value", [1, 1.5, -0.1, False])
def test_a_confidence_outside_its_range_is_refused(tiny_workdir, value):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        ka.Predictor(tiny_workdir, min_confidence=value)
