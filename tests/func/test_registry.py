# SPDX-License-Identifier: Apache-2.0
"""Pools and VMs from the database, and each change of them applied to what runs and
waits: what the registry says counts, whatever a request or a register claims."""

import os
import signal
import sqlite3

import pytest
import support
import window_peer
from control_support import Failed, admin, control, make_registered
from support import both_channels, wait_until

LOW, MEDIUM, HIGH = 0, 1, 2
NAMES = ["low", "medium", "high"]

pytestmark = pytest.mark.threads


@pytest.fixture
def registered(mediator):
    """registered({1: ("A", 2)}): a mediator with these VMs in its database."""
    return lambda vms, **options: make_registered(mediator, vms, **options)


def remove(m, vm_id):
    m.allow_error("cannot open directory")  # it goes before the mediator is told
    admin(m, "remove-vm", vm_id, "--yes")


def order_after(m, spinner, waiting, change):
    """Queues `waiting` while `spinner` has the device, changes something, and returns
    the order in which they ran."""
    after = m.mark()
    pid = m.occupy(spinner)
    m.queue(*waiting)
    change()
    m.release(pid)
    m.wait_event("response", count=len(waiting) + 1, after=after)
    m.wait_event("process", count=len(waiting) + 1, after=after)
    return m.order(after=after)[1:]


# --- the start -------------------------------------------------------------------------


@both_channels
def test_the_vms_of_the_database_are_served(registered):
    m = registered({1: ("A", LOW), 7: ("B", HIGH)})
    assert m.vm(1).ask("PING") == "1:PONG"
    assert m.vm(7).ask("PING") == "1:PONG"
    assert m.events("ready")[0]["vms"] == 2


def test_sections_beside_a_database_are_refused(registered):
    m = registered({1: ("A", LOW)}, start=False)
    m.config.write_text(m.config.read_text() + "[vm 2]\npool = A\n")
    done = support.run("--config", m.config, "--check-config")
    assert done.returncode == 1
    assert "pools and VMs stand in one place" in done.stderr


def test_a_missing_database_is_no_start(registered):
    m = registered({1: ("A", LOW)}, start=False)
    m.settings["database"] = m.directory / "elsewhere.db"
    m.write_config()
    done = support.run("--config", m.config)
    assert done.returncode == 1
    assert "elsewhere.db" in done.stderr and "vgpu-admin init" in done.stderr


def test_a_damaged_database_is_no_start(registered):
    m = registered({1: ("A", LOW)}, start=False)
    m.settings["database"].write_bytes(b"SQLite format 3\0" + b"\xa5" * 8192)
    done = support.run("--config", m.config)
    assert done.returncode == 1 and str(m.settings["database"]) in done.stderr


def test_a_newer_database_is_no_start(registered):
    m = registered({1: ("A", LOW)}, start=False)
    with sqlite3.connect(m.settings["database"]) as rows:
        version, = rows.execute("PRAGMA user_version").fetchone()
        rows.execute(f"PRAGMA user_version = {version + 90}")
    rows.close()
    done = support.run("--config", m.config)
    assert done.returncode == 1 and str(m.settings["database"]) in done.stderr
    assert "newer" in done.stderr


@both_channels
def test_a_database_that_cannot_be_read_changes_nothing(registered):
    m = registered({1: ("A", LOW)})
    m.allow_error("not read again")
    hidden = m.directory / "hidden"
    m.settings["database"].rename(hidden)
    with control(m) as c, pytest.raises(Failed) as failure:
        c.call("reload")
    assert failure.value.code == "not-read" and "vgpu-admin init" in failure.value.message
    m.process.send_signal(signal.SIGHUP)
    m.wait_message("nothing changes")
    assert m.vm(1).ask("PING") == "1:PONG"
    hidden.rename(m.settings["database"])
    admin(m, "set-priority", 1, "high")
    with control(m) as c:
        assert c.vm(1)["priority"] == HIGH


# --- pool and priority, while requests wait and claim the old ones ------------------------


@both_channels
@pytest.mark.parametrize("before, after", [(LOW, HIGH), (HIGH, LOW), (MEDIUM, HIGH), (MEDIUM, LOW)])
def test_a_new_priority_counts_for_what_waits(registered, before, after):
    m = registered({9: ("A", MEDIUM), 1: ("A", MEDIUM), 2: ("A", before), 3: ("A", MEDIUM)})
    if before != MEDIUM:
        assert order_after(m, 9, [1, 2, 3], lambda: None) == ([2, 1, 3] if before == HIGH else
                                                              [1, 3, 2])
    order = order_after(m, 9, [1, 2, 3], lambda: admin(m, "set-priority", 2, NAMES[after]))
    assert order == ([2, 1, 3] if after == HIGH else [1, 3, 2])
    # The next requests claim what was: so it stays.
    assert order_after(m, 9, [1, 2, 3], lambda: None) == order


