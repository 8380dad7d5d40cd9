# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the functional tests: real programs, no VMs.

`VGPU_BUILD_DIR` names the build directory whose programs are tested.
"""

import contextlib
import os
import pathlib
import signal
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import cuda_support  # noqa: E402  (the path comes first)
import support  # noqa: E402
import window_peer  # noqa: E402

# Files of which `make check` runs nothing under AddressSanitizer; the others get the mark
# `sanitize`.  All are run by `make check-sanitizers`.
NOT_SANITIZED = {
    # Documents, packages, scripts, and what is only compiled: no C of ours, or none that other
    # files do not run.
    "test_bench_gpu", "test_bench_launches", "test_device_4_2", "test_docs", "test_examples",
    "test_gpu_check", "test_kernels", "test_packaging", "test_rpm", "test_scheduling_doc",
    "test_soak", "test_store_docs", "test_tuning_doc", "test_vm_startup", "test_xcp_wrapper",
    # What the administrator alone says: command lines, files of root, other programs' answers.
    # The parsers and the store behind them have unit tests, which run under it.
    "test_admin_events", "test_admin_ganesha", "test_admin_guide", "test_admin_host",
    "test_admin_identity", "test_admin_mediator", "test_admin_options", "test_admin_registry",
    "test_admin_renumber", "test_admin_share", "test_admin_toolstack", "test_cgroup",
    "test_check_gpu", "test_cli", "test_client_doctor", "test_config", "test_sim",
    "test_store_versions", "test_toolstack_xe", "test_toolstack_xl", "test_xen_cli",
}


def pytest_configure(config):
    # Started in the background of a script it is ignored, by children too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    suppressions = f"suppressions={pathlib.Path(__file__).with_name('tsan.supp')}"
    os.environ["TSAN_OPTIONS"] = f"{os.environ.get('TSAN_OPTIONS', '')}:{suppressions}"
    config.addinivalue_line("markers", "threads: drives threads that work at the same time")
    config.addinivalue_line("markers", "fault_points: needs a build with -Dfault_points=true")
    config.addinivalue_line("markers", "sanitize: runs C that guests or races can harm")


# First, because the choice by marks is made in the same hook.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    if not support.MEDIATOR.exists():
        pytest.exit(f"no {support.MEDIATOR}: build first, or set VGPU_BUILD_DIR", 2)
    for item in items:
        if pathlib.Path(item.fspath).stem not in NOT_SANITIZED:
            item.add_marker("sanitize")
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


@pytest.fixture
def copy_for_others():
    """copy_for_others(program): what any user may run, wherever the build lies."""
    with support.directory() as path:
        yield lambda program: support.copy_for_others(program, path)


@pytest.fixture
def fake(place):
    """A double of NVIDIA's library."""
    if cuda_support.ON_GPU:
        pytest.skip("drives the double of NVIDIA's library")
    directory = place / "fake"
    directory.mkdir()
    place.chmod(0o755)
    return cuda_support.Fake(directory)


@pytest.fixture
def peer():
    """peer(mediator, vm_id) is connected and welcome, with two slots."""
    with contextlib.ExitStack() as stack:
        def make(m, vm_id=1, slots=2):
            path = m.state / "run" / f"vm{vm_id}.sock"
            one = stack.enter_context(window_peer.Peer(path, slots=slots,
                                                       window_bytes=slots * (2 << 20)))
            return one.connect().hello()
        yield make


@pytest.fixture
def cuda(mediator, request):
    """cuda(vms=...): a mediator whose pool A is a GPU."""
    def make(vms=None, **options):
        if not cuda_support.ON_GPU:
            options["cuda_library"] = request.getfixturevalue("fake").path
        options.setdefault("pools", {"A": "cuda:0"})
        return mediator(vms or {1: ("A", 1), 2: ("A", 2)}, **options)
    return make


class Maker:
    """mediator(vms={1: ("A", 2)}, pools_mode=...) makes one and starts it;
    start=False leaves that to the test."""

    def __init__(self, place, channel="file"):
        self.place = place
        self.channel = channel
        self.all = []

    def __call__(self, vms=None, start=True, **options):
        directory = self.place / f"m{len(self.all)}"
        directory.mkdir()
        options.setdefault("channel", self.channel)
        one = support.Mediator(directory, {1: ("A", 1)} if vms is None else vms, **options)
        self.all.append(one)
        return one.start() if start else one


@pytest.fixture
def channel():
    """Which channel VMs use; tests marked with support.both_channels have it twice."""
    return "file"


@pytest.fixture
def mediator(request, place, channel):
    """A Maker whose mediators must all stop in order at the end."""
    make = Maker(place, channel)
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
