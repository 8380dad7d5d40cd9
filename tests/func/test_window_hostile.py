# SPDX-License-Identifier: Apache-2.0
"""Owners of windows that mean harm, next to one that works; and long lives.

The scribbler (tests/vm/guest/scribbler.c) writes random descriptors, data and
indices into a whole window and rings its doorbells, while its sessions are opened,
closed, reset and left.  tests/vm/test_window_hostile.py has it in a real guest.
"""

import contextlib
import os
import pathlib
import random
import subprocess
import time

import pytest
import window_load
import window_peer
from support import MEDIATOR, REPOSITORY, directory, is_sanitized, wait_until
from window_peer import FAULTED, HEAP, LOST, OP_ALLOC, OP_COPY_IN, OP_COPY_OUT, READY

pytestmark = pytest.mark.threads

SEED = int(os.environ.get("VGPU_TEST_SEED", "20240607"))
SCRIBBLE_S = int(os.environ.get("VGPU_SCRIBBLE_S", "8"))
OPERATIONS = int(os.environ.get("VGPU_OPERATIONS", "100000" if is_sanitized() else "1000000"))
SESSIONS = 500
GROWTH_KIB = 4096  # of the mediator: one leaked page a session would be less than half of it
BAD_ADDRESS = 5
REFUSALS_PER_S = 8  # that are logged, of a VM
LINES_PER_S = 50  # about links and sessions, of a VM

VMS = {1: ("A", 1), 2: ("A", 1), 3: ("A", 1)}
SANITIZED = any(f"__{kind}san_init".encode() in MEDIATOR.read_bytes()
                for kind in "at")


@pytest.fixture(scope="module")
def programs():
    with directory() as path:
        scribbler = path / "scribbler"
        subprocess.run(["cc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror",
                        f"-I{REPOSITORY}/include", "-o", scribbler,
                        REPOSITORY / "tests/vm/guest/scribbler.c"], check=True)
        yield {"load": window_load.build(path), "scribbler": scribbler}


class Held:
    """What a process holds: memory, descriptors, and files in the run directory."""

    def __init__(self, m):
        process = pathlib.Path(f"/proc/{m.process.pid}")
        status = (process / "status").read_text()
        self.rss_kib = int(status.split("VmRSS:")[1].split()[0])
        self.fds = len(list((process / "fd").iterdir()))
        self.files = sorted(path.name for path in (m.state / "run" / "sessions").iterdir())

    def __repr__(self):
        return f"{self.rss_kib} KiB, {self.fds} descriptors, files {self.files}"


def check_nothing_is_held(m, before):
    wait_until(lambda: Held(m).fds <= before.fds and Held(m).files == before.files,
               lambda: f"as before: {before}, now {Held(m)}")
    if not SANITIZED:  # they keep what is freed, for a while
        assert Held(m).rss_kib <= before.rss_kib + GROWTH_KIB, (before, Held(m))


class Mad:
    """An owner whose window a scribbler has; its link does what links can do."""

    def __init__(self, m, programs, vm_id, seed):
        self.random = random.Random(seed)
        self.peer = window_peer.Peer(m.state / "run" / f"vm{vm_id}.sock", slots=4,
                                     window_bytes=8 << 20).connect().hello()
        fds = [self.peer.window, *self.peer.doorbells]
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", programs["scribbler"], "fd", str(seed),
             str(SCRIBBLE_S), str(self.peer.window), str(self.peer.window_bytes),
             *map(str, self.peer.doorbells)], pass_fds=fds, stdout=subprocess.PIPE, text=True)
        self.seen = {"opened": 0, "faulted": 0, "links": 1, "resets": 0}

    def step(self):
        """One thing that an owner may ask for."""
        peer, choice = self.peer, self.random.random()
        with contextlib.suppress(window_peer.Refused):
            if choice < 0.03:
                peer.reset()
                peer.sessions.clear()
                self.seen["resets"] += 1
            elif choice < 0.06:
                peer.hang_up()
                peer.reconnect()
                self.seen["links"] += 1
            else:
                self._touch(self.random.randrange(4))

    def _touch(self, slot):
        peer = self.peer
        peer.pending()
        session = peer.sessions.get(slot)
        if session is None or session.state not in (READY, LOST, FAULTED):
            peer.open(slot)
            self.seen["opened"] += 1
        elif session.state == FAULTED or self.random.random() < 0.1:
            self.seen["faulted"] += session.state == FAULTED
            peer.close_session(slot)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.peer.close()


