# SPDX-License-Identifier: Apache-2.0
"""Sessions with several devices: each is one's own, a session runs when it has all of them,
and who wants one of them never waits for ever.

Processors are devices of their own to the scheduler; what NVIDIA's library is asked is seen
on its double with two GPUs, and with VGPU_TEST_GPU=1 on two of this host.
"""

import os
import signal
import subprocess
import threading

import cuda_support
import pytest
import support
import window_peer
from control_support import admin, control, make_registered
from cuda_support import run_probe, workers_of
from support import wait_until
from window_peer import (ARENA, DEVICE_LOST, HEAP, OK, OP_ALLOC, OP_COPY, OP_COPY_IN, OP_COPY_OUT,
                         OP_FREE, OP_PING, OP_QUERY, OP_RESET, OP_SET, OP_TEXT, PeerError)

BAD_ADDRESS, BAD_HANDLE = 5, 6
OP_STREAM_CREATE, OP_STREAM_DESTROY, OP_STREAM_WAIT = 32, 33, 35
OP_EVENT_CREATE, OP_EVENT_RECORD, OP_DEVICE_SYNC, OP_LAUNCH = 36, 38, 42, 50
QUERY_DEVICES = 6
FOREVER = 60000
ONE = 1 | 1 << 32
PAIR = "cpu:0 cpu:1\nsession_devices = 2"


def spin(session, milliseconds=FOREVER, device=0):
    """Submits it and does not wait."""
    data = f"SPIN {milliseconds}".encode()
    session.put(ARENA + 8192, data)
    return session.submit(OP_TEXT, [ARENA + 8192, ARENA + 12288, len(data) | 1024 << 32],
                          device=device)


def count_devices(session):
    value, status = session.run(OP_QUERY, [QUERY_DEVICES])
    assert status == OK
    return value


def alloc(session, device, size=4096):
    address, status = session.run(OP_ALLOC, [size], device=device)
    assert status == OK, status
    return address


def fill(session, device, address, value, count=1024):
    assert session.run(OP_SET, [address, count, value | 4 << 32], device=device)[1] == OK


def words(session, device, address, count=1024):
    assert session.run(OP_COPY_OUT, [HEAP, address, 4 * count], device=device)[1] == OK
    return session.get(HEAP, 4 * count)


def pattern(value, count=1024):
    return value.to_bytes(4, "little") * count


def begin_anew(session):
    assert session.run(OP_PING)[1] == DEVICE_LOST
    assert session.run(OP_RESET)[1] == OK


def running(m):
    """{device: who has its grant, or None}"""
    with control(m) as c:
        return {d["name"]: d["running"] and d["running"]["vm_id"]
                for d in c.call("queue")["devices"]}


def waiting(m):
    """{device: who waits for it}"""
    with control(m) as c:
        return {d["name"]: [place["vm_id"] for place in d["waiting"]]
                for d in c.call("queue")["devices"]}


def reload(m, **pools):
    m.pools.update(pools)
    m.read_again()


# --- what is whose --------------------------------------------------------------------


def check_data(session, number):
    """Each device has its own memory, and what is copied between two is right."""
    addresses = [alloc(session, device) for device in range(number)]
    for device, address in enumerate(addresses):
        fill(session, device, address, 0x1000 + device)
    for device, address in enumerate(addresses):
        assert words(session, device, address) == pattern(0x1000 + device)
        other = addresses[(device + 1) % number]
        assert session.run(OP_SET, [other, 1, 1 | 4 << 32], device=device)[1] == BAD_ADDRESS
    session.put(HEAP + 8192, pattern(0xABCD))
    assert session.run(OP_COPY_IN, [addresses[0], HEAP + 8192, 4096])[1] == OK
    for device in range(1, number):
        copy = [addresses[device], addresses[device - 1], 4096]
        assert session.run(OP_COPY, copy, device=device - device % 2)[1] == OK
        assert words(session, device, addresses[device]) == pattern(0xABCD)
    for address in addresses:
        assert session.run(OP_FREE, [address])[1] == OK


