# SPDX-License-Identifier: Apache-2.0
"""A number is not a VM: what an earlier VM of it had is not met by the next one, and what a
VM has follows it to another number."""

import contextlib
import json
import signal
import sqlite3

import pytest

from admin_support import EXISTS, FAILED, NOT_FOUND, Host, Running
from window_peer import Peer, PeerError


@pytest.fixture
def host(place):
    host = Host(place)
    host.good("init")
    return host


@contextlib.contextmanager
def killed(host):
    """A mediator that ends by SIGKILL."""
    running = Running(host)
    with running:
        yield running
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
        running.process.returncode = 0  # asked for


def accept(host, running, vm_id, line):
    """A request that is taken and waits."""
    host.good("test-mode", "on", "--hold-until", "5")
    directory = host.share / f"vm{vm_id}"
    running.wait((directory / "response.txt").exists, "makes no response.txt")
    (directory / "request.txt").write_text(line + "\n")
    running.wait(lambda: (directory / "request.txt").read_text() == "", "takes no request")


def response(host, vm_id):
    return (host.share / f"vm{vm_id}/response.txt").read_text()


def kept(host, kind="journal"):
    return sorted(path.name for path in (host.directory / "state").glob(f"*.{kind}"))


def test_a_new_vm_gets_no_answer_of_an_earlier_one_of_its_number(host):
    host.good("register-vm", "Alpha", "--vm-id", "50")
    with killed(host) as running:
        accept(host, running, 50, "A:1:50:3:4")
    host.good("remove-vm", "50")
    host.good("register-vm", "Beta", "--vm-id", "50")
    with Running(host) as running:
        assert running.ask(50, "A:1:50:5:6") == "1:5 + 6 = 11"
        assert "Sent to vm50: 1:3 + 4 = 7" not in running.log.read_text()


def test_a_removed_vm_leaves_no_command_behind(host):
    host.good("register-vm", "Alpha", "--vm-id", "50")
    with Running(host) as running:
        running.ask(50, "A:1:50:3:4")
        assert len(kept(host)) == 1 and len(kept(host, "session")) == 1
        host.good("remove-vm", "50")
    assert kept(host) == [] and kept(host, "session") == []


def test_an_accepted_request_is_answered_under_the_vms_new_number(host):
    host.good("register-vm", "Alpha", "--vm-id", "50")
    with killed(host) as running:
        accept(host, running, 50, "A:1:50:3:4")
    host.good("set-vm-id", "50", "60", "--yes")
    host.good("register-vm", "Beta", "--vm-id", "50")
    with Running(host) as running:
        running.wait(lambda: response(host, 60).startswith("1:3 + 4 = 7"), "does not answer")
        assert running.ask(50, "A:1:50:PING").startswith("1:")


def test_two_vms_of_one_instant_are_told_apart(host):
    for vm_id in (50, 51):
        host.good("register-vm", "--vm-id", vm_id)
    with contextlib.closing(sqlite3.connect(host.database)) as rows, rows:
        rows.execute("UPDATE vms SET created_us = 1700000000000000")
    with Running(host) as running:
        assert running.ask(50, "A:1:50:3:4") == "1:3 + 4 = 7"
        assert running.ask(51, "A:1:51:5:6") == "1:5 + 6 = 11"
    assert kept(host) == ["vm50.journal", "vm51.journal"]


def unheard(host, command, *words):
    """The mediator is not told."""
    host.good(command, *words, "--socket", host.directory / "nobody.sock")


def connected(host, vm_id):
    return Peer(host.directory / f"state/run/vm{vm_id}.sock").connect().hello()


def assert_ended(peer):
    with pytest.raises((PeerError, ConnectionError)):
        peer.until(lambda: False)


def test_a_reload_that_finds_another_vm_under_a_number_ends_the_earlier_ones_windows(host):
    host.good("register-vm", "Alpha", "--vm-id", "50")
    with Running(host) as running, connected(host, 50) as peer:
        assert peer.open().text("3:4") == (0, "3 + 4 = 7")
        unheard(host, "remove-vm", "50")
        unheard(host, "register-vm", "Beta", "--vm-id", "50")
        host.good("reload")
        assert_ended(peer)
        with connected(host, 50) as new:
            assert new.open().text("3:4") == (0, "3 + 4 = 7")
        assert running.ask(50, "A:1:50:5:6") == "1:5 + 6 = 11"


def test_a_reload_gives_no_answer_of_the_earlier_vm_to_the_next_one(host):
    host.good("register-vm", "Alpha", "--vm-id", "50")
    with Running(host) as running:
        accept(host, running, 50, "A:1:50:3:4")
        unheard(host, "remove-vm", "50")
        unheard(host, "register-vm", "Beta", "--vm-id", "50")
        host.good("reload")
        host.good("test-mode", "off")
        assert running.ask(50, "A:1:50:5:6") == "1:5 + 6 = 11"
        assert "Sent to vm50: 1:3 + 4 = 7" not in running.log.read_text()


