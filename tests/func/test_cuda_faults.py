# SPDX-License-Identifier: Apache-2.0
"""The cuda backend while NVIDIA's library fails, hangs, crashes or loses its GPU.

tests/func/cuda_probe.c's `mess` does some of everything, whatever fails: each operation
must be answered once, and the session work after a reset; `rests` gives its contexts up between
two rounds.  Both with one device and two, where the slot is pinned and where copies are staged.
Meanwhile another VM's session does its work and sees none of it.
"""

import os
import re
import signal
import subprocess
import time
from typing import NamedTuple

import pytest

from cuda_support import Fake, Probe, launch_spin, run_probe, workers_of
from support import MEDIATOR, REPOSITORY, Mediator, directory, is_sanitized, wait_until
from window_peer import DEVICE_LOST, HEAP, OK, OP_QUERY, OP_RESET, TIME_LIMIT, Refused

PLAIN = {1: "INVALID_VALUE", 2: "OUT_OF_MEMORY", 801: "NOT_SUPPORTED", 225: "in no table"}
FATAL = {700: "ILLEGAL_ADDRESS", 999: "UNKNOWN", 214: "ECC_UNCORRECTABLE"}
LATER = 3  # the call, counted in one process
UUID = "GPU-00000000-0000-0000-0000-000000000000"


OP_STREAM_CREATE, OP_STREAM_DESTROY, OP_STREAM_SYNC, OP_DEVICE_SYNC = 32, 33, 34, 42
OP_MODULE_LOAD = 48
PTX = b".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry k()\n{\n ret;\n}\n\0"


def load_text(session, handle):
    """One that is the same each time; it stays where it was put."""
    session.put(HEAP, PTX)
    return session.run(OP_MODULE_LOAD, [handle, HEAP, len(PTX)])[1]


class Variant(NamedTuple):
    devices: int  # of a session
    pinned: bool  # its slot; else copies go through chunks


VARIANTS = {"one": Variant(1, True), "one-unpinned": Variant(1, False),
            "two": Variant(2, True), "two-unpinned": Variant(2, False)}
PLAINEST = "one"

MEMBERS = dict(re.findall(r"^    X\((\w+), (cu\w+), (?:NEEDED|OPTIONAL)",
                          (REPOSITORY / "src/gpu/cuda.h").read_text(), re.MULTILINE))
FUNCTIONS = list(MEMBERS.values())

# --- where each of the list is called; what is in none of these is in every session's work ---

# Before a session is open, in each process; and how its pool names the GPU then.
START = {"cuInit": "cuda:0", "cuDriverGetVersion": "cuda:0", "cuDeviceGetCount": UUID,
         "cuDeviceGet": "cuda:0", "cuDeviceGetName": "cuda:0", "cuDeviceGetUuid_v2": UUID,
         "cuDeviceTotalMem_v2": "cuda:0", "cuDeviceGetAttribute": "cuda:0",
         "cuDeviceGetByPCIBusId": "0000:65:00.0"}

# By the check of a GPU alone.
CHECK = ["cuGetErrorString", "cuDeviceGetPCIBusId", "cuCtxSynchronize"]

# By nothing that is installed: programs that measure and test the library itself use them.
UNUSED = ["cuEventQuery", "cuEventSynchronize"]

# With something else that fails.
NAMES = ["cuGetErrorName"]

# When a context is given up; others are called then, too.
ENDS = ["cuCtxDestroy_v2", "cuMemHostUnregister", "cuMemFreeHost"]
ENDS_TOO = ["cuMemFree_v2", "cuStreamDestroy_v2", "cuEventDestroy_v2"]

STAGED = ["cuMemHostAlloc", "cuLaunchHostFunc"]  # where the slot cannot be pinned
BETWEEN = ["cuCtxSetCurrent", "cuCtxEnablePeerAccess", "cuMemcpyPeerAsync"]  # two devices

SPECIAL = [*START, *CHECK, *UNUSED, *NAMES, *ENDS, *STAGED, *BETWEEN]


