# SPDX-License-Identifier: Apache-2.0
"""Device memory: the limit is the VM's, over all its sessions, and counts what a GPU gives
without an allocation too.

On a double of NVIDIA's library, or the cpu backend; with VGPU_TEST_GPU=1 the former on the GPU
of this host.
"""

import os
import signal
import struct

import pytest

from control_support import admin, control, make_registered
from cuda_support import ON_GPU, workers_of
from support import wait_until
from window_peer import (ARENA, COMMAND_FAILED, DEVICE_LOST, HEAP, OK, OP_ALLOC, OP_COPY, OP_FREE,
                         OP_PING, OP_QUERY, OP_RESET, Peer)

OP_MODULE_LOAD, OP_MODULE_UNLOAD, OP_LAUNCH = 48, 49, 50
OUT_OF_MEMORY, BAD_IMAGE = 4, 17
QUERY_BYTES, QUERY_FREE_BYTES = 1, 2
MIB = 1 << 20
LIMIT_MIB = 64
ONE = 1 | 1 << 32

STACK_BYTES = 1024  # of local memory, that each thread has with a context
THREADS = 132 * 2048  # that a H200 holds, and the double

HEAD = ".version 7.0\n.target sm_70\n.address_size 64\n"
EMPTY = HEAD + ".visible .entry k(.param .u64 a)\n{\n ret;\n}\n"


@pytest.fixture(params=["cpu", "cuda"])
def machine(request, mediator):
    """machine(vms=..., ...): a mediator whose pool A is that backend's device."""
    def make(vms=None, make=mediator, **options):
        if request.param == "cpu":
            return make(vms or {1: ("A", 1), 2: ("A", 1)}, channels="window", **options)
        cuda = request.getfixturevalue("cuda")
        if make is mediator:
            return cuda(vms, channels="window", **options)
        return make(vms, channels="window", pools={"A": "cuda:0"},
                    cuda_library=request.getfixturevalue("fake").path, **options)
    return make


def peer_of(m, vm_id, slots=1):
    return Peer(m.state / "run" / f"vm{vm_id}.sock", slots=slots,
                window_bytes=(2 << 20) * slots).connect().hello()


def alloc(session, mib):
    return session.run(OP_ALLOC, [mib * MIB])


def free_mib(session):
    value, status = session.run(OP_QUERY, [QUERY_FREE_BYTES])
    assert status == OK
    return value / MIB


def used_mib(m, vm_id):
    """What the mediator knows of it."""
    with control(m) as client:
        return client.vm(vm_id)["device_memory_used_bytes"] / MIB


def sessions_of(peer):
    return [peer.open(slot) for slot in range(peer.slot_count)]


# --- the limit is the VM's -----------------------------------------------------------------------


def test_two_sessions_of_a_vm_share_its_limit_to_the_granule(machine):
    m = machine(device_memory_mib=LIMIT_MIB)
    with peer_of(m, 1, slots=2) as peer, peer_of(m, 2) as other:
        first, second = sessions_of(peer)
        address, status = alloc(first, 40)
        assert status == OK
        assert alloc(second, 26)[1] == OUT_OF_MEMORY
        assert alloc(second, 24)[1] == OK
        assert (free_mib(first), free_mib(second)) == (0, 0)
        assert alloc(first, 2)[1] == OUT_OF_MEMORY
        assert alloc(other.open(), LIMIT_MIB)[1] == OK
        assert (used_mib(m, 1), used_mib(m, 2)) == (LIMIT_MIB, LIMIT_MIB)
        assert first.run(OP_FREE, [address])[1] == OK
        assert (free_mib(second), used_mib(m, 1)) == (40, 24)
        assert alloc(second, 40)[1] == OK


def test_windows_of_a_vm_share_its_limit(machine):
    """Their slots have the same numbers."""
    m = machine(device_memory_mib=LIMIT_MIB)
    with peer_of(m, 1) as one, peer_of(m, 1) as another:
        assert alloc(one.open(), 40)[1] == OK
        session = another.open()
        assert alloc(session, 26)[1] == OUT_OF_MEMORY
        assert alloc(session, 24)[1] == OK
        one.close()
        wait_until(lambda: used_mib(m, 1) == 24, "what the first window had")
        assert alloc(session, 40)[1] == OK


