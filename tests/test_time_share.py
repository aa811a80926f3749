"""A file that takes too much of the fast tests fails them."""

import os
import subprocess
import sys

from helpers import ROOT
from time_share import files_over_share

PLUGINS = ("-p", "xdist", "-p", "time_share")
WORK = """
import time

def test_{name}():
    end = time.process_time() + {seconds}
    while time.process_time() < end:
        pass
"""


def test_only_files_over_the_share_are_named():
    seconds = {f"{i}.py": 10.0 for i in range(9)}
    assert files_over_share(seconds) == []
    (message,) = files_over_share({**seconds, "long.py": 20.0})
    assert message.startswith("long.py takes 20 of 110 CPU seconds")
    assert "18%; at most 12% are allowed" in message


def run_fast_tests(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *PLUGINS, *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "tests"),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
    )


def test_a_long_file_fails_a_whole_run_and_no_selection(tmp_path):
    for i in range(12):
        text = WORK.format(name=i, seconds=0.3 if i == 3 else 0.01)
        (tmp_path / f"test_{i}.py").write_text(text)
    (tmp_path / "setup.cfg").write_text(
        "[tool:pytest]\ntestpaths = .\nmarkers =\n    slow: takes long\n"
    )
    done = run_fast_tests(tmp_path, "-m", "not slow", "-n", "2")
    assert done.returncode == 1
    assert "12 passed" in done.stdout
    assert "test_3.py takes 0 of " in done.stdout
    done = run_fast_tests(tmp_path, "-m", "not slow", "-k", "test_3")
    assert done.returncode == 0
    assert "takes" not in done.stdout
