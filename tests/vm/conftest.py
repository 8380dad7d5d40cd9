# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the real-VM tests.

A guest takes two to four seconds to boot, so labs are shared: `lab` belongs to
a test file, its guests boot on first use, and each test starts a mediator of
its own on an emptied share.
"""

import os
import pathlib
import signal
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from harness import Lab, process  # noqa: E402  (the path comes first)

# Started in the background of a script Ctrl-C is ignored, by children too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
process.install_cleanup()


# First, because xdist's own hook reads the marks.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Labs are made per file: keep a file's tests on one worker (--dist loadgroup)."""
    for item in items:
        if pathlib.Path(__file__).parent in pathlib.Path(item.fspath).parents:
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root: network namespaces, NFS"))
            item.add_marker(pytest.mark.xdist_group(item.fspath.basename))


def pytest_generate_tests(metafunc):
    """A module with CHANNELS = ["file", "window"] has its tests once on each."""
    channels = getattr(metafunc.module, "CHANNELS", None)
    if channels and "lab" in metafunc.fixturenames:
        metafunc.parametrize("lab", channels, indirect=True, scope="module")


@pytest.fixture(scope="module")
def lab(request):
    """A Lab with the module's `VMS`; nothing is booted yet."""
    made = Lab(request.module.VMS, channel=getattr(request, "param", "file"))
    yield made
    made.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows logs and consoles of its lab."""
    outcome = yield
    report = outcome.get_result()
    lab_of_test = getattr(item, "funcargs", {}).get("lab")
    if report.failed and lab_of_test is not None:
        report.sections.append(("lab", lab_of_test.report()))


@pytest.fixture
def summary(record_property):
    """summary(text): one line for the end of the run, and for the JUnit file."""
    return lambda text: record_property("summary", text)


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, text in report.user_properties:
            if name == "summary" and report.when == "call":
                terminalreporter.write_line(f"{report.nodeid.rpartition('/')[2]}: {text}")
