"""Statements of a run in its card: data, origin and licenses."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from pathlib import Path

from keras_aspp.config.load import load_config
from keras_aspp.config.schema import Config, ExportConfig, ModelConfig
from keras_aspp.export.card import README, front_matter
from keras_aspp.utils.hub import is_address
from keras_aspp.utils.text import read_text
from keras_aspp.utils.types import PathLike


def about_run(config: Config, license: str = "") -> dict[str, str]:
    """Describes a training run.

    Args:
        config: `Config` of the run.
        license: str, of the data where `data.license` is empty.

    Returns:
        dict of str: `dataset`, `trained_on` and `license`. Where a model that
        the run started from or learned from, or one before that, has another
        license than the data, `license` names each.
    """
    data = config.data
    name = data.tfds or _folder(data.root).name
    trained_on = f"{name} (split {data.train_split}), {_origin(config.model)}"
    if config.train.distill_from:
        trained_on += f", with {_name(config.train.distill_from)} as teacher"
    found = _licenses(config, license)
    license = found.pop("data")
    others = {}
    for what, other in found.items():
        if other not in ("", license):
            others.setdefault(other, what)
    if others:
        named = [f"{other} ({what})" for other, what in others.items()]
        license = ", ".join([f"{license or 'not stated'} (data)", *named])
    return {"dataset": name, "trained_on": trained_on, "license": license}


def _licenses(config, license="", seen=()):
    """Returns what a run's model is made of -> its license, `data` first."""
    found = {"data": config.data.license or license}
    for what, model in (
        ("weights", config.model.weights),
        ("teacher", config.train.distill_from),
    ):
        if model:
            found |= {
                f"{part} of the {what}" if part else what: one
                for part, one in find_licenses(model, seen).items()
            }
    return found


def export_command(
    model: str, output: PathLike, settings: ExportConfig, own: ExportConfig
) -> str:
    """Returns the command that repeats an export.

    Args:
        model: path of the workdir, or an address on the Hub.
        output: folder that was written.
        settings: `ExportConfig` of the export, its image size chosen.
        own: `ExportConfig` of the run.

    Returns:
        str; paths are as given, absolute ones without their folders.
    """
    words = ["keras-aspp export", "--model", _place(model)]
    words += ["--output", _place(output)]
    for field in dataclasses.fields(settings):
        name, value = field.name, getattr(settings, field.name)
        changed = value != getattr(own, name)
        if name == "preview_image" and changed and value:
            words += [f"--export.{name}", _place(value)]
        elif name == "image_size" or (changed and name != "formats"):
            words += [f"--export.{name}", _quoted(value)]
    return " ".join([*words, "--formats", *settings.formats])


def _quoted(value):
    """Returns a value of a configuration for a shell."""
    text = value if isinstance(value, str) else json.dumps(value)
    # Not all shells know single quotes.
    if text.startswith("[") and '"' not in text:
        return f'"{text}"'
    return shlex.quote(text)


def _place(path):
    """Returns a path for a shell, without the folders of a machine."""
    path = str(path)
    if os.path.isabs(path):
        path = Path(path).name
    return shlex.quote(path)


def find_licenses(model: str, seen: tuple[Path, ...] = ()) -> dict[str, str]:
    """Reads the licenses that stand beside a model.

    Args:
        model: path of a `.keras` file, an exported folder or a workdir;
            environment variables are expanded.
        seen: folders of the runs that led here, which are not read again.

    Returns:
        dict: the license under `""`, of the card's metadata or of the data of
        the run; with a run, those of what it started and learned from under
        `weights`, `teacher` and `weights of the weights`. Empty where no
        license is stated, and for addresses on the Hub.
    """
    if is_address(model):
        return {}
    path = Path(os.path.expandvars(model))
    folder = (path if path.is_dir() else path.parent).resolve()
    if (folder / README).is_file():
        file = folder / README
        front, _ = front_matter(read_text(file), file)
        return {"": str(front.get("license") or "")}
    if (folder / "config.yaml").is_file() and folder not in seen:
        config = load_config(folder / "config.yaml", ())
        found = _licenses(config, seen=(*seen, folder))
        return {"": found.pop("data"), **found}
    return {}


def _origin(model: ModelConfig) -> str:
    if model.weights:
        return f"starting from {_name(model.weights)}"
    if model.backbone_weights:
        weights = _name(model.backbone_weights)
        return f"starting from {model.backbone} ({weights})"
    return "starting from random weights"


def _name(path):
    """Returns an address, a keyword, or a path's last name that tells."""
    if is_address(path):
        return path
    path = _folder(path)
    return path.parent.name if path.name == "model.keras" else path.name


def _folder(path):
    """Returns a path that ends in a name: not in `.` or a variable."""
    return Path(os.path.abspath(os.path.expandvars(path)))