def test_a_session_that_was_closed_gives_its_memory_back(machine):
    m = machine(device_memory_mib=LIMIT_MIB)
    with peer_of(m, 1, slots=2) as peer:
        first, second = sessions_of(peer)
        assert alloc(first, LIMIT_MIB)[1] == OK
        assert alloc(second, 2)[1] == OUT_OF_MEMORY
        peer.close_session(0)
        assert alloc(second, LIMIT_MIB)[1] == OK
    wait_until(lambda: used_mib(m, 1) == 0, "the end of the VM's sessions")
    assert not list((m.state / "run/sessions").iterdir())


def test_a_worker_that_was_killed_gives_its_memory_back(machine):
    m = machine(device_memory_mib=LIMIT_MIB)
    with peer_of(m, 1, slots=2) as peer:
        first = peer.open(0)
        pid, = workers_of(m, 1)
        second = peer.open(1)
        assert alloc(first, 40)[1] == OK
        assert alloc(second, 24)[1] == OK
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: first.run(OP_PING)[1] == DEVICE_LOST, "the loss")
        assert used_mib(m, 1) == 24
        assert alloc(second, 40)[1] == OK
        assert first.run(OP_RESET)[1] == OK
        assert alloc(first, 2)[1] == OUT_OF_MEMORY


def test_a_limit_changes_while_memory_is_held(machine, mediator):
    m = machine({1: ("A", 1)}, device_memory_mib=LIMIT_MIB,
                make=lambda vms, **options: make_registered(mediator, vms, **options))
    with peer_of(m, 1, slots=2) as peer:
        first, second = sessions_of(peer)
        address, status = alloc(first, LIMIT_MIB)
        assert status == OK
        admin(m, "set-limit", 1, "--device-memory", 32)
        assert second.run(OP_QUERY, [QUERY_BYTES]) == (32 * MIB, OK)
        assert free_mib(second) == 0
        assert alloc(second, 2)[1] == OUT_OF_MEMORY
        assert used_mib(m, 1) == LIMIT_MIB  # nothing is taken away
        assert first.run(OP_FREE, [address])[1] == OK
        assert alloc(first, 34)[1] == OUT_OF_MEMORY
        assert alloc(second, 32)[1] == OK
        admin(m, "set-limit", 1, "--device-memory", 128)
        assert alloc(first, 96)[1] == OK
        assert free_mib(second) == 0


def test_what_is_held_is_known_to_the_next_mediator(machine):
    """Also that one of two workers died with the last one."""
    m = machine(device_memory_mib=LIMIT_MIB)
    with peer_of(m, 1, slots=2) as peer:
        first = peer.open(0)
        pid, = workers_of(m, 1)
        second = peer.open(1)
        assert alloc(first, 30)[1] == OK
        assert alloc(second, 20)[1] == OK
        m.kill()
        os.kill(pid, signal.SIGKILL)
        m.start()
        peer.reconnect()
        wait_until(lambda: used_mib(m, 1) == 20, "what the living one holds")
        assert alloc(second, 46)[1] == OUT_OF_MEMORY
        assert alloc(second, 30)[1] == OK
        wait_until(lambda: first.run(OP_RESET)[1] == OK, "a session that begins anew")
        assert alloc(first, 16)[1] == OUT_OF_MEMORY
        assert alloc(first, 14)[1] == OK
        assert used_mib(m, 1) == LIMIT_MIB


def test_what_one_session_keeps_to_itself_refuses_no_other(cuda):
    """Freed blocks that it keeps for its next allocation."""
    m = cuda(device_memory_mib=LIMIT_MIB, channels="window")
    with peer_of(m, 1, slots=2) as peer:
        first, second = sessions_of(peer)
        address, status = alloc(first, LIMIT_MIB)
        assert status == OK
        assert first.run(OP_FREE, [address])[1] == OK
        address, status = alloc(second, LIMIT_MIB)
        assert status == OK
        assert alloc(first, LIMIT_MIB)[1] == OUT_OF_MEMORY
        assert second.run(OP_FREE, [address])[1] == OK
        assert alloc(first, LIMIT_MIB)[1] == OK


def test_what_a_session_keeps_to_itself_is_given_back_when_it_is_idle(cuda, fake):
    fake.order(f"memory_bytes {LIMIT_MIB * MIB}")
    fake.keep_log()
    m = cuda(device_memory_mib=LIMIT_MIB, channels="window", worker_idle_ms=100)
    with peer_of(m, 1) as peer:
        session = peer.open()
        kept, status = alloc(session, 2)
        assert status == OK
        address, status = alloc(session, 32)
        assert status == OK
        assert session.run(OP_FREE, [address])[1] == OK
        pid, = workers_of(m, 1)
        wait_until(lambda: "cuMemFree_v2" in fake.calls(pid), "its memory back")
        assert "cuCtxDestroy_v2" not in fake.calls(pid)
        assert session.run(OP_FREE, [kept])[1] == OK


