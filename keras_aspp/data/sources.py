"""open_source: opens the data source of a `DataConfig`."""

import logging
import os
import re
from typing import Any, TypeAlias

from keras_aspp.data.folder import HELD_OUT, FolderSource
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.data.tfds import TfdsSource, is_converted
from keras_aspp.utils.exceptions import InputError

Source: TypeAlias = FolderSource | TfdsSource
_log = logging.getLogger(__name__)


def open_source(
    config: Any, strict: bool = True, spec: DatasetSpec | None = None
) -> Source:
    """Opens the data set that a `DataConfig` names.

    Args:
        config: `DataConfig`.
        strict: bool. Raise if `class_names`, `label_map` or `ignore_label`
            differs from the data set's dataset.json, which is used; False
            logs it, for runs that exist.
        spec: of a folder without dataset.json; `None` for that of
            `class_names`, `label_map` and `ignore_label`.

    Returns:
        `FolderSource` or `TfdsSource`.

    Raises:
        ValueError: not exactly one of `root` and `tfds`, or data at fault.
        FileNotFoundError: the folder does not exist.
    """
    if (config.root is None) == (config.tfds is None):
        raise InputError(
            "Exactly one of `data.root` (a folder) and `data.tfds` (a name) "
            f"must be given. Received: root={config.root!r}, "
            f"tfds={config.tfds!r}"
        )
    if spec is None:
        _check_named_classes(config)
        spec = _given_spec(config)
    if config.root is not None:
        root = os.path.expandvars(config.root)
        _check_described(config, root)
        if is_converted(root):
            _check_named(config)
            return _agreeing(TfdsSource(root, spec), spec, config, strict)
        source = FolderSource(
            root,
            spec,
            config.validation_fraction,
            config.train_split,
            config.validation_split,
            config.group_by,
            config.validation_groups,
        )
        return _agreeing(source, spec, config, strict)
    _check_named(config)
    source = TfdsSource(
        config.tfds, spec, config.image_key, config.mask_key, config.data_dir
    )
    return _agreeing(source, spec, config, strict)


def _given_spec(config):
    """Returns the `DatasetSpec` of a configuration, `None` without classes."""
    names = config.class_names
    if names is None and config.task == "binary":
        names = ["object"]
    if names is None:
        return None
    return DatasetSpec(
        names,
        config.ignore_label,
        label_map=config.label_map,
        license=config.license,
        task=config.task,
    )


def _agreeing(source, spec, config, strict):
    """Returns the source, or raises if dataset.json contradicts `data`."""
    task = config.task
    if task not in ("semantic", source.spec.task):
        raise InputError(
            "`data.task` differs from the data set's dataset.json, which is "
            f'used; put "task": "{task}" there. '
            f"Received: data.task={task}, dataset.json: {source.spec.task}"
        )
    if spec is not None and spec.num_classes != source.spec.num_classes:
        raise InputError(
            "`data.class_names` must name as many classes as the data set's "
            "dataset.json, which is used; leave it out. Received: "
            f"class_names={list(spec.class_names)}, dataset.json: "
            f"{list(source.spec.class_names)}"
        )
    for key, given, used in _given_and_used(source.spec, spec, config):
        if given == used:
            continue
        received = f"Received: {key}={given}, dataset.json: {used}"
        differs = f"`data.{key}` differs from the data set's dataset.json"
        is_records = isinstance(source, TfdsSource)
        if is_records and key == "label_map":
            _log.info(
                "Note: `data.label_map` has no effect on records, which hold "
                "class ids: `data convert` applied it. %s",
                received,
            )
        elif not strict:
            _log.info("Note: %s, which is used. %s", differs, received)
        else:
            # Records are written for their ignore_label.
            advice = "" if is_records else ", or change it there"
            raise InputError(
                f"{differs}, which is used; leave it out{advice}. {received}"
            )
    return source


def _given_and_used(used, spec, config):
    """Yields the name of each given option, its value, and the one in use.

    Args:
        used: `DatasetSpec` of the source.
        spec: `DatasetSpec` of the given options, or `None`.
        config: `DataConfig`.
    """
    if config.class_names is not None:
        yield "class_names", list(spec.class_names), list(used.class_names)
    if config.label_map is not None:
        given = _with_int_keys(config.label_map)
        yield "label_map", given, used.label_map or {}
    # Its default cannot be told from the same value given.
    if config.ignore_label != 255:
        yield "ignore_label", config.ignore_label, used.ignore_label


def _with_int_keys(label_map):
    """Returns a label map, also of a command line, which gives text."""
    return {
        int(key) if re.fullmatch(r"-?\d+", str(key)) else key: label
        for key, label in label_map.items()
    }


def _check_described(config, root):
    """Raises if `label_map` or such would be ignored for a folder."""
    if config.class_names or os.path.exists(f"{root}/dataset.json"):
        return
    if config.label_map is not None or config.ignore_label != 255:
        raise InputError(
            "`data.label_map` and `data.ignore_label` need "
            "`data.class_names`, or a dataset.json in the folder. Received: "
            f"label_map={config.label_map}, ignore_label={config.ignore_label}"
        )


def _check_named_classes(config):
    """Raises for a multilabel task of unknown classes."""
    if config.task != "multilabel" or config.root is None:
        return
    described = os.path.exists(
        os.path.expandvars(f"{config.root}/dataset.json")
    )
    if config.class_names is None and not described:
        raise InputError(
            "`data.task` multilabel needs `data.class_names`, one for each "
            "mask, or a dataset.json in the folder. Received: "
            f"root={config.root!r}"
        )


def _check_named(config):
    """Raises if images are to be held out of records, which use slices."""
    if config.group_by is not None or config.validation_groups is not None:
        raise InputError(
            "`data.group_by` and `data.validation_groups` need a folder data "
            "set; records have no names. Received: "
            f"group_by={config.group_by!r}, "
            f"validation_groups={config.validation_groups}"
        )
    if config.validation_split == HELD_OUT:
        name = config.train_split
        raise InputError(
            "`data.validation_split null` holds out images of a folder; of "
            f"records, name two slices, e.g. --data.train_split {name}[:90%] "
            f"--data.validation_split {name}[90%:]. Received: "
            f"{'root' if config.tfds is None else 'tfds'}="
            f"{config.tfds or config.root!r}"
        )
