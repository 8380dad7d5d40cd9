# SPDX-License-Identifier: Apache-2.0
"""The cap on a GPU's contexts, the queue before them (contexts_per_device), and how many of them
are one VM's (contexts_per_vm).

Who has one, who waits for one, and that what one does not need goes to another.  On a double of
NVIDIA's library; with VGPU_TEST_GPU=1 on the GPU of this host, where what needs the double is
skipped.
"""

import contextlib
import os
import random
import signal
import threading
import time

import pytest
import window_peer
from control_support import admin, control, make_registered
from cuda_support import ON_GPU, workers_of
from support import wait_until
from window_peer import ARENA, DEVICE_LOST, OK, OP_ALLOC, OP_FREE, OP_PING, OP_RESET, OP_TEXT

VMS = {1: ("A", 1), 2: ("A", 1), 3: ("A", 1)}
FOREVER = 60000
PCI = "0000:65:00.0"


@pytest.fixture
def capped(cuda, request):
    """capped(vms, **options): a mediator with one context at a time."""
    if not ON_GPU:
        request.getfixturevalue("fake").keep_log()

    def make(vms=None, contexts_per_device=1, **options):
        return cuda(vms or VMS, contexts_per_device=contexts_per_device, **options)
    return make


def compute(session):
    """Something that needs a context and keeps nothing in it."""
    status, answer = session.text("VECTOR_ADD")
    assert status == OK, answer


def begin(session, command="VECTOR_ADD"):
    """Submits it and does not wait."""
    data = command.encode()
    session.put(ARENA + 8192, data)
    return session.submit(OP_TEXT, [ARENA + 8192, ARENA + 12288, len(data) | 1024 << 32])


def allocate(session):
    address, status = session.run(OP_ALLOC, [4096])
    assert status == OK
    return address


def device(m, name="cuda:0"):
    with control(m) as c:
        found, = (d for d in c.call("status")["devices"] if d["name"] == name)
        return found


def held(m, name="cuda:0"):
    return device(m, name)["contexts"]


def gated(m, name="cuda:0"):
    """The VMs that wait for a context, in order."""
    with control(m) as c:
        found, = (d for d in c.call("queue")["devices"] if d["name"] == name)
        return [one["vm_id"] for one in found["waiting_for_context"]]


def wait_gated(m, *vm_ids, name="cuda:0"):
    wait_until(lambda: gated(m, name) == list(vm_ids),
               lambda: f"{vm_ids} waiting: {gated(m, name)}")


def gated_by(m, name="cuda:0"):
    """The VMs that wait for a context, and what bounds each."""
    with control(m) as c:
        found, = (d for d in c.call("queue")["devices"] if d["name"] == name)
        return [(one["vm_id"], one["limit"]) for one in found["waiting_for_context"]]


def reload(m, **settings):
    m.settings.update(settings)
    m.read_again()


def most_contexts(fake):
    """How many there were at once; a process that was killed has none any more only where the
    test says so."""
    count = most = 0
    for call in fake.calls():
        count += (call == "cuCtxCreate_v2") - (call == "cuCtxDestroy_v2")
        most = max(most, count)
    return most


# --- who keeps nothing ------------------------------------------------------------------------


def test_two_that_keep_nothing_share_one_context(capped, fake, peer):
    m = capped()
    fake.log.write_text("")  # the check of the GPU at the start has had one
    first, second = peer(m, 1).open(), peer(m, 2).open()
    for _ in range(5):
        compute(first)
        compute(second)
    assert most_contexts(fake) == 1
    wait_until(lambda: fake.calls().count("cuCtxCreate_v2") == 10, "a context for each turn")


def test_many_sessions_get_through_a_few_contexts(capped, fake, peer):
    m = capped(contexts_per_device=2, sessions_max=8)
    fake.log.write_text("")
    sessions = [p.open(slot) for p in (peer(m, vm_id, slots=6) for vm_id in VMS)
                for slot in range(6)]
    for session in sessions:
        begin(session)
    for session in sessions:
        (_, _, status), = session.wait()
        assert status == OK
    assert most_contexts(fake) <= 2
    wait_until(lambda: not gated(m), "nobody waiting")


