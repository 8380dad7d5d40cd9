# SPDX-License-Identifier: Apache-2.0
"""Pools of several devices: where a session is placed, what runs at the same time, and
what becomes of sessions whose device is taken away.

Processors are devices of their own to the scheduler, and one device to their workers; what
a session loses with its GPU is tried with two GPUs of the double.
"""

import subprocess

import cuda_support
import pytest
import support
from control_support import admin, control, make_registered
from support import wait_until
from window_peer import (ARENA, DEVICE_LOST, HEAP, OK, OP_ALLOC, OP_FREE, OP_PING, OP_RESET,
                         OP_TEXT)

OP_STREAM_CREATE, OP_EVENT_CREATE, OP_EVENT_RECORD, OP_MODULE_LOAD = 32, 36, 38, 48
PTX = b".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry k()\n{\n ret;\n}\n\0"
FOREVER = 60000
TWO = {"A": "cpu:0 cpu:1"}


def spin(session, milliseconds=FOREVER):
    """Submits it and does not wait."""
    data = f"SPIN {milliseconds}".encode()
    session.put(ARENA + 8192, data)
    return session.submit(OP_TEXT, [ARENA + 8192, ARENA + 12288, len(data) | 1024 << 32])


def devices_of(m, vm_id=1):
    """{device: sessions} of a VM."""
    with control(m) as c:
        return {d["device"]: d["sessions"] for d in c.vm(vm_id)["devices"]}


def queues(m):
    """{device: (who runs, who waits)}"""
    def ids(places):
        return [place["vm_id"] for place in places]

    with control(m) as c:
        return {d["name"]: (ids([d["running"]] if d["running"] else []), ids(d["waiting"]))
                for d in c.call("queue")["devices"]}


def wait_queues(m, running, waiting):
    """Both devices have these VMs."""
    wait_until(lambda: queues(m) == {d: (running, waiting) for d in ("cpu:0", "cpu:1")},
               lambda: f"running {running}, waiting {waiting}: {queues(m)}")


def reload(m, **pools):
    m.pools.update(pools)
    m.read_again()


# --- placement ------------------------------------------------------------------------


def test_sessions_of_one_vm_on_two_devices_run_at_the_same_time(mediator, peer):
    m = mediator({1: ("A", 1)}, pools=TWO)
    p = peer(m)
    busy, other = p.open(0), p.open(1)
    spin(busy)
    other.ping()
    assert devices_of(m) == {"cpu:0": 1, "cpu:1": 1}


def test_a_session_goes_where_the_fewest_sessions_of_all_vms_are(mediator, peer):
    m = mediator({1: ("A", 1), 2: ("A", 1), 3: ("A", 1)}, pools=TWO)
    first, second = peer(m, 1), peer(m, 2, slots=3)
    first.open(0)
    second.open(0)
    second.open(1)
    second.open(2)
    assert devices_of(m, 2) == {"cpu:0": 1, "cpu:1": 2}
    second.close_session(0)
    second.close_session(2)
    wait_until(lambda: sum(devices_of(m, 2).values()) == 1, "two sessions to be gone")
    third = peer(m, 3)
    third.open(0)
    assert devices_of(m, 3) == {"cpu:1": 1}


def test_of_two_devices_with_as_many_sessions_the_one_that_was_used_less_is_taken(mediator, peer):
    m = mediator({1: ("A", 1), 2: ("A", 1)}, pools=TWO)
    p = peer(m)
    session = p.open(0)
    spin(session, 200)
    session.wait()
    p.close_session(0)
    wait_until(lambda: not devices_of(m), "the session to be gone")
    p.open(1)
    assert devices_of(m) == {"cpu:1": 1}


def test_a_session_goes_where_the_least_is_to_be_done_however_many_sessions_are_there(mediator,
                                                                                     peer):
    m = mediator({1: ("A", 1), 2: ("A", 1)}, pools=TWO)
    spin(peer(m, 1).open(0))
    wait_until(lambda: m.begun(1) == 1, "the first VM at work")
    idle = peer(m, 2, slots=3)
    for slot in range(3):
        idle.open(slot)
    assert devices_of(m, 1) == {"cpu:0": 1} and devices_of(m, 2) == {"cpu:1": 3}


