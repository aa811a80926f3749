"""Configurations: by name or file, overridden on the command line."""

import dataclasses
import difflib
import os
import sys
import tempfile
from importlib import resources
from pathlib import Path

from keras_aspp.config import Config


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


def make_parser(prog, description, **kwargs):
    """A parser of `Config`'s fields; the command adds its own flags."""
    import jsonargparse

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message, ex=None):
            raise UsageError(_explain(" ".join(message.split())))

    parser = Parser(
        prog=prog,
        description=description,
        exit_on_error=False,
        env_prefix=False,
        **kwargs,
    )
    for field in dataclasses.fields(Config):
        kind = field.default_factory().__class__
        parser.add_class_arguments(kind, field.name)
    return parser


class UsageError(ValueError):
    """A configuration or command line that does not parse."""


def load_config(path, overrides=()):
    """A `Config` from a file and `--section.field value` pairs.

    Args:
        path: YAML file.
        overrides: list of str.

    Raises:
        ValueError: unknown keys or wrong values, named.
    """
    parser = make_parser("keras-aspp", "")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    parsed = _parse(parser, text, list(overrides))
    return as_config(parser, parsed)


def _parse(parser, text, overrides):
    import jsonargparse

    try:
        parsed = parser.parse_string(text)
        if overrides:
            parsed = parser.parse_args(overrides, namespace=parsed)
        return parsed
    except UsageError:
        raise
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise UsageError(_explain(" ".join(str(error).split()))) from None


def as_config(parser, parsed):
    """A `Config` from what `parser` parsed."""
    try:
        made = parser.instantiate_classes(parsed)
    except (TypeError, ValueError) as error:
        raise UsageError(" ".join(str(error).split())) from None
    names = [field.name for field in dataclasses.fields(Config)]
    return Config(**{name: getattr(made, name) for name in names})


def dump_config(config, path):
    """Writes a configuration that `load_config` reads, atomically."""
    import yaml

    text = yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)
    descriptor, temporary = tempfile.mkstemp(dir=Path(path).parent)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _explain(message):
    """Adds to an unknown key what was probably meant."""
    fields = {
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(section.default_factory().__class__)
    }
    for word in message.replace("'", " ").replace('"', " ").split():
        key = word.strip("`,:.-").split("=")[0]
        section = key.split(".")[0]
        if "." not in key or key in fields or not any(
            f.startswith(f"{section}.") for f in fields
        ):
            continue
        known = sorted(f for f in fields if f.startswith(f"{section}."))
        near = difflib.get_close_matches(key, known, 1, 0.5)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        keys = ", ".join(k.split(".")[1] for k in known)
        if "nexist" in message or "nrecognized" in message or "not" in message:
            return (
                f"Unknown configuration key `{key}`.{hint} "
                f"Valid keys: {keys}"
            )
    return message


def print_table(rows, file=None):
    """Prints rows of cells in aligned columns."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (c.ljust(w) for c, w in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip(), file=file or sys.stdout)
