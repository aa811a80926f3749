"""What the package declares, and what its documents name."""

import ast
import configparser
import re
import sys
from importlib.metadata import packages_distributions

import yaml
from helpers import ROOT

PLACEHOLDERS = re.compile(r"NAME|/mine|pspnet|/(test_)?esp\.py")


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


def test_paths_that_documents_name_exist():
    """Those below a folder of the repository or of the package."""
    folders = {path.name for path in (ROOT / "keras_aspp").iterdir()}
    folders |= {".ci", "keras_aspp", "tests", "docs", "examples"}
    folders |= {"benchmarks", "training", "saved_models"}
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for folder in ("docs", "examples", "training", "saved_models"):
        documents += (ROOT / folder).rglob("*.md")
    found = [
        (document.name, path)
        for document in documents
        for path in re.findall(
            r"`(\.?(?:[\w-]+/)+[\w.-]*)`", document.read_text("utf-8")
        )
        if path.partition("/")[0] in folders and not PLACEHOLDERS.search(path)
    ]
    assert len(found) > 100
    roots = (ROOT, ROOT / "keras_aspp")
    missing = [
        (name, path)
        for name, path in found
        if not any((root / path).exists() for root in roots)
    ]
    assert not missing
