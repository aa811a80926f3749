"""The range test: where the loss falls fastest, and a curve."""

import numpy as np
import pytest
from PIL import Image
from tiny_run import small_config

from keras_aspp.engine.lr_finder import HIGHEST, steepest
from keras_aspp.engine.run import range_test


def test_steepest_of_a_known_curve():
    rates = np.logspace(-5, 0, 60)
    # A logistic fall around 1e-2, then divergence.
    losses = 1 / (1 + (rates / 1e-2) ** 2) + np.where(rates > 0.3, rates, 0)
    assert steepest(rates, losses) == pytest.approx(1e-2, rel=0.25)


@pytest.mark.parametrize("losses", [[1.0, 2.0, 3.0], []])
def test_a_loss_that_never_fell(losses):
    assert steepest(np.logspace(-5, -3, len(losses)), losses) is None


@pytest.mark.slow
def test_range_test(tmp_path, tiny_folder):
    path, rate = range_test(small_config(tiny_folder), tmp_path)
    assert path == tmp_path / "logs" / "lr_finder.png"
    with Image.open(path) as picture:
        assert len(np.unique(np.asarray(picture))) > 20
    assert 1e-5 < rate < HIGHEST
    # Nothing that looks like a run.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["logs"]
