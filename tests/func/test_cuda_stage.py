# SPDX-License-Identifier: Apache-2.0
"""Copies of a session whose slot cannot be pinned: through chunks of pinned memory, or where
these cannot be had, through the driver's own.

On a double of NVIDIA's library; with VGPU_TEST_GPU=1 on the GPU of this host, under a library
that pins no slot (tests/doubles/unpinned_cuda.c), where what needs the double is skipped.
"""

import random
import shutil
import struct

import pytest
import support
from cuda_support import ON_GPU, workers_of
from support import is_sanitized, wait_until
from window_peer import (ARENA, HEAP, OK, OP_ALLOC, OP_COPY_IN, OP_COPY_OUT, OP_PING, OP_SET, Peer)

OP_STREAM_CREATE, OP_LAUNCH = 32, 50
ONE = 1 | 1 << 32
CHUNK = 4 << 20
ALL = 3 * CHUNK + 5
SIZES = [1, CHUNK - 1, CHUNK, CHUNK + 1, ALL]
OUT_OF_MEMORY = 2


def without_pinning(place):
    """A library that pins no slot, in this directory."""
    place.chmod(0o755)
    return shutil.copy(support.BUILD / "tests/doubles/unpinned_cuda.so", place)


def start_unpinned(cuda, request, orders):
    """A mediator whose next session finds that its slot cannot be pinned."""
    options = {"vms": {1: ("A", 1)}, "device_memory_mib": 64}
    if ON_GPU:
        if orders:
            pytest.skip("drives the double of NVIDIA's library")
        return cuda(cuda_library=without_pinning(request.getfixturevalue("place")), **options)
    fake = request.getfixturevalue("fake")
    m = cuda(**options)
    fake.keep_log()
    fake.order(f"fail cuMemHostRegister_v2 2 {OUT_OF_MEMORY}", *orders)  # the first: its marks
    return m


@pytest.fixture
def unpinned(cuda, request):
    """unpinned(*orders): a mediator, a session of which no slot can be pinned, its worker.
    Orders are the double's."""
    peers = []

    def make(*orders):
        m = start_unpinned(cuda, request, orders)
        peer = Peer(m.state / "run" / "vm1.sock", window_bytes=64 << 20)
        peers.append(peer)
        session = peer.connect().hello().open()
        pid, = workers_of(m, 1)
        return m, session, pid
    yield make
    for peer in peers:
        peer.close()


def allocate(session, count=ALL):
    address, status = session.run(OP_ALLOC, [count])
    assert status == OK
    return address


def pattern(count, seed):
    return random.Random(seed).randbytes(count)


def copy_in(session, target, source, count, stream=0):
    return session.submit(OP_COPY_IN, [target, source, count], stream=stream)


def copy_out(session, target, source, count, stream=0):
    return session.submit(OP_COPY_OUT, [target, source, count], stream=stream)


def wait_all(session, count):
    assert {status for _, _, status in session.wait(count)} == {OK}


def check_sizes(session):
    address = allocate(session)
    for number, size in enumerate(SIZES):
        data = pattern(size, number)
        session.put(HEAP, data)
        session.put(HEAP + ALL, bytes(size + 1))
        assert session.run(OP_COPY_IN, [address + ALL - size, HEAP, size])[1] == OK
        assert session.run(OP_COPY_OUT, [HEAP + ALL, address + ALL - size, size])[1] == OK
        assert session.get(HEAP + ALL, size + 1) == data + b"\0"


def test_data_of_any_size_is_right_without_a_pinned_slot(unpinned):
    _, session, _ = unpinned()
    check_sizes(session)