def test_what_is_to_be_done_is_told_by_how_long_it_took_before(mediator, peer):
    m = mediator({1: ("A", 1), 2: ("A", 1), 3: ("A", 1)}, pools=TWO)
    long, short = peer(m, 1).open(0), peer(m, 2).open(0)
    spin(long, 300)
    long.wait()
    for _ in range(32):
        short.ping()
    spin(long)
    spin(short)
    wait_until(lambda: m.begun(1) == 2 and m.begun(2) == 33, "both at work")
    third = peer(m, 3)
    third.open(0)
    third.open(1)
    assert devices_of(m, 3) == {"cpu:1": 2}


def test_a_packed_pool_fills_one_device_after_the_other(mediator, peer):
    m = mediator({1: ("A", 1)}, pools={"A": "cpu:0 cpu:1\nplacement = pack"}, sessions_per_device=2)
    p = peer(m, slots=4)
    seen = []
    for slot in range(4):
        p.open(slot)
        seen.append(devices_of(m))
    assert seen == [{"cpu:0": 1}, {"cpu:0": 2}, {"cpu:0": 2, "cpu:1": 1}, {"cpu:0": 2, "cpu:1": 2}]


def test_file_requests_of_two_vms_run_on_two_devices(mediator):
    m = mediator({1: ("A", 1), 2: ("A", 1)}, pools=TWO)
    pid = m.occupy(1)
    assert m.vm(2).ask("PING") == "1:PONG"
    assert devices_of(m, 1) == {"cpu:0": 1} and devices_of(m, 2) == {"cpu:1": 1}
    m.release(pid)


def test_a_vm_waits_in_the_queue_of_each_device_that_it_has_sessions_on(mediator, peer):
    m = mediator({1: ("A", 1), 2: ("A", 2)}, pools=TWO)
    first, second = peer(m, 1), peer(m, 2)
    sessions = [p.open(slot) for p in (first, second) for slot in (0, 1)]
    for session in sessions[:2]:
        spin(session)
    wait_until(lambda: m.begun(1) == 2, "the first VM at work on both")
    for session in sessions[2:]:
        spin(session)
    wait_queues(m, [1], [2])


def test_a_session_keeps_its_device_over_the_mediators_end(mediator, peer):
    m = mediator({1: ("A", 1)}, pools=TWO)
    p = peer(m)
    p.open(0)
    last = p.open(1)
    p.close_session(0)
    wait_until(lambda: devices_of(m) == {"cpu:1": 1}, "one session")
    m.stop_but_keep_workers()
    m.start()
    p.reconnect()
    last.ping()
    assert devices_of(m) == {"cpu:1": 1}


# --- changes --------------------------------------------------------------------------


def test_what_waits_for_a_device_that_is_taken_away_goes_to_another(mediator):
    m = mediator({vm: ("A", 1) for vm in (1, 2, 3)}, pools=TWO)
    first = m.occupy(1)
    second = m.occupy(2)
    m.queue(3)
    assert queues(m) == {"cpu:0": ([1], [3]), "cpu:1": ([2], [])}
    reload(m, A="cpu:1")
    assert queues(m) == {"cpu:0": ([1], []), "cpu:1": ([2], [3])}
    m.release(second)
    assert m.vm(3).wait_answer() == "1:PONG 3"
    assert m.events("lost") == []
    m.release(first)


def test_a_device_that_a_pool_gets_is_used_by_the_next_session(mediator, peer):
    m = mediator({1: ("A", 1)}, pools={"A": "cpu:0"})
    p = peer(m)
    spin(p.open(0))
    reload(m, A="cpu:0 cpu:1")
    p.open(1).ping()
    assert devices_of(m) == {"cpu:0": 1, "cpu:1": 1}


def test_sessions_that_sit_on_one_device_are_spread_when_they_have_work_again(mediator, peer):
    m = mediator({vm: ("A", 1) for vm in range(1, 5)}, pools={"A": "cpu:0"})
    sessions = [peer(m, vm).open(0) for vm in range(1, 5)]

    def work():
        for session in sessions:
            session.ping()
        where = [devices_of(m, vm) for vm in range(1, 5)]
        return [where.count({device: 1}) for device in ("cpu:0", "cpu:1")]

    assert work() == [4, 0]
    reload(m, A="cpu:0 cpu:1")
    wait_until(lambda: work() == [2, 2], lambda: f"two on each device: {work()}")
    reload(m, A="cpu:0")
    wait_until(lambda: work() == [4, 0], lambda: f"all back: {work()}")
    reload(m, A="cpu:0 cpu:1\nplacement = pack")
    assert work() == work() == [4, 0]