def test_a_guest_has_as_many_devices_as_its_pool_says(mediator, peer):
    m = mediator({1: ("A", 1), 2: ("B", 1)},
                 pools={"A": "cpu:0 cpu:1 cpu:2\nsession_devices = 3", "B": "cpu:0 cpu:1"})
    three, one = peer(m, 1).open(), peer(m, 2).open()
    assert (count_devices(three), count_devices(one)) == (3, 1)
    check_data(three, 3)
    one.ping()
    with control(m) as c:
        assert [d["device"] for d in c.vm(1)["devices"]] == ["cpu:0", "cpu:1", "cpu:2"]
        assert [p["session_devices"] for p in c.call("status")["pools"]] == [3, 1]


def test_a_device_that_a_session_has_not_is_refused_in_every_operation(mediator, peer):
    m = mediator({1: ("A", 1)}, pools={"A": PAIR})
    session = peer(m).open()
    for opcode in [1, 2, 3, 4, 5, *range(16, 22), *range(32, 43), *range(48, 51)]:
        for device in 2, 3, 255:
            assert session.run(opcode, device=device)[1] in (BAD_HANDLE, 1), opcode
            assert session.run(OP_PING, device=device)[1] == BAD_HANDLE
    check_data(session, 2)


def test_a_text_command_runs_on_each_device(mediator, peer):
    m = mediator({1: ("A", 1)}, pools={"A": PAIR})
    session = peer(m).open()
    spin(session, 1, device=1)
    assert session.wait()[0][2] == OK


def test_a_program_on_the_library_uses_both_devices(mediator):
    m = mediator({1: ("A", 1)}, pools={"A": PAIR})
    run_probe(m, "devices")


# --- all or nothing -------------------------------------------------------------------


def test_a_session_runs_when_it_has_all_its_devices(mediator, peer):
    m = mediator({1: ("A", 1), 2: ("B", 1)}, pools={"A": PAIR, "B": "cpu:1"})
    both, one = peer(m, 1).open(), peer(m, 2).open()
    spin(one)
    wait_until(lambda: m.begun(2) == 1, "the other VM at work")
    cookie = both.submit(OP_PING)
    wait_until(lambda: waiting(m)["cpu:1"] == [1], lambda: f"it waits: {waiting(m)}")
    assert running(m) == {"cpu:0": 1, "cpu:1": 2}
    assert both.take() == []
    os.kill(workers_of(m, 2)[0], signal.SIGKILL)
    assert both.wait()[0] == (cookie, 0, OK)


def test_while_it_runs_all_its_devices_are_its_own(mediator, peer):
    m = mediator({1: ("A", 1), 2: ("B", 1), 3: ("C", 1)},
                 pools={"A": PAIR, "B": "cpu:0", "C": "cpu:1"})
    both, zero, one = peer(m, 1).open(), peer(m, 2).open(), peer(m, 3).open()
    spin(both, 1500)
    wait_until(lambda: m.begun(1) == 1, "both devices taken")
    zero.submit(OP_PING)
    one.submit(OP_PING)
    wait_until(lambda: waiting(m) == {"cpu:0": [2], "cpu:1": [3]}, "the others waiting")
    assert running(m) == {"cpu:0": 1, "cpu:1": 1}
    assert both.wait()[0][2] == OK
    assert zero.wait()[0][2] == OK and one.wait()[0][2] == OK
    assert running(m) == {"cpu:0": 2, "cpu:1": 3}


def test_it_keeps_its_devices_until_somebody_wants_one(mediator, peer):
    m = mediator({1: ("A", 1), 2: ("B", 1)}, pools={"A": PAIR, "B": "cpu:1"})
    both, one = peer(m, 1).open(), peer(m, 2).open()
    both.ping()
    assert running(m) == {"cpu:0": 1, "cpu:1": 1}
    for _ in range(100):
        one.ping()
        both.ping()
    wait_until(lambda: running(m) == {"cpu:0": 1, "cpu:1": 1}, "both devices its own")


