"""Rasters larger than memory: predicted by window, georeferenced.

Shape legend: H x W pixels of the raster, h x w of a window, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_aspp.data.decode import MAX_PIXELS
from keras_aspp.data.tiff import is_scene, is_tiff, without_gaps
from keras_aspp.inference.predictor import Predictor
from keras_aspp.inference.sliding_window import spans, weights
from keras_aspp.plots.labels import color_labels, spec_of
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.extras import require
from keras_aspp.utils.files import replacing
from keras_aspp.utils.types import PathLike

# Height and width of a window where none is given, in pixels.
WINDOW = 512
# Cache of GDAL, in bytes; its default is a share of the machine's memory.
_CACHE_BYTES = 64 * 2**20
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
) -> np.ndarray:
    """Predicts a raster window by window and writes a raster of labels.

    Windows overlap by `predictor.overlap` and are blended as
    `SlidingWindow` blends them; labels of an artefact without scores vote with
    the same weights. Rows of windows are written as they are done: memory
    holds one window and the overlap of two rows, whatever the height.

    Args:
        predictor: `Predictor`. Windows have its `window`, or the size of its
            artefact, or 512 pixels.
        path: raster that GDAL reads as GeoTIFF.
        output: GeoTIFF to write: uint8, tiled, compressed, with the raster's
            transform and coordinate system and a color table. Pixels without
            data are `ignore_label`, which is declared as no data.
        progress: function of `(done, total)` windows, or `None`.

    Returns:
        int64 `(256,)`, the pixels of each label.

    Raises:
        ValueError: not a readable raster, bands or type that do not fit the
            model, or the extra `geo` is missing.
    """
    spec_of(predictor).require_one_mask("A prediction by window, of a GeoTIFF,")
    require("Predicting a GeoTIFF", "geo", "rasterio")
    import rasterio

    counts = np.zeros(256, "int64")
    try:
        with (
            rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES),
            rasterio.open(path, driver="GTiff") as scene,
        ):
            scan = _Scan(predictor, _Raster(scene, predictor, str(path)))
            with (
                replacing(output) as temporary,
                rasterio.open(
                    temporary, "w", **_profile(scene, predictor)
                ) as to,
            ):
                to.write_colormap(1, _color_table(predictor))
                for top, labels in scan.rows(progress):
                    height, width = labels.shape
                    window = rasterio.windows.Window(0, top, width, height)
                    to.write(labels, 1, window=window)
                    counts += np.bincount(labels.ravel(), minlength=256)
    except rasterio.errors.RasterioError as error:
        raise InputError(
            f"Unreadable raster. File: {path} ({' '.join(str(error).split())})"
        ) from None
    return counts


def _profile(scene, predictor):
    """Returns the settings of the raster to write."""
    large = min(scene.height, scene.width) >= _TILE
    return {
        "driver": "GTiff",
        "height": scene.height,
        "width": scene.width,
        "count": 1,
        "dtype": "uint8",
        "crs": scene.crs,
        "transform": scene.transform,
        "nodata": predictor.ignore_label,
        "compress": "deflate",
        "bigtiff": "if_safer",
        **(
            {"tiled": True, "blockxsize": _TILE, "blockysize": _TILE}
            if large
            else {}
        ),
    }


def _color_table(predictor):
    colors = color_labels(np.arange(256), spec_of(predictor))
    return {i: (*map(int, color), 255) for i, color in enumerate(colors)}


class _Raster:
    """A raster read by window, in the format of a model."""

    def __init__(self, scene, predictor, path):
        self.scene, self.pixels, self.path = scene, predictor.pixels, path
        self.size = scene.height, scene.width
        count, self.alpha = scene.count, None
        if (
            scene.colorinterp[-1].name == "alpha"
            and count == self.pixels.channels + 1
        ):
            self.alpha, count = count, count - 1
        self.bands = list(range(1, count + 1))
        # By the header, so that a raster that does not fit fails at once.
        dtype = np.result_type(*(scene.dtypes[i - 1] for i in self.bands))
        self.pixels.check(np.empty((1, 1, count), dtype), path)

    def read(self, rows, columns):
        """Returns `(image [h, w, C], valid [h, w])` of slices."""
        import rasterio

        window = rasterio.windows.Window.from_slices(rows, columns)
        values = self.scene.read(self.bands, window=window)
        values = np.moveaxis(values, 0, -1)
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
    """Predicts a raster in rows of overlapping windows."""

    def __init__(self, predictor, raster):
        self.predictor, self.raster = predictor, raster
        height, width = predictor.image_size or (
            (predictor.window or WINDOW,) * 2
        )
        self.num_classes = predictor.num_classes
        if self.num_classes is None:
            raise InputError(
                "The number of classes must be known; keep the artefact beside "
                f"its manifest.json. Received: {predictor.path}"
            )
        # A binary object must exceed its threshold, not one half; of labels
        # that vote, the artefact has decided so already.
        threshold = predictor.threshold if predictor.has_scores else None
        self.odds = np.ones(self.num_classes, "float32")
        if threshold is not None:
            self.odds[:] = threshold, 1 - threshold
        align = 1 if predictor.image_size else predictor.align_windows(height)
        self.row_slices, self.column_slices = (
            spans(n, window, predictor.overlap, align)
            for n, window in zip(raster.size, (height, width), strict=True)
        )

    def rows(
        self, progress: Callable[[int, int], None] | None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields `(first row, uint8 [rows, W])` from top to bottom."""
        slices, width = self.row_slices, self.raster.size[1]
        total = len(slices) * len(self.column_slices)
        # Weighted probabilities of the rows that the next windows repeat.
        carried = np.zeros((0, width, self.num_classes), "float32")
        invalid = np.zeros((0, width), bool)
        for i, (row, down) in enumerate(
            zip(slices, weights(slices), strict=True)
        ):
            end = slices[i + 1].start if slices[i + 1 :] else row.stop
            labels = np.empty((end - row.start, width), "uint8")
            rest = np.empty((row.stop - end, *carried.shape[1:]), "float32")
            missing = np.zeros((row.stop - row.start, width), bool)
            missing[: len(invalid)] = invalid
            for j, (column, total_of) in enumerate(
                self._columns(row, down, missing)
            ):
                total_of[: len(carried)] += carried[:, column]
                done = total_of[: len(labels)]
                found = (done * self.odds).argmax(-1).astype("uint8")
                # Unsure: labels of an artefact may be so in every window.
                best = np.take_along_axis(done, found[..., None], -1)[..., 0]
                least = self.predictor.min_confidence or 0.0
                found[(best <= 0) | (best < least)] = (
                    self.predictor.ignore_label
                )
                labels[:, column] = found
                rest[:, column] = total_of[len(labels) :]
                if progress is not None:
                    progress(i * len(self.column_slices) + j + 1, total)
            labels[missing[: len(labels)]] = self.predictor.ignore_label
            carried, invalid = rest, missing[len(labels) :]
            yield row.start, labels

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
        if predictor.has_scores and predictor.image_size in (
            None,
            image.shape[:2],
        ):
            return predictor.probability_batch(image[None])[0]
        labels = predictor.predict_batch(image[None])[0]
        # A label beyond the classes is that of unsure pixels.
        return np.eye(256, self.num_classes, dtype="float32")[labels]