def work_of(variant):
    """What a session calls while it works, all being well."""
    special = STAGED * (not variant.pinned) + BETWEEN * (variant.devices > 1)
    return [name for name in FUNCTIONS if name not in SPECIAL or name in special]


def ends_of(variant):
    """What it calls to give its context up."""
    staged = ["cuMemFreeHost", "cuEventDestroy_v2"]
    switch = ["cuCtxSetCurrent"] * (variant.devices > 1)
    return [name for name in ENDS + ENDS_TOO if not variant.pinned or name not in staged] + switch


def results_at(function, call):
    """A result that is the operation's and one that ends the context: each comes with one
    function or another."""
    at = FUNCTIONS.index(function)
    return [list(results)[(at + call) % len(results)] for results in (PLAIN, FATAL)]


def cases_of(function, variant=PLAINEST):
    """The orders for each mess."""
    plain, fatal = results_at(function, 1)
    both = [f"fail {function} 1 {plain}", f"fail {function} {LATER} {fatal}"]
    if variant != PLAINEST or is_sanitized():
        return [both]
    plain, fatal = results_at(function, LATER)
    return [both, [f"fail {function} 1 {fatal}"], [f"fail {function} {LATER} {plain}"]]


class Place:
    """A mediator and, in VM 2, a program that wants no fault."""

    def __init__(self, path, variant):
        (path / "fake").mkdir()
        path.chmod(0o755)
        self.fake = Fake(path / "fake")
        self.fake.keep_log()
        self.base = [f"devices {variant.devices}"]
        if not variant.pinned:
            self.base.append(f"pin_bytes {64 << 10}")
        self.fake.order_only(*self.base)
        devices = " ".join(f"cuda:{i}" for i in range(variant.devices))
        self.m = Mediator(path, {1: ("A", 1), 2: ("A", 1)}, cuda_library=self.fake.path,
                          pools={"A": f"{devices}\nsession_devices = {variant.devices}"},
                          channels="window", worker_idle_ms=20)
        self.m.start()
        self.neighbour = Probe(self.m, "neighbour", 2)
        self.neighbour.wait("open")
        self.neighbour.go()

    def end(self):
        self.neighbour.go()
        good, _ = map(int, self.neighbour.end().split())
        assert good > 0
        self.m.allow_error("killed|ended with status|before it was ready|exited")
        wait_until(lambda: not workers_of(self.m, 1) and not workers_of(self.m, 2), "no workers")
        wait_until(lambda: not list((self.m.state / "run" / "sessions").iterdir()), "no files")
        self.m.finish()

    def begin(self, orders):
        """The worker of the session in VM 1, which alone gets the orders from here on."""
        pid, = workers_of(self.m, 1)
        os.truncate(self.fake.log, 0)
        self.fake.order_only(*self.base, f"only {pid}", "log 1", *orders)
        return pid

    def well(self):
        self.fake.order_only(*self.base)

    def check(self):
        wait_until(lambda: not workers_of(self.m, 1), "the end of the session")
        assert self.neighbour.process.poll() is None, self.neighbour.why()

    def mess(self, *orders):
        """A session's worker alone gets the orders; they are gone before its reset."""
        with Probe(self.m, "mess") as probe:
            probe.wait("open")
            pid = self.begin(orders)
            probe.go()
            probe.wait("done")
            self.well()
            probe.go()
            probe.end()
        self.check()
        return pid

    def rests(self, *orders, until):
        """The same, for a session that gives its contexts up and begins again."""
        with Probe(self.m, "rests") as probe:
            probe.wait("full")
            pid = self.begin(orders)
            probe.go()
            probe.wait("empty")
            wait_until(until, "the end of its contexts")
            probe.go()
            probe.wait("full")
            probe.go()
            probe.wait("empty")
            self.well()
            probe.go()
            probe.end()
        self.check()
        return pid


