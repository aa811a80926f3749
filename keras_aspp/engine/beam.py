"""evaluate and predict on Apache Beam, for pictures by the million.

Each worker opens the model for itself and sees pictures one at a time, so that
labels do not depend on which pictures share a batch, which no runner promises.
A bundle that fails is done again, and what it had given is dropped: counts are
elements of the pipeline, never counters beside it, and files are written under
a name of their own and renamed.

Beam is imported where it is used; it is an extra.
"""

import functools
import hashlib
import io
import operator
import os
from pathlib import Path

import numpy as np
from PIL import Image

from keras_aspp.data.beam_io import (
    absolute_path,
    join_path,
    pipeline_options,
    read_json_file,
    write_file,
    write_json_file,
)
from keras_aspp.data.decode import read_image
from keras_aspp.engine.evaluate import metrics_dict, resolve_num_classes
from keras_aspp.inference import Predictor
from keras_aspp.metrics import ConfusionMatrix
from keras_aspp.plots.labels import color_labels, index_image, overlay, spec_of
from keras_aspp.utils.exceptions import InputError, UserError
from keras_aspp.utils.text import printable

PREDICTIONS = "predictions.json"
_WILDCARDS = "*?["


def evaluate_with_beam(model, source, split, path, options=()):
    """Counts every picture of a split once; the counts are summed in int64.

    Args:
        model: dict, arguments of `Predictor`; its `path` must be there for
            every worker.
        source: `FolderSource` or `TfdsSource`, there for every worker too.
        split: str.
        path: file for the numbers, on any file system that Beam knows.
        options: list of str, Beam's pipeline options.

    Returns:
        dict, the contents of `path`: those of `engine.evaluate.evaluate`.

    Raises:
        ValueError: Beam is not installed, or as `evaluate`.
    """
    options = pipeline_options(options)
    import apache_beam as beam

    total, spec = source.size(split), source.spec
    _counted_by(model, spec)
    path = absolute_path(path)
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "records" >> _records(source, split)
            | "decode" >> beam.Map(_decode, source)
            | "predict" >> _inference(lambda: _counted_by(model, spec))
            | "count" >> beam.Map(_count, spec)
            | "sum" >> beam.CombineGlobally(_total)
            | "numbers" >> beam.Map(_metrics, spec, split)
            | "write" >> beam.Map(write_json_file, path)
        )
    found = read_json_file(path)
    if found["num_images"] != total:
        raise InputError(
            f"Split `{split}` has {total} pictures, but {found['num_images']} "
            f"were counted; did the data change meanwhile? File: {path}"
        )
    return found


def predict_with_beam(model, images, output, options=()):
    """Segments pictures; a bad one does not stop the others.

    Args:
        model: dict, arguments of `Predictor`; its `path` must be there for
            every worker.
        images: paths and patterns (`gs://bucket/*.jpg`), on any file system
            that Beam knows.
        output: folder to write to, on any of them too.
        options: list of str, Beam's pipeline options.

    Returns:
        `(num_images, messages)`: how many were done; one line for each that
        failed. Both stand in `output/predictions.json`.

    Raises:
        ValueError: Beam is not installed, or no file fits a pattern.
    """
    options = pipeline_options(options)
    import apache_beam as beam

    output = absolute_path(output)
    spec = spec_of(Predictor(**model))
    with beam.Pipeline(options=options) as pipeline:
        read = (
            pipeline
            | "files" >> _files(images)
            | "read" >> beam.FlatMap(_read).with_outputs("failed", main="good")
        )
        done = (
            read.good
            | "predict" >> _inference(lambda: Predictor(**model), UserError)
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


# What the pipelines are made of.


def _inference(load, reported=()):
    """`(key, uint8 [H, W, 3])` -> `(key, (picture, int32 [H, W]))`.

    Args:
        load: function that gives a worker its `Predictor`.
        reported: kind of error whose message stands for the labels.
    """
    from apache_beam.ml.inference import base

    class Handler(base.ModelHandler):
        def load_model(self):
            return load()

        def run_inference(self, batch, model, inference_args=None):
            for image in batch:
                try:
                    labels = model.predict_batch(image[None])[0]
                except reported as error:
                    labels = str(error)
                yield image, labels

        def batch_elements_kwargs(self):
            return {"min_batch_size": 1, "max_batch_size": 1}

    return base.RunInference(base.KeyedModelHandler(Handler()))


def _counted_by(model, spec):
    """A worker's `Predictor`, which answers with classes of the spec only."""
    predictor = Predictor(**model)
    resolve_num_classes(predictor, spec)
    return predictor


def _records(source, split):
    """The records of a source, each once."""
    import apache_beam as beam

    # Distinct lets the work spread too: it is not tied to what listed it.
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
    """One picture's confusion matrix, and 1."""
    labels, (_, predicted) = element
    valid = labels != spec.ignore_label
    cells = labels[valid] * np.int64(spec.num_classes) + predicted[valid]
    size = spec.num_classes**2
    return np.bincount(cells, minlength=size).reshape(-1, spec.num_classes), 1


def _total(elements):
    """The sums of the first and of the second parts; `None` of nothing."""
    elements = [element for element in elements if element is not None]
    if not elements:
        return None
    # Not in place: Beam may hand the same element over once more.
    return tuple(
        functools.reduce(operator.add, part)
        for part in zip(*elements, strict=True)
    )


def _metrics(counts, spec, split):
    matrix = ConfusionMatrix(spec.num_classes, spec.ignore_label)
    matrix.total_cm.assign(counts[0])
    numbers = metrics_dict(matrix, spec)
    return {**numbers, "num_images": counts[1], "split": split}


def _files(images):
    """`(name, path)` of every file once; names are unique."""
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


def _named(element):
    """Pictures of one name out of two folders must not overwrite each other."""
    stem, paths = element
    paths = sorted(set(paths))
    for path in paths:
        tag = hashlib.sha256(path.encode("utf-8", "surrogateescape"))
        unique = "" if len(paths) == 1 else f"_{tag.hexdigest()[:8]}"
        yield stem + unique, path


def _read(element):
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.pvalue import TaggedOutput

    name, path = element
    try:
        with FileSystems.open(path) as file:
            yield name, read_image(file.read(), name=path, exif=True)
    except (UserError, OSError) as error:
        yield TaggedOutput("failed", str(error))


def _save(element, spec, output):
    name, (image, labels) = element
    if isinstance(labels, str):
        return 0, [f"{labels} Picture: {printable(name)}"]
    for part, picture in (
        ("labels", index_image(labels, spec)),
        ("color", Image.fromarray(color_labels(labels, spec))),
        ("overlay", Image.fromarray(overlay(image, labels, spec))),
    ):
        content = io.BytesIO()
        picture.save(content, format="PNG")
        write_file(join_path(output, f"{name}_{part}.png"), content.getvalue())
    return 1, []


def _report(total):
    count, messages = total
    return {"num_images": count, "failed": sorted(messages)}