def test_device_time_is_that_of_all_its_devices(mediator, peer):
    m = mediator({1: ("A", 1)}, pools={"A": PAIR})
    session = peer(m).open()
    spin(session, 300)
    session.wait()
    with control(m) as c:
        wait_until(lambda: c.vm(1)["device_us"] >= 600000, "twice the time")


class Load(threading.Thread):
    """Submits one operation after the other until it is stopped."""

    def __init__(self, session, devices):
        super().__init__()
        self.session, self.devices = session, devices
        self.done, self.stopped, self.error = 0, False, None

    def run(self):
        try:
            while not self.stopped:
                _, status = self.session.run(OP_QUERY, [QUERY_DEVICES],
                                             device=self.done % self.devices)
                assert status == OK, status
                self.done += 1
        except (PeerError, AssertionError) as error:
            self.error = error


def test_sessions_of_one_and_of_several_devices_all_go_on(mediator, peer):
    """Overlapping pools on three devices, in every order of names."""
    pools = {"A": "cpu:0 cpu:1 cpu:2\nsession_devices = 2", "B": "cpu:2 cpu:1\nsession_devices = 2",
             "C": "cpu:1", "D": "cpu:0 cpu:2", "E": "cpu:2 cpu:0 cpu:1\nsession_devices = 3"}
    m = mediator({vm: (pool, 1) for vm, pool in enumerate(pools, 1)}, pools=pools)
    loads = [Load(peer(m, vm).open(), number) for vm, number in enumerate([2, 2, 1, 1, 3], 1)]
    for load in loads:
        load.start()
    wait_until(lambda: all(load.done >= 100 or load.error for load in loads),
               lambda: f"{[load.done for load in loads]} done")
    for load in loads:
        load.stopped = True
    for load in loads:
        load.join()
        assert load.error is None
    wait_until(lambda: not any(waiting(m).values()), "nothing left waiting")


def test_who_gathers_devices_yields_to_a_higher_priority(mediator, peer):
    m = mediator({1: ("A", 0), 2: ("B", 2), 3: ("C", 2), 4: ("C", 0)},
                 pools={"A": PAIR, "B": "cpu:1", "C": "cpu:0"})
    both, busy, high, low = (peer(m, vm).open() for vm in (1, 2, 3, 4))
    spin(busy)
    wait_until(lambda: m.begun(2) == 1, "the second device taken")
    cookie = both.submit(OP_PING)
    wait_until(lambda: running(m)["cpu:0"] == 1, "the first device gathered")
    low.submit(OP_PING)
    wait_until(lambda: waiting(m)["cpu:0"] == [4], "its equal waiting")
    high.ping()
    wait_until(lambda: running(m)["cpu:0"] == 1 or waiting(m)["cpu:0"] == [1],
               "the first gathered again, or waited for")
    os.kill(workers_of(m, 2)[0], signal.SIGKILL)
    assert both.wait()[0] == (cookie, 0, OK)
    assert low.wait()[0][2] == OK


# --- devices that go ------------------------------------------------------------------


def test_a_processor_that_is_taken_away_is_replaced_by_another(mediator, peer):
    m = mediator({1: ("A", 1)}, pools={"A": "cpu:0 cpu:1 cpu:2\nsession_devices = 2"})
    session = peer(m).open()
    address = alloc(session, 1)
    reload(m, A="cpu:1 cpu:2 cpu:0\nsession_devices = 2")
    assert session.run(OP_FREE, [address])[1] == OK
    reload(m, A="cpu:1 cpu:2\nsession_devices = 2")
    # Processors are one device to workers, so nothing is lost.
    check_data(session, 2)
    with control(m) as c:
        assert {d["device"] for d in c.vm(1)["devices"]} == {"cpu:1", "cpu:2"}