def test_text_commands_have_no_more_than_the_limit(cuda, fake):
    m = cuda(device_memory_mib=4, channels="window")
    fake.keep_log()
    with peer_of(m, 1) as peer:
        session = peer.open()
        status, answer = session.text("MATRIX_MUL 1024")
        assert status == COMMAND_FAILED
        assert "out of memory" in answer
        assert session.text("MATRIX_MUL 64")[0] == OK
        assert "cuMemsetD8Async" in fake.calls(workers_of(m, 1)[0])  # none of who had it before
        assert (used_mib(m, 1), free_mib(session)) == (0, 4)
        assert alloc(session, 4)[1] == OK
        assert session.text("VECTOR_ADD")[0] == COMMAND_FAILED


# --- contexts ------------------------------------------------------------------------------------


CONTEXT_MIB = 20


@pytest.fixture
def counted(cuda, fake):
    """counted(...): a mediator by which contexts count, of a GPU on which one takes CONTEXT_MIB."""
    def make(**options):
        fake.order(f"context_bytes {CONTEXT_MIB * MIB}")
        return cuda(device_memory_mib=LIMIT_MIB, channels="window", **options)
    return make


def test_a_context_counts_where_that_is_wanted(counted):
    m = counted(count_contexts="yes")
    with peer_of(m, 1, slots=2) as peer:
        first, second = sessions_of(peer)
        assert used_mib(m, 1) == 0
        address, status = alloc(first, 2)
        assert status == OK
        assert (used_mib(m, 1), free_mib(first)) == (CONTEXT_MIB + 2, LIMIT_MIB - CONTEXT_MIB - 2)
        assert alloc(first, 32)[1] == OK
        assert alloc(second, 2)[1] == OUT_OF_MEMORY  # there is no room for a context
        assert session_text_is_refused(second)
        assert first.run(OP_FREE, [address])[1] == OK
        peer.close_session(0)
        assert alloc(second, LIMIT_MIB - CONTEXT_MIB)[1] == OK
    wait_until(lambda: used_mib(m, 1) == 0, "the end of the VM's sessions")


def session_text_is_refused(session):
    status, answer = session.text("VECTOR_ADD")
    return status == COMMAND_FAILED and "out of memory" in answer


def test_a_context_that_is_given_up_counts_no_more(counted):
    m = counted(count_contexts="yes", worker_idle_ms=100)
    with peer_of(m, 1) as peer:
        session = peer.open()
        address, status = alloc(session, 2)
        assert status == OK
        assert session.run(OP_FREE, [address])[1] == OK
        wait_until(lambda: used_mib(m, 1) == 0, "the end of its context")


def test_what_a_context_copies_through_counts_with_it(counted):
    m = counted(count_contexts="yes")
    with peer_of(m, 1) as peer:
        session = peer.open()
        address, status = alloc(session, 4)
        assert status == OK
        assert session.run(OP_COPY, [address + 4096, address, MIB])[1] == OK
        assert used_mib(m, 1) == CONTEXT_MIB + 4 + 2
        last, status = alloc(session, LIMIT_MIB - CONTEXT_MIB - 6)
        assert status == OK
        assert session.run(OP_FREE, [last])[1] == OK
        assert free_mib(session) == LIMIT_MIB - CONTEXT_MIB - 6


def test_freed_memory_goes_back_where_contexts_count(counted, fake):
    fake.keep_log()
    m = counted(count_contexts="yes")
    with peer_of(m, 1) as peer:
        session = peer.open()
        pid, = workers_of(m, 1)
        address, status = alloc(session, 2)
        assert status == OK
        assert session.run(OP_FREE, [address])[1] == OK
        assert "cuMemFree_v2" in fake.calls(pid)


def test_a_context_does_not_count_by_itself(counted):
    m = counted()
    with peer_of(m, 1) as peer:
        session = peer.open()
        assert alloc(session, LIMIT_MIB)[1] == OK
        assert used_mib(m, 1) == LIMIT_MIB


# --- modules ---------------------------------------------------------------------------------------


