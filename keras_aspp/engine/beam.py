"""Evaluation and prediction on Apache Beam, for millions of images.

Each worker opens the model and predicts one image at a time. Labels would
otherwise depend on the images of a batch, which runners choose freely. Beam
repeats a bundle that fails and drops its results. So counts are elements of
the pipeline instead of counters, and files are written under temporary names.

Beam is an extra, so it is imported inside the functions.
"""

import functools
import hashlib
import io
import operator
import os
from pathlib import Path

import numpy as np

from keras_aspp.data.beam_io import (
    absolute_path,
    file_errors,
    join_path,
    pipeline_options,
    read_json_file,
    write_file,
    write_json_file,
)
from keras_aspp.data.decode import read_fitting
from keras_aspp.engine.evaluate import (
    curves_of,
    measured_model,
    metrics_dict,
    metrics_of_task,
    new_curves,
    resolve_num_classes,
    thresholds_of,
    update_curves,
)
from keras_aspp.inference import Predictor
from keras_aspp.inference.files import (
    check_no_data_set,
    check_scores,
    drawings,
    predict_bands,
)
from keras_aspp.inference.sliding_window import decide
from keras_aspp.metrics import confusion_of
from keras_aspp.plots.labels import spec_of
from keras_aspp.utils.exceptions import (
    InputError,
    OutputExistsError,
    UserError,
)
from keras_aspp.utils.text import printable

PREDICTIONS = "predictions.json"
_WILDCARDS = "*?["
_REPORT = {"num_images", "failed"}  # the keys of `PREDICTIONS`


def evaluate_with_beam(model, source, split, path, options=()):
    """Evaluates each image of a split once; counts are summed in int64.

    Args:
        model: dict, arguments of `Predictor`; its `path` must be readable by
            every worker.
        source: `FolderSource` or `TfdsSource`, also readable by every worker.
        split: str.
        path: file for the metrics, on any file system that Beam supports.
        options: list of str, Beam's pipeline options.

    Returns:
        dict, the contents of `path`: those of `engine.evaluate.evaluate`.

    Raises:
        ValueError: Beam is not installed; or see `evaluate`.
    """
    options = pipeline_options(options)
    import apache_beam as beam

    total, spec = source.size(split), source.spec
    predictor = _counted_by(model, spec)
    # Curves need probabilities.
    answer = _scored if curves_of(predictor, spec) else _labels
    path = absolute_path(path)
    with file_errors(), beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "records" >> _records(source, split)
            | "decode" >> beam.Map(_decode, source)
            | "predict"
            >> _inference(lambda: _counted_by(model, spec), answer=answer)
            | "count" >> beam.Map(_count, spec)
            | "sum" >> beam.CombineGlobally(_total)
            | "numbers"
            >> beam.Map(
                _metrics,
                spec,
                {"split": split, **measured_model(predictor, spec)},
                thresholds_of(predictor, spec),
            )
            | "write" >> beam.Map(write_json_file, path)
        )
    found = read_json_file(path)
    if found["num_images"] != total:
        raise InputError(
            f"Split `{split}` has {total} images, but {found['num_images']} "
            f"were counted; did the data change meanwhile? File: {path}"
        )
    return found


