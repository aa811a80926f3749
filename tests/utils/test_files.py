"""Folders that are replaced in one step, whatever ends the process."""

import errno
import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT

from keras_aspp.utils import files
from keras_aspp.utils.exceptions import UnavailableError
from keras_aspp.utils.files import exchange, replacing_folder

# Replaces a folder once for each line of `files` that this runs, and is killed
# there by SIGKILL; after each kill, an export is whole at its name.
KILLED_AT_EVERY_LINE = """
import os, signal, sys, time
from pathlib import Path
sys.argv[0] = "keras-aspp"  # whose package loads no TensorFlow
from keras_aspp.utils import files

here = Path(sys.argv[1])
target = here / "out"

def write(folder, text):
    (folder / "sub").mkdir()
    for name in ("a", "sub/b", "z"):
        (folder / name).write_text(text)

def replace(text):
    with files.replacing_folder(target) as work:
        write(work, text)

def run_until(line, text):
    # In a child, which ends at that line; True if it is not reached.
    child = os.fork()
    if child == 0:
        lines = 0
        def trace(frame, event, argument):
            nonlocal lines
            if frame.f_code.co_filename != files.__file__:
                return None
            lines += 1
            if lines == line:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace
        sys.settrace(trace)
        replace(text)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0

replace("0")
seen, line, done = {"0"}, 0, False
while not done:
    line += 1
    done = run_until(line, str(line))
    texts = {(target / n).read_text() for n in ("a", "sub/b", "z")}
    assert len(texts) == 1, (line, texts)
    assert texts <= {*seen, str(line)}, (line, texts)
    seen = texts
    left = [path.name for path in here.iterdir() if path != target]
    # The one before is removed, and only that of this line may stay.
    assert len(left) <= 1, (line, left)
assert seen == {str(line)}, seen
assert [path.name for path in here.iterdir()] == ["out"]
print(line)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old").write_text("")
    return folder


def can_exchange(folder):
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    return exchange(folder / "a", folder / "b")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.slow
def test_a_process_killed_at_any_line_leaves_a_whole_folder(tmp_path):
    if not can_exchange(tmp_path / "trial"):
        pytest.skip("the file system cannot exchange names")
    here = tmp_path / "here"
    here.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_LINE, str(here)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40


@pytest.mark.parametrize("replace", [files.replacing, replacing_folder])
def test_on_a_full_disk_the_error_names_the_output(tmp_path, out, replace):
    message = r"No space left on device\. Received: .*here$"
    full = OSError(errno.ENOSPC, "No space left on device", "source.png")
    with pytest.raises(UnavailableError, match=message):
        with replace(tmp_path / "here"):
            raise full
    # An input that is read meanwhile.
    missing = FileNotFoundError(errno.ENOENT, "No such file", "source.png")
    with pytest.raises(FileNotFoundError) as raised:
        with replace(tmp_path / "here"):
            raise missing
    assert raised.value is missing
    assert names(tmp_path) == ["out"]


def test_exchange_swaps_folders_and_reports_what_is_missing(tmp_path):
    if not can_exchange(tmp_path / "trial"):
        pytest.skip("the file system cannot exchange names")
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / folder.name).write_text("")
    assert exchange(first, second)
    assert (names(first), names(second)) == (["second"], ["first"])
    with pytest.raises(FileNotFoundError, match="absent"):
        exchange(tmp_path / "absent", first)


INTERRUPTED_RENAMES = """
import os, signal, sys
from pathlib import Path

sys.argv[0] = "keras-aspp"  # whose package loads no TensorFlow
from keras_aspp.utils import files

rename, calls = os.replace, []

def replace(source, target):
    calls.append(source)
    if at == f"before {len(calls)}":
        signal.raise_signal(signal.SIGINT)
    rename(source, target)
    if at == f"after {len(calls)}":
        signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
files.exchange = lambda *_: False
os.replace = replace
for at in ("before 1", "after 1", "before 2", "after 2"):
    out = Path(sys.argv[1], at, "out")
    out.mkdir(parents=True)
    (out / "old").write_text("")
    calls.clear()
    try:
        with files.replacing_folder(out) as work:
            (work / "new").write_text("")
    except KeyboardInterrupt:
        print("interrupted", at, os.listdir(out.parent), os.listdir(out))
