"""Changes one token of the package at a time and runs the mirrored tests.

    make mutants
    python tests/mutants.py --count 24 --seed 7 --folders layers losses

A mutant that no test notices survives. Some survivors are equivalent to the
original, so a share of them is allowed; each one is worth a look.
"""

import argparse
import io
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tokenize

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("layers", "losses", "metrics", "data", "models", "inference")
SWAPS = {
    **{"+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "*"},
    **{"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="},
    **{"and": "or", "or": "and", "True": "False", "False": "True"},
    **{"min": "max", "max": "min", "any": "all", "all": "any"},
    **{"minimum": "maximum", "maximum": "minimum"},
    **{"+=": "-=", "-=": "+=", "continue": "break", "break": "continue"},
}
NO_LEFT_SIDE = ("", "(", ",", "[", "{", ":", "=", "return", "lambda", "import")
NOT_COPIED = shutil.ignore_patterns(
    *(".git", ".venv", "runs", "build", "docs", "__pycache__", "*.egg-info")
)
TIMEOUT_S = 900  # for a mutant that never ends
STATUS_CAUGHT = (1, 2)  # of pytest: failed, or not even imported


def mutations(source):
    """One-token changes of a Python source.

    Args:
        source: str.

    Returns:
        list of `(line, column, token, replacement)`, lines from 1.
    """
    found = []
    before = ("", "")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text, new = token.string, None
        # A star or a sign without a left side is no operator of two.
        binary = before[-1] not in NO_LEFT_SIDE
        if text in SWAPS and (binary or token.type == tokenize.NAME):
            new = SWAPS[text]
        elif token.type == tokenize.NUMBER and text.isdigit():
            new = str(int(text) + 1)
        elif text == "not" and before[-1] == "is":
            new = ""
        if new is not None and before != ("strict", "="):
            found.append((*token.start, text, new))
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            before = (before[-1], text.strip())
    return found


def mutated(source, line, column, token, new):
    """The source with one token replaced."""
    lines = source.splitlines(keepends=True)
    text = lines[line - 1]
    lines[line - 1] = text[:column] + new + text[column + len(token) :]
    return "".join(lines)


def mirrored_module(file):
    """Module that a test file of a package's folder is named after.

    `test_<module>.py` or, of one subject, `test_<module>_<subject>.py`.

    Args:
        file: path of the test file, `tests/<package>/...`.

    Returns:
        str, the longest name that fits, or None.
    """
    package = ROOT / "keras_aspp" / file.parent.relative_to(ROOT / "tests")
    name = file.stem.removeprefix("test_") + "_"
    fits = [
        path.stem
        for path in package.glob("*.py")
        if name.startswith(f"{path.stem}_")
    ]
    return max(fits, key=len, default=None)


def mirrors(path):
    """Tests of a module: its own files where there are any, then its folder."""
    folder = pathlib.Path("tests", *path.parent.parts[1:])
    own = sorted(
        file.relative_to(ROOT)
        for file in (ROOT / folder).glob("test_*.py")
        if mirrored_module(file) == path.stem
    )
    return own + [folder] * (ROOT / folder).is_dir()


def is_caught(copy, tests):
    """Returns True if the fast tests fail in a copy of the project."""
    environment = {
        "KERAS_ASPP_SHARED": str(ROOT.parent / "shared"),
        **os.environ,
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow"]
    if tests.suffix != ".py":
        command += ["-n", "2"]
    command += ["-p", "no:cacheprovider", str(tests)]
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return True
    if done.returncode not in (0, *STATUS_CAUGHT):
        raise RuntimeError(f"{tests}: {done.stdout[-2000:]}{done.stderr}")
    return done.returncode != 0


def main(arguments=None):
    """Runs a seeded sample; returns 1 if too many mutants survive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10, help="mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folders", nargs="+", default=FOLDERS)
    parser.add_argument(
        "--largest_share",
        type=float,
        default=0.2,
        help="of mutants that may survive; more is status 1",
    )
    flags = parser.parse_args(arguments)
    sites = [
        (path.relative_to(ROOT), mutation)
        for folder in flags.folders
        for path in sorted((ROOT / "keras_aspp" / folder).rglob("*.py"))
        if path.name != "__init__.py"
        for mutation in mutations(path.read_text("utf-8"))
    ]
    sample = random.Random(flags.seed).sample(sites, flags.count)
    print(f"{flags.count} of {len(sites)} mutants, seed {flags.seed}")
    survivors = 0
    with tempfile.TemporaryDirectory() as work:
        copy = pathlib.Path(work, "project")
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
        for path, (line, column, token, new) in sample:
            start = time.monotonic()
            source = (ROOT / path).read_text("utf-8")
            mutant = mutated(source, line, column, token, new)
            (copy / path).write_text(mutant, "utf-8")
            caught = any(is_caught(copy, tests) for tests in mirrors(path))
            (copy / path).write_text(source, "utf-8")
            survivors += not caught
            print(
                f"{'caught' if caught else 'SURVIVED'}  {path}:{line}  "
                f"`{token}` -> `{new}` in  "
                f"{mutant.splitlines()[line - 1].strip()}  "
                f"({time.monotonic() - start:.0f} s)",
                flush=True,
            )
    print(f"{flags.count - survivors} caught, {survivors} survived")
    return int(survivors > flags.largest_share * flags.count)


if __name__ == "__main__":
    sys.exit(main())