@both_channels
@pytest.mark.parametrize("before, after", ["AB", "BA"])
def test_a_new_pool_counts_for_what_waits(registered, before, after):
    m = registered({9: ("A", HIGH), 1: ("A", MEDIUM), 2: ("A", MEDIUM), 3: (before, HIGH),
                    4: ("B", MEDIUM), 5: ("B", MEDIUM)})
    for pool in "AB":
        admin(m, "update-pool", pool, "--sharing", "independent")
    # The pools take turns, A first: its device was asked for first.
    in_a, in_b = [3, 4, 1, 5, 2], [1, 3, 2, 4, 5]
    order = order_after(m, 9, [1, 2, 4, 5, 3], lambda: admin(m, "set-pool", 3, after))
    assert order == (in_a if after == "A" else in_b)
    with control(m) as c:
        assert c.vm(3)["pool"] == after
        if m.channel == "file":
            assert c.vm(3)["claim_differences"] == 0
    m.vm(3).ask("PING")
    with control(m) as c:
        assert c.vm(3)["claim_differences"] == (1 if m.channel == "file" else 0)


def test_pools_begin_and_end_to_take_turns_while_requests_wait(registered):
    m = registered({9: ("A", HIGH), 1: ("A", HIGH), 2: ("A", HIGH), 3: ("B", LOW), 4: ("B", LOW)})
    order = order_after(m, 9, [1, 2, 3, 4],
                        lambda: admin(m, "update-pool", "B", "--sharing", "independent"))
    assert order == [1, 3, 2, 4]
    order = order_after(m, 9, [1, 2, 3, 4],
                        lambda: admin(m, "update-pool", "B", "--sharing", "shared"))
    assert order == [1, 2, 3, 4]


@both_channels
def test_a_pool_that_is_bound_to_another_device_takes_its_waiting_vms_along(registered):
    m = registered({9: ("A", HIGH), 1: ("B", LOW)})
    pid = m.occupy(9)
    m.queue(1)
    admin(m, "bind-device", "B", "cpu:1")
    assert m.vm(1).wait_answer() == "1:PONG 1"  # VM 9 still has the other one
    m.release(pid)


def test_a_new_pool_can_be_used_at_once(registered):
    m = registered({1: ("A", LOW)})
    admin(m, "create-pool", "C", "--device", "cpu:2")
    admin(m, "set-pool", 1, "C")
    assert m.vm(1).ask("PING") == "1:PONG"
    with control(m) as c:
        assert [pool["id"] for pool in c.call("status")["pools"]] == ["A", "B", "C"]
    admin(m, "set-pool", 1, "A")
    admin(m, "remove-pool", "C")
    with control(m) as c:
        assert [pool["id"] for pool in c.call("status")["pools"]] == ["A", "B"]
    m.vms[1] = ("C", LOW)
    assert m.vm(1).ask("PING").startswith("2:pool 'C' does not exist")


def test_a_guests_link_is_told_of_each_change(registered):
    m = registered({1: ("A", LOW)})
    with window_peer.Peer(m.state / "run/vm1.sock") as peer:
        peer.connect().hello()
        assert peer.config == (1, ord("A"), LOW, 8)
        admin(m, "set-pool", 1, "B")
        peer.until(lambda: peer.config == (1, ord("B"), LOW, 8))
        admin(m, "set-priority", 1, "high")
        peer.until(lambda: peer.config == (1, ord("B"), HIGH, 8))
        admin(m, "set-limit", 1, "--sessions", 3)
        peer.until(lambda: peer.config == (1, ord("B"), HIGH, 3))


def test_sighup_and_reload_are_the_same(registered):
    m = registered({1: ("A", LOW)})
    with sqlite3.connect(m.settings["database"]) as rows:
        rows.execute("UPDATE vms SET priority = 2")
    rows.close()
    m.process.send_signal(signal.SIGHUP)
    m.wait_event("config", vm=1, priority=HIGH)
    with sqlite3.connect(m.settings["database"]) as rows:
        rows.execute("UPDATE vms SET priority = 0")
    rows.close()
    with control(m) as c:
        done = c.call("reload")
        assert done["count"] == 1 and done["files_done"]
        assert done["changes"] == [{"vm_id": 1, "what": "priority", "before": "high",
                                    "after": "low"}]
        assert c.call("reload") == {"count": 0, "changes": [], "next_start": [], "files_done": True,
                                    "database": str(m.settings["database"])}