def test_a_mad_owner_harms_nobody_else(mediator, programs, summary):
    m = mediator(VMS, channels="window", operation_limit_ms=2000, device_memory_mib=16,
                 sessions_max=4)
    with window_load.Loads(m, programs["load"]) as loads, contextlib.ExitStack() as stack:
        loads.add(2, sessions=2, think_us=1000, steady=True)
        loads.wait_progress()
        before = None
        for vm_id, seed in [(1, SEED), (3, SEED + 1)]:
            mad = Mad(m, programs, vm_id, seed)
            stack.callback(mad.close)
            while mad.process.poll() is None:
                mad.step()
                loads.check()
                time.sleep(0.002)
            said = mad.process.stdout.read()
            assert mad.process.returncode == 0
            mad.close()
            if before is None:  # the first one warmed it up; vm2 has two sessions and an account
                wait_until(lambda: len(Held(m).files) == 5, "the end of its sessions")
                before = Held(m)
            loads.wait_progress()
        check_nothing_is_held(m, before)
        answered, lost, _ = loads.end()
        loads.check_executions(0)
    assert lost == 0
    assert mad.seen["faulted"] > 0 and mad.seen["opened"] > 0
    summary(f"{2 * SCRIBBLE_S} s of noise ({said.strip()}; {mad.seen}) next to {answered} answers")


def test_long_lives_leave_nothing_behind(mediator, programs, summary):
    m = mediator(VMS, channels="window", execution_log=None)
    idle = Held(m)
    with window_load.Loads(m, programs["load"]) as loads:
        loads.add(1, sessions=2, think_us=0, steady=True, operations=OPERATIONS // 100)
        loads.all[0].end(None)  # warms it up
        open_and_close(m, SESSIONS // 10)
        wait_until(lambda: Held(m).fds == idle.fds and not Held(m).files, "the end of sessions")
        before = Held(m)
        for vm_id in (1, 2):
            loads.add(vm_id, sessions=2, think_us=0, steady=True, operations=OPERATIONS // 2)
        answered = sum(one.end(None, 600)[0] for one in loads.all[1:])
        open_and_close(m, SESSIONS)
    check_nothing_is_held(m, before)
    summary(f"{answered} operations and {SESSIONS} sessions: before {before}, after {Held(m)}")


def open_and_close(m, count):
    with window_peer.Peer(m.state / "run" / "vm3.sock", slots=2, window_bytes=4 << 20) as peer:
        peer.connect().hello()
        for number in range(count):
            peer.open(number % 2).ping()
            peer.close_session(number % 2)


def test_device_memory_of_another_vm_cannot_be_reached(mediator):
    m = mediator(VMS)
    with window_peer.Peer(m.state / "run" / "vm1.sock") as mine, \
            window_peer.Peer(m.state / "run" / "vm2.sock") as other:
        session, thief = mine.connect().hello().open(), other.connect().hello().open()
        address, _ = session.run(OP_ALLOC, [4096])
        session.put(HEAP, b"secret" * 10)
        assert session.run(OP_COPY_IN, [address, HEAP, 60])[1] == 0
        assert thief.run(OP_COPY_OUT, [HEAP, address, 60])[1] == BAD_ADDRESS
        assert thief.run(OP_COPY_IN, [address, HEAP, 60])[1] == BAD_ADDRESS
        own, _ = thief.run(OP_ALLOC, [4096])
        assert thief.run(OP_COPY_OUT, [HEAP, own, 4096])[1] == 0
        assert thief.get(HEAP, 4096) == bytes(4096)
        assert session.run(OP_COPY_OUT, [HEAP + 4096, address, 60])[1] == 0
        assert session.get(HEAP + 4096, 60) == b"secret" * 10


def test_an_owner_that_asks_without_end_cannot_fill_the_log(mediator):
    m = mediator(VMS)
    with window_peer.Peer(m.state / "run" / "vm1.sock") as peer:
        session = peer.connect().hello().open()
        begin = time.monotonic()
        for _ in range(400):
            peer.ask_open(0)
            peer.until(lambda: peer.sessions[0].state == window_peer.SESSION_REFUSED)
        session.ping()
        told = m.events("refused", vm=1)
        assert len(told) <= REFUSALS_PER_S * (time.monotonic() - begin + 2)
        peer.until(lambda: peer.ask_open(0) and m.messages("too many to tell"))


def test_an_owner_that_faults_without_end_cannot_fill_the_log(mediator):
    m = mediator(VMS)
    with window_peer.Peer(m.state / "run" / "vm1.sock") as peer:
        peer.connect().hello()
        begin, count = time.monotonic(), 150
        for _ in range(count):
            peer.open(0).publish(5000)
            peer.until(lambda: peer.sessions[0].state == window_peer.FAULTED)
            peer.close_session(0)
        told = len(m.events("fault", vm=1))
        assert 0 < told <= LINES_PER_S * (time.monotonic() - begin + 2)
