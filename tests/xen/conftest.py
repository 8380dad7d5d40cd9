# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests on a real Xen.

Xen and Dom0 take ten seconds and more to boot, and guests half of that, so all test files
share them; a test that needs another guest boots it and leaves none.

    dom0     the Dom0 of this run
    guests   guests["pv"] and guests["pvh"], booted on first use, and anew when one has ended
    host     mediator and vgpu-xen in Dom0, which know both as the file's VMS say
    summary  summary(text): one line for the end of the run, and for the JUnit file
    full     the mark of tests that only `make check-xen-full` runs
"""

import os
import pathlib
import signal
import sys

import pytest

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "vm"), str(TESTS / "xen")]

from harness import process  # noqa: E402  (the paths come first)
from xen_harness import Dom0, Host, PackagesMissing, image  # noqa: E402

# Started in the background of a script Ctrl-C is ignored, by children too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
process.install_cleanup()


def pytest_configure(config):
    config.addinivalue_line("markers", "full: only make check-xen-full runs it")


# First, because xdist's own hook reads the marks.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """One machine with Xen at a time: all tests on one worker (--dist loadgroup).  First
    come those who look at which grant references their guests give out, in new guests."""
    items.sort(key=lambda item: "test_channel_hostile" not in item.nodeid)
    for item in items:
        if pathlib.Path(__file__).parent in pathlib.Path(item.fspath).parents:
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root: it makes device files"))
            item.add_marker(pytest.mark.xdist_group("xen"))


@pytest.fixture(scope="session")
def full(request):
    """Whether tests that are marked `full` are among those that run."""
    return any(item.get_closest_marker("full") for item in request.session.items)


@pytest.fixture(scope="session")
def dom0(full):
    try:
        image.get(full)
    except PackagesMissing as error:
        pytest.skip(str(error))
    directory = process.run_directory("xen")
    made = Dom0(directory, full=full)
    try:
        yield made.boot()
    finally:
        made.stop()
        process.remove_directory(directory)


class Guests(dict):
    """Its guests by kind, booted when they are first asked for."""

    def __init__(self, dom0):
        super().__init__()
        self.dom0 = dom0

    def __missing__(self, kind):
        self[kind] = self.dom0.domain(f"guest-{kind}", kind=kind)
        return self[kind].boot()

    def forget_ended(self):
        for kind, guest in list(self.items()):
            if not guest.answers():
                guest.destroy()
                del self[kind]


@pytest.fixture(scope="session")
def all_guests(dom0):
    return Guests(dom0)


@pytest.fixture(scope="module")
def guests(all_guests):
    all_guests.forget_ended()
    return all_guests


@pytest.fixture(scope="module")
def new_guests(dom0):
    """As guests, for a file alone."""
    dom0.destroy_all()
    yield Guests(dom0)
    dom0.destroy_all()


@pytest.fixture(scope="module")
def host(dom0, guests, request):
    """VMS of the file: {kind: (number, pool, priority)}."""
    with Host(dom0) as made:
        for kind, (vm_id, pool, priority) in request.module.VMS.items():
            made.register(vm_id, guests[kind], pool, priority)
        made.start()
        for kind in request.module.VMS:
            made.wait_offered(guests[kind])
        yield made


@pytest.fixture
def summary(record_property):
    return lambda text: record_property("summary", text)


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, text in report.user_properties:
            if name == "summary" and report.when == "call":
                terminalreporter.write_line(f"{report.nodeid.rpartition('/')[2]}: {text}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows what Xen, Dom0 and the guests said."""
    outcome = yield
    report = outcome.get_result()
    used = getattr(item, "funcargs", {}).get("dom0")
    if report.failed and used is not None:
        report.sections.append(("xen", used.report()))
    used = getattr(item, "funcargs", {}).get("host")
    if report.failed and used is not None:
        report.sections.append(("host", used.report()))
