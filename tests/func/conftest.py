# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the functional tests: real programs, no VMs.

`VGPU_BUILD_DIR` names the build directory whose programs are tested.
"""

import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import support  # noqa: E402  (the path comes first)


def pytest_configure(config):
    suppressions = f"suppressions={pathlib.Path(__file__).with_name('tsan.supp')}"
    os.environ["TSAN_OPTIONS"] = f"{os.environ.get('TSAN_OPTIONS', '')}:{suppressions}"
    config.addinivalue_line("markers", "threads: drives threads that work at the same time")
    config.addinivalue_line("markers", "fault_points: needs a build with -Dfault_points=true")


def pytest_collection_modifyitems(items):
    if not support.MEDIATOR.exists():
        pytest.exit(f"no {support.MEDIATOR}: build first, or set VGPU_BUILD_DIR", 2)
    marked = [item for item in items if item.get_closest_marker("fault_points")]
    if marked and not support.has_fault_points():
        skip = pytest.mark.skip(reason="the build has no fault points (-Dfault_points=true)")
        for item in marked:
            item.add_marker(skip)


@pytest.fixture
def place():
    """An empty directory."""
    with support.directory() as path:
        yield path


class Maker:
    """mediator(vms={1: ("A", 2)}, pools_mode=...) makes one and starts it;
    start=False leaves that to the test."""

    def __init__(self, place):
        self.place = place
        self.all = []

    def __call__(self, vms=None, start=True, **options):
        directory = self.place / f"m{len(self.all)}"
        directory.mkdir()
        one = support.Mediator(directory, {1: ("A", 1)} if vms is None else vms, **options)
        self.all.append(one)
        return one.start() if start else one


@pytest.fixture
def mediator(request, place):
    """A Maker whose mediators must all stop in order at the end."""
    make = Maker(place)
    try:
        yield make
        if not getattr(request.node, "test_failed", False):
            for one in make.all:
                one.finish()
    finally:
        for one in make.all:
            one.abandon()


@pytest.fixture(scope="module")
def mediator_of_module():
    """One mediator with VM 1 for tests that ask and leave nothing behind."""
    with support.directory() as path:
        one = support.Mediator(path, {1: ("A", 1)})
        try:
            one.start()
            yield one
            one.finish()
        finally:
            one.abandon()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows the logs of its mediators, and is not asked for order too."""
    outcome = yield
    report = outcome.get_result()
    item.test_failed = getattr(item, "test_failed", False) or report.failed
    make = getattr(item, "funcargs", {}).get("mediator")
    if report.failed and make is not None:
        for one in getattr(make, "all", []):
            report.sections.append(("mediator", one.tail()))


@pytest.fixture
def summary(record_property):
    """summary(text): one line for the end of the run, and for the JUnit file."""
    return lambda text: record_property("summary", text)


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, text in report.user_properties:
            if name == "summary" and report.when == "call":
                terminalreporter.write_line(f"{report.nodeid.rpartition('/')[2]}: {text}")
