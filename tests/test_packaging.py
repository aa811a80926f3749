"""What the package declares, and what its documents name."""

import ast
import configparser
import re
import sys
from importlib.metadata import packages_distributions

import yaml
from helpers import ROOT

PLACEHOLDERS = re.compile(r"NAME|pspnet|/(test_)?esp\.py")


def requirements():
    """Names of setup.cfg's requirements -> their lines, extras included."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    options = [config["options"]["install_requires"]]
    options += config["options.extras_require"].values()
    lines = [line for option in options for line in option.split("\n") if line]
    return {plain(re.match(r"[\w.-]+", line)[0]): line for line in lines}


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_roots():
    for path in (ROOT / "keras_aspp").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.module.split(".")[0]


def test_every_imported_package_is_declared():
    declared, providers = set(requirements()), packages_distributions()
    own = {"keras_aspp", *sys.stdlib_module_names}
    roots = set(imported_roots()) - own
    assert {"h5py", "keras", "PIL"} <= roots
    # Of an extra that is not installed, the name is the package's.
    undeclared = {
        root
        for root in roots
        if not declared & {plain(name) for name in providers.get(root, [root])}
    }
    assert not undeclared


def test_ruff_is_the_same_everywhere():
    pin = requirements()["ruff"]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repo,) = hooks["repos"]
    for hook in repo["hooks"]:
        if hook["id"].startswith("ruff"):
            assert hook["additional_dependencies"] == [pin]
    assert pin in (ROOT / "constraints.txt").read_text().splitlines()


def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    declared = re.search(r"^\.PHONY: (.*)", text, flags=re.MULTILINE)[1].split()
    head = text.partition("\nPYTHON")[0]
    listed = re.findall(r"^# make ([\w-]+) ", head, flags=re.MULTILINE)
    assert sorted(listed) == sorted(declared)


def test_paths_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.findall(r"`((?:\w+/)+[\w.]*)`", text)
    paths = [path for path in found if not PLACEHOLDERS.search(path)]
    assert len(paths) > 20
    roots = (ROOT, ROOT / "keras_aspp")
    missing = [
        path for path in paths if not any((r / path).exists() for r in roots)
    ]
    assert not missing
