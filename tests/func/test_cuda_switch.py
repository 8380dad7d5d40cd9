# SPDX-License-Identifier: Apache-2.0
"""A session with two GPUs whose driver will not go from one to the other: its operations must
not run on the wrong one.  On a double of NVIDIA's library.
"""

import struct

import pytest
from cuda_support import workers_of
from support import wait_until
from window_peer import (ARENA, COMMAND_FAILED, DEVICE_LOST, HEAP, OK, OP_ALLOC, OP_COPY,
                         OP_COPY_IN, OP_COPY_OUT, OP_FREE, OP_RESET, OP_SET, OP_TEXT)

OP_STREAM_CREATE, OP_STREAM_DESTROY, OP_STREAM_WAIT = 32, 33, 35
OP_EVENT_CREATE, OP_EVENT_DESTROY, OP_EVENT_RECORD, OP_EVENT_ELAPSED = 36, 37, 38, 41
OP_DEVICE_SYNC, OP_MODULE_LOAD, OP_LAUNCH = 42, 48, 50
ONE = 1 | 1 << 32
WORD, IMAGE = ARENA + 8192, ARENA + 16384
SIZE = 4096
SWITCH = "cuCtxSetCurrent"
PTX = (b".version 7.0\n.target sm_75\n.address_size 64\n"
       b".visible .entry store(.param .u64 target, .param .u32 value)\n{ ret; }\n")
TEXT = b"VECTOR_ADD"
KERNEL = b"increment"


def put_words(session, address):
    """What operations name in the slot."""
    session.put(WORD, TEXT)
    session.put(WORD + 64, KERNEL)
    session.put(WORD + 128, struct.pack("<2Q", address, 1))
    session.put(IMAGE, PTX)


# (opcode, words) with `own` memory on the operation's device, the `other` device's, and the handle
# of its own stream and event.
OPERATIONS = {
    "alloc": lambda own, other, handle: (OP_ALLOC, [4 << 20]),
    "free": lambda own, other, handle: (OP_FREE, [own]),
    "set": lambda own, other, handle: (OP_SET, [own, 16, 1 | 4 << 32]),
    "copy in": lambda own, other, handle: (OP_COPY_IN, [own, HEAP, SIZE]),
    "copy out": lambda own, other, handle: (OP_COPY_OUT, [HEAP, own, SIZE]),
    "copy": lambda own, other, handle: (OP_COPY, [own, own + SIZE, SIZE]),
    "copy that overlaps": lambda own, other, handle: (OP_COPY, [own, own + 16, SIZE]),
    "copy from the other": lambda own, other, handle: (OP_COPY, [own, other, SIZE]),
    "copy to the other": lambda own, other, handle: (OP_COPY, [other, own, SIZE]),
    "stream create": lambda own, other, handle: (OP_STREAM_CREATE, [9]),
    "stream destroy": lambda own, other, handle: (OP_STREAM_DESTROY, [handle]),
    "stream wait": lambda own, other, handle: (OP_STREAM_WAIT, [3 - handle]),
    "event create": lambda own, other, handle: (OP_EVENT_CREATE, [9]),
    "event destroy": lambda own, other, handle: (OP_EVENT_DESTROY, [handle]),
    "event record": lambda own, other, handle: (OP_EVENT_RECORD, [handle]),
    "event elapsed": lambda own, other, handle: (OP_EVENT_ELAPSED, [handle | handle << 32]),
    "sync": lambda own, other, handle: (OP_DEVICE_SYNC, []),
    "text": lambda own, other, handle: (OP_TEXT,
                                        [WORD, ARENA + 12288, len(TEXT) | 1024 << 32]),
    "module load": lambda own, other, handle: (OP_MODULE_LOAD, [7, IMAGE, len(PTX)]),
    "launch": lambda own, other, handle: (OP_LAUNCH, [WORD + 64 << 32,
                                                      len(KERNEL) | WORD + 128 << 32, 16,
                                                      ONE, ONE, ONE]),
}


@pytest.fixture
def pair(cuda, fake, peer):
    """A session with two GPUs, something of its own on each, and its worker."""
    fake.order("devices 2")
    fake.keep_log()
    m = cuda(vms={1: ("A", 1)}, pools={"A": "cuda:0 cuda:1\nsession_devices = 2"})
    session = peer(m, slots=1).open()
    pid, = workers_of(m, 1)
    addresses = []
    for device in (0, 1):
        address, status = session.run(OP_ALLOC, [64 << 10], device=device)
        assert status == OK
        addresses.append(address)
        stream = device + 1
        for opcode, words, options in (
                (OP_STREAM_CREATE, [stream], {}), (OP_EVENT_CREATE, [stream], {}),
                (OP_SET, [address, 16, 4 << 32], {}),
                (OP_EVENT_RECORD, [stream], {"stream": stream}), (OP_DEVICE_SYNC, [], {})):
            assert session.run(opcode, words, device=device, **options)[1] == OK
    return m, session, pid, addresses


@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_that_cannot_go_to_its_gpu_goes_to_no_other(pair, fake, operation, device):
    m, session, pid, addresses = pair
    opcode, words = OPERATIONS[operation](addresses[device], addresses[1 - device],
                                              device + 1)
    put_words(session, addresses[device])
    # The driver's current one is the other one now.
    assert session.run(OP_SET, [addresses[1 - device], 16, 4 << 32], device=1 - device)[1] == OK
    before = len(fake.calls(pid))
    fake.order(f"only {pid}", f"fail {SWITCH} * 999")
    _, status = session.run(opcode, words, device=device)
    wait_until(lambda: workers_of(m, 1) != [pid], "the end of the worker")
    calls = fake.calls(pid)[before:]
    behind = calls[calls.index(SWITCH):]
    assert set(behind) <= {SWITCH, "cuGetErrorName"}, behind
    # To destroy an event never fails, and a text command has one error only: the loss comes next.
    assert status == {OP_TEXT: COMMAND_FAILED, OP_EVENT_DESTROY: OK}.get(opcode, DEVICE_LOST)
    assert session.run(OP_SET, [addresses[device], 16, 4 << 32], device=device)[1] == DEVICE_LOST
    fake.order_only("devices 2")
    assert session.run(OP_RESET)[1] == OK
    for at in (0, 1):
        address, status = session.run(OP_ALLOC, [4096], device=at)
        assert status == OK and session.run(OP_SET, [address, 16, 4 << 32], device=at)[1] == OK