def test_one_that_is_idle_gives_its_empty_context_up_at_once(capped, peer):
    m = capped(worker_idle_ms=FOREVER)
    first, second = peer(m, 1).open(), peer(m, 2).open()
    compute(first)
    assert held(m) == 1
    compute(second)
    assert held(m) == 1


def test_one_whose_grant_is_bounded_gives_it_up_too(capped, peer):
    m = capped(grant_ops=1, worker_idle_ms=FOREVER)
    first, second = peer(m, 1).open(), peer(m, 2).open()
    for _ in range(3):
        compute(first)
        compute(second)


def test_one_that_never_runs_out_of_work_lets_others_to_it(capped, peer):
    """Its ring is never empty, and nothing of it is kept: after a second it is another's turn."""
    m = capped()
    busy, other = peer(m, 1).open(), peer(m, 2).open()
    for _ in range(200):
        begin(busy, "SPIN 20")
    wait_until(lambda: held(m) == 1, "its context")
    compute(other)
    assert len(busy.take()) < 200
    assert all(status == OK for _, _, status in busy.wait(200 - busy.cq_head, timeout=180))


def test_a_ping_waits_for_no_context_that_it_does_not_make(capped, peer):
    """It may need one, so it takes its turn; it leaves none behind."""
    m = capped()
    first, second = peer(m, 1).open(), peer(m, 2).open()
    first.ping()
    second.ping()
    wait_until(lambda: held(m) <= 1, "one place at most")


def test_file_requests_share_a_context(capped, fake):
    m = capped(worker_idle_ms=FOREVER)
    fake.log.write_text("")
    for _ in range(2):
        for vm_id in (1, 2):
            assert m.vm(vm_id).ask("VECTOR_ADD").startswith("1:")
    assert most_contexts(fake) == 1


def test_a_file_request_and_a_window_share_a_context(capped, peer):
    m = capped(worker_idle_ms=FOREVER)
    session = peer(m, 2).open()
    for _ in range(2):
        assert m.vm(1).ask("VECTOR_ADD").startswith("1:")
        compute(session)


# --- who keeps something ------------------------------------------------------------------------


def test_one_with_memory_keeps_its_context_until_it_frees_it(capped, peer):
    m = capped()
    first, second = peer(m, 1).open(), peer(m, 2).open()
    address = allocate(first)
    begin(second)
    wait_gated(m, 2)
    compute(first)
    assert not second.take()
    assert first.run(OP_FREE, [address])[1] == OK
    (_, _, status), = second.wait()
    assert status == OK


def test_one_that_closes_its_session_makes_room(capped, peer):
    m = capped()
    p = peer(m, 1)
    first, second = p.open(0), peer(m, 2).open()
    allocate(first)
    begin(second)
    wait_gated(m, 2)
    p.close_session(0)
    (_, _, status), = second.wait()
    assert status == OK


def test_one_that_dies_makes_room(capped, peer):
    m = capped()
    first, second = peer(m, 1).open(), peer(m, 2).open()
    allocate(first)
    begin(second)
    wait_gated(m, 2)
    pid, = workers_of(m, 1)
    os.kill(pid, signal.SIGKILL)
    (_, _, status), = second.wait()
    assert status == OK
    assert first.run(OP_PING)[1] == DEVICE_LOST
    assert first.run(OP_RESET)[1] == OK
    compute(first)


def test_one_that_waits_and_dies_is_forgotten(capped, peer):
    m = capped()
    first, second, third = (peer(m, vm_id).open() for vm_id in VMS)
    address = allocate(first)
    begin(second)
    wait_gated(m, 2)
    begin(third)
    wait_gated(m, 2, 3)
    pid, = workers_of(m, 2)
    os.kill(pid, signal.SIGKILL)
    wait_gated(m, 3)
    assert first.run(OP_FREE, [address])[1] == OK
    (_, _, status), = third.wait()
    assert status == OK