def test_a_pool_with_fewer_devices_than_a_session_needs_refuses_until_it_has_them(
        mediator, peer):
    m = make_registered(mediator, {1: ("A", 1)})
    admin(m, "bind-device", "A", "cpu:0,cpu:1")
    admin(m, "update-pool", "A", "--session-devices", 2)
    session = peer(m).open()
    assert count_devices(session) == 2
    admin(m, "withdraw-device", "cpu:1")
    wait_until(lambda: session.run(OP_PING)[1] == window_peer.REFUSED_STATUS, "it refused")
    with pytest.raises(window_peer.Refused) as refused:
        peer(m).open()
    assert str(refused.value) == ("pool A: a session needs 2 devices of one kind, and it has 1: "
                                  "the administrator binds more to it, or lowers session_devices")
    admin(m, "return-device", "cpu:1")
    wait_until(lambda: session.run(OP_RESET)[1] == OK, "the session again")
    assert count_devices(session) == 2
    check_data(session, 2)


def test_a_changed_number_is_that_of_sessions_that_begin(mediator, peer):
    m = mediator({1: ("A", 1)}, pools={"A": PAIR})
    p = peer(m, slots=2)
    first = p.open(0)
    reload(m, A="cpu:0 cpu:1")
    assert count_devices(first) == 2
    assert count_devices(p.open(1)) == 1
    p.close_session(1)
    wait_until(lambda: len(workers_of(m, 1)) == 1, "the first session's worker alone")
    os.kill(workers_of(m, 1)[0], signal.SIGKILL)
    wait_until(lambda: first.run(OP_PING)[1] == DEVICE_LOST, "its end")
    assert first.run(OP_RESET)[1] == OK
    assert count_devices(first) == 1


# --- who is killed --------------------------------------------------------------------


def test_a_successor_has_as_many_devices(mediator, peer):
    m = mediator({1: ("A", 1), 2: ("B", 1)}, pools={"A": PAIR, "B": "cpu:1"})
    session, other = peer(m, 1).open(), peer(m, 2).open()
    spin(session)
    wait_until(lambda: m.begun(1) == 1, "it at work")
    os.kill(workers_of(m, 1)[0], signal.SIGKILL)
    assert session.wait()[0][2] == DEVICE_LOST
    other.ping()
    begin_anew(session)
    assert count_devices(session) == 2
    check_data(session, 2)


def test_who_gathers_devices_and_dies_gives_them_back(mediator, peer):
    m = mediator({1: ("A", 1), 2: ("B", 1), 3: ("C", 1)},
                 pools={"A": PAIR, "B": "cpu:1", "C": "cpu:0"})
    both, busy, zero = (peer(m, vm).open() for vm in (1, 2, 3))
    spin(busy)
    wait_until(lambda: m.begun(2) == 1, "the second device taken")
    both.submit(OP_PING)
    wait_until(lambda: running(m)["cpu:0"] == 1, "the first device gathered")
    os.kill(workers_of(m, 1)[0], signal.SIGKILL)
    zero.ping()
    assert both.wait()[0][2] == DEVICE_LOST


def test_a_session_goes_on_with_the_next_mediator(mediator, peer):
    m = mediator({1: ("A", 1), 2: ("B", 1)}, pools={"A": PAIR, "B": "cpu:1"})
    p = peer(m)
    session = p.open()
    address = alloc(session, 1)
    fill(session, 1, address, 0x5A5A)
    spin(session, 500)
    wait_until(lambda: m.begun(1) == 3, "it at work")
    m.stop_but_keep_workers()
    m.start()
    p.reconnect()
    assert session.wait()[0][2] == OK
    assert words(session, 1, address) == pattern(0x5A5A)
    with control(m) as c:
        assert {d["device"] for d in c.vm(1)["devices"]} == {"cpu:0", "cpu:1"}
    peer(m, 2).open().ping()


# --- GPUs -----------------------------------------------------------------------------


def gpus_of_host():
    """How many NVIDIA's tool lists."""
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


