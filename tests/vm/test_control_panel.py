# SPDX-License-Identifier: Apache-2.0
"""An administrator's day, for real: ten guests of a real libvirtd, pools A and B.

Only vgpu-admin changes anything; what came of it is seen in the guests, in the order in
which the mediator runs their requests, and in what vgpu-admin shows.
"""

import json
import random
import signal
import subprocess
import time

import pytest

from harness.libvirt import LibvirtLab
from harness.load import answer_fits, requests_of, spawn_loop, sum_command

POOLS = {vm_id: "A" if vm_id <= 7 else "B" for vm_id in range(1, 11)}
WAIT_S = 90
KILLS = 25


def name_of(vm_id):
    return f"vm{vm_id}"


@pytest.fixture(scope="module")
def host():
    with LibvirtLab(grant_ops=1, log_level="debug") as lab:
        for vm_id in POOLS:
            lab.libvirt.define(name_of(vm_id), append="vgpu.module")
        lab.unregistered = lab.json("scan-vms")["vms"]
        for vm_id, pool in POOLS.items():
            lab.good("register-vm", name_of(vm_id), "--pool", pool)
        for vm_id in POOLS:
            lab.good("start-vm", name_of(vm_id))
        for vm_id in POOLS:
            lab.libvirt.guest(name_of(vm_id)).channel = "window"
        yield lab


def guest_of(host, vm_id):
    return host.libvirt.guests[name_of(vm_id)]


def registers(guest):
    device, = json.loads(guest.check("vgpu-client --json info"))["devices"]
    values = {register["name"]: register["value"] for register in device["registers"]}
    return chr(values["pool_id"]), values["priority"], values["vm_id"]


def wait_until(condition, what):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.05)


def ask(host, *vm_ids):
    """All at once; each has a sum of its own, and the answer is right."""
    jobs = {vm_id: spawn_loop(guest_of(host, vm_id), [sum_command(vm_id, 1)]) for vm_id in vm_ids}
    for vm_id, job in jobs.items():
        request, = requests_of(job.wait(WAIT_S)[1])
        assert request.channel == "window"
        assert answer_fits(request.command, request.answer), (vm_id, request)


def waiting(host):
    device, = host.json("queue")["devices"]
    return [entry["vm_id"] for entry in device["waiting"]]


def order_of(host, senders, meanwhile=lambda: None):
    """Held until all of them wait, sent one after the other; then the order of the runs."""
    host.good("test-mode", "on", "--hold-until", len(senders) + 1)
    jobs = {}
    for vm_id in senders:
        jobs[vm_id] = spawn_loop(guest_of(host, vm_id), [sum_command(vm_id, 2)])
        wait_until(lambda: vm_id in waiting(host), f"vm{vm_id} in the queue")
    meanwhile()
    seen = waiting(host)
    before = len(host.mediator_log())
    host.good("test-mode", "off")
    for vm_id, job in jobs.items():
        request, = requests_of(job.wait(WAIT_S)[1])
        assert answer_fits(request.command, request.answer), (vm_id, request)
    events = [json.loads(line) for line in host.mediator_log()[before:].splitlines()]
    ran = [event["vm"] for event in events if event["event"] == "process"]
    assert ran == seen, "the queue that was shown is the order in which they ran"
    return ran


def test_scan_finds_them_unregistered_with_the_command_that_registers_each(host):
    assert {vm["name"] for vm in host.unregistered} == {name_of(vm_id) for vm_id in POOLS}
    for vm in host.unregistered:
        assert not vm["registered"]
        assert vm["command"].startswith("vgpu-admin register-vm ")


def test_ten_registered_guests_see_their_device_and_work(host):
    for vm_id, pool in POOLS.items():
        assert registers(guest_of(host, vm_id)) == (pool, 1, vm_id)
    ask(host, *POOLS)


def test_the_very_next_requests_follow_a_changed_priority(host):
    assert order_of(host, [3, 1, 2]) == [3, 1, 2]  # all medium: first come
    host.good("set-priority", "vm1", "low")
    host.good("set-priority", "vm2", "high")
    assert order_of(host, [3, 1, 2]) == [2, 3, 1]
    host.good("set-priority", "vm1", "high")
    host.good("set-priority", "vm2", "low")
    assert order_of(host, [3, 2, 1]) == [1, 3, 2]
    assert [registers(guest_of(host, vm_id))[1] for vm_id in (1, 2, 3)] == [2, 0, 1]
    for name in ("vm1", "vm2"):
        host.good("set-priority", name, "medium")