def test_a_higher_priority_is_admitted_first_and_of_these_the_first(capped, peer):
    m = capped({1: ("A", 1), 2: ("A", 0), 3: ("A", 0), 4: ("A", 2), 5: ("A", 2)})
    sessions = {vm_id: peer(m, vm_id).open() for vm_id in range(1, 6)}
    address = allocate(sessions[1])
    for vm_id, expected in (2, [2]), (3, [2, 3]), (4, [4, 2, 3]), (5, [4, 5, 2, 3]):
        begin(sessions[vm_id])
        wait_gated(m, *expected)
    m.vms[3] = ("A", 2)
    reload(m)
    wait_gated(m, 3, 4, 5, 2)
    assert sessions[1].run(OP_FREE, [address])[1] == OK
    for vm_id in (3, 4, 5, 2):
        (_, _, status), = sessions[vm_id].wait()
        assert status == OK


# --- a VM's share -------------------------------------------------------------------------------


@pytest.fixture
def shared(capped, peer):
    """shared(sessions, **options): a mediator in which VM 1 has 2 contexts at most, and so many
    sessions of VM 1."""
    def make(count, **options):
        options = {"contexts_per_device": 4, "contexts_per_vm": 2, "sessions_max": 8, **options}
        m = capped(**options)
        p = peer(m, 1, slots=count)
        return m, p, [p.open(slot) for slot in range(count)]
    return make


def test_a_vm_that_keeps_its_share_leaves_the_others_theirs(shared, peer):
    m, _, (first, second, third, fourth) = shared(4)
    address = allocate(first)
    allocate(second)
    begin(third)
    begin(fourth)
    wait_gated(m, 1, 1)
    for vm_id in 2, 3:
        allocate(peer(m, vm_id).open())
    assert held(m) == 4 and not third.take() and not fourth.take()
    assert first.run(OP_FREE, [address])[1] == OK
    for session in third, fourth:
        (_, _, status), = session.wait()
        assert status == OK


def test_a_vm_asks_its_own_idle_sessions_for_the_context_that_it_may_not_have_more_of(shared):
    m, _, sessions = shared(3, contexts_per_device=0, contexts_per_vm=1, worker_idle_ms=FOREVER)
    for _ in range(2):
        for session in sessions:
            compute(session)
    assert held(m) == 1


def test_a_vm_at_its_limit_takes_no_idle_context_of_another(shared, peer):
    m, _, (first, second) = shared(2, contexts_per_vm=1, worker_idle_ms=FOREVER)
    other = peer(m, 2).open()
    compute(other)
    allocate(first)
    begin(second)
    wait_gated(m, 1)
    compute(first)
    assert held(m) == 2


def test_a_vms_file_requests_count_in_its_share(shared):
    m, _, (session,) = shared(1, contexts_per_vm=1)
    address = allocate(session)
    vm = m.vm(1)
    vm.ready()
    vm.put("VECTOR_ADD")
    wait_gated(m, 1)
    assert session.run(OP_FREE, [address])[1] == OK
    assert vm.wait_answer().startswith("1:")


def test_a_share_that_changes_counts_at_once(shared):
    m, _, (first, second, third) = shared(3, worker_idle_ms=FOREVER)
    allocate(first)
    address = allocate(second)
    begin(third)
    wait_gated(m, 1)
    after = m.mark()
    reload(m, contexts_per_vm=3)
    m.wait_message("contexts_per_vm: 2 -> 3", after=after)
    third.wait()
    assert held(m) == 3
    reload(m, contexts_per_vm=1)
    wait_until(lambda: held(m) == 2, "the empty one gone")
    begin(third)
    wait_gated(m, 1)
    assert second.run(OP_FREE, [address])[1] == OK
    wait_until(lambda: held(m) == 1, "as many as it may have now")
    assert gated_by(m) == [(1, "contexts_per_vm")]
    reload(m, contexts_per_vm=0)
    third.wait()


def test_without_a_share_only_the_cap_counts(shared):
    m, _, sessions = shared(3, contexts_per_vm=0)
    for session in sessions:
        allocate(session)
    assert device(m)["contexts_max_per_vm"] is None


