# SPDX-License-Identifier: Apache-2.0
"""When the mediator checks a GPU, and what a check may do to others.  On a double of
NVIDIA's library."""

import contextlib
import datetime
import os
import pathlib
import shutil
import signal

import pytest

import support
from control_support import admin, make_registered
from cuda_support import Probe, workers_of
from support import wait_until
from window_peer import DEVICE_LOST, OK, OP_ALLOC, OP_RESET, Peer

pytestmark = pytest.mark.threads

CHECK = support.BUILD / "src/gpu/vgpu-gpu-check"
GPU = "GPU-00000000-0000-0000-0000-000000000000"


def lose(m, fake, vm_id):
    """A session of this VM's loses its device, which works."""
    with Peer(m.state / "run" / f"vm{vm_id}.sock").connect().hello() as peer:
        session = peer.open()
        fake.order_only("delay cuInit 300ms", "fail cuMemAlloc_v2 1 214")
        assert session.run(OP_ALLOC, [4096])[1] == DEVICE_LOST
        fake.order_only("delay cuInit 300ms")
        wait_until(lambda: session.run(OP_RESET)[1] == OK, "a session that begins anew")


def seconds(event):
    return datetime.datetime.fromisoformat(event["time"].rstrip("Z")).timestamp()


def test_a_session_that_loses_a_gpu_stops_nobody_else(cuda, fake):
    fake.keep_log()
    m = cuda()
    with Probe(m, "neighbour", 2) as neighbour:
        neighbour.wait("open")
        pid, = workers_of(m, 2)
        neighbour.go()
        # Whose first allocation is yet to come would lose its GPU, too.
        wait_until(lambda: "cuMemAlloc_v2" in fake.calls(pid), "the neighbour at work")
        lose(m, fake, 1)
        m.wait_event("gpu", count=2)  # it was checked meanwhile
        neighbour.go()
        good, refused = map(int, neighbour.end().split())
    assert good > 0 and refused == 0
    assert not m.events("no-gpu")


def test_sessions_that_lose_a_gpu_have_it_checked_every_ten_seconds_at_most(cuda, fake):
    m = cuda()
    lose(m, fake, 1)
    m.wait_event("gpu", count=2)
    for _ in range(3):
        lose(m, fake, 1)
    m.wait_event("gpu", count=3)
    _, second, third = m.events("gpu")
    assert seconds(third) - seconds(second) >= 9


@pytest.fixture
def held(place, monkeypatch):
    """A mediator's program beside a check that leaves a process behind, when there is the
    file `hold`; the pid of that process stands in it then."""
    programs = place / "programs"
    programs.mkdir()
    hold = programs / "hold"
    shutil.copy(support.MEDIATOR, programs)
    check = programs / "vgpu-gpu-check"
    monkeypatch.setattr(support, "MEDIATOR", programs / support.MEDIATOR.name)

    def make(prefix):
        check.write_text(f"#!/bin/sh\nif [ -f {hold} ] && [ ! -s {hold} ]; then\n"
                         f"{prefix} sleep 1000 &\necho $! >{hold}\nfi\nexec {CHECK} \"$@\"\n")
        check.chmod(0o755)
        return hold
    yield make
    if hold.exists() and hold.read_text():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(hold.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("prefix", ["", "setsid"])
def test_a_check_whose_output_stays_open_ends_and_the_next_one_works(cuda, fake, held, prefix):
    hold = held(prefix)
    fake.order("fail cuCtxCreate_v2 * 46")
    m = cuda(gpu_check_ms=2000)
    assert m.events("no-gpu")
    hold.touch()
    hold.chmod(0o666)
    m.process.send_signal(signal.SIGHUP)
    wait_until(hold.read_text, "a check that leaves a process behind")
    fake.order_only()
    wait_until(lambda: m.process.send_signal(signal.SIGHUP) or m.events("gpu"), "a check that ends")
    if not prefix:
        path = pathlib.Path(f"/proc/{hold.read_text().strip()}")
        wait_until(lambda: not path.exists() or ") Z " in (path / "stat").read_text(),
                   "the end of what the check left behind")


def test_the_mediators_end_is_the_end_of_a_check(cuda, fake):
    fake.order("fail cuCtxCreate_v2 * 46")
    m = cuda(gpu_check_ms=60000)
    fake.keep_log()
    fake.order_only("hang cuInit", "log 1")
    before = len(fake.calls())
    m.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "cuInit" in fake.calls()[before:], "a check that hangs")
    pid = fake.log.read_text().splitlines()[-1].split()[0]
    m.stop()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the end of the check")


def checks_of(fake):
    return {line.split()[0] for line in fake.log.read_text().splitlines()}


def test_a_gpu_that_no_pool_names_is_not_checked(mediator, fake):
    fake.keep_log()
    fake.order("fail cuCtxCreate_v2 * 46")
    m = make_registered(mediator, {1: ("A", 0)}, start=False, cuda_library=fake.path)
    admin(m, "bind-device", "B", GPU)
    m.start()
    assert m.events("no-gpu") and len(checks_of(fake)) == 1
    admin(m, "bind-device", "B", "cpu")
    m.process.send_signal(signal.SIGHUP)
    admin(m, "bind-device", "A", "cpu")
    fake.order_only("log 1")
    admin(m, "bind-device", "B", GPU)
    m.wait_event("gpu")
    assert len(checks_of(fake)) == 2
