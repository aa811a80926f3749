"""Help on configuration fields, from the docstrings of their classes."""

import dataclasses
import textwrap
import types
import typing

from keras_aspp.config.schema import Config

WIDTH = 79
_NAMES = {str: "text", bool: "true or false", type(None): "null"}


def describe(path):
    """Describes a field, or every field of a section.

    Args:
        path: such as `train.loss` or `train.loss.dice`.

    Returns:
        str of one or more lines.

    Raises:
        KeyError: unknown section or field.
    """
    section, prefix = Config, ""
    names = path.split(".")
    for i, name in enumerate(names):
        fields = {f.name: f for f in dataclasses.fields(section)}
        field = fields[name]
        if not dataclasses.is_dataclass(field.type):
            if i + 1 < len(names):
                raise KeyError(path)
            return _describe_field(section, field, prefix)
        section, prefix = field.type, f"{prefix}{name}."
    lines = [f"{path}: {_docstring(section).short_description}", ""]
    for field in dataclasses.fields(section):
        lines.append(_describe_field(section, field, prefix))
    return "\n".join(lines)


def paths():
    """Returns paths of all sections and fields, in their order."""

    def below(section, prefix):
        for field in dataclasses.fields(section):
            yield prefix + field.name
            if dataclasses.is_dataclass(field.type):
                yield from below(field.type, f"{prefix}{field.name}.")

    return list(below(Config, ""))


def _describe_field(section, field, prefix):
    """Formats name, type and default of a field, its text below."""
    path = prefix + field.name
    texts = {p.arg_name: p.description for p in _docstring(section).params}
    text = " ".join(texts[field.name].split())
    if dataclasses.is_dataclass(field.type):
        head = f"{path}.*  (see --help {path})"
    else:
        head = f"{path}  {_type_text(field.type)}; {_default_text(field)}"
    return "\n".join(
        textwrap.wrap(head, WIDTH, subsequent_indent="    ")
        + textwrap.wrap(
            text[0].upper() + text[1:],
            WIDTH,
            initial_indent="    ",
            subsequent_indent="    ",
            break_on_hyphens=False,
        )
    )


def _docstring(section):
    # With jsonargparse's extra `signatures`, which the package requires.
    import docstring_parser

    return docstring_parser.parse(
        section.__doc__, docstring_parser.DocstringStyle.GOOGLE
    )


def _default_text(field):
    import yaml

    value = field.default
    if value is dataclasses.MISSING:
        value = field.default_factory()
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return f"default {text.removesuffix('...' + chr(10)).strip()}"


def _type_text(kind):
    """Returns a type in the words of YAML."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (types.UnionType, typing.Union):
        return " | ".join(_type_text(a) for a in arguments)
    if origin is list or (origin is tuple and arguments[-1] is ...):
        return f"list of {_type_text(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(map(_type_text, arguments))}]"
    if origin is dict:
        return f"mapping of {' to '.join(map(_type_text, arguments))}"
    return _NAMES.get(kind, kind.__name__)
