# SPDX-License-Identifier: Apache-2.0
"""Sessions that share a GPU: what one leaves no other finds, what one has no other waits for
longer than its limit, and who needs nothing has nothing.  On a double of NVIDIA's library.
"""

import os
import signal
import time

from control_support import control
from cuda_support import Probe, launch_spin, run_probe, workers_of
from support import is_sanitized, wait_until
from window_peer import (DEVICE_LOST, HEAP, OK, OP_ALLOC, OP_COPY_OUT, OP_FREE, OP_QUERY,
                         OP_RESET, OP_SET, TIME_LIMIT, Peer)

OP_DEVICE_SYNC = 42
MEMORY_MIB = 4
QUERY_FREE_BYTES, QUERY_BACKEND = 2, 4
BACKEND_CUDA = 2

ROUNDS = 20 if is_sanitized() else 100


def peer_of(m, vm_id):
    return Peer(m.state / "run" / f"vm{vm_id}.sock").connect().hello()


# --- isolation -------------------------------------------------------------------------------


def allocate_all(session):
    address, status = session.run(OP_ALLOC, [MEMORY_MIB << 20])
    assert status == OK
    return address


def fill(session):
    """All that the session may have, with a pattern."""
    address = allocate_all(session)
    assert session.run(OP_SET, [address, MEMORY_MIB << 18, 0xA5A5A5A5 | 4 << 32])[1] == OK


def is_clear(session):
    """Whether all that the session may have is zeros."""
    address = allocate_all(session)
    for at in range(0, MEMORY_MIB << 20, 1 << 20):
        assert session.run(OP_COPY_OUT, [HEAP, address + at, 1 << 20])[1] == OK
        if session.get(HEAP, 1 << 20) != bytes(1 << 20):
            return False
    return True


def wait_ended(m, vm_id):
    """The VM's worker is gone, and the mediator has noticed: the VM may have all of its memory."""
    wait_until(lambda: not workers_of(m, vm_id), "the end of the worker")
    with control(m) as client:
        wait_until(lambda: client.vm(vm_id)["device_memory_used_bytes"] == 0,
                   "the return of its memory")


def end_hard(m, peer, number):
    """Kills the session's worker, whose successor has nothing, or only its owner."""
    if number % 4 == 0:
        pid, = workers_of(m, 1)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: set(workers_of(m, 1)) - {pid}, "a successor")
    peer.close()
    wait_ended(m, 1)


def test_nothing_of_a_session_that_was_killed_is_found_by_another(cuda, fake, summary):
    fake.keep_memory(32 << 20)
    m = cuda(device_memory_mib=MEMORY_MIB)
    for number in range(ROUNDS):
        with peer_of(m, 1) as first:
            fill(first.open())
            end_hard(m, first, number)
        with peer_of(m, 2) as second:
            assert is_clear(second.open()), f"round {number}"
        wait_ended(m, 2)
    summary(f"{ROUNDS} sessions killed, {ROUNDS * MEMORY_MIB} MiB found clear")


def test_without_clearing_the_other_session_would_find_it(cuda, fake):
    """That the test above can fail."""
    fake.keep_memory(32 << 20)
    m = cuda(device_memory_mib=MEMORY_MIB)
    fake.order("skip cuMemsetD8Async")
    with peer_of(m, 1) as first:
        fill(first.open())
        end_hard(m, first, 1)
    with peer_of(m, 2) as second:
        assert not is_clear(second.open())


# --- turns -----------------------------------------------------------------------------------


def test_more_than_a_ring_overtakes_an_operation_that_takes_long(cuda, fake, summary):
    m = cuda()
    fake.order("engines 4")
    place = int(run_probe(m, "overtake"))
    summary(f"{place - 1} operations overtook one of 300 ms")


def test_a_stream_that_is_through_is_answered_beside_many_that_are_not(cuda, fake):
    m = cuda()
    fake.order("engines 16")
    run_probe(m, "many_streams")


def overlaps(lines):
    """Lines "PID begin|end": whether two processes were ever on the device at once."""
    busy = {}
    for line in lines:
        pid, word = line.split()
        if word not in ("begin", "end"):
            continue
        busy[pid] = busy.get(pid, 0) + (1 if word == "begin" else -1)
        if sum(count > 0 for count in busy.values()) > 1:
            return True
    return False


def test_executions_of_two_vms_never_overlap(cuda, fake):
    """A revoked grant comes back when all that was begun in it has ended."""
    fake.keep_log()
    fake.order("engines 4", "trace 1", "busy cuLaunchKernel 200us")
    m = cuda({vm_id: ("A", 1) for vm_id in (1, 2, 3)}, grant_us=500)
    with Probe(m, "neighbour", 1) as first, Probe(m, "neighbour", 2) as second:
        for probe in (first, second):
            probe.wait("open")
            probe.go()
        run_probe(m, "streams", 3)
        for probe in (first, second):
            probe.go()
            assert int(probe.end().split()[0]) > 0
    lines = fake.log.read_text().splitlines()
    assert len({line.split()[0] for line in lines if line.endswith(" begin")}) >= 3
    assert not overlaps(lines)