@pytest.fixture(scope="module")
def shared(request):
    with directory() as path:
        place = Place(path, VARIANTS[request.param])
        try:
            yield place
            place.end()
        finally:
            place.neighbour.process.kill()
            place.neighbour.process.wait()
            place.m.abandon()


def each(functions_of):
    """Of every variant every function."""
    cases = [(name, function) for name, variant in VARIANTS.items()
             for function in functions_of(variant)]
    return pytest.mark.parametrize("shared, function", cases, indirect=["shared"])


one_place = pytest.mark.parametrize("shared", [PLAINEST], indirect=True)


def test_every_function_of_the_list_is_called_or_known_to_be_not():
    assert len(FUNCTIONS) == len(set(FUNCTIONS)) > 50
    assert set(SPECIAL) <= set(FUNCTIONS)
    tested = [*START, *CHECK, *NAMES]
    for variant in VARIANTS.values():
        tested += work_of(variant) + ends_of(variant)
    assert set(FUNCTIONS) - set(tested) == set(UNUSED)
    sources = "".join(path.read_text() for path in (REPOSITORY / "src").glob("*/*.c"))
    used = [name for member, name in MEMBERS.items() if f".{member}(" in sources
            or f">{member}(" in sources]
    assert set(FUNCTIONS) - set(used) == set(UNUSED)


@pytest.mark.parametrize("shared", VARIANTS, indirect=True)
def test_a_sessions_work_calls_what_it_is_known_to_call(shared, request):
    variant = VARIANTS[request.node.callspec.params["shared"]]
    pid = shared.mess()
    # Where the host is slow it rests on the way.
    rest = set(NAMES) | set(ends_of(variant)) - set(work_of(variant))
    assert set(shared.fake.calls(pid)) - rest == set(work_of(variant))


@each(work_of)
def test_a_call_that_fails_is_told_and_disturbs_nobody_else(shared, function, request):
    failed = []
    for orders in cases_of(function, request.node.callspec.params["shared"]):
        pid = shared.mess(*orders)
        failed += shared.fake.failures(pid)
    assert function in failed


@each(ends_of)
def test_a_context_that_cannot_be_given_up_disturbs_nobody_else(shared, function):
    for result in results_at(function, 1):
        pid = shared.rests(f"fail {function} * {result}",
                           until=lambda: function in shared.fake.failures())
        assert function in shared.fake.failures(pid)


@one_place
def test_an_error_whose_name_cannot_be_had_is_told_like_any_other(shared):
    for result in FATAL:
        pid = shared.mess(f"fail cuGetErrorName * {result}", f"fail cuLaunchKernel {LATER} 999")
        assert "cuGetErrorName" in shared.fake.failures(pid)


