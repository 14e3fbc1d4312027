"""Shared by all tests: GPU tests are skipped aloud without a CUDA device; kernels' registers are printed."""

from typing import Any

import pytest
import torch


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show what the compile tests note of their kernels' registers, also where workers ran them."""
    reports = [*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())]
    noted = [value for report in reports for name, value in report.user_properties if name == "registers"]
    if noted:
        terminalreporter.section("registers of compiled kernels")
        for line in noted:
            terminalreporter.line(str(line))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device: this GPU test did not run")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
