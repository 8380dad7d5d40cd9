# SPDX-License-Identifier: Apache-2.0
"""In which order requests run: priority, arrival, pools, devices, and who is first
among those that are found together."""

import signal

import pytest
from support import both_channels, wait_until

pytestmark = pytest.mark.threads

LOW, MEDIUM, HIGH = 0, 1, 2


def order_behind_a_spin(m, spinner, *waiting):
    """Queues `waiting` while `spinner` has the device; the order in which they run."""
    after = m.mark()
    pid = m.occupy(spinner)
    m.queue(*waiting)
    m.release(pid)
    m.wait_event("response", count=len(waiting) + 1, after=after)
    return m.order(after=after)[1:]


@both_channels
def test_high_goes_before_medium_before_low(mediator):
    m = mediator(vms={9: ("A", MEDIUM), 1: ("A", LOW), 2: ("A", HIGH), 3: ("A", MEDIUM)})
    assert order_behind_a_spin(m, 9, 1, 2, 3) == [2, 3, 1]
    assert order_behind_a_spin(m, 9, 3, 1, 2) == [2, 3, 1]


@both_channels
def test_inside_one_priority_who_came_first_goes_first(mediator):
    m = mediator(vms={9: ("A", HIGH), **{i: ("A", MEDIUM) for i in range(1, 6)}})
    assert order_behind_a_spin(m, 9, 4, 1, 5, 2, 3) == [4, 1, 5, 2, 3]
    assert order_behind_a_spin(m, 9, 3, 2, 5, 1, 4) == [3, 2, 5, 1, 4]


@both_channels
def test_running_work_is_not_interrupted_by_higher_priority(mediator):
    m = mediator(vms={1: ("A", LOW), 2: ("A", HIGH)})
    pid = m.occupy(1)
    m.queue(2)
    m.wait_looks()
    assert m.order() == [1]
    m.release(pid)
    assert m.vm(2).wait_answer() == "1:PONG 2"


@both_channels
def test_fifo_policy_knows_no_priority(mediator):
    m = mediator(vms={9: ("A", LOW), 1: ("A", LOW), 2: ("A", HIGH), 3: ("B", MEDIUM)},
                 policy="fifo")
    assert order_behind_a_spin(m, 9, 1, 3, 2) == [1, 3, 2]


@both_channels
def test_shared_pools_are_one_queue_with_labels(mediator):
    m = mediator(vms={9: ("A", LOW), 1: ("A", LOW), 2: ("B", HIGH), 3: ("B", LOW),
                      4: ("A", HIGH)}, pools_mode="shared")
    assert order_behind_a_spin(m, 9, 1, 2, 3, 4) == [2, 4, 1, 3]
    queued = {entry["vm"]: entry["count"] for entry in m.events("queue")}
    assert queued[4] == 2 and queued[3] == 2  # each pool counts its own


@both_channels
def test_independent_pools_on_one_device_take_turns(mediator):
    m = mediator(vms={9: ("A", HIGH), 1: ("A", HIGH), 2: ("A", LOW), 3: ("A", MEDIUM),
                      4: ("B", LOW), 5: ("B", MEDIUM)}, pools_mode="independent")
    assert order_behind_a_spin(m, 9, 2, 1, 3, 4, 5) == [1, 5, 3, 4, 2]


@both_channels
def test_pools_on_two_devices_run_at_the_same_time(mediator):
    m = mediator(vms={1: ("A", LOW), 2: ("B", LOW), 3: ("A", HIGH), 4: ("B", HIGH)},
                 pools={"A": "cpu:0", "B": "cpu:1"})
    first = m.occupy(1)
    second = m.occupy(2)  # runs, though the first has not ended
    wait_until(lambda: len(m.executions()) == 2, "both at work")
    assert not m.events("response")
    m.queue(4, 3)
    m.wait_looks()
    assert m.order() == [1, 2]
    m.release(second)
    assert m.vm(4).wait_answer() == "1:PONG 4"
    assert m.order() == [1, 2, 4]
    m.release(first)
    assert m.vm(3).wait_answer() == "1:PONG 3"


@both_channels
def test_one_device_runs_one_request_at_a_time(mediator):
    m = mediator(vms={1: ("A", LOW), 2: ("B", LOW)})
    pid = m.occupy(1)
    m.queue(2)
    m.wait_looks()
    assert m.order() == [1]
    m.release(pid)
    m.vm(2).wait_answer()


# --- found together ---------------------------------------------------------------------
# Only files are looked for, and have times; a window's doorbells come one by one.


def put_before_start(m, times):
    for vm_id, time in times.items():
        vm = m.vm(vm_id)
        vm.directory.mkdir(parents=True)
        vm.put(f"PING {vm_id}")
        m.set_time(vm.request, time)


def test_requests_found_by_one_look_go_by_their_time(mediator):
    times = {1: 3000, 2: 1000, 3: 4000, 4: 2000}
    m = mediator(vms={i: ("A", MEDIUM) for i in times}, start=False)
    put_before_start(m, times)
    m.start()
    m.wait_event("response", count=4)
    assert m.order("queue") == m.order() == [2, 4, 1, 3]


def test_requests_found_by_one_look_go_by_priority_before_their_time(mediator):
    m = mediator(vms={1: ("A", LOW), 2: ("A", MEDIUM), 3: ("A", HIGH)}, start=False)
    put_before_start(m, {1: 1000, 2: 2000, 3: 3000})
    m.start()
    m.wait_event("response", count=3)
    assert m.order("queue") == [1, 2, 3]
    assert m.order() == [3, 2, 1]


def test_who_is_first_among_equals_changes(mediator):
    m = mediator(vms={i: ("A", MEDIUM) for i in (1, 2, 3)})
    first = set()
    for round_ in range(100):
        after = m.mark()
        m.pause()
        for vm_id in (1, 2, 3):
            vm = m.vm(vm_id)
            vm.ready()
            vm.put(f"PING {round_}")
            m.set_time(vm.request, 1000)
        m.process.send_signal(signal.SIGCONT)  # one look finds all three
        m.wait_event("response", count=3, after=after)
        order = m.order("queue", after=after)
        assert m.order(after=after) == order
        if order in ([1, 2, 3], [2, 3, 1], [3, 1, 2]):  # else it was stopped within a look
            first.add(order[0])
        if first == {1, 2, 3}:
            return
    raise AssertionError(f"first in 100 rounds were only {first}")


@both_channels
def test_many_vms_are_all_answered_each_with_its_own(mediator):
    m = mediator(vms={i: ("AB"[i % 2], i % 3) for i in range(1, 41)})
    for i in m.vms:
        m.vm(i).put(f"{i}:1000")
    for i in m.vms:
        assert m.vm(i).wait_answer() == f"1:{i} + 1000 = {i + 1000}"
    wait_until(lambda: len(m.events("response")) == 40, m.tail)
    assert sorted(m.executions()) == [(i, 1) for i in sorted(m.vms)]
