# SPDX-License-Identifier: Apache-2.0
"""Windows while their mediator and their workers are killed with -9.

window-load keeps several sessions of several VMs busy and checks every answer
(tests/vm/guest/window-load.c says how); the workers write down what they run.
`VGPU_KILLS` is the number of kills: `make soak-kills` has ten times as many, the slower
builds of the sanitizers have a tenth.
"""

import contextlib
import os
import pathlib
import random
import signal
import time

import pytest
import window_load
import window_peer
from support import directory, has_fault_points, is_sanitized, is_worker, wait_until
from window_peer import DEVICE_LOST, OK, OP_PING, OP_RESET

pytestmark = pytest.mark.threads

SEED = int(os.environ.get("VGPU_TEST_SEED", "20240607"))
KILLS = int(os.environ.get("VGPU_KILLS", "40" if is_sanitized() else "400"))

WORKER_POINTS = ["session_fetched", "session_started", "session_executed", "session_completed",
                 "session_committed", "session_published"]
MEDIATOR_POINTS = ["window_grant"]
SESSION_MEMORY_FD = 4

VMS = {1: ("A", 1), 2: ("A", 1), 3: ("B", 0)}


@pytest.fixture(scope="module")
def program():
    with directory() as path:
        yield window_load.build(path)


def workers_of(m):
    """Living session workers of this mediator's run_dir, whoever their mediator is."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            memory = os.readlink(path / str(SESSION_MEMORY_FD))
            if memory.startswith(str(m.state)) and is_worker(int(path.parent.name)):
                found.append(int(path.parent.name))
    return found


def kill_worker(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def rounds_of(rng, kills):
    """What is killed in each round, and where."""
    points = WORKER_POINTS if has_fault_points() else []
    rounds = [("worker point", point, count) for point in points for count in (1, 3, 40)]
    if has_fault_points():
        rounds += [("mediator point", point, count) for point in MEDIATOR_POINTS
                   for count in (1, 2, 5, 20)]
    while sum(2 if kind == "both" else 1 for kind, _, _ in rounds) < kills:
        rounds.append((rng.choice(["mediator", "mediator", "worker", "both"]), None, None))
    rng.shuffle(rounds)
    return rounds


class Killer:
    def __init__(self, m, rng):
        self.m = m
        self.rng = rng
        self.mediators = 0
        self.workers = 0

    def mediator(self, fault=None):
        self.m.kill()
        self.m.launch(fault=fault)
        self.mediators += 1

    def worker(self):
        living = workers_of(self.m)
        if living:
            kill_worker(self.rng.choice(living))
            self.workers += 1

    def one(self, kind, point, count):
        if kind == "mediator":
            self.mediator()
        elif kind == "worker":
            self.worker()
        elif kind == "both":
            # In either order, at once or not quite.
            steps = [self.mediator, self.worker]
            self.rng.shuffle(steps)
            steps[0]()
            time.sleep(self.rng.choice([0, 0.001, 0.01]))
            steps[1]()
        elif kind == "mediator point":
            self.mediator(f"{point}:{count}")
            self.m.wait_killed()
            self.m.launch()
        else:
            self.worker_point(point, count)

    def worker_point(self, point, count):
        """Workers that this mediator starts die at the point, and their successors."""
        self.mediator(f"{point}:{count}")
        after = self.m.mark()
        self.m.wait_event("link", after=after)
        before = len(self.m.events("lost", after=after))
        self.worker()
        wait_until(lambda: len(self.m.events("lost", after=after)) >= before + 2,
                   lambda: f"a death at {point}:{count}:\n{self.m.tail()}", 120)
        self.workers += 1
        self.mediator()


@pytest.mark.parametrize("device, number, kills", [
    ("cpu", 1, KILLS), ("cuda", 1, KILLS // 8), ("cpu", 2, KILLS // 8), ("cuda", 2, KILLS // 8)])
def test_every_operation_ends_once_whoever_is_killed(mediator, program, summary, request, device,
                                                     number, kills):
    """Also where the sessions of a pool have two devices, of which another one has one too."""
    rng = random.Random(SEED)
    options = {}
    # On one device with them it would wait for ever while the others' priority is higher.
    vms = VMS if number == 1 else {**VMS, 3: ("B", 1)}
    both = f"{device}:0 {device}:1\nsession_devices = 2"
    if device == "cuda":
        fake = request.getfixturevalue("fake")
        fake.order("devices 2", "engines 4")
        options["cuda_library"] = fake.path
    m = mediator(vms, channels="window", log_level="info",
                 pools={"A": f"{device}:0" if number == 1 else both, "B": f"{device}:1"},
                 device_memory_mib=16, **options)
    m.allow_error("killed by signal 9 .SIGKILL. before it was ready")
    killer = Killer(m, rng)
    with window_load.Loads(m, program) as loads:
        for vm_id, sessions in [(1, 2), (2, 1), (3, 2)]:
            loads.add(vm_id, sessions=sessions, think_us=4000)
        loads.wait_progress()
        for i, round_ in enumerate(rounds_of(rng, kills)):
            killer.one(*round_)
            time.sleep(rng.choice([0.01, 0.05, 0.2]) * rng.random())
            loads.check()
            if i % 12 == 0:
                loads.wait_progress()
        killer.mediator()  # without faults
        loads.wait_progress(100)
        answered, lost, reopened = loads.end()
        letters = loads.check_executions(killer.mediators + killer.workers)
    wait_until(lambda: not workers_of(m), "the workers' end with their owners")
    summary(f"mediator killed {killer.mediators} times, workers {killer.workers} times, over "
            f"{answered} answers: {letters.get('o', 0)} operations ran once, {lost} ended with "
            f"DEVICE_LOST, {letters.get('a', 0)} of closed sessions; {reopened} sessions reopened")
    assert letters.get("u", 0) == 0
    assert killer.mediators + killer.workers >= kills


# --- what the kills above have found ----------------------------------------------------


def test_a_slot_that_its_owner_does_not_claim_is_not_told_ready(mediator):
    """It was being closed, or opened, when the last mediator died."""
    m = mediator(VMS)
    with window_peer.Peer(m.state / "run" / "vm1.sock") as peer:
        peer.connect().hello().open().ping()
        m.kill()
        m.start()
        session = peer.connect().hello(open_slots=0).open()
        assert session.word(window_peer.HOST + 0x40) == 0, "that is the old session"
        session.ping()


def test_an_unclaimed_slot_is_told_closed_when_its_worker_is_gone(mediator):
    """As a device does it whose guest closed the slot while no mediator ran."""
    m = mediator(VMS)
    with window_peer.Peer(m.state / "run" / "vm1.sock") as peer:
        peer.connect().hello().open().ping()
        pid, = workers_of(m)
        m.kill()
        m.start()
        peer.connect().hello(open_slots=0)
        peer.sessions[0].state = window_peer.RESETTING
        peer.close_session()
        assert not is_worker(pid)
        peer.open().ping()


# --- one operation, one fault point ---------------------------------------------------


@pytest.mark.fault_points
@pytest.mark.parametrize("point, status, executions", [
    ("session_fetched", DEVICE_LOST, 0),
    ("session_started", DEVICE_LOST, 0),
    ("session_executed", DEVICE_LOST, 1),
    ("session_completed", DEVICE_LOST, 1),
    ("session_committed", OK, 1),  # its answer stands in the session memory
    ("session_published", OK, 1),
])
def test_an_operation_whose_worker_dies_at_a_point_is_answered_once(mediator, point, status,
                                                                    executions):
    m = mediator(VMS, start=False)
    m.start(fault=f"{point}:1")
    with window_peer.Peer(m.state / "run" / "vm1.sock") as peer:
        session = peer.connect().hello().open()
        cookie = session.submit(OP_PING)
        m.wait_event("lost", vm=1)
        m.kill()  # its workers have the fault point, too
        wait_until(lambda: not killed_workers_of(m), "the last worker's end")
        m.start()
        peer.reconnect()
        assert session.wait() == [(cookie, 0, status)]
        assert session.run(OP_PING)[1] == DEVICE_LOST
        assert session.run(OP_RESET)[1] == OK
        session.ping()
        assert not session.take()
        assert m.executions().count((1, 1)) == executions


def killed_workers_of(m):
    """Also a successor that had nothing to run, so that it did not come to the point."""
    for pid in workers_of(m):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return workers_of(m)


@pytest.mark.fault_points
def test_an_operation_is_run_once_when_the_mediator_dies_before_its_grant(mediator):
    m = mediator(VMS, start=False)
    m.start(fault="window_grant:1")
    with window_peer.Peer(m.state / "run" / "vm1.sock") as peer:
        session = peer.connect().hello().open()
        cookie = session.submit(OP_PING)
        m.wait_killed()
        m.start()
        assert session.wait() == [(cookie, 0, OK)]
        assert m.executions() == [(1, 1)]


def test_a_mediator_that_did_not_run_for_a_while_ends_no_worker(mediator, program):
    m = mediator({1: ("A", 1), 2: ("A", 1)}, channels="window")
    with window_load.Loads(m, program) as loads:
        for vm_id in (1, 2):
            loads.add(vm_id, sessions=2, think_us=300, steady=True)
        for _ in range(6):
            loads.wait_progress()
            m.pause()
            time.sleep(1.2)  # longer than a worker may keep a revoked grant
            m.process.send_signal(signal.SIGCONT)
        loads.wait_progress()
        _, lost, _ = loads.end()
    assert lost == 0 and not m.events("lost")


def test_a_session_whose_worker_and_owner_die_together_is_gone_at_once(mediator):
    m = mediator({1: ("A", 1)}, channels="window", sessions_max=2, log_level="debug")
    for _ in range(8):
        after = m.mark()
        peer = window_peer.Peer(m.state / "run" / "vm1.sock", slots=1, window_bytes=2 << 20)
        peer.connect().hello()
        peer.open(0).ping()
        worker = m.wait_event("process", after=after, vm=1)["worker_pid"]
        os.kill(worker, signal.SIGKILL)
        peer.close()
        wait_until(lambda: not list((m.state / "run" / "sessions").iterdir()), "the session's end")