def test_a_session_keeps_its_device_while_its_memory_is_there(mediator, peer):
    m = mediator({1: ("A", 1), 2: ("A", 1)}, pools={"A": "cpu:0"})
    one, other = peer(m, 1).open(0), peer(m, 2).open(0)
    address = one.run(OP_ALLOC, [4096])[0]
    assert other.run(OP_ALLOC, [4096])[1] == OK
    reload(m, A="cpu:0 cpu:1")

    def work():
        """In turn, so that none keeps the device as one that is alone there."""
        one.ping()
        other.ping()
        return devices_of(m, 1), devices_of(m, 2)

    for _ in range(5):
        assert work() == ({"cpu:0": 1}, {"cpu:0": 1})
    assert one.run(OP_FREE, [address])[1] == OK
    wait_until(lambda: work() == ({"cpu:1": 1}, {"cpu:0": 1}), lambda: f"one to move: {work()}")


def test_file_requests_of_machines_that_sit_on_one_device_are_spread(mediator):
    m = mediator({1: ("A", 1), 2: ("A", 1)}, pools={"A": "cpu:0"})
    for vm in (1, 2):
        assert m.vm(vm).ask("PING") == "1:PONG"
    reload(m, A="cpu:0 cpu:1")
    for vm in (1, 2):
        assert m.vm(vm).ask("PING") == "1:PONG"
    assert sorted([*devices_of(m, 1), *devices_of(m, 2)]) == ["cpu:0", "cpu:1"]


def test_priorities_count_on_each_device(mediator, peer):
    m = mediator({1: ("A", 0), 2: ("A", 0), 3: ("A", 0)}, pools=TWO)
    busy, low, high = (peer(m, vm) for vm in (1, 2, 3))
    sessions = [p.open(slot) for p in (busy, low, high) for slot in (0, 1)]
    for i, waiting in (0, []), (2, [2]), (4, [2, 3]):
        for session in sessions[i:i + 2]:
            spin(session)
        wait_until(lambda: m.begun(1) == 2, "the first VM at work on both")
        wait_queues(m, [1], waiting)
    m.vms[3] = ("A", 2)
    reload(m)
    wait_queues(m, [1], [3, 2])


# --- GPUs -----------------------------------------------------------------------------


def gpus_of_host():
    """How many NVIDIA's tool lists."""
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


@pytest.fixture
def two_gpus(cuda, request):
    if not cuda_support.ON_GPU:
        request.getfixturevalue("fake").order("devices 2")
    elif gpus_of_host() < 2:
        pytest.skip("this host has one GPU")
    return cuda(vms={1: ("A", 1)}, pools={"A": "cuda:0 cuda:1"})


def test_a_gpu_that_is_taken_away_costs_its_own_sessions_only(two_gpus, peer):
    m = two_gpus
    p = peer(m)
    stays, moves = p.open(0), p.open(1)
    stays.ping()
    moves.ping()
    assert devices_of(m) == {"cuda:0": 1, "cuda:1": 1}
    reload(m, A="cuda:0")
    m.wait_event("lost", slot=1)
    assert moves.run(OP_PING)[1] == DEVICE_LOST
    assert moves.run(OP_RESET)[1] == OK
    moves.ping()
    stays.ping()
    assert devices_of(m) == {"cuda:0": 2}
    assert m.events("lost", slot=0) == []


def test_a_session_can_lose_its_gpu_to_the_processor(two_gpus, peer):
    m = two_gpus
    session = peer(m).open(0)
    session.ping()
    reload(m, A="cpu:0")
    m.wait_event("lost", slot=0)
    assert session.run(OP_PING)[1] == DEVICE_LOST
    assert devices_of(m) == {"cpu:0": 1}


# --- from one GPU to another ----------------------------------------------------------


