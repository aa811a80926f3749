"""Phases say that they began, that they run, and how long they took."""

import re
import time

import pytest

from keras_aspp.utils import progress


def test_a_long_phase_says_on_its_line_that_it_runs(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", 0.02)
    with progress.timed(progress.print_progress, "file: converting"):
        time.sleep(0.2)
    said = capsys.readouterr().out
    assert re.fullmatch(
        r"file: converting \.\.\.( 0 s \.\.\.)+ 0\.\d s\n", said
    )


def test_a_function_of_ones_own_hears_begin_and_end_only(monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", 0.01)
    heard = []
    with (
        pytest.raises(KeyError),
        progress.timed(lambda *event: heard.append(event), "phase"),
    ):
        time.sleep(0.05)
        raise KeyError
    assert heard[0] == ("phase", None)
    assert heard[1][1] >= 0.05 and len(heard) == 2
