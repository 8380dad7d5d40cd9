# SPDX-License-Identifier: Apache-2.0
"""Policies of pools: who runs next under each, and that they change while work waits.

With VGPU_TEST_GPU=1 it is the GPU of this host that is shared by weight, priority and turn."""

import itertools
import time

import pytest
from control_support import admin, control
from cuda_support import ON_GPU
from support import both_channels, wait_until
from window_peer import ARENA, OK, OP_ALLOC, OP_TEXT

pytestmark = pytest.mark.threads

LOW, MEDIUM, HIGH = 0, 1, 2
OPERATIONS = 600  # a ring has room for 1024
SHARED = "cuda:0" if ON_GPU else "cpu"  # what weights and priorities share


def order_behind_a_spin(m, spinner, *waiting, meanwhile=lambda: None):
    """Queues `waiting` while `spinner` has the device; the order in which they run."""
    after = m.mark()
    pid = m.occupy(spinner)
    m.queue(*waiting)
    meanwhile()
    m.release(pid)
    m.wait_event("response", count=len(waiting) + 1, after=after)
    return m.order(after=after)[1:]


def change(m, **policies):
    """pool="wfq": in the configuration, and live."""
    for pool, policy in policies.items():
        m.pools[pool] = f"cpu\npolicy = {policy}"
    m.read_again()


# --- order ----------------------------------------------------------------------------


@both_channels
def test_who_waited_for_long_goes_before_a_higher_priority_that_comes_later(mediator):
    m = mediator(vms={9: ("A", HIGH), 1: ("A", LOW), 2: ("A", HIGH)},
                 pools={"A": "cpu\naging_ms = 1"})
    pid = m.occupy(9)
    m.queue(1)
    time.sleep(0.01)  # at least: it is as high as one can be then
    after = m.mark()
    m.queue(2)
    m.release(pid)
    m.wait_event("response", count=3, after=after)
    assert m.order(after=after) == [1, 2]


@both_channels
def test_a_policy_changes_while_work_waits(mediator):
    m = mediator(vms={9: ("A", LOW), 1: ("A", LOW), 2: ("A", HIGH), 3: ("A", MEDIUM)},
                 pools={"A": "cpu"})
    assert order_behind_a_spin(m, 9, 1, 3, 2, meanwhile=lambda: change(m, A="fifo")) == [1, 3, 2]
    assert order_behind_a_spin(m, 9, 1, 3, 2, meanwhile=lambda: change(m, A="strict")) == [2, 3, 1]
    assert order_behind_a_spin(m, 9, 1, 3, 2, meanwhile=lambda: change(m, A="wfq")) == [2, 3, 1]
    assert order_behind_a_spin(
        m, 9, 1, 3, 2, meanwhile=lambda: change(m, A="round-robin")) == [1, 3, 2]
    assert order_behind_a_spin(m, 9, 1, 3, 2, meanwhile=lambda: change(m, A="default")) == [2, 3, 1]


@both_channels
def test_pools_of_different_policies_take_turns_on_their_device(mediator):
    m = mediator(vms={9: ("A", HIGH), 1: ("A", LOW), 2: ("A", HIGH), 3: ("B", LOW), 4: ("B", HIGH)},
                 pools={"A": "cpu", "B": "cpu\npolicy = fifo"})
    assert order_behind_a_spin(m, 9, 1, 2, 3, 4) == [2, 3, 1, 4]


def test_a_pool_without_a_policy_has_the_mediators(mediator):
    m = mediator(vms={1: ("A", LOW)}, pools={"A": "cpu", "B": "cpu\npolicy = strict\naging_ms = 70",
                                             "C": "cpu\npolicy = wfq\ndemand = yes"},
                 policy="round-robin")
    with control(m) as c:
        status = c.call("status")
    assert status["mediator"]["policy"] == "round-robin"
    assert [(pool["policy"], pool["aging_ms"], pool["demand"]) for pool in status["pools"]] == [
        ("round-robin", 0, False), ("strict", 70, False), ("wfq", 0, True)]


