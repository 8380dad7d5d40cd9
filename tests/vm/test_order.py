# SPDX-License-Identifier: Apache-2.0
"""Real VMs at the queue: who runs when.

Eight guests, booted as they are needed.  What a VM is, its mediator's registry
says, so one guest serves under several pools and priorities; in the tests
where the devices say the same, `VMS` is that registry.
"""

import time

import pytest

from harness.load import (answer_fits, answer_problems, order_problems, requests_of, spawn_loop,
                          sum_command)

VMS = {1: ("A", "low"), 2: ("A", "high"), 3: ("A", "medium"), 4: ("A", "low"),
       5: ("B", "low"), 6: ("B", "high"), 7: ("B", "medium"), 8: ("B", "low")}
CHANNELS = ["file", "window"]
LEVELS = {"low": 0, "medium": 1, "high": 2}
SPINS_MS = [1500, 6000, 24000]


def numbers_of(vms):
    return {vm_id: (pool, LEVELS[priority]) for vm_id, (pool, priority) in vms.items()}


def ran(mediator):
    return [event["vm"] for event in mediator.events("process")]


def while_one_spins(start_mediator, spinner, work):
    """Does work(mediator) while `spinner` occupies its device.

    How long that must be depends on the machine, so when the spin was over
    before the work was done, all begins anew with a longer one.  Returns the
    mediator and {vm: job}: the jobs that work() began and the spinner's.
    """
    for spin_ms in SPINS_MS:
        mediator = start_mediator()
        spin = spawn_loop(spinner[1], [f"SPIN {spin_ms}"])
        mediator.wait_event("process", vm=spinner[0])
        jobs = {spinner[0]: spin, **work(mediator)}
        if mediator.events("response", vm=spinner[0]) == []:
            return mediator, jobs
        finish(jobs)
    raise AssertionError(f"nothing gets done within {SPINS_MS[-1]} ms on this machine")


def all_wait_behind_a_spin(lab, spinner, vm_ids, command=sum_command, **settings):
    """While `spinner` occupies its device, each of `vm_ids` sends a request and
    is seen waiting before the next one sends."""
    lab.boot(spinner, *vm_ids)

    def send_and_see(mediator):
        jobs = {}
        for number, vm_id in enumerate(vm_ids):
            jobs[vm_id] = spawn_loop(lab.guest(vm_id), [command(vm_id, number)])
            mediator.wait_event("queue", vm=vm_id)
        return jobs

    return while_one_spins(lambda: lab.start_mediator(**settings), (spinner, lab.guest(spinner)),
                           send_and_see)


def finish(jobs):
    """Waits for all; returns the guests' own records and who ended when."""
    ends, requests = [], []
    left = dict(jobs)
    while left:
        for vm_id, job in list(left.items()):
            if job.done():
                ends.append(vm_id)
                del left[vm_id]
        time.sleep(0.001)
    for job in jobs.values():
        status, output = job.wait()
        assert status == 0 and "status" not in output.split("{")[0], output
        requests += requests_of(output)
    return requests, ends


def test_three_waiting_vms_run_high_then_medium_then_low(lab):
    mediator, jobs = all_wait_behind_a_spin(lab, 4, [1, 2, 3])
    requests, _ = finish(jobs)
    assert ran(mediator) == [4, 2, 3, 1]
    assert answer_problems(mediator.events(), requests) == []
    assert order_problems(mediator.events()) == []
    assert [event["vm"] for event in mediator.events("response")] == [4, 2, 3, 1]


def test_the_guests_see_the_same_order(lab):
    """Long commands, so that the answers arrive in the order in which they ran."""
    mediator, jobs = all_wait_behind_a_spin(lab, 4, [1, 2, 3], lambda vm_id, number: "SPIN 600")
    requests, ends = finish(jobs)
    assert ends == [4, 2, 3, 1]
    assert answer_problems(mediator.events(), requests) == []


def test_equal_priorities_are_served_in_the_order_of_arrival(lab):
    vms = {vm_id: ("A", "medium") for vm_id in [1, 2, 3, 4]}
    mediator, jobs = all_wait_behind_a_spin(lab, 1, [3, 2, 4], vms=vms)
    requests, _ = finish(jobs)
    assert ran(mediator) == [1, 3, 2, 4]
    assert answer_problems(mediator.events(), requests) == []


