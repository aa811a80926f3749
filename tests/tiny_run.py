"""A tiny data set, a run on it and its export, made once for all processes."""

import dataclasses
import fcntl
import functools
import json
import os
import shutil
import subprocess
import types

import forked
import keras
import numpy as np
import pytest
from helpers import make_small_backbone, make_toy_backbone
from PIL import Image

from keras_aspp.config.load import dump_config
from keras_aspp.config.schema import (
    Config,
    DataConfig,
    ExportConfig,
    ModelConfig,
    TrainConfig,
)
from keras_aspp.inference import Predictor
from keras_aspp.models import DeepLabV3, DeepLabV3Plus

CLASS_NAMES = ["ground", "box", "bar"]


def write_folder(
    root, sizes=((64, 96), (64, 96), (72, 60)), splits=("train", "val")
):
    """A folder data set of coloured boxes and bars on noise."""
    rng = np.random.default_rng(5)
    for split in splits:
        for part in ("images", "masks"):
            (root / part / split).mkdir(parents=True, exist_ok=True)
        for i, (height, width) in enumerate(sizes):
            image = rng.integers(0, 90, (height, width, 3)).astype("uint8")
            mask = np.zeros((height, width), "uint8")
            y, x = rng.integers(5, height - 40), rng.integers(5, width - 40)
            image[y : y + 30, x : x + 30, 0] = 220
            mask[y : y + 30, x : x + 30] = 1
            image[-12:, :, 1] = 230
            mask[-12:] = 2
            mask[0, :7] = 255
            name = f"{split}_{i}"
            Image.fromarray(image).save(root / "images" / split / f"{name}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{name}.png")
    (root / "dataset.json").write_text(json.dumps({"class_names": CLASS_NAMES}))
    return root


def toy_segmenter(root):
    """A file to start a run from: DeepLabV3+ on the toy backbone.

    Runs take their backbone from it, since building, tracing and converting
    a real one costs the tests minutes.
    """
    path = root / "toy.keras"
    if not path.exists():
        # Some starts learn to predict one class only in two epochs.
        keras.utils.set_random_seed(1)
        toy_model(len(CLASS_NAMES)).save(path)
    return str(path)


def toy_model(num_classes):
    """DeepLabV3+ on the toy backbone, with a head as small."""
    return DeepLabV3Plus(
        num_classes,
        make_toy_backbone(),
        atrous_rates=(3,),
        aspp_filters=8,
        decoder_filters=8,
        projection_filters=4,
        separable=True,
        dropout=0.0,
    )


def tiny_config(root, **train):
    """A run of seconds on `write_folder`'s data."""
    model = ModelConfig(
        backbone="toy",
        weights=toy_segmenter(root),
        atrous_rates=[3],
        aspp_filters=8,
        decoder_filters=8,
        projection_filters=4,
        batch_norm_momentum=0.6,
        dropout=0.0,
    )
    return _config(root, model, (64, 64), train)


def small_config(root, dropout=0.0, **train):
    """As `tiny_config`, of a third of its layers: each process traces them."""
    path = root / "small.keras"
    if not path.exists():
        # With which new statistics are better, and kept, in test_kill.
        keras.utils.set_random_seed(3)
        small_segmenter(dropout).save(path)
    model = ModelConfig(
        architecture="deeplab_v3",
        backbone="small",
        weights=str(path),
        atrous_rates=[1],
        aspp_filters=4,
        image_pooling=False,
        separable=False,
        batch_norm_momentum=0.6,
        dropout=dropout,
    )
    return _config(root, model, (32, 32), train)


def _config(root, model, crop_size, train):
    train = {"total_epochs": 2, "batch_size": 2, "learning_rate": 0.05, **train}
    return Config(
        model=model,
        data=DataConfig(root=str(root), crop_size=crop_size),
        train=TrainConfig(**train),
        export=ExportConfig(image_size=(64, 96), num_verify_images=2),
    )


def small_segmenter(dropout):
    """DeepLabV3 of few layers."""
    return DeepLabV3(
        len(CLASS_NAMES),
        make_small_backbone(),
        atrous_rates=(1,),
        aspp_filters=4,
        image_pooling=False,
        dropout=dropout,
    )


def once(tmp_path_factory, name, build):
    """A folder that the first test process builds and the others wait for.

    Args:
        tmp_path_factory: pytest's fixture.
        name: str, of the folder.
        build: function that fills the folder; it may make it.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # common to all processes
    folder, done = base / name, base / f"{name}.done"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when it is closed
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            build(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder data set; tests must not write to it."""

    def build(folder):
        write_folder(folder)
        toy_segmenter(folder)
        small_config(folder)  # writes the segmenter

    return once(tmp_path_factory, "tiny_data", build)


@pytest.fixture(scope="session")
def tiny_workdir(tmp_path_factory, tiny_folder):
    """A finished run; tests must not write to it."""

    def build(folder):
        from keras_aspp.engine.run import train

        folder.mkdir()
        config = tiny_config(tiny_folder, total_epochs=3)
        dump_config(config, folder / "config.yaml")
        train(config, folder)

    return once(tmp_path_factory, "tiny_run", build)


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory, tiny_workdir):
    """The exported folder of that run; tests must not write to it."""

    def build(folder):
        from keras_aspp.export import verify
        from keras_aspp.workdir import Workdir

        with pytest.MonkeyPatch.context() as patch:
            # In spite of `saved_models_run_in_forks`.
            patch.setattr(verify, "subprocess", subprocess)
            Workdir(tiny_workdir).export(folder)

    return once(tmp_path_factory, "tiny", build)


@pytest.fixture(scope="module")
def saved_models_run_in_forks(tmp_path_factory):
    """Each is compared with Keras in a process that need not import TensorFlow.

    Those of `tiny_export` are compared as users' are.
    """
    from keras_aspp.export import verify

    logs = tmp_path_factory.mktemp("saved_models")

    def run(command, timeout, **options):
        if command[-1] != "saved_model":
            return subprocess.run(command, timeout=timeout, **options)
        log = logs / f"{len(list(logs.iterdir()))}.log"
        process = forked.start(
            log, forked.run_file, *command[2:], CUDA_VISIBLE_DEVICES="-1"
        )
        process.join(timeout)
        return subprocess.CompletedProcess(
            command, process.exitcode, stderr=log.read_text()
        )

    replaced = types.SimpleNamespace(
        run=run, TimeoutExpired=subprocess.TimeoutExpired
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "subprocess", replaced)
        yield


@pytest.fixture(scope="session")
def predictor_of():
    """`Predictor`, which opens each model once, for tests that only ask it."""
    return functools.cache(Predictor)


def replace(config, **sections):
    """A configuration with fields of its sections replaced."""
    return dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **fields)
            for name, fields in sections.items()
        },
    )
