# SPDX-License-Identifier: Apache-2.0
"""A driver's queue has an end, behind which its caller waits: a worker puts less into it, whatever
its guest asks for, and hears its guest and its mediator meanwhile.  On a double of NVIDIA's
library, where all that comes into a stream counts.
"""

import random
from collections import Counter

import pytest
from cuda_support import launch_spin, workers_of
from support import wait_until
from window_peer import (CANCELLED, HEAP, HOST, OK, OP_ALLOC, OP_CANCEL, OP_COPY, OP_COPY_IN,
                         OP_COPY_OUT, OP_PING, Peer)

OP_STREAM_CREATE, OP_STREAM_WAIT, OP_EVENT_CREATE, OP_EVENT_RECORD = 32, 35, 36, 38
OP_EVENT_SYNC = 39
BAD_ADDRESS = 5
QUIET = 1
MIB = 1 << 20
SLOW_US = 50_000_000  # longer than any of this takes
QUEUED = ("cuLaunchKernel", "cuEventRecord", "cuStreamWaitEvent", "cuMemcpyDtoDAsync_v2",
          "cuStreamWriteValue32_v2", "cuLaunchHostFunc", "cuMemcpyHtoDAsync_v2")
QUEUE_DEPTH = 1024
OUT_OF_MEMORY = 2


@pytest.fixture
def open_session(cuda, fake):
    """open_session(*orders, mib=...): a session whose window has so much, and its worker's pid."""
    peers = []

    def make(*orders, mib=2):
        m = cuda({1: ("A", 1)}, device_memory_mib=256)
        fake.keep_log()
        fake.order(*orders)
        peers.append(Peer(m.state / "run/vm1.sock", window_bytes=mib * MIB).connect().hello())
        session = peers[-1].open()
        pid, = workers_of(m, 1)
        return session, pid
    yield make
    for peer in peers:
        peer.close()


def allocate(session, count):
    address, status = session.run(OP_ALLOC, [count])
    assert status == OK
    return address


def is_taken(session):
    """The worker has all that was submitted."""
    return session.word(HOST + 0x40) == session.sq_tail


def must_hear(session):
    """A cancel, while the kernel that is before it takes long."""
    victim = session.submit(OP_PING)
    wait_until(lambda: is_taken(session), "a worker that takes what is there")
    session.submit(OP_CANCEL, [victim])
    wait_until(lambda: is_taken(session), "a worker that takes a cancel")
    assert not session.take()


def queued(fake, pid):
    calls = Counter(fake.calls(pid))
    return sum(calls[name] for name in QUEUED)


@pytest.mark.parametrize("opcode", [OP_EVENT_RECORD, OP_STREAM_WAIT])
def test_marks_and_waits_behind_a_slow_kernel_leave_its_worker_free(open_session, fake, opcode):
    session, pid = open_session()
    assert session.run(OP_EVENT_CREATE, [1])[1] == OK
    assert session.run(OP_EVENT_RECORD, [1])[1] == OK
    launch_spin(session, SLOW_US)
    for _ in range(900):
        session.submit(opcode, [1], flags=QUIET)
    must_hear(session)
    assert queued(fake, pid) < QUEUE_DEPTH


def test_marks_and_waits_of_which_there_are_many_are_right(open_session):
    """More of them than are let into the queue at once."""
    session, _ = open_session("queue_depth 1024")
    for stream in (1, 2):
        assert session.run(OP_STREAM_CREATE, [stream])[1] == OK
    for event in (1, 2):
        assert session.run(OP_EVENT_CREATE, [event])[1] == OK
    launch_spin(session, 300_000, stream=1)
    for _ in range(450):
        session.submit(OP_EVENT_RECORD, [1], stream=1, flags=QUIET)
        session.submit(OP_STREAM_WAIT, [1], stream=2, flags=QUIET)
    session.submit(OP_EVENT_RECORD, [2], stream=2)
    victim = session.submit(OP_PING)
    session.submit(OP_CANCEL, [victim])
    statuses = [status for _, _, status in session.wait(4)]
    assert sorted(statuses) in ([OK, OK, OK, OK], [OK, OK, OK, CANCELLED])
    assert session.run(OP_EVENT_SYNC, [2])[1] == OK  # what waits for both streams


def test_a_long_copy_behind_a_slow_kernel_leaves_its_worker_free(open_session, fake):
    session, pid = open_session()
    address = allocate(session, 200 * MIB)
    launch_spin(session, SLOW_US)
    session.submit(OP_COPY, [address + 4096, address, 199 * MIB])
    must_hear(session)
    assert 0 < Counter(fake.calls(pid))["cuMemcpyDtoDAsync_v2"] < 199
    assert queued(fake, pid) < QUEUE_DEPTH


def test_a_long_copy_through_chunks_leaves_its_worker_free(open_session, fake):
    session, pid = open_session(f"fail cuMemHostRegister_v2 2 {OUT_OF_MEMORY}", mib=256)
    address = allocate(session, 120 * MIB)
    launch_spin(session, SLOW_US)
    session.submit(OP_COPY_IN, [address, HEAP, 120 * MIB])
    must_hear(session)
    assert 1 < Counter(fake.calls(pid))["cuLaunchHostFunc"] < 30


@pytest.mark.parametrize("to, source", [(3 * MIB + 5, 0), (0, 3 * MIB + 5), (4096, 0), (0, 4096),
                                        (66 * MIB, 0), (0, 66 * MIB)])
def test_long_copies_of_ranges_that_overlap_are_right(open_session, to, source):
    session, _ = open_session(mib=256)
    size = 70 * MIB + 3
    address = allocate(session, 140 * MIB)
    data = random.Random(to).randbytes(size)
    session.put(HEAP, data)
    assert session.run(OP_COPY_IN, [address + source, HEAP, size])[1] == OK
    assert session.run(OP_COPY, [address + to, address + source, size])[1] == OK
    assert session.run(OP_COPY_OUT, [HEAP + size, address + to, size])[1] == OK
    assert session.get(HEAP + size, size) == data


def test_long_copies_through_chunks_are_right(open_session):
    session, _ = open_session(f"fail cuMemHostRegister_v2 2 {OUT_OF_MEMORY}", mib=256)
    size = 70 * MIB + 3
    address = allocate(session, size)
    data = random.Random(1).randbytes(size)
    session.put(HEAP, data)
    session.submit(OP_COPY_IN, [address, HEAP, size])
    session.submit(OP_COPY_OUT, [HEAP + size, address, size])
    assert [status for _, _, status in session.wait(2)] == [OK, OK]
    assert session.get(HEAP + size, size) == data


def test_a_long_copy_that_leaves_its_allocation_copies_nothing(open_session, fake):
    session, pid = open_session()
    address = allocate(session, 100 * MIB)
    assert session.run(OP_COPY, [address + 4096, address, 100 * MIB])[1] == BAD_ADDRESS
    assert session.run(OP_COPY, [address - 4096, address, 100 * MIB])[1] == BAD_ADDRESS
    assert session.run(OP_COPY, [address + 4096, address, 2 ** 64 - 1])[1] == BAD_ADDRESS
    assert "cuMemcpyDtoDAsync_v2" not in fake.calls(pid)