@pytest.mark.skipif(ON_GPU, reason="drives the double of NVIDIA's library")
def test_under_a_library_that_pins_no_slot_data_comes_through_chunks(mediator, fake, place):
    """By which tests on a GPU, and benchmarks, have such a slot."""
    fake.keep_log()
    library = without_pinning(place)
    place.joinpath("unpinned_cuda.so.real").write_text(f"{fake.path}\n")
    m = mediator({1: ("A", 1)}, pools={"A": "cuda:0"}, device_memory_mib=64, cuda_library=library)
    with Peer(m.state / "run" / "vm1.sock", window_bytes=64 << 20) as peer:
        session = peer.connect().hello().open()
        pid, = workers_of(m, 1)
        check_sizes(session)
        assert fake.calls(pid).count("cuLaunchHostFunc") > len(SIZES)


def test_data_of_any_size_comes_through_pinned_chunks(unpinned, fake):
    _, session, pid = unpinned()
    check_sizes(session)
    assert fake.calls(pid).count("cuLaunchHostFunc") > len(SIZES)


def test_without_pinned_chunks_it_comes_through_the_drivers_own(unpinned, fake):
    m, session, pid = unpinned(f"fail cuMemHostAlloc * {OUT_OF_MEMORY}")
    check_sizes(session)
    assert "cuLaunchHostFunc" not in fake.calls(pid)
    assert fake.calls(pid).count("cuMemHostAlloc") == 1


@pytest.mark.parametrize("call", ["cuStreamCreate 2", "cuEventCreate 1", "cuEventCreate 4",
                                  "cuLaunchHostFunc 1"])
def test_what_was_made_of_the_chunks_is_given_back(unpinned, fake, call):
    """A context has one stream of its own before."""
    m, session, pid = unpinned(f"fail {call} {OUT_OF_MEMORY}")
    check_sizes(session)
    calls = fake.calls(pid)
    assert calls.count("cuLaunchHostFunc") <= 1
    assert calls.count("cuMemHostAlloc") == calls.count("cuMemFreeHost") == 1


def test_a_pinned_slot_needs_no_chunks(cuda, fake):
    fake.keep_log()
    m = cuda({1: ("A", 1)}, device_memory_mib=64)
    with Peer(m.state / "run" / "vm1.sock", window_bytes=64 << 20) as peer:
        session = peer.connect().hello().open()
        pid, = workers_of(m, 1)
        check_sizes(session)
        assert "cuMemHostAlloc" not in fake.calls(pid)


def test_copies_keep_their_place_among_the_work_of_their_stream(unpinned):
    """In one go: data in, changed on the device, out, other data in over it, out."""
    _, session, _ = unpinned()
    address = allocate(session)
    first, second = pattern(ALL, 1), pattern(ALL, 2)
    session.put(HEAP, first + second)
    copy_in(session, address, HEAP, ALL)
    session.submit(OP_SET, [address + CHUNK, 1000, 0x5A | 1 << 32])
    copy_out(session, HEAP + 2 * ALL, address, ALL)
    copy_in(session, address, HEAP + ALL, ALL)
    copy_out(session, HEAP + 3 * ALL, address, ALL)
    wait_all(session, 5)
    changed = first[:CHUNK] + b"\x5A" * 1000 + first[CHUNK + 1000:]
    assert session.get(HEAP + 2 * ALL, ALL) == changed
    assert session.get(HEAP + 3 * ALL, ALL) == second


def test_what_one_copy_brought_out_another_takes_in(unpinned):
    _, session, _ = unpinned("busy cuMemcpyDtoHAsync_v2 5ms")
    there, back = allocate(session), allocate(session)
    data = pattern(ALL, 3)
    session.put(HEAP, data)
    copy_in(session, there, HEAP, ALL)
    copy_out(session, HEAP + ALL, there, ALL)
    copy_in(session, back, HEAP + ALL, ALL)
    copy_out(session, HEAP + 2 * ALL, back, ALL)
    wait_all(session, 4)
    assert session.get(HEAP + 2 * ALL, ALL) == data


def launch(session, at, name, parameters, stream):
    words = struct.pack(f"<{len(parameters)}Q", *parameters)
    session.put(at, name.encode().ljust(16, b"\0") + words)
    return session.submit(OP_LAUNCH, [0 | at << 32, len(name) | (at + 16) << 32,
                                      8 * len(parameters), ONE, ONE, ONE], stream=stream)


