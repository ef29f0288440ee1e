"""What all tests share: two sizes, and saying loudly what could not run on this machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

NOT_RUN = "NOT RUN: "


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("karvon")
    group.addoption("--torture", action="store_true", help="full counts instead of small samples")
    group.addoption("--torture-report", metavar="FILE", help="write what was proven as Markdown")


@pytest.fixture(scope="session")
def sample_size(pytestconfig: pytest.Config) -> Callable[[int, int], int]:
    """`sample_size(small, full)`: how often an expensive test repeats in this run."""
    torture = bool(pytestconfig.getoption("--torture"))
    return lambda small, full: full if torture else small


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons: dict[str, int] = {}
    for report in terminalreporter.getreports("skipped"):
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
        if NOT_RUN in reason:
            missing = reason.split(NOT_RUN, 1)[1]
            reasons[missing] = reasons.get(missing, 0) + 1
    if reasons:
        terminalreporter.section("left out on this machine", red=True, bold=True)
        for missing, count in sorted(reasons.items()):
            terminalreporter.line(f"{NOT_RUN}{count} tests: {missing}")
