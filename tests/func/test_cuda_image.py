# SPDX-License-Identifier: Apache-2.0
"""Images of modules: what an image is made of arrives whole, also one that is larger than the
session's slot and comes to the worker in parts."""

import json
import os
import random
import signal
import struct
import subprocess
from pathlib import Path

import cuda_support
import support
import pytest
from control_support import control
from cuda_support import hash_of, run_probe, workers_of
from support import wait_until
from window_peer import (ARENA, DEVICE_LOST, HEAP, OK, OP_ALLOC, OP_COPY_OUT, OP_PING, OP_RESET,
                         Peer)

OP_MODULE_LOAD, OP_MODULE_UNLOAD, OP_LAUNCH, OP_MODULE_PART = 48, 49, 50, 51
INVALID, OUT_OF_MEMORY, BAD_ADDRESS, BAD_HANDLE, HANDLE_EXISTS, TOO_MANY = 1, 4, 5, 6, 7, 9
BAD_IMAGE = 17
ONE = 1 | 1 << 32
MIB = 1 << 20
IMAGE_MAX = 256 * MIB
PART = 64 << 10
PTX = (b".version 7.0\n.target sm_75\n.address_size 64\n"
       b".visible .entry store(.param .u64 target, .param .u32 value)\n"
       b"{ .reg .b64 a; .reg .b32 v;\n"
       b"ld.param.u64 a, [target]; ld.param.u32 v, [value]; cvta.to.global.u64 a, a;\n"
       b"st.global.u32 [a], v; ret; }\n")


def large(size):
    """The same with so many bytes, its NUL among them."""
    return PTX + b"// ".ljust(size - len(PTX) - 1, b"x") + b"\0"


def part(session, handle, data, at, whole):
    session.put(HEAP, data)
    return session.run(OP_MODULE_PART, [handle, HEAP, len(data), at, whole])[1]


def send(session, handle, image):
    for at in range(0, len(image), PART):
        assert part(session, handle, image[at:at + PART], at, len(image)) == OK


def load(session, handle, size):
    return session.run(OP_MODULE_LOAD, [handle, 0, size])[1]


def unload(session, handle):
    return session.run(OP_MODULE_UNLOAD, [handle])[1]


def must_run(session, handle, value=0x1234):
    address, status = session.run(OP_ALLOC, [4096])
    assert status == OK
    session.put(ARENA, b"store".ljust(16, b"\0") + struct.pack("<2Q", address, value))
    assert session.run(OP_LAUNCH, [handle | ARENA << 32, 5 | (ARENA + 16) << 32, 16,
                                   ONE, ONE, ONE])[1] == OK
    assert session.run(OP_COPY_OUT, [HEAP, address, 4])[1] == OK
    assert session.get(HEAP, 4) == struct.pack("<I", value)


def run_gpu_probe(m, *words):
    """Its JSON; it must end well."""
    done = subprocess.run([support.BUILD / "tests/func/gpu_probe", *map(str, words)], text=True,
                          capture_output=True, timeout=120, check=False,
                          env={**os.environ, "VGPU_SOCKET": str(m.state / "run/vm1.sock")})
    assert done.returncode == 0, done.stderr + m.tail()
    return json.loads(done.stdout)


def used_bytes(m):
    with control(m) as c:
        return c.vm(1)["device_memory_used_bytes"]


@pytest.fixture
def session(cuda, peer):
    return peer(cuda()).open()


def test_a_program_on_the_library_loads_what_its_window_has_no_room_for(cuda):
    run_probe(cuda(), "large_module")


def test_an_image_larger_than_the_slot_runs(session):
    image = large(3 * MIB)
    assert len(image) > session.peer.slot_bytes
    send(session, 7, image)
    assert load(session, 7, len(image)) == OK
    must_run(session, 7)
    assert unload(session, 7) == OK
    assert load(session, 7, len(image)) == BAD_HANDLE


def test_what_is_changed_in_the_slot_afterwards_changes_nothing(session):
    image = large(2 * PART)
    send(session, 7, image)
    session.put(HEAP, bytes(PART))
    assert load(session, 7, len(image)) == OK
    must_run(session, 7)