def test_the_source_is_read_when_the_stream_comes_to_it(unpinned):
    _, session, _ = unpinned()
    address = allocate(session)
    early, late = pattern(ALL, 5), pattern(ALL, 6)
    session.put(HEAP, early)
    launch(session, ARENA, "spin_us", [2000000], 0)
    copy_in(session, address, HEAP, ALL)
    session.put(HEAP, late)
    copy_out(session, HEAP + ALL, address, ALL)
    wait_all(session, 3)
    assert session.get(HEAP + ALL, ALL) == late


def test_streams_that_share_the_chunks_do_not_mix_their_data(unpinned):
    """One of them is held up by a kernel in the middle of it."""
    _, session, _ = unpinned()
    size, streams, rounds = CHUNK + 7, (1, 2, 3), 2 if is_sanitized() else 5
    addresses = {stream: allocate(session, size) for stream in streams}
    for stream in streams:
        assert session.run(OP_STREAM_CREATE, [stream])[1] == OK
    for number in range(rounds):
        data = {stream: pattern(size, 10 * number + stream) for stream in streams}
        for stream in streams:
            session.put(HEAP + 2 * stream * size, data[stream] + bytes(size))
        launch(session, ARENA, "spin_us", [20000], 2)
        for stream in streams:
            copy_in(session, addresses[stream], HEAP + 2 * stream * size, size, stream)
        for stream in streams:
            launch(session, ARENA + 256 * stream, "increment", [addresses[stream], 1], stream)
            copy_out(session, HEAP + (2 * stream + 1) * size, addresses[stream], size, stream)
        wait_all(session, 1 + 3 * len(streams))
        for stream in streams:
            word, = struct.unpack_from("<Q", data[stream])
            expected = struct.pack("<Q", (word + 1) % (1 << 64)) + data[stream][8:]
            assert session.get(HEAP + (2 * stream + 1) * size, size) == expected


def test_a_copy_under_way_holds_nothing_else_up(unpinned):
    _, session, _ = unpinned("busy cuLaunchHostFunc 100ms")
    address = allocate(session)
    copy = copy_in(session, address, HEAP, ALL)
    ping = session.submit(OP_PING)
    assert [cookie for cookie, _, _ in session.wait(2)] == [ping, copy]


def test_a_copy_that_cannot_be_put_is_an_error_and_the_next_one_is_right(unpinned, fake):
    _, session, pid = unpinned("fail cuLaunchHostFunc 3 1")
    address = allocate(session)
    data = pattern(ALL, 4)
    session.put(HEAP, data)
    assert session.run(OP_COPY_IN, [address, HEAP, ALL])[1] != OK
    assert session.run(OP_COPY_IN, [address, HEAP, ALL])[1] == OK
    assert session.run(OP_COPY_OUT, [HEAP + ALL, address, ALL])[1] == OK
    assert session.get(HEAP + ALL, ALL) == data


def test_a_new_context_has_chunks_of_its_own(cuda, fake):
    """A session that gives its context up gives them back too."""
    m = cuda({1: ("A", 1)}, device_memory_mib=64, worker_idle_ms=50)
    fake.keep_log()
    fake.order(f"fail cuMemHostRegister_v2 2 {OUT_OF_MEMORY}",
               f"fail cuMemHostRegister_v2 4 {OUT_OF_MEMORY}")
    with Peer(m.state / "run" / "vm1.sock", window_bytes=64 << 20) as peer:
        session = peer.connect().hello().open()
        pid, = workers_of(m, 1)
        for number in (1, 2):
            check_sizes(session)
            assert session.run(3)[1] == OK  # reset: frees all
            wait_until(lambda: fake.calls(pid).count("cuCtxDestroy_v2") == number,
                       "the end of the context")
        calls = fake.calls(pid)
        assert calls.count("cuMemHostAlloc") == calls.count("cuMemFreeHost") == 2