def predict_with_beam(model, images, output, options=(), scores=False):
    """Segments images; an unreadable one does not stop the others.

    Args:
        model: dict, arguments of `Predictor`; its `path` must be readable by
            every worker.
        images: paths and patterns (`gs://bucket/*.jpg`), on any file system
            that Beam supports.
        output: folder to write to, also on any such file system.
        options: list of str, Beam's pipeline options.
        scores: bool; see `predict_files`.

    Returns:
        `(num_images, messages)`: number of segmented images, and one line for
        each that failed. `output/predictions.json` holds both.

    Raises:
        ValueError: Beam is not installed, or no file matches a pattern.
        FileExistsError: `output/predictions.json` was written by something
            else, or `output` is a data set and the model a multilabel one.
    """
    options = pipeline_options(options)
    import apache_beam as beam

    output = absolute_path(output)
    predictor = Predictor(**model)
    spec = spec_of(predictor)
    with file_errors():
        _check_output(output, spec)
    if scores:
        check_scores(predictor)
    answer = functools.partial(
        predict_bands, ignore_label=spec.ignore_label, scores=scores
    )
    with file_errors(), beam.Pipeline(options=options) as pipeline:
        read = (
            pipeline
            | "files" >> _files(images)
            | "read"
            >> beam.FlatMap(_read, predictor.pixels).with_outputs(
                "failed", main="good"
            )
        )
        done = (
            read.good
            | "predict"
            >> _inference(lambda: Predictor(**model), UserError, answer)
            | "save" >> beam.Map(_save, spec, output)
        )
        failed = read.failed | "message" >> beam.Map(lambda m: (0, [m]))
        _ = (
            (done, failed)
            | beam.Flatten()
            | "sum" >> beam.CombineGlobally(_total)
            | "report" >> beam.Map(_report)
            | "write"
            >> beam.Map(write_json_file, join_path(output, PREDICTIONS))
        )
    found = read_json_file(join_path(output, PREDICTIONS))
    return found["num_images"], found["failed"]


# Parts of the pipelines.


def _labels(predictor, image):
    return predictor.predict_batch(image[None])[0], None


def _scored(predictor, image):
    """Returns the labels and the probabilities of classes."""
    scores = predictor.score_batch(image[None])
    masks = predictor.threshold if predictor.is_multilabel else None
    return decide(scores, masks)[0], predictor.to_probabilities(scores)[0]


def _inference(load, reported=(), answer=_labels):
    """Maps `(key, image)` to `(key, (image, answer))`.

    Args:
        load: function that returns the `Predictor` of a worker.
        reported: type of errors whose message replaces the answer.
        answer: function of `(predictor, image)`.
    """
    from apache_beam.ml.inference import base

    class Handler(base.ModelHandler):
        def load_model(self):
            return load()

        def run_inference(self, batch, model, inference_args=None):
            for image in batch:
                try:
                    answered = answer(model, image)
                except reported as error:
                    answered = str(error)
                yield image, answered

        def batch_elements_kwargs(self):
            return {"min_batch_size": 1, "max_batch_size": 1}

    return base.RunInference(base.KeyedModelHandler(Handler()))


def _counted_by(model, spec):
    """Returns the `Predictor` of a worker, with the classes of the spec."""
    predictor = Predictor(**model)
    resolve_num_classes(predictor, spec)
    return predictor


def _records(source, split):
    """Returns the records of a source, each once."""
    import apache_beam as beam

    # Distinct also spreads the work: otherwise Beam fuses it with the listing.
    if hasattr(source, "pairs"):
        source.require(split)
        return beam.Create(source.pairs[split]) | beam.Distinct()
    return (
        beam.Create(source.shards(split))
        | beam.Distinct()
        | beam.FlatMap(source.read_shard, split)
    )


def _decode(record, source):
    image, labels = source.decode(*record)
    return labels, image


def _count(element, spec):
    """Returns counts, those of curves (0 without them) and 1 of an image."""
    labels, (_, (predicted, probabilities)) = element
    pixels = 0
    if probabilities is not None:
        curves = new_curves(spec)
        update_curves(curves, labels, probabilities, spec)
        pixels = np.stack([curve.pixels for curve in curves])
    if not spec.is_multilabel:
        matrix = _confusion(labels, predicted, spec.num_classes, spec)
        return matrix, pixels, 1
    matrices = [
        _confusion(labels[..., i], predicted[..., i], 2, spec)
        for i in range(spec.num_classes)
    ]
    return np.stack(matrices), pixels, 1