def test_a_session_that_waits_for_its_vms_share_and_ends_is_forgotten(shared):
    m, p, (first, second, third, fourth) = shared(4)
    address = allocate(first)
    allocate(second)
    begin(third)
    begin(fourth)
    wait_gated(m, 1, 1)
    p.close_session(2)
    wait_gated(m, 1)
    assert first.run(OP_FREE, [address])[1] == OK
    fourth.wait()


def test_who_waits_is_told_by_which_limit(shared, peer):
    m, _, (first, second, third) = shared(3, contexts_per_device=2, grant_ops=1)
    allocate(first)
    allocate(second)
    begin(third)
    wait_gated(m, 1)
    begin(peer(m, 2).open())
    wait_gated(m, 2, 1)
    assert gated_by(m) == [(2, "contexts_per_device"), (1, "contexts_per_vm")]
    with control(m) as c:
        assert [c.vm(vm_id)["contexts_waiting"] for vm_id in (1, 2)] == [1, 1]
        assert [c.vm(vm_id)["contexts_waiting_own"] for vm_id in (1, 2)] == [1, 0]
    found = device(m)
    assert (found["contexts_waiting"], found["contexts_max_per_vm"]) == (2, 2)
    own, other = m.events("context")
    assert (own["vm"], own["limit"], own["contexts"], own["contexts_max"]) == (
        1, "contexts_per_vm", 2, 2)
    assert (other["vm"], other["limit"]) == (2, "contexts_per_device")
    text = admin(m, "status")
    assert "waits for a context" in text and "has its share of contexts" in text
    rows = [row.split()[:3] for row in admin(m, "queue").splitlines() if "context" in row]
    assert rows == [["cuda:0", "context", "2"], ["cuda:0", "own-context", "1"]]


# --- changes ------------------------------------------------------------------------------------


def test_a_cap_that_rises_lets_those_in_who_wait(capped, peer):
    m = capped()
    first, second, third = (peer(m, vm_id).open() for vm_id in VMS)
    addresses = [allocate(first)]
    begin(second)
    wait_gated(m, 2)
    after = m.mark()
    reload(m, contexts_per_device=2)
    m.wait_message("contexts_per_device: 1 -> 2", after=after)
    second.wait()
    addresses.append(allocate(second))
    begin(third)
    wait_gated(m, 3)
    reload(m, contexts_per_device=0)
    third.wait()
    assert device(m)["contexts_max"] is None


def test_a_cap_that_falls_takes_what_is_not_needed(capped, peer):
    m = capped(contexts_per_device=0, worker_idle_ms=FOREVER)
    first, second, third = (peer(m, vm_id).open() for vm_id in VMS)
    compute(first)
    address = allocate(second)
    allocate(third)
    assert held(m) == 3
    reload(m, contexts_per_device=1)
    wait_until(lambda: held(m) == 2, "the empty one gone")
    assert second.run(OP_FREE, [address])[1] == OK
    wait_until(lambda: held(m) == 1, "the other one gone")


def test_a_reload_tells_of_a_new_cap(capped):
    m = capped()
    m.settings["contexts_per_device"] = 2
    m.write_config()
    row, = (row for row in admin(m, "reload").splitlines() if "contexts_per_device" in row)
    assert row.split() == ["mediator", "contexts_per_device", "1", "2"]


def test_without_a_cap_nobody_waits(capped, peer):
    m = capped(contexts_per_device=0)
    for vm_id in VMS:
        allocate(peer(m, vm_id).open())
    found = device(m)
    assert (found["contexts"], found["contexts_max"], found["contexts_waiting"]) == (3, None, 0)


def test_a_new_mediator_counts_the_contexts_of_sessions_that_it_adopts(capped, peer):
    m = capped()
    p, q = peer(m, 1), peer(m, 2)
    first, second = p.open(), q.open()
    address = allocate(first)
    m.stop_but_keep_workers()
    m.start()
    p.reconnect()
    q.reconnect()
    wait_until(lambda: held(m) == 1, "the context that there is")
    begin(second)
    wait_gated(m, 2)
    assert first.run(OP_FREE, [address])[1] == OK
    (_, _, status), = second.wait()
    assert status == OK


