"""SkipFusion against NumPy."""

import keras
import numpy as np
import pytest
from helpers import (
    assert_close,
    compute_dtypes,
    np_batch_norm,
    np_resize,
    npy,
    randomize,
    relu,
    sample,
)

from keras_aspp import analysis, models
from keras_aspp.layers import SkipFusion

COARSE, FINE = (2, 3, 4, 5), (2, 8, 11, 7)  # a row and a column are cropped


def built(**kwargs):
    layer = SkipFusion(**{"filters": 6, "scale": 3, **kwargs})
    layer.build([COARSE, FINE])
    return randomize(layer)


def oracle(layer, coarse, fine):
    grid = [n * layer.resize.scale for n in coarse.shape[1:3]]
    resized = np_resize(coarse, grid)[:, : fine.shape[1], : fine.shape[2]]
    x = np.concatenate([resized, fine], axis=-1) @ npy(layer.conv.kernel)[0, 0]
    if layer.norm is None:
        return relu(x + npy(layer.conv.bias))
    return relu(np_batch_norm(x, layer.norm, layer.norm.epsilon))


@pytest.mark.parametrize("batch_norm", [True, False])
def test_values_are_those_of_a_convolution_of_the_concatenated_maps(batch_norm):
    layer = built(batch_norm=batch_norm, batch_norm_epsilon=0.1)
    inputs = [sample(COARSE), sample(FINE, seed=1)]
    assert layer.conv.kernel.shape == (1, 1, 12, 6)
    assert_close(layer(inputs), oracle(layer, *inputs))


def test_a_shift_moves_the_coarse_map_alone():
    coarse, fine = sample(COARSE), sample(FINE, seed=1)
    plain, shifted = (
        built(activation=None),
        built(activation=None, shift=(1, 2)),
    )
    shifted.set_weights(plain.get_weights())
    # Zeros leave the coarse map's share of the result.
    plain, shifted = (npy(f([coarse, fine * 0])) for f in (plain, shifted))
    assert_close(shifted[:, 1:, 2:], plain[:, :-1, :-2])


def model_of(layer):
    inputs = [keras.Input((None, None, shape[-1])) for shape in (COARSE, FINE)]
    return keras.Model(inputs, layer(inputs))


def test_folded_batch_norm_gives_the_same_values():
    model = model_of(built(name="fusion"))
    folded = models.fold_batch_norm(model)
    assert [w.name for w in folded.weights] == ["kernel", "bias"]
    inputs = [sample(COARSE), sample(FINE, seed=1)]
    assert_close(folded(inputs), npy(model(inputs)))


def test_it_is_saved_with_its_arguments(tmp_path):
    layer = built(shift=(1, 2), batch_norm="freeze", dtype="mixed_bfloat16")
    assert set(compute_dtypes(layer).values()) == {"bfloat16"}
    model = model_of(layer)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert copy.layers[-1].get_config() == layer.get_config()
    inputs = [sample(COARSE), sample(FINE, seed=1)]
    np.testing.assert_array_equal(npy(copy(inputs)), npy(model(inputs)))


def test_its_multiply_adds_are_counted_at_the_size_of_each_map():
    image = keras.Input((24, 36, 3))
    fine = keras.layers.Conv2D(7, 1)(image)
    coarse = keras.layers.Conv2D(5, 1, strides=4)(image)
    model = keras.Model(image, SkipFusion(6, 4, name="fusion")([coarse, fine]))
    found = analysis.cost(model, (24, 36))
    assert not found.uncounted
    madds = [c.madds for c in found.layers if c.path.startswith("fusion/")]
    assert sum(madds) == 6 * 9 * 5 * 6 + 24 * 36 * 7 * 6
    field = analysis.receptive_fields(model, (24, 36))[-1]
    assert not field.assumed
    # Pixel 5 reads the cells of pixels 0 and 4, and itself.
    assert field.size == (6, 6)


@pytest.mark.parametrize("name", ["separable", "atrous_rate", "kernel_size"])
def test_it_is_a_1x1_convolution(name):
    with pytest.raises(ValueError, match=f"takes no `{name}`"):
        SkipFusion(4, 2, **{name: 3})