def test_changes_of_vm_are_counted(mediator):
    m = mediator(vms={1: ("A", LOW), 2: ("A", LOW)}, pools={"A": "cpu"})
    for vm_id in (1, 1, 2, 2, 1):
        assert m.vm(vm_id).ask("PING") == "1:PONG"
    with control(m) as c:
        assert c.call("status")["devices"][0]["switches"] == 2


# --- shares ---------------------------------------------------------------------------


def weighted(first, second, demand="no"):
    return {"vms": {1: ("A", f"{MEDIUM}\nweight = {first}"),
                    2: ("A", f"{MEDIUM}\nweight = {second}"), 9: ("A", HIGH)},
            "pools": {"A": f"{SHARED}\npolicy = wfq\ndemand = {demand}"}}


def load(session):
    """Many operations of a millisecond, which it does not wait for."""
    session.put(ARENA, b"SPIN 1")
    for _ in range(OPERATIONS):
        session.submit(OP_TEXT, [ARENA, ARENA + 4096, 6 | 1024 << 32])


def settle(session):
    """Makes its context, which takes a while on a GPU, and gives it a reason to keep it."""
    assert session.run(OP_ALLOC, [4096])[1] == OK
    assert session.text("SPIN 1")[0] == OK


def share_of_first(m, sessions):
    """Of the device time that both used while both had work, percent.

    A host that is busy lengthens single operations of the `cpu` backend, and the last one that is
    seen may have such a length: ten points are left for that.  How exact shares are is shown in
    simulated time (tests/unit/test_sched_shares.c).
    """
    looks = []
    for session in sessions:
        settle(session)

    def one_is_nearly_through():
        with control(m) as c:
            looks.append([vm["device_us"] for vm in c.call("status")["vms"][:2]])
        return max(now - before for now, before in zip(looks[-1], looks[0])) > OPERATIONS * 700

    assert not one_is_nearly_through()
    pid = m.occupy(9)  # so that no one of them is alone, and takes all at once
    for session in sessions:
        load(session)
    m.release(pid)
    wait_until(one_is_nearly_through, "the better one to come far")
    for session in sessions:
        assert all(status == OK for _, _, status in session.wait(OPERATIONS))
    # An operation takes a millisecond at least: so much is no one's all.
    at_work = [used for look in looks
               if max(used := [now - before for now, before in zip(look, looks[0])]) <
               OPERATIONS * 950]
    used = [last - first for first, last in zip(at_work[0], at_work[-1])]
    assert sum(used) > 100 * 1000, f"hardly any was seen: {looks}"
    return 100 * used[0] / sum(used)


@pytest.mark.parametrize("demand", ["no", "yes"])
def test_weights_share_the_device_and_count_at_once(mediator, peer, demand):
    m = mediator(channel="window", grant_ops=4, **weighted(300, 100, demand))
    sessions = [peer(m, vm_id).open(0) for vm_id in (1, 2)]
    assert 65 < share_of_first(m, sessions) < 85
    m.vms = weighted(100, 300)["vms"]
    m.read_again()
    assert 15 < share_of_first(m, sessions) < 35


def test_priorities_weigh_too(mediator, peer):
    m = mediator(channel="window", grant_ops=4, pools={"A": f"{SHARED}\npolicy = wfq"},
                 vms={1: ("A", MEDIUM), 2: ("A", LOW), 9: ("A", HIGH)})
    sessions = [peer(m, vm_id).open(0) for vm_id in (1, 2)]
    assert 70 < share_of_first(m, sessions) < 90  # 4 to 1


def test_equal_slices_whatever_the_priority(mediator, peer):
    m = mediator(channel="window", grant_ops=4, pools={"A": f"{SHARED}\npolicy = round-robin"},
                 vms={1: ("A", HIGH), 2: ("A", LOW), 9: ("A", HIGH)})
    sessions = [peer(m, vm_id).open(0) for vm_id in (1, 2)]
    assert 40 < share_of_first(m, sessions) < 60