class OneGpu:
    """one_gpu(vms): a mediator whose pool has one of two GPUs; contexts without anything in them
    are given up soon."""

    def __init__(self, cuda, fake):
        self.cuda = cuda
        self.fake = fake  # None: real GPUs

    def __call__(self, vms=2, **options):
        options = {"worker_idle_ms": 20, **options}
        return self.cuda(vms={vm: ("A", 1) for vm in range(1, vms + 1)},
                         pools={"A": "cuda:0", "B": "cuda:1"}, **options)

    def expect_contexts(self, pid, *devices):
        """On these the process has made contexts, one after the other; real GPUs do not tell."""
        assert not self.fake or self.fake.devices(pid) == list(devices)


@pytest.fixture
def one_gpu(cuda, request):
    fake = None
    if not cuda_support.ON_GPU:
        fake = request.getfixturevalue("fake")
        fake.order("devices 2", "contexts 1")
        fake.keep_log()
    elif gpus_of_host() < 2:
        pytest.skip("this host has one GPU")
    return OneGpu(cuda, fake)


def give_both(m):
    reload(m, A="cuda:0 cuda:1")


def compute(session):
    """Something that needs a context and keeps nothing in it."""
    status, answer = session.text("VECTOR_ADD")
    assert status == OK, answer


def contexts_of(m, vm_id):
    with control(m) as c:
        return c.vm(vm_id)["contexts"]


def contexts_on(m):
    """{device: sessions that have a context there}"""
    with control(m) as c:
        return {d["name"]: d["contexts"] for d in c.call("status")["devices"]}


def busy_us(m):
    """{device: its time that was used}"""
    with control(m) as c:
        return {d["name"]: d["busy_us"] for d in c.call("stats")["devices"]}


def compute_and_rest(m, session, vm_id):
    compute(session)
    wait_until(lambda: contexts_of(m, vm_id) == 0, "an empty context given up")


def test_an_idle_session_that_holds_nothing_goes_to_the_gpu_that_has_less_to_do(one_gpu, peer):
    m = one_gpu()
    busy, idle = peer(m, 1).open(0), peer(m, 2).open(0)
    compute_and_rest(m, idle, 2)
    pid, = cuda_support.workers_of(m, 2)
    spin(busy)
    wait_until(lambda: m.begun(1) == 1, "the first VM at work")
    give_both(m)
    assert devices_of(m, 2) == {"cuda:0": 1}
    address, status = idle.run(OP_ALLOC, [4096])
    assert status == OK
    assert (devices_of(m, 1), devices_of(m, 2)) == ({"cuda:0": 1}, {"cuda:1": 1})
    assert contexts_on(m) == {"cuda:0": 1, "cuda:1": 1}
    one_gpu.expect_contexts(pid, 0, 1)
    assert idle.run(OP_FREE, [address])[1] == OK
    assert cuda_support.workers_of(m, 2) == [pid]
    assert m.events("lost") == []


def test_one_that_has_done_nothing_yet_goes_too(one_gpu, peer):
    m = one_gpu()
    busy, new = peer(m, 1).open(0), peer(m, 2).open(0)
    spin(busy)
    wait_until(lambda: m.begun(1) == 1, "the first VM at work")
    give_both(m)
    compute(new)
    pid, = cuda_support.workers_of(m, 2)
    one_gpu.expect_contexts(pid, 1)


def test_sessions_that_sit_on_one_gpu_are_spread_and_stay_so(one_gpu, peer):
    m = one_gpu(vms=4)
    sessions = {vm: peer(m, vm).open(0) for vm in range(1, 5)}
    give_both(m)

    def work():
        for vm, session in sessions.items():
            compute_and_rest(m, session, vm)
        return [devices_of(m, vm) for vm in sessions]

    settled = work()
    assert [settled.count({device: 1}) for device in ("cuda:0", "cuda:1")] == [2, 2]
    assert work() == settled
    assert m.events("lost") == []


def make_stream(session):
    assert session.run(OP_STREAM_CREATE, [1])[1] == OK


def make_event(session):
    make_stream(session)
    assert session.run(OP_EVENT_CREATE, [1])[1] == OK
    assert session.run(OP_EVENT_RECORD, [1], stream=1)[1] == OK


def load_module(session):
    session.put(HEAP, PTX)
    assert session.run(OP_MODULE_LOAD, [1, HEAP, len(PTX)])[1] == OK


def allocate(session):
    assert session.run(OP_ALLOC, [4096])[1] == OK


