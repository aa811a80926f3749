"""Rasters larger than memory: predicted by window, georeferenced.

Shape legend: H x W pixels of the raster, h x w of a window, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_aspp.data.decode import MAX_PIXELS
from keras_aspp.data.tiff import is_scene, is_tiff, without_gaps
from keras_aspp.inference.predictor import Predictor
from keras_aspp.inference.sliding_window import spans, weights
from keras_aspp.plots.labels import color_labels, spec_of
from keras_aspp.utils.exceptions import InputError, UnavailableError
from keras_aspp.utils.extras import require
from keras_aspp.utils.files import replacing
from keras_aspp.utils.text import printable
from keras_aspp.utils.types import PathLike

# Height and width of a window where none is given, in pixels.
WINDOW = 512
# Cache of GDAL, in bytes; its default is a share of the machine's memory. Rows
# of tiles that are written are added, up to a limit: beyond it, tiles that two
# rows of windows share are written twice, which makes the file larger.
_CACHE_BYTES = 64 * 2**20
_MAX_CACHE_BYTES = 512 * 2**20
_UNWRITTEN = "A raster cannot be written; the disk may be full"
# Height and width of the tiles that are written, in pixels.
_TILE = 256


def is_predicted_by_window(path: PathLike) -> bool:
    """Returns True for a TIFF with a georeference, or too large to decode.

    Args:
        path: file; of any other suffix it is not read.

    Raises:
        ValueError: not a readable TIFF, or the extra `tiff` is missing.
    """
    return is_tiff(path) and is_scene(path, MAX_PIXELS)


def predict_scene(
    predictor: Predictor,
    path: PathLike,
    output: PathLike,
    progress: Callable[[int, int], None] | None = None,
    probabilities: PathLike | None = None,
) -> np.ndarray:
    """Predicts a raster window by window and writes a raster of labels.

    Windows overlap by `predictor.overlap` and are blended as
    `SlidingWindow` blends them; labels of an artefact without probabilities
    vote with the same weights. Blocks are written as they are done, so that
    memory does not depend on the height. It holds one window, the overlap of
    two rows of windows (float32 `[overlap * window, width, K]`, twice) and
    GDAL's cache of 512 MiB at most.

    Args:
        predictor: `Predictor`. Windows have its `window`, or the size of its
            artefact, or 512 pixels.
        path: raster that GDAL reads as GeoTIFF.
        output: GeoTIFF to write: uint8, tiled, compressed, with the raster's
            transform and coordinate system and a color table. Pixels without
            data are `ignore_label`, which is declared as no data. A
            multilabel model has one band for each class, of 1 where the class
            is, else 0, with the class's name as its description.
        progress: function of `(done, total)` windows, or `None`.
        probabilities: GeoTIFF to write, or `None`: one float32 band for each
            class, in 0..1, with its name; NaN, the declared no data, where
            there is none. `min_confidence` does not change it.

    Returns:
        int64 `(256,)`, the pixels of each label; for a multilabel model
        `(K, 256)`, those of each band.

    Raises:
        ValueError: not a readable raster, bands or type that do not fit the
            model, no probabilities to write, or the extra `geo` is missing.
        OSError: a raster cannot be written.
    """
    require("Predicting a GeoTIFF", "geo", "rasterio")
    import rasterio

    spec = spec_of(predictor)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES))
            scene = rasterio.open(path, driver="GTiff")
            stack.enter_context(scene)
            raster = _Raster(scene, predictor, str(path))
            scan = _Scan(predictor, raster, probabilities is not None)
            names = spec.class_names if spec.is_multilabel else ()
            sizes = len(names) or 1, 4 * scan.num_classes * scan.keeps
            cache = _CACHE_BYTES + 2 * _TILE * scene.width * sum(sizes)
            cache = min(cache, _MAX_CACHE_BYTES)
            stack.enter_context(rasterio.Env(GDAL_CACHEMAX=cache))
            ignored = spec.ignore_label
            enter = stack.enter_context
            to = [enter(_created(output, scene, "uint8", ignored, names))]
            if not names:
                to[0].raster.write_colormap(1, _color_table(spec))
            if scan.keeps:
                kept = _created(
                    probabilities, scene, "float32", np.nan, spec.class_names
                )
                to.append(enter(kept))
            return _write_blocks(scan.blocks(progress), to)
    except rasterio.errors.RasterioError as error:
        raise InputError(
            f"Unreadable raster. File: {path} ({_reason(error)})"
        ) from None
    except UnicodeEncodeError:
        raise InputError(
            "GDAL reads and writes GeoTIFFs whose names are UTF-8; rename the "
            f"file. File: {printable(path)}"
        ) from None


def _reason(error):
    return " ".join(str(error).split())


def _write_blocks(blocks, outputs):
    """Writes blocks of labels and probabilities; returns the counts."""
    counts = 0
    for top, left, *parts in blocks:
        for output, values in zip(outputs, parts, strict=True):
            output.write(top, left, values.reshape(*values.shape[:2], -1))
        labels = parts[0].reshape(-1, outputs[0].raster.count)
        counts += np.array(
            [np.bincount(band, minlength=256) for band in labels.T]
        )
    return counts if parts[0].ndim == 3 else counts[0]


@contextlib.contextmanager
def _created(path, scene, dtype, nodata, names):
    """Yields an `_Output` in place of a scene, whole at the end.

    Args:
        path: file.
        scene: raster with the size and the georeference.
        dtype: str, type of the bands.
        nodata: value that means no data.
        names: description of each band; empty for one band without a name.
    """
    import rasterio

    options = {}
    if min(scene.height, scene.width) >= _TILE:
        options = {"tiled": True, "blockxsize": _TILE, "blockysize": _TILE}
    if names:
        # Three bands of uint8 would be declared as RGB.
        options |= {"photometric": "minisblack"}
    if dtype == "float32":
        options |= {"predictor": 3}
    with replacing(path) as temporary:
        with _naming(path):
            raster = rasterio.open(
                temporary,
                "w",
                driver="GTiff",
                height=scene.height,
                width=scene.width,
                count=len(names) or 1,
                dtype=dtype,
                nodata=nodata,
                compress="deflate",
                bigtiff="if_safer",
                **options,
                **_position(scene),
            )
        output = _Output(raster, path)
        try:
            for band, name in enumerate(names, start=1):
                raster.set_band_description(band, name)
            yield output
        finally:
            with _naming(path):
                raster.close()
        output.check(temporary)


def _position(scene):
    """Returns the options that place a raster where a scene is."""
    points, crs = scene.gcps
    if points:
        return {"gcps": points, "crs": crs}
    return {"crs": scene.crs, "transform": scene.transform}


@contextlib.contextmanager
def _naming(path):
    """Turns an error of GDAL into one that names the output."""
    import rasterio

    try:
        yield
    except rasterio.errors.RasterioError as error:
        raise UnavailableError(
            f"{_UNWRITTEN} ({_reason(error)}). Received: {path}"
        ) from error


class _Output:
    """A raster that is written by window, then read back.

    GDAL writes blocks when its cache is full or the raster is closed, and
    then reports no failure, such as a full disk.
    """

    def __init__(self, raster, path):
        self.raster, self.path, self.sum = raster, path, 0

    def write(self, top, left, values):
        """Writes `[h, w, bands]`."""
        import rasterio

        height, width, _ = values.shape
        window = rasterio.windows.Window(left, top, width, height)
        with _naming(self.path):
            self.raster.write(np.moveaxis(values, -1, 0), window=window)
        self.sum += _sum_of_bits(values)

    def check(self, file):
        """Raises `OSError` unless the closed file holds what was written."""
        import rasterio

        found = 0
        try:
            with rasterio.open(file, driver="GTiff") as raster:
                for _, window in raster.block_windows(1):
                    found += _sum_of_bits(raster.read(window=window))
        except rasterio.errors.RasterioError:
            found = None
        if found != self.sum:
            raise UnavailableError(f"{_UNWRITTEN}. Received: {self.path}")


def _sum_of_bits(values):
    """Returns the sum of values as unsigned numbers, in any order."""
    bits = values.view(f"uint{8 * values.itemsize}")
    return int(bits.sum(dtype="uint64"))


def _color_table(spec):
    colors = color_labels(np.arange(256), spec)
    return {i: (*map(int, color), 255) for i, color in enumerate(colors)}


class _Raster:
    """A raster read by window, in the format of a model."""

    def __init__(self, scene, predictor, path):
        import rasterio

        self.scene, self.pixels, self.path = scene, predictor.pixels, path
        self.size = scene.height, scene.width
        count, self.alpha = scene.count, None
        if (
            scene.colorinterp[-1].name == "alpha"
            and count == self.pixels.channels + 1
        ):
            self.alpha, count = count, count - 1
        self.bands = list(range(1, count + 1))
        # A declared alpha that the model reads as a band masks nothing.
        alpha = rasterio.enums.MaskFlags.alpha
        self.has_mask = self.alpha is not None or not any(
            alpha in flags for flags in scene.mask_flag_enums
        )
        # By the header, so that a raster that does not fit fails at once.
        dtype = np.result_type(*(scene.dtypes[i - 1] for i in self.bands))
        self.pixels.check(np.empty((1, 1, count), dtype), path)

    def read(self, rows, columns):
        """Returns `(image [h, w, C], valid [h, w])` of slices."""
        import rasterio

        window = rasterio.windows.Window.from_slices(rows, columns)
        values = self.scene.read(self.bands, window=window)
        values = np.moveaxis(values, 0, -1)
        valid = np.ones(values.shape[:2], bool)
        if self.has_mask:
            valid = self.scene.dataset_mask(window=window) > 0
        if self.alpha is not None:
            valid &= self.scene.read(self.alpha, window=window) > 0
        # NaN is no data in any band, whatever the file declares.
        values, finite = without_gaps(values, None)
        if finite is not None:
            valid &= finite
        if not valid.all():
            values = np.where(valid[..., None], values, values.dtype.type(0))
        return self.pixels.check(values, self.path), valid


class _Scan:
    """Predicts a raster in rows of overlapping windows.

    Args:
        predictor: `Predictor`.
        raster: `_Raster`.
        keeps: bool. Blocks have their probabilities, too.
    """

    def __init__(self, predictor, raster, keeps=False):
        self.predictor, self.raster, self.keeps = predictor, raster, keeps
        height, width = predictor.image_size or (
            (predictor.window or WINDOW,) * 2
        )
        self.num_classes = predictor.num_classes
        if self.num_classes is None:
            raise InputError(
                "The number of classes must be known; keep the artefact beside "
                f"its manifest.json. Received: {predictor.path}"
            )
        spec = predictor.spec
        # Labels depend on the thresholds, which a manifest beside it states.
        self.blends = predictor.has_probabilities and (
            predictor.has_scores
            or predictor.threshold is not None
            or (spec is not None and spec.task == "semantic")
        )
        if keeps and not self.blends:
            raise InputError(
                "Scores of a scene (--scores) need a .keras model or, beside "
                "its manifest.json, model_logits.tflite, model_gpu.tflite or "
                'an artefact exported with --export.outputs "[labels, '
                f'probabilities]". Received: {predictor.path}'
            )
        # A binary object must exceed its threshold, not one half. Labels that
        # vote have been decided by the artefact.
        threshold = predictor.threshold if self.blends else None
        self.odds = np.ones(self.num_classes, "float32")
        self.thresholds = np.float32(0.5 if threshold is None else threshold)
        self.label_axes = ()
        if predictor.is_multilabel:
            self.label_axes = (self.num_classes,)
        elif threshold is not None:
            self.odds[:] = threshold, 1 - threshold
        align = 1 if predictor.image_size else predictor.align_windows(height)
        self.row_slices, self.column_slices = (
            spans(n, window, predictor.overlap, align)
            for n, window in zip(raster.size, (height, width), strict=True)
        )

    def blocks(
        self, progress: Callable[[int, int], None] | None
    ) -> Iterator[tuple[Any, ...]]:
        """Yields `(first row, first column, labels)`, row by row.

        Labels are uint8 `[rows, columns]`, for a multilabel model
        `[rows, columns, K]`. If they are kept, probabilities follow, float32
        `[rows, columns, K]`.
        """
        slices, width = self.row_slices, self.raster.size[1]
        total = len(slices) * len(self.column_slices)
        # Weighted probabilities of the rows that the next windows repeat.
        carried = np.zeros((0, width, self.num_classes), "float32")
        invalid = np.zeros((0, width), bool)
        for i, (row, down) in enumerate(
            zip(slices, weights(slices), strict=True)
        ):
            end = slices[i + 1].start if slices[i + 1 :] else row.stop
            height = end - row.start
            rest = np.empty((row.stop - end, *carried.shape[1:]), "float32")
            missing = np.zeros((row.stop - row.start, width), bool)
            missing[: len(invalid)] = invalid
            for j, (column, total_of) in enumerate(
                self._columns(row, down, missing)
            ):
                total_of[: len(carried)] += carried[:, column]
                rest[:, column] = total_of[height:]
                done, gaps = total_of[:height], missing[:height, column]
                labels = self._labels(done)
                labels[gaps] = self.predictor.ignore_label
                done[gaps] = np.nan
                kept = (done,) if self.keeps else ()
                yield row.start, column.start, labels, *kept
                if progress is not None:
                    progress(i * len(self.column_slices) + j + 1, total)
            carried, invalid = rest, missing[height:]

    def _labels(self, probabilities):
        """Returns uint8 labels of float32 `[h, w, K]`."""
        if self.label_axes:
            return (probabilities > self.thresholds).astype("uint8")
        found = (probabilities * self.odds).argmax(-1).astype("uint8")
        # Unsure: labels of an artefact may be so in every window.
        best = np.take_along_axis(probabilities, found[..., None], -1)[..., 0]
        least = self.predictor.min_confidence or 0.0
        # NaN is never sure.
        found[~((best > 0) & (best >= least))] = self.predictor.ignore_label
        return found

    def _columns(self, row, down, missing):
        """Yields `(columns, [h, columns, K])`, each column when it is whole."""
        slices = self.column_slices
        height = row.stop - row.start
        kept = np.zeros((height, 0, self.num_classes), "float32")
        for i, (column, across) in enumerate(
            zip(slices, weights(slices), strict=True)
        ):
            image, valid = self.raster.read(row, column)
            missing[:, column] |= ~valid
            found = np.zeros((*valid.shape, self.num_classes), "float32")
            if valid.any():
                weight = down[:, None, None] * across[:, None]  # (h, w, 1)
                found = self._probabilities(image) * weight
            found[:, : kept.shape[1]] += kept
            end = slices[i + 1].start if slices[i + 1 :] else column.stop
            kept = found[:, end - column.start :]
            yield slice(column.start, end), found[:, : end - column.start]

    def _probabilities(self, image: np.ndarray) -> Any:
        """Returns float32 `[h, w, K]`; of mere labels, 0 and 1."""
        predictor = self.predictor
        if self.blends:
            own = predictor.image_size in (None, image.shape[:2])
            if predictor.has_scores and own:
                return predictor.probability_batch(image[None])[0]
            return predictor.probabilities(image)
        labels = predictor.predict_batch(image[None])[0]
        if self.label_axes:
            return labels.astype("float32")
        # A label beyond the classes is that of unsure pixels.
        return np.eye(256, self.num_classes, dtype="float32")[labels]
