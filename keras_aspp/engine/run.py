"""train: one run, from a configuration to `metrics.json`."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from keras_aspp.config.load import config_text, dump_config
from keras_aspp.config.schema import Config
from keras_aspp.data.augment import padding_note
from keras_aspp.data.folder import FolderSource, check_folder
from keras_aspp.data.pipeline import images_of_batch, training_dataset
from keras_aspp.data.sources import open_source
from keras_aspp.data.statistics import count_classes, sizes_of
from keras_aspp.engine.advice import (
    advise_on_classes,
    advise_on_length,
    zero_classes,
)
from keras_aspp.engine.callbacks import build_callbacks
from keras_aspp.engine.checkpoint import Checkpoints, changes
from keras_aspp.engine.cluster import check_supported, make_strategy, worker
from keras_aspp.engine.compile import compile_model
from keras_aspp.engine.distill import distill_from, teacher_path
from keras_aspp.engine.evaluate import choose_threshold, evaluate
from keras_aspp.engine.fingerprint import (
    FINGERPRINT_FILE,
    check_fingerprint,
    fingerprint,
    write_fingerprint,
)
from keras_aspp.engine.loss import resolve_class_weights
from keras_aspp.engine.lr_finder import find_learning_rate
from keras_aspp.engine.owner import Owner
from keras_aspp.engine.quantize_aware import prepare_quantized
from keras_aspp.engine.states import CheckpointStore
from keras_aspp.engine.train import fit
from keras_aspp.inference import Predictor
from keras_aspp.models.factory import build_model
from keras_aspp.models.rates import degenerate_note
from keras_aspp.models.recalibrate import recalibrate
from keras_aspp.models.saving import save_model
from keras_aspp.models.segmenter import load_saved
from keras_aspp.plots.evaluation import range_test_figure
from keras_aspp.plots.figure import save
from keras_aspp.utils.backend import require_tensorflow
from keras_aspp.utils.exceptions import InputError, OutputExistsError
from keras_aspp.utils.files import commit, write_json
from keras_aspp.utils.signals import interrupt, stop_signals
from keras_aspp.utils.text import printable
from keras_aspp.utils.types import PathLike

# Files of a run, which may be another's in a folder without a run.
_WRITTEN = ("model.keras", "dataset.json", "config.yaml", "logs/history.csv")
_log = logging.getLogger(__name__)


def train(
    config: Config,
    workdir: PathLike,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any] | None:
    """Trains, keeps the best model and evaluates it.

    Writes the configuration to config.yaml. After SIGINT (Ctrl-C) or SIGTERM
    the run saves a checkpoint and ends. Messages go to the logger
    `keras_aspp`.

    Args:
        config: `Config`.
        workdir: folder of the run; created if needed.
        resume: bool. Continue from the newest checkpoint.
        progress: function of `(done, total)`, called during the last
            evaluation; see `evaluate`.

    Returns:
        dict, the contents of `metrics.json`; `None` on a machine that is not
        the chief, since only the chief writes and evaluates.

    Raises:
        ValueError: invalid data or configuration, a loss that is not finite,
            or a resumed run whose configuration or data has changed.
        FileExistsError: the workdir holds a run and `resume` is False, a
            finished run without checkpoints, an exported model, or such files
            without a run; it is the data set; or another process is writing
            to it.
        OSError: the disk is full.
        KeyboardInterrupt: a signal came.
    """
    workdir = Path(workdir)
    chief = worker(config.train.strategy)[0] == 0
    with (
        stop_signals(interrupt),
        # Only the chief writes, so the other machines need no ownership.
        Owner(workdir) if chief else contextlib.nullcontext() as owner,
    ):
        return _train(config, workdir, resume, progress, owner)


def _train(config, workdir, resume, progress, owner):
    store = CheckpointStore(workdir, 1)
    _check_workdir(store, config, resume)
    chief = owner is not None
    changed = changes(workdir, config) if resume else []
    # Before the data is read, which takes longer than to name a mistake.
    callbacks = (
        build_callbacks(config.train.callbacks, workdir) if chief else []
    )
    run = Run(config, is_new=not store.paths())
    checkpoints = _make_checkpoints(run, workdir, owner)
    found = None
    if chief or resume:
        teacher = teacher_path(config.train)
        found = fingerprint(run.source, run.num_images(), teacher)
    known = bool(checkpoints.store.paths()) and _is_known(workdir, found)
    xla = _compile(run, checkpoints, resume)
    for change in changed if chief else ():
        _log.info("Changed since the checkpoint: %s", change)
    _log_beginning(run, checkpoints, resume, xla)
    if chief:
        # Not before: a refused run leaves the configuration of the last one.
        if not known:
            # First: it tells the files of a run from those of the user.
            write_fingerprint(workdir, found)
        dump_config(config, workdir / "config.yaml")
    with _scratch_unless(chief, checkpoints):
        checkpoints.store.remove_temporaries()
        checkpoints.write_history()
        run.spec.to_file(checkpoints.store.workdir / "dataset.json")
        fit(run, checkpoints, xla, chief, callbacks)
    return _finish(run, checkpoints, owner, progress) if chief else None


def _check_workdir(store, config, resume):
    """Raises if the run would replace files that it does not continue."""
    received = f"Received: workdir={str(store.workdir)!r}"
    if not resume and store.folder.exists():
        raise OutputExistsError(
            "The workdir holds a run. Continue it with --resume, or choose "
            f"another workdir. {received}"
        )
    if store.paths():
        return
    for name, content in (
        ("metrics.json", "a finished run without checkpoints"),
        ("manifest.json", "an exported model"),
    ):
        if (store.workdir / name).is_file():
            raise OutputExistsError(
                f"The workdir holds {content}, whose model.keras a new run "
                "would replace; choose another workdir (model.weights takes "
                f"the model.keras). {received}"
            )
    if config.data.root is not None:
        root = os.path.expandvars(config.data.root)
        if os.path.realpath(root) == os.path.realpath(store.workdir):
            raise OutputExistsError(
                "The workdir must not be the data set, whose dataset.json a "
                f"run would replace; choose another workdir. {received}"
            )
    if holds_run(store.workdir):
        return
    for name in _WRITTEN:
        path = store.workdir / name
        if path.is_file() and not _is_config(path, config):
            raise OutputExistsError(
                f"The workdir holds a {name} that belongs to no run; a new "
                "run would replace it. Rename it, or choose another workdir. "
                f"{received}"
            )


def holds_run(workdir: PathLike) -> bool:
    """Returns True if a run has begun in a folder."""
    names = (FINGERPRINT_FILE, "checkpoints")
    return any((Path(workdir) / name).exists() for name in names)


def _is_config(path, config):
    """Returns True if a file holds what `dump_config` would write."""
    text = config_text(config)
    return path.name == "config.yaml" and path.read_bytes() == text.encode()


def _make_checkpoints(run, workdir, owner):
    averages = None
    if run.config.train.ema_momentum is not None:
        averages = keras.callbacks.SwapEMAWeights()
    store = CheckpointStore(workdir, run.config.train.keep_checkpoints)
    return Checkpoints(
        store, run.config, run.num_images(), averages, run.steps, owner
    )


def _compile(run, checkpoints, resume):
    """Compiles the model, restores it if need be; returns what XLA does."""
    with run.strategy.scope():
        xla = compile_model(
            run.model,
            run.config.train,
            run.epochs * run.steps,
            run.spec.ignore_label,
            run.class_weights,
        )
        prepare_quantized(run.model, run.config.train, run.epochs, run.steps)
        if resume:
            checkpoints.restore(run.model)
    return xla


@contextlib.contextmanager
def _scratch_unless(chief, checkpoints):
    """Lets machines other than the chief write to a temporary folder.

    All machines must take part in saving, since they hold variables together;
    only the files of the chief are kept.
    """
    if chief:
        yield
        return
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints.store = CheckpointStore(scratch, checkpoints.store.keep)
        yield


def _finish(run, checkpoints, owner, progress):
    """Recalibrates and evaluates the best model; writes `metrics.json`."""
    owner.check()
    if not checkpoints.best_epoch:
        raise InputError(
            "No epoch has a validation mean IoU, so there is no model.keras: "
            "validation saw labels outside the classes, predictions of NaN or "
            "no object. Mend the labels, and train again in another workdir. "
            f"Received: validation_split={run.config.data.validation_split!r}"
        )
    _log.info(
        "Kept: epoch %d of %d, the best by validation (mean IoU %.4f).",
        checkpoints.best_epoch,
        run.epochs,
        checkpoints.best,
    )
    data, settings = run.config.data, run.config.train
    best = checkpoints.store.best_model
    tuned = settings.threshold == "auto" and run.spec.task != "semantic"
    if settings.recalibrate_steps:
        if tuned:
            # A resumed run may have chosen it for the former statistics.
            _store_threshold(best, 0.5)
        _recalibrate(
            best,
            run.batches().take(settings.recalibrate_steps),
            lambda path: _evaluate(run, path, data.validation_split),
        )
    if tuned:
        _choose_threshold(run, best)
    split = data.test_split or data.validation_split
    metrics = _evaluate(run, best, split, progress)
    metrics["artefact"] = best.name  # a workdir may be moved
    metrics["kept_epoch"] = checkpoints.best_epoch
    metrics["advice"] = _advise(run, metrics)
    owner.check()
    write_json(checkpoints.store.workdir / "metrics.json", metrics)
    return metrics


def _choose_threshold(run, path):
    """Stores the threshold of the best F1 on the validation split."""
    found = choose_threshold(
        Predictor(path),
        run.source,
        run.config.data.validation_split,
        run.config.train.batch_size,
    )
    _store_threshold(path, found)
    values = found if isinstance(found, tuple) else (found,)
    _log.info(
        "Threshold: %s, the best F1 on validation.",
        ", ".join(f"{value:.3f}" for value in values),
    )


def _store_threshold(path, threshold):
    model = load_saved(path)
    model.threshold = threshold
    save_model(model, path)


def _is_known(workdir, found):
    """Returns True if data and teacher are unchanged, False if not recorded."""
    if check_fingerprint(workdir, found):
        return True
    _log.info(
        "Note: the workdir has no complete %s, as before this version. Of data "
        "that it lacks, the numbers of images are compared; of the teacher, "
        "nothing.",
        FINGERPRINT_FILE,
    )
    return False


def _log_beginning(run, checkpoints, resume, xla):
    _log.info("%s, %s", run.summary(), xla)
    if run.class_weights is not None:
        named = zip(run.spec.class_names, run.class_weights, strict=True)
        weights = ", ".join(f"{name} {w:.3g}" for name, w in named)
        _log.info("Class weights: %s", weights)
    if run.model.auxiliary_weight:
        _log.info(
            "Auxiliary head: reads %s, weight %g, in training only.",
            run.model.auxiliary_feature,
            run.model.auxiliary_weight,
        )
    settings = run.config.train
    if settings.distill_from is not None:
        _log.info(
            "Teacher: %s, weight %g, temperature %g.",
            settings.distill_from,
            settings.distill_weight,
            settings.distill_temperature,
        )
    _log_degenerate_rates(run.model, run.config.data.crop_size)
    if resume:
        begun = checkpoints.epochs or checkpoints.steps
        _log.info(
            f"Resumed after {checkpoints.progress()}."
            if begun
            else "No checkpoint to resume from: the run begins."
        )


def range_test(config: Config, workdir: PathLike) -> tuple[Path, float | None]:
    """Tries learning rates instead of training; see `find_learning_rate`.

    Args:
        config: `Config`.
        workdir: folder for the curve; created if needed.

    Returns:
        `(path, rate)`: file of the curve, and the suggested learning rate or
        `None`.

    Raises:
        ValueError: invalid data or configuration.
    """
    run = Run(config)
    _log.info("Range test: %s", run.summary())
    found = find_learning_rate(
        run.model,
        config.train,
        run.batches(),
        run.spec.ignore_label,
        run.class_weights,
    )
    logs = Path(workdir) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    path = save(range_test_figure(*found), logs, "lr_finder", ("png",))
    return path, found[-1]


class Run:
    """Data, model and duration of a configuration.

    Args:
        config: `Config`.
        is_new: bool. False for a run that continues; see `open_source`.

    Attributes:
        strategy: `tf.distribute.Strategy`.
        source: `FolderSource` or `TfdsSource`.
        spec: `DatasetSpec` of the source.
        report: `FolderReport` of the checked data, or `None`.
        model: `Segmenter`, not compiled.
        epochs: int, number of epochs.
        steps: int, batches of an epoch.
        class_weights: list of floats, or `None`.

    Raises:
        ValueError: invalid data or configuration.
    """

    def __init__(self, config, is_new=True):
        require_tensorflow("`keras-aspp train`")
        self.config = config
        self.strategy = make_strategy(config.train.strategy)
        check_supported(config.train, self.strategy)
        self.source = open_source(config.data, strict=is_new)
        self.spec = self.source.spec
        self.report = _check_data(self.source, config.data)
        keras.utils.set_random_seed(config.train.seed)
        with self.strategy.scope():
            self.model = build_model(
                config.model,
                self.spec.num_classes,
                dtype=config.train.precision,
                rematerialize=config.train.rematerialize,
                pixels=self.spec.pixels,
                task=self.spec.task,
            )
            if (
                "auto" != config.train.threshold
                and self.spec.task != "semantic"
            ):
                self.model.threshold = config.train.threshold
            distill_from(self.model, config.train, self.spec)
        split = config.data.train_split
        self.num_examples = self.source.size(split)
        self.epochs, self.steps = config.train.duration(self.num_examples)
        self.class_weights = resolve_class_weights(
            config.train.loss, self.source, split
        )

    def num_images(self):
        """Returns split -> number of images, of training and validation."""
        data = self.config.data
        splits = (data.train_split, data.validation_split)
        return {split: self.source.size(split) for split in splits}

    def class_pixels(self, split):
        """Returns the pixels of each class in a split, int64 `(K,)`."""
        if self.report is not None:
            return self.report.class_pixels[split][:-1]
        return count_classes(self.source, split).pixels

    def summary(self):
        """Returns model, data, duration and devices on one line."""
        train = self.config.train
        replicas = self.strategy.num_replicas_in_sync
        devices = ""
        if train.strategy != "none":
            index, count = worker(train.strategy)
            machines = f" of {count} machines, this is {index}"
            devices = f"; {replicas} devices{machines if count > 1 else ''}"
        return (
            f"{self.model.name} on {self.num_examples} images, "
            f"{self.spec.num_classes} classes: {self.epochs} epochs of "
            f"{self.steps} steps of {train.batch_size}; {train.precision}"
            f"{devices}"
        )

    def batches(self, first_step=0, batch_size=None, shard=(0, 1)):
        """Returns the endless training data.

        Args:
            first_step: int, number of batches to leave out.
            batch_size: int, or `None` for the configuration's.
            shard: `(index, count)`, the part of each batch to read.

        Returns:
            `tf.data.Dataset` of `(images, labels)`.
        """
        data, train = self.config.data, self.config.train
        return training_dataset(
            self.source,
            data.train_split,
            data.augment,
            data.crop_size,
            batch_size or train.batch_size,
            self.model.preprocess,
            train.seed,
            first_example=first_step * train.batch_size,
            shard=shard,
        )

    def files_of_batch(self, step):
        """Returns the names of the images in a batch of the run."""
        data, train = self.config.data, self.config.train
        return images_of_batch(
            self.source, data.train_split, train.batch_size, train.seed, step
        )


def _evaluate(run, path, split, progress=None):
    return evaluate(
        Predictor(path),
        run.source,
        split,
        run.config.train.batch_size,
        progress,
    )


def _advise(run, metrics):
    """Returns lines of advice for the end of the run."""
    advice = advise_on_length(metrics["kept_epoch"], run.epochs)
    if zero_classes(metrics):
        splits = run.config.data.train_split, metrics["split"]
        pixels = [run.class_pixels(split) for split in splits]
        total = None
        if run.spec.is_multilabel:
            total = run.report.num_pixels[splits[0]]
        advice += advise_on_classes(
            metrics, run.config, run.spec.class_names, *pixels, total
        )
    return advice


def _recalibrate(path, batches, score):
    """Recomputes batch-norm statistics; kept unless validation is worse."""
    model = load_saved(path)
    if not recalibrate(model, (images for images, _ in batches)):
        _log.info("No batch norm is trainable: no statistics to recompute.")
        return
    candidate = path.with_name(".recalibrated.tmp.keras")
    try:
        save_model(model, candidate)
        before, after = (score(p)["mean_iou"] for p in (path, candidate))
        kept = after >= before
        _log.info(
            "Batch-norm statistics recomputed: validation mean IoU "
            "%.4f -> %.4f; %s.",
            before,
            after,
            "kept" if kept else "the old ones are kept",
        )
        if kept:
            commit(candidate, path)
    finally:
        candidate.unlink(missing_ok=True)


def _check_data(source, config):
    """Raises for problems that `data check` finds; logs its notes.

    Returns:
        `FolderReport`, or `None` for records, which are not read beforehand.
    """
    notes, report = [], None
    if isinstance(source, FolderSource):
        report = _check_splits(source, config)
        sizes = report.sizes[config.train_split]
        notes += report.notes
    else:
        sizes = sizes_of(source, config.train_split)
    padding = padding_note(sizes, config.crop_size, config.augment.scale)
    for note in [*notes, *([padding] if padding else [])]:
        _log.info("Note: %s.", printable(note))
    return report


def _check_splits(source, config):
    splits = [
        s
        for s in (
            config.train_split,
            config.validation_split,
            config.test_split,
        )
        if s is not None
    ]
    for split in splits:
        source.require(split)
    report = check_folder(source, splits)
    if report.problems:
        more = len(report.problems) - 1
        raise InputError(
            report.problems[0]
            + (f" And {more} more; see `keras-aspp data check`" if more else "")
        )
    return report


def _log_degenerate_rates(model, crop_size):
    note = degenerate_note(
        model.atrous_rates,
        model.atrous_stride,
        crop_size,
        model.input_scale,
        "crop",
    )
    if note:
        _log.info(f"Note: {note}; in training they act as 1x1.")
