# SPDX-License-Identifier: Apache-2.0
"""vgpu-admin events, backup and restore."""

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import sqlite3
import subprocess

import pytest

import support
from admin_support import (ADMIN, DATABASE, DECLINED, EXISTS, FAILED, NOT_FOUND, OK, TIMEOUT_S,
                           USAGE, Host)

EVENT_KEYS = ["id", "time", "actor", "action", "vm_id", "pool", "before", "after"]


@pytest.fixture
def host(place):
    host = Host(place)
    host.good("init")
    return host


def work(host):
    """Some changes of VMs 1 and 2."""
    host.good("register-vm", "one")
    host.good("register-vm", "two", "--pool", "B")
    host.good("set-pool", "one", "B")
    host.good("set-priority", "two", "high")
    host.good("quarantine", "one", "--reason", "a test")
    return host


@pytest.fixture
def busy(host):
    return work(host)


@pytest.fixture(scope="module")
def settled():
    """As busy, for tests that only look."""
    with support.directory() as path:
        host = Host(path)
        host.good("init")
        yield work(host)


def actions(host, *filters):
    return [event["action"] for event in host.json("events", *filters)["events"]]


# --- events ------------------------------------------------------------------------------


def test_each_change_is_an_event_with_what_was_and_what_is(settled):
    events = settled.json("events")["events"]
    assert all(list(event) == EVENT_KEYS for event in events)
    assert [event["action"] for event in events] == [
        "init", "init", "register-vm", "register-vm", "set-pool", "set-priority", "quarantine"]
    registered, moved = events[2], events[4]
    assert registered["before"] is None and registered["after"]["name"] == "one"
    assert (moved["vm_id"], moved["before"]["pool"], moved["after"]["pool"]) == (1, "A", "B")
    assert [event["id"] for event in events] == sorted(event["id"] for event in events)


def test_in_words_an_event_says_what_differs(settled):
    lines = settled.good("events").splitlines()
    assert lines[0].split() == ["TIME", "WHO", "ACTION", "OF", "CHANGE"]
    assert lines[3].endswith("register-vm   VM 1    name one, pool A, priority medium")
    assert lines[5].endswith("set-pool      VM 1    pool A -> B")
    assert "state active -> quarantined, reason none -> a test" in lines[7]


@pytest.mark.parametrize("filters, expected", [
    (["--vm", "one"], ["register-vm", "set-pool", "quarantine"]),
    (["--vm", "2"], ["register-vm", "set-priority"]),
    (["--action", "set-pool"], ["set-pool"]),
    (["--limit", "2"], ["set-priority", "quarantine"]),
    (["--limit", "0", "--vm", "2"], ["register-vm", "set-priority"]),
    (["--vm", "99"], []),
    (["--since", "1h", "--action", "init"], ["init", "init"]),
    (["--since", "2999-01-01"], []),
    (["--since", "2020-01-01T00:00:00Z", "--limit", "1"], ["quarantine"]),
    (["--actor", "nobody in particular"], [])])
def test_filters_of_events(settled, filters, expected):
    assert actions(settled, *filters) == expected


def test_a_vm_that_is_gone_has_its_events_by_number(busy):
    busy.good("remove-vm", "two")
    assert actions(busy, "--vm", "2") == ["register-vm", "set-priority", "remove-vm"]
    assert "'two' is registered" in busy.bad(NOT_FOUND, "events", "--vm", "two")


def test_no_such_event_is_said(host):
    assert host.good("events", "--action", "set-pool") == "No such event.\n"


@pytest.mark.parametrize("words, message", [
    (["--since", "yesterday"], "--since: 'yesterday': expected so long ago (90s, 15m, 2h, 7d)"),
    (["--since", "5x"], "--since: '5x'"), (["--since", "-1h"], "--since: '-1h'"),
    (["--limit", "many"], "--limit: 'many': expected a number"),
    (["--pool", "AB"], "--pool: pool id 'AB'")])
def test_filters_of_events_are_checked(settled, words, message):
    assert message in settled.bad(USAGE, "events", *words)