def test_a_new_mediator_asks_for_the_empty_contexts_of_an_earlier_one(capped, peer):
    m = capped(worker_idle_ms=FOREVER)
    p, q = peer(m, 1), peer(m, 2)
    first, second = p.open(), q.open()
    compute(first)
    m.stop_but_keep_workers()
    m.start()
    p.reconnect()
    q.reconnect()
    compute(second)


def test_one_that_waits_is_refused_with_its_vm_and_waits_again_after_that(mediator, fake, peer):
    m = make_registered(mediator, VMS, cuda_library=fake.path, contexts_per_device=1)
    admin(m, "bind-device", "A", PCI)
    m.wait_event("gpu")
    first, second = peer(m, 1).open(), peer(m, 2).open()
    address = allocate(first)
    begin(second)
    wait_gated(m, 2, name=PCI)
    admin(m, "quarantine", 2, "--reason", "a test", "--yes")
    (_, _, status), = second.wait()
    assert status == window_peer.REFUSED_STATUS
    assert gated(m, PCI) == []
    admin(m, "release", 2)
    begin(second)
    wait_gated(m, 2, name=PCI)
    assert first.run(OP_FREE, [address])[1] == OK
    second.wait()


def test_one_that_waits_goes_to_a_device_with_room_when_its_own_is_taken_away(capped, fake, peer):
    fake.order("devices 2")
    # The other one has been checked: while it is, its VMs are refused.
    m = capped({1: ("A", 1), 2: ("B", 1)}, pools={"A": "cuda:0", "B": "cuda:0", "C": "cuda:1"})
    first, second = peer(m, 1).open(), peer(m, 2).open()
    allocate(first)
    begin(second)
    wait_gated(m, 2)
    m.pools["B"] = "cuda:1"
    reload(m)
    (_, _, status), = second.wait()
    # Its worker was for the other device; nothing runs while the new one is checked.
    assert status in (DEVICE_LOST, window_peer.REFUSED_STATUS)
    wait_until(lambda: second.run(OP_RESET)[1] == OK, "a session on the other device")
    compute(second)
    assert (held(m), held(m, "cuda:1")) == (1, 1)


def test_a_holder_whose_device_is_taken_away_makes_room_there(capped, fake, peer):
    fake.order("devices 2")
    m = capped({1: ("A", 1), 2: ("B", 1)}, pools={"A": "cuda:0", "B": "cuda:0"})
    first, second = peer(m, 1).open(), peer(m, 2).open()
    allocate(first)
    begin(second)
    wait_gated(m, 2)
    m.pools["A"] = "cuda:1"
    reload(m)
    (_, _, status), = second.wait()
    assert status == OK


def test_each_device_has_its_own(capped, fake, peer):
    fake.order("devices 2")
    m = capped(pools={"A": "cuda:0 cuda:1"})
    first, second, third = (peer(m, vm_id).open() for vm_id in VMS)
    allocate(first)
    allocate(second)
    assert (held(m), held(m, "cuda:1")) == (1, 1)
    begin(third)
    wait_until(lambda: gated(m) + gated(m, "cuda:1") == [3], "the third one waiting")


def test_test_mode_counts_who_waits_for_a_context(capped, peer):
    """Else the one that could make room would be held for ever."""
    m = capped()
    first, second = peer(m, 1).open(), peer(m, 2).open()
    address = allocate(first)
    begin(second)
    wait_gated(m, 2)
    admin(m, "test-mode", "on", "--hold-until", 2)
    free = first.submit(OP_FREE, [address])
    with control(m) as c:
        wait_until(lambda: c.call("test-mode", action="show")["asks"], "the question")
        c.call("test-mode", action="answer", simultaneous=False)
    assert [cookie for cookie, _, _ in first.wait()] == [free]
    admin(m, "test-mode", "off")
    second.wait()


# --- telling ------------------------------------------------------------------------------------