@pytest.mark.parametrize("hold", [allocate, make_stream, make_event, load_module])
def test_a_session_keeps_its_gpu_while_something_of_it_is_there(one_gpu, peer, hold):
    m = one_gpu(worker_idle_ms=1)
    busy, other = peer(m, 1).open(0), peer(m, 2).open(0)
    hold(other)
    spin(busy, 300)
    wait_until(lambda: m.begun(1) == 1, "the first VM at work")
    give_both(m)
    other.ping()
    busy.wait()
    compute(other)
    assert devices_of(m, 2) == {"cuda:0": 1}
    pid, = cuda_support.workers_of(m, 2)
    one_gpu.expect_contexts(pid, 0)
    assert m.events("lost") == []


def test_a_session_in_use_is_not_moved(one_gpu, peer):
    """Neither what runs nor what waits, nor what comes back with work left."""
    m = one_gpu(grant_ops=1)
    busy, waits = peer(m, 1).open(0), peer(m, 2).open(0)
    for session, vm in (busy, 1), (waits, 2):
        for _ in range(3):
            spin(session, 200)
        wait_until(lambda: m.begun(vm) > 0 or vm in queues(m)["cuda:0"][1], "its work known")
    give_both(m)
    for session in (busy, waits):
        assert [status for _, _, status in session.wait(3)] == [OK, OK, OK]
    assert (devices_of(m, 1), devices_of(m, 2)) == ({"cuda:0": 1}, {"cuda:0": 1})
    for vm in (1, 2):
        pid, = cuda_support.workers_of(m, vm)
        one_gpu.expect_contexts(pid, 0)


def test_a_session_that_was_moved_is_found_there_by_the_next_mediator(one_gpu, peer):
    m = one_gpu(worker_idle_ms=FOREVER)
    p, q = peer(m, 1), peer(m, 2)
    first, second = p.open(0), q.open(0)
    allocate(first)
    give_both(m)
    address, status = second.run(OP_ALLOC, [4096])
    assert status == OK and devices_of(m, 2) == {"cuda:1": 1}
    pid, = cuda_support.workers_of(m, 2)
    m.stop_but_keep_workers()
    m.start()
    p.reconnect()
    q.reconnect()
    wait_until(lambda: contexts_on(m) == {"cuda:0": 1, "cuda:1": 1}, "the contexts that there are")
    assert (devices_of(m, 1), devices_of(m, 2)) == ({"cuda:0": 1}, {"cuda:1": 1})
    assert second.run(OP_FREE, [address])[1] == OK
    compute(second)
    m.read_again()
    compute(second)
    one_gpu.expect_contexts(pid, 1)
    assert m.events("lost") == []


@pytest.mark.skipif(not support.has_fault_points(), reason="built without fault points")
def test_a_mediator_that_dies_between_move_and_grant_costs_nothing(one_gpu, peer):
    m = one_gpu()
    p, q = peer(m, 1), peer(m, 2)
    first, second = p.open(0), q.open(0)
    allocate(first)
    give_both(m)
    pid, = cuda_support.workers_of(m, 2)
    m.stop_but_keep_workers()
    m.start(fault="window_grant:1")
    p.reconnect()
    q.reconnect()
    cookie = spin(second, 1)
    m.wait_killed()
    m.start()
    p.reconnect()
    q.reconnect()
    assert [(done, status) for done, _, status in second.wait()] == [(cookie, OK)]
    assert devices_of(m, 2) == {"cuda:1": 1}
    one_gpu.expect_contexts(pid, 1)
    assert m.events("lost") == []


def test_a_session_does_not_go_to_a_gpu_of_another_model(one_gpu, fake, peer):
    fake.order("models 1")
    m = one_gpu()
    busy, other = peer(m, 1).open(0), peer(m, 2).open(0)
    spin(busy, 300)
    wait_until(lambda: m.begun(1) == 1, "the first VM at work")
    give_both(m)
    compute(other)
    assert devices_of(m, 2) == {"cuda:0": 1}


def test_a_session_does_not_go_where_it_would_wait_for_a_context(one_gpu, peer):
    m = one_gpu(vms=3, contexts_per_device=1)
    busy, keeps, other = (peer(m, vm).open(0) for vm in (1, 2, 3))
    spin(busy, 500)
    wait_until(lambda: m.begun(1) == 1, "the first VM at work")
    give_both(m)
    allocate(keeps)
    assert devices_of(m, 2) == {"cuda:1": 1}
    compute(other)
    assert devices_of(m, 3) == {"cuda:0": 1}