"""


def test_without_an_exchange_a_signal_waits_for_both_renames(tmp_path):
    # In a process of its own: a signal may end this one.
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_RENAMES, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == [
        f"interrupted {at} ['out'] ['new']"
        for at in ("before 1", "after 1", "before 2", "after 2")
    ], done.stderr


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_failed_rename_keeps_the_earlier_folder(out, monkeypatch, exchanges):
    rename = os.replace

    def replace(source, target):
        if target == out and source.name.count(".earlier") == 0:
            raise OSError(errno.EIO, "broken")
        rename(source, target)

    def broken(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(
        files, "exchange", broken if exchanges else lambda *_: False
    )
    with pytest.raises(OSError, match="broken"), replacing_folder(out):
        pass
    assert names(out.parent) == ["out"]
    assert names(out) == ["old"]


def test_an_error_while_it_is_written_leaves_nothing(out):
    with pytest.raises(ValueError, match="enough"), replacing_folder(out) as w:
        (w / "part").write_text("")
        raise ValueError("enough")
    assert names(out.parent) == ["out"]
    assert names(out) == ["old"]


def test_folders_of_running_processes_and_of_others_stay(out):
    others = [
        ".out.abc",  # of somebody
        ".out.b.0123abcd.unfinished",  # of a folder `out.b`
        ".out.0123abcd",
    ]
    for name in others:
        (out.parent / name).mkdir()
    (out.parent / ".out.0123abcd.unfinished").mkdir()  # of a killed process
    with replacing_folder(out) as first:
        (first / "first").write_text("")
        with replacing_folder(out) as second:
            assert first.is_dir()
            (second / "second").write_text("")
        assert names(out) == ["second"]
        assert first.is_dir()
    assert names(out) == ["first"]
    assert names(out.parent) == sorted([*others, "out"])


def test_folders_of_a_kill_between_two_renames_stay_until_the_next_is_whole(
    tmp_path,
):
    left = {".out.0123abcd.unfinished", ".out.0123abcd.earlier.unfinished"}
    for name in left:
        (tmp_path / name).mkdir()
    with replacing_folder(tmp_path / "out"):
        assert left < set(names(tmp_path))
    assert names(tmp_path) == ["out"]


def test_without_locks_nothing_of_others_is_removed(out, monkeypatch):
    left = out.parent / ".out.0123abcd.unfinished"
    left.mkdir()
    monkeypatch.setattr(files, "fcntl", None)
    with replacing_folder(out) as work:
        (work / "new").write_text("")
    assert names(out) == ["new"]
    assert names(out.parent) == [left.name, "out"]


def test_a_folder_whose_lock_is_lost_to_a_cleaner_is_made_again(
    out, monkeypatch
):
    lock, calls = files._lock, []

    def lose_first(folder):
        calls.append(folder)
        if len(calls) == 1:
            folder.rmdir()
        return lock(folder)

    monkeypatch.setattr(files, "_lock", lose_first)
    with replacing_folder(out) as work:
        assert work == calls[1]
    assert names(out.parent) == ["out"]


def test_a_link_at_the_name_is_replaced_and_not_what_it_leads_to(out):
    link = out.parent / "link"
    link.symlink_to(out)
    with replacing_folder(link) as work:
        (work / "new").write_text("")
    assert not link.is_symlink()
    assert names(link) == ["new"]
    assert names(out) == ["old"]
    assert names(out.parent) == ["link", "out"]


@pytest.mark.parametrize("path", [".", "missing/.."])
def test_a_folder_is_replaced_by_a_path_without_a_name(out, monkeypatch, path):
    monkeypatch.chdir(out)
    with replacing_folder(path) as work:
        assert work.parent == out.parent
        (work / "new").write_text("")
    assert names(out) == ["new"]
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("path", [".", "../out"])
def test_the_current_folder_is_no_output(out, monkeypatch, path, overwrite):
    monkeypatch.chdir(out)
    message = f"current folder.* Received: {re.escape(repr(path))}$"
    with pytest.raises(FileExistsError, match=message):
        files.check_output(path, overwrite, lambda _: True, "a test")
    files.check_output("new", overwrite, lambda _: True, "a test")
    (out / "below").mkdir()
    monkeypatch.chdir(out / "below")
    with pytest.raises(FileExistsError, match="hold the current folder"):
        files.check_output("..", overwrite, lambda _: True, "a test")
    monkeypatch.chdir(out.parent)
    files.check_output("out", True, lambda _: True, "a test")