def test_parts_out_of_order_are_refused_and_the_right_one_goes_on(session):
    image = large(3 * PART)
    assert part(session, 7, image[PART:2 * PART], PART, len(image)) == INVALID
    assert part(session, 7, image[:PART], 0, len(image)) == OK
    assert part(session, 7, image[2 * PART:], 2 * PART, len(image)) == INVALID
    assert load(session, 7, len(image)) == INVALID
    assert load(session, 7, PART) == INVALID
    assert part(session, 7, image[PART:2 * PART], PART, len(image) + 1) == INVALID
    assert part(session, 7, image[PART:2 * PART], PART, len(image)) == OK
    assert part(session, 7, image[2 * PART:], 2 * PART, len(image)) == OK
    assert load(session, 7, len(image)) == OK
    must_run(session, 7)


@pytest.mark.parametrize("at, size, whole, status", [
    (0, 0, 1, INVALID), (0, 2, 1, INVALID), (1, 1, 1, INVALID), (0, 1, IMAGE_MAX + 1, INVALID),
    (2 ** 64 - 1, 2, 2 ** 64 - 1, INVALID), (2 ** 64 - 1, 2, 1, INVALID), (0, 1, 0, INVALID),
    (0, 2 ** 64 - 1, 2 ** 64 - 1, INVALID), (0, IMAGE_MAX, IMAGE_MAX, BAD_ADDRESS)])
def test_sizes_that_cannot_be_are_refused(session, at, size, whole, status):
    assert session.run(OP_MODULE_PART, [7, HEAP, size, at, whole])[1] == status
    assert load(session, 7, 1) == BAD_HANDLE


def test_a_handle_in_use_takes_no_parts_and_keeps_its_module(session):
    image = large(PART)
    send(session, 7, image)
    assert load(session, 7, len(image)) == OK
    assert part(session, 7, b"x", 0, 1) == HANDLE_EXISTS
    must_run(session, 7)


def test_an_image_that_cannot_be_loaded_is_forgotten(session):
    assert part(session, 7, b"no image", 0, 8) == OK
    assert load(session, 7, 8) == BAD_IMAGE
    assert load(session, 7, 8) == BAD_HANDLE
    image = large(PART)
    send(session, 7, image)
    assert load(session, 7, len(image)) == OK


@pytest.mark.parametrize("forget", [lambda session: unload(session, 7),
                                    lambda session: session.run(OP_RESET)[1]])
def test_what_is_forgotten_counts_no_more(cuda, peer, forget):
    m = cuda()
    session = peer(m).open()
    assert part(session, 7, b"x", 0, 8 * MIB) == OK
    assert used_bytes(m) == 8 * MIB
    assert forget(session) == OK
    assert used_bytes(m) == 0
    assert load(session, 7, 8 * MIB) == BAD_HANDLE


def test_a_session_has_only_so_much_under_way(cuda, peer):
    m = cuda(device_memory_mib=1024)
    session = peer(m).open()
    assert part(session, 1, b"x", 0, IMAGE_MAX) == OK
    assert part(session, 2, b"x", 0, 1) == OUT_OF_MEMORY
    assert unload(session, 1) == OK
    for handle in range(1, 17):
        assert part(session, handle, b"x", 0, 2) == OK
    assert part(session, 17, b"x", 0, 2) == TOO_MANY


def test_all_sessions_of_a_vm_have_its_device_memory_for_it(cuda, peer):
    m = cuda(device_memory_mib=64)
    one = peer(m)
    first, second = one.open(0), one.open(1)
    assert part(first, 7, b"x", 0, 40 * MIB) == OK
    assert part(second, 7, b"x", 0, 40 * MIB) == OUT_OF_MEMORY
    assert part(second, 7, b"x", 0, 20 * MIB) == OK


def test_all_sessions_of_a_vm_have_so_much_of_the_host_for_it(cuda, peer):
    m = cuda(device_memory_mib=1024, image_memory_mib=64)
    one = peer(m)
    first = one.open(0)
    pid, = workers_of(m, 1)
    second = one.open(1)
    assert part(first, 7, b"x", 0, 40 * MIB) == OK
    assert part(second, 7, b"x", 0, 40 * MIB) == OUT_OF_MEMORY
    assert part(second, 7, b"x", 0, 20 * MIB) == OK
    assert unload(second, 7) == OK
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: first.run(OP_PING)[1] == DEVICE_LOST, "the loss")
    assert part(second, 7, b"x", 0, 64 * MIB) == OK


