"""Fails where less of the public API is typed than before.

`python .ci/check_types.py --at-least 85` runs `pyright --verifytypes` and
compares the share of public names of known type, in percent. Pyright itself
fails below 100 %, which classes derived from untyped packages never reach.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def main():
    """Runs pyright and compares its count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--at-least", type=float, required=True, metavar="PERCENT"
    )
    parser.add_argument(
        "--list", action="store_true", help="names left untyped"
    )
    flags = parser.parse_args()
    # Pyright resolves imports by the first `python` of the path.
    path = (
        f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    command = ("pyright", "--verifytypes", "keras_aspp", "--ignoreexternal")
    found = subprocess.run(
        [sys.executable, "-m", *command, "--outputjson"],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    report = json.loads(found.stdout)["typeCompleteness"]
    names = [s for s in report["symbols"] if s["isExported"]]
    untyped = sorted(s["name"] for s in names if not s["isTypeKnown"])
    if not names:
        sys.exit(
            "pyright found no public names; see its output:\n" + found.stdout
        )
    percent = 100 * (1 - len(untyped) / len(names))
    print(f"{percent:.1f} % of {len(names)} public names are typed")
    if flags.list:
        print("\n".join(untyped))
    if percent < flags.at_least:
        sys.exit(
            f"At least {flags.at_least} % must be typed; --list shows the rest."
        )


if __name__ == "__main__":
    main()