def test_a_session_goes_where_it_does_not_wait_for_a_context(one_gpu, peer):
    m = one_gpu(contexts_per_device=1)
    keeps, other = peer(m, 1).open(0), peer(m, 2).open(0)
    allocate(keeps)
    give_both(m)
    compute(other)
    assert devices_of(m, 2) == {"cuda:1": 1}


def test_the_time_of_a_session_that_was_moved_is_its_new_gpus(one_gpu, peer):
    m = one_gpu()
    peer(m, 1).open(0)
    moves = peer(m, 2).open(0)
    give_both(m)
    spin(moves, 200)
    moves.wait()
    assert devices_of(m, 2) == {"cuda:1": 1}
    wait_until(lambda: busy_us(m)["cuda:1"] >= 200000, "its time counted")
    assert busy_us(m)["cuda:0"] == 0


# --- withdrawn ------------------------------------------------------------------------


def test_the_database_has_a_pools_devices_and_placement(mediator, peer):
    m = make_registered(mediator, {1: ("A", 1)})
    admin(m, "bind-device", "A", "cpu:3,cpu:1")
    admin(m, "update-pool", "A", "--placement", "pack")
    p = peer(m)
    p.open(0)
    p.open(1)
    assert devices_of(m) == {"cpu:3": 2}
    admin(m, "update-pool", "A", "--placement", "spread")
    p.close_session(0)
    wait_until(lambda: devices_of(m) == {"cpu:3": 1}, "one session")
    p.open(0)
    assert devices_of(m) == {"cpu:3": 1, "cpu:1": 1}


def test_a_withdrawn_device_gets_no_work_until_it_is_returned(mediator):
    m = make_registered(mediator, {1: ("A", 1), 2: ("A", 1)})
    admin(m, "bind-device", "A", "cpu:0,cpu:1")
    admin(m, "withdraw-device", "cpu:0")
    pid = m.occupy(1)
    m.queue(2)
    assert queues(m)["cpu:1"] == ([1], [2])
    m.release(pid)
    assert m.vm(2).wait_answer() == "1:PONG 2"
    admin(m, "withdraw-device", "cpu:1")
    assert m.vm(1).ask("PING") == ("2:pool A has no device that can be used: the administrator "
                                   "binds one to it")
    admin(m, "return-device", "cpu:0")
    assert m.vm(1).ask("PING") == "1:PONG"
    assert devices_of(m) == {"cpu:0": 1}


def test_a_withdrawn_gpu_costs_its_own_sessions_only(mediator, fake, peer):
    fake.order("devices 2")
    m = make_registered(mediator, {1: ("A", 1)}, cuda_library=fake.path)
    admin(m, "bind-device", "A", "0000:65:00.0,0000:66:00.0")
    m.wait_event("gpu", count=2)
    p = peer(m)
    stays, moves = p.open(0), p.open(1)
    stays.ping()
    moves.ping()
    assert devices_of(m) == {"0000:65:00.0": 1, "0000:66:00.0": 1}
    admin(m, "withdraw-device", "0000:66:00.0")
    m.wait_event("lost", slot=1)
    assert moves.run(OP_PING)[1] == DEVICE_LOST
    assert moves.run(OP_RESET)[1] == OK
    moves.ping()
    stays.ping()
    assert devices_of(m) == {"0000:65:00.0": 2}
    assert m.events("lost", slot=0) == []


def test_sessions_of_a_pool_whose_only_gpu_is_withdrawn_end(mediator, fake, peer):
    m = make_registered(mediator, {1: ("A", 1)}, cuda_library=fake.path)
    admin(m, "bind-device", "A", "0000:65:00.0")
    m.wait_event("gpu")
    session = peer(m).open(0)
    session.ping()
    admin(m, "withdraw-device", "0000:65:00.0")
    m.wait_event("lost", slot=0)
    admin(m, "return-device", "0000:65:00.0")

    def works():
        session.run(OP_RESET)
        return session.run(OP_PING)[1] == OK
    wait_until(works, "the session on its GPU again")