def test_a_kernel_without_end_is_its_sessions_alone(cuda, summary):
    m = cuda(operation_limit_ms=1000, device_memory_mib=MEMORY_MIB)
    with peer_of(m, 1) as first, peer_of(m, 2) as second:
        spinner, other = first.open(), second.open()
        fill(spinner)
        assert spinner.run(OP_QUERY, [QUERY_FREE_BYTES])[0] == 0
        pid, = workers_of(m, 1)
        before = m.begun(1)
        spin = launch_spin(spinner, 600 * 1000 * 1000)
        wait_until(lambda: m.begun(1) > before, "the kernel's begin")
        begun = time.monotonic()
        address, status = other.run(OP_ALLOC, [4096])
        waited = time.monotonic() - begun
        assert status == OK
        assert m.messages("operation_limit_ms: ending its worker")  # its own, or with its grant's
        assert spinner.wait() == [(spin, 0, TIME_LIMIT)]
        assert spinner.run(OP_SET, [0, 1, 4 << 32])[1] == DEVICE_LOST
        assert spinner.run(OP_RESET)[1] == OK
        assert spinner.run(OP_QUERY, [QUERY_FREE_BYTES]) == (MEMORY_MIB << 20, OK)
        assert other.run(OP_SET, [address, 1, 1 | 4 << 32])[1] == OK
        assert not spinner.take()
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the worker reaped")
    summary(f"another VM waited {waited:.2f} s with operation_limit_ms = 1000")


# --- contexts --------------------------------------------------------------------------------


def contexts_of(m, vm_id):
    """What the mediator knows of them."""
    with control(m) as client:
        return client.vm(vm_id)["contexts"]


def test_who_does_nothing_on_the_device_has_no_context(cuda, fake):
    fake.keep_log()
    m = cuda()
    with peer_of(m, 1) as peer:
        session = peer.open()
        session.ping()
        assert session.run(OP_QUERY, [QUERY_FREE_BYTES])[1] == OK
        assert session.run(OP_RESET)[1] == OK
        pid, = workers_of(m, 1)
        assert "cuCtxCreate_v2" not in fake.calls(pid)
        assert contexts_of(m, 1) == 0
        assert session.run(OP_ALLOC, [4096])[1] == OK
        assert "cuCtxCreate_v2" in fake.calls(pid)
        assert contexts_of(m, 1) == 1


def test_who_has_freed_everything_gives_the_context_up(cuda, fake):
    fake.keep_log()
    m = cuda(worker_idle_ms=100)
    with peer_of(m, 1) as first, peer_of(m, 2) as second:
        empty, full = first.open(), second.open()
        assert full.run(OP_ALLOC, [4096])[1] == OK
        for number in range(1, 4):
            address, status = empty.run(OP_ALLOC, [1 << 20])
            assert status == OK
            assert empty.run(OP_FREE, [address])[1] == OK
            pid, = workers_of(m, 1)
            wait_until(lambda: fake.calls(pid).count("cuCtxDestroy_v2") == number,
                       "the end of the context")
            assert fake.calls(pid).count("cuCtxCreate_v2") == number
        pid, = workers_of(m, 2)
        assert "cuCtxDestroy_v2" not in fake.calls(pid)
        assert (contexts_of(m, 1), contexts_of(m, 2)) == (0, 1)
        assert full.run(OP_DEVICE_SYNC)[1] == OK


def test_the_contexts_of_a_worker_that_was_killed_are_not_counted(cuda):
    m = cuda()
    with peer_of(m, 1) as peer:
        session = peer.open()
        assert session.run(OP_ALLOC, [4096])[1] == OK
        pid, = workers_of(m, 1)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: set(workers_of(m, 1)) - {pid}, "a successor")
        wait_until(lambda: contexts_of(m, 1) == 0, "its contexts gone")
        # One that comes before the successor is ready is lost with the rest.
        wait_until(lambda: session.run(OP_RESET)[1] == OK, "a session that begins anew")
        assert session.run(OP_ALLOC, [4096])[1] == OK
        assert contexts_of(m, 1) == 1


def test_a_lost_session_goes_on_with_the_gpu_and_never_with_the_cpu(cuda, fake):
    """Also when its next worker starts while the GPU is being checked."""
    m = cuda()
    with peer_of(m, 1) as peer:
        session = peer.open()
        fake.order_only("delay cuInit 300ms", "fail cuMemAlloc_v2 1 214")
        assert session.run(OP_ALLOC, [4096])[1] == DEVICE_LOST
        fake.order_only("delay cuInit 300ms")
        wait_until(lambda: session.run(OP_RESET)[1] == OK, "a session that begins anew")
        assert session.run(OP_QUERY, [QUERY_BACKEND]) == (BACKEND_CUDA, OK)
        assert session.run(OP_ALLOC, [4096])[1] == OK
        assert len(m.events("lost")) == 1
