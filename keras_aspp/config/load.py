"""Configurations: by name or file, overridden on the command line."""

import argparse
import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from keras_aspp.config.schema import DURATIONS, RENAMED, Config
from keras_aspp.utils.deprecation import warn_renamed
from keras_aspp.utils.exceptions import InputError, InputNotFoundError
from keras_aspp.utils.files import write_text
from keras_aspp.utils.text import read_text
from keras_aspp.utils.types import PathLike

# A configuration is sections of fields, some of which are lists or mappings.
# YAML is slow to read: a second for a hundred kB.
_MAX_BYTES = 2**16
_MAX_DEPTH = 10
# Numbers to jsonargparse, and to YAML 1.2, but texts to PyYAML.
_EXPONENT = re.compile(
    r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$|\.[0-9_]+([eE][-+][0-9]+)?$"
)
# The most that a number may be, where 2**31 - 1 is too much: what it makes is
# allocated in full. Fields of one meaning end alike.
_MOST = {
    "filters": 4096,
    "rates": 4096,
    "multi_grid": 64,
    "kernel_sizes": 31,
    "input_scale": 16,
    "blocks": 16,
    "crop_size": 8192,
    "image_size": 8192,
    "image_sizes": 8192,
    "ignore_label": 255,
    "epochs": 1_000_000,
    "batch_size": 65_536,
    "boundary_px": 256,
    "augment.scale": 100,
    "images": 1_000_000,
    "dropout": 1,
    "momentum": 1,
    "label_smoothing": 1,
    "hard_share": 1,
}
_MAX_LENGTH = 1000  # of a list, and of a text
# Of images, in all crops of a step: 1024 of 512x512.
_MAX_STEP_PX = 2**28


def config_path(name: PathLike) -> Path:
    """Returns the file of a configuration.

    Args:
        name: NAME of one of the package, or the path of a FILE.

    Raises:
        FileNotFoundError: there is none.
    """
    packaged = resources.files("keras_aspp") / "configs" / f"{name}.yaml"
    if packaged.is_file():
        return Path(str(packaged))
    if Path(name).is_file():
        return Path(name)
    raise InputNotFoundError(
        "--config must be a file or one of: "
        f"{', '.join(shown_config_names())}. Received: {name!r}"
    )


def config_names() -> list[str]:
    """Returns the names of the packaged configurations."""
    folder = resources.files("keras_aspp") / "configs"
    return sorted(
        Path(entry.name).stem
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


def shown_config_names() -> list[str]:
    """Returns the names for messages, without those of the ablation."""
    return [name for name in config_names() if not name.startswith("ablation_")]


class ConfigurationError(InputError):
    """Invalid configuration, as a one-line message."""


def load_config(path: PathLike, overrides: Sequence[str] = ()) -> Config:
    """Loads a `Config` from a file and `--section.field value` pairs.

    Args:
        path: YAML file.
        overrides: list of str.

    Raises:
        ValueError: unknown keys or wrong values, named.
    """
    text = read_text(path, _MAX_BYTES)
    content = _parse(text, path)
    if _rename_keys(content):
        text = _yaml(content)
    _check_keys(content, path)
    overrides = [_renamed(word) for word in overrides]
    parser = _make_parser()
    blamed = f" File: {path}"
    try:
        parsed = parser.parse_string(text)
        if overrides:
            blamed = ""
            _leave_to(overrides, parsed.train)
            parsed = parser.parse_args(overrides, namespace=parsed)
    # What the parser raises depends on what the value looks like.
    except (argparse.ArgumentError, ArithmeticError, ValueError) as error:
        raise ConfigurationError(_explain(error) + blamed) from None
    try:
        _check_nulls(parsed)
        made = parser.instantiate_classes(parsed)
        names = [field.name for field in dataclasses.fields(Config)]
        config = Config(**{name: getattr(made, name) for name in names})
        _check_values(config)
    except InputError as error:
        raise ConfigurationError(_explain(error) + blamed) from None
    return config


def _rename_keys(content):
    """Replaces former keys; returns True if there were any."""
    found = False
    for old, new in RENAMED.items():
        section, key = old.split(".")
        fields = content.get(section) if isinstance(content, dict) else None
        if isinstance(fields, dict) and key in fields:
            warn_renamed(old, new)
            fields.setdefault(new.split(".")[1], fields.pop(key))
            found = True
    return found


def _renamed(word):
    """Replaces a former key in a word of the command line."""
    flag, equals, value = word.partition("=")
    new = RENAMED.get(flag.removeprefix("--"))
    if new is None or not flag.startswith("--"):
        return word
    warn_renamed(flag, f"--{new}")
    return f"--{new}{equals}{value}"


def _leave_to(overrides, train):
    """Drops the duration of the file if the command line sets one."""
    words = {word.split("=")[0] for word in overrides}
    if words & {f"--train.{name}" for name in DURATIONS}:
        for name in DURATIONS:
            train[name] = None


def _make_parser():
    import jsonargparse

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message, ex=None):
            raise ConfigurationError(_explain(message))

    parser = Parser(exit_on_error=False, allow_abbrev=False)
    for field in dataclasses.fields(Config):
        parser.add_class_arguments(
            field.default_factory().__class__, field.name
        )
    return parser


def config_text(config: Config) -> str:
    """Formats a configuration as YAML that `load_config` reads."""
    return _yaml(_plain(dataclasses.asdict(config)))


def _yaml(content):
    import yaml

    dumper = _with_exponents(yaml.SafeDumper)
    return yaml.dump(content, Dumper=dumper, sort_keys=False)


def _with_exponents(base):
    """Returns a loader or dumper of PyYAML that takes `3e5` for a number."""
    made = type(base.__name__, (base,), {})
    made.add_implicit_resolver(
        "tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789")
    )
    return made