class Follower:
    """events --follow, line by line."""

    def __init__(self, host, *words):
        self.process = subprocess.Popen(
            [ADMIN, "events", "--follow", "--config", host.config, *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=host.environment)
        self.read = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def line(self):
        while b"\n" not in self.read:
            ready, _, _ = select.select([self.process.stdout], [], [], TIMEOUT_S)
            assert ready, "nothing came"
            part = os.read(self.process.stdout.fileno(), 65536)
            assert part, "it ended"
            self.read += part
        line, self.read = self.read.split(b"\n", 1)
        return line.decode() + "\n"


def test_follow_tells_what_was_and_then_what_comes(host):
    with Follower(host, "--json") as follower:
        assert [json.loads(follower.line())["action"] for _ in range(2)] == ["init", "init"]
        for number in range(3):
            host.good("register-vm", f"web{number}")
            event = json.loads(follower.line())
            assert list(event) == EVENT_KEYS
            assert (event["action"], event["after"]["name"]) == ("register-vm", f"web{number}")


def test_follow_goes_by_the_filters(host):
    host.good("register-vm", "one")
    host.good("register-vm", "two")
    with Follower(host, "--vm", "two", "--limit", "1") as follower:
        assert follower.line().endswith("register-vm  VM 2  name two, pool A, priority medium\n")
        host.good("set-pool", "one", "B")
        host.good("set-pool", "two", "B")
        assert follower.line().endswith("set-pool  VM 2  pool A -> B\n")


def test_follow_ends_when_nobody_reads(host):
    follower = subprocess.Popen([ADMIN, "events", "--follow", "--config", host.config],
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, env=host.environment)
    try:
        follower.stdout.readline()
        follower.stdout.close()
        assert follower.wait(TIMEOUT_S) in (OK, FAILED, -signal.SIGPIPE)
    finally:
        follower.kill()
        follower.wait()


# --- pruning ---------------------------------------------------------------------------------


def age(host, action, time_us):
    """Makes an event older; the schema's guard is as it was afterwards."""
    with contextlib.closing(sqlite3.connect(host.database)) as rows:
        [guard] = rows.execute("SELECT sql FROM sqlite_master WHERE name = 'events_keep'").fetchone()
        rows.execute("DROP TRIGGER events_keep")
        rows.execute("UPDATE events SET time_us = ? WHERE action = ?", (time_us, action))
        rows.execute(guard)
        rows.commit()


def test_old_events_are_pruned_and_that_is_an_event(busy):
    age(busy, "register-vm", 1704067200000000)  # 2024-01-01
    answer = busy.json("events", "--prune-before", "2024-01-02", "--yes")
    assert answer == {"pruned": 2, "before": "2024-01-02T00:00:00Z"}
    assert [action for action in actions(busy) if action != "init"] == [
        "set-pool", "set-priority", "quarantine", "events"]
    [event] = busy.json("events", "--action", "events")["events"]
    assert event["after"] == {"pruned": 2, "before_us": 1704153600000000}
    assert event["actor"]
    assert busy.good("events", "--prune-before", "365d", "--yes").startswith(
        "0 events from before ")


def test_after_pruning_events_are_kept_as_before(busy):
    busy.good("events", "--prune-before", "1s", "--yes")
    with contextlib.closing(sqlite3.connect(busy.database)) as rows:
        with pytest.raises(sqlite3.IntegrityError, match="events are never deleted"):
            rows.execute("DELETE FROM events")
    busy.good("set-pool", "one", "A")  # the schema is whole: others still open it
    assert "pass" in busy.run("preflight", "--only", "database").stdout


def test_pruning_asks_and_takes_no_for_an_answer(busy):
    before = busy.state()
    code, output = busy.ask("no\n", "events", "--prune-before", "2024-01-02")
    assert code == DECLINED
    assert "All events from before 2024-01-02T00:00:00Z are deleted. Do it?" in output
    assert busy.state() == before


@pytest.mark.parametrize("words,message", [
    (["--vm", "1"], "takes no filter"), (["--follow"], "takes no filter"),
    (["--since", "2d"], "takes no filter"), (["--prune-before", "2999-01-01"], "has passed"),
    (["--prune-before", "yesterday"], "--prune-before: 'yesterday'")])
def test_what_cannot_be_pruned_is_refused(busy, words, message):
    words = words if words[0] == "--prune-before" else ["--prune-before", "1d", *words]
    assert message in busy.bad(USAGE, "events", *words, "--yes")


# --- backup and restore ---------------------------------------------------------------------


def test_a_backup_is_a_database_of_its_own(busy):
    copy = busy.directory / "copy.db"
    assert busy.json("backup", copy) == {"backup": str(copy)}
    assert busy.json("list-vms", "--database", copy) == busy.json("list-vms")


def test_a_backup_does_not_replace_a_file(busy):
    copy = busy.directory / "copy.db"
    copy.write_text("precious")
    assert str(copy) in busy.bad(EXISTS, "backup", copy)
    assert copy.read_text() == "precious"


def test_a_backup_that_cannot_be_written_is_a_failure(busy):
    busy.bad_rows(FAILED, "backup", "/proc/copy.db")


def test_a_restored_registry_is_the_one_of_the_backup(busy):
    copy = busy.directory / "copy.db"
    before = busy.json("list-vms")
    busy.good("backup", copy)
    busy.good("remove-vm", "one")
    busy.good("set-priority", "two", "low")
    answer = busy.json("restore", copy, "--yes")
    assert answer == {"restored": str(copy), "vms": 2, "stale": [], "unregistered": [], "failed": [],
                      "mediator": "down"}
    assert busy.json("list-vms") == before
    assert actions(busy)[:-3][-2:] == ["remove-vm", "set-priority"]  # the audit goes on


def test_the_audit_has_each_row_that_a_restore_changed(busy):
    copy = busy.directory / "copy.db"
    busy.good("bind-device", "B", "cpu:1")
    busy.good("backup", copy)
    busy.good("remove-vm", "one")
    busy.good("set-priority", "two", "low")
    busy.good("register-vm", "three", "--vm-id", 7)
    busy.good("set-pool-name", "A", "blue")
    busy.good("withdraw-device", "cpu:1")
    busy.good("restore", copy, "--yes")
    whole, *rows = [event for event in busy.json("events")["events"] if event["action"] == "restore"]
    assert (whole["before"], whole["after"]) == ({"vms": 2, "pools": 2}, {"vms": 2, "pools": 2})
    vms = {event["vm_id"]: event for event in rows if event["vm_id"]}
    changed = [(event["before"], event["after"]) for event in rows]
    assert ({"name": "blue"}, {"name": "Pool A"}) in changed
    assert ({"withdrawn": True}, {"withdrawn": False}) in changed
    assert ({"priority": "low"}, {"priority": "high"}) in changed
    assert vms[1]["before"] is None and vms[1]["after"]["state"] == "quarantined"
    assert vms[7]["before"]["name"] == "three" and vms[7]["after"] is None
    assert len(rows) == 5


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_a_file_is_restored(busy, make):
    make(busy.directory / "odd")
    before = busy.state()
    assert "is no regular file" in busy.bad(FAILED, "restore", busy.directory / "odd", "--yes")
    assert busy.state() == before


def test_a_limit_on_the_size_of_files_is_an_error_and_kills_nobody(busy):
    """As SIGXFSZ would."""
    before = busy.state()
    done = busy.run("set-priority", "two", "low",
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)))
    assert done.returncode == DATABASE and "File too large" in done.stderr, done
    assert busy.state() == before