@pytest.mark.parametrize("function", CHECK)
def test_a_call_that_fails_in_the_check_of_a_gpu_is_told(fake, function):
    fake.keep_log()
    other = {"cuGetErrorString": ["fail cuMemAlloc_v2 * 2"]}
    fake.order(f"fail {function} * 719", *other.get(function, []))
    environment = {**os.environ, "LD_LIBRARY_PATH": str(fake.path.parent)}
    done = subprocess.run([MEDIATOR, "--check-gpu"], env=environment, capture_output=True,
                          text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 1 and "vgpu-mediator: step '" in done.stderr
    assert function in fake.failures()


@pytest.mark.parametrize("result", FATAL)
@pytest.mark.parametrize("shared", VARIANTS, indirect=True)
def test_an_error_that_stays_ends_the_session_until_it_is_gone(shared, result):
    shared.mess(*[f"fail {function} * {result}" for function in FUNCTIONS if function not in START])


def test_a_code_that_nobody_knows_is_the_operations_alone(cuda, fake):
    m = cuda()
    fake.order("fail cuModuleLoadDataEx 2 225", "fail cuLaunchKernel 2 720")
    run_probe(m, "odd_codes")
    assert not m.events("lost")


def test_a_code_that_nobody_knows_is_a_loss_when_the_context_is_gone(cuda, fake):
    m = cuda()
    with Probe(m, "odd_code_of_a_loss") as probe:
        probe.wait("ready")
        pid, = workers_of(m, 1)
        fake.order(f"only {pid}", "fail cuModuleLoadDataEx * 225", "fail cuStreamQuery * 719")
        probe.go()
        probe.end()


@pytest.mark.skipif(is_sanitized(), reason="a sanitizer tells of the crash that was ordered")
@pytest.mark.parametrize("function", ["cuCtxCreate_v2", "cuLaunchKernel", "cuModuleLoadDataEx",
                                      "cuMemcpyDtoHAsync_v2", "cuStreamQuery"])
@one_place
def test_a_crash_in_the_library_is_the_sessions_alone(shared, function):
    shared.mess(f"crash {function}")


@pytest.mark.parametrize("orders", [
    ["delay cuLaunchKernel 1ms", "delay cuStreamQuery 1ms"],
    ["busy cuLaunchKernel 1ms", "busy cuMemsetD32Async 1ms"],
    ["queue_depth 8", "busy cuLaunchKernel 1ms"],
])
def test_a_slow_device_only_takes_longer(cuda, fake, orders):
    m = cuda()
    fake.order("engines 4", *orders)
    for behaviour in ("streams", "order", "kernels", "modules", "late_event"):
        run_probe(m, behaviour)


def ask_once(m):
    """In a session of its own; what it was refused with."""
    try:
        answer = m.vm(1).ask("VECTOR_ADD")
        assert "PASSED" in answer
        return answer
    except Refused as refusal:
        assert re.search("its worker could not start|does not work", str(refusal))
        return None
    finally:
        m.vm(1).close()


@pytest.mark.parametrize("function", START)
def test_a_start_that_fails_refuses_the_session_and_the_next_one_works(cuda, fake, function):
    fake.keep_log()
    m = cuda(channel="window", pools={"A": START[function]})
    m.allow_error("before it was ready")
    failed = []
    for orders in cases_of(function):
        fake.order_only("log 1", *orders)
        os.truncate(fake.log, 0)
        ask_once(m)
        failed += fake.failures()
        fake.order_only()
        wait_until(lambda: m.process.send_signal(signal.SIGHUP) or ask_once(m),
                   "a session that works")
    assert function in failed


@pytest.mark.parametrize("function, limit_ms", [("cuCtxCreate_v2", 1000), ("cuLaunchKernel", 1000)])
def test_a_call_that_hangs_ends_at_the_limit(cuda, fake, function, limit_ms):
    m = cuda(operation_limit_ms=limit_ms)
    with Probe(m, "mess") as probe, Probe(m, "neighbour", 2) as neighbour:
        probe.wait("open")
        pid, = workers_of(m, 1)
        neighbour.wait("open")
        neighbour.go()
        fake.order(f"only {pid}", f"hang {function}")
        probe.go()
        probe.wait("done")
        fake.order_only()
        assert m.messages("operation_limit_ms: ending its worker")  # its own, or with its grant's
        probe.go()
        probe.end()
        neighbour.go()
        assert int(neighbour.end().split()[0]) > 0
    wait_until(lambda: not workers_of(m, 1), "the end of the worker")


def test_a_device_that_is_full_refuses_below_the_sessions_limit(cuda, fake):
    m = cuda(device_memory_mib=512)
    fake.order(f"memory_bytes {32 << 20}")
    run_probe(m, "device_full")


def test_a_load_that_hangs_is_told_and_not_what_is_in_flight(cuda, fake):
    m = cuda(operation_limit_ms=1000)
    with Probe(m, "blocked") as probe:
        probe.wait("ready")
        pid, = workers_of(m, 1)
        fake.order(f"only {pid}", "hang cuModuleLoadDataEx")
        probe.go()
        probe.end()


def test_many_slow_loads_hide_no_kernel_without_end(cuda, fake, peer):
    """Each is well within the limit, and nothing else is looked at while it goes on."""
    session = peer(cuda(operation_limit_ms=1000)).open()
    assert load_text(session, 1) == OK
    fake.order("delay cuModuleLoadDataEx 300ms", "delay cuLinkComplete 300ms")
    spin = launch_spin(session, 600 * 1000 * 1000)
    handle, status = 2, OK
    while status == OK and handle < 60:
        load = session.submit(OP_MODULE_LOAD, [handle, HEAP, len(PTX)])
        ended = session.wait()
        status = ended[0][2]
        handle += 1
    if len(ended) < 2:
        ended += session.wait()
    assert sorted(ended) == [(spin, 0, TIME_LIMIT), (load, 0, DEVICE_LOST)]


def test_a_slow_load_does_not_count_for_what_is_in_flight(cuda, fake, peer):
    """The kernel has ended long before; nobody could see it."""
    session = peer(cuda(operation_limit_ms=1000)).open()
    assert load_text(session, 1) == OK
    fake.order("delay cuModuleLoadDataEx 900ms")
    for handle in (2, 3, 4):
        spin = launch_spin(session, 400 * 1000)
        load = session.submit(OP_MODULE_LOAD, [handle, HEAP, len(PTX)])
        assert sorted(session.wait(2)) == [(spin, 0, OK), (load, 0, OK)]


def test_a_kernel_that_forges_its_end_ends_at_the_limit(cuda, fake, peer):
    """On a long grant, which nobody else wants."""
    fake.order("forge 1")
    m = cuda(operation_limit_ms=1000)
    session = peer(m).open()
    spin = launch_spin(session, 600 * 1000 * 1000)
    sync = session.submit(OP_DEVICE_SYNC)
    assert sorted(session.wait(2)) == [(spin, 0, OK), (sync, 0, OK)]
    m.wait_message("operation_limit_ms: ending its worker")
    wait_until(lambda: session.run(OP_RESET)[1] == OK, "a session that begins anew")


def test_a_stream_is_not_destroyed_while_a_kernel_in_it_forges_its_end(cuda, fake, peer):
    fake.order("forge 1")
    m = cuda(operation_limit_ms=1000)
    session = peer(m).open()
    assert session.run(OP_STREAM_CREATE, [1])[1] == OK
    spin = launch_spin(session, 600 * 1000 * 1000, stream=1)
    sync = session.submit(OP_STREAM_SYNC, [1])
    destroy = session.submit(OP_STREAM_DESTROY, [1])
    ended = {cookie: status for cookie, _, status in session.wait(3)}
    assert (ended[spin], ended[sync]) == (OK, OK)
    assert ended[destroy] in (DEVICE_LOST, TIME_LIMIT)
    assert m.messages("operation_limit_ms: ending its worker")


def test_nothing_is_begun_behind_a_kernel_that_forges_its_end(cuda, fake, peer):
    fake.order("forge 1")
    session = peer(cuda(operation_limit_ms=1000)).open()
    spin = launch_spin(session, 600 * 1000 * 1000)
    sync = session.submit(OP_DEVICE_SYNC)
    assert sorted(session.wait(2)) == [(spin, 0, OK), (sync, 0, OK)]
    status = OK
    for _ in range(1000):
        status = session.run(OP_QUERY, [1])[1]
        if status != OK:
            break
        time.sleep(0.01)
    assert status == DEVICE_LOST


def test_ranges_that_overlap_need_no_more_memory_and_no_waiting(cuda, fake):
    fake.keep_log()
    fake.order(f"memory_bytes {32 << 20}")
    m = cuda(device_memory_mib=26)
    before = fake.calls().count("cuStreamSynchronize")
    run_probe(m, "overlap_big")
    assert fake.calls().count("cuStreamSynchronize") == before


def test_memory_whose_clearing_failed_is_given_to_nobody(cuda, fake):
    m = cuda()
    fake.order("fail cuMemsetD8Async 2 1")
    run_probe(m, "uncleared")


def test_an_address_is_told_when_its_granule_is_clear(cuda, fake):
    m = cuda()
    fake.order("engines 4", "busy cuMemsetD8Async 50ms")
    run_probe(m, "two_small")