@pytest.fixture
def gpus(cuda, request):
    """gpus(number, ...): a mediator whose sessions have two of so many GPUs."""
    def make(number=2, **options):
        if not cuda_support.ON_GPU:
            request.getfixturevalue("fake").order(f"devices {number}")
        elif gpus_of_host() < number:
            pytest.skip(f"this host has not {number} GPUs")
        names = " ".join(f"cuda:{i}" for i in range(number))
        return cuda(vms={1: ("A", 1)}, pools={"A": f"{names}\nsession_devices = 2"}, **options)
    return make


def launch(session, device, name, *parameters):
    """A built-in kernel; its status."""
    session.put(ARENA + 16384, name.encode())
    session.put(ARENA + 16640, b"".join(p.to_bytes(8, "little") for p in parameters))
    return session.run(OP_LAUNCH, [ARENA + 16384 << 32, len(name) | ARENA + 16640 << 32,
                                   8 * len(parameters), ONE, ONE, ONE], device=device)[1]


def contexts(m):
    with control(m) as c:
        return c.vm(1)["contexts"]


def test_each_gpu_has_its_own_data(gpus, peer):
    m = gpus()
    session = peer(m).open()
    assert count_devices(session) == 2
    for _ in range(20):
        check_data(session, 2)


def test_a_program_on_the_library_uses_both_gpus(gpus):
    run_probe(gpus(), "devices")


def test_kernels_run_where_their_memory_is(gpus, peer):
    session = peer(gpus()).open()
    addresses = [alloc(session, device) for device in range(2)]
    for device, address in enumerate(addresses):
        assert launch(session, device, "fill", address, 0x3F800000 + device, 1024) == OK
        assert launch(session, 1 - device, "fill", address, 0, 1024) == BAD_ADDRESS
    for device, address in enumerate(addresses):
        assert session.run(OP_DEVICE_SYNC, device=device)[1] == OK
        assert words(session, device, address) == pattern(0x3F800000 + device)


def test_a_stream_waits_for_another_gpus_event(gpus, peer):
    session = peer(gpus()).open()
    zero, one = alloc(session, 0), alloc(session, 1)
    stream = {"device": 1, "stream": 7}
    assert session.run(OP_STREAM_CREATE, [7], device=1)[1] == OK
    assert session.run(OP_STREAM_CREATE, [8])[1] == OK
    assert session.run(OP_EVENT_CREATE, [9], device=1)[1] == OK
    assert session.run(OP_SET, [one, 1024, 0 | 4 << 32], **stream)[1] == OK
    for value in range(1, 20):
        session.put(ARENA + 16384, b"spin_us")
        session.put(ARENA + 16640, (5000).to_bytes(8, "little"))
        session.submit(OP_LAUNCH, [ARENA + 16384 << 32, 7 | ARENA + 16640 << 32, 8, ONE, ONE, ONE],
                       **stream)
        session.submit(OP_SET, [one, 1024, value | 4 << 32], **stream)
        session.submit(OP_EVENT_RECORD, [9], **stream)
        session.submit(OP_STREAM_WAIT, [9], stream=8)
        session.submit(OP_COPY, [zero, one, 4096], stream=8)
        session.submit(OP_COPY_OUT, [HEAP, zero, 4096], stream=8)
        assert all(status == OK for _, _, status in session.wait(6))
        assert session.get(HEAP, 4096) == pattern(value)


def test_a_stream_is_destroyed_on_the_gpu_that_it_was_made_on(gpus, peer):
    """A GPU has room for some thousands at a time: each comes back to the one that gave it."""
    session = peer(gpus()).open()
    for _ in range(20):
        for stream in range(1, 251):
            session.submit(OP_STREAM_CREATE, [stream], device=1, ring=False)
            session.submit(OP_STREAM_DESTROY, [stream], device=1, ring=False)
        session.publish(0)
        session.ring_doorbell()
        assert {status for _, _, status in session.wait(500)} == {OK}
    check_data(session, 2)