def load(session, text, handle=1):
    data = text.encode() + b"\0"
    session.put(HEAP, data)
    return session.run(OP_MODULE_LOAD, [handle, HEAP, len(data)])[1]


def unload(session, handle=1):
    return session.run(OP_MODULE_UNLOAD, [handle])[1]


def global_array(mib):
    return EMPTY.replace(HEAD, HEAD + f".visible .global .align 4 .b8 big[{mib * MIB}];\n")


def test_a_small_text_that_declares_much_memory_stays_within_the_limit(cuda):
    m = cuda(device_memory_mib=LIMIT_MIB, channels="window")
    with peer_of(m, 1, slots=2) as peer:
        first, second = sessions_of(peer)
        assert load(first, global_array(512)) == OUT_OF_MEMORY
        assert used_mib(m, 1) == 0
        assert load(first, global_array(40)) == OK
        assert 40 <= used_mib(m, 1) <= 44
        assert alloc(second, 26)[1] == OUT_OF_MEMORY
        assert load(second, global_array(40)) == OUT_OF_MEMORY
        assert unload(first) == OK
        assert used_mib(m, 1) == 0
        assert load(second, global_array(40)) == OK


def test_a_module_counts_at_least_its_image(cuda):
    m = cuda(device_memory_mib=LIMIT_MIB, channels="window")
    with peer_of(m, 1) as peer:
        session = peer.open()
        text = EMPTY + "// " + "x" * (256 << 10)
        for handle in range(1, 5):
            assert load(session, text, handle) == OK
        assert 1 <= used_mib(m, 1) <= 16
        assert free_mib(session) < LIMIT_MIB
        for handle in range(1, 5):
            assert unload(session, handle) == OK
        assert (used_mib(m, 1), free_mib(session)) == (0, LIMIT_MIB)


def test_a_module_that_was_refused_for_what_others_took_is_measured_again(cuda, fake):
    """What other processes take while it is loaded looks like its own."""
    fake.order(f"others_free -{512 * MIB}")
    m = cuda(device_memory_mib=LIMIT_MIB, channels="window")
    with peer_of(m, 1) as peer:
        session = peer.open()
        fake.keep_log()
        assert load(session, global_array(40)) == OK
        assert 40 <= used_mib(m, 1) <= 44
        pid, = workers_of(m, 1)
        assert fake.calls(pid).count("cuModuleLoadDataEx") == 2
        assert fake.calls(pid).count("cuModuleUnload") == 1


def test_a_module_that_says_to_be_too_large_is_not_loaded(cuda, fake):
    m = cuda(device_memory_mib=LIMIT_MIB, channels="window")
    with peer_of(m, 1) as peer:
        session = peer.open()
        fake.keep_log()
        assert load(session, global_array(512)) == OUT_OF_MEMORY
        pid, = workers_of(m, 1)
        assert "cuModuleLoadDataEx" not in fake.calls(pid)
        assert "cuLinkDestroy" in fake.calls(pid)
        assert used_mib(m, 1) == 0


def test_what_others_give_back_hides_no_module(cuda, fake):
    """Another session of the VM that ends in the instant of the load, for one."""
    fake.order(f"others_free {512 * MIB}")
    m = cuda(device_memory_mib=LIMIT_MIB, channels="window")
    with peer_of(m, 1, slots=2) as peer:
        first, second = sessions_of(peer)
        assert load(first, global_array(40)) == OK
        assert 40 <= used_mib(m, 1) <= 44
        assert load_binary(second, cubin(40)) == OUT_OF_MEMORY
        assert unload(first) == OK
        assert load_binary(second, cubin(40)) == OK
        assert 40 <= used_mib(m, 1) <= 44
        assert unload(second) == OK
        assert used_mib(m, 1) == 0


def cubin(array_mib):
    """Of an array that has no bytes in it."""
    header = b"\x7fELF\2\1\1".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, 190, 1, 0, 0, 64, 0, 64, 56, 0, 64, 2, 0)
    return header + bytes(64) + struct.pack("<IIQQQQIIQQ", 1, 8, 3, 0, 0, array_mib * MIB, 0, 0, 4,
                                            0)


def load_binary(session, image, handle=1):
    session.put(HEAP, image)
    return session.run(OP_MODULE_LOAD, [handle, HEAP, len(image)])[1]


