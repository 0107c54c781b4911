"""Faults survived of all that were tried, at the end of a run; what every fault starts from."""

import time

import pytest
from pipeline import SAID, SURVIVED, Pipeline, say

BEGAN = time.monotonic()


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """A run that nothing disturbed."""
    return Pipeline(tmp_path_factory.mktemp("undisturbed"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if call.when == "call" and outcome.get_result().skipped:
        say(f"{item.name}: skipped")


def pytest_terminal_summary(terminalreporter):
    """survived/total by kind of fault, and of all."""
    if not SURVIVED:
        return
    terminalreporter.section("faults survived")
    for line in SAID:
        terminalreporter.write_line(line)
    for kind, results in sorted(SURVIVED.items()):
        terminalreporter.write_line(f"{sum(results):4d}/{len(results):<4d} {kind}")
    every = [one for results in SURVIVED.values() for one in results]
    terminalreporter.write_line(f"{sum(every):4d}/{len(every):<4d} survived/total, in {time.monotonic() - BEGAN:.0f} s")