def test_a_first_come_policy_is_told_from_ours(lab):
    """The check can fail: under `policy = fifo` it must."""
    mediator, jobs = all_wait_behind_a_spin(lab, 4, [1, 2, 3], policy="fifo")
    requests, _ = finish(jobs)
    assert ran(mediator) == [4, 1, 2, 3]
    assert answer_problems(mediator.events(), requests) == []
    assert order_problems(mediator.events()) == [
        "vm1 (low) ran when it was the turn of vm2 (high)"]


def test_pools_on_two_devices_do_not_disturb_each_other(lab):
    lab.boot(1, 2, 5, 6)
    devices = {"A": "cpu:0", "B": "cpu:1"}
    answered = []

    def serve_pool_b(mediator):
        """Pool A: one runs, one waits.  Meanwhile pool B goes on."""
        waiting = spawn_loop(lab.guest(1), [sum_command(1, 1)])
        mediator.wait_event("queue", vm=1)
        answered[:], _ = finish({
            vm_id: spawn_loop(lab.guest(vm_id), [sum_command(vm_id, n) for n in range(5)])
            for vm_id in [5, 6]})
        return {1: waiting}

    mediator, jobs = while_one_spins(lambda: lab.start_mediator(pools=devices),
                                     (2, lab.guest(2)), serve_pool_b)
    # All ten of pool B were answered, and pool A's device is still busy.
    assert len(answered) == 10 and not jobs[1].done()
    assert set(ran(mediator)) == {2, 5, 6}
    requests, _ = finish(jobs)
    assert answer_problems(mediator.events(), answered + requests) == []
    assert order_problems(mediator.events(), devices) == []


def test_shared_pools_on_one_device_are_one_queue(lab):
    mediator, jobs = all_wait_behind_a_spin(lab, 4, [1, 3, 7, 6],
                                            pools={"A": "cpu", "B": "cpu"})
    requests, _ = finish(jobs)
    assert ran(mediator) == [4, 6, 3, 7, 1]
    assert answer_problems(mediator.events(), requests) == []
    assert order_problems(mediator.events()) == []


def test_independent_pools_on_one_device_take_turns(lab):
    """A's three wait before B's first: as one queue, B's low ones would be last."""
    mediator, jobs = all_wait_behind_a_spin(lab, 4, [1, 2, 3, 5, 8, 7],
                                            pools={"A": "cpu", "B": "cpu"},
                                            pools_mode="independent")
    requests, _ = finish(jobs)
    assert ran(mediator) == [4, 2, 7, 3, 5, 1, 8]
    assert answer_problems(mediator.events(), requests) == []
    assert order_problems(mediator.events(), mode="independent") == []
    assert order_problems(mediator.events(), mode="shared") != []


@pytest.mark.parametrize("devices, mode", [
    ({"A": "cpu:0", "B": "cpu:1"}, "shared"),
    ({"A": "cpu", "B": "cpu"}, "shared"),
    ({"A": "cpu", "B": "cpu"}, "independent"),
], ids=["two-devices", "one-queue", "turns"])
def test_eight_vms_in_both_pools_at_once(lab, devices, mode):
    """All send as fast as they can: every answer its own, every turn right."""
    count = 6
    lab.boot(*VMS)
    mediator = lab.start_mediator(pools=devices, pools_mode=mode)
    requests, _ = finish({
        vm_id: spawn_loop(lab.guest(vm_id), [sum_command(vm_id, n) if n % 3 else "SPIN 50"
                                             for n in range(count)])
        for vm_id in VMS})
    assert len(requests) == count * len(VMS)
    assert all(answer_fits(request.command, request.answer) for request in requests)
    assert answer_problems(mediator.events(), requests) == []
    assert order_problems(mediator.events(), devices, mode) == []
    queued = {event["vm"]: (event["pool"], event["priority"])
              for event in mediator.events("queue")}
    assert queued == numbers_of(VMS)


def test_the_preferred_vm_wins_among_equals(lab):
    """Test mode without a terminal: held until three wait, then the chosen one first."""
    vms = {1: ("A", "medium"), 2: ("A", "medium"), 3: ("A", "medium")}
    lab.boot(*vms)
    mediator = lab.start_mediator(vms, arguments=["--hold-until", "3", "--prefer-vm", "3"])
    jobs = {}
    for vm_id in [1, 2, 3]:
        jobs[vm_id] = spawn_loop(lab.guest(vm_id), [sum_command(vm_id, 1)])
        mediator.wait_event("queue", vm=vm_id)
    requests, _ = finish(jobs)
    assert ran(mediator) == [3, 1, 2]
    assert answer_problems(mediator.events(), requests) == []