def test_a_cubin_whose_parts_lie_outside_of_it_is_refused(cuda, fake):
    m = cuda(device_memory_mib=LIMIT_MIB, channels="window")
    with peer_of(m, 1) as peer:
        session = peer.open()
        assert load_binary(session, cubin(1)[:-1]) == BAD_IMAGE
        assert load_binary(session, b"\x7fELF") == BAD_IMAGE
        assert used_mib(m, 1) == 0
        assert load_binary(session, cubin(1)) == OK


def test_a_fat_binary_that_cannot_be_read_is_measured_often(cuda, fake):
    m = cuda(device_memory_mib=LIMIT_MIB, channels="window")
    with peer_of(m, 1) as peer:
        session = peer.open()
        fake.keep_log()
        assert load_binary(session, b"\x50\xed\x55\xba".ljust(4096, b"x")) == OK
        pid, = workers_of(m, 1)
        assert fake.calls(pid).count("cuModuleLoadDataEx") == 3
        assert fake.calls(pid).count("cuModuleUnload") == 2
        assert unload(session) == OK
        assert used_mib(m, 1) == 0


def test_code_counts_when_a_kernel_is_asked_for(cuda, fake):
    """A driver loads it only then: an image that is packed well holds more than its own bytes."""
    fake.order(f"code_bytes {40 * MIB}")
    m = cuda(device_memory_mib=LIMIT_MIB, channels="window")
    with peer_of(m, 1, slots=2) as peer:
        session, other = sessions_of(peer)
        assert load(session, HEAD + kernel(64, "a") + kernel(64, "b") + kernel(64, "c")) == OK
        assert used_mib(m, 1) < 1
        for _ in range(2):
            assert launch(session, "a") == OK
            assert used_mib(m, 1) == 40
        assert launch(session, "b") == OUT_OF_MEMORY
        assert used_mib(m, 1) == 80  # it is there, until the module goes
        assert launch(session, "c") == OUT_OF_MEMORY
        assert used_mib(m, 1) == 80
        assert launch(session, "a") == OK
        assert alloc(other, 2)[1] == OUT_OF_MEMORY
        assert unload(session) == OK
        assert used_mib(m, 1) == 0
        assert alloc(other, LIMIT_MIB)[1] == OK


def test_a_module_goes_with_its_session(cuda):
    m = cuda(device_memory_mib=LIMIT_MIB, channels="window")
    with peer_of(m, 1, slots=2) as peer:
        first, second = sessions_of(peer)
        assert load(first, global_array(40)) == OK
        peer.close_session(0)
        assert used_mib(m, 1) == 0
        assert alloc(second, LIMIT_MIB)[1] == OK


# --- local memory ------------------------------------------------------------------------------------


def kernel(local_bytes, name="k"):
    """One whose threads have so much of their own, whatever a compiler makes of it."""
    return (f".visible .entry {name}(.param .u64 a)\n{{\n"
            f" .local .align 16 .b8 own[{local_bytes}];\n"
            " .reg .u64 %r<2>;\n .reg .u32 %w;\n"
            " ld.param.u64 %r0, [a];\n mov.u64 %r1, own;\n add.u64 %r1, %r1, %r0;\n"
            " mov.u32 %w, 1;\n st.local.u32 [%r1], %w;\n ld.local.u32 %w, [%r1+4];\n"
            " st.local.u32 [%r1+8], %w;\n ret;\n}\n")


def launch(session, name="k", handle=1):
    word = name.encode()
    session.put(ARENA, word.ljust(16, b"\0") + bytes(8))
    return session.run(OP_LAUNCH, [handle | ARENA << 32, len(word) | (ARENA + 16) << 32, 8,
                                   ONE, ONE, ONE])[1]


def local_mib(local_bytes):
    return (local_bytes - STACK_BYTES) * THREADS / MIB


def test_local_memory_counts_for_all_threads_that_the_gpu_holds(cuda):
    text = HEAD + kernel(1024, "none") + kernel(1280, "some") + kernel(1536, "more")
    m = cuda(device_memory_mib=256, channels="window")
    with peer_of(m, 1, slots=2) as peer:
        session, other = sessions_of(peer)
        assert load(session, text) == OK
        before = used_mib(m, 1)
        assert launch(session, "none") == OK
        assert used_mib(m, 1) == before
        for _ in range(2):
            assert launch(session, "some") == OK
            assert used_mib(m, 1) - before == local_mib(1280)
        assert launch(session, "more") == OK
        assert launch(session, "some") == OK
        assert used_mib(m, 1) - before == local_mib(1536)  # the most counts
        assert alloc(other, 256 - int(local_mib(1280)))[1] == OUT_OF_MEMORY