def dump_config(config: Config, path: PathLike) -> None:
    """Writes `config_text` under a temporary name and renames it."""
    write_text(path, config_text(config))


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _fields():
    """Path of a section -> names of its fields."""
    return {
        path: [field.name for field in dataclasses.fields(section)]
        for path, section in _sections().items()
    }


def _sections(within=None, prefix=""):
    """Path -> default of each section, and of the sections in them."""
    found = {}
    for field in dataclasses.fields(within or Config):
        if dataclasses.is_dataclass(field.type):
            section = field.default_factory()
            found[prefix + field.name] = section
            found |= _sections(section, f"{prefix}{field.name}.")
    return found


def _parse(text, path):
    """Reads a YAML file, plain values only."""
    import yaml

    try:
        opened = []  # collections, each a list of the scalars in it
        # Before anything is built: a few aliases of aliases expand to
        # billions of values, and deep nesting takes the parser for ever.
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise InputError("aliases are not allowed")
            if isinstance(event, yaml.NodeEvent) and opened:
                opened[-1].append(getattr(event, "value", None))
            if isinstance(event, yaml.CollectionStartEvent):
                opened.append([])
            if isinstance(event, yaml.CollectionEndEvent):
                scalars = opened.pop()
                if isinstance(event, yaml.MappingEndEvent):
                    _check_repeated(scalars[::2])  # keys, between values
            if len(opened) > _MAX_DEPTH:
                raise InputError(f"nested deeper than {_MAX_DEPTH}")
        return yaml.load(text, _with_exponents(yaml.SafeLoader))
    except Exception as error:
        # Values that look like dates or numbers raise errors of their own.
        message = " ".join(str(error).split())
        raise ConfigurationError(
            f"Not valid YAML. File: {path} ({message})"
        ) from None


def _check_repeated(keys):
    # YAML would keep the last one.
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(
                f"a key must occur once in its section; remove one `{key}`"
            )


def _check_keys(content, path):
    """Raises `ConfigurationError` for unknown keys."""
    names = [field.name for field in dataclasses.fields(Config)]
    sections = content if isinstance(content, dict) else [str(content)]
    for section in sections or ["nothing"]:
        if section not in names:
            raise ConfigurationError(
                "A configuration must hold sections of `key: value`: "
                f"{', '.join(names)}. Received: {section!r} in {path}"
            )
        _check_keys_of(content[section], section, path)


def _check_keys_of(content, section, path):
    if not isinstance(content, dict):
        # The parser would take a text for the name of one more file.
        raise ConfigurationError(
            f"`{section}` must be a section of `key: value`. "
            f"Received: {content!r} in {path}"
        )
    fields = _fields()
    for key, value in content.items():
        if key not in fields[section]:
            unknown = _unknown(f"{section}.{key}")
            raise ConfigurationError(f"{unknown}. File: {path}")
        if f"{section}.{key}" in fields:
            _check_keys_of(value, f"{section}.{key}", path)


def _check_nulls(parsed):
    """Raises `ConfigurationError` for null where a value is needed."""
    for path, section in _sections().items():
        for field in dataclasses.fields(section):
            name = f"{path}.{field.name}"
            optional = type(None) in typing.get_args(field.type)
            if parsed[name] is None and not optional:
                raise ConfigurationError(
                    f"`{name}` must not be null. Received: {name}=null"
                )


def _check_values(config):
    """Raises `ConfigurationError` for values out of all reasonable range.

    Whether a value makes sense is for the code that uses it to say. Here
    numbers are held to what can be counted and allocated.
    """
    for section in dataclasses.fields(config):
        _check_section(getattr(config, section.name), section.name)
    height, width = config.data.crop_size
    pixels = config.train.batch_size * height * width
    pixels *= config.model.input_scale**2
    if pixels > _MAX_STEP_PX:
        raise ConfigurationError(
            f"The crops of a step must have at most {_MAX_STEP_PX} pixels in "
            "all; train.accumulate_steps makes larger batches of small ones. "
            f"Received: train.batch_size={config.train.batch_size}, "
            f"data.crop_size={config.data.crop_size}, "
            f"model.input_scale={config.model.input_scale}"
        )


def _check_section(section, path):
    for field in dataclasses.fields(section):
        name, value = f"{path}.{field.name}", getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            _check_section(value, name)
        elif not isinstance(value, dict):
            _check_value(value, name)


def _check_value(value, name):
    if isinstance(value, (str, list, tuple)):
        if len(value) > _MAX_LENGTH:
            raise ConfigurationError(
                f"`{name}` must not be longer than {_MAX_LENGTH}. "
                f"Received: length {len(value)}"
            )
        for item in value if not isinstance(value, str) else ():
            _check_value(item, name)
    elif isinstance(value, (int, float)):
        ends = (most for end, most in _MOST.items() if name.endswith(end))
        most = min(ends, default=2**31 - 1)
        # NaN fails every comparison.
        if not 0 <= value <= most or not math.isfinite(value):
            raise ConfigurationError(
                f"`{name}` must be in 0..{most}. Received: {name}={value}"
            )


def _unknown(key):
    known = _fields().get(key.rpartition(".")[0], [])
    everything = [
        f"{s}.{name}" for s, names in _fields().items() for name in names
    ]
    near = difflib.get_close_matches(key, everything, 1, 0.5)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    return (
        f"Unknown configuration key `{key}`.{hint} "
        f"Valid keys: {', '.join(sorted(known))}"
    )


def _explain(message):
    """Formats the message of the parser on one line."""
    message = " ".join(str(message).split())
    found = re.search(r"nrecognized arguments: --([a-z_]+\.[\w.]+)", message)
    if found and found[1].split(".")[0] in _fields():
        return _unknown(found[1])
    return message
