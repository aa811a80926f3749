"""Configurations: by name or file, overridden on the command line."""

import dataclasses
import difflib
import re
from importlib import resources
from pathlib import Path

from keras_aspp.config import DURATIONS, Config
from keras_aspp.engine.files import write_text


def config_path(name):
    """The file of a configuration.

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
    raise FileNotFoundError(
        "--config must be a file or one of: "
        f"{', '.join(config_names())}. Received: {name!r}"
    )


def config_names():
    """Names of the package's configurations."""
    folder = resources.files("keras_aspp") / "configs"
    return sorted(
        Path(entry.name).stem
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


class ConfigurationError(ValueError):
    """A configuration that does not parse, in one line."""


def load_config(path, overrides=()):
    """A `Config` from a file and `--section.field value` pairs.

    Args:
        path: YAML file.
        overrides: list of str.

    Raises:
        ValueError: unknown keys or wrong values, named.
    """
    import jsonargparse

    text = Path(path).read_text(encoding="utf-8")
    _check_keys(text, path)
    parser = _make_parser()
    try:
        parsed = parser.parse_string(text)
        if overrides:
            _leave_to(overrides, parsed.train)
            parsed = parser.parse_args(list(overrides), namespace=parsed)
        made = parser.instantiate_classes(parsed)
    except ConfigurationError:
        raise
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigurationError(_explain(error)) from None
    names = [field.name for field in dataclasses.fields(Config)]
    return Config(**{name: getattr(made, name) for name in names})


def _leave_to(overrides, train):
    """Takes the file's duration away where the command line gives one."""
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


def config_text(config):
    """A configuration as YAML that `load_config` reads."""
    import yaml

    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def dump_config(config, path):
    """Writes `config_text` under a temporary name and renames it."""
    write_text(path, config_text(config))


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _fields():
    """Section name -> names of its fields."""
    return {
        section.name: [
            field.name
            for field in dataclasses.fields(section.default_factory())
        ]
        for section in dataclasses.fields(Config)
    }


def _check_keys(text, path):
    """Raises `ConfigurationError` for keys that no section has."""
    import yaml

    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        message = " ".join(str(error).split())
        raise ConfigurationError(
            f"Not valid YAML. File: {path} ({message})"
        ) from None
    fields = _fields()
    for section in content if isinstance(content, dict) else [content]:
        if section not in fields or not isinstance(content[section], dict):
            raise ConfigurationError(
                "A configuration must hold sections of `key: value`: "
                f"{', '.join(fields)}. Received: {section!r} in {path}"
            )
        for key in content[section]:
            if key not in fields[section]:
                raise ConfigurationError(_unknown(f"{section}.{key}"))


def _unknown(key):
    section = key.split(".")[0]
    known = _fields()[section]
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
    """The parser's message as one line; unknown keys in our words."""
    message = " ".join(str(message).split())
    found = re.search(r"nrecognized arguments: --([a-z_]+\.[\w.]+)", message)
    if found and found[1].split(".")[0] in _fields():
        return _unknown(found[1])
    return message


def print_table(rows):
    """Prints rows of cells in aligned columns."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (c.ljust(w) for c, w in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
