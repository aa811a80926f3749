"""train: one run, from a configuration to `metrics.json`."""

import contextlib
import tempfile
from pathlib import Path

import keras
import tensorflow as tf

from keras_aspp.config.load import dump_config
from keras_aspp.data.augment import padding_note
from keras_aspp.data.folder import FolderSource, check_folder
from keras_aspp.data.pipeline import (
    evaluation_dataset,
    pictures_of_batch,
    training_dataset,
)
from keras_aspp.data.sources import open_source
from keras_aspp.data.statistics import count_classes, sizes_of
from keras_aspp.engine.advice import (
    advise_on_classes,
    advise_on_length,
    zero_classes,
)
from keras_aspp.engine.checkpoint import Checkpoints, changes
from keras_aspp.engine.cluster import check_supported, make_strategy, worker
from keras_aspp.engine.compile import compile_model
from keras_aspp.engine.distributed import training_batches, validation_batches
from keras_aspp.engine.evaluate import evaluate
from keras_aspp.engine.fingerprint import (
    FINGERPRINT_FILE,
    check_fingerprint,
    fingerprint,
    write_fingerprint,
)
from keras_aspp.engine.loss import resolve_class_weights
from keras_aspp.engine.lr_finder import find_learning_rate
from keras_aspp.engine.monitor import TrainingMonitor
from keras_aspp.engine.owner import Owner
from keras_aspp.engine.progress import Progress
from keras_aspp.engine.tensorboard import (
    Compilations,
    TensorBoard,
    ValidationPictures,
    cut_events,
)
from keras_aspp.inference import Predictor
from keras_aspp.models.factory import build_model
from keras_aspp.models.rates import degenerate_rates
from keras_aspp.models.recalibrate import recalibrate
from keras_aspp.models.saving import save_model
from keras_aspp.models.segmenter import load_saved
from keras_aspp.plots.evaluation import range_test_figure
from keras_aspp.plots.figure import save
from keras_aspp.utils.exceptions import InputError, OutputExistsError
from keras_aspp.utils.files import commit, write_json
from keras_aspp.utils.signals import interrupt, stop_signals
from keras_aspp.utils.text import printable

# XLA compiles once per picture size; with more, graph mode is sooner done.
MAX_XLA_SIZES = 4


