"""Keeps the fast tests fast: no file may take too large a share of them.

Measures CPU time, since wall time depends on what else the machine does. A
fixture counts for the test that it is built for. Judges only a whole, green run
of the fast tests; shares of a selection say nothing.
"""

import collections
import os

import pytest

LARGEST_SHARE = 0.12
FAST = "not slow"


def cpu_seconds():
    """CPU seconds of this process and of the children that have ended."""
    return sum(os.times()[:4])


def files_over_share(seconds):
    """Files that take more than the largest share.

    Args:
        seconds: dict of CPU seconds by file.

    Returns:
        list of messages, one a file, the slowest first.
    """
    total = sum(seconds.values())
    return [
        f"{file} takes {taken:.0f} of {total:.0f} CPU seconds of the fast "
        f"tests, {taken / total:.0%}; at most {LARGEST_SHARE:.0%} are allowed. "
        "Share models between its tests, shrink them, split it, or mark what "
        "must be large as slow."
        for file, taken in sorted(seconds.items(), key=lambda item: -item[1])
        if taken > LARGEST_SHARE * total
    ]


class TimeShare:
    """Plugin that adds up CPU seconds by file and fails a run over the share.

    Workers of pytest-xdist measure; the main process adds up and judges.
    """

    def __init__(self, config):
        self.seconds = collections.Counter()
        self.mark = 0.0
        self.messages = []
        self.is_worker = hasattr(config, "workerinput")
        source = pytest.Config.ArgsSource.TESTPATHS
        self.is_whole = (
            config.args_source == source
            and config.option.markexpr == FAST
            and not config.option.keyword
        )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self):
        self.mark = cpu_seconds()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self):
        report = yield
        now = cpu_seconds()
        report.cpu_seconds = now - self.mark
        self.mark = now
        return report

    def pytest_runtest_logreport(self, report):
        file = report.nodeid.split("::")[0]
        # A worker that crashed could not measure.
        self.seconds[file] += getattr(report, "cpu_seconds", 0.0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session, exitstatus):
        if self.is_whole and not self.is_worker and exitstatus == 0:
            self.messages = files_over_share(self.seconds)
            if self.messages:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if not self.is_whole:
            return
        terminalreporter.section("CPU seconds of the slowest files")
        for file, taken in self.seconds.most_common(10):
            terminalreporter.line(f"{taken:8.1f}  {file}")
        for message in self.messages:
            terminalreporter.line(message, red=True)


def pytest_configure(config):
    config.pluginmanager.register(TimeShare(config))
