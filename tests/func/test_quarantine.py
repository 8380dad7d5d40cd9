# SPDX-License-Identifier: Apache-2.0
"""A VM whose work goes wrong too often is put aside by itself, for a while or until somebody
releases it; others are served all the while."""

import json
import os
import signal
import subprocess
import time

import pytest

from admin_support import ADMIN
from control_support import admin, control, make_registered
from cuda_support import workers_of
from support import WAIT_S, wait_until
from window_peer import (DEVICE_LOST, OK, OP_ALLOC, OP_PING, OP_RESET, OP_SET, REFUSED_STATUS,
                         Peer, Refused)

KERNEL_FAULT = 16

VMS = {1: ("A", 1), 2: ("A", 1)}
SETTINGS = {"quarantine_faults": 3, "quarantine_window_s": 3600, "quarantine_cooldown_s": 0}
REASON = "3 faults in 3600 s, last a worker died"


@pytest.fixture
def registered(mediator):
    return lambda **options: make_registered(mediator, VMS, **{**SETTINGS, **options})


def peer_of(m, vm_id):
    return Peer(m.state / "run" / f"vm{vm_id}.sock").connect().hello()


def known(m, vm_id):
    with control(m) as client:
        return client.vm(vm_id)


def registry(m, vm_id):
    return json.loads(admin(m, "show-vm", vm_id, "--json"))["vm"]


def events(m, action):
    return json.loads(admin(m, "events", "--action", action, "--json"))["events"]


def crash(m, vm_id):
    """One request whose worker dies."""
    pid = m.occupy(vm_id)
    m.release(pid)
    return m.vm(vm_id).wait_answer()


def crash_until_quarantined(m, vm_id=1):
    for _ in range(3):
        assert crash(m, vm_id).startswith("2:worker killed by signal 9")
    wait_until(lambda: known(m, vm_id)["state"] == "quarantined", "its quarantine")


