"""Working directories of training runs: configuration, data, model, export."""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_aspp.config.load import config_path, load_config
from keras_aspp.config.schema import Config, DataConfig, ExportConfig
from keras_aspp.data.decode import read_image
from keras_aspp.data.folder import HELD_OUT
from keras_aspp.data.sources import Source, open_source
from keras_aspp.engine.fingerprint import read_fingerprint, specification_of
from keras_aspp.export import export_model
from keras_aspp.export.about import about_run, export_command
from keras_aspp.export.explain import OperatorCost
from keras_aspp.export.image_size import choose_image_size
from keras_aspp.export.quantize import QUANTIZED
from keras_aspp.export.tflite import explain_int8
from keras_aspp.inference.artefacts import find_spec, local_folder, resolve
from keras_aspp.models.segmenter import Segmenter, load_saved
from keras_aspp.utils.exceptions import InputError, InputNotFoundError
from keras_aspp.utils.files import write_json
from keras_aspp.utils.progress import print_progress, timed
from keras_aspp.utils.text import num_of
from keras_aspp.utils.types import PathLike

CONFIG = "config.yaml"
_log = logging.getLogger(__name__)


class Workdir:
    """Folder of a training run.

    Args:
        path: folder that `keras-aspp train` wrote, also `hf://user/name` of
            one that was pushed with its config.yaml.

    Attributes:
        address: str, the path as it was given.
        path: `pathlib.Path`, on this machine.

    Raises:
        FileNotFoundError: the folder holds no config.yaml.
    """

    def __init__(self, path: PathLike) -> None:
        self.address: str = str(path)
        self.path: Path = local_folder(path)
        if not (self.path / CONFIG).is_file():
            raise InputNotFoundError(
                "--model must be a workdir, which holds config.yaml and "
                f"model.keras. Received: {str(path)!r}"
            )

    @functools.cached_property
    def config(self) -> Config:
        """`Config` of the run."""
        return self.config_with(())

    def config_with(self, overrides: Sequence[str]) -> Config:
        """`Config` of the run with `--section.field value` pairs applied."""
        return load_config(self.path / CONFIG, overrides)

    @functools.cached_property
    def source(self) -> Source:
        """Data source that the run was trained on."""
        return open_source(self.config.data, strict=False)

    @property
    def held_out_split(self) -> str:
        """Test split, or the validation split where there is none."""
        data = self.config.data
        return data.test_split or data.validation_split

    def examples(self, split: str) -> Examples:
        """`Examples` of a split."""
        return Examples(self.source, split)

    def model(self) -> Segmenter:
        """Loads the best model of the run.

        Returns:
            `Segmenter`.
        """
        return load_saved(self.path)

    def export(
        self,
        output: PathLike,
        settings: ExportConfig | None = None,
        formats: Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Exports the best model; prints its phases.

        Args:
            output: folder to make.
            settings: `ExportConfig`; the run's own if `None`.
            formats: sequence of str instead of the settings', or `None`.
            overwrite: bool. Replace `output` if it exists.

        Returns:
            dict, the contents of `manifest.json`.
        """
        settings = settings or self.config.export
        formats = tuple(formats or settings.formats)
        with timed(print_progress, "model.keras: loading"):
            model = self.model()
        data, spec = self.config.data, self.source.spec
        split = self.held_out_split
        examples = self.examples(split)
        with timed(print_progress, f"images of {split}: reading"):
            verify_images, sizes = examples.survey(settings.num_verify_images)
        image_size = settings.image_size or _choose_size(model, sizes)
        calibration = None
        if {*QUANTIZED} & {*formats}:
            with timed(
                print_progress, f"images of {data.train_split}: reading"
            ):
                calibration = self.examples(data.train_split).first(
                    settings.num_calibration_images
                )
        preview = settings.preview_image
        about = about_run(self.config, spec.license)
        return export_model(
            model,
            output,
            image_size=image_size,
            class_names=spec.class_names,
            verify_images=verify_images,
            calibration_images=calibration,
            evaluation_data=examples,
            formats=formats,
            max_int8_loss=settings.max_int8_loss,
            int8_in_float=settings.int8_in_float,
            more_image_sizes=settings.more_image_sizes,
            coarse_labels=settings.coarse_labels,
            outputs=settings.outputs,
            overwrite=overwrite,
            ignore_label=spec.ignore_label,
            colormap=spec.colormap,
            preview_image=None
            if preview is None
            else read_image(preview, pixels=spec.pixels),
            about={
                **about,
                "evaluated_on": f"{num_of(self.source.size(split), 'image')} "
                f"of {about['dataset']}, split {split}",
                "command": export_command(
                    self.address,
                    output,
                    dataclasses.replace(
                        settings, image_size=tuple(image_size), formats=formats
                    ),
                    self.config.export,
                ),
                "preview": settings.preview_note,
            },
            progress=print_progress,
        )

    def explain_int8(
        self, output: PathLike, settings: ExportConfig | None = None
    ) -> list[OperatorCost]:
        """Measures which operators of an int8 file cost most.

        Args:
            output: folder for `int8_operators.json`, made if it is missing.
            settings: `ExportConfig`; the run's own if `None`.

        Returns:
            list of `OperatorCost`, the costliest first.
        """
        settings = settings or self.config.export
        model = self.model()
        _, sizes = self.examples(self.held_out_split).survey(1)
        images = self.examples(self.config.data.train_split).first(
            settings.num_calibration_images
        )
        image_size = settings.image_size or _choose_size(model, sizes)
        with timed(print_progress, "operators of int8: measuring"):
            costs = explain_int8(
                model,
                image_size,
                images,
                settings.coarse_labels,
                settings.outputs,
            )
        output = Path(output)
        output.mkdir(parents=True, exist_ok=True)
        rows = [dataclasses.asdict(cost) for cost in costs]
        write_json(output / "int8_operators.json", rows)
        return costs


def _choose_size(model, sizes):
    """Chooses the files' image size and logs why."""
    size, reason = choose_image_size(sizes, model.input.shape[1:3])
    _log.info(
        "Files of one size take images of %dx%d: %s (--export.image_size "
        "chooses another)",
        *size,
        reason,
    )
    return size


def _holds(folder, known):
    """Returns True if a folder holds all files of a fingerprint."""
    if known is None:
        return True  # of a run of an earlier version, which had none
    return all(
        os.path.exists(os.path.join(folder, name))
        for files in known["files"].values()
        for name in files
    )


class Examples:
    """Decoded examples of a split; can be iterated repeatedly.

    Args:
        source: `FolderSource` or `TfdsSource`.
        split: str.
    """

    def __init__(self, source: Source, split: str) -> None:
        self.source: Source = source
        self.split: str = split

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        records = self.source.records(self.split)
        for record in records.as_numpy_iterator():
            yield self.source.decode(*record)

    def first(self, count: int) -> list[np.ndarray]:
        """Images of `count` examples spread over the split."""
        return self.survey(count)[0]

    def survey(
        self, count: int
    ) -> tuple[list[np.ndarray], dict[tuple[int, int], int]]:
        """Images of `count` examples spread over the split, and all sizes.

        Returns:
            `(list, dict)`; the dict maps `(height, width)` to a count.
        """
        total = self.source.size(self.split)
        count = min(count, total)
        wanted = {i * total // count for i in range(count)}
        images, sizes = [], collections.Counter()
        for i, (image, _) in enumerate(self):
            sizes[image.shape[:2]] += 1
            if i in wanted:
                images.append(image)
        return images, sizes


def open_data(
    name: PathLike | None, model: PathLike
) -> tuple[Source, DataConfig]:
    """Opens the data that a command line names.

    Args:
        name: folder, NAME of a configuration, or `None` for the data that the
            workdir `model` was trained on.
        model: path of the model.

    Returns:
        `(source, DataConfig)`.

    Raises:
        ValueError: `name` is `None` and `model` is not a workdir.
    """
    model = local_folder(model)
    is_workdir = (model / CONFIG).is_file()
    if name is None:
        if not is_workdir:
            missing = "" if model.exists() else ", which does not exist"
            raise InputError(
                "--data must be given for a model that is no workdir. "
                f"Received: --model {model}{missing}"
            )
        workdir = Workdir(model)
        return workdir.source, workdir.config.data
    if not os.path.isdir(name):
        data = load_config(config_path(name)).data
        return open_source(data, strict=False), data
    data, known = DataConfig(root=name), None
    if is_workdir:
        known = read_fingerprint(model)
        data = _of_folder(Workdir(model).config.data, name, known)
    if os.path.exists(os.path.join(name, "dataset.json")):
        # It describes this folder; the run's options, another data set.
        data = dataclasses.replace(
            data, class_names=None, label_map=None, ignore_label=255
        )
        return open_source(data, strict=False), data
    spec = None
    if data.class_names is None:
        # Its labels mean what those of the training data do.
        spec = specification_of(known) if known else find_spec(resolve(model))
    return open_source(data, strict=False, spec=spec), data


def _of_folder(data, folder, known):
    """Returns a run's `DataConfig` for a folder.

    Which images of the run's own data are held out says nothing of another.
    """
    is_own = data.root is not None and _holds(folder, known)
    data = dataclasses.replace(data, root=folder, tfds=None)
    if is_own:
        return data
    return dataclasses.replace(
        data,
        group_by=None,
        validation_groups=None,
        validation_split=DataConfig().validation_split
        if data.validation_split == HELD_OUT
        else data.validation_split,
    )