def _confusion(labels, predicted, count, spec):
    valid = labels != spec.ignore_label
    cells = labels[valid] * np.int64(count) + predicted[valid]
    return np.bincount(cells, minlength=count**2).reshape(-1, count)


def _total(elements):
    """Returns the sum of each part; `None` if empty."""
    elements = [element for element in elements if element is not None]
    if not elements:
        return None
    # Not in place: Beam may pass the same element again.
    return tuple(
        functools.reduce(operator.add, part)
        for part in zip(*elements, strict=True)
    )


def _metrics(counts, spec, about, thresholds):
    total, pixels, num_images = counts
    matrix = confusion_of(spec.task, spec.num_classes, spec.ignore_label)
    matrix.variables[0].assign(total)
    found = {**metrics_dict(matrix, spec), "num_images": num_images, **about}
    curves = new_curves(spec) if np.ndim(pixels) else []
    for curve, counted in zip(curves, pixels if curves else (), strict=True):
        curve.pixels = counted
    return found | metrics_of_task(matrix, curves, thresholds, spec)


def _files(images):
    """Returns `(name, path)` of each file once; names are unique."""
    import apache_beam as beam
    from apache_beam.io import fileio

    plain = [
        absolute_path(i)
        for i in images
        if os.path.exists(i) or not set(_WILDCARDS) & set(i)
    ]
    patterns = [
        absolute_path(i) for i in images if absolute_path(i) not in plain
    ]

    class Files(beam.PTransform):
        def expand(self, pipeline):
            matched = (
                pipeline
                | beam.Create(patterns)
                | fileio.MatchAll(fileio.EmptyMatchTreatment.DISALLOW)
                | beam.Map(lambda found: found.path)
            )
            return (
                (pipeline | "plain" >> beam.Create(plain), matched)
                | beam.Flatten()
                | beam.Map(lambda path: (Path(path).stem, path))
                | beam.GroupByKey()
                | beam.FlatMap(_named)
            )

    return Files()


def _check_output(output, spec):
    """Raises if annotations, or masks of a data set, would be replaced."""
    from apache_beam.io.filesystems import FileSystems

    if spec.is_multilabel:
        place = join_path(output, "dataset.json")
        check_no_data_set(output, FileSystems.exists(place))
    path = join_path(output, PREDICTIONS)
    if not FileSystems.exists(path):
        return
    try:
        found = read_json_file(path)
    except ValueError:
        found = None
    if not isinstance(found, dict) or {*found} != _REPORT:
        raise OutputExistsError(
            "The output holds a predictions.json that `keras-aspp predict "
            "--beam` did not write and does not replace; name another folder. "
            f"Received: {printable(path)}"
        )


def _named(element):
    """Yields unique names for images of equal names in several folders."""
    stem, paths = element
    paths = sorted(set(paths))
    for path in paths:
        tag = hashlib.sha256(path.encode("utf-8", "surrogateescape"))
        unique = "" if len(paths) == 1 else f"_{tag.hexdigest()[:8]}"
        yield stem + unique, path


def _read(element, pixels):
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.pvalue import TaggedOutput

    name, path = element
    try:
        with FileSystems.open(path) as file:
            yield name, read_fitting(file.read(), path, True, pixels)
    except (UserError, OSError) as error:
        yield TaggedOutput("failed", str(error))


def _save(element, spec, output):
    name, (bands, answered) = element
    if isinstance(answered, str):
        return 0, [f"{answered} Image: {printable(name)}"]
    labels, files = answered
    for end, content in files.items():
        write_file(join_path(output, f"{name}_{end}"), content)
    for place, drawn in drawings(bands.values, labels, spec, name).items():
        content = io.BytesIO()
        drawn.save(content, format="PNG")
        path = join_path(output, *place.split("/"))
        write_file(path, content.getvalue())
    return 1, []


def _report(total):
    count, messages = total
    return {"num_images": count, "failed": sorted(messages)}