def release_there(m, vm_id):
    done = subprocess.run([str(ADMIN), "release", "--config", str(m.config), "--toolstack", "none",
                           str(vm_id)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- too much is too much -----------------------------------------------------------------------


def test_a_vm_whose_workers_die_is_quarantined_and_others_are_served(registered):
    m = registered()
    crash_until_quarantined(m)
    assert m.vm(1).ask("PING") == f"2:VM 1 is quarantined: {REASON}"
    assert m.vm(2).ask("PING") == "1:PONG"
    wait_until(lambda: registry(m, 1)["state"] == "quarantined", "the database")
    vm = registry(m, 1)
    assert (vm["reason"], vm["quarantine_until"]) == (REASON, None)
    event, = events(m, "quarantine")
    assert (event["actor"], event["vm_id"], event["after"]["reason"]) == (
        "vgpu-mediator", 1, REASON)
    assert known(m, 1)["faults"] == {"worker": 3, "kernel": 0, "time_limit": 0, "rings": 0}
    assert m.events("quarantine", vm=1)


def test_fewer_faults_or_longer_ago_are_no_quarantine(registered):
    m = registered(quarantine_window_s=1)
    for _ in range(2):
        crash(m, 1)
    time.sleep(1.1)
    for _ in range(2):
        crash(m, 1)
    assert m.vm(1).ask("PING") == "1:PONG"
    assert known(m, 1)["faults"]["worker"] == 4


def test_no_number_of_faults_is_a_quarantine_where_it_is_off(registered):
    m = registered(quarantine_faults=0)
    for _ in range(5):
        crash(m, 1)
    assert m.vm(1).ask("PING") == "1:PONG"


def test_a_reload_changes_what_is_too_much(registered):
    m = registered(quarantine_faults=1000, quarantine_window_s=10, quarantine_cooldown_s=100)
    for _ in range(2):
        crash(m, 1)
    m.settings.update(quarantine_faults=2, quarantine_window_s=3600, quarantine_cooldown_s=0)
    m.write_config()
    changed = [row.split()[1] for row in admin(m, "reload").splitlines()
               if row.startswith("mediator")]
    assert changed == ["quarantine_faults", "quarantine_window_s", "quarantine_cooldown_s"]
    crash(m, 1)  # they are counted anew
    assert m.vm(1).ask("PING") == "1:PONG"
    crash(m, 1)
    wait_until(lambda: known(m, 1)["state"] == "quarantined", "its quarantine")
    assert m.vm(1).ask("PING") == "2:VM 1 is quarantined: 2 faults in 3600 s, last a worker died"
    wait_until(lambda: registry(m, 1)["state"] == "quarantined", "the database")
    assert registry(m, 1)["quarantine_until"] is None


def test_a_window_session_that_crashes_and_crashes_is_refused(registered):
    m = registered()
    with peer_of(m, 1) as peer, peer_of(m, 2) as other:
        session, calm = peer.open(), other.open()
        session.ping()
        for _ in range(3):
            pid, = workers_of(m, 1)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: session.run(OP_PING)[1] in (DEVICE_LOST, REFUSED_STATUS),
                       "the loss")
            session.run(OP_RESET)
        wait_until(lambda: session.run(OP_PING)[1] == REFUSED_STATUS, "refusals")
        calm.ping()
        with pytest.raises(Refused, match="is quarantined: 3 faults in 3600 s"):
            with peer_of(m, 1) as another:
                another.open()
        admin(m, "release", 1)
        wait_until(lambda: session.run(OP_RESET)[1] == OK, "a session that may work again")
        session.ping()


def test_operations_that_run_too_long_and_rings_that_make_no_sense_are_faults(registered):
    m = registered(operation_limit_ms=200)
    assert "longer than its limit" in m.vm(1).ask("SPIN 60000")
    with peer_of(m, 1) as peer:
        session = peer.open()
        assert session.text("SPIN 60000")[0] != OK
        session.run(OP_RESET)
        session.word(0, session.sq_tail + 5000)  # more than its ring has
        session.ring_doorbell()
        wait_until(lambda: known(m, 1)["state"] == "quarantined", "its quarantine")
    assert known(m, 1)["faults"] == {"worker": 0, "kernel": 0, "time_limit": 2, "rings": 1}
    assert "last its rings made no sense" in m.vm(1).ask("PING")


def test_kernels_that_do_what_the_gpu_forbids_are_faults(cuda, fake):
    m = cuda(channels="window", **SETTINGS)
    with peer_of(m, 1) as peer, peer_of(m, 2) as other:
        session, calm = peer.open(), other.open()
        for number in range(1, 4):
            address, status = session.run(OP_ALLOC, [4096])
            assert status == OK
            pid, = workers_of(m, 1)
            fake.order("fail cuMemsetD8Async * 700", f"only {pid}")
            assert session.run(OP_SET, [address, 4096, 1 << 32])[1] == KERNEL_FAULT
            wait_until(lambda: session.run(OP_PING)[1] in (DEVICE_LOST, REFUSED_STATUS), "the loss")
            wait_until(lambda number=number: known(m, 1)["faults"]["kernel"] == number, "its fault")
            fake.order()
            if number < 3:
                wait_until(lambda: session.run(OP_RESET)[1] == OK, "a new beginning")
        assert session.run(OP_PING)[1] == REFUSED_STATUS
        calm.ping()
    assert known(m, 1)["faults"] == {"worker": 0, "kernel": 3, "time_limit": 0, "rings": 0}


# --- and ends --------------------------------------------------------------------------------------


def test_a_quarantine_ends_by_hand_and_forgives(registered):
    m = registered()
    crash_until_quarantined(m)
    wait_until(lambda: registry(m, 1)["state"] == "quarantined", "the database")
    admin(m, "release", 1)
    for _ in range(2):  # no more than that
        crash(m, 1)
    assert m.vm(1).ask("PING") == "1:PONG"


def test_a_quarantine_ends_after_its_time(registered):
    m = registered(quarantine_cooldown_s=1)
    crash_until_quarantined(m)
    wait_until(lambda: m.vm(1).ask("PING") == "1:PONG", "its end")
    assert registry(m, 1)["state"] == "active"
    event, = events(m, "release")
    assert (event["actor"], event["before"]["reason"]) == ("vgpu-mediator", REASON)


def test_the_next_mediator_ends_a_quarantine_in_time(registered):
    m = registered(quarantine_cooldown_s=2)
    crash_until_quarantined(m)
    wait_until(lambda: registry(m, 1)["quarantine_until"], "the database")
    m.stop()
    m.start()
    wait_until(lambda: m.vm(1).ask("PING") == "1:PONG", "its end")
    assert known(m, 1)["quarantine_until_us"] is None


def test_an_administrators_quarantine_does_not_end_by_itself(registered):
    m = registered(quarantine_cooldown_s=1)
    crash_until_quarantined(m)
    wait_until(lambda: registry(m, 1)["quarantine_until"], "the database")
    admin(m, "quarantine", 1, "--reason", "to be looked at")
    assert registry(m, 1)["quarantine_until"] is None
    time.sleep(1.5)
    assert m.vm(1).ask("PING") == "2:VM 1 is quarantined: to be looked at"


# --- without a database ----------------------------------------------------------------------------


def test_a_mediator_without_a_database_quarantines_and_releases_too(mediator):
    m = mediator(VMS, **SETTINGS)
    crash_until_quarantined(m)
    assert m.vm(1).ask("PING") == f"2:VM 1 is quarantined: {REASON}"
    assert m.vm(2).ask("PING") == "1:PONG"
    m.config.write_text(m.config.read_text() + "[admin]\ntoolstack = none\n")
    assert release_there(m, 1) == "VM 1: released\n"
    assert release_there(m, 1) == "VM 1: nothing to change\n"
    assert m.vm(1).ask("PING") == "1:PONG"


def test_a_quarantine_without_a_database_ends_after_its_time(mediator):
    m = mediator(VMS, **{**SETTINGS, "quarantine_cooldown_s": 1})
    crash_until_quarantined(m)
    wait_until(lambda: m.vm(1).ask("PING") == "1:PONG", "its end")
    assert m.events("released", vm=1)