def most_memory_bytes(pid):
    words = Path(f"/proc/{pid}/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1]) << 10


def test_an_image_in_the_slot_has_the_same_bounds(cuda):
    """It is refused before anything is copied."""
    m = cuda(device_memory_mib=64)
    with Peer(m.state / "run/vm1.sock", window_bytes=512 * MIB).connect().hello() as one:
        session = one.open()
        pid, = workers_of(m, 1)
        before_bytes = most_memory_bytes(pid)
        assert session.run(OP_MODULE_LOAD, [7, HEAP, IMAGE_MAX + 1])[1] == INVALID
        assert session.run(OP_MODULE_LOAD, [7, HEAP, 65 * MIB])[1] == OUT_OF_MEMORY
        assert most_memory_bytes(pid) < before_bytes + 32 * MIB
        image = large(PART)
        session.put(HEAP, image)
        assert session.run(OP_MODULE_LOAD, [7, HEAP, len(image)])[1] == OK
        must_run(session, 7)


def test_no_session_has_what_another_has_sent(cuda, peer):
    """Neither parts nor modules: each worker keeps its own."""
    one = peer(cuda())
    first, second = one.open(0), one.open(1)
    image = large(PART)
    send(first, 7, image)
    assert load(second, 7, len(image)) == BAD_HANDLE
    assert load(first, 7, len(image)) == OK


# --- binaries: what the library gets is what the guest sent --------------------------------------


def cubin(size):
    """As a cubin is framed: an ELF file for CUDA's machine, with tables of nothing at its end."""
    sections, segments = (3, 64), (2, 56)
    segments_at = size - segments[0] * segments[1]
    sections_at = segments_at - sections[0] * sections[1]
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01\x33\x07", 2, 190, 1, 0,
                         segments_at, sections_at, 0x5A055A, 64, segments[1], segments[0],
                         sections[1], sections[0], 1)
    tables = bytes(size - sections_at)
    return header + random.Random(size).randbytes(sections_at - len(header)) + tables


def fatbin(size):
    """As a fatbin is framed: magic, version, its header's length and that of the rest."""
    header = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, size - 16)
    return header + random.Random(size).randbytes(size - len(header))


BINARIES = pytest.mark.parametrize("make", [cubin, fatbin])


@pytest.fixture
def watched(cuda, fake, peer):
    """A session, and the double that tells which images it was given; one that cannot be linked,
    as this double's fatbins, is loaded more than once."""
    fake.keep_log()
    fake.order("images 1", "entry store 8 4")
    return peer(cuda()).open()


@BINARIES
@pytest.mark.parametrize("size", [4097, PART])
def test_a_binary_in_the_slot_arrives_whole_and_runs(watched, fake, make, size):
    image = make(size)
    watched.put(HEAP, image)
    assert watched.run(OP_MODULE_LOAD, [7, HEAP, size])[1] == OK
    assert set(fake.images()) == {(size, hash_of(image))}
    must_run(watched, 7)


@BINARIES
def test_a_binary_in_parts_arrives_whole_and_runs(watched, fake, make):
    image = make(3 * PART + 1)
    send(watched, 7, image)
    assert load(watched, 7, len(image)) == OK
    assert set(fake.images()) == {(len(image), hash_of(image))}
    must_run(watched, 7)


@pytest.mark.parametrize("name, make", [("kernels.cubin", cubin), ("kernels.fatbin", fatbin)])
def test_a_program_on_the_library_sends_every_byte_of_a_binary(cuda, fake, place, name, make):
    image = make(100001)
    (place / name).write_bytes(image)
    fake.keep_log()
    fake.order("images 1", "entry fill 8 4 8", "entry vector_add 8 8 8 8")
    told = run_gpu_probe(cuda(), "image", place / name)
    assert told["image_bytes"] == len(image)
    assert set(fake.images()) == {(len(image), hash_of(image))}


@pytest.mark.skipif(cuda_support.ON_GPU, reason="asks the cpu backend alone")
def test_the_cpu_backend_takes_no_parts(mediator, peer):
    session = peer(mediator(channels="window")).open()
    assert part(session, 7, b"x", 0, 1) == 3  # not supported