def test_who_waits_is_told_and_logged_once(capped, peer):
    m = capped()
    first, second = peer(m, 1).open(), peer(m, 2).open()
    allocate(first)
    begin(second)
    wait_gated(m, 2)
    with control(m) as c:
        assert c.vm(2)["contexts_waiting"] == 1 and c.vm(2)["depth"] == 1
    found = device(m)
    assert (found["contexts"], found["contexts_max"], found["contexts_waiting"]) == (1, 1, 1)
    line = "Device cuda:0 has 1 context of at most 1; 1 session waits for one."
    assert line in admin(m, "status")
    assert "waits for a context" in admin(m, "status")
    row, = (row for row in admin(m, "queue").splitlines() if " context " in row)
    assert row.split()[:3] == ["cuda:0", "context", "2"]
    event, = m.events("context")
    assert (event["vm"], event["device"], event["contexts_max"]) == (2, "cuda:0", 1)
    assert event["limit"] == "contexts_per_device"


# --- all at once --------------------------------------------------------------------------------

ROUNDS = 30


class Guest(threading.Thread):
    """A VM's program that computes, keeps something for a while, and comes and goes."""

    def __init__(self, p, seed):
        super().__init__(daemon=True)
        self.peer = p
        self.random = random.Random(seed)
        self.done = 0
        self.problem = None

    def round(self, session):
        """False: its worker was killed."""
        what = self.random.choice(["compute", "keep", "many"])
        if what == "compute":
            return session.text("VECTOR_ADD")[0] == OK
        if what == "many":
            for _ in range(20):
                begin(session)
            return all(status == OK for _, _, status in session.wait(20))
        address, status = session.run(OP_ALLOC, [4096])
        if status != OK or session.text("VECTOR_ADD")[0] != OK:
            return False
        return session.run(OP_FREE, [address])[1] == OK

    def open(self):
        while True:
            with contextlib.suppress(window_peer.Refused):  # its worker was killed at its start
                return self.peer.open(0)

    def run(self):
        try:
            session = self.open()
            while self.done < ROUNDS:
                if not self.round(session):
                    while session.run(OP_RESET)[1] != OK:
                        pass
                if self.random.random() < 0.2:
                    self.peer.close_session(0)
                    session = self.open()
                self.done += 1
        except Exception as problem:  # pylint: disable=broad-except; told by who joins
            self.problem = problem


def disturb(m, dice):
    """What an administrator or a fault can do meanwhile."""
    if dice.random() < 0.3:
        reload(m, contexts_per_device=dice.choice([1, 1, 2, 3]))
    if dice.random() < 0.2:
        reload(m, contexts_per_vm=dice.choice([0, 1, 2]))
    if dice.random() < 0.3:
        m.vms[dice.choice(list(m.vms))] = ("A", dice.choice([0, 1, 2]))
        reload(m)
    pids = workers_of(m, dice.choice(list(m.vms)))
    if pids and dice.random() < 0.3:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[0], signal.SIGKILL)


def test_whatever_happens_all_get_through(capped, peer, summary):
    seed = int(os.environ.get("VGPU_TEST_SEED", "20240607"))
    dice = random.Random(seed)
    vms = {vm_id: ("A", vm_id % 3) for vm_id in range(1, 7)}
    m = capped(vms, contexts_per_device=2, worker_idle_ms=20)
    m.allow_error(r"worker killed by signal 9 \(SIGKILL\) before it was ready")
    guests = [Guest(peer(m, vm_id), dice.random()) for vm_id in vms]
    for guest in guests:
        guest.start()
    while any(guest.is_alive() for guest in guests):
        disturb(m, dice)
        time.sleep(0.05)
    assert [guest.problem for guest in guests] == [None] * len(guests), f"VGPU_TEST_SEED={seed}"
    wait_gated(m)
    for guest in guests:
        guest.peer.close()
    wait_until(lambda: held(m) == 0, lambda: f"no context left: {held(m)}")
    summary(f"{len(guests) * ROUNDS} rounds of {len(guests)} VMs on 1 to 3 contexts")