# --- grants ---------------------------------------------------------------------------

RULES = {"grant_us": (2000, 3000), "grant_ops": (100, 200), "grant_min_us": (7, 70),
         "protect_us": (500, 600), "protect_inflight": (1, 3), "protect_ms": (50, 60),
         "switch_us": (10, 20), "switch_share_percent": (10, 20)}
FEW = 40


def rule(m, **rules):
    """In the configuration, and live."""
    m.settings.update(rules)
    m.read_again()


def numbers(m):
    """{vm_id: its grants so far}, changes of VM so far"""
    with control(m) as c:
        status = c.call("status")
    return ({vm["vm_id"]: vm["grant"]["count"] for vm in status["vms"]},
            status["devices"][0]["switches"])


def work_together(m, *sessions):
    """A few operations of each, which all begin at the same time; how often the VM changed."""
    pid = m.occupy(9)
    for session in sessions:
        session.put(ARENA, b"SPIN 1")
        for _ in range(FEW):
            session.submit(OP_TEXT, [ARENA, ARENA + 4096, 6 | 1024 << 32])
    with control(m) as c:
        wait_until(lambda: len(c.call("queue")["devices"][0]["waiting"]) == len(sessions),
                   "all to wait")
    before = numbers(m)[1]
    m.release(pid)
    for session in sessions:
        assert all(status == OK for _, _, status in session.wait(FEW))
    return numbers(m)[1] - before


def test_a_reload_tells_what_has_changed_about_grants(mediator):
    m = mediator(vms={1: ("A", LOW)}, **{key: before for key, (before, _) in RULES.items()})
    m.settings.update({key: after for key, (_, after) in RULES.items()})
    m.write_config()
    rows = [row.split() for row in admin(m, "reload").splitlines() if row.startswith("mediator")]
    assert rows == [["mediator", key, str(before), str(after)]
                    for key, (before, after) in RULES.items()]
    assert "mediator" not in admin(m, "reload")


def test_the_cost_of_a_change_of_vm_counts_at_once(mediator, peer):
    m = mediator(channel="window", grant_ops=4, grant_us=1000000, pools={"A": "cpu"},
                 vms={vm: ("A", LOW) for vm in (1, 2, 9)})
    sessions = [peer(m, vm).open(0) for vm in (1, 2)]
    assert work_together(m, *sessions) >= 2 * FEW // 4 - 2
    rule(m, switch_us=1000000, switch_share_percent=50)
    assert work_together(m, *sessions) < FEW // 4


def test_protection_counts_at_once(mediator, peer):
    m = mediator(channel="window", grant_ops=4096, protect_ms=0, pools={"A": "cpu"},
                 vms={1: ("A", LOW), 9: ("A", HIGH)})
    session = peer(m, 1).open(0)

    def grants():
        before = numbers(m)[0][1]
        work_together(m, session)
        return numbers(m)[0][1] - before

    assert grants() < FEW // 4  # alone
    rule(m, protect_ms=3600000, protect_us=10)
    assert grants() > FEW // 2


def test_the_shortest_grant_counts_at_once(mediator, peer):
    m = mediator(channel="window", grant_ops=4096, grant_us=1000000,
                 pools={"A": "cpu\npolicy = wfq\ndemand = yes"},
                 vms={vm: ("A", LOW) for vm in (1, 2, 3, 4, 9)})

    def first_turn(*vms):
        """How many operations run before the VM changes.  Later turns are as long as was
        learned, and one operation that a busy host holds up teaches much."""
        before = len(m.executions())
        work_together(m, *[peer(m, vm).open(0) for vm in vms])
        ran = [vm for vm, _ in m.executions()[before:] if vm in vms]
        return len(list(itertools.takewhile(lambda vm: vm == ran[0], ran)))

    assert first_turn(1, 2) > 4
    rule(m, grant_min_us=10)
    assert first_turn(3, 4) <= 2