def test_restore_asks_and_takes_no_for_an_answer(busy):
    copy = busy.directory / "copy.db"
    busy.good("backup", copy)
    busy.good("remove-vm", "one")
    code, output = busy.ask("no\n", "restore", copy)
    assert code == DECLINED and "Restore it? (yes/no)" in output
    assert len(busy.json("list-vms")["vms"]) == 1
    code, output = busy.ask("yes\n", "restore", copy)
    assert code == OK and "The backup is restored: 2 VMs." in output
    assert len(busy.json("list-vms")["vms"]) == 2


def test_without_a_terminal_restore_wants_yes(busy):
    busy.good("backup", busy.directory / "copy.db")
    assert "say --yes" in busy.bad(USAGE, "restore", busy.directory / "copy.db")


def test_what_is_no_backup_is_refused(busy):
    nonsense = busy.directory / "nonsense.db"
    nonsense.write_text("this is no database, whatever its name is" * 100)
    before = busy.state()
    assert busy.run("restore", nonsense, "--yes").returncode == DATABASE
    assert busy.run("restore", busy.directory / "none.db", "--yes").returncode in (FAILED,
                                                                                DATABASE)
    assert busy.state() == before


def test_a_damaged_backup_is_refused(busy):
    copy = busy.directory / "copy.db"
    busy.good("backup", copy)
    content = bytearray(copy.read_bytes())
    content[4096:8192] = os.urandom(4096)
    copy.write_bytes(content)
    before = busy.state()
    assert busy.run("restore", copy, "--yes").returncode == DATABASE
    assert busy.state() == before


def test_a_database_that_was_copied_by_hand_still_opens(busy, place):
    """What people do, with nobody at work."""
    shutil.copy(busy.database, place / "by-hand.db")
    assert len(busy.json("list-vms", "--database", place / "by-hand.db")["vms"]) == 2