@pytest.mark.parametrize("change", [("--owner", "12345"), ("--mode", "0750")])
def test_a_changed_owner_or_mode_ends_the_connections_that_it_let_in(host, change):
    host.good("register-vm", "Alpha", "--vm-id", "50")
    with Running(host), connected(host, 50) as peer:
        assert peer.open().text("3:4") == (0, "3 + 4 = 7")
        host.good("update-vm", "50", *change)
        assert_ended(peer)
        with connected(host, 50) as new:
            assert new.open().text("3:4") == (0, "3 + 4 = 7")


def kill_behind_commit(host, command, *words):
    host.environment["VGPU_FAULT"] = "admin-committed:1"
    assert host.run(command, *words).returncode == -signal.SIGKILL
    del host.environment["VGPU_FAULT"]


@pytest.mark.fault_points
def test_a_registration_that_was_killed_behind_its_commit_counts_when_it_is_repeated(host):
    with Running(host):
        kill_behind_commit(host, "register-vm", "Alpha", "--vm-id", "50")
        assert host.run("register-vm", "Alpha", "--vm-id", "50").returncode == EXISTS
        with connected(host, 50) as peer:
            assert peer.open().text("3:4") == (0, "3 + 4 = 7")


@pytest.mark.fault_points
def test_a_removal_that_was_killed_behind_its_commit_counts_when_it_is_repeated(host):
    host.good("register-vm", "Alpha", "--vm-id", "50")
    with Running(host), connected(host, 50) as peer:
        kill_behind_commit(host, "remove-vm", "50")
        assert host.run("remove-vm", "50").returncode == NOT_FOUND
        assert_ended(peer)


@pytest.mark.fault_points
def test_a_pool_whose_making_was_killed_behind_its_commit_serves_when_it_is_repeated(host):
    host.good("register-vm", "Alpha", "--vm-id", "50")
    with Running(host) as running:
        kill_behind_commit(host, "create-pool", "C", "--device", "cpu:1")
        assert host.run("create-pool", "C", "--device", "cpu:1").returncode == EXISTS
        assert "Pool C: pool" in running.log.read_text()


def exchanged(host):
    """A backup where P is 90 and Q 91; since then they have exchanged their numbers."""
    host.good("register-vm", "P", "--vm-id", "90")
    host.good("register-vm", "Q", "--vm-id", "91")
    for vm_id, name in [(90, "P"), (91, "Q")]:
        (host.share / f"vm{vm_id}/whose").write_text(name)
    host.good("backup", host.directory / "b.db")
    for name, vm_id in [("P", 92), ("Q", 90), ("P", 91)]:
        host.good("set-vm-id", name, vm_id, "--yes")


def assert_restored(host):
    assert (host.vm("P")["vm_id"], host.vm("Q")["vm_id"]) == (90, 91)
    assert (host.share / "vm90/whose").read_text() == "P"
    assert (host.share / "vm91/whose").read_text() == "Q"
    assert sorted(path.name for path in host.share.iterdir()) == ["vm90", "vm91"]
    assert not (host.directory / "vgpu.db.restoring").exists()


def test_a_restore_gives_each_vm_its_own_directory_where_numbers_were_exchanged(host):
    exchanged(host)
    host.good("restore", host.directory / "b.db", "--yes")
    assert_restored(host)


@pytest.mark.fault_points
@pytest.mark.parametrize("point", ["restore-committed:1", "restore-parked:1", "restore-parked:2",
                                   "restore-settled:1", "restore-settled:2"])
def test_a_restore_that_was_killed_is_finished_by_the_same_command(host, point):
    exchanged(host)
    host.environment["VGPU_FAULT"] = point
    assert host.run("restore", host.directory / "b.db", "--yes").returncode == -signal.SIGKILL
    del host.environment["VGPU_FAULT"]
    host.good("restore", host.directory / "b.db", "--yes")
    assert_restored(host)


def test_a_directory_that_cannot_be_restored_is_a_failure_and_named(host):
    host.good("register-vm", "P", "--vm-id", "90")
    host.good("backup", host.directory / "b.db")
    host.good("remove-vm", "90")
    (host.share / "vm90").symlink_to(host.directory)
    done = host.run("restore", "--json", host.directory / "b.db", "--yes")
    assert done.returncode == FAILED
    failed, = json.loads(done.stdout)["failed"]
    assert failed["vm_id"] == 90 and "cannot open directory 'vm90'" in failed["error"]