def test_the_first_work_of_a_gpu_may_wait_for_another_gpus_event(gpus, peer):
    session = peer(gpus()).open()
    assert session.run(OP_EVENT_CREATE, [9])[1] == OK
    assert session.run(OP_EVENT_RECORD, [9])[1] == OK
    assert session.run(OP_STREAM_WAIT, [9], device=1)[1] == OK
    check_data(session, 2)


def test_what_belongs_to_one_gpu_is_refused_on_the_other(gpus, peer):
    session = peer(gpus()).open()
    address = alloc(session, 0)
    assert session.run(OP_STREAM_CREATE, [7], device=1)[1] == OK
    assert session.run(OP_EVENT_CREATE, [9], device=1)[1] == OK
    assert session.run(OP_SET, [address, 1, 4 << 32], stream=7)[1] == BAD_HANDLE
    assert session.run(OP_EVENT_RECORD, [9])[1] == BAD_HANDLE
    assert session.run(OP_SET, [address, 1, 4 << 32], device=1, stream=7)[1] == BAD_ADDRESS
    check_data(session, 2)


def test_contexts_are_made_when_each_is_needed_and_given_up_alone(gpus, peer):
    m = gpus(worker_idle_ms=50)
    session = peer(m).open()
    assert session.run(OP_QUERY, [QUERY_DEVICES], device=1)[1] == OK
    assert contexts(m) == 0
    one = alloc(session, 1)
    assert contexts(m) == 1
    zero = alloc(session, 0)
    assert contexts(m) == 2
    fill(session, 0, zero, 0xBEEF)
    assert session.run(OP_FREE, [one])[1] == OK
    wait_until(lambda: contexts(m) == 1, "the second one's context given up")
    # The slot was pinned in that one.
    assert words(session, 0, zero) == pattern(0xBEEF)
    assert session.run(OP_FREE, [zero])[1] == OK
    wait_until(lambda: contexts(m) == 0, "none left")
    check_data(session, 2)


def test_each_gpu_may_reach_the_other(gpus, fake, peer):
    fake.keep_log()
    m = gpus()
    session = peer(m).open()
    pid, = workers_of(m, 1)
    alloc(session, 0)
    assert "cuCtxEnablePeerAccess" not in fake.calls(pid)
    alloc(session, 1)
    assert fake.calls(pid).count("cuCtxEnablePeerAccess") == 2


def test_gpus_that_cannot_reach_each_other_copy_right(gpus, fake, peer):
    fake.order("fail cuCtxEnablePeerAccess * 217")
    check_data(peer(gpus()).open(), 2)


BOTH_GPUS = {"A": "cuda:0 cuda:1\nsession_devices = 2", "B": "cuda:1", "C": "cuda:0"}


@pytest.fixture
def contested(cuda, fake, peer):
    """contested(cap): a mediator, and sessions of VMs 1 on both GPUs, 2 on the second, 3 on the
    first."""
    fake.order("devices 2")

    def make(contexts_per_device):
        m = cuda(vms={1: ("A", 1), 2: ("B", 1), 3: ("C", 1)}, pools=BOTH_GPUS, sessions_max=8,
                 contexts_per_device=contexts_per_device)
        return m, peer(m, 1).open(), peer(m, 2, slots=2), peer(m, 3, slots=2)
    return make


def begin_to_wait(m, session):
    cookie = session.submit(OP_ALLOC, [4096])
    with control(m) as c:
        wait_until(lambda: c.vm(1)["contexts_waiting"] == 1, "it waiting for a context")
    return cookie


def end_of(session, cookie):
    (got, _, status), = session.wait()
    assert (got, status) == (cookie, OK)


