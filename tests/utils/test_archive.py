"""Files that Keras writes pass; hostile ones: tests/hostile."""

import h5py
import keras
import numpy as np
import pytest

from keras_aspp.utils.archive import check_archive, check_weights_file


@pytest.fixture
def model():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])


def test_files_of_keras_pass(model, tmp_path):
    model.save(tmp_path / "a.keras")
    check_archive(tmp_path / "a.keras")
    model.save_weights(tmp_path / "a.weights.h5")
    check_weights_file(tmp_path / "a.weights.h5")


@pytest.mark.parametrize("dtype", ["S20", h5py.string_dtype()], ids=str)
def test_older_files_with_names_of_either_type_pass(tmp_path, dtype):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = b"2.2.4"
        for i, name in enumerate(("conv", "dense")):
            names = np.array([f"{name}/kernel:0", f"{name}/bias:0"], dtype)
            group = file.create_group(name)
            group.attrs.create("weight_names", names)
            for weight in ("kernel:0", "bias:0"):
                group[f"{name}/{weight}"] = np.ones(3)
            file.attrs.create(f"layer_names{i}", np.array([name], dtype))
        # As NumPy makes it of an empty list.
        file.create_group("relu").attrs["weight_names"] = np.array([])
    check_weights_file(path)


def test_what_is_no_hdf5_is_an_error(tmp_path):
    (tmp_path / "a.h5").write_bytes(bytes(99))
    with pytest.raises(OSError, match="signature"):
        check_weights_file(tmp_path / "a.h5")