def test_requests_that_wait_already_follow_it_too(host):
    def change():
        host.good("set-priority", "vm4", "low")
        host.good("set-priority", "vm6", "high")
    assert order_of(host, [4, 5, 6], change) == [6, 5, 4]
    for name in ("vm4", "vm6"):
        host.good("set-priority", name, "medium")


def test_a_quarantined_vm_is_refused_with_the_reason_and_the_others_work(host):
    host.good("quarantine", "vm9", "--reason", "unpaid since March")
    status, output = guest_of(host, 9).run("vgpu-client PING")
    assert status != 0
    # Without files the module gives the guest a number for it; the words are in the log.
    assert "the host's administrator has quarantined this VM" in output, output
    assert "VM 9 is quarantined: unpaid since March" in host.mediator_log()
    ask(host, 8, 10)
    assert {vm["vm_id"]: vm["state"] for vm in host.json("list-vms")["vms"]}[9] == "quarantined"
    host.good("release", "vm9")
    ask(host, 9)


def shut_down_when_asked(guest):
    """As acpid would: the test guests have none."""
    guest.spawn("modprobe button && modprobe evdev\n"
                "for event in /dev/input/event*; do\n"
                "    exec 3<$event\n"
                "    { dd of=/dev/null bs=24 count=1 <&3; poweroff -f; } &\n"
                "done\necho listens\nwait").wait_output("listens", WAIT_S)


def renumber(host, old, new):
    """The guest itself shuts down: it is not powered off."""
    shut_down_when_asked(guest_of(host, 7))
    answer = host.json("set-vm-id", str(old), str(new), "--yes", "--timeout", "100")
    assert (answer["restarted"], answer["toolstack"]) == (True, "libvirt")


def test_a_renumbered_vm_is_shut_down_changed_and_started_again(host):
    renumber(host, 7, 77)
    guest = host.libvirt.guest(name_of(7))
    guest.channel = "window"
    assert registers(guest) == ("A", 1, 77)
    ask(host, 7)
    assert host.json("show-vm", "vm7")["vm"]["vm_id"] == 77
    assert host.admin("show-vm", "7")[0] == 3
    renumber(host, 77, 7)
    host.libvirt.guest(name_of(7)).channel = "window"
    ask(host, 7)


def test_killed_while_it_writes_the_database_stays_whole_and_guests_follow_it(host):
    chance = random.Random(4)
    for number in range(KILLS):
        change = subprocess.Popen([host.program, "set-priority", "vm10",
                                   ["low", "medium", "high"][number % 3], "--toolstack", "none"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.random() * 0.03)
        change.send_signal(signal.SIGKILL)
        change.wait()
    checks = host.json("preflight", "--only", "database")["checks"]
    assert [check["verdict"] for check in checks] == ["pass"]
    assert len(host.json("list-vms")["vms"]) == len(POOLS)
    host.good("reload")  # a killed one told nobody
    priority = {"low": 0, "medium": 1, "high": 2}[host.json("show-vm", "vm10")["vm"]["priority"]]
    wait_until(lambda: registers(guest_of(host, 10))[1] == priority, "the registers")
    ask(host, 10)
    host.good("set-priority", "vm10", "medium")


def test_status_scan_and_events_show_it_all(host):
    host.good("set-pool", "vm7", "B")
    host.good("set-pool", "vm7", "A")
    status = host.json("status")
    assert {vm["vm_id"]: vm["pool"] for vm in status["vms"]} == POOLS
    assert {pool["id"] for pool in status["pools"]} >= {"A", "B"}
    assert all(vm["operations"] > 0 for vm in status["vms"]), status["vms"]
    found = host.json("scan-vms")["vms"]
    assert [(vm["vm"]["vm_id"], vm["vm"]["pool"], vm["state"]) for vm in found] == \
        [(vm_id, pool, "running") for vm_id, pool in POOLS.items()]
    events = host.json("events", "--limit", "0")["events"]
    actions = [event["action"] for event in events]
    assert actions.count("register-vm") == len(POOLS)
    assert {"init", "register-vm", "set-priority", "set-pool", "quarantine", "release",
            "set-vm-id"} <= set(actions)
    moved = [event for event in events if event["action"] == "set-pool"]
    assert [(event["before"]["pool"], event["after"]["pool"]) for event in moved[-2:]] == \
        [("A", "B"), ("B", "A")]