def train(config, workdir, resume=False, progress=None):
    """Trains, keeps the best model and evaluates it.

    Writes the configuration to config.yaml. A signal to end (Ctrl-C, SIGTERM)
    saves a checkpoint first.

    Args:
        config: `Config`.
        workdir: folder of the run; made if need be.
        resume: bool. Go on from the newest checkpoint.
        progress: function of the last evaluation's progress, see `evaluate`.

    Returns:
        dict, the contents of `metrics.json`; `None` on a machine that is not
        the chief, which alone writes and evaluates.

    Raises:
        ValueError: data or configuration at fault, or a loss that is not
            finite; the configuration or the data is not that of the run.
        FileExistsError: the workdir holds a run and `resume` is not given, or
            another run that is still going owns it.
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
    if not resume and (workdir / "checkpoints").exists():
        raise OutputExistsError(
            "The workdir holds a run; go on with it by --resume, or choose "
            f"another. Received: workdir={str(workdir)!r}"
        )
    chief = owner is not None
    changed = changes(workdir, config) if resume else []
    run = _Run(config)
    averages = None
    if config.train.ema_momentum is not None:
        averages = keras.callbacks.SwapEMAWeights()
    checkpoints = Checkpoints(
        workdir, config, run.pictures(), averages, run.steps, owner
    )
    found = fingerprint(run.source, run.pictures()) if chief or resume else None
    known = bool(checkpoints.states.paths()) and _is_known(workdir, found)
    with run.strategy.scope():
        xla = compile_model(
            run.model,
            config.train,
            run.epochs * run.steps,
            run.spec.ignore_label,
            run.class_weights,
        )
        if resume:
            checkpoints.restore(run.model)
    for change in changed if chief else ():
        print(f"Changed since the checkpoint: {change}")
    _print_beginning(run, checkpoints, resume, xla)
    if chief:
        # Not before: a refused run leaves the configuration of the last one.
        dump_config(config, workdir / "config.yaml")
        if not known:
            write_fingerprint(workdir, found)
    else:
        # All machines take part in what the chief writes, since they hold
        # variables together; what the others write is thrown away.
        scratch = tempfile.TemporaryDirectory()
        checkpoints.move(scratch.name)
    checkpoints.remove_temporaries()
    checkpoints.write_history()
    run.spec.to_file(checkpoints.workdir / "dataset.json")
    _fit(run, checkpoints, xla, chief)
    if not chief:
        return None
    owner.check()
    print(
        f"Kept: epoch {checkpoints.best_epoch} of {run.epochs}, the best by "
        f"validation (mean IoU {checkpoints.best:.4f})."
    )
    best = workdir / "model.keras"
    if config.train.recalibrate_steps:
        _recalibrate(
            best,
            run.batches().take(config.train.recalibrate_steps),
            lambda path: _evaluate(run, path, config.data.validation_split),
        )
    metrics = _evaluate(
        run,
        best,
        config.data.test_split or config.data.validation_split,
        progress,
    )
    metrics["kept_epoch"] = checkpoints.best_epoch
    metrics["advice"] = _advise(run, metrics)
    owner.check()
    write_json(workdir / "metrics.json", metrics)
    return metrics


def _is_known(workdir, found):
    """True if the data is what it was, False if the workdir does not tell."""
    if check_fingerprint(workdir, found):
        return True
    print(
        f"Note: the workdir holds no {FINGERPRINT_FILE}, as before this "
        "version; of the data only the numbers of images are compared."
    )
    return False


def _print_beginning(run, checkpoints, resume, xla):
    print(f"{run.summary()}, {xla}")
    if run.class_weights is not None:
        named = zip(run.spec.class_names, run.class_weights, strict=True)
        print("Class weights:", ", ".join(f"{n} {w:.3g}" for n, w in named))
    _print_degenerate_rates(run.model, run.config.data.crop_size)
    if resume:
        begun = checkpoints.epochs or checkpoints.steps
        print(
            f"Resumed after {checkpoints.progress()}."
            if begun
            else "No checkpoint to resume from: the run begins."
        )


def _fit(run, checkpoints, xla, chief):
    """Trains from where the checkpoints are to the end of the run."""
    model, data, config = run.model, run.config.data, run.config.train
    logs, done = checkpoints.workdir / "logs", checkpoints.epochs
    cut_events(logs, done, run.steps)
    compilations = Compilations(model, xla, logs)
    validation = evaluation_dataset(
        run.source, data.validation_split, config.batch_size
    )
    validation, sizes = _counted(validation)
    if model.jit_compile and len(sizes) > MAX_XLA_SIZES:
        print(f"Validation in graph mode: {len(sizes)} picture sizes.")
        _test_in_graph_mode(model)
    images, labels = next(iter(validation.take(1)))
    watch = TrainingMonitor(
        run.spec, run.pictures_of_batch, run.steps, done, checkpoints.steps
    )
    averages = checkpoints.averages
    callbacks = [
        *([Progress(checkpoints, run.epochs)] if chief else []),
        ValidationPictures(
            images[:4].numpy(), labels[:4].numpy(), run.spec, logs / "pictures"
        ),
        *([averages] if averages else []),
        watch,
        TensorBoard(logs),
        compilations,
        checkpoints,  # the last, so that what it saves is all of an epoch
    ]

    def fit(epochs):
        first, part = checkpoints.epochs, checkpoints.steps
        if first >= epochs or checkpoints.out_of_patience():
            return
        model.fit(
            training_batches(
                run.strategy,
                lambda batch_size, shard: run.batches(
                    first * run.steps + part, batch_size, shard
                ).map(watch.batch),
                config.batch_size,
            ),
            validation_data=validation_batches(
                run.strategy,
                validation.map(lambda x, y: (model.preprocess(x), y)),
                run.spec.ignore_label,
            ),
            validation_freq=_validation_epochs(config, run.epochs),
            initial_epoch=first,
            epochs=epochs,
            steps_per_epoch=run.steps - part,
            shuffle=False,
            verbose=0,  # see Progress
            callbacks=callbacks,
        )

    with stop_signals(checkpoints.ask):
        if checkpoints.steps:
            # The rest of an epoch; fit ends it with the averages as weights.
            fit(done + 1)
            with run.strategy.scope():
                checkpoints.restore(model)
        fit(run.epochs)
        checkpoints.end_if_asked()


def range_test(config, workdir):
    """Tries learning rates instead of training; see `find_learning_rate`.

    Args:
        config: `Config`.
        workdir: folder for the curve; made if need be.

    Returns:
        `(path, rate)`: of the curve, and the suggested learning rate or
        `None`.

    Raises:
        ValueError: data or configuration at fault.
    """
    run = _Run(config)
    print(f"Range test: {run.summary()}")
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


class _Run:
    """What a configuration stands for: data, model and duration."""

    def __init__(self, config):
        self.config = config
        self.strategy = make_strategy(config.train.strategy)
        check_supported(config.train, self.strategy)
        self.source = open_source(config.data)
        self.spec = self.source.spec
        self.report = _check_data(self.source, config.data)
        keras.utils.set_random_seed(config.train.seed)
        with self.strategy.scope():
            self.model = build_model(
                config.model,
                self.spec.num_classes,
                dtype=config.train.precision,
                rematerialize=config.train.rematerialize,
            )
        split = config.data.train_split
        self.num_examples = self.source.size(split)
        self.epochs, self.steps = config.train.duration(self.num_examples)
        self.class_weights = resolve_class_weights(
            config.train.loss, self.source, split
        )

    def pictures(self):
        """Split -> how many pictures of it the run trains or selects by."""
        data = self.config.data
        splits = (data.train_split, data.validation_split)
        return {split: self.source.size(split) for split in splits}

    def class_pixels(self, split):
        """Pixels of each class in a split, int64 `(num_classes,)`."""
        if self.report is not None:
            return self.report.class_pixels[split][:-1]
        return count_classes(self.source, split).pixels

    def summary(self):
        train = self.config.train
        replicas = self.strategy.num_replicas_in_sync
        devices = ""
        if train.strategy != "none":
            index, count = worker(train.strategy)
            machines = f" of {count} machines, this is {index}"
            devices = f"; {replicas} devices{machines if count > 1 else ''}"
        return (
            f"{self.model.name} on {self.num_examples} pictures, "
            f"{self.spec.num_classes} classes: {self.epochs} epochs of "
            f"{self.steps} steps of {train.batch_size}; {train.precision}"
            f"{devices}"
        )

    def batches(self, first_step=0, batch_size=None, shard=(0, 1)):
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

    def pictures_of_batch(self, step):
        data, train = self.config.data, self.config.train
        return pictures_of_batch(
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
    """Lines of advice for the end of the run."""
    advice = advise_on_length(metrics["kept_epoch"], run.epochs)
    if zero_classes(metrics):
        splits = run.config.data.train_split, metrics["split"]
        pixels = [run.class_pixels(split) for split in splits]
        advice += advise_on_classes(
            metrics, run.config, run.spec.class_names, *pixels
        )
    return advice


def _recalibrate(path, batches, score):
    """Gives a saved model new statistics, unless validation is worse then."""
    model = load_saved(path)
    if not recalibrate(model, (pictures for pictures, _ in batches)):
        print("No batch norm learns; there are no statistics to take anew.")
        return
    candidate = path.with_name(".recalibrated.tmp.keras")
    try:
        save_model(model, candidate)
        before, after = (score(p)["mean_iou"] for p in (path, candidate))
        kept = after >= before
        print(
            f"Batch-norm statistics taken anew: validation mean IoU "
            f"{before:.4f} -> {after:.4f}; "
            f"{'kept' if kept else 'the old ones are kept'}."
        )
        if kept:
            commit(candidate, path)
    finally:
        candidate.unlink(missing_ok=True)


def _counted(validation):
    """The data set with its number of batches, and the sizes in it."""
    sizes = [tuple(labels.shape[1:]) for _, labels in validation]
    known = tf.data.experimental.assert_cardinality(len(sizes))
    return validation.apply(known), set(sizes)


def _test_in_graph_mode(model):
    # Keras reads jit_compile when it builds the function, which fit reuses.
    model.jit_compile = False
    model.make_test_function(force=True)
    model.jit_compile = True


def _validation_epochs(config, epochs):
    # The last epoch too, whatever the interval.
    every = config.validate_every_epochs
    return sorted({*range(every, epochs + 1, every), epochs})


def _check_data(source, config):
    """Raises for what `data check` finds wrong; prints what it notes.

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
        print(f"Note: {printable(note)}.")
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


def _print_degenerate_rates(model, crop_size):
    seen = [n * model.input_scale for n in crop_size]
    lost, cells = degenerate_rates(
        model.atrous_rates, model.output_stride, seen
    )
    if lost:
        print(
            f"Note: rates {lost} reach beyond the {cells[0]}x{cells[1]} map "
            f"of a {crop_size[0]}x{crop_size[1]} crop at output stride "
            f"{model.output_stride}; in training they act as 1x1."
        )
