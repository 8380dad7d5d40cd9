# SPDX-License-Identifier: Apache-2.0
"""vgpu-admin beside a running mediator: what it changes counts when it ends."""

import signal
import subprocess

import pytest

from admin_support import ADMIN, DATABASE, FAILED, OK, USAGE, Host, Running


@pytest.fixture
def host(place):
    host = Host(place)
    host.good("init")
    return host


@pytest.fixture
def mediator(host):
    with Running(host) as running:
        yield running


def test_a_vm_is_served_from_its_registration_on(host, mediator):
    assert host.json("register-vm", "web1", "--vm-id", "7")["mediator"] == "applied"
    assert mediator.ask(7, "A:1:7:3:4") == "1:3 + 4 = 7"


def test_a_database_that_is_gone_is_one_for_reload_too(host, mediator):
    moved = host.database.rename(host.directory / "away.db")
    done = host.run("reload")
    assert done.returncode == DATABASE, done
    assert host.run("list-vms").returncode == DATABASE
    moved.rename(host.database)
    assert host.run("reload").returncode == OK


def test_a_configuration_that_cannot_be_read_is_no_matter_of_the_database(host, mediator):
    text = host.config.read_text()
    host.config.write_text(text.replace("[admin]", "share_poll_ms = often\n[admin]"))
    assert host.run("reload").returncode == USAGE
    host.config.write_text(text)


def test_a_change_of_pool_and_priority_counts_at_once(host, mediator):
    host.good("register-vm", "web1", "--vm-id", "7")
    assert host.json("set-pool", "7", "B")["mediator"] == "applied"
    assert host.run("set-priority", "7", "high").stderr == ""
    # What the request claims is stale, which is no reason to refuse it.
    assert mediator.ask(7, "A:0:7:PING").startswith("1:")


def test_a_quarantined_vm_is_told_the_reason_until_it_is_released(host, mediator):
    host.good("register-vm", "web1", "--vm-id", "7")
    host.good("quarantine", "7", "--reason", "Xid 31 twice")
    answer = mediator.ask(7, "A:1:7:PING")
    assert answer.startswith("2:") and "Xid 31 twice" in answer
    host.good("release", "7")
    assert mediator.ask(7, "A:1:7:PING").startswith("1:")


def test_many_administrators_at_once_all_succeed(host, mediator):
    for vm_id in range(1, 31):
        host.good("register-vm", "--vm-id", vm_id)
    changes = [subprocess.Popen([ADMIN, "set-priority", "--config", host.config, str(vm_id), "high"],
                                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, text=True, env=host.environment)
               for vm_id in range(1, 31)]
    for change in changes:
        said = change.communicate(timeout=180)[1]
        assert (change.returncode, said) == (OK, "")
    assert {vm["priority"] for vm in host.json("list-vms")["vms"]} == {"high"}


def test_a_disabled_pool_refuses(host, mediator):
    host.good("register-vm", "web1", "--vm-id", "7")
    host.good("update-pool", "A", "--enabled", "no")
    assert mediator.ask(7, "A:1:7:PING").startswith("2:")
    host.good("update-pool", "A", "--enabled", "yes")
    assert mediator.ask(7, "A:1:7:PING").startswith("1:")


def test_a_removed_vms_directory_is_gone_and_stays_gone(host, mediator):
    host.good("register-vm", "web1", "--vm-id", "7")
    host.good("register-vm", "web2", "--vm-id", "8")
    mediator.ask(7, "A:1:7:PING")
    host.good("remove-vm", "7")
    assert mediator.ask(8, "A:1:8:PING").startswith("1:")  # it has looked at the share since
    assert not (host.share / "vm7").exists()
    assert host.retired() and all(name.startswith("vm7-") for name in host.retired())


def test_a_renumbered_vm_is_served_under_its_new_number(host, mediator):
    host.good("register-vm", "web1", "--vm-id", "7")
    mediator.ask(7, "A:1:7:PING")
    (host.share / "vm7/left").write_text("by the guest")
    assert host.json("set-vm-id", "7", "9", "--yes")["mediator"] == "applied"
    assert mediator.ask(9, "A:1:9:3:4") == "1:3 + 4 = 7"
    assert (host.share / "vm9/left").read_text() == "by the guest"
    assert not (host.share / "vm7").exists()


def test_a_restored_registry_is_the_mediators_at_once(host, mediator):
    host.good("register-vm", "web1", "--vm-id", "7")
    host.good("backup", host.directory / "copy.db")
    host.good("remove-vm", "7")
    host.good("restore", host.directory / "copy.db", "--yes")
    assert mediator.ask(7, "A:1:7:3:4") == "1:3 + 4 = 7"


def test_a_new_pool_serves_vms(host, mediator):
    host.good("create-pool", "C", "--device", "cpu:1")
    assert host.json("register-vm", "web1", "--vm-id", "7", "--pool", "C")["mediator"] == "applied"
    assert mediator.ask(7, "C:1:7:3:4") == "1:3 + 4 = 7"


def test_a_mediator_that_was_killed_is_down(host):
    with Running(host) as running:
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
        done = host.run("register-vm", "web1")
        running.process.returncode = 0  # asked for
    assert done.returncode == OK
    assert "the mediator is not running" in done.stderr


def test_a_mediator_without_this_database_is_said_to_be_elsewhere(host, place):
    config = place / "without.conf"
    config.write_text("".join(line + "\n" for line in host.config.read_text().splitlines()
                              if not line.startswith("database")))
    with Running(host, config):
        done = host.run("register-vm", "web1")
        assert done.returncode == OK
        assert (f"reads no database, not {host.database}: nothing of this counts there"
                in done.stderr)
        assert host.json("set-pool", "web1", "B")["mediator"] == "elsewhere"


def test_what_the_mediator_cannot_apply_is_a_failure_that_says_what_is_changed(host, mediator):
    host.good("register-vm", "web1", "--vm-id", "7")
    good = host.config.read_text()
    host.config.write_text(good.replace("[mediator]\n", "[mediator]\nnonsense = 1\n"))
    done = host.run("set-pool", "7", "B")
    assert done.returncode == FAILED
    assert ("the database is changed, but the mediator could not apply it: " in done.stderr
            and "unknown key 'nonsense'" in done.stderr)
    assert host.vm("7")["pool"] == "B"
    host.config.write_text(good)
    assert host.json("set-pool", "7", "B")["mediator"] == "applied"


def test_a_number_that_the_mediator_cannot_apply_is_taken_back(host, mediator):
    host.good("register-vm", "web1", "--vm-id", "7")
    good = host.config.read_text()
    host.config.write_text(good.replace("[mediator]\n", "[mediator]\nnonsense = 1\n"))
    done = host.run("set-vm-id", "7", "9", "--yes")
    assert done.returncode == FAILED and "the mediator failed: " in done.stderr
    assert host.vm("web1")["vm_id"] == 7
    host.config.write_text(good)
    assert mediator.ask(7, "A:1:7:3:4") == "1:3 + 4 = 7"