def test_a_database_that_somebody_holds_stops_nobody(registered):
    m = registered({1: ("A", LOW), 2: ("A", LOW)})
    rows = sqlite3.connect(m.settings["database"], isolation_level=None)
    rows.execute("PRAGMA locking_mode = EXCLUSIVE")
    rows.execute("BEGIN IMMEDIATE")
    with control(m) as c:
        with pytest.raises(Failed) as failure:
            c.call("reload")
        assert failure.value.code == "busy"
        assert m.vm(1).ask("PING") == "1:PONG"
        rows.close()
        assert c.call("reload")["count"] == 0


# --- VMs that come and go -------------------------------------------------------------------


@both_channels
def test_a_vm_that_is_registered_live_is_served_at_once(registered):
    m = registered({1: ("A", LOW)})
    admin(m, "register-vm", "late", "--vm-id", 5, "--pool", "B", "--priority", "high")
    m.vms[5] = ("B", HIGH)
    assert (m.share / "vm5/response.txt").read_text() == "0:Ready\n"
    assert m.vm(5).ask("PING") == "1:PONG"
    with control(m) as c:
        assert c.vm(5)["name"] == "late"


def test_a_removed_vms_waiting_request_is_refused(registered):
    m = registered({9: ("A", HIGH), 1: ("A", LOW)})
    pid = m.occupy(9)
    m.queue(1)
    response = os.open(m.vm(1).response, os.O_RDONLY)  # its directory goes
    remove(m, 1)
    wait_until(lambda: os.pread(response, 100, 0) == b"2:VM 1 was removed by the administrator\n",
               lambda: f"the refusal; it is {os.pread(response, 100, 0)}")
    os.close(response)
    assert not (m.state / "run/vm1.sock").exists()
    m.release(pid)
    assert m.vm(9).wait_answer().startswith("2:worker killed")
    with control(m) as c:
        assert [vm["vm_id"] for vm in c.call("status")["vms"]] == [9]
        with pytest.raises(Failed) as failure:
            c.call("status", vm_id=1)
    assert failure.value.code == "no-such-vm"


def test_a_removed_vms_running_request_is_ended_and_refused(registered):
    m = registered({1: ("A", LOW), 2: ("A", LOW)})
    m.occupy(1)
    response = os.open(m.vm(1).response, os.O_RDONLY)
    remove(m, 1)
    wait_until(lambda: os.pread(response, 100, 0) == b"2:VM 1 was removed by the administrator\n",
               "the refusal")
    os.close(response)
    assert m.vm(2).ask("PING") == "1:PONG"


def test_a_removed_vms_sessions_end_and_its_socket_goes(registered):
    m = registered({1: ("A", LOW), 2: ("A", LOW)})
    with window_peer.Peer(m.state / "run/vm1.sock") as peer:
        session = peer.connect().hello().open()
        session.submit(window_peer.OP_TEXT, [0, 0, 0])
        session.ping_later = session.submit(window_peer.OP_PING)
        remove(m, 1)
        with pytest.raises(window_peer.PeerError, match="removed by the administrator"):
            peer.until(lambda: False)
        assert not (m.state / "run/vm1.sock").exists()
        assert list((m.state / "run/sessions").glob("vm1-*")) == [] or wait_until(
            lambda: not list((m.state / "run/sessions").glob("vm1-*")), "its files gone")
    assert m.vm(2).ask("PING") == "1:PONG"


@both_channels
def test_a_vm_can_be_removed_and_registered_again(registered):
    m = registered({1: ("A", LOW)})
    for _ in range(3):
        assert m.vm(1).ask("PING") == "1:PONG"
        m.close_windows()
        remove(m, 1)
        admin(m, "register-vm", "again", "--vm-id", 1)
        if m.channel == "file":
            m.vm(1).wait_directory()


# --- quarantine, disabled pools -----------------------------------------------------------------


@both_channels
def test_a_quarantined_vm_is_refused_until_it_is_released(registered):
    m = registered({9: ("A", HIGH), 1: ("A", LOW), 2: ("A", LOW)})
    m.vm(1).ask("PING")
    refused = "2:VM 1 is quarantined: too loud" if m.channel == "file" else "2:refused"
    pid = m.occupy(9)
    m.queue(1, 2)
    admin(m, "quarantine", 1, "--reason", "too loud")
    assert m.vm(1).wait_answer() == refused  # what waited, while VM 9 has the device
    assert m.vm(1).ask("PING") == refused
    with control(m) as c:
        assert c.vm(1)["state"] == "quarantined" and c.vm(1)["refusals"] >= 2
        assert c.vm(1)["reason"] == "VM 1 is quarantined: too loud"
    m.release(pid)
    assert m.vm(2).wait_answer() == "1:PONG 2"
    admin(m, "release", 1)
    assert m.vm(1).ask("PING") == "1:PONG"
    ran = [vm for vm, _ in m.executions()]
    assert ran.count(1) == 2  # what was refused never ran