def test_a_kernel_whose_local_memory_is_beyond_the_limit_is_not_launched(cuda):
    """65536 bytes of each thread are 16 GiB of a GPU's."""
    m = cuda(device_memory_mib=256, channels="window")
    with peer_of(m, 1) as peer:
        session = peer.open()
        assert load(session, HEAD + kernel(65536, "huge") + kernel(1280, "some")) == OK
        before = used_mib(m, 1)
        assert launch(session, "huge") == OUT_OF_MEMORY
        assert used_mib(m, 1) == before
        assert launch(session, "some") == OK
        assert alloc(session, 128)[1] == OK
        assert launch(session, "huge") == OUT_OF_MEMORY


def test_local_memory_is_held_until_the_context_goes(cuda):
    m = cuda(device_memory_mib=256, channels="window", worker_idle_ms=100)
    with peer_of(m, 1) as peer:
        session = peer.open()
        assert load(session, HEAD + kernel(1280)) == OK
        assert launch(session) == OK
        assert used_mib(m, 1) >= local_mib(1280)
        assert unload(session) == OK
        wait_until(lambda: used_mib(m, 1) == 0, "its context gone")


# --- what contexts take ------------------------------------------------------------------------------


def context_bytes(m):
    """Of one, as the device's check has measured."""
    with control(m) as client:
        device, = client.call("status")["devices"]
    return device["context_bytes"]


def test_what_contexts_take_is_shown_beside_what_counts(cuda, request):
    if not ON_GPU:
        request.getfixturevalue("fake").order(f"context_bytes {524 * MIB}",
                                              f"memory_bytes {4096 * MIB}")
    m = cuda(device_memory_mib=LIMIT_MIB, channels="window")
    with peer_of(m, 1, slots=2) as peer, control(m) as client:
        first, second = sessions_of(peer)
        one = context_bytes(m)
        assert 64 * MIB < one < 2048 * MIB
        assert client.vm(1)["context_bytes"] == 0
        assert f", {one // MIB} MiB each." in admin(m, "status")
        assert alloc(first, 40)[1] == OK
        assert alloc(second, 24)[1] == OK
        vm = client.vm(1)
        assert (vm["contexts"], vm["context_bytes"]) == (2, 2 * one)
        assert vm["device_memory_used_bytes"] == LIMIT_MIB * MIB  # not in it


def test_the_context_of_a_file_requests_worker_is_shown(cuda, fake):
    fake.order(f"context_bytes {524 * MIB}", f"memory_bytes {4096 * MIB}")
    m = cuda()
    assert "PASSED" in m.vm(1).ask("VECTOR_ADD")
    with control(m) as client:
        vm = client.vm(1)
    assert (vm["contexts"], vm["context_bytes"]) == (1, 524 * MIB)
    assert vm["device_memory_used_bytes"] == 0


def test_what_contexts_take_is_null_where_it_is_not_known(cuda, fake):
    """The GPU has no room for a second one, or others were at work."""
    fake.order(f"context_bytes {524 * MIB}", f"memory_bytes {1024 * MIB}")
    m = cuda(channels="window")
    with peer_of(m, 1) as peer, control(m) as client:
        session = peer.open()
        assert context_bytes(m) is None
        assert client.vm(1)["context_bytes"] == 0
        assert alloc(session, 2)[1] == OK
        assert client.vm(1)["context_bytes"] is None
        assert "MiB each" not in admin(m, "status")


def test_what_contexts_take_is_kept_where_a_later_check_cannot_tell(cuda, fake):
    fake.order(f"context_bytes {524 * MIB}", f"memory_bytes {4096 * MIB}")
    m = cuda(channels="window")
    assert context_bytes(m) == 524 * MIB
    fake.keep_log()
    fake.order("fail cuMemGetInfo_v2 * 1", "fail cuMemAlloc_v2 2 214")
    with peer_of(m, 1) as peer:
        session = peer.open()
        assert alloc(session, 2)[1] == OK
        assert alloc(session, 2)[1] == DEVICE_LOST  # so the device is checked
        # Its own context, after two that it tried to measure with.
        wait_until(lambda: fake.calls().count("cuCtxDestroy_v2") >= 3, "the next check")
    assert context_bytes(m) == 524 * MIB
