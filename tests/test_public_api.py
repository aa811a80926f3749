"""The public names and signatures, as tests/golden/public_api.txt lists them.

`python tests/test_public_api.py --write` accepts a change, and lists new names
for a release.
"""

import contextlib
import dataclasses
import difflib
import functools
import importlib
import inspect
import io
import pathlib
import re
import sys
import typing

import keras_aspp
from keras_aspp.config.schema import Config
from keras_aspp.context_modules import ContextName

GOLDEN = pathlib.Path(__file__).parent / "golden" / "public_api.txt"
MODULES = (
    "keras_aspp",
    "keras_aspp.layers",
    "keras_aspp.losses",
    "keras_aspp.metrics",
    "keras_aspp.models",
    "keras_aspp.backbones",
    "keras_aspp.analysis",
    "keras_aspp.weights",
    "keras_aspp.data",
    "keras_aspp.inference",
    "keras_aspp.export",
    "keras_aspp.annotations",
)
ACCEPT = "python tests/test_public_api.py --write"
# Modules of names, which only make a line longer.
_PREFIX = re.compile(
    r"\b(?:collections\.abc|typing|pathlib|numpy|fractions|os)\."
    r"|\b(?:keras|keras_aspp)(?:\.\w+)*\.(?=[A-Z])"
)


def annotation_text(annotation):
    if isinstance(annotation, str):
        return annotation
    text = inspect.formatannotation(annotation)
    # A new name is no other signature; each has a line of its own.
    return text.replace(inspect.formatannotation(ContextName), "ContextName")


def default_text(value):
    return getattr(value, "__name__", None) or repr(value)


def signature_text(function):
    """`(filters: int = 256, **kwargs: Any) -> None`, on one line."""
    signature = inspect.signature(function)
    parameters = []
    stars = {"KEYWORD_ONLY": "*", "VAR_POSITIONAL": None}
    for parameter in signature.parameters.values():
        kind = parameter.kind.name
        if stars.get(kind) and "*" in stars.values():
            parameters.append("*")
        if kind in stars:
            stars = {}
        text = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(kind, "")
        text += parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {annotation_text(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {default_text(parameter.default)}"
        parameters.append(text)
    result = ""
    if signature.return_annotation is not signature.empty:
        shown = annotation_text(signature.return_annotation)
        result = f" -> {shown}"
    return _PREFIX.sub("", f"({', '.join(parameters)}){result}")


def members_of(kind, listed):
    """Names that a class adds to Keras' and to classes with lines of their own.

    What it adds through private mixins counts as its own.
    """
    own = [
        owner
        for owner in kind.__mro__
        if owner.__module__.startswith("keras_aspp")
        and (owner is kind or owner not in listed)
    ]
    others = [owner for owner in kind.__mro__ if owner not in own]
    found = {}
    for owner in reversed(own):
        found |= {k: v for k, v in vars(owner).items() if k[0] != "_"}
    known = {
        name for owner in others if owner not in listed for name in vars(owner)
    }
    fields = getattr(kind, "__dataclass_fields__", {})
    return {n: found[n] for n in sorted(found.keys() - known - fields.keys())}


def lines_of_class(name, kind, listed):
    signature = signature_text(kind)
    if kind.__init__ not in vars(kind).values() and "*args" in signature:
        # Keras' `__new__` hides the arguments of an inherited constructor.
        signature = signature_text(functools.partial(kind.__init__, None))
    yield name + signature
    for member, value in members_of(kind, listed).items():
        value = getattr(value, "__func__", value)
        if callable(value):
            yield f"{name}.{member}{signature_text(value)}"
        elif hasattr(value, "__get__"):
            yield f"{name}.{member}"
        else:
            yield f"{name}.{member} = {value!r}"


def lines_of_module(name):
    module = importlib.import_module(name)
    listed = [v for v in vars(module).values() if inspect.isclass(v)]
    for member in sorted(module.__all__):
        path, value = f"{name}.{member}", getattr(module, member)
        if inspect.isclass(value):
            yield from lines_of_class(path, value, listed)
        elif callable(value):
            yield f"{path}{signature_text(value)}"
        elif inspect.ismodule(value) or member == "__version__":
            yield path
        elif isinstance(value, tuple):
            yield from (f"{path} contains {item!r}" for item in value)
        else:
            yield f"{path} = {value!r}"


def choices_of(annotation):
    """Values of the `Literal`s within an annotation."""
    values = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return values
    return [choice for value in values for choice in choices_of(value)]


def lines_of_configuration(kind=Config, prefix=""):
    """`configuration train.batch_size: int = 16`, and what a choice accepts."""
    annotations = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        key, annotation = f"{prefix}{field.name}", annotations[field.name]
        if dataclasses.is_dataclass(annotation):
            yield from lines_of_configuration(annotation, f"{key}.")
            continue
        default = field.default
        if default is dataclasses.MISSING:
            default = field.default_factory()
        shown = re.sub(
            r"Literal\[.*?\]", "Literal", inspect.formatannotation(annotation)
        )
        yield _PREFIX.sub("", f"configuration {key}: {shown} = {default!r}")
        for choice in choices_of(annotation):
            yield f"configuration {key} accepts {choice!r}"


def lines_of_command(command, *words):
    """`keras-aspp predict --model --output`: the flags of its `--help`."""
    module = importlib.import_module(f"keras_aspp.cli.{command}")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        module.run([*words, "--help"])
    flags = set(re.findall(r"(?<![\w.-])--[\w.-]+\w", printed.getvalue()))
    yield " ".join(["keras-aspp", command, *words, *sorted(flags)])
    subcommands = re.search(r"\{([\w,]+)\} \.\.\.", printed.getvalue())
    for word in subcommands[1].split(",") if subcommands else ():
        yield from lines_of_command(command, *words, word)


def public_api():
    from keras_aspp.cli.main import COMMANDS

    lines = [line for name in MODULES for line in lines_of_module(name)]
    lines += lines_of_configuration()
    for command in sorted(COMMANDS):
        lines += lines_of_command(command)
    return "".join(f"{line}\n" for line in lines)


def test_listed_names_keep_their_signatures():
    """New names are free until the next release lists them."""
    wanted = GOLDEN.read_text("utf-8").splitlines()
    found = public_api().splitlines()
    changes = [
        line
        for line in difflib.ndiff(wanted, found)
        if line.startswith(("- ", "? "))
    ]
    lost = [line for line in wanted if line not in found]
    assert not lost, (
        "The public API changed. Old names must go on working for one release "
        f"(utils/deprecation.py). If the change is wanted: {ACCEPT}\n"
        + "\n".join(changes)
    )


def test_no_signature_hides_its_arguments():
    for line in GOLDEN.read_text("utf-8").splitlines():
        assert "*args" not in line, line


def test_all_lists_what_a_module_imports_for_others():
    for name in MODULES[1:]:
        module = importlib.import_module(name)
        assert sorted(set(module.__all__)) == sorted(module.__all__), name
        public = {
            member
            for member, value in vars(module).items()
            if member[0] != "_" and not inspect.ismodule(value)
        }
        assert public == set(module.__all__), name
    for member in keras_aspp.__all__:
        assert getattr(keras_aspp, member) is not None, member


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {ACCEPT}")
    GOLDEN.write_text(public_api(), encoding="utf-8")
    print(f"Wrote {GOLDEN}")