@both_channels
def test_what_runs_when_its_vm_is_quarantined_comes_to_its_end(registered):
    m = registered({1: ("A", LOW), 2: ("A", LOW)})
    pid = m.occupy(1)
    admin(m, "quarantine", 1)
    with control(m) as c:
        assert c.vm(1)["running"]
    m.release(pid)
    assert m.vm(1).wait_answer()[:2] == "2:"
    assert m.vm(2).ask("PING") == "1:PONG"
    admin(m, "release", 1)
    assert m.vm(1).ask("PING") == "1:PONG"


def test_a_quarantined_vms_sessions_keep_what_they_hold(registered):
    m = registered({1: ("A", LOW)})
    with window_peer.Peer(m.state / "run/vm1.sock", slots=2, window_bytes=4 << 20) as peer:
        session = peer.connect().hello().open()
        address, status = session.run(window_peer.OP_ALLOC, [4096])
        assert status == window_peer.OK
        assert session.run(window_peer.OP_SET, [address, 4, 0x61626364 | 4 << 32])[1] == 0
        admin(m, "quarantine", 1, "--reason", "a look at it")
        for _ in range(5):
            assert session.run(window_peer.OP_PING)[1] == window_peer.REFUSED_STATUS
        with pytest.raises(window_peer.Refused, match="VM 1 is quarantined: a look at it"):
            peer.open(1)
        admin(m, "release", 1)
        _, status = session.run(window_peer.OP_COPY_OUT, [window_peer.HEAP, address, 16])
        assert status == window_peer.OK
        assert session.get(window_peer.HEAP, 16) == b"dcba" * 4
        peer.open(1).ping()


@both_channels
def test_a_disabled_pool_refuses_its_vms(registered):
    m = registered({1: ("A", LOW), 2: ("B", LOW)})
    admin(m, "update-pool", "B", "--enabled", "no")
    refused = "2:refused"
    if m.channel == "file":
        refused = "2:pool B is disabled: the administrator enables it, or puts VM 2 into another"
        assert m.vm(2).ask("PING") == refused
    else:
        with pytest.raises(window_peer.Refused, match="pool B is disabled"):
            m.vm(2).ask("PING")
        m.close_windows()
    assert m.vm(1).ask("PING") == "1:PONG"
    admin(m, "update-pool", "B", "--enabled", "yes")
    assert m.vm(2).ask("PING") == "1:PONG"


def test_a_disabled_pool_refuses_unregistered_vms_that_claim_it(registered):
    m = registered({1: ("A", LOW)}, unregistered="accept")
    admin(m, "update-pool", "B", "--enabled", "no")
    guest = support.Vm(m.share, 55, "B", LOW)
    m.make_directory(guest)
    guest.wait_directory()
    assert guest.ask("PING").startswith("2:pool B is disabled")
    guest.pool = "A"
    assert guest.ask("PING") == "1:PONG"


def test_a_pool_without_a_device_that_can_be_used_refuses_its_vms(registered):
    m = registered({1: ("A", LOW), 2: ("B", LOW)})
    admin(m, "bind-device", "B", "GPU-11111111-2222-3333-4444-555555555555")
    refusal = "2:pool B: its device GPU-11111111-2222-3333-4444-555555555555 does not work: "
    wait_until(lambda: m.events("no-gpu"), "the end of its check")
    assert m.vm(2).ask("PING").startswith(refusal)
    assert m.vm(1).ask("PING") == "1:PONG"
    admin(m, "bind-device", "B", "cpu")
    assert m.vm(2).ask("PING") == "1:PONG"


# --- limits, access ------------------------------------------------------------------------------


@both_channels
def test_a_lower_operation_limit_ends_what_runs_too_long(registered):
    m = registered({1: ("A", LOW), 2: ("A", LOW)})
    m.occupy(1)
    admin(m, "set-limit", 1, "--operation-limit", 50)
    answer = m.vm(1).wait_answer()
    if m.channel == "file":
        assert answer == ("2:operation ran longer than its limit of 50 ms and was ended; the next "
                          "request works")
    else:
        # Which of the two, its bounded grant or its operation, was found to be too long?
        assert answer in ("2:time limit", "2:device lost")
    assert m.vm(2).ask("PING") == "1:PONG"