def test_a_session_waits_until_it_may_have_a_context_on_each_gpu(contested):
    m, both, one, zero = contested(2)
    keeps = [one.open(slot) for slot in range(2)]
    addresses = [alloc(session, 0) for session in keeps]
    cookie = begin_to_wait(m, both)
    for slot in range(2):  # they go round the one that is kept for it
        session = zero.open(slot)
        assert session.run(OP_FREE, [alloc(session, 0)])[1] == OK
    assert keeps[0].run(OP_FREE, [addresses[0]])[1] == OK
    end_of(both, cookie)


def test_what_is_kept_for_a_session_in_vain_is_given_to_others_after_a_while(contested):
    """There is one on each GPU, and that of the second one is not given up."""
    m, both, one, zero = contested(1)
    keeps = one.open(0)
    address = alloc(keeps, 0)
    cookie = begin_to_wait(m, both)
    session = zero.open(0)
    assert session.run(OP_FREE, [alloc(session, 0)])[1] == OK
    assert keeps.run(OP_FREE, [address])[1] == OK
    end_of(both, cookie)


def test_a_session_gets_its_contexts_though_others_never_leave_both_free(contested):
    """On each GPU two sessions with work without end take its only context in turns."""
    m, both, one, zero = contested(1)
    busy = [p.open(slot) for p in (one, zero) for slot in range(2)]
    for session in busy:
        for _ in range(1000):
            spin(session, 20)
    end_of(both, begin_to_wait(m, both))
    for session in busy:
        assert len(session.take()) < 1000, "it waited for their end"


def test_with_a_slot_that_cannot_be_pinned_both_gpus_copy_right(gpus, fake, peer):
    fake.order("fail cuMemHostRegister_v2 2 1", "fail cuMemHostRegister_v2 4 1")
    check_data(peer(gpus()).open(), 2)


def test_a_gpu_that_is_lost_is_told_once(gpus, fake, peer):
    m = gpus()
    session = peer(m).open()
    address = alloc(session, 1)
    fake.order("fail cuMemsetD32Async * 214")
    assert session.run(OP_SET, [address, 1, 4 << 32], device=1)[1] == DEVICE_LOST
    fake.order_only("devices 2")
    wait_until(lambda: session.run(OP_RESET)[1] == OK, "the session again")
    assert len(m.events("lost")) == 1
    check_data(session, 2)


def test_a_gpu_that_is_taken_away_is_told_once_and_replaced(gpus, peer):
    m = gpus(3)
    session = peer(m).open()
    check_data(session, 2)
    with control(m) as c:
        assert {d["device"] for d in c.vm(1)["devices"]} == {"cuda:0", "cuda:1"}
    reload(m, A="cuda:1 cuda:2\nsession_devices = 2")
    m.wait_event("lost", slot=0)
    begin_anew(session)
    check_data(session, 2)
    assert len(m.events("lost")) == 1
    with control(m) as c:
        assert {d["device"] for d in c.vm(1)["devices"]} == {"cuda:1", "cuda:2"}


def test_a_session_whose_worker_is_killed_has_both_gpus_again(gpus, peer):
    m = gpus()
    session = peer(m).open()
    for _ in range(3):
        check_data(session, 2)
        alloc(session, 1)
        pid, = workers_of(m, 1)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: set(workers_of(m, 1)) - {pid}, "a successor")
        begin_anew(session)


# --- configuration --------------------------------------------------------------------


@pytest.mark.parametrize("text,message", [
    ("cpu:0 cpu:1\nsession_devices = 3",
     "session_devices = 3, and device = cpu:0 cpu:1 are 2: expected at most as many"),
    ("MIG-1-2 MIG-3-4\nsession_devices = 2", "session_devices = 2 with MIG instances: expected 1"),
    ("cpu:0\nsession_devices = 0", "a whole number from 1 to 8"),
    ("cpu:0\nsession_devices = 9", "a whole number from 1 to 8"),
])
def test_a_number_that_cannot_be_is_told(mediator, text, message):
    m = mediator({1: ("A", 1)}, pools={"A": text}, start=False)
    result = support.run("--config", m.config)
    assert result.returncode != 0
    assert message in result.stderr