def test_a_new_limit_of_memory_counts_at_once_and_of_sessions_for_those_that_open_later(registered):
    m = registered({1: ("A", LOW)})
    with window_peer.Peer(m.state / "run/vm1.sock", slots=3, window_bytes=8 << 20) as peer:
        first = peer.connect().hello().open()
        assert first.run(window_peer.OP_QUERY, [1])[0] == 1024 << 20
        admin(m, "set-limit", 1, "--sessions", 2, "--device-memory", 16)
        assert peer.open(1).run(window_peer.OP_QUERY, [1])[0] == 16 << 20
        assert first.run(window_peer.OP_QUERY, [1])[0] == 16 << 20
        with pytest.raises(window_peer.Refused, match="VM 1 has its 2 sessions"):
            peer.open(2)
        admin(m, "set-limit", 1, "--sessions", "default")
        peer.open(2).ping()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owner_and_mode_change_live(registered):
    m = registered({1: ("A", LOW)})
    m.vm(1).ask("PING")
    places = [m.share / "vm1", m.state / "run/vm1.sock", m.share / "vm1/response.txt"]
    admin(m, "update-vm", 1, "--owner", "4242:4343", "--mode", "0770")
    found = [(at.stat().st_uid, at.stat().st_gid, at.stat().st_mode & 0o777) for at in places]
    assert found == [(4242, 4343, 0o770), (4242, 4343, 0o660), (4242, 4343, 0o660)]
    admin(m, "update-vm", 1, "--owner", "default", "--mode", "0700")
    found = [(at.stat().st_uid, at.stat().st_mode & 0o777) for at in places]
    assert found == [(0, 0o700), (0, 0o600), (0, 0o600)]
    assert m.vm(1).ask("PING") == "1:PONG"


def test_a_channel_can_be_taken_from_a_vm_and_given_back(registered):
    m = registered({1: ("A", LOW)})
    socket = m.state / "run/vm1.sock"
    with window_peer.Peer(socket) as peer:
        peer.connect().hello().open().ping()
        admin(m, "update-vm", 1, "--channels", "file")
        with pytest.raises(window_peer.PeerError, match="no window channel any more"):
            peer.until(lambda: False)
    assert not socket.exists()
    assert m.vm(1).ask("PING") == "1:PONG"
    admin(m, "update-vm", 1, "--channels", "window")
    assert socket.exists()
    admin(m, "update-vm", 1, "--channels", "file,window")
    assert m.vm(1).ask("PING") == "1:PONG"


# --- restarts -----------------------------------------------------------------------------------------


@both_channels
def test_a_killed_mediator_takes_the_registry_and_its_sessions_up_again(registered):
    m = registered({1: ("A", LOW), 2: ("B", HIGH)})
    assert m.vm(1).ask("PING") == "1:PONG"
    m.kill()
    admin(m, "set-priority", 1, "high")
    admin(m, "quarantine", 2, "--reason", "while it was down")
    m.start()
    assert m.vm(1).ask("PING") == "1:PONG"
    with control(m) as c:
        assert c.vm(1)["priority"] == HIGH
        assert c.vm(2)["state"] == "quarantined"
        if m.channel == "window":
            assert c.vm(1)["sessions"] == 1
    if m.channel == "file":
        assert m.vm(2).ask("PING") == "2:VM 2 is quarantined: while it was down"


def test_a_vm_that_was_quarantined_while_the_mediator_was_down_keeps_its_session(registered):
    m = registered({1: ("A", LOW)}, channel="window")
    assert m.vm(1).ask("PING") == "1:PONG"
    m.kill()
    admin(m, "quarantine", 1)
    m.start()
    assert m.vm(1).ask("PING") == "2:refused"
    m.kill()  # a worker that refuses is adopted too
    m.start()
    assert m.vm(1).ask("PING") == "2:refused"
    admin(m, "release", 1)
    assert m.vm(1).ask("PING") == "1:PONG"


def test_a_request_that_waited_is_refused_when_its_vm_was_quarantined_meanwhile(registered):
    m = registered({9: ("A", HIGH), 1: ("A", LOW)})
    pid = m.occupy(9)
    m.queue(1)
    m.kill()
    admin(m, "quarantine", 1)
    admin(m, "quarantine", 9)
    m.launch()
    m.release(pid)
    m.wait_event("ready", count=2)
    assert m.vm(1).wait_answer().startswith("2:VM 1 is quarantined")
    assert m.vm(9).wait_answer().startswith("2:VM 9 is quarantined")  # it was cut off
    assert [vm for vm, _ in m.executions()] == [9]
